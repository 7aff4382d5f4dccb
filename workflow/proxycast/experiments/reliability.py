"""How reliable a truth of several seeds is, and what a perfect prediction can reach against it."""

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments import bootstrap
from proxycast.experiments.arrays import DECIMALS, Array
from proxycast.experiments.rank_statistics import bootstrap_spearman
from proxycast.options import InputError

DEFAULTS = SelectionOptions()


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
    if not bootstrap.enough_to_resample(n, options.confidence):
        return bootstrap.too_few("corpora", n)
    weights = bootstrap.bootstrap_weights(n, options.bootstrap_replicates, options.seed)
    low, high = bootstrap.percentile_interval(
        spearman_brown(mean_correlation(truth_by_seed, weights), k), options.confidence
    )
    if bootstrap.is_degenerate(np.asarray(reliability(truth_by_seed)), low, high, LEAST_RELIABILITY, 1):
        return bootstrap.all_alike("corpora")
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
