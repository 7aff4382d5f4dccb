"""Calibration of gaps: bins by loop, slopes by scikit-learn and by repeating what was drawn."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from proxycast.experiments.bootstrap import bootstrap_weights
from proxycast.experiments.margins import (
    BINS,
    SPREAD,
    Pairs,
    binned,
    gap_to_be_sure,
    pairs_of,
    slope_samples,
    slopes,
)
from proxycast.experiments.rank_statistics import decision_accuracy, pair_weights
from sklearn.linear_model import LogisticRegression

few_values = st.integers(-3, 3).map(float)


def noisy(rng, rows=2, predictions=2, n=12):
    truth = rng.normal(size=n)
    return truth + 0.7 * rng.normal(size=(rows, predictions, n)), truth


@given(arrays(float, (2, 2, 6), elements=few_values), arrays(float, 6, elements=few_values))
@settings(max_examples=50)
def test_bins_by_loop(scores, truth):
    weights = np.concatenate([np.ones((1, 6)), bootstrap_weights(6, 4, 0)])
    unit, edges = [0.5, 2.0], BINS[SPREAD]
    number, mean, right = binned(pairs_of(scores, truth, unit), edges, pair_weights(weights).T)
    for row in range(2):
        for bin_number, (low, high) in enumerate(zip(edges, [*edges[1:], math.inf])):
            gaps, credit, counts = [], [], []
            for own in scores[row]:
                for i, j in combinations(range(6), 2):
                    gap = abs(own[i] - own[j]) / unit[row]
                    if truth[i] != truth[j] and low <= gap < high:
                        gaps.append(gap)
                        credit.append((1 + np.sign((own[i] - own[j]) * (truth[i] - truth[j]))) / 2)
                        counts.append(weights[:, i] * weights[:, j])
            assert number[row, bin_number] == len(gaps)
            if gaps:
                assert mean[row, bin_number] == pytest.approx(np.mean(gaps))
                shown = np.sum(counts, axis=0)
                expected = np.divide(credit @ np.array(counts), shown, out=np.full(5, np.nan), where=shown > 0)
                np.testing.assert_allclose(right[row, bin_number], expected)
            else:
                assert np.isnan(right[row, bin_number]).all()


def test_all_bins_together_are_decision_accuracy():
    rng = np.random.default_rng(1)
    scores, truth = noisy(rng)
    number, _, right = binned(pairs_of(scores, truth, [1.0, 1.0]), [0])
    assert (number == 2 * 66).all()
    np.testing.assert_allclose(right[:, 0, 0], decision_accuracy(scores, truth).mean(1))


def fitted(gaps, right, often=None):
    """scikit-learn's maximum of the same likelihood."""
    model = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-10, max_iter=1000)
    return model.fit(gaps[:, None], right.astype(int), sample_weight=often).coef_.item()


def test_slopes_are_those_of_a_logistic_regression():
    scores, truth = noisy(np.random.default_rng(2))
    pairs = pairs_of(scores, truth, [1.0, 2.0])
    for row, slope in enumerate(slopes(pairs)):
        assert slope == pytest.approx(fitted(pairs.gaps[row].ravel(), pairs.right[row].ravel()), rel=1e-4)


def test_slopes_in_samples_are_those_of_the_repeated_pairs():
    scores, truth = noisy(np.random.default_rng(4), n=14)
    pairs, weights = pairs_of(scores, truth, [1.0, 1.0]), bootstrap_weights(14, 6, 0)
    drawn = pair_weights(weights).T  # (P, B)
    found = slope_samples(pairs, drawn)
    for row in range(2):
        for sample in range(6):
            often = np.tile(drawn[:, sample], 2)
            expected = fitted(pairs.gaps[row].ravel(), pairs.right[row].ravel(), often)
            assert found[row, sample] == pytest.approx(expected, rel=0.02)
    once = slope_samples(pairs, np.ones((len(drawn), 1)))[:, 0]
    np.testing.assert_allclose(once, slopes(pairs), rtol=0.02)


def test_slopes_at_their_ends():
    truth = np.arange(6.0)
    perfect, opposite, constant = truth[None, None], -truth[None, None], np.zeros((1, 1, 6))
    once = np.ones((15, 1))
    assert slopes(pairs_of(perfect, truth, [1.0])) == np.inf
    assert slopes(pairs_of(opposite, truth, [1.0])) == -np.inf
    assert np.isnan(slopes(pairs_of(constant, truth, [0.0])))
    assert slope_samples(pairs_of(perfect, truth, [1.0]), once) > 30
    assert slope_samples(pairs_of(opposite, truth, [1.0]), once) < -30
    assert np.isnan(slope_samples(pairs_of(constant, truth, [0.0]), once))
    tied = Pairs(np.zeros((1, 1, 3)), np.full((1, 1, 3), 0.5))  # gaps of 0 say nothing
    assert np.isnan(slopes(tied)) and np.isnan(slope_samples(tied, np.ones((3, 1))))


def test_the_slope_that_made_the_pairs_is_found():
    rng = np.random.default_rng(5)
    gaps = rng.uniform(0, 3, size=(1, 1, 20000))
    right = (rng.random(gaps.shape) < 1 / (1 + np.exp(-1.7 * gaps))).astype(float)
    assert slopes(Pairs(gaps, right)).item() == pytest.approx(1.7, abs=0.08)


def test_gap_to_be_sure():
    gap = gap_to_be_sure([2.0, 0.0, -1.0, np.nan, np.inf], 0.85)
    assert 1 / (1 + math.exp(-2 * gap[0])) == pytest.approx(0.85)
    assert np.isnan(gap[1:4]).all() and gap[4] == 0
