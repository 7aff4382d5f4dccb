"""The bootstrap over corpora, models, seeds and solutions: draws, intervals, and why there is none."""

import math

import numpy as np
from numpy.typing import NDArray

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.arrays import DECIMALS, Array


def bootstrap_weights(n: int, replicates: int, seed: int | np.random.Generator) -> Array:
    """How often each of `n` units is drawn in samples of n with replacement -> (replicates, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=replicates).astype(float)


def stream(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that are independent of those of every other key, and of `default_rng(seed)`.

    Two things that are resampled together need one each: with the same numbers, equal counts would draw identical
    samples. `stream(seed, i)` is that of child i of `numpy.random.SeedSequence(seed).spawn`.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def percentile_interval(samples: Array, confidence: float) -> tuple[Array, Array]:
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


def sure_interval(
    values: Array, samples: Array, units: int, options: SelectionOptions, what: str = "models"
) -> tuple[Array, Array, NDArray[np.str_]]:
    """Ends of the intervals of Spearman's `values` (...) from their `samples` (..., B), and why there is none.

    `units`: how many of `what` were resampled. The ends are NaN where an interval would be too certain, and the reason
    is empty elsewhere.
    """
    low, high = percentile_interval(samples, options.confidence)
    if not enough_to_resample(units, options.confidence):
        why = np.full(np.shape(values), too_few(what, units))
    else:
        why = np.where(is_degenerate(values, low, high, -1, 1), all_alike(what), "")
    return np.where(why == "", low, np.nan), np.where(why == "", high, np.nan), why
