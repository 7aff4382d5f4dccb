"""Scaling laws on curves with known parameters, against scipy's fits, and against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.experiments.laws.scaling_laws import (
    EXPONENTS,
    FORMS,
    HUBER,
    LAWS,
    DataDecideFits,
    Runs,
    fit_huber,
    fit_plain,
    fit_plain_laws,
    fit_sigmoid,
    last_part,
    last_tenth,
    sigmoid,
)
from scipy.optimize import check_grad, least_squares

# DataDecide's 150M to 1B: parameters and tokens.
N = np.array([151_898_880, 319_980_544, 530_074_944, 681_297_408, 1_176_832_000], float)
D = np.array([15.0e9, 30.0e9, 53.0e9, 75.0e9, 100.0e9])
COMPUTE = 6 * N * D
TRUE = {"amplitude": 30.0, "alpha": 0.09, "floor": 0.35}


def loss_at(compute: np.ndarray) -> np.ndarray:
    return TRUE["amplitude"] * compute ** -TRUE["alpha"] + TRUE["floor"]


def metric_at(loss: np.ndarray) -> np.ndarray:
    return sigmoid(loss, -0.6, 0.9, 6.0, 0.9)


def runs_of(checkpoints: int = 20, sizes: int = 4) -> Runs:
    loss = [loss_at(c * np.arange(1, checkpoints + 1) / checkpoints) for c in COMPUTE[:sizes]]
    return Runs(N[:sizes], D[:sizes], loss, [metric_at(values) for values in loss])


# The plain laws


def test_known_parameters_are_found():
    compute, loss = COMPUTE[None, :4], loss_at(COMPUTE[None, :4])
    (three,) = fit_plain_laws(LAWS["3_param"], compute, loss, COMPUTE[4])
    assert three.parameters == pytest.approx({"A": 30.0, "alpha": 0.09, "E": 0.35}, rel=1e-4)
    assert three.predicted == pytest.approx(loss_at(COMPUTE[4]), rel=1e-8) and three.residual < 1e-9
    assert (three.note, three.points) == ("", 4)
    (two,) = fit_plain_laws(LAWS["2_param"], compute, loss - TRUE["floor"], COMPUTE[4])
    assert two.parameters == pytest.approx({"A": 30.0, "alpha": 0.09}, rel=1e-6)


def by_scipy(compute: np.ndarray, loss: np.ndarray, floor: bool) -> float:
    """The least sum of squares that scipy finds from six starts."""
    log_c = np.log(compute / compute.max())

    def residuals(p):
        return p[0] * np.exp(-p[1] * log_c) + (p[2] if floor else 0) - loss

    low, high = ([0, EXPONENTS[0], 0], [np.inf, EXPONENTS[1], np.inf])
    k = 3 if floor else 2
    starts = [[a, alpha, e][:k] for a in (0.01, 1.0) for alpha in (0.01, 0.2, 1.0) for e in (0.3,)]
    found = [
        least_squares(residuals, s, bounds=(low[:k], high[:k]), xtol=1e-14, ftol=1e-14, gtol=1e-14) for s in starts
    ]
    return min(2 * result.cost for result in found)


@pytest.mark.parametrize("floor", [True, False])
def test_no_start_of_scipy_does_better(floor):
    random = np.random.default_rng(0)
    compute = np.sort(10 ** random.uniform(17, 21, (5, 5)), axis=1)
    loss = loss_at(compute) * random.normal(1, 0.03, compute.shape)
    fitted = fit_plain(compute, loss, floor)
    squares = ((fitted(compute) - loss) ** 2).sum(1)
    others = np.array([by_scipy(c, y, floor) for c, y in zip(compute, loss, strict=True)])
    assert (squares <= others * (1 + 1e-6) + 1e-15).all()
    assert (fitted.floor >= 0).all() and (fitted.amplitude >= 0).all()
    assert ((fitted.alpha >= EXPONENTS[0]) & (fitted.alpha <= EXPONENTS[1])).all()


losses = st.lists(st.floats(0.05, 5.0), min_size=4, max_size=6)


@settings(max_examples=25, deadline=None)
@given(losses, st.floats(0.1, 10), st.floats(1e-3, 1e3))
def test_units_do_not_matter(values, unit, flops):
    """A loss in another unit is predicted in it; compute in another unit changes nothing."""
    loss, compute = np.array([values]), COMPUTE[None, 0] * 3.0 ** np.arange(len(values))[None]
    target = compute.max() * 4

    def predicted(compute, loss, target):
        return fit_plain_laws(LAWS["3_param"], compute, loss, target)[0].predicted

    expected = predicted(compute, loss, target)
    assert predicted(compute, loss * unit, target) == pytest.approx(expected * unit, rel=1e-5)
    assert predicted(compute * flops, loss, target * flops) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(losses)
def test_a_floor_never_fits_worse(values):
    loss, compute = np.array([values]), COMPUTE[None, 0] * 3.0 ** np.arange(len(values))[None]
    three, two = (fit_plain_laws(LAWS[name], compute, loss, 1e22)[0] for name in ("3_param", "2_param"))
    assert three.residual <= two.residual * (1 + 1e-9) + 1e-12
    assert 0 <= three.predicted <= loss.max() * (1 + 1e-9)


def test_bounds_are_noted():
    compute = COMPUTE[None, :4]

    def note(law, loss):
        return fit_plain_laws(LAWS[law], compute, np.array([loss]), COMPUTE[4])[0].note

    assert note("3_param", [1.0, 1.1, 1.2, 1.3]) == "A at its bound 0: no gain from compute"
    assert note("2_param", [1.0, 1.1, 1.2, 1.3]) == "alpha at its bound 0.001"
    assert note("3_param", (COMPUTE[:4] / COMPUTE[0]) ** -0.2) == ""
    assert note("3_param", 2 - np.log(COMPUTE[:4] / COMPUTE[0]) / 3) == "E at its bound 0"
    assert note("3_param", [5.0, 0.5, 0.5, 0.5]) == "alpha at its bound 3"


# The laws of DataDecide


@pytest.mark.parametrize("name", FORMS)
def test_gradients_by_differences(name):
    """All but that of one law: the released code exchanges two entries, which is kept, as its results are known."""
    form, nd = FORMS[name], np.stack([N, D])
    points = {
        "power": [10, 0.1, 0.5],
        "power_without_floor": [10, 0.1],
        "chinchilla": [3, 6, 0.1, 0.2, 1],
        "power_in_sigmoid": [4, 0.1, 0.5, -0.7, 1.4, 0.9, 1.0],
        "chinchilla_in_sigmoid": [3, 5, 0.2, 0.3, 0, -0.8, 1],
    }
    point = np.array(points[name], float)
    released = form.gradient(nd, point)
    for k in range(len(point)):
        step = 1e-6 * max(abs(point[k]), 1) * np.eye(len(point))[k]
        slope = (form.value(nd, point + step) - form.value(nd, point - step)) / (2e-6 * max(abs(point[k]), 1))
        if name == "power_in_sigmoid" and form.names[k] == "link_k":
            assert released[5] == pytest.approx(slope, rel=1e-4)
        elif name == "power_in_sigmoid" and form.names[k] == "link_x0":
            assert released[4] == pytest.approx(-slope, rel=1e-4)
        else:
            assert released[k] == pytest.approx(slope, rel=1e-4), form.names[k]


def test_the_first_step_minimises_hubers_loss():
    """Against the loss in a loop: no small change of a parameter lowers it."""
    random = np.random.default_rng(1)
    nd, y = np.stack([N[:4], D[:4]]), loss_at(COMPUTE[:4]) * random.normal(1, 0.01, 4)

    def loss(p):
        total = 0.0
        for n, d, value in zip(*nd, y, strict=True):
            r = abs(np.log(np.exp(p[0]) / (6 * n * d) ** p[1] + p[2]) - np.log(value))
            total += r**2 / 2 if r < HUBER else HUBER * (r - HUBER / 2)
        return total

    found = fit_huber(FORMS["power"], nd, y).values
    best = loss(found)
    for _ in range(200):
        assert loss(np.maximum(found + random.normal(0, 0.01, 3) * [0.1, 0.01, 0.1], 0)) >= best - 1e-7
    assert check_grad(loss, lambda p: np.zeros(3), found) < 1e-3


def test_the_sigmoid_is_found_and_the_helper_point_counts():
    loss = np.linspace(0.8, 1.3, 40)
    free = fit_sigmoid(loss, metric_at(loss), False)
    assert free.values == pytest.approx([-0.6, 0.9, 6.0, 0.9], rel=1e-3) and free.notes == ()
    helped = fit_sigmoid(loss, metric_at(loss), True)
    at_zero = [float(sigmoid(0.0, *fit.values)) for fit in (free, helped)]
    assert at_zero[0] < at_zero[1] < 1 + 1e-9 and "link_b at its bound 1" in helped.notes


@pytest.mark.parametrize("name", ["3_param-default", "3_param-default-step2=0.5", "2_param-default", "5_param-ai2"])
def test_two_steps_reach_the_known_metric(name):
    fit = DataDecideFits(runs_of(), [N[4], D[4]]).fit(LAWS[name])
    assert fit.predicted == pytest.approx(metric_at(loss_at(COMPUTE[4])), abs=0.006)
    assert {"link_a", "link_x0", "link_k", "link_b", "A", "alpha"} <= fit.parameters.keys()
    assert ("not unique" in fit.note) == (name == "5_param-ai2")


def test_helper_points_and_the_later_half_use_what_they_say():
    fitted = DataDecideFits(runs_of(), [N[4], D[4]])
    plain, helped = (fitted.fit(LAWS[f"3_param-default{end}"]) for end in ("", "-helper_points"))
    assert plain.parameters["A"] == helped.parameters["A"] and plain.predicted != helped.predicted
    values = np.arange(20.0)
    assert (
        last_part(values, 0.9).tolist() == values[2:].tolist()
        and last_part(values, 0.5).tolist() == values[10:].tolist()
    )
    assert last_tenth(values) == 18.5 and last_tenth(values[:3]) == 2.0 and last_tenth(values[:10]) == 9.0


def test_what_cannot_be_fitted_says_why():
    runs = runs_of()
    law = LAWS["3_param-default"]
    without = DataDecideFits(runs._replace(metric=None), [N[4], D[4]]).fit(law)
    assert np.isnan(without.predicted) and "was not measured" in without.note
    negative = DataDecideFits(runs._replace(loss=[-values for values in runs.loss]), [N[4], D[4]]).fit(law)
    assert np.isnan(negative.predicted) and "all must be positive" in negative.note
    few = Runs(N[:3], D[:3], [values[-2:] for values in runs.loss[:3]], [values[-2:] for values in runs.metric[:3]])
    assert "found 3 checkpoints for the sigmoid" in DataDecideFits(few, [N[4], D[4]]).fit(law).note
