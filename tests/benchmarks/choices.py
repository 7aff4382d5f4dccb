"""What choosing by each method costs, on finished studies, and whether the intervals of a regret cover.

    python tests/benchmarks/choices.py corpora results/miniature config/config.yaml
    python tests/benchmarks/choices.py corpora results/published_datadecide config/published_datadecide.yaml
    python tests/benchmarks/choices.py models results/miniature_model_selection config/miniature_model_selection.yaml
    python tests/benchmarks/choices.py coverage
    python tests/benchmarks/choices.py scale

It prints the tables of docs/measured/choices.md. What is looked at was fixed before the first look. Corpora: the
budgets of the study, and the end of training of each size; the proxies that the study names in advance and all
baselines that differ between corpora, none chosen by its result; scores averaged over seeds. Models: all scorers and
baselines, the tail in tokens, two tasks held out. Each figure has its interval, each difference is paired with the best
baseline, that of the highest decision accuracy. A method wins or loses if the interval of a difference excludes 0.
Coverage: 25 candidates from a bivariate normal distribution, the truth without noise; how often a 95 % interval holds
the mean over 4000 such sets. Scale: time and memory of the tables for all of DataDecide's checkpoints, with random
values.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget
from proxycast.config.truth import Target
from proxycast.experiments.bootstrap import bootstrap_weights, percentile_interval
from proxycast.experiments.choices import FIGURES, choice_figures
from proxycast.experiments.choosing.corpus_choices import corpus_choice_tables
from proxycast.experiments.choosing.model_choices import model_choice_tables
from proxycast.solutions.rows import GENERIC_TEXT
from proxycast.study.loader import load_plan
from proxycast.study.yaml_files import read_yaml
from proxycast.tables import read_table, scan_tables
from scale import NAMES, planned

CONSTANT = ("parameters", "training_compute")
SETS, SAMPLES, EXPECTED, CANDIDATES = 400, 400, 4000, 25


def shown(row: dict, name: str, low: str = "", high: str = "", digits: int = 3) -> str:
    """A figure with its interval."""
    value, ends = row[name], (row[low or f"{name}_low"], row[high or f"{name}_high"])
    if value is None:
        return "–"
    told = ["∞" if end is None else f"{end:.{digits}f}" for end in ends]
    return f"{value:.{digits}f}" + ("" if ends[0] is None else f" [{told[0]}, {told[1]}]")


def table(header: list[str], rows: list[list[str]]) -> None:
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def corpora(folder: Path, config: Path) -> None:
    plan = load_plan(read_yaml(config), str(config))
    study, read = plan.study, {path.stem: path for path in folder.glob("*.parquet")}
    own = folder / "data_selection"
    accuracies = read_table(own / "decision_accuracy.parquet").filter(truth=study.target.metric, task="all")
    pairs = read_table(own / "pairs.parquet") if (own / "pairs.parquet").exists() else None
    tables = corpus_choice_tables(
        read_table(read["checkpoints"]),
        read_table(read["targets"]),
        plan.task_names,
        study.target,
        study.selection,
        study.budgets,
        proxies=scan_tables(read["proxies"]) if "proxies" in read else None,
        outside=read_table(read["statistics"]) if "statistics" in read else None,
        pairs=pairs,
    )
    named = [(proxy.statistic, proxy.weighting) for proxy in study.highlighted]
    key = ["statistic", "weighting", "size", "step", "seed"]
    columns = ["decision_accuracy", "low", "high", "difference", "difference_low", "difference_high"]
    rows = tables["choices"].join(accuracies.select(*key, *columns), on=key, suffix="_of_pairs", how="left")
    rows = (
        rows.filter(seed="mean")
        .filter(~pl.col("statistic").is_in(CONSTANT))
        .filter(
            (pl.col("kind") == "baseline")
            | pl.struct("statistic", "weighting").is_in([{"statistic": s, "weighting": w} for s, w in named])
        )
    )
    for budget in study.budgets:
        of_budget(budget, rows, tables, named)
    ends = rows.filter(pl.col("step") == pl.col("step").max().over("size")).sort("compute_fraction")
    of_sizes = ends.filter(
        pl.struct("statistic", "weighting").is_in([{"statistic": s, "weighting": w} for s, w in named])
    )
    print("At the end of training of each size:\n")
    table(
        [
            "size",
            "of the target's compute",
            "method",
            "pairs ordered rightly",
            "regret",
            "regret, best of three",
            "NDCG",
        ],
        [
            [
                r["size"],
                f"{r['compute_fraction']:.2g}",
                name_of(r),
                shown(r, "decision_accuracy", "low", "high"),
                shown(r, "regret", digits=4),
                shown(r, "regret_top", digits=4),
                shown(r, "ndcg"),
            ]
            for r in of_sizes.iter_rows(named=True)
        ],
    )


def name_of(row: dict) -> str:
    return row["statistic"] if row["weighting"] == "none" else f"{row['statistic']}/{row['weighting']}"


def of_budget(budget: Budget, rows: pl.DataFrame, tables: dict[str, pl.DataFrame], named: list) -> None:
    own = rows.filter(size=budget.size, step=budget.step).sort("regret", "decision_accuracy", descending=[False, True])
    first = own.row(0, named=True)
    print(f"### {budget.size} at step {budget.step}: {first['compute_fraction']:.2g} of the target's compute\n")
    print(f"Best corpus: {first['best']}. Best baseline: {first['best_baseline']}.\n")
    table(
        [
            "method",
            "pairs ordered rightly",
            "less the best baseline's",
            "picks",
            "regret",
            "less the best baseline's",
            "regret, best of three",
            "recall",
            "NDCG",
        ],
        [
            [
                f"**{name_of(r)}**" if (r["statistic"], r["weighting"]) in named else name_of(r),
                shown(r, "decision_accuracy", "low", "high"),
                shown(r, "difference_of_pairs", "difference_low_of_pairs", "difference_high_of_pairs"),
                "any" if r["statistic"] == "chance" else r["picked"],
                shown(r, "regret"),
                shown(r, "difference"),
                shown(r, "regret_top"),
                shown(r, "recall", digits=2),
                shown(r, "ndcg", digits=2),
            ]
            for r in own.iter_rows(named=True)
        ],
    )
    at = {"size": budget.size, "step": budget.step}
    methods = own.filter(pl.col("statistic") != "chance").select("statistic", "weighting")
    decisions = methods.join(tables["decisions"].filter(**at), on=["statistic", "weighting"], maintain_order="left")
    table(
        ["method", "rule", "decided", "right, of the decided", "right, the rest guessed"],
        [
            [name_of(r), r["rule"], shown(r, "decided"), shown(r, "accuracy"), shown(r, "decision_accuracy")]
            for r in decisions.iter_rows(named=True)
        ],
    )
    gaps = tables["margins"].filter(seed="mean", **at).unique(["statistic", "weighting", "unit"], maintain_order=True)
    gaps = methods.join(gaps, on=["statistic", "weighting"], maintain_order="left")
    table(
        ["method", "unit of the gap", "gap that is right 85 % of the time"],
        [[name_of(r), r["unit"], shown(r, "gap_85", digits=2)] for r in gaps.iter_rows(named=True)],
    )


def models(folder: Path, config: Path) -> None:
    study, own = load_plan(read_yaml(config), str(config)).study, folder / "model_selection"
    predictions = read_table(own / "predictions.parquet")
    text = dict.fromkeys(("task", "method", "kind", "tail", "model", "rests_on", "better", "worse"), pl.String)
    nothing = pl.DataFrame(schema=text | {"truth": pl.Float64, "told_apart": pl.Boolean})
    found = [read_table(p) if (p := own / f"{n}.parquet").exists() else nothing for n in ("ranking", "pairs")]
    tables = model_choice_tables(predictions, *found, study.target.sign(study.target.metric), study.selection)
    rows = tables["choices"].filter(pl.col("split") == "two_tasks", pl.col("tail").is_in(["tokens", ""]))
    rows = rows.sort("regret", "decision_accuracy", descending=[False, True])
    gaps = tables["margins"].unique(["method", "tail"], maintain_order=True).select("method", "tail", "^gap_85.*$")
    rows = rows.join(gaps, on=["method", "tail"], how="left", maintain_order="left")
    print(f"Best baseline: {rows['best_baseline'][0]}.\n")
    table(
        [
            "method",
            "pairs ordered rightly",
            "regret",
            "less the best baseline's",
            "regret, best of three",
            "recall",
            "NDCG",
            "gap right 85 % of the time, spreads",
        ],
        [
            [
                r["method"],
                f"{r['decision_accuracy']:.3f}",
                shown(r, "regret"),
                shown(r, "difference"),
                shown(r, "regret_top"),
                shown(r, "recall", digits=2),
                shown(r, "ndcg", digits=2),
                shown(r, "gap_85", digits=2),
            ]
            for r in rows.iter_rows(named=True)
        ],
    )


def coverage() -> None:
    rng, options, rows = np.random.default_rng(0), SelectionOptions(), []

    def draw(rho: float, sets: int) -> tuple[np.ndarray, np.ndarray]:
        truth = rng.normal(size=(sets, CANDIDATES))
        return rho * truth + np.sqrt(1 - rho**2) * rng.normal(size=truth.shape), truth

    for rho in (0.6, 0.9):
        every = [choice_figures(s[None], t) for s, t in zip(*draw(rho, EXPECTED))]
        expected = {name: np.mean([found[name] for found in every]) for name in FIGURES}
        covered = dict.fromkeys(FIGURES, 0.0)
        for scores, truth in zip(*draw(rho, SETS)):
            samples = choice_figures(scores[None], truth, weights=bootstrap_weights(CANDIDATES, SAMPLES, rng))
            for name in FIGURES:
                low, high = percentile_interval(samples[name], options.confidence)
                covered[name] += (low.item() <= expected[name] <= high.item()) / SETS
        rows += [[f"{rho}", name, f"{expected[name]:.3f}", f"{covered[name]:.2f}"] for name in FIGURES]
    table(
        ["correlation of score and truth", "figure", "expected, in standard deviations or as a share", "covered"], rows
    )


def scale() -> None:
    study, checkpoints, tasks = planned("all")
    rng, target = np.random.default_rng(0), Target(**study["target"])
    truth = checkpoints.select("checkpoint").join(pl.DataFrame({"task": tasks}), how="cross")
    truth = truth.with_columns(metric=pl.lit(target.metric), value=pl.Series(rng.random(len(truth))), n=100)
    with tempfile.TemporaryDirectory() as folder:
        for (corpus,), found in checkpoints.filter(role="proxy").group_by("corpus"):
            rows = found.select("checkpoint").join(pl.DataFrame({"task": [*tasks, GENERIC_TEXT]}), how="cross")
            rows = rows.join(NAMES, how="cross").with_columns(tail=pl.lit("tokens"))
            rows.with_columns(value=pl.Series(rng.normal(size=len(rows)))).write_parquet(f"{folder}/{corpus}.parquet")
        proxies, began = pl.scan_parquet(f"{folder}/*.parquet"), time.process_time()
        given = tasks, target, SelectionOptions(), [Budget(**budget) for budget in study["budgets"]]
        tables = corpus_choice_tables(checkpoints, truth, *given, proxies=proxies)
        took, memory = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        read = pl.scan_parquet(f"{folder}/*.parquet").select(pl.len()).collect().item()
    table(
        ["checkpoints", "rows of proxies", "rows of choices", "processor seconds", "peak MB"],
        [[f"{len(checkpoints):,}", f"{read:,}", f"{len(tables['choices']):,}", f"{took:.0f}", f"{memory:,.0f}"]],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["corpora", "models", "coverage", "scale"])
    parser.add_argument("results", nargs="?", type=Path)
    parser.add_argument("study", nargs="?", type=Path)
    given = parser.parse_args()
    if given.results is None:
        {"coverage": coverage, "scale": scale}[given.what]()
    else:
        {"corpora": corpora, "models": models}[given.what](given.results, given.study)
