"""The reliability of a truth, its interval, its verdict and the noise ceiling."""

import numpy as np
import pytest
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.rank_statistics import decision_accuracy
from proxycast.experiments.reliability import noise_ceiling, reliability, reliability_interval, spearman_brown, verdict
from proxycast.options import InputError
from scipy import stats

FAST = SelectionOptions(bootstrap_replicates=200)


def test_spearman_brown():
    assert spearman_brown(0.5, 2) == pytest.approx(2 / 3)
    assert spearman_brown(0.7, 1) == 0.7
    # Variance 1 of the truth and 1 of the noise of one seed: the mean of 3 seeds has reliability 1 / (1 + 1/3).
    assert spearman_brown(0.5, 3) == pytest.approx(0.75)


def test_reliability_of_seeds_that_contradict_each_other():
    """Two opposite orders correlate at -1, three that go in a circle at -1/2: there Spearman-Brown divides by 0."""
    up = np.array([1.0, 2, 3, 4])
    assert reliability([up, -up]) == reliability([[1, 2, 3], [2, 3, 1], [3, 1, 2]]) == -1
    assert reliability([[1.0, 2], [2, 1]]) == -1  # two corpora
    assert spearman_brown([-1, -0.5, -0.2, 0, 1], 3) == pytest.approx([-1, -1, -1, 0, 1])
    assert spearman_brown(-0.2, 2) == pytest.approx(-0.5) and np.isnan(spearman_brown(np.nan, 2))
    assert noise_ceiling(-1.0).decision_accuracy == 0.5


def test_the_interval_of_reliability_covers_it():
    """Simulated seeds of known reliability, and seeds of pure noise, whose interval holds 0."""
    rng = np.random.default_rng(1)
    options, covered = SelectionOptions(bootstrap_replicates=300), 0
    for _ in range(60):
        low, high = reliability_interval(rng.normal(size=30) + rng.normal(size=(3, 30)), options)
        covered += low <= 0.75 <= high  # 1 / (1 + 1/3)
    assert covered >= 51  # of 60 expected 57, with rank correlations and a percentile bootstrap somewhat fewer
    low, high = reliability_interval(rng.normal(size=(3, 30)), options)
    assert -1 <= low < 0 < high <= 1
    assert reliability_interval(rng.normal(size=(3, 4)), options) == "no interval: too few corpora (4)"
    same = np.tile(np.arange(9.0), (3, 1))
    assert reliability_interval(same, options).startswith("no interval: every sample of corpora")


def test_verdicts():
    words = {
        (None, None): "unknown",
        (np.nan, np.nan): "unknown",
        (-0.34, None): "noise",
        (0.0, None): "noise",
        (0.6, -0.1): "noise",
    }
    words |= {
        (0.3, 0.1): "poor",
        (0.5, 0.1): "moderate",
        (0.75, 0.3): "good",
        (0.9, 0.8): "excellent",
        (0.8, None): "good",
    }
    for arguments, word in words.items():
        assert verdict(*arguments) == word


def test_reliability_of_simulated_seeds():
    rng = np.random.default_rng(0)
    truth_by_seed = rng.normal(size=1000) + rng.normal(size=(3, 1000)) * 0.5
    assert reliability(truth_by_seed) == pytest.approx(1 / (1 + 0.25 / 3), abs=0.02)
    assert reliability([[1.0, 2, 3], [2, 4, 9]]) == 1
    with pytest.raises(InputError, match="at least 2 target seeds, found 1"):
        reliability([[1.0, 2.0]])


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0])
def test_the_noise_ceiling_is_what_a_perfect_prediction_reaches(noise):
    rng = np.random.default_rng(0)
    true_value = rng.normal(size=(40, 200))
    observed = true_value + noise * rng.normal(size=true_value.shape)
    ceiling = noise_ceiling(1 / (1 + noise**2))
    reached = [decision_accuracy(t, o) for t, o in zip(true_value, observed, strict=True)]
    assert ceiling.decision_accuracy == pytest.approx(np.mean(reached), abs=0.01)
    reached = [stats.spearmanr(t, o).statistic for t, o in zip(true_value, observed, strict=True)]
    assert ceiling.spearman == pytest.approx(np.mean(reached), abs=0.03)


def test_the_noise_ceiling_at_its_ends():
    assert noise_ceiling(1.0) == (1.0, 1.0)
    assert noise_ceiling(0.0) == noise_ceiling(-0.2) == (0.0, 0.5)
