"""Intervals by earlier forecasts: quantiles against the theorem, rehearsals against forecasts made by hand."""

import re

import numpy as np
import polars as pl
import pytest
from forecasting_study import CUT, ONE, TOKENS_PER_STEP, options, run, small, study, with_values
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.experiments.forecasting.conformal import (
    INTERVALS_SCHEMA,
    REHEARSED_SCHEMA,
    _intervals,
    _rehearsed,
    conformal_quantile,
    conformity_score,
)
from proxycast.experiments.forecasting.observed import observed_series, task_runs
from scipy import stats

OF_TRUTH = {"higher_is_better": True, "chance": {}}
HELD = {"intervals": "conformal", "proxies": ONE}


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.floats(0, 1e3), min_size=10, max_size=60),
    confidence=st.sampled_from([0.5, 0.8, 0.9]),
)
def test_of_exchangeable_scores_the_quantile_covers(scores, confidence):
    """The theorem: any of them may be the next one, and the share below the quantile of the others is enough."""
    scores = np.array(scores)
    below = [score <= conformal_quantile(np.delete(scores, i), confidence) for i, score in enumerate(scores)]
    assert np.mean(below) >= confidence - 1e-12
    if len(set(scores)) == len(scores):  # and not by more than one score
        assert np.mean(below) <= confidence + 1 / len(scores) + 1e-12


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_few_scores_make_a_wide_interval(n):
    """Of normal errors with mean 0, as many as nine would need; Student's quantile is that of scipy."""
    rng = np.random.default_rng(n)
    scores = np.abs(rng.standard_normal((4000, n + 1)))
    found = np.array([conformal_quantile(row[:-1], 0.9) for row in scores])
    student = stats.t.ppf(0.95, n) * np.sqrt((scores[:, :-1] ** 2).mean(1))
    assert found == pytest.approx(np.maximum(student, scores[:, :-1].max(1)))
    assert np.mean(scores[:, -1] <= found) == pytest.approx(0.91, abs=0.02)
    assert np.isnan(conformal_quantile(np.empty(0), 0.9))


def test_an_interval_grows_with_the_logarithm_of_the_horizon():
    """Nine equal scores: each side is wider by the score times ln(horizon), and the errors that made it just fit in."""
    error, noise, horizon = np.array([0.05, -0.08]), np.array([0.01, 0.02]), np.array([2.0, 4.0])
    score = conformity_score(error, noise, horizon)
    assert score == pytest.approx([0.04 / np.log(2), 0.06 / np.log(4)])
    assert conformity_score(error, np.array([0.2, 0.2]), horizon).tolist() == [0, 0]
    assert conformal_quantile(np.full(9, score[1]), 0.9) * np.log(4) == pytest.approx(0.06)


@pytest.fixture(scope="module")
def tables():
    return small(study(runs=2, sd=0.004))


@pytest.fixture(scope="module")
def held(tables):
    return run(tables, **HELD)


@pytest.fixture(scope="module")
def alone(tables):
    """The tables of one run."""
    return (tables[0].filter(run="r0"), *tables[1:])


@pytest.fixture(scope="module")
def held_alone(alone):
    return run(alone, **HELD)


@pytest.fixture(scope="module")
def noise(tables):
    return run(tables, proxies=ONE)


def rows_of(tables, **changes):
    choices = options(**(HELD | changes))
    observed = observed_series(*tables, "accuracy", ["algebra", "logic"], choices)
    rows = [row for data in task_runs(observed, {}, **OF_TRUTH) for row in _rehearsed(data, choices)]
    return pl.DataFrame(rows, schema=REHEARSED_SCHEMA)


def test_a_rehearsed_forecast_is_one_that_was_made_there(tables):
    """Earlier cuts are half an octave apart; a study that is cut there forecasts the same."""
    rows = rows_of(tables)
    assert sorted(set(rows.filter("fitted")["cut"].round(2))) == [0.5, 0.7]
    for cut in (100, 140):
        wanted = rows.filter((pl.col("cut") * CUT - cut).abs() < 1, task="logic", run="r0")
        horizons = sorted(set(wanted["horizon"]))
        then = run(tables, proxies=ONE, fit_up_to_step=cut, horizons=horizons, horizon_tolerance=0.001)["forecasts"]
        for method in ("compute_only", ONE[0], "last_value", "constant"):
            made = then.filter(run="r0", task="logic", method=method).sort("horizon")
            own = wanted.filter(method=method).sort("horizon")
            assert own["predicted"].to_list() == pytest.approx(made["predicted"].to_list())
            assert own["truth"].to_list() == made["truth"].to_list()
    few = rows.filter(~pl.col("fitted"))
    assert set(few["method"]) == {"last_value"} and (few["noise"] == 0).all() and few["cut"].max() <= 0.3


def test_intervals_are_those_of_noise_and_what_the_scores_tell(tables, held, noise):
    """By a plain loop: the run's own scores, and those of the other run's forecasts beyond the cut."""
    key = ["run", "task", "method", "horizon"]
    both = held["forecasts"].join(noise["forecasts"], on=key, suffix="_of_noise")
    assert both["predicted"].equals(both["predicted_of_noise"]) and len(both) == len(noise["forecasts"])
    others = both.filter(method="other_runs")
    assert others["low"].equals(others["low_of_noise"])  # it has no rehearsal, and needs none
    scores = rows_of(tables).filter("fitted")
    for row in both.filter(pl.col("method") != "other_runs").iter_rows(named=True):
        own = scores.filter(run=row["run"], method=row["method"])["score"].to_list()
        for other in both.filter(pl.col("run") != row["run"], method=row["method"]).iter_rows(named=True):
            outside = max(other["low_of_noise"] - other["truth"], other["truth"] - other["high_of_noise"], 0)
            own.append(outside / np.log(other["tokens"] / (CUT * TOKENS_PER_STEP)))
        rank = int(np.ceil(0.9 * (len(own) + 1)))
        reach = sorted(own)[rank - 1] * np.log(row["tokens"] / (CUT * TOKENS_PER_STEP))
        assert row["low"] == pytest.approx(max(row["low_of_noise"] - reach, 0))
        assert row["high"] == pytest.approx(min(row["high_of_noise"] + reach, 1))
        assert row["covered"] == (row["low"] <= row["truth"] <= row["high"])
    assert noise["intervals"].is_empty() and dict(noise["intervals"].schema) == INTERVALS_SCHEMA


def test_paths_are_widened_beyond_the_cut_alone(held, noise):
    key = ["run", "task", "method", "tokens"]
    both = held["paths"].join(noise["paths"], on=key, suffix="_of_noise").join(held["intervals"], on=["run", "method"])
    at = both["tokens"] / (CUT * TOKENS_PER_STEP)
    reach = (both["growth"] * at.log().clip(0)).to_numpy()
    assert (both["low_of_noise"] - reach).clip(0).to_list() == pytest.approx(both["low"].to_list())
    assert both.filter(at <= 1).select((pl.col("low") == pl.col("low_of_noise")).all()).item()
    assert (both.filter(at > 2)["growth"] > 0).any()


def test_a_single_run_learns_nothing_from_what_came_after(tables, held, alone, held_alone):
    """Its intervals stay; with another run, whose later truths are known, they move."""
    checkpoints, targets, proxies = tables
    later = checkpoints.filter(pl.col("step") > CUT)["checkpoint"].to_list()
    wild = pl.when(pl.col("checkpoint").is_in(later)).then(pl.col("value") * 0.5 + 0.1).otherwise("value")
    columns = ["run", "task", "method", "horizon", "predicted", "low", "high"]
    other = targets.with_columns(wild.alias("value"))
    for known, as_it_was, alike in ((alone[0], held_alone, True), (checkpoints, held, False)):
        found = [
            tables["forecasts"].filter(pl.col("method") != "other_runs").select(columns)
            for tables in (as_it_was, run((known, other, proxies), **HELD))
        ]
        assert found[0].drop("low", "high").equals(found[1].drop("low", "high"))
        assert found[0].equals(found[1]) == alike


def test_the_coverage_of_rehearsals_is_what_was_held_there(alone, held_alone):
    """By a loop over one run: every forecast from an earlier cut, with the scores of what was known there."""
    found, rows = held_alone["intervals"], rows_of(alone)
    for method in ("compute_only", "last_value"):
        held = []
        for place, now in rows.filter("fitted", method=method).group_by("place"):
            before = rows.filter(pl.col("place") > place[0], pl.col("end") <= now["cut"].min() + 1e-9)
            known = before.filter("fitted", method=method)
            known = before.filter(method="last_value") if known.is_empty() else known
            reach = conformal_quantile(known["score"].to_numpy(), 0.9) * np.log(now["horizon"].to_numpy())
            error = (now["predicted"] - now["truth"]).abs().to_numpy()
            held += (error <= now["noise"].to_numpy() + reach).tolist()
        row = found.filter(method=method).row(0, named=True)
        assert row["rehearsals"] == len(held) and row["rehearsal_coverage"] == pytest.approx(np.mean(held))
        assert row["of_other_runs"] == 0


def test_where_curves_are_wrong_the_intervals_hold():
    """Accuracies that walk at random over the logarithm of compute: no power law knows where to."""
    rng, steps = np.random.default_rng(3), [*(round(10 * 2 ** (k / 3)) for k in range(30))]
    checkpoints, targets, proxies = small(study(runs=4, steps=steps, n=10**6))
    walk = {
        (name, task): 0.5 + value
        for (_, task), rows in checkpoints.join(targets, on="checkpoint").group_by("run", "task", maintain_order=True)
        for name, value in zip(rows["checkpoint"], np.cumsum(0.004 + 0.012 * rng.standard_normal(len(rows))))
    }
    targets = targets.with_columns(
        value=pl.Series([walk[key] for key in targets.select("checkpoint", "task").iter_rows()])
    )
    made = {
        kind: run((checkpoints, targets, proxies), proxies=ONE, intervals=kind)["errors"].filter(
            pl.col("method").is_in(["compute_only", "last_value", *ONE]), task="all"
        )
        for kind in ("conformal", "noise")
    }
    assert 0.8 <= made["conformal"]["coverage"].mean() <= 0.98
    assert made["noise"]["coverage"].mean() < made["conformal"]["coverage"].mean() - 0.1
    assert made["conformal"]["interval_score"].mean() < made["noise"]["interval_score"].mean()


def test_the_interval_score_is_width_and_what_lies_outside(held):
    rows = held["forecasts"].filter(method="last_value", horizon=18)
    scores = [
        high - low + 20 * max(low - truth, truth - high, 0)
        for low, high, truth in rows.select("low", "high", "truth").iter_rows()
    ]
    row = held["errors"].filter(method="last_value", horizon=18, task="all").row(0, named=True)
    assert row["interval_score"] == pytest.approx(np.mean(scores))
    assert row["width"] == pytest.approx((rows["high"] - rows["low"]).mean())


def test_short_runs_are_wide_or_told():
    """Three checkpoints have the scores of their last value; one has none, and its interval is that of noise."""
    note = "its interval tells of noise alone: too few checkpoints for a rehearsal"
    three = small(study(steps=[50, 100, 200, 400], sd=0.004))
    found = run(three, ["logic"], horizons=(2,), **HELD)
    truth = three[0].join(three[1], on="checkpoint").filter(task="logic").sort("step")["value"].to_numpy()
    scores = np.abs([truth[1] - truth[0], truth[2] - truth[0], truth[2] - truth[1]]) / np.log([2, 4, 2])
    wanted = max(scores.max(), stats.t.ppf(0.95, 3) * np.sqrt((scores**2).mean()))
    assert found["intervals"]["growth"].to_list() == pytest.approx([wanted] * len(found["intervals"]))
    assert found["intervals"]["rehearsals"].to_list() == [0] * len(found["intervals"])
    assert not any(note in caution for caution in found["forecasts"]["caution"])
    one = run(small(study(steps=[200, 400])), ["logic"], horizons=(2,), **HELD)
    assert one["intervals"]["growth"].null_count() == len(one["intervals"]) > 0
    known = one["forecasts"].drop_nulls("low")
    assert len(known) and all(note in caution for caution in known["caution"])


def test_intervals_keep_to_what_the_truth_can_be(tables):
    """A share near 1 ends there; a loss ends at 0 and has no upper end."""
    rng = np.random.default_rng(0)
    wild = {step: 0.95 + 0.04 * rng.uniform(-1, 1) for step in (*range(0, 201, 20), 400, 800, 1800, 3600)}
    near = with_values(tables, wild.get)
    found = run(near, **HELD)["forecasts"].filter(method="last_value")
    assert found["high"].max() == 1 and found["low"].min() > 0
    loss = with_values(tables, lambda step: 20 * wild[step] - 18)
    found = run(loss, higher_is_better=False, **HELD)["forecasts"].filter(method="last_value", horizon=18)
    assert found["low"].min() == 0 and found["high"].max() > 2


def test_what_rehearsals_held_is_told(tables, caplog):
    caplog.set_level("INFO")
    found = run(tables, rehearsal=0.5, end={"run": "r0", "step": 4000}, **HELD)
    summary = found["summary"].filter(pl.col("method") != "other_runs")
    coverage = found["intervals"].filter(method=found["rehearsal"].filter("chosen")["method"].item())
    wanted = dict(coverage.select("run", "rehearsal_coverage").iter_rows())
    assert all(row["rehearsal_coverage"] == wanted[row["run"]] for row in summary.iter_rows(named=True))
    [told] = re.findall(r"In rehearsals before the cut, the intervals of .* held (.*)% of (.*) truths", caplog.text)
    held = (coverage["rehearsal_coverage"] * coverage["rehearsals"]).sum() / coverage["rehearsals"].sum()
    assert told == (f"{100 * held:.0f}", str(coverage["rehearsals"].sum()))


def test_the_coverage_told_is_that_of_the_interval_that_is_built():
    """Other runs count in rehearsals only if they count in the interval: if they went on beyond their cut."""
    rows = [
        {"run": run, "task": "t", "method": "m", "place": place, "cut": 2 ** (-place / 2), "fitted": True}
        | {"end": 2 ** ((step - place) / 2), "horizon": 2 ** (step / 2), "predicted": 0.0, "truth": 0.0, "noise": 0.0}
        | {"score": scale * (5 if (run, place) == ("a", 1) else 1)}
        for run, scale in (("a", 0.01), ("b", 0.1))
        for place in range(1, 9)
        for step in range(1, place + 1)
    ]
    rehearsed = pl.DataFrame(rows, schema=REHEARSED_SCHEMA)
    nothing = pl.DataFrame(schema={"run": pl.String, "method": pl.String, "score": pl.Float64})
    both = _intervals([("a", "m"), ("b", "m")], rehearsed, nothing, options())
    alone = _intervals([("a", "m")], rehearsed.filter(run="a"), nothing, options())
    assert both.filter(run="a").equals(alone) and alone["rehearsal_coverage"].item() < 1
