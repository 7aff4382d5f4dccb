"""What a finished study of post-trained models found, as rows of markdown: post_training.py RESULTS (results/<study>).

How each method orders each population, the verdicts on the claim, what each recipe did, and what the study took.
"""

import argparse
import sys
from pathlib import Path

import polars as pl

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workflow"))

from proxycast.experiments.post_trained.populations import POPULATIONS  # noqa: E402
from proxycast.report.style import readable  # noqa: E402
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
        print(f"shift of {row['statistic']}/{row['weighting']} against that of the truth: rho {told}")
    for row in trained.filter(pl.col("note") != "").iter_rows(named=True):
        print(f"{row['run']} {row['recipe']}: {row['note']}")


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
    tell_rest(given)
