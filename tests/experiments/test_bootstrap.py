"""Draws and intervals of the bootstrap."""

import math
import warnings
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.bootstrap import bootstrap_weights, enough_to_resample, percentile_interval, stream

FAST = SelectionOptions(bootstrap_replicates=200)


def test_bootstrap_weights_are_draws_with_replacement():
    weights = bootstrap_weights(25, 4000, seed=3)
    assert (weights.sum(1) == 25).all()
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.1)
    np.testing.assert_allclose(weights.var(0), 1 - 1 / 25, atol=0.15)
    np.testing.assert_array_equal(weights, bootstrap_weights(25, 4000, seed=3))


@given(arrays(float, (3, 20), elements=st.one_of(st.floats(-5, 5), st.just(math.nan))), st.floats(0.5, 0.99))
def test_intervals_are_nanquantiles(samples, confidence):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = np.nanquantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2], axis=-1)
    np.testing.assert_allclose(percentile_interval(samples, confidence), expected, atol=1e-12)


def test_few_units_have_few_samples():
    """Different samples of n units with replacement, counted one by one; an interval needs one in each tail."""
    for n in range(1, 7):
        samples = {tuple(sorted(drawn)) for drawn in product(range(n), repeat=n)}
        for confidence in (0.5, 0.9, 0.95, 0.99):
            assert enough_to_resample(n, confidence) == (len(samples) * (1 - confidence) / 2 >= 1)
    assert [n for n in range(1, 20) if not enough_to_resample(n, 0.95)] == [1, 2, 3, 4]


def test_streams_are_independent():
    """Units of two kinds, crossed: the width of an interval of their mean, and its closed form.

    x_ij = a_i + b_j; the mean over drawn i and j has the variance var(a) / n + var(b) / m. With b = -a the same draws
    for both would give 0, with b = a twice the variance.
    """
    a = np.random.default_rng(2).normal(size=8)
    of_a, of_b = (bootstrap_weights(8, 20_000, stream(0, n)) for n in range(2))
    assert not np.array_equal(of_a, of_b)
    for b in (a, -a, np.roll(a, 3)):
        weights = of_a[:, :, None] * of_b[:, None]  # (B, n, m)
        means = (weights * (a[:, None] + b)).sum((1, 2)) / weights.sum((1, 2))
        assert means.var() == pytest.approx((a.var() + b.var()) / 8, rel=0.05)
    children = np.random.SeedSequence(7).spawn(3)
    assert [stream(7, n).random() for n in range(3)] == [np.random.default_rng(child).random() for child in children]
