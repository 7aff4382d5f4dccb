"""How well predicted scores order corpora as the truth orders them, with paired bootstrap intervals over the corpora.

Ranks and pairs both reduce to comparisons: with s_ij = sign(x_i - x_j), a pair agrees if the signs of prediction and
truth do, and the midrank of x_i, less the mean rank, is half the sum over j of s_ij. A bootstrap sample is a vector of
counts w (how often each corpus was drawn), so every replicate of every statistic is one entry of a matrix product
between comparisons and weights, and no sample is ever sorted. All those entries are whole or half numbers, so nothing
is lost to rounding.

Shapes: R rows (predictions), n corpora, P = n (n - 1) / 2 pairs, B bootstrap replicates.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import combinations
from typing import Annotated, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from threadpoolctl import threadpool_limits

from proxycast.options import InputError, Options

Array = NDArray[np.float64]


DECIMALS = 12  # to which scores are compared


class SelectionOptions(Options):
    """How the ranking of corpora is judged."""

    bootstrap_replicates: int = Field(
        2000, ge=100, description="Bootstrap samples behind every interval. Unit: samples."
    )
    confidence: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="Probability that an interval (percentile bootstrap) is to cover; too few corpora have none.",
    )
    seed: int = Field(0, ge=0, description="Seed of the bootstrap's random numbers.")
    thresholds: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.75, 0.8, 0.85],
        description="Decision accuracies for which the compute to reach them is reported. Unit: share of pairs.",
    )


DEFAULTS = SelectionOptions()


def decision_accuracy(predicted: ArrayLike, truth: ArrayLike) -> Array:
    """Share of pairs that `predicted` (..., n) orders as `truth` (n,) does -> (...).

    A pair tied in the prediction counts 1/2 (a coin decides); a pair tied in the truth is left out. NaN if none is
    left.
    """
    return _at_every_row(bootstrap_decision_accuracy, predicted, truth)


def spearman(predicted: ArrayLike, truth: ArrayLike) -> Array:
    """Spearman's rho of `predicted` (..., n) with `truth` (n,) -> (...). NaN if either is constant."""
    return _at_every_row(bootstrap_spearman, predicted, truth)


def kendall(predicted: ArrayLike, truth: ArrayLike) -> Array:
    """Kendall's tau-b of `predicted` (..., n) with `truth` (n,) -> (...). NaN if either is constant."""
    x, y = _pair_signs(np.asarray(predicted, float)), _pair_signs(np.asarray(truth, float))
    return _divide((x * y).sum(-1), np.sqrt((x**2).sum(-1) * (y**2).sum(-1)))


def bootstrap_weights(n: int, replicates: int, seed: int | np.random.Generator) -> Array:
    """How often each of `n` units is drawn in samples of n with replacement -> (replicates, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=replicates).astype(float)


def stream(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that are independent of those of every other key, and of `default_rng(seed)`.

    Two things that are resampled together need one each: with the same numbers, equal counts would draw identical
    samples. `stream(seed, i)` is that of child i of `numpy.random.SeedSequence(seed).spawn`.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


TRUTH_SEEDS, SOLUTIONS, SEEDS = range(3)  # streams of `ranking_table`


def bootstrap_decision_accuracy(predicted: Array, truth: Array, weights: Array) -> Array:
    """Decision accuracy of `predicted` (R, n) against `truth` (n,) or (R, n) in the samples `weights` (B, n) -> (R, B).

    A pair of different corpora i, j occurs w_i w_j times; a corpus drawn twice forms no pair with itself. NaN where a
    sample has no pair that the truth orders.
    """
    return _ResampledTruth(truth, weights).decision_accuracy(predicted)


def bootstrap_spearman(predicted: Array, truth: Array, weights: Array) -> Array:
    """Spearman's rho of `predicted` (R, n) with `truth` (n,) in the samples `weights` (B, n) -> (R, B).

    Equal to `scipy.stats.spearmanr` of the drawn values, each repeated as often as it was drawn. NaN where a sample
    holds one value only of either.
    """
    return _ResampledTruth(truth, weights).spearman(predicted)


class _ResampledTruth:
    """A truth in the samples of a bootstrap, with all that is the same for every prediction that it judges."""

    def __init__(self, truth: Array, weights: Array):
        self.truth, self.weights = truth, weights
        self.signs, self.pair_weights = _pair_signs(truth), _pair_weights(weights).T  # (P,) or (R, P); (P, B)

    def decision_accuracy(self, predicted: Array) -> Array:
        agreement = np.where(self.signs == 0, 0, (1 + _pair_signs(predicted) * self.signs) / 2)  # (R, P)
        return _divide(agreement @ self.pair_weights, self._ordered)

    def spearman(self, predicted: Array) -> Array:
        covariance = _pair_signs(predicted) @ self._rank_differences / 2  # (R, B)
        return _divide(covariance, np.sqrt(_rank_variance(predicted, self.weights) * self._rank_variance))

    @cached_property
    def _ordered(self) -> Array:
        """How many pairs of each sample the truth orders -> (B,) or (R, B)."""
        return np.abs(self.signs) @ self.pair_weights

    @cached_property
    def _rank_differences(self) -> Array:
        """Differences of the true ranks of every pair, as often as it occurs -> (P, B)."""
        i, j = _pairs(len(self.truth))
        ranks = self.weights @ np.sign(self.truth - self.truth[:, None]) / 2  # (B, n), less the mean rank
        return self.pair_weights * (ranks[:, i] - ranks[:, j]).T

    @cached_property
    def _rank_variance(self) -> Array:
        return _rank_variance(self.truth[None], self.weights)


def _rank_variance(values: Array, weights: Array) -> Array:
    """Sum of the squared centred midranks of `values` (R, n) in the samples `weights` (B, n) -> (R, B).

    N values in groups of t equal ones have (N^3 - sum(t^3)) / 12 (Kendall, Rank Correlation Methods, 1948, chapter 3).
    """
    cubes = weights**3
    distinct = weights.sum(1) ** 3 - cubes.sum(1)  # (B,): no two corpora are equal
    variance = np.tile(distinct, (len(values), 1))
    ordered = np.sort(values, axis=1)
    for row in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(1)):
        _, group, size = np.unique(values[row], return_inverse=True, return_counts=True)
        for tied in (group == g for g in np.flatnonzero(size > 1)):
            variance[row] -= weights[:, tied].sum(1) ** 3 - cubes[:, tied].sum(1)
    return variance / 12


def _pairs(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(n, 1)


def _pair_signs(values: Array) -> Array:
    """sign(x_i - x_j) of every pair i < j of `values` (..., n) -> (..., P)."""
    i, j = _pairs(values.shape[-1])
    return np.sign(values[..., i] - values[..., j])


def _pair_weights(weights: Array) -> Array:
    """w_i w_j of every pair i < j of `weights` (B, n) -> (B, P)."""
    i, j = _pairs(weights.shape[-1])
    return weights[:, i] * weights[:, j]


def _at_every_row(bootstrap: Callable[[Array, Array, Array], Array], predicted: ArrayLike, truth: ArrayLike) -> Array:
    """The statistic itself: its value in the sample that draws every corpus once."""
    predicted, truth = np.asarray(predicted, float), np.asarray(truth, float)
    once = np.ones((1, len(truth)))
    return bootstrap(predicted.reshape(-1, len(truth)), truth, once).reshape(predicted.shape[:-1])


def _divide(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, NaN where the denominator is 0."""
    undefined = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=np.asarray(denominator) > 0)


def interval(samples: Array, confidence: float) -> tuple[Array, Array]:
    """The two quantiles of `samples` (..., B) that enclose `confidence` -> (...), (...). NaN samples are left out.

    `numpy.nanquantile`, which walks row by row in Python, written over all rows at once.
    """
    ordered = np.sort(samples, axis=-1)  # NaN last
    last = np.maximum((~np.isnan(samples)).sum(-1, keepdims=True) - 1, 0)

    def quantile(q: float) -> Array:
        below = np.floor(q * last).astype(int)
        above = np.minimum(below + 1, last)
        low, high = np.take_along_axis(ordered, below, -1), np.take_along_axis(ordered, above, -1)
        return (low + (high - low) * (q * last - below))[..., 0]

    return quantile((1 - confidence) / 2), quantile((1 + confidence) / 2)


def enough_to_resample(units: int, confidence: float) -> bool:
    """Whether a percentile bootstrap over so many units can have an interval of this confidence.

    `units` give comb(2 units - 1, units) different samples (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, section 6.2). Where a tail of the interval holds less than one of them, its end is that of the data: at 95 %
    that is so up to four units (35 samples, 0.9 in a tail), and no longer from five (126).
    """
    return math.comb(2 * units - 1, units) >= 2 / (1 - confidence)


def too_few(units: str, count: int) -> str:
    """Why there is no interval over so many `units`, such as "corpora"."""
    return f"no interval: too few {units} ({count})"


def all_alike(units: str) -> str:
    """Why there is no interval where every sample of `units` gives the best, or the worst, value that there is."""
    return f"no interval: every sample of {units} gives the same extreme value"


def is_degenerate(value: Array, low: Array, high: Array, worst: float, best: float) -> NDArray[np.bool_]:
    """Whether an interval says nothing: no sample differs, and the value is the least or greatest that is possible.

    There the bootstrap cannot see what it has not seen: a few models in their true order would be certain for ever.
    A value between the two that never varies, as that of chance, is certain by definition.
    """
    at_its_end = np.isclose(value, worst, rtol=0) | np.isclose(value, best, rtol=0)
    return (high - low < 10.0**-DECIMALS) & at_its_end


def mean_correlation(truth_by_seed: ArrayLike, weights: Array | None = None) -> Array:
    """Mean Spearman correlation of two seeds of `truth_by_seed` (k seeds, n corpora) in `weights` (B, n) -> (B,).

    Without `weights` each corpus counts once, and B is 1. NaN where a seed is constant in a sample. `InputError` for a
    single seed.
    """
    truth_by_seed = np.asarray(truth_by_seed, float)
    if len(truth_by_seed) < 2:
        raise InputError(f"the reliability of the truth needs at least 2 target seeds, found {len(truth_by_seed)}")
    weights = np.ones((1, truth_by_seed.shape[1])) if weights is None else weights
    pairs = combinations(truth_by_seed, 2)
    return np.mean([bootstrap_spearman(a[None], b, weights)[0] for a, b in pairs], axis=0)


LEAST_RELIABILITY = -1.0


def spearman_brown(reliability_single: ArrayLike, k: float) -> Array:
    """Reliability of the mean of `k` equivalent measurements, from that of one (Spearman 1910; Brown 1910).

    It falls without end as single measurements contradict each other, where two of them are opposite or three go in
    circles: whatever is below `LEAST_RELIABILITY` is given as that.
    """
    single = np.asarray(reliability_single, float)
    total = 1 + (k - 1) * single  # below 0 by rounding only: k measurements correlate at -1 / (k - 1) at least
    below = np.where(np.isnan(single), np.nan, LEAST_RELIABILITY)
    ratio = np.divide(k * single, total, out=below, where=total > 10.0**-DECIMALS)
    return np.maximum(ratio, LEAST_RELIABILITY)


def reliability(truth_by_seed: ArrayLike) -> float:
    """Reliability of the mean over seeds of `truth_by_seed` (k seeds, n corpora).

    Spearman-Brown, from the mean Spearman correlation of two single seeds. `InputError` for a single seed.
    """
    return float(spearman_brown(mean_correlation(truth_by_seed), len(truth_by_seed)).item())


def reliability_interval(truth_by_seed: Array, options: SelectionOptions) -> tuple[float, float] | str:
    """Percentile bootstrap of `reliability` over the corpora; or why there is none, in words."""
    k, n = truth_by_seed.shape
    if not enough_to_resample(n, options.confidence):
        return too_few("corpora", n)
    weights = bootstrap_weights(n, options.bootstrap_replicates, options.seed)
    low, high = interval(spearman_brown(mean_correlation(truth_by_seed, weights), k), options.confidence)
    if is_degenerate(np.asarray(reliability(truth_by_seed)), low, high, LEAST_RELIABILITY, 1):
        return all_alike("corpora")
    return float(low), float(high)


ABOVE_CEILING = "above the noise ceiling, which a perfect prediction is expected to reach: luck, or too low a ceiling"
NOISE, UNKNOWN = "noise", "unknown"
VERDICTS = ((0.5, "poor"), (0.75, "moderate"), (0.9, "good"), (np.inf, "excellent"))


def verdict(reliability: float | None, low: float | None) -> str:
    """What a truth of this reliability is worth, in a word, from its interval's lower end where there is one.

    "noise": the reliability, or that end, is 0 or less, so that the order of the truth may be chance. Else Koo and Li's
    words for the reliability (2016, doi:10.1016/j.jcm.2016.02.012): "poor" below 0.5, "moderate" below 0.75, "good"
    below 0.9, "excellent". "unknown" where nothing is known of the noise.
    """
    if reliability is None or np.isnan(reliability):
        return UNKNOWN
    if reliability <= 0 or (low is not None and low <= 0):
        return NOISE
    return next(word for bound, word in VERDICTS if reliability < bound)


class NoiseCeiling(NamedTuple):
    """What a prediction that knows the true order without error would be expected to reach against a noisy truth."""

    spearman: float
    decision_accuracy: float


def noise_ceiling(reliability: float) -> NoiseCeiling:
    """The ceiling that seed noise sets, from the reliability R of the truth.

    A measurement of reliability R correlates with what it measures at sqrt(R) (Spearman, 1904, correction for
    attenuation). Under the assumption that both are bivariate normal over corpora, a pair is ordered alike with
    probability 1/2 + arcsin(rho) / pi (Greiner, 1909: tau = 2 / pi arcsin(rho)). Both relations hold for Pearson's
    correlation; Spearman's, which stands in for it here, differs from it by at most 0.02 under that assumption. An R
    below 0 counts as 0: the ceiling of chance.
    """
    rho = float(np.sqrt(np.clip(reliability, 0, 1)))
    return NoiseCeiling(spearman=rho, decision_accuracy=float(0.5 + np.arcsin(rho) / np.pi))


def decision_accuracy_table(
    predictions: pl.DataFrame, truth: pl.DataFrame, target_flops: float, options: SelectionOptions, threads: int = 1
) -> pl.DataFrame:
    """Judge every prediction of every size, step, seed and task against the truth, with intervals over the corpora.

    `predictions`: corpus, task, statistic, weighting, kind ("proxy" | "baseline"), depends_on_candidate, size, step,
    seed, tokens, flops (6 N D of one run), score (higher is better: the sign is applied already). `truth`: corpus,
    task, value. Within a size and step every statistic must have a score for every task of the truth, corpus and seed
    (`InputError` names what is missing); a baseline that knows no tasks is repeated under each.

    Besides each task there is the task "all", where score and truth are means over the tasks. Besides each seed there
    are "mean", where the score is averaged over the seeds before it is judged, and "single", where every seed is judged
    and the figures are averaged: what one may expect of a single run. The best baseline is the one of highest decision
    accuracy in the same task, size, step and seed; chosen on the data that judge it, it is if anything too good. All
    intervals and differences use the same samples of corpora. An undefined figure (a truth or prediction that is
    constant) is null. So is an interval that would be too certain, and `note` says why: `enough_to_resample`,
    `is_degenerate`. `threads` tasks are judged at a time.
    """
    corpora, tasks = _shared_names(predictions, truth, "corpus"), _shared_names(predictions, truth, "task")
    task_truth = dense(truth, "value", "true value", [tasks, corpora])
    task_truth = np.concatenate([task_truth.mean(0, keepdims=True), task_truth])  # (1 + T, n)
    weights = bootstrap_weights(len(corpora), options.bootstrap_replicates, options.seed)
    # Means that are equal but for the order of their sums are ties.
    truths = [_ResampledTruth(np.round(values, DECIMALS), weights) for values in task_truth]
    parts = []
    for (size, step), cell in predictions.group_by("size", "step", maintain_order=True):
        statistics = cell.select("statistic", "weighting", "kind", "depends_on_candidate").unique(maintain_order=True)
        seeds = cell.select("seed").unique().sort("seed")
        axes = [statistics, seeds, tasks, corpora]
        scores = dense(cell, "score", f"size {size}, step {step}: score", axes)  # (S, K, T, n)
        scores = np.concatenate([scores.mean(2, keepdims=True), scores], axis=2)  # (S, K, 1 + T, n)
        seed_names = pl.DataFrame({"seed": [*seeds["seed"].cast(pl.String), "mean", "single"]})
        flops = cell["flops"].mean()
        labels = statistics.join(seed_names, how="cross").with_columns(
            size=pl.lit(size, predictions.schema["size"]),
            step=pl.lit(step, predictions.schema["step"]),
            tokens=pl.lit(round(cell["tokens"].mean()), pl.Int64),
            flops=pl.lit(flops, pl.Float64),
            compute_fraction=pl.lit(flops / target_flops, pl.Float64),
            corpora=pl.lit(len(corpora), pl.Int64),
        )
        judge = partial(_judge, statistics=statistics, confidence=options.confidence)
        with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
            judged = pool.map(judge, np.moveaxis(scores, 2, 0), truths)
            for task, figures in zip(["all", *tasks["task"]], judged):
                parts.append(labels.with_columns(*figures, task=pl.lit(task)))
    return pl.concat(parts).select(DECISION_ACCURACY_COLUMNS)


DECISION_ACCURACY_COLUMNS = [
    *("task", "statistic", "weighting", "kind", "depends_on_candidate", "size", "step", "seed"),
    *("tokens", "flops", "compute_fraction"),
    *("decision_accuracy", "low", "high", "spearman", "spearman_low", "spearman_high", "kendall", "corpora"),
    *("best_baseline", "difference", "difference_low", "difference_high", "note"),
]


def _judge(scores: Array, truth: _ResampledTruth, statistics: pl.DataFrame, confidence: float) -> list[pl.Series]:
    """The figures of `scores` (S, K, n): for each statistic K seeds, then "mean" and "single"."""
    scores = np.concatenate([scores, scores.mean(1, keepdims=True)], axis=1)
    scores = np.round(scores, DECIMALS)
    rows, shape = scores.reshape(-1, scores.shape[-1]), scores.shape[:2]

    def with_single(figures: Array) -> Array:
        figures = figures.reshape(*shape, *figures.shape[1:])
        return np.concatenate([figures, figures[:, :-1].mean(1, keepdims=True)], axis=1)

    corpora = scores.shape[-1]
    enough = enough_to_resample(corpora, confidence)
    accuracy = with_single(decision_accuracy(rows, truth.truth))  # (S, K + 2)
    samples = with_single(truth.decision_accuracy(rows))  # (S, K + 2, B)
    figures = {"decision_accuracy": accuracy}
    figures["low"], figures["high"] = interval(samples, confidence)
    figures["spearman"] = with_single(spearman(rows, truth.truth))
    figures["spearman_low"], figures["spearman_high"] = interval(with_single(truth.spearman(rows)), confidence)
    figures["kendall"] = with_single(kendall(rows, truth.truth))
    degenerate = is_degenerate(accuracy, figures["low"], figures["high"], 0, 1)
    vague = degenerate | (not enough)
    for low, high in (("low", "high"), ("spearman_low", "spearman_high")):
        figures[low], figures[high] = (np.where(vague, np.nan, figures[name]) for name in (low, high))
    baselines = np.flatnonzero(statistics["kind"] == "baseline")
    best_names = np.full(accuracy.shape, None)
    figures["difference"] = figures["difference_low"] = figures["difference_high"] = np.full(accuracy.shape, np.nan)
    if len(baselines):
        best = baselines[accuracy[baselines].argmax(0)]  # (K + 2,)
        seeds = np.arange(len(best))
        figures["difference"] = accuracy - accuracy[best, seeds]
        of_itself = np.arange(len(accuracy))[:, None] == best
        unsure = (vague | vague[best, seeds]) & ~of_itself
        ends = interval(samples - samples[best, seeds], confidence)
        figures["difference_low"], figures["difference_high"] = (np.where(unsure, np.nan, end) for end in ends)
        best_names = np.where(np.isnan(accuracy), None, statistics["statistic"].to_numpy()[best])
    columns = [pl.Series(name, values.ravel(), nan_to_null=True) for name, values in figures.items()]
    notes = (
        np.where(degenerate, all_alike("corpora"), "") if enough else np.full(vague.shape, too_few("corpora", corpora))
    )
    return [
        *columns,
        pl.Series("best_baseline", best_names.ravel().tolist(), dtype=pl.String),
        pl.Series("note", notes.ravel().tolist(), dtype=pl.String),
    ]


def ranking_table(
    solution_scores: pl.DataFrame, truth_by_seed: pl.DataFrame, options: SelectionOptions, sign: int = 1
) -> pl.DataFrame:
    """Predicted and true score and rank (1 is best, ties share the mean rank) of every corpus, with intervals.

    `solution_scores`: corpus, task, solution, statistic, weighting, size, step, seed, score (higher is better).
    `truth_by_seed`: corpus, seed, value and, if there are several, task. Both are averaged over solutions, tasks and
    seeds, in this order; the column `seeds` counts those behind a prediction. A corpus without a truth comes last, its
    true score and rank null; its predicted rank is the place it would take among the corpora that have one. `sign` is
    -1 where less of the truth is better; its values stay as they are.

    The prediction is resampled over the solutions of each task, the same for all corpora, and over the seeds, for each
    corpus on its own; the truth over its seeds, for each corpus on its own. A bootstrap over k seeds understates their
    variance by the factor (k - 1) / k, and sees none of it where k is 1. An interval is null where nothing can be
    resampled: of the truth with one seed, of a prediction with one seed and one solution a task.
    """
    judged = truth_by_seed.select("corpus").unique().sort("corpus")
    if "task" not in truth_by_seed.columns:
        truth_by_seed = truth_by_seed.with_columns(task=pl.lit("all"))
    axes = [judged, *(truth_by_seed.select(name).unique().sort(name) for name in ("seed", "task"))]
    truth = dense(truth_by_seed, "value", "true value", axes).mean(-1)  # (n, K)
    draws = stream(options.seed, TRUTH_SEEDS)
    truth_samples = _resample_seeds(np.tile(truth, (options.bootstrap_replicates, 1, 1)), draws)
    resampled = np.full(len(judged), truth.shape[1] > 1)
    values = truth.mean(1), truth_samples, resampled
    true_columns = _with_ranks("truth", "true_rank", *values, len(judged), options.confidence, sign)
    truths = judged.with_columns(*true_columns)
    parts = []
    keys = ["statistic", "weighting", "size", "step"]
    for names, cell in solution_scores.group_by(keys, maintain_order=True):
        others = cell.select("corpus").unique().sort("corpus").join(judged, on="corpus", how="anti")
        # Those without a truth one by one, each with the seeds that it has.
        groups = [judged, *others.iter_slices(1)]
        parts_of_cell = [
            _predict(cell.join(group, on="corpus", how="semi"), group, options, number)
            for number, group in enumerate(groups)
        ]
        predicted, samples, resampled = (np.concatenate(part, axis=-1) for part in zip(*parts_of_cell))
        corpora = pl.concat([judged, others])
        values = predicted, samples, resampled
        columns = _with_ranks("predicted", "predicted_rank", *values, len(judged), options.confidence)
        key_columns = [
            pl.lit(name, solution_scores.schema[key]).alias(key) for key, name in zip(keys, names, strict=True)
        ]
        seeds = cell.group_by("corpus").agg(pl.col("seed").n_unique().cast(pl.Int64).alias("seeds"))
        ranked = corpora.select("corpus", *key_columns).with_columns(*columns)
        ranked = ranked.join(seeds, on="corpus", how="left", maintain_order="left")
        parts.append(ranked.join(truths, on="corpus", how="left", maintain_order="left"))
    return pl.concat(parts)


def _predict(
    cell: pl.DataFrame, corpora: pl.DataFrame, options: SelectionOptions, group: int
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Mean over solutions, tasks and seeds of one proxy -> (n,), its samples (B, n), whether they can differ (n,).

    The same solutions are drawn at every call, and the seeds of every `group` of corpora apart.
    """
    replicates, rng = options.bootstrap_replicates, stream(options.seed, SOLUTIONS)
    seeds = cell.select("seed").unique().sort("seed")
    points, samples, most = [], [], len(seeds)
    for _, task in sorted(cell.group_by("task")):
        solutions = task.select("solution").unique().sort("solution")
        where = ", ".join(map(str, task.select("statistic", "weighting", "size", "step", "task").row(0)))
        scores = dense(task, "score", f"{where}: score", [corpora, seeds, solutions])  # (n, K, M)
        draws = bootstrap_weights(len(solutions), replicates, rng)  # (B, M)
        points.append(scores.mean(-1))
        samples.append(np.moveaxis(scores @ draws.T / len(solutions), -1, 0))  # (B, n, K)
        most = max(most, len(solutions))
    of_seeds = _resample_seeds(np.mean(samples, axis=0), stream(options.seed, SEEDS, group))
    return np.mean(points, axis=0).mean(-1), of_seeds, np.full(len(corpora), most > 1)


def _resample_seeds(values: Array, rng: np.random.Generator) -> Array:
    """Mean of `values` (B, n, K) over a fresh draw of K seeds for every replicate and corpus -> (B, n)."""
    k = values.shape[-1]
    return (values * rng.multinomial(k, np.full(k, 1 / k), size=values.shape[:-1])).sum(-1) / k


def _with_ranks(
    score: str,
    rank: str,
    values: Array,
    samples: Array,
    resampled: NDArray[np.bool_],
    judged: int,
    confidence: float,
    sign: int = 1,
) -> list[pl.Series]:
    """The columns of a score (n,) and its rank with their intervals, from the samples (B, n); null if not resampled."""
    values, samples = np.round(values, DECIMALS), np.round(samples, DECIMALS)
    ranks = _ranks(sign * values, judged), _ranks(sign * samples, judged)
    columns = []
    for name, point, draws in ((score, values, samples), (rank, *ranks)):
        low, high = (np.where(resampled, end, np.nan) for end in interval(draws.T, confidence))
        columns.append(pl.Series(name, point))
        columns += [pl.Series(f"{name}_{end}", at, nan_to_null=True) for end, at in (("low", low), ("high", high))]
    return columns


def _ranks(values: Array, judged: int) -> Array:
    """Midranks (..., n) of the first `judged` of `values` (..., n), 1 the highest, and the places of the others.

    Each of the others is placed among the judged alone: one more than those above it, and half of those equal to it.
    """
    # Imported here: it takes a second, for which every start of Snakemake would wait, as config.py reads this module.
    from scipy.stats import rankdata

    first, others = values[..., :judged], values[..., judged:]
    above = (first[..., None, :] > others[..., None]).sum(-1) + (first[..., None, :] == others[..., None]).sum(-1) / 2
    return np.concatenate([rankdata(-first, axis=-1), 1 + above], axis=-1)


def _shared_names(predictions: pl.DataFrame, truth: pl.DataFrame, key: str) -> pl.DataFrame:
    """The values of `key`, sorted, in one column. `InputError` names those that only one of the two tables has."""
    predicted, true = set(predictions[key]), set(truth[key])
    for missing, where in ((true - predicted, "predictions lack"), (predicted - true, "truth lacks")):
        if missing:
            raise InputError(f"the {where} {key} {', '.join(map(str, sorted(missing)))}; both need the same ones")
    return pl.DataFrame({key: sorted(true)})


def dense(table: pl.DataFrame, value: str, name: str, axes: Sequence[pl.DataFrame]) -> Array:
    """Column `value` as an array with one axis for each frame of labels.

    Every combination of labels must be there, once, and finite: `InputError`, where `name` says what the value is.
    """
    position = table.select(value)
    for n, labels in enumerate(axes):
        index = table.select(labels.columns).join(
            labels.with_row_index(f"axis {n}"), on=labels.columns, how="left", nulls_equal=True, maintain_order="left"
        )
        position = position.with_columns(index[f"axis {n}"])
    shape = tuple(len(labels) for labels in axes)
    flat = np.ravel_multi_index([position[f"axis {n}"].to_numpy() for n in range(len(axes))], shape)
    counts = np.bincount(flat, minlength=np.prod(shape))
    dense = np.full(counts.size, np.nan)
    dense[flat] = position[value].to_numpy()
    for wrong, what in (
        (counts == 0, "is missing"),
        (counts > 1, "occurs more than once"),
        (~np.isfinite(dense), "is not finite"),
    ):
        if wrong.any():
            where = np.unravel_index(wrong.argmax(), shape)
            labels = pl.concat([axis.slice(int(i), 1) for axis, i in zip(axes, where, strict=True)], how="horizontal")
            place = ", ".join(f"{key} {label}" for key, label in labels.row(0, named=True).items())
            raise InputError(f"{name} of {place} {what}")
    return dense.reshape(shape)
