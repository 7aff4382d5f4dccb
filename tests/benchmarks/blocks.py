"""How far intervals of decision accuracy are off where corpora are of few families, and whether blocks mend it.

    python tests/benchmarks/blocks.py <folder of the published files> [<results of the miniature study>]

Protocol, fixed before the first look. The bootstrap draws corpora as if they were independent. Here it also draws
families (blocks) with all their corpora. Families of DataDecide, and of the miniature suite that mirrors it: Dolma 1.6
and 1.7 without some sources (6), DCLM (7), mixtures of DCLM and Dolma (3), Falcon with or without CC (6), FineWeb (2),
C4 (1).

1. Intervals by both for published DataDecide (correct_prob at each size, against the accuracy of 1B) and for the
   miniature suite (every proxy of `ranking`): how much wider are blocks?
2. Simulation, 600 sets of 25 corpora of these families: truth = family + own part, prediction = truth + error, and the
   error has a family and an own part as well. A share is the family's share of the variance, 0 to 0.9 of both. Counted
   is how often the 95 % interval holds the expected decision accuracy of new families of the same sizes (the mean over
   4000 other sets). An option `selection.blocks` is built only if blocks are nearer to 95 % over the shares 0, 0.3 and
   0.6 together. Added after the first look: 0.6 of the truth and 0 of the error, as it is in DataDecide.
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl
from proxycast.experiments.bootstrap import percentile_interval
from proxycast.experiments.rank_statistics import bootstrap_decision_accuracy, decision_accuracy

SIZES = (6, 7, 3, 6, 2, 1)
FAMILIES = np.repeat(np.arange(len(SIZES)), SIZES)
SETS, REPLICATES, CONFIDENCE = 600, 500, 0.95
WORDS = (("mix", ("DCLM-Baseline 25%", "DCLM-Baseline 50%", "DCLM-Baseline 75%")), ("dolma", ("Dolma",)),
         ("dclm", ("DCLM",)), ("falcon", ("Falcon",)), ("fineweb", ("FineWeb",)), ("c4", ("C4",)))  # fmt: skip

HEAD = "| prediction | decision accuracy | corpora drawn | families drawn | times as wide | share of truth | of error |"
HEAD += "\n|---|---|---|---|---|---|---|"


def family(name: str) -> str:
    """The family of a corpus by its display name, the first whose words it has."""
    return next(family for family, words in WORDS if any(word in name for word in words))


def weights(groups: np.ndarray, seed: int, *, blocks: bool) -> np.ndarray:
    """How often every corpus is drawn -> (REPLICATES, n): by itself, or with all of its group."""
    rng, names = np.random.default_rng(seed), np.unique(groups)
    if not blocks:
        n = len(groups)
        return rng.multinomial(n, np.full(n, 1 / n), size=REPLICATES).astype(float)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=REPLICATES)
    return drawn[:, np.searchsorted(names, groups)].astype(float)


def intervals(predicted: np.ndarray, truth: np.ndarray, groups: np.ndarray, seed: int = 0) -> list[tuple[float, float]]:
    """95 % intervals of decision accuracy by corpora, and by blocks."""
    found = []
    for blocks in (False, True):
        samples = bootstrap_decision_accuracy(predicted[None], truth, weights(groups, seed, blocks=blocks))
        low, high = percentile_interval(samples, CONFIDENCE)
        found.append((low.item(), high.item()))
    return found


def family_share(values: np.ndarray, groups: np.ndarray) -> float:
    """The share of the variance that is between families: the intraclass correlation of a one-way analysis."""
    names, size = np.unique(groups, return_counts=True)
    means = np.array([values[groups == name].mean() for name in names])
    between = (size * (means - values.mean()) ** 2).sum() / (len(names) - 1)
    within = sum(((values[groups == n] - m) ** 2).sum() for n, m in zip(names, means)) / (len(values) - len(names))
    typical = (len(values) - (size**2).sum() / len(values)) / (len(names) - 1)
    return (between - within) / (between + (typical - 1) * within)


def shown(name: str, predicted: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> float:
    (low, high), (block_low, block_high) = intervals(predicted, truth, groups)
    value, ratio = decision_accuracy(predicted, truth).item(), (block_high - block_low) / (high - low)
    error = truth - np.polyval(np.polyfit(predicted, truth, 1), predicted)
    shares = f"{family_share(truth, groups):.2f} | {family_share(error, groups):.2f}"
    ends = f"{low:.3f} to {high:.3f} | {block_low:.3f} to {block_high:.3f}"
    print(f"| {name} | {value:.3f} | {ends} | {ratio:.2f} | {shares} |")
    return ratio


def drawn_set(rng: np.random.Generator, shares: tuple, error: float) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth (25,) of one set; `error`: standard deviation of the prediction's error."""

    def parts(share: float) -> np.ndarray:
        of_families = rng.standard_normal(len(SIZES))[FAMILIES]
        return np.sqrt(share) * of_families + np.sqrt(1 - share) * rng.standard_normal(len(FAMILIES))

    truth = parts(shares[0])
    return truth + error * parts(shares[1]), truth


def simulated(shares: tuple[float, float], error: float) -> None:
    rng = np.random.default_rng([int(100 * share) for share in (*shares, error)])
    expected = np.mean([decision_accuracy(*drawn_set(rng, shares, error)) for _ in range(4000)])
    covered, widths, values = np.zeros(2), np.zeros(2), []
    for number in range(SETS):
        predicted, truth = drawn_set(rng, shares, error)
        values.append(decision_accuracy(predicted, truth).item())
        ends = np.array(intervals(predicted, truth, FAMILIES, number))
        covered += (ends[:, 0] <= expected) & (expected <= ends[:, 1])
        widths += ends[:, 1] - ends[:, 0]
    needed = 2 * 1.96 * np.std(values)
    rows = (f"{c / SETS:.3f} | {w / SETS:.3f}" for c, w in zip(covered, widths))
    print(f"| {shares[0]} | {shares[1]} | {error} | {expected:.3f} | {needed:.3f} | {' | '.join(rows)} |", flush=True)


if __name__ == "__main__":
    folder, *rest = map(Path, sys.argv[1:])
    print(HEAD)
    large = pl.read_csv(folder / "datadecide_accuracy_1b.csv").filter(task="olmes_10_macro_avg")
    names = dict(pl.read_csv(folder / "datadecide_recipes.csv").select(pl.nth(0), pl.nth(1)).rows())
    truth = large.sort("recipe")["acc_1b_three_seed_mean"].to_numpy()
    groups = np.array([family(names.get(name, name)) for name in large.sort("recipe")["recipe"]])
    small = pl.read_csv(folder / "datadecide_correct_prob_nll.csv").group_by("size", "recipe").agg(pl.col("nll").mean())
    ratios = []
    for size in ("4M", "20M", "60M", "90M", "150M", "300M", "530M", "750M"):
        predicted = -small.filter(size=size).sort("recipe")["nll"].to_numpy()
        ratios.append(shown(f"DataDecide, correct_prob, {size}", predicted, truth, groups))
    print(f"\nDataDecide: {np.mean(ratios):.2f} times as wide on average\n")
    if rest:
        print(HEAD)
        mirrors, ratios = {}, []
        for path in (Path(__file__).resolve().parents[2] / "config/corpora/miniature").glob("*.yaml"):
            lines = dict(
                line.split(": ", 1) for line in path.read_text().splitlines() if ": " in line and line[0] != " "
            )
            mirrors[lines["name"]] = family(lines["mirrors"].strip('"'))
        ranking = pl.read_parquet(rest[0] / "data_selection/ranking.parquet").drop_nulls(["predicted", "truth"])
        for key, rows in ranking.group_by("size", "step", "statistic", "weighting", maintain_order=True):
            rows = rows.sort("corpus")
            groups = np.array([mirrors[corpus] for corpus in rows["corpus"]])
            predicted, truth = (-rows[name].to_numpy().astype(float) for name in ("predicted_rank", "true_rank"))
            ratios.append(shown(" ".join(map(str, key)), predicted, truth, groups))
        print(f"\nMiniature suite: {np.mean(ratios):.2f} times as wide on average\n")
    print("| share of truth | of error | error | expected | width needed |", end="")
    print(" corpora: coverage | width | families: coverage | width |")
    print("|" + "---|" * 9)
    for shares in ((0.0, 0.0), (0.3, 0.3), (0.6, 0.6), (0.9, 0.9), (0.6, 0.0)):
        for error in (0.5, 1.0):
            simulated(shares, error)
