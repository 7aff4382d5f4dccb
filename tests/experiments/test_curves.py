"""Curves and links against scipy and numpy, one data set and many; their weights, blocks and tests of a trend."""

import numpy as np
import pytest
from proxycast.config.experiments.forecasting_options import FitOptions
from proxycast.experiments.laws.curves import (
    CURVES,
    block_indices,
    fit_curve,
    fit_link,
    has_trend,
    inflation,
    moving_mean,
    reweighting,
    robust_weights,
    student,
)
from pydantic import ValidationError
from scipy.optimize import curve_fit, least_squares
from scipy.stats import norm
from scipy.stats import t as student_t

T = np.linspace(0.05, 1, 20)
EXPONENTS = (0.01, 5.0)
FORMULAS = {
    "power": (lambda t, a, b, c: a - b * t**-c, (0.6, 0.1, 0.5)),
    "logistic": (lambda t, a, b, c, m: a - b / (1 + (t / m) ** c), (0.8, 0.5, 2.0, 0.3)),
}


def noisy(kind: str, rows: int = 1, sd: float = 0.003) -> np.ndarray:
    formula, true = FORMULAS[kind]
    return formula(T, *true) + sd * np.random.default_rng(3).standard_normal((rows, len(T)))


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("rising", [True, False])
def test_a_curve_fits_as_scipy_fits_it(kind, rising):
    formula, true = FORMULAS[kind]
    y = noisy(kind, 3) * (1 if rising else -1)
    weights = np.random.default_rng(0).uniform(0.5, 2, y.shape)
    found = fit_curve(kind, T, y, weights, EXPONENTS)
    far = np.array([2.0, 18.0])
    for row in range(3):
        start = [true[0], true[1], *true[2:]] if rising else [-true[0], -true[1], *true[2:]]
        theirs, _ = curve_fit(formula, T, y[row], start, sigma=weights[row] ** -0.5, maxfev=20000, xtol=1e-12)
        assert found(far)[row] == pytest.approx(formula(far, *theirs), abs=2e-5)
        assert found.c[row] == pytest.approx(theirs[2], rel=2e-4)
        assert (found.a[row], found.b[row]) == pytest.approx(theirs[:2], rel=1e-3)
    if kind == "logistic":
        assert found.m[row] == pytest.approx(theirs[3], rel=1e-3)


@pytest.mark.parametrize("kind", FORMULAS)
def test_a_curve_without_noise_is_found(kind):
    formula, true = FORMULAS[kind]
    found = fit_curve(kind, T, formula(T, *true)[None], np.ones((1, len(T))), EXPONENTS)
    assert found(T)[0] == pytest.approx(formula(T, *true), abs=1e-6)
    assert [found.a[0], found.b[0], found.c[0], *(found.m if kind == "logistic" else [])] == pytest.approx(
        true, rel=1e-3
    )


def test_many_data_sets_fit_as_each_alone():
    y = noisy("power", 5)
    weights = np.random.default_rng(1).uniform(0.2, 1, y.shape)
    together = fit_curve("power", T, y, weights, EXPONENTS)(T)
    for row in range(5):
        alone = fit_curve("power", T, y[row : row + 1], weights[row : row + 1], EXPONENTS)(T)[0]
        assert together[row] == pytest.approx(alone, abs=1e-12)


def test_the_exponent_stays_within_its_bounds():
    rising = 0.5 + 0.1 * np.log(T)  # the limit c -> 0
    falling_at_once = np.r_[0.0, np.ones(len(T) - 1)]
    both = fit_curve("power", T, np.stack([rising, falling_at_once]), np.ones((2, len(T))), (0.1, 2.0))
    assert both.c == pytest.approx([0.1, 2.0], rel=1e-4)


def test_a_constant_is_the_weighted_mean():
    y, weights = noisy("power", 2), np.random.default_rng(1).uniform(0.2, 1, (2, len(T)))
    found = fit_curve("constant", T, y, weights, EXPONENTS)
    assert found(np.array([1.0, 9.0]))[:, 1] == pytest.approx(np.average(y, axis=1, weights=weights))
    assert found.c is None


@pytest.mark.parametrize("outlier", [0.0, 0.05])
def test_soft_l1_fits_as_scipy_fits_it(outlier):
    y = noisy("power")[0]
    y[7] -= outlier
    options = FitOptions(loss_scale=2.0)

    def fit(weights):
        return fit_curve("power", T, y[None], weights, EXPONENTS)

    plain = fit(np.ones((1, len(T))))(T)[0]
    scale = 2.0 * 1.4826 * np.median(np.abs(y - plain)) * np.sqrt(20 / 17)
    formula, true = FORMULAS["power"]
    theirs = least_squares(
        lambda p: formula(T, *p) - y, true, loss="soft_l1", f_scale=scale, xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    weights = robust_weights(lambda weights: fit(weights)(T), y, 3, options)
    assert fit(weights)(T)[0] == pytest.approx(formula(T, *theirs.x), abs=1e-5)
    assert weights[0] == pytest.approx(1 / np.sqrt(1 + ((y - fit(weights)(T)[0]) / scale) ** 2), rel=1e-3)
    if outlier:
        assert weights[0].argmin() == 7
        truth = formula(np.array([18.0]), *true)
        assert abs(fit(weights)(np.array([18.0]))[0] - truth) < abs(fit(np.ones((1, 20)))(np.array([18.0]))[0] - truth)


def test_least_squares_weighs_all_alike():
    weights = robust_weights(lambda w: pytest.fail("no fit is needed"), T, 3, FitOptions(loss="least_squares"))
    assert weights.tolist() == [[1.0] * len(T)]


def test_a_linear_link_is_numpys_line():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 9)), rng.standard_normal((4, 9))
    weights = rng.integers(1, 4, (4, 9)).astype(float)
    found = fit_link("linear", x, y, weights)
    for row in range(4):
        counts = weights[row].astype(int)
        design = np.c_[np.ones(counts.sum()), np.repeat(x[row], counts)]
        (intercept, slope), *_ = np.linalg.lstsq(design, np.repeat(y[row], counts))
        assert (found.intercept[row], found.slope[row]) == pytest.approx((intercept, slope))
        assert found(x)[row] == pytest.approx(intercept + slope * x[row])


def test_a_logistic_link_fits_as_scipy_fits_it():
    rng = np.random.default_rng(0)
    x = np.linspace(3.2, 2.4, 12) + np.zeros((3, 1))
    steep = np.array([[1.0], [4.0], [-2.0]])
    y = np.clip(1 / (1 + np.exp(steep * (x - 2.7))) + 0.02 * rng.standard_normal(x.shape), 0, 1)
    weights = rng.uniform(0.5, 1, x.shape)
    found = fit_link("logistic", x, y, weights)
    for row in range(3):

        def residuals(p, row=row):
            return (1 / (1 + np.exp(-(p[0] + p[1] * x[row]))) - y[row]) * np.sqrt(weights[row])

        theirs = least_squares(residuals, [2.7 * steep[row, 0], -steep[row, 0]], xtol=1e-14, ftol=1e-14, gtol=1e-14)
        assert (found.intercept[row], found.slope[row]) == pytest.approx(theirs.x, rel=1e-5)
    assert (found(x + 100) >= 0).all() and (found(x - 100) <= 1).all()


def test_a_statistic_that_stands_still_has_no_slope():
    for kind in ("linear", "logistic"):
        found = fit_link(kind, np.full((1, 6), 2.5), np.linspace(0.2, 0.4, 6)[None], np.ones((1, 6)))
        assert found(np.array([[2.5, 9.0]]))[0] == pytest.approx([0.3, 0.3], abs=2e-3)


def test_a_trend_is_told_from_none():
    rng = np.random.default_rng(0)
    options, ones = FitOptions(), np.ones((1, len(T)))

    def trend(y, options=options):
        return has_trend(y, fit_curve("power", T, y[None], ones, EXPONENTS)(T)[0], ones[0], 3, options)

    assert trend(noisy("power")[0])
    assert trend(-noisy("power")[0])
    noise = rng.standard_normal((50, len(T)))
    assert sum(trend(row) for row in noise) <= 10  # BIC's error: not never
    assert not trend(np.cos(8 * T))
    assert not trend(np.full(len(T), 0.3))
    keep = FitOptions(without_trend="fit")
    assert trend(np.cos(8 * T), keep)
    assert not trend(np.full(len(T), 0.3), keep)


def test_bic_is_that_of_two_normal_models():
    y, fitted = noisy("power")[0], FORMULAS["power"][0](T, *FORMULAS["power"][1])
    told = []

    def bic(residuals, parameters):
        log_likelihood = norm.logpdf(residuals, scale=np.sqrt((residuals**2).mean())).sum()
        return parameters * np.log(len(y)) - 2 * log_likelihood

    for share in np.linspace(0, 0.3, 61):  # from a constant towards a fit
        mixed = share * fitted + (1 - share) * y.mean()
        told.append(bic(y - mixed, 3 + 1) < bic(y - y.mean(), 1 + 1))
        assert has_trend(y, mixed, np.ones(len(y)), 3, FitOptions()) == told[-1]
    assert 10 < sum(told) < 51


def test_small_samples_widen():
    assert inflation(10, 3) ** 2 == pytest.approx(10 / 7)
    assert inflation(3, 3) == student(3, 3, 0.9) == 1
    assert student(10, 3, 0.9) == pytest.approx(student_t.ppf(0.95, 7) / norm.ppf(0.95))
    assert reweighting(np.full((1, 5), 0.7) / 0.7) == 1
    assert reweighting(np.array([[1.0, 0.5]])) == pytest.approx(0.75 / 0.5625)


def test_neighbours_are_averaged():
    y = np.array([1.0, 5.0, 2.0, 8.0])
    assert (moving_mean(4, 1) @ y).tolist() == pytest.approx([3, 8 / 3, 5, 5])
    assert (moving_mean(4, 0) == np.eye(4)).all()


@pytest.mark.parametrize("block", [1, 3, 50])
def test_blocks_are_circular_neighbours(block):
    drawn = block_indices(7, 10, 4000, block, [0])
    assert drawn.shape == (4000, 10)
    steps = (drawn[:, 1:] - drawn[:, :-1]) % 7
    inside = [i for i in range(9) if (i + 1) % block]
    assert (steps[:, inside] == 1).all()
    assert np.bincount(drawn.ravel(), minlength=7) / drawn.size == pytest.approx(np.full(7, 1 / 7), abs=0.01)
    edges = [i for i in range(9) if not (i + 1) % block]
    assert all(len(np.unique(steps[:, i])) == 7 for i in edges)
    assert block_indices(7, 10, 0, block, [0]).shape == (0, 10)
    assert (drawn == block_indices(7, 10, 4000, block, [0])).all()


def test_options_of_a_fit():
    assert [curve.parameters for curve in CURVES.values()] == [3, 4, 1]
    for wrong in ((5.0, 0.01), (0.0, 1.0)):
        with pytest.raises(ValidationError, match="two positive numbers, the smaller first"):
            FitOptions(exponents=wrong)
