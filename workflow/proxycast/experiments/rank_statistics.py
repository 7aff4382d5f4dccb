"""Statistics of how one order agrees with another, with a bootstrap over what is ordered (corpora, models).

Ranks and pairs both reduce to comparisons: with s_ij = sign(x_i - x_j), a pair agrees if the signs of prediction and
truth do, and the midrank of x_i, less the mean rank, is half the sum over j of s_ij. A bootstrap sample is a vector of
counts w (how often each corpus was drawn), so every replicate of every statistic is one entry of a matrix product
between comparisons and weights, and no sample is ever sorted. All those entries are whole or half numbers, so nothing
is lost to rounding.

Shapes: R rows (predictions), n corpora, P = n (n - 1) / 2 pairs, B bootstrap replicates.
"""

from collections.abc import Callable
from functools import cache, cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proxycast.experiments.arrays import DECIMALS, Array


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
    x, y = pair_signs(np.asarray(predicted, float)), pair_signs(np.asarray(truth, float))
    return _divide((x * y).sum(-1), np.sqrt((x**2).sum(-1) * (y**2).sum(-1)))


def bootstrap_decision_accuracy(predicted: Array, truth: Array, weights: Array) -> Array:
    """Decision accuracy of `predicted` (R, n) against `truth` (n,) or (R, n) in the samples `weights` (B, n) -> (R, B).

    A pair of different corpora i, j occurs w_i w_j times; a corpus drawn twice forms no pair with itself. NaN where a
    sample has no pair that the truth orders.
    """
    return ResampledTruth(truth, weights).decision_accuracy(predicted)


def bootstrap_spearman(predicted: Array, truth: Array, weights: Array) -> Array:
    """Spearman's rho of `predicted` (R, n) with `truth` (n,) in the samples `weights` (B, n) -> (R, B).

    Equal to `scipy.stats.spearmanr` of the drawn values, each repeated as often as it was drawn. NaN where a sample
    holds one value only of either.
    """
    return ResampledTruth(truth, weights).spearman(predicted)


class ResampledTruth:
    """A truth in the samples of a bootstrap, with all that is the same for every prediction."""

    def __init__(self, truth: Array, weights: Array):
        self.truth, self.weights = truth, weights
        self.signs, self.pair_weights = pair_signs(truth), pair_weights(weights).T  # (P,) or (R, P); (P, B)

    def decision_accuracy(self, predicted: Array) -> Array:
        return self.over_pairs(self.agreement(predicted))

    def agreement(self, predicted: Array) -> Array:
        """Of each pair 1 if `predicted` (..., n) orders it as the truth does, 1/2 if it ties, else 0 -> (..., P).

        0 where the truth ties: `over_pairs` leaves such a pair out.
        """
        return np.where(self.signs == 0, 0, (1 + pair_signs(predicted) * self.signs) / 2)

    def over_pairs(self, agreement: Array) -> Array:
        """Decision accuracy in every sample from `agreement` (R, P), which may be a mean over predictions -> (R, B)."""
        return _divide(agreement @ self.pair_weights, self._ordered)

    def spearman(self, predicted: Array) -> Array:
        covariance = pair_signs(predicted) @ self._rank_differences / 2  # (R, B)
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

    @property
    def varies(self) -> NDArray[np.bool_]:
        """Whether a sample holds more than one value of the truth -> (1, B)."""
        return self._rank_variance > 0

    @cached_property
    def _rank_variance(self) -> Array:
        return _rank_variance(self.truth[None], self.weights)


def spearman_samples(scores: Array, truth: Array, weights: Array) -> Array:
    """Spearman's rho of `scores` (M, m) with `truth` (m,) in the samples `weights` (B, m) -> (M, B).

    Equal scores order nothing: rho is 0, what a random order is expected to get. NaN where the truth is constant.
    """
    resampled = ResampledTruth(truth, weights)
    samples = resampled.spearman(scores)
    return np.where(resampled.varies & np.isnan(samples), 0, samples)


def rank_correlations(a: Array, b: Array) -> Array:
    """Spearman's rho over the first axis of `a` and `b` (m, ...) -> (...).

    NaN where either is constant or holds a NaN.
    """
    # Imported here: plans import this module, and scipy takes half a second.
    from scipy.stats import rankdata

    ranks = [rankdata(np.round(values, DECIMALS), axis=0) - (len(values) + 1) / 2 for values in (a, b)]
    norm = np.sqrt((ranks[0] ** 2).sum(0) * (ranks[1] ** 2).sum(0))
    return np.divide((ranks[0] * ranks[1]).sum(0), norm, out=np.full(norm.shape, np.nan), where=norm > 0)


def mean_of_known(values: Array) -> Array:
    """Mean over the first axis without NaN; NaN where there is nothing else."""
    count = np.isfinite(values).sum(0)
    return np.divide(np.nansum(values, 0), count, out=np.full(values.shape[1:], np.nan), where=count > 0)


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


@cache  # read only, and asked for at every correlation
def _pairs(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(n, 1)


def pair_signs(values: Array) -> Array:
    """sign(x_i - x_j) of every pair i < j of `values` (..., n) -> (..., P)."""
    i, j = _pairs(values.shape[-1])
    return np.sign(values[..., i] - values[..., j])


def pair_weights(weights: Array) -> Array:
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
