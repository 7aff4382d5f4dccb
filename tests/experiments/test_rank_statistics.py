"""Decision accuracy and rank correlations against loops and scipy, in all samples of a bootstrap."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.bootstrap import bootstrap_weights, percentile_interval
from proxycast.experiments.rank_statistics import (
    bootstrap_decision_accuracy,
    bootstrap_spearman,
    decision_accuracy,
    kendall,
    spearman,
)
from rank_loops import loop_decision_accuracy
from scipy import stats

FAST = SelectionOptions(bootstrap_replicates=200)
# Few distinct values, so that ties are frequent.
few_values = st.integers(-3, 3).map(float)
n_corpora = st.shared(st.integers(2, 9), key="n")
truths = n_corpora.flatmap(lambda n: arrays(float, n, elements=few_values))
predictions = n_corpora.flatmap(lambda n: arrays(float, (3, n), elements=few_values))


def scipy_statistic(function, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return function(x, y).statistic


def test_decision_accuracy_of_known_orders():
    truth = [1.0, 2.0, 3.0, 4.0]
    assert decision_accuracy(truth, truth) == 1
    assert decision_accuracy(truth[::-1], truth) == 0
    assert decision_accuracy([5, 5, 5, 5], truth) == 0.5
    assert decision_accuracy([1, 2, 4, 3], truth) == 5 / 6
    assert decision_accuracy([1, 2, 2, 3], truth) == 5.5 / 6
    assert decision_accuracy([1, 0, 5], [1, 1, 2]) == 1  # the first pair is tied in the truth
    assert np.isnan(decision_accuracy([1, 2], [3, 3]))


@given(predictions, truths)
def test_statistics_equal_loops_and_scipy(predicted, truth):
    expected = [loop_decision_accuracy(row, truth) for row in predicted]
    np.testing.assert_allclose(decision_accuracy(predicted, truth), expected)
    for ours, theirs in ((spearman, stats.spearmanr), (kendall, stats.kendalltau)):
        expected = [scipy_statistic(theirs, row, truth) for row in predicted]
        np.testing.assert_allclose(ours(predicted, truth), expected, atol=1e-12)


@given(predictions, truths)
def test_decision_accuracy_ignores_monotone_maps_and_mirrors(predicted, truth):
    accuracy = decision_accuracy(predicted, truth)
    np.testing.assert_array_equal(decision_accuracy(np.exp(predicted), truth**3), accuracy)
    np.testing.assert_allclose(decision_accuracy(-predicted, truth), 1 - accuracy)


def test_leading_axes_are_kept():
    rng = np.random.default_rng(0)
    predicted, truth = rng.normal(size=(2, 3, 7)), rng.normal(size=7)
    for statistic in (decision_accuracy, spearman, kendall):
        assert statistic(predicted, truth).shape == (2, 3)
        assert statistic(predicted, truth)[1, 2] == statistic(predicted[1, 2], truth)


def test_without_ties_decision_accuracy_is_kendall():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 25))
    assert decision_accuracy(x, y) == pytest.approx((1 + stats.kendalltau(x, y).statistic) / 2)


@settings(deadline=None)
@given(predictions, truths, st.integers(0, 1000))
def test_bootstrap_equals_the_statistic_of_repeated_values(predicted, truth, seed):
    n = len(truth)
    weights = bootstrap_weights(n, 5, seed)
    accuracies = bootstrap_decision_accuracy(predicted, truth, weights)
    correlations = bootstrap_spearman(predicted, truth, weights)
    assert accuracies.shape == correlations.shape == (3, 5)
    for b, counts in enumerate(weights.astype(int)):
        drawn = np.repeat(np.arange(n), counts)
        for r, row in enumerate(predicted):
            # A corpus drawn twice is tied with itself in the truth, so that pair is left out here too.
            expected = loop_decision_accuracy(row[drawn], truth[drawn])
            np.testing.assert_allclose(accuracies[r, b], expected)
            expected = scipy_statistic(stats.spearmanr, row[drawn], truth[drawn])
            np.testing.assert_allclose(correlations[r, b], expected, atol=1e-12)


def test_bootstrap_accepts_one_truth_per_row():
    rng = np.random.default_rng(2)
    predicted, truth, weights = rng.normal(size=(4, 9)), rng.normal(size=(4, 9)), bootstrap_weights(9, 20, seed=0)
    rows = [bootstrap_decision_accuracy(p[None], t, weights)[0] for p, t in zip(predicted, truth, strict=True)]
    np.testing.assert_array_equal(bootstrap_decision_accuracy(predicted, truth, weights), rows)


def test_intervals_cover_the_decision_accuracy_of_the_population():
    """Corpora drawn from a bivariate normal, whose decision accuracy Greiner's relation gives in closed form."""
    rng = np.random.default_rng(0)
    correlation, covered = 0.8, []
    for trial in range(300):
        truth = rng.normal(size=25)
        predicted = correlation * truth + math.sqrt(1 - correlation**2) * rng.normal(size=25)
        samples = bootstrap_decision_accuracy(predicted[None], truth, bootstrap_weights(25, 400, trial))
        low, high = percentile_interval(samples[0], 0.95)
        covered.append(low <= 0.5 + math.asin(correlation) / math.pi <= high)
    assert 0.88 < np.mean(covered) < 0.99
