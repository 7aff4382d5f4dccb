"""How good a judge is on corpora that it never saw: learned on 15 corpora, asked about the other 10, many times over.

    python tests/benchmarks/judge.py results/miniature config/config.yaml
    python tests/benchmarks/judge.py --published ../shared/published
    python tests/benchmarks/judge.py --models results/miniature_model_selection config/miniature_model_selection.yaml

The first reads the tables of a finished data selection and its study, the second DataDecide's published measurements.
Per budget and proxy named in advance, over random splits: decision accuracy among the corpora that were held out, by
the metric that the judge predicts. Beside it what the truth in hand says of the same corpora: of the same proxy, of the
one of all proxies and baselines that was best on the 15, and of the best in hindsight. Of the metric: how often the
95 % interval covers, how wide it is beside the one that knows no proxy, and the mean absolute error, also of either
form of the link. Then every corpus is held out once, and last whole groups (corpora whose names share their first
word): a judge that meets corpora unlike its own. Means count every corpus, and every pair of corpora, once.

The third does the same for a judge of models: learned from two thirds of the models, or from all families but one, in
all tasks. Of the others it tells Spearman's rho within a task, beside that of bits per byte, which learns nothing, and
what the intervals of the metric are worth.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import yaml
from proxycast.config.experiments.selection_options import ModelSelectionOptions, SelectionOptions
from proxycast.config.study import Study
from proxycast.experiments.data_selection import corpus_scores, corpus_truth
from proxycast.experiments.judges.judge_application import apply_judge
from proxycast.experiments.judges.judge_links import fit_form, fit_link, predict
from proxycast.experiments.judges.scorer_judges import model_judge
from proxycast.experiments.rank_statistics import decision_accuracy
from proxycast.tables import read_table
from scipy.stats import t as student_t

TRAIN, CONFIDENCE = 15, 0.95
SCORERS = ("univariate", "sparse3", "rank_svm_linear")


class Cell(NamedTuple):
    """A budget: scores (proxies, corpora), higher is better, of everything that was compared there."""

    budget: str
    names: list[str]
    named: list[int]  # those fixed in advance
    scores: np.ndarray
    metric: np.ndarray  # (corpora,), the truth


def random_splits(corpora: int, splits: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(corpora) for _ in range(splits)]
    return [(order[:TRAIN], order[TRAIN:]) for order in orders]


def held_out(cell: Cell, splits: Sequence[tuple[np.ndarray, np.ndarray]]) -> pl.DataFrame:
    """A row for every proxy named in advance: means over the splits."""
    corpora = np.array([len(test) for _, test in splits])
    pairs, y = corpora * (corpora - 1) / 2, cell.metric
    known = cell.scores[np.isfinite(cell.scores).all(1)]
    in_hindsight, by_choice = [], []
    for train, test in splits:
        chosen = int(decision_accuracy(known[:, train], y[train]).argmax())
        found = decision_accuracy(known[:, test], y[test])
        in_hindsight.append(found.max())
        by_choice.append(found[chosen])
    rows = []
    for proxy in cell.named:
        found = pl.DataFrame([of_split(cell.scores[proxy], y, *split) for split in splits])
        found = found.with_columns(best_of_all=np.array(by_choice), in_hindsight=np.array(in_hindsight))
        row = {"budget": cell.budget, "proxy": cell.names[proxy]}
        if pairs.any():
            at = pairs > 0
            of_pairs = ["judge", "same_proxy"] + (["best_of_all", "in_hindsight"] if len(known) > 1 else [])
            row |= {name: float(np.average(found[name].to_numpy()[at], weights=pairs[at])) for name in of_pairs}
        rows.append(row | {name: float(np.average(found[name], weights=corpora)) for name in OF_METRIC})
    return pl.DataFrame(rows)


OF_METRIC = ["covered", "width", "width_without", "error", "error_without", "logistic"]
OF_METRIC += [f"{form}_{what}" for form in ("linear", "logistic") for what in ("error", "covered")]


def of_split(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    link = fit_link(x[train], y[train], share=True)
    value, low, high = predict(link, x[test], CONFIDENCE, (0, 1))
    # Without a proxy: the interval of a new observation from the same distribution.
    n = len(train)
    half = student_t.ppf((1 + CONFIDENCE) / 2, n - 1) * y[train].std(ddof=1) * np.sqrt(1 + 1 / n)
    found = {
        "judge": float(decision_accuracy(np.round(value, 12), y[test])),
        "same_proxy": float(decision_accuracy(x[test], y[test])),
        "covered": float(((low <= y[test]) & (y[test] <= high)).mean()),
        "width": float((high - low).mean()),
        "width_without": float(2 * half),
        "error": float(np.abs(value - y[test]).mean()),
        "error_without": float(np.abs(y[train].mean() - y[test]).mean()),
        "logistic": float(link.form == "logistic"),
    }
    for form in ("linear", "logistic"):
        own = predict(fit_form(x[train], y[train], form), x[test], CONFIDENCE, (0, 1))
        found[f"{form}_error"] = float(np.abs(own[0] - y[test]).mean())
        found[f"{form}_covered"] = float(((own[1] <= y[test]) & (y[test] <= own[2])).mean())
    return found


def cells_of_study(results: Path, config: Path) -> tuple[list[str], list[Cell]]:
    study = Study(**yaml.safe_load(config.read_text()))
    checkpoints, targets = read_table(results / "checkpoints.parquet"), read_table(results / "targets.parquet")
    tasks = targets["task"].unique().sort().to_list()
    signs = corpus_scores.metric_signs(targets, study.target)
    truth = corpus_truth.oriented(corpus_truth.truth_by_seed(checkpoints, targets, study.target.metric), 1)
    truth = truth.group_by("corpus").agg(pl.col("value").mean()).sort("corpus")
    proxies = pl.scan_parquet(results / "proxies.parquet").filter(tail="tokens")
    predicted = pl.concat(corpus_scores.predictions_by_size(checkpoints, proxies, targets, tasks, signs))
    named = [f"{proxy.statistic}/{proxy.weighting}" for proxy in study.highlighted] + ["bits_per_byte/none"]
    cells = []
    for budget in study.budgets:
        own = predicted.filter(size=budget.size, step=budget.step)
        own = own.with_columns(proxy=pl.format("{}/{}", "statistic", "weighting"))
        wide = own.group_by("proxy", "corpus").agg(pl.col("score").mean()).sort("proxy", "corpus")
        names = wide["proxy"].unique(maintain_order=True).to_list()
        scores = wide["score"].to_numpy().reshape(len(names), len(truth))
        cells.append(Cell(budget.name, names, [names.index(n) for n in named], scores, truth["value"].to_numpy()))
    return truth["corpus"].to_list(), cells


def cells_of_datadecide(folder: Path) -> tuple[list[str], list[Cell]]:
    """The one proxy that is published for every corpus, size and seed, and OLMES accuracy at 1B."""
    truth = pl.read_csv(folder / "datadecide_accuracy_1b.csv").filter(task="olmes_10_macro_avg").sort("recipe")
    nll = pl.read_csv(folder / "datadecide_correct_prob_nll.csv").group_by("size", "recipe").agg(pl.col("nll").mean())
    sizes = pl.read_csv(folder / "datadecide_sizes.csv", schema_overrides={"flops_6ND": pl.Float64})["size"].to_list()
    metric = truth["acc_1b_three_seed_mean"].to_numpy()
    cells = []
    for size in (size for size in sizes if size in set(nll["size"])):
        own = nll.filter(size=size).sort("recipe")
        assert own["recipe"].to_list() == truth["recipe"].to_list()
        cells.append(Cell(size, ["correct_prob_nll"], [0], -own["nll"].to_numpy()[None], metric))
    return truth["recipe"].to_list(), cells


def models_held_out(results: Path, config: Path, splits: int) -> None:
    """Prints a row for every scorer: rho of its order, and the metric, over models that were held out."""
    study = Study(**yaml.safe_load(config.read_text()))
    tables = {n: read_table(results / f"model_selection/{n}.parquet") for n in ("summary", "truth")}
    checkpoints, targets, proxies = (
        read_table(results / f"{n}.parquet") for n in ("checkpoints", "targets", "proxies")
    )
    tasks = sorted(path.stem for path in (results / "solutions").glob("*.jsonl") if path.stem != "generic_text")
    tokens, options = proxies.filter(tail="tokens"), ModelSelectionOptions(scorers=SCORERS)
    values = tokens.filter(pl.col("task").is_in(tasks)).with_columns(solution=pl.lit(""))
    names, families = checkpoints["checkpoint"].to_numpy(), checkpoints["family"].to_numpy()
    rng = np.random.default_rng(0)
    held = {
        f"{len(names) // 3} of {len(names)} models held out, {splits} splits": [
            rng.permutation(names)[: len(names) // 3] for _ in range(splits)
        ],
        "a family held out": [names[families == family] for family in np.unique(families)],
    }
    few = SelectionOptions(bootstrap_replicates=100)
    metric = targets.filter(metric=study.target.metric).select("checkpoint", "task", truth="value")
    for title, found in held.items():
        rows = []
        for number, test in enumerate(found):
            train, rest = (checkpoints.filter(pl.col("checkpoint").is_in(list(test)) ^ own) for own in (True, False))
            judge = model_judge("judged", train, targets, tokens, tasks, study.target, options, tables)
            table = apply_judge(judge, values, rest, options=few).filter(pl.col("task") != "all")
            bits = values.filter(statistic="bits_per_byte").select("checkpoint", "task", bits=-pl.col("value"))
            joined = table.join(metric, left_on=["model", "task"], right_on=["checkpoint", "task"])
            joined = joined.join(bits, left_on=["model", "task"], right_on=["checkpoint", "task"])
            rows.append(joined.with_columns(split=pl.lit(number)))
        every = pl.concat(rows)
        rho = every.group_by("scorer", "split", "task").agg(
            rho=pl.corr("score", "truth", method="spearman"), bits=pl.corr("bits", "truth", method="spearman")
        )
        rho = rho.fill_nan(None).group_by("scorer").agg(pl.col("rho", "bits").mean())
        of_metric = every.group_by("scorer", maintain_order=True).agg(
            covered=pl.col("truth").is_between("predicted_low", "predicted_high").mean(),
            width=(pl.col("predicted_high") - pl.col("predicted_low")).mean(),
            error=(pl.col("truth") - pl.col("predicted")).abs().mean(),
            error_without=(pl.col("truth") - pl.col("truth").mean().over("task")).abs().mean(),
        )
        show(title, rho.join(of_metric, on="scorer").sort("scorer").rename({"bits": "rho of bits per byte"}))


def show(title: str, table: pl.DataFrame) -> None:
    head = [name.replace("_", " ") for name in table.columns]
    print(f"\n{title}:\n\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in table.iter_rows():
        print("| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results/miniature"))
    parser.add_argument("config", type=Path, nargs="?", default=Path("config/config.yaml"))
    parser.add_argument("--published", type=Path)
    parser.add_argument("--models", action="store_true")
    parser.add_argument("--splits", type=int, help="random splits (1000; with --models 20)")
    options = parser.parse_args()
    if options.models:
        models_held_out(options.results, options.config, options.splits or 20)
        return
    count = options.splits or 1000
    if options.published:
        corpora, cells = cells_of_datadecide(options.published)
    else:
        corpora, cells = cells_of_study(options.results, options.config)
    groups = np.array([name.replace("-", "_").replace(" ", "_").split("_")[0].lower() for name in corpora])
    everyone = np.arange(len(corpora))
    splits = {
        f"{TRAIN} corpora learned, {len(corpora) - TRAIN} held out, {count} splits": random_splits(len(corpora), count),
        "every corpus held out once": [(np.delete(everyone, k), everyone[[k]]) for k in everyone],
        "whole groups held out": [
            (everyone[groups != group], everyone[groups == group]) for group in dict.fromkeys(groups)
        ],
    }
    sizes = [f"{group} ({(groups == group).sum()})" for group in dict.fromkeys(groups)]
    print(f"groups of corpora: {', '.join(sizes)}")
    for title, found in splits.items():
        table = pl.concat(held_out(cell, found) for cell in cells)
        show(title, table)


if __name__ == "__main__":
    main()
