"""The item response model against a general optimiser, the normal distribution's own formulas, loops and a 2PL."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.experiments.item_response import (
    PRIOR,
    ItemResponses,
    filled_means,
    fit_responses,
    item_rest_correlation,
)
from scipy import optimize, stats
from scipy.special import expit


def simulated(candidates, solutions, seed=0):
    rng = np.random.default_rng(seed)
    means, slopes, noise = rng.normal(size=solutions), rng.uniform(0.3, 2, solutions), rng.uniform(0.1, 3, solutions)
    theta = rng.normal(size=(candidates, 1))
    values = means + theta * slopes + rng.normal(size=(candidates, solutions)) * np.sqrt(noise)
    return values, ItemResponses(means, slopes, noise)


def test_parameters_of_simulated_values_are_recovered():
    values, true = simulated(20_000, 15)
    found = fit_responses(values)
    np.testing.assert_allclose(found.slopes, true.slopes, rtol=0.05)
    np.testing.assert_allclose(found.noise, true.noise, rtol=0.05)
    np.testing.assert_allclose(found.information, true.slopes**2 / true.noise, rtol=0.1)


def test_the_fit_is_the_mode_that_a_general_optimiser_finds():
    values, _ = simulated(30, 5, seed=1)
    z, solutions = (values - values.mean(0)) / values.std(0), 5

    def loss(parameters):
        slopes, noise = parameters[:solutions], np.exp(parameters[solutions:])
        fit = stats.multivariate_normal(np.zeros(solutions), np.outer(slopes, slopes) + np.diag(noise)).logpdf(z).sum()
        return -fit + PRIOR / 2 * (np.log(noise) + 1 / noise).sum()

    starts = [np.concatenate([np.full(solutions, s), np.full(solutions, -0.5)]) for s in (0.3, 0.6, 0.9)]
    best = min((optimize.minimize(loss, start) for start in starts), key=lambda result: result.fun)
    found = fit_responses(values)
    slopes = best.x[:solutions] * np.sign(best.x[:solutions].sum()) * values.std(0)
    np.testing.assert_allclose(found.slopes, slopes, atol=2e-3)
    np.testing.assert_allclose(found.noise, np.exp(best.x[solutions:]) * values.var(0), rtol=5e-3)


@pytest.mark.parametrize("spread, least", [(1.0, 0.7), (0.4, 0.95)])
def test_values_of_a_2pl_have_its_mean_slopes_and_are_ordered_by_its_information(spread, least):
    """A straight line is the worse a picture of a logistic curve the wider the abilities are spread."""
    rng, candidates, solutions, tokens = np.random.default_rng(2), 4000, 20, 40
    a, b = rng.uniform(0.2, 2.5, solutions), rng.normal(size=solutions)
    right = expit(a * (spread * rng.normal(size=(candidates, 1)) - b))
    found = fit_responses(rng.binomial(tokens, right) / tokens)
    # By Stein's lemma the covariance of P(theta) and theta is the mean of P'(theta), which is a P (1 - P).
    np.testing.assert_allclose(found.slopes, spread * (a * right * (1 - right)).mean(0), rtol=0.15)
    fisher = (a**2 * right * (1 - right)).mean(0)
    assert stats.spearmanr(found.information, fisher).statistic > least


def test_several_fits_at_once_are_each_alone():
    values = np.stack([simulated(24, 9, seed)[0] for seed in range(3)])
    together = fit_responses(values)
    for n, alone in enumerate(map(fit_responses, values)):
        np.testing.assert_allclose(together.information[n], alone.information, rtol=1e-2)


@settings(max_examples=25)
@given(st.lists(st.floats(0.1, 10), min_size=6, max_size=6), st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_information_knows_no_units(scales, shifts):
    values, _ = simulated(20, 6, seed=3)
    moved = fit_responses(values * scales + shifts)
    np.testing.assert_allclose(moved.information, fit_responses(values).information, rtol=1e-6)


def test_solutions_that_tell_nothing_have_no_information():
    values, _ = simulated(20, 6, seed=4)
    values[:, 2] = 7.0
    values[:, 4] = -values[:, 4]  # upside down
    found = fit_responses(values)
    assert found.information[2] == found.information[4] == 0 and (np.delete(found.information, [2, 4]) > 0).all()
    assert found.slopes[4] < 0
    for same in (np.ones((5, 3)), np.zeros((5, 1))):
        assert (fit_responses(same).information == 0).all()


def test_filled_means_are_those_of_the_normal_distribution():
    values, model = simulated(7, 5, seed=5)
    weights, picked = np.array([1.0, 2, 1, 3, 1]), np.array([[0, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = filled_means(values, picked.astype(float), model, weights)
    covariance = np.outer(model.slopes, model.slopes) + np.diag(model.noise)
    for row, chosen in enumerate(picked.astype(bool)):
        for i, own in enumerate(values):
            filled = np.where(chosen, own, model.means)
            if chosen.any():  # the regression of the others on the chosen
                inverse = np.linalg.inv(covariance[np.ix_(chosen, chosen)])
                rest = covariance[np.ix_(~chosen, chosen)] @ inverse @ (own - model.means)[chosen]
                filled[~chosen] += rest
            assert found[row, i] == pytest.approx(np.average(filled, weights=weights))
    np.testing.assert_allclose(found[2], np.average(values, axis=1, weights=weights))
    assert np.ptp(found[0]) < 1e-12


def test_correlation_with_the_others_is_numpy_s():
    values = np.random.default_rng(6).normal(size=(2, 12, 5))
    values[..., 3] = 1.5
    found = item_rest_correlation(values)
    for n, m in np.ndindex(2, 5):
        rest = np.delete(values[n], m, axis=1).mean(1)
        expected = 0 if m == 3 else np.corrcoef(values[n, :, m], rest)[0, 1]
        assert found[n, m] == pytest.approx(expected)
    assert (item_rest_correlation(values[0, :, :1]) == 0).all()
