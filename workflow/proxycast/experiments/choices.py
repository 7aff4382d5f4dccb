"""What a choice by predicted scores costs: regret, recall and NDCG of the best k, and pairs that are left undecided.

Regret is the truth of the best candidate less that of the picked one, in the metric's own unit; it is never negative.
Of the best k by score it is the truth of the best candidate less that of the best among the k: what is lost if these k
are trained large and the best of them is kept. Recall at k is the share of the true best k among the predicted best k.
NDCG at k weighs places: the discounted cumulative gain of the predicted order over that of the true order (Jarvelin and
Kekalainen, Cumulated gain-based evaluation of IR techniques, ACM TOIS 20(4), 2002),

    DCG@k = sum over places i = 1..k of gain(i) / log2(1 + i),    gain = truth - the least truth among the candidates.

Gains start at 0 because a metric may have any zero. Equal scores stand in random order: every figure is its expected
value over all orders of what ties. Of NDCG that is McSherry and Najork's (Computing information retrieval performance
measures efficiently in the presence of tied scores, ECIR 2008), as in `sklearn.metrics.ndcg_score`. So a constant score
is a choice at random, and its figures are what chance is expected to get, in closed form.

In a bootstrap over candidates each sample is a choice of its own, among the candidates that it drew: the best is the
best *of the sample*, and a candidate that was drawn twice is two candidates that tie. (To count it once would leave
63 % of the candidates and make every choice easier than the study's.) So the interval tells how the cost varies over
sets of candidates of this kind, not how far the best of this study was missed. Regret hangs on single candidates, and
a bootstrap sees no better candidate than those that are there: its intervals are too narrow (docs/measured/choices.md
says by how much).

Shapes: R rows (predictions), n candidates, P = n (n - 1) / 2 pairs, B bootstrap samples, K seeds.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import comb

from proxycast.experiments.arrays import DECIMALS, Array
from proxycast.experiments.rank_statistics import pair_signs

TOP_K = 3  # candidates of which the best is kept
FIGURES = ("regret", "regret_top", "recall", "ndcg")
MOST_NUMBERS = 500_000  # in one of the arrays (R, B, n)


def choice_figures(scores: ArrayLike, truth: ArrayLike, k: int = TOP_K, weights: Array | None = None) -> dict:
    """Figure of `FIGURES` -> (R, B): what choosing by `scores` (R, n) costs by `truth` (n,), both higher is better.

    `weights` (B, n) says how often each candidate is drawn in each sample; without, each is there once and B is 1.
    `regret` and `regret_top` (of the best `k`) are in the unit of the truth; `recall` and `ndcg`, at
    `k`, are shares. A candidate as good as the k-th best counts as one of the best k. Where a sample has no more than
    `k` candidates all of them are taken. NaN where it has none, and NDCG also where the truth of all is the same.
    """
    scores, truth = np.round(np.asarray(scores, float), DECIMALS), np.round(np.asarray(truth, float), DECIMALS)
    order = np.argsort(-truth, kind="stable")
    weights = (np.ones((1, len(truth))) if weights is None else weights)[:, order]
    scores, truth = scores[:, order], truth[order]
    ideal = _ideal(truth, weights, k)
    rows = max(1, MOST_NUMBERS // weights.size)
    parts = [_of_rows(scores[at : at + rows], truth, weights, k, ideal) for at in range(0, len(scores), rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in FIGURES}


def at_random(truth: ArrayLike, k: int = TOP_K) -> dict[str, float]:
    """What a choice at random is expected to get: the figures of a score that is the same for all."""
    found = choice_figures(np.zeros((1, len(np.asarray(truth)))), truth, k)
    return {name: values.item() for name, values in found.items()}


def _ideal(truth: Array, weights: Array, k: int) -> dict[str, Array]:
    """What is the same for all rows, (B,) or (B, n): the best, the k best, how many, gains, the gain of the true order.

    The candidates are sorted by their truth, the best first.
    """
    present, behind = weights > 0, np.cumsum(weights, axis=1)
    best = np.where(present, truth, -np.inf).max(1)
    least = np.where(present, truth, np.inf).min(1)
    last = np.where(present & (behind - weights < k), truth, np.inf).min(1)  # of the k best
    gains = np.where(present, truth - least[:, None], 0)
    return {
        "best": best,
        "is_top": present & (truth >= last[:, None]),  # as good as the k-th
        "count": np.minimum(weights.sum(1), k),
        "gains": gains,
        "gain": (gains * _discounts(behind - weights, behind, k)).sum(1),
    }


def _discounts(before: Array, behind: Array, k: int) -> Array:
    """Sum of 1 / log2(1 + i) over the places i from `before` + 1 to `behind`, of which those beyond k count 0."""
    cumulative = np.concatenate([[0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    return cumulative[np.minimum(behind, k).astype(int)] - cumulative[np.minimum(before, k).astype(int)]


def _of_rows(scores: Array, truth: Array, weights: Array, k: int, ideal: Mapping[str, Array]) -> dict[str, Array]:
    """`choice_figures` of a few rows; the candidates are sorted by their truth, the best first."""
    greater = (scores[:, None, :] > scores[:, :, None]).astype(float)  # (R, n, n): whether j stands above i
    equal = (scores[:, None, :] == scores[:, :, None]).astype(float)
    above = weights @ greater.swapaxes(1, 2)  # (R, B, n)
    tied = np.maximum(weights @ equal.swapaxes(1, 2), 1)
    first = np.clip((1 - above) / tied, 0, 1) * weights
    taken = np.where(weights > 0, np.clip((k - above) / tied, 0, 1), 0)  # probability to be among the k
    known = ideal["count"] > 0
    gain = (_discounts(above, above + tied, k) / tied * weights * ideal["gains"]).sum(-1)
    undefined = np.full(gain.shape, np.nan)
    with np.errstate(invalid="ignore"):  # of samples without candidates
        regret = ideal["best"] - first @ truth
        regret_top = ideal["best"] - _expected_best(taken, weights, truth, k)
        recall = (taken * weights * ideal["is_top"]).sum(-1) / ideal["count"]
    return {
        "regret": np.where(known, np.maximum(np.round(regret, DECIMALS), 0), np.nan),
        "regret_top": np.where(known, np.maximum(np.round(regret_top, DECIMALS), 0), np.nan),
        "recall": np.where(known, recall, np.nan),
        "ndcg": np.divide(gain, ideal["gain"], out=undefined, where=np.broadcast_to(ideal["gain"] > 0, gain.shape)),
    }


def _expected_best(taken: Array, weights: Array, truth: Array, k: int) -> Array:
    """Expected greatest truth of those taken, from the probabilities `taken` (R, B, n); `truth` falls -> (R, B).

    Those of probability 1 are taken for sure; of the t that tie at the boundary m are drawn without replacement, none
    of c given ones with probability C(t - c, m) / C(t, m).
    """
    sure, unsure = taken == 1, weights * ((taken > 0) & (taken < 1))
    tied = unsure.sum(-1).astype(int)
    drawn = np.where(tied > 0, k - (weights * sure).sum(-1), 0).astype(int)
    passed = np.cumsum(unsure, axis=-1).astype(int)
    none = _none_drawn(int(weights.sum(1).max()), k)[tied[..., None], drawn[..., None], passed]
    none = none * ~np.maximum.accumulate(sure, axis=-1)  # of the best 1, 2 ... n none is taken
    before = np.concatenate([np.ones((*none.shape[:-1], 1)), none[..., :-1]], axis=-1)
    return (before - none) @ truth


@cache
def _none_drawn(n: int, k: int) -> Array:
    """C(t - c, m) / C(t, m) for t and c up to n and m up to k -> (n + 1, k + 1, n + 1)."""
    t, m, c = np.ogrid[: n + 1, : k + 1, : n + 1]
    ways = comb(t, m)
    return np.divide(comb(np.maximum(t - c, 0), m), ways, out=np.zeros((n + 1, k + 1, n + 1)), where=ways > 0)


def signs_where_seeds_agree(scores: ArrayLike) -> Array:
    """1, -1 or 0 (undecided) of each pair i < j of `scores` (..., K, n): decided where all seeds order it alike."""
    signs = pair_signs(np.round(np.asarray(scores, float), DECIMALS))
    return np.where((signs == signs[..., :1, :]).all(-2), signs[..., 0, :], 0)


def signs_beyond_noise(scores: ArrayLike, confidence: float) -> Array:
    """1, -1 or 0 (undecided) of each pair i < j of `scores` (..., K, n): decided at a `confidence`, by seed noise.

    Student's t of the difference of two means over K seeds, two-sided, with the variance between seeds pooled over the
    candidates: n (K - 1) degrees of freedom. A statement on single pairs: among many pairs without a difference a share
    of 1 - confidence is decided all the same. A single seed decides nothing.
    """
    scores = np.asarray(scores, float)
    seeds, n = scores.shape[-2:]
    if seeds < 2:
        return np.zeros((*scores.shape[:-2], n * (n - 1) // 2))
    from scipy.stats import t as student_t  # slow to import, and figures need no test

    i, j = np.triu_indices(n, 1)
    means = scores.mean(-2)
    gaps = np.round(means[..., i] - means[..., j], DECIMALS)
    bound = student_t.ppf((1 + confidence) / 2, n * (seeds - 1)) * seed_noise(scores) * np.sqrt(2 / seeds)
    return np.where(np.abs(gaps) > bound[..., None], np.sign(gaps), 0)


def seed_noise(scores: ArrayLike) -> Array:
    """Standard deviation between the seeds of `scores` (..., K, n), K > 1, pooled over the candidates -> (...)."""
    return np.sqrt(np.asarray(scores, float).var(-2, ddof=1).mean(-1))


DECISIONS = ("decided", "accuracy", "decision_accuracy")


def decision_figures(signs: ArrayLike, truth: ArrayLike, pair_weights: Array | None = None) -> dict[str, Array]:
    """Figure of `DECISIONS` -> (R, B): decisions on pairs with abstention.

    `signs` (R, P): what is decided of each pair, 0 where nothing is; `truth` (n,); `pair_weights` (P, B): how often
    each pair occurs in each sample, once without. `decided`: share of the pairs that are decided. `accuracy`: share of
    the decided that are ordered as the truth does. `decision_accuracy`: that of all pairs if the undecided are guessed,
    so that each counts 1/2. Pairs that tie in the truth are left out; NaN where nothing is left.
    """
    signs, true_signs = np.asarray(signs, float), pair_signs(np.round(np.asarray(truth, float), DECIMALS))
    pair_weights = np.ones((len(true_signs), 1)) if pair_weights is None else pair_weights
    pairs = np.abs(true_signs) @ pair_weights  # (B,)
    decided = np.abs(signs * true_signs) @ pair_weights  # (R, B)
    right = (signs * true_signs > 0) @ pair_weights
    undefined = np.full(decided.shape, np.nan)
    return {
        "decided": np.divide(decided, pairs, out=undefined.copy(), where=np.broadcast_to(pairs > 0, decided.shape)),
        "accuracy": np.divide(right, decided, out=undefined.copy(), where=decided > 0),
        "decision_accuracy": np.divide(
            right + (pairs - decided) / 2, pairs, out=undefined, where=np.broadcast_to(pairs > 0, decided.shape)
        ),
    }
