"""How sure a predicted gap is: how often two candidates whose scores differ by so much are ordered as in truth.

A gap is measured in units that every study has: the spread of the scores (their standard deviation between candidates),
or the noise between seeds. Beside the share of pairs that are right in bins of the gap there is one curve,

    P(right | gap x) = 1 / (1 + exp(-slope x)),

a logistic regression without a constant (Cox, JRSS B 20(2), 1958): at a gap of 0 a coin decides. It is monotone, and
its slope says at which gap a share of 85 % is reached.

Pairs share candidates, so they are not independent: every interval resamples the candidates. The unit is kept in the
samples.

Shapes: R rows (methods), Q predictions of each row whose pairs are pooled (seeds, tasks), n candidates,
P = n (n - 1) / 2 pairs, B bootstrap samples.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit, logit

from proxycast.experiments.arrays import DECIMALS, Array

SPREAD, SEED_NOISE = "spread", "seed noise"
# Lower ends of the bins, in the unit.
BINS = {SPREAD: (0, 0.25, 0.5, 1, 1.5, 2), SEED_NOISE: (0, 1, 2, 4, 8, 16)}
SURE = 0.85  # the share of right pairs whose gap is told
# Slopes at which samples are solved, in the unit's inverse; between two of them the equation is taken as straight.
POSITIVE = np.geomspace(0.02, 60, 40)
ENDLESS = 30.0  # a slope as steep is no longer told from one without end
SLOPES = np.concatenate([-POSITIVE[::4][::-1], [0], POSITIVE])


class Pairs(NamedTuple):
    """Pairs i < j by R rows, pooled over Q predictions: (R, Q, P) each."""

    gaps: Array  # absolute, in the unit; NaN where a pair is not counted
    right: Array  # 1 where the order is that of the truth, 0 where it is the other, 1/2 where the scores tie


def pairs_of(scores: ArrayLike, truth: ArrayLike, unit: ArrayLike) -> Pairs:
    """The pairs of `scores` (R, Q, n) by `truth` (n,) or (Q, n), gaps in the `unit` (R,) or (R, Q).

    A pair that ties in the truth is not counted, and none of a prediction whose unit is 0, as that of a constant score.
    """
    scores, truth = np.round(np.asarray(scores, float), DECIMALS), np.round(np.asarray(truth, float), DECIMALS)
    i, j = np.triu_indices(scores.shape[-1], 1)
    unit = np.asarray(unit, float)
    unit = (unit[:, None] if unit.ndim == 1 else unit)[..., None]
    gaps, true = scores[..., i] - scores[..., j], np.sign(truth[..., i] - truth[..., j])
    counted = (true != 0) & (np.round(unit, DECIMALS) > 0)
    scaled = np.divide(np.abs(gaps), unit, out=np.full(gaps.shape, np.nan), where=np.broadcast_to(counted, gaps.shape))
    return Pairs(scaled, (1 + np.sign(gaps) * true) / 2)


def binned(pairs: Pairs, edges: ArrayLike, pair_weights: Array | None = None) -> tuple[Array, Array, Array]:
    """Pairs, mean gap (R, bins) and share of right pairs (R, bins, B) in each bin; `edges` are lower ends.

    `pair_weights` (P, B): how often each pair occurs in each sample; once without. NaN where a bin is empty.
    """
    edges = np.append(np.asarray(edges, float), np.inf)
    inside = (pairs.gaps[:, None] >= edges[:-1, None, None]) & (pairs.gaps[:, None] < edges[1:, None, None])
    count = inside.sum(2).astype(float)  # (R, bins, P)
    right = np.einsum("rbqp,rqp->rbp", inside, pairs.right)
    total = np.einsum("rbqp,rqp->rb", inside, np.nan_to_num(pairs.gaps))
    number = count.sum(-1)
    mean = np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)
    pair_weights = np.ones((count.shape[-1], 1)) if pair_weights is None else pair_weights
    shown = count @ pair_weights
    return number, mean, np.divide(right @ pair_weights, shown, out=np.full(shown.shape, np.nan), where=shown > 0)


def slopes(pairs: Pairs) -> Array:
    """Slope of the logistic curve by maximum likelihood -> (R,).

    Infinite where every pair is right, minus infinity where every pair is wrong, NaN where no pair has a gap.
    """
    return np.array([_slope(gaps[known], right[known]) for gaps, right, known in zip(*pairs, np.isfinite(pairs.gaps))])


def _slope(gaps: Array, right: Array) -> float:
    gaps, right = gaps[gaps > 0], right[gaps > 0]
    if not len(gaps):
        return np.nan
    if np.ptp(right) == 0:
        return np.inf if right[0] else -np.inf
    bound = 1.0
    while _likelihood_slope(bound, gaps, right) * _likelihood_slope(-bound, gaps, right) > 0:
        bound *= 2
    return brentq(_likelihood_slope, -bound, bound, args=(gaps, right))


def _likelihood_slope(slope: float, gaps: Array, right: Array) -> float:
    """The derivative of the log-likelihood by the slope, which falls as the slope rises."""
    return float(gaps @ (right - expit(slope * gaps)))


def slope_samples(pairs: Pairs, pair_weights: Array) -> Array:
    """The slope in the samples `pair_weights` (P, B) -> (R, B), no steeper than `SLOPES`.

    The derivative of the log-likelihood is a sum over pairs, so for a given slope it is one matrix product for all
    samples; its zero is interpolated between the slopes of `SLOPES`.
    """
    return np.stack([_crossings(gaps, right, pair_weights) for gaps, right in zip(*pairs)])


def _crossings(gaps: Array, right: Array, pair_weights: Array) -> Array:
    known = np.isfinite(gaps)
    gaps, right = np.where(known, gaps, 0), np.where(known, right, 0)
    if not gaps.any():
        return np.full(pair_weights.shape[1], np.nan)
    observed = (gaps * right).sum(0)
    expected = np.stack([(gaps * expit(slope * gaps)).sum(0) for slope in SLOPES])  # (slopes, P)
    left = (observed - expected) @ pair_weights  # falls along the first axis
    last = np.clip((left > 0).sum(0), 1, len(SLOPES) - 1)  # the first that is not above 0
    samples = np.arange(left.shape[1])
    above, below = left[last - 1, samples], left[last, samples]
    step = np.divide(above, above - below, out=np.zeros(len(samples)), where=above != below)
    found = SLOPES[last - 1] + np.clip(step, 0, 1) * (SLOPES[last] - SLOPES[last - 1])
    return np.where(gaps.any(0) @ pair_weights > 0, found, np.nan)


def gap_to_be_sure(slope: ArrayLike, share: float = SURE) -> Array:
    """The gap at which a `share` of pairs is right, by the slope; NaN where the slope is not above 0."""
    slope = np.asarray(slope, float)
    return np.divide(logit(share), slope, out=np.full(slope.shape, np.nan), where=slope > 0)
