"""What a finished study of post-trained models found, as rows of markdown: post_training.py RESULTS (results/<study>).

How each method orders each population, the verdicts on the claim, what each recipe did, and what the study took.
"""

import argparse
import re
import sys
from pathlib import Path

import polars as pl
from scipy.stats import binom, spearmanr

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workflow"))

from proxycast.experiments.post_trained.populations import POPULATIONS  # noqa: E402
from proxycast.report.style import readable  # noqa: E402
from proxycast.solutions.rows import read_solutions  # noqa: E402
from proxycast.training.miniature.step_problems import STEP_FAMILIES  # noqa: E402


def interval(row: dict, value: str, low: str, high: str, form: str = ".2f") -> str:
    if row[value] is None:
        return "–"
    return f"{row[value]:{form}}" + ("" if row[low] is None else f" [{row[low]:{form}}, {row[high]:{form}}]")


def tell_populations(table: pl.DataFrame) -> None:
    table = table.filter(pl.col("tail").is_in(["tokens", ""]))
    counts = dict(table.select("population", told=pl.format("{} of {} models", "population", "models")).iter_rows())
    print(f"| method | {' | '.join(counts[name] for name in POPULATIONS if name in counts)} |")
    print("|---" * (1 + len(counts)) + "|")
    cells = {
        (row["method"], row["population"]): interval(row, "spearman", "low", "high")
        for row in table.iter_rows(named=True)
    }
    for method in table.filter(population="all")["method"]:
        shown = [cells.get((method, name), "–") for name in counts]
        print(f"| {readable(*method.split('/')) if '/' in method else readable(method)} | {' | '.join(shown)} |")


def tell_claims(table: pl.DataFrame) -> None:
    print("\n| population | method | against | difference | verdict |\n|---|---|---|---|---|")
    for row in table.iter_rows(named=True):
        told = interval(row, "difference", "difference_low", "difference_high", "+.2f")
        print(f"| {row['population']} | {row['method']} | {row['baseline']} | {told} | {row['verdict']} |")


def tell_recipes(means: pl.DataFrame, trained: pl.DataFrame) -> None:
    means = means.filter(pl.col("tail").is_in(["tokens", ""]), task="all")
    statistics = means.select("statistic", "weighting").unique(maintain_order=True).rows()
    print(f"\n| recipe | truth | {' | '.join(readable(*name) for name in statistics)} |")
    print("|---" * (2 + len(statistics)) + "|")
    for (recipe,), rows in means.group_by("recipe", maintain_order=True):
        own = {(row["statistic"], row["weighting"]): row for row in rows.iter_rows(named=True)}
        first = next(iter(own.values()))
        shifts = [interval(own[name], "difference", "low", "high", "+.2f") for name in statistics]
        truth = interval(first, "truth_difference", "truth_low", "truth_high", "+.2f")
        print(f"| {recipe} | {truth} | {' | '.join(shifts)} |")
    whole = means.filter(recipe="all")
    for row in whole.iter_rows(named=True):
        told = interval(row, "spearman", "spearman_low", "spearman_high")
        print(f"{row['statistic']}/{row['weighting']}: rho of what it calls better with what got better {told}")
    for row in trained.filter(pl.col("note") != "").iter_rows(named=True):
        print(f"{row['run']} {row['recipe']}: {row['note']}")


def kinds_of(task: str, solution: str) -> list[str]:
    """What each character of a solution belongs to: its start, a move, a state after a move, or what is around them."""
    family, kinds, states = STEP_FAMILIES[task], ["words and marks"] * len(solution), 0
    for found in re.finditer(r"[^\s,;.]+", solution):
        if found[0] in family.moves:
            kind = "moves"
        elif found[0] in family.states:
            kind, states = "states" if states else "start", states + 1
        else:
            continue
        kinds[found.start() : found.end()] = [kind] * len(found[0])
    return kinds


def tokens_by_kind(results: Path) -> pl.DataFrame:
    """A row for each model, writer and kind of token: tokens, mean loss (nats) and top-1 accuracy."""
    files = [results / f"solutions/{task}.jsonl" for task in STEP_FAMILIES]
    solutions = [row for path in files if path.exists() for row in read_solutions(path)]
    kinds = {row.id: kinds_of(row.id.split("-")[0], row.solution) for row in solutions}
    writers = pl.DataFrame([(row.id, row.writer) for row in solutions], ["solution", "writer"], orient="row")
    tokens = (
        pl.scan_parquet(results / "token_stats/*/*.parquet")
        .filter(pl.col("task").is_in(list(STEP_FAMILIES)))
        .sort("checkpoint", "task", "solution", "position")
        .with_columns(end=pl.col("bytes").cum_sum().over("checkpoint", "task", "solution"))
        .select("checkpoint", "solution", "end", "logprob", is_top=pl.col("n_greater") == 0)
        .join(writers.lazy(), on="solution")
        .collect()
    )
    of_token = [kinds[solution][end - 1] for solution, end in tokens.select("solution", "end").iter_rows()]
    tokens = tokens.with_columns(kind=pl.Series(of_token))
    return tokens.group_by("checkpoint", "writer", "kind").agg(
        pl.len(), loss=-pl.col("logprob").mean(), top1=pl.col("is_top").mean()
    )


def tell_tokens(results: Path) -> None:
    """What bases and what `sft` made of them give each kind of token, mean over bases; each kind's loss as a proxy."""
    by_kind, keys = tokens_by_kind(results), ["writer", "kind"]
    models = pl.read_parquet(results / "checkpoints.parquet")
    of_bases = ["corpus", "size", "seed"]
    pairs = models.filter(pl.col("recipe").is_in(["none", "sft"])).filter(pl.len().over(of_bases) == 2)
    means = (
        by_kind.join(pairs, on="checkpoint")
        .group_by(*keys, "recipe")
        .agg(pl.col("len").mean(), pl.col("loss").mean(), pl.col("top1").mean())
        .pivot("recipe", index=keys, values=["len", "loss", "top1"])
        .sort(keys)
    )
    print("\n| solutions | tokens | share of them | loss, bases | loss, sft | top-1, bases | top-1, sft |")
    print("|---" * 7 + "|")
    share = pl.col("len_none") / pl.col("len_none").sum().over("writer")
    for row in means.with_columns(share=share).iter_rows(named=True):
        told = [f"{row[name]:.2f}" for name in ("share", "loss_none", "loss_sft", "top1_none", "top1_sft")]
        print(f"| {row['writer']} | {row['kind']} | {' | '.join(told)} |")
    truth = pl.read_parquet(results / "targets.parquet").filter(metric="sampled_exact_match")
    truth = truth.group_by("checkpoint").agg(truth=pl.col("value").mean())
    around = pl.col("kind") == "words and marks"
    print("\nrho of a model's loss on some tokens, all tasks together, with its exact match (more is better)")
    print("| solutions | all tokens | words and marks | start, moves and states |\n|---|---|---|---|")
    for writer in ["all", *by_kind["writer"].unique().sort()]:
        own = by_kind if writer == "all" else by_kind.filter(writer=writer)
        told = []
        for chosen in (own, own.filter(around), own.filter(~around)):
            loss = chosen.group_by("checkpoint").agg(loss=pl.col("loss").dot("len") / pl.col("len").sum())
            both = loss.join(truth, on="checkpoint")
            told.append(f"{spearmanr(-both['loss'], both['truth']).statistic:.2f}")
        print(f"| {writer} | {' | '.join(told)} |")


def tell_guesses(results: Path) -> None:
    """By task, how many models a guess among the states would do as well as once in forty times."""
    truth = pl.read_parquet(results / "targets.parquet").filter(metric="sampled_exact_match")
    truth = truth.join(pl.read_parquet(results / "checkpoints.parquet"), on="checkpoint")
    print("\n| task | a guess | all models | bases |\n|---|---|---|---|")
    for (task,), own in truth.group_by("task", maintain_order=True):
        guess = 1 / len(STEP_FAMILIES[task].states)
        near = own.filter(pl.col("value") * pl.col("n") <= binom.ppf(0.975, own["n"][0], guess))
        told = [
            f"{len(rows)} of {len(of)}" for rows, of in ((near, own), [t.filter(recipe="none") for t in (near, own)])
        ]
        print(f"| {task} | {guess:.2f} | {' | '.join(told)} |")


def tell_rest(results: Path) -> None:
    truth = pl.read_parquet(results / "model_selection/truth.parquet")
    print(truth.select("task", "reliability", "split_half", "ceiling", "at_chance", "at_ceiling", "note"))
    writers = pl.read_parquet(results / "model_selection/writers.parquet")
    print(writers.filter(pl.col("number").is_null()).select("writer", "method", "spearman"))
    right = pl.read_parquet(results / "targets.parquet").filter(metric="sampled_exact_match")
    right = right.group_by("checkpoint").agg(pl.col("value").mean())
    print(
        right.join(pl.read_parquet(results / "checkpoints.parquet").filter(recipe="none"), on="checkpoint")
        .select("checkpoint", "value")
        .sort("checkpoint")
    )
    print(
        f"a guess among the states: {sum(1 / len(f.states) for f in STEP_FAMILIES.values()) / len(STEP_FAMILIES):.2f}"
    )
    summary = pl.read_parquet(results / "model_selection/summary.parquet")
    print(
        summary.filter(pl.col("tail").is_in(["tokens", ""])).select(
            "split", "method", "folds", "spearman", "low", "high"
        )
    )
    print(
        pl.read_parquet(results / "temperatures.parquet")
        .join(pl.read_parquet(results / "checkpoints.parquet"), on="checkpoint")
        .group_by("recipe")
        .agg(pl.col("temperature").mean(), pl.col("at_end").sum())
    )
    jobs = [pl.read_csv(path, separator="\t", null_values=["NA", "-"]) for path in results.glob("benchmarks/**/*.tsv")]
    cpu = sum(table["cpu_time"].sum() for table in jobs)
    print(f"jobs with a benchmark: {cpu:.0f} s of a processor, at most {max(t['max_rss'].max() for t in jobs):.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results/<study>")
    given = parser.parse_args().results
    pl.Config.set_tbl_rows(-1).set_tbl_cols(-1).set_fmt_str_lengths(60)
    tell_populations(pl.read_parquet(given / "model_selection/populations.parquet"))
    tell_claims(pl.read_parquet(given / "model_selection/claims.parquet"))
    trained = pl.read_parquet(given / "suite/post_training.parquet")
    tell_recipes(pl.read_parquet(given / "model_selection/recipe_means.parquet"), trained)
    tell_tokens(given)
    tell_guesses(given)
    tell_rest(given)
