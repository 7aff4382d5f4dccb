"""The two-step law: the published prediction, laws that are known, and what no law can be fitted to."""

import numpy as np
import polars as pl
import pytest
from conftest import PUBLISHED
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_study import LAW, LINK, SIZES, ladder
from proxycast.experiments.laws import two_step
from proxycast.experiments.laws.two_step import (
    LadderRun,
    LossLaw,
    as_loss,
    fit_sigmoid,
    fit_two_step,
    lacking,
    trailing_mean,
)
from scipy.optimize import curve_fit


@pytest.mark.published
def test_the_published_prediction_of_olmo_2_7b():
    """allenai/OLMo-ladder's own code, rerun by others, from the same runs; the RMSE is that of its predictions."""
    table = pl.read_csv(PUBLISHED / "ladder_two_step_input.csv")
    target = table.filter(role="eval").row(0, named=True)
    errors = []
    for known in pl.read_csv(PUBLISHED / "ladder_two_step.csv").iter_rows(named=True):
        runs = [
            LadderRun(
                *(run, rows["parameters"][0], rows["tokens"].to_numpy()),
                *(rows[f"{known['task']}_{column}"].to_numpy() for column in ("bpb", "accuracy")),
            )
            for (run,), rows in table.filter(role="train").group_by("run", maintain_order=True)
        ]
        law = fit_two_step(runs, known["task_minimum"])
        found = law(target["parameters"], target["tokens"])
        assert found == pytest.approx(known["two_step_7b_rerun"], abs=1e-6)
        loss = law.loss(target["parameters"], target["tokens"])
        actual = target[f"{known['task']}_bpb"]
        assert loss / actual - 1 == pytest.approx(known["step1_7b_rel_error_published"], abs=1e-6)
        assert law.sigmoid(actual) / known["actual_7b_4t"] - 1 == pytest.approx(
            known["step2_7b_rel_error_published"],
            abs=2e-6,  # theirs stops a little before the least sum of squares
        )
        errors.append(found - known["actual_7b_4t"])
    assert len(errors) == 8 and np.sqrt(np.mean(np.square(errors))) == pytest.approx(0.0516, abs=5e-5)


@pytest.mark.parametrize("unit", [1.0, 1e-4], ids=["200M to 1.3B", "20k to 130k"])
def test_a_law_without_noise_is_found_again(unit):
    """At eight times the size and three times the tokens a parameter, also of models ten thousand times as small."""
    # The same losses, of other N and D.
    scaled = (LAW.log_a + LAW.alpha * np.log(unit), LAW.log_b + LAW.beta * np.log(unit))
    law = LossLaw(*scaled, LAW.alpha, LAW.beta, LAW.floor)
    found = fit_two_step(ladder(law, unit=unit))
    largest = unit * SIZES[-1] * 8, unit * SIZES[-1] * 8 * 600
    assert found.loss(*largest) == pytest.approx(law(*largest), rel=1e-3)
    assert found(*largest) == pytest.approx(LINK(law(*largest)), abs=0.01)
    assert found.extrapolation(*largest) == pytest.approx((8, 24, 192), rel=1e-6)


def test_a_law_that_starts_at_another_ends_where_it_would_have_ended_alone():
    runs = ladder()
    before = fit_two_step(runs[:-2])
    assert fit_two_step(runs, start=before)(1e10, 1e12) == pytest.approx(fit_two_step(runs)(1e10, 1e12), abs=1e-5)


def test_an_outlier_moves_the_law_little():
    """One run of nine that is a tenth worse: least squares would be off by several per cent of the loss."""
    runs = ladder()
    worse = [
        *runs[:-1],
        LadderRun("worse", runs[-1].parameters, runs[-1].tokens, 1.1 * runs[-1].loss, runs[-1].accuracy),
    ]
    assert fit_two_step(worse).loss(1e9, 1e11) == pytest.approx(LAW(1e9, 1e11), rel=0.02)


def test_the_sigmoid_is_that_of_scipy():
    rng = np.random.default_rng(0)
    loss = rng.uniform(0.6, 2.0, 80)
    accuracy = LINK(loss) + 0.01 * rng.standard_normal(80)
    shape = lambda x, a, x0, k, b: a / (1 + np.exp(-k * (x - x0))) + b  # noqa: E731
    wanted, _ = curve_fit(
        *(shape, np.append(loss, 0), np.append(accuracy, 1)),
        p0=(-0.75, 0.9, 3.0, 1.0),
        bounds=([-1, 0, 0, 0], [0, np.inf, np.inf, 1]),
    )
    at = np.linspace(0.1, 2.5, 30)
    assert fit_sigmoid(loss, accuracy, 0.25)(at) == pytest.approx(shape(at, *wanted), abs=1e-5)


@settings(max_examples=50)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.integers(1, 8))
def test_a_trailing_mean_is_that_of_a_loop(values, length):
    found = trailing_mean(np.array(values), length)
    assert found == pytest.approx([np.mean(values[max(0, i + 1 - length) : i + 1]) for i in range(len(values))])


def test_coefficients_at_a_bound_are_named():
    """A loss that falls below 0 in the end: E can be no less than 0."""
    without_floor = LossLaw(4.0, 5.0, 0.25, 0.22, -0.05)
    assert "E" in fit_two_step(ladder(without_floor)).at_bounds
    assert fit_two_step(ladder()).at_bounds == []


WRONG = {
    "no run": ([], "6 runs of known N and D are needed for five parameters, found 0"),
    "two sizes": (
        [(n, n * k) for n in (1e8, 2e8) for k in (10, 20, 40)],
        "3 sizes are needed, found 2: N = 1e+08, 2e+08",
    ),
    "one length": ([(n * 1e8, 1e9) for n in range(1, 7)], "3 lengths of training are needed, found 1: D = 1e+09"),
    "D follows N": ([(n * 1e8, n * 2e9) for n in range(1, 7)], "D is N^k in all 6 runs"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_law_lacks_is_named(case):
    runs, text = WRONG[case]
    assert lacking(runs).startswith(text)
    assert lacking([(n, n * k) for n in (1e8, 2e8, 4e8) for k in (20, 40)]) == ""


def test_statistics_become_losses():
    falls, rises, of_logs = np.array([2.0, 1.5]), np.array([0.25, 0.5]), np.array([-1.25, -0.5])
    assert as_loss(falls, -1).tolist() == [2.0, 1.5] and as_loss(rises, 1).tolist() == [0.75, 0.5]
    assert as_loss(of_logs, 1).tolist() == [1.25, 0.5]
    assert as_loss(np.array([3.0, 4.0]), 1) == "it rises and has no known upper end"
    assert as_loss(np.array([0.1, 0.0]), -1) == "it has values of 0, and the law is of log L"


def test_short_runs_are_smoothed_less():
    run = ladder()[0]
    assert run.last == two_step.LAST
    assert LadderRun("short", 1e8, run.tokens[:9], run.loss[:9], run.accuracy[:9]).last == 2
