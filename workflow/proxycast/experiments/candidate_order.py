"""The order of candidates (corpora, models) by their scores on single solutions, and how sure it is.

A score is resampled over the solutions of each task, the same ones for all candidates, and over the training seeds of
each candidate on its own. So two candidates are compared on the same solutions: what makes a solution hard for both
cancels in their difference.

Shapes: n candidates, K seeds, M solutions of a task, T tasks, B bootstrap samples, R rankings.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments import bootstrap
from proxycast.experiments.arrays import DECIMALS, Array, dense
from proxycast.experiments.rank_statistics import spearman

SOLUTIONS, SEEDS = 1, 2  # streams of random numbers; 0 is that of the truth


class ResampledScores(NamedTuple):
    """Scores of n candidates, higher is better."""

    points: Array  # (n,)
    samples: Array  # (B, n)
    # Whether there was more than one seed or solution: without, the samples cannot differ. One for all, or (n,).
    resampled: bool | NDArray[np.bool_]


def resampled_scores(
    scores: pl.DataFrame, candidates: pl.DataFrame, options: SelectionOptions, group: int = 0, where: str = ""
) -> ResampledScores:
    """The mean of `scores` over the solutions of a task, then over tasks, then over seeds, and its samples.

    `scores`: task, solution, seed, score and the columns of `candidates`, which names one candidate a row. With a
    column `denominator`, what stands for a task is no mean but the ratio sum(score) / sum(denominator), in every sample
    of its own solutions. Every candidate needs every solution with every seed (`InputError` names what is missing).
    Calls with one `options` draw the same solutions; with different `group` they draw seeds apart. `where` begins the
    messages.
    """
    replicates, rng = options.bootstrap_replicates, bootstrap.stream(options.seed, SOLUTIONS)
    seeds = scores.select("seed").unique().sort("seed")
    points, samples, most = [], [], len(seeds)
    for (name,), task in sorted(scores.group_by("task")):
        solutions = task.select("solution").unique().sort("solution")
        axes = [candidates, seeds, solutions]
        values = dense(task, "score", f"{where}task {name}: score", axes)  # (n, K, M)
        draws = bootstrap.bootstrap_weights(len(solutions), replicates, rng)  # (B, M)
        if "denominator" in task.columns:
            parts = dense(task, "denominator", f"{where}task {name}: denominator", axes)
        else:
            parts = np.ones_like(values)
        points.append(values.sum(-1) / parts.sum(-1))
        with np.errstate(invalid="ignore"):  # of solutions without any text: such a sample is left out
            samples.append(np.moveaxis((values @ draws.T) / (parts @ draws.T), -1, 0))  # (B, n, K)
        most = max(most, len(solutions))
    of_seeds = resample_seeds(np.mean(samples, axis=0), bootstrap.stream(options.seed, SEEDS, group))
    return ResampledScores(np.mean(points, axis=0).mean(-1), of_seeds, most > 1)


def resample_seeds(values: Array, rng: np.random.Generator) -> Array:
    """Mean of `values` (B, n, K) over a fresh draw of K seeds for every sample and candidate -> (B, n)."""
    k = values.shape[-1]
    return (values * rng.multinomial(k, np.full(k, 1 / k), size=values.shape[:-1])).sum(-1) / k


def place_table(names: pl.DataFrame, scores: ResampledScores, confidence: float) -> pl.DataFrame:
    """Score and place of every candidate, best first: the columns of `names`, score, place, each with its interval.

    Place 1 is best; equal scores share the mean place. An interval is null where nothing could be resampled.
    """
    points, samples = np.round(scores.points, DECIMALS), np.round(scores.samples, DECIMALS)
    columns = []
    places = rankdata(-points), rankdata(-samples, axis=-1)
    for name, point, draws in (("score", points, samples), ("place", *places)):
        ends = bootstrap.percentile_interval(draws.T, confidence)
        columns.append(pl.Series(name, point))
        columns += [
            pl.Series(f"{name}_{end}", np.where(scores.resampled, at, np.nan), nan_to_null=True)
            for end, at in zip(("low", "high"), ends)
        ]
    return names.with_columns(columns).sort("place", maintain_order=True)


def pair_table(names: Sequence[str], scores: ResampledScores, confidence: float) -> pl.DataFrame:
    """Every pair of candidates: `better` and `worse` by score, their difference with its interval, `told_apart`.

    A pair can be told apart if the interval of the difference excludes 0. That is a statement on one pair: among many
    pairs without a difference, a share of 1 - confidence is told apart all the same. `told_apart` is null where nothing
    could be resampled.
    """
    order = np.argsort(-np.round(scores.points, DECIMALS), kind="stable")
    i, j = (order[at] for at in np.triu_indices(len(order), 1))
    low, high = bootstrap.percentile_interval((scores.samples[:, i] - scores.samples[:, j]).T, confidence)
    low, high = np.round(low, DECIMALS), np.round(high, DECIMALS)
    resampled = np.broadcast_to(scores.resampled, len(order))
    known = pl.Series(resampled[i] & resampled[j])
    return pl.DataFrame(
        {
            "better": [names[a] for a in i],
            "worse": [names[b] for b in j],
            "difference": np.round(scores.points[i] - scores.points[j], DECIMALS),
            "difference_low": low,
            "difference_high": high,
        },
        schema_overrides={"better": pl.String, "worse": pl.String},
    ).with_columns(
        pl.when(known).then(pl.col("difference_low")),
        pl.when(known).then(pl.col("difference_high")),
        told_apart=pl.when(known).then((pl.col("difference_low") > 0) | (pl.col("difference_high") < 0)),
    )


def agreement_table(rankings: pl.DataFrame, points: Array) -> pl.DataFrame:
    """How far every two of R rankings agree: Spearman's rho over the candidates.

    `rankings` names one ranking a row, `points` (R, n) are their scores. Columns: those of `rankings`, the same with
    `other_` in front, spearman (null where all candidates of one tie).
    """
    rho = np.stack([spearman(points, row) for row in points])  # (R, R)
    i, j = np.triu_indices(len(points), 1)
    others = rankings.select(pl.all().name.prefix("other_"))
    pairs = pl.concat([rankings[i], others[j]], how="horizontal")
    return pairs.with_columns(pl.Series("spearman", rho[i, j], pl.Float64, nan_to_null=True))
