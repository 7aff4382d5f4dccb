"""Forecasts of a run that goes on: its end as a horizon, the summary, and runs to learn from."""

import numpy as np
import polars as pl
import pytest
from forecasting_study import CUT, ONE, STEPS, TASKS, TOKENS_PER_STEP, law, options, run, small, study
from proxycast.config.experiments.forecasting_options import ForecastingOptions, RunEnd
from proxycast.experiments.forecasting.protocol import forecast
from proxycast.experiments.forecasting.run_end import SUMMARY_SCHEMA, with_end
from proxycast.options import InputError
from proxycast.study.checks import check_logs
from proxycast.study.loader import load_plan
from proxycast.truth.training_log import read_wide_curve
from pydantic import ValidationError

SO_FAR = STEPS[:11]  # up to the cut
END = 3000
ENDS = {"step": END, "tokens": END * TOKENS_PER_STEP, "flops": 6 * 50 * END * TOKENS_PER_STEP}


def going_on(runs=1, **changes):
    """One run up to the cut, and others that have finished, with 50 parameters each."""
    checkpoints, targets, proxies = small(study(runs=runs, **changes))
    later = (pl.col("run") == "r0") & (pl.col("step") > CUT)
    return checkpoints.filter(~later).with_columns(flops=6.0 * 50 * pl.col("tokens")), targets, proxies


@pytest.mark.parametrize("unit", ENDS)
def test_the_end_is_forecast_from_all_that_is_known(unit):
    """The curve's own value there: the made-up truth follows the law without noise."""
    tables = run(going_on(), proxies=ONE, fit_up_to_step=None, end={unit: ENDS[unit]})
    summary = tables["summary"]
    assert dict(summary.schema) == SUMMARY_SCHEMA
    assert summary["horizon"].unique().sort().to_list() == [2, 4, 9, END / CUT]
    ends = summary.filter("is_end")
    assert ends["task"].to_list() == TASKS and ends["step"].to_list() == [END] * 2
    assert ends["tokens"].to_list() == [END * TOKENS_PER_STEP] * 2
    assert ends["flops"].to_list() == pytest.approx([ENDS["flops"]] * 2)
    expected = [0.9 - 0.2 * law(END, 1.5, 0.4 + 0.05 * number, 0.5) for number in range(2)]
    assert ends["predicted"].to_list() == pytest.approx(expected, abs=1e-4)
    assert ends["last_value"].to_list() == pytest.approx([0.9 - 0.2 * (1.9 + 0.05 * n) for n in range(2)])
    assert ends["truth"].null_count() == 2
    errors = tables["errors"].filter(horizon=END / CUT, task="all")
    assert errors["rmse"].null_count() == len(errors) and set(errors["unjudged"]) == {2}


def test_no_horizon_lies_beyond_the_end():
    found = run(going_on(), proxies=ONE, end={"step": 700}, horizons=(2, 4, 9))["forecasts"]
    assert found["horizon"].unique().sort().to_list() == [2, 3.5]


def test_finished_runs_are_judged_at_the_horizon_of_the_end_and_learnt_from():
    """At 18 times the cut, where r1 to r4 have ended; other_runs is a regression of their ends on their cuts."""
    runs = 5
    tables = going_on(runs, sd=0.003)
    found = run(tables, proxies=ONE, end={"run": "r0", "step": 18 * CUT})
    truth = tables[0].join(tables[1].filter(task="logic"), on="checkpoint")
    at_cut, at_end = (dict(truth.filter(step=step).select("run", "value").rows()) for step in (CUT, 18 * CUT))
    slope, intercept = np.polyfit([at_cut[name] for name in at_end], list(at_end.values()), 1)
    learnt = found["forecasts"].filter(run="r0", task="logic", method="other_runs", horizon=18)
    assert learnt["predicted"].item() == pytest.approx(intercept + slope * at_cut["r0"])
    errors = found["errors"].filter(method="compute_only", task="all", horizon=18)
    assert errors.select("forecasts", "unjudged").row(0) == (8, 2)
    ends = found["summary"].filter("is_end")
    assert ends["run"].unique().to_list() == ["r0"]
    assert ends["method"].to_list() == ["cross_entropy/uniform", "other_runs"] * 2
    assert ends.filter(task="logic", method="other_runs")["predicted"].item() == learnt["predicted"].item()


def test_a_batch_that_grew_goes_on_as_it_was_last():
    known = pl.DataFrame({"run": "r", "step": [10, 20, 30], "tokens": [100, 200, 400]})
    choices = options(fit_up_to_step=None, end=RunEnd(step=50))
    changed, end = with_end(choices, known)
    assert (end.tokens, end.horizon) == (400 + 20 * 20, 2) and changed.fit_up_to_step == 30
    assert with_end(options(fit_up_to_step=None, end=RunEnd(tokens=800)), known)[1].step == 50
    inside = with_end(options(fit_up_to_step=10, end=RunEnd(step=25)), known)[1]
    assert (inside.tokens, inside.horizon) == (300, 3)


@pytest.mark.parametrize(
    "end, message",
    [
        (
            {"step": CUT},
            "forecasting.end: found step 200 .* run r0 is fitted up to step 200 .* the end must lie beyond",
        ),
        ({"step": END, "run": "r9"}, "forecasting.end.run: no run 'r9' has a truth; found r0"),
    ],
)
def test_mistakes_in_the_end(end, message):
    with pytest.raises(InputError, match=message):
        run(going_on(), proxies=ONE, end=end)


def test_what_an_end_needs():
    with pytest.raises(InputError, match="forecasting.end.run: missing; say which run ends there: r0, r1"):
        run(going_on(2), proxies=ONE, end={"step": END})
    tables = going_on()
    unknown = tables[0].with_columns(flops=pl.lit(None, pl.Float64))
    for checkpoints in (unknown, unknown.drop("flops")):
        with pytest.raises(
            InputError, match="end.flops: the parameters of run r0 are not known; give .*runs.r0.parameters"
        ):
            run((checkpoints, *tables[1:]), proxies=ONE, end={"flops": 1e9})
    for wrong in ({}, {"step": 4, "tokens": 4}):
        with pytest.raises(ValidationError, match="give one of step, tokens and flops"):
            RunEnd(**wrong)
    with pytest.raises(ValidationError, match="fit_up_to_step: missing; give the cut, or `end`"):
        options(fit_up_to_step=None)
    keys = {"path": "log.csv", "run_column": "run", "tokens_per_step": 8, "tasks": {"t": {"truth": "acc"}}}
    cut, without = {"fit_up_to_step": 5}, {"parameters": 5}
    assert ForecastingOptions(curve=keys | {"runs": {"a": cut, "b": cut}}).fit_up_to_step is None
    with pytest.raises(ValidationError, match="fit_up_to_step: missing"):
        ForecastingOptions(curve=keys | {"runs": {"a": cut, "b": without}})


def log_of(folder, text, runs=(), **changes):
    (folder / "log.csv").write_text(text)
    tasks = {"t": {"truth": "acc"}, "u": {"truth": "other", "statistics": {"loss": "ce"}}}
    curve = {"path": folder / "log.csv", "run_column": "run", "tokens_per_step": 8, "tasks": tasks, "runs": dict(runs)}
    return ForecastingOptions(curve=curve, bootstrap_replicates=100, **changes)


def rows_of(name, steps, gain):
    values = [(step, 0.8 - gain * step**-0.5, 2 + step**-0.5) for step in steps]
    return "".join(f"{name},{step},{truth},{truth / 2},{loss}\n" for step, truth, loss in values)


HEADER = "run,step,acc,other,ce\n"


def test_runs_have_cuts_of_their_own_and_tasks_have_statistics_of_their_own(tmp_path):
    text = HEADER + rows_of("short", range(10, 101, 10), 1) + rows_of("long", range(100, 1001, 100), 2)
    runs = {"long": {}, "short": {"fit_up_to_step": 50}}
    choices = log_of(tmp_path, text, runs, fit_up_to_step=500, horizons=(2,))
    tables = forecast(*read_wide_curve(choices.curve, "accuracy").values(), "accuracy", ["t", "u"], choices)
    cuts = tables["observed"].filter("in_fit", series="truth").group_by("run").agg(pl.col("step").max())
    assert dict(cuts.rows()) == {"long": 500, "short": 50}
    assert set(tables["forecasts"].filter(method="loss")["task"]) == {"u"}
    ends = tables["summary"].filter(pl.col("method") != "other_runs")
    assert ends["predicted"].to_list() == pytest.approx(ends["truth"].to_list(), abs=1e-3)
    assert ends["step"].to_list() == [1000, 1000, 100, 100]


def test_a_run_without_early_checkpoints_says_how_to_leave_it_out(tmp_path):
    choices = log_of(tmp_path, HEADER + rows_of("a", range(10, 101, 10), 1) + rows_of("b", [900], 1), fit_up_to_step=50)
    message = (
        r"run b, task t: no accuracy at the steps 1 to 50 .* those of \[900\]; to leave a run out, name the others"
    )
    with pytest.raises(InputError, match=message):
        forecast(*read_wide_curve(choices.curve, "accuracy").values(), "accuracy", ["t", "u"], choices)


@pytest.mark.parametrize(
    "end, message",
    [
        ({"step": 50}, "study.yaml: forecasting.end: found step 50 .* run a is fitted up to step 100"),
        ({"flops": 1e20}, "forecasting.end.flops: the parameters of run a are not known"),
        ({"step": 200, "run": "b"}, "forecasting.end.run: no run 'b' has a truth; found a"),
    ],
)
def test_a_log_is_checked_before_the_first_job(tmp_path, end, message):
    choices = log_of(tmp_path, HEADER + rows_of("a", range(10, 101, 10), 1), end=end)
    study = {"study": "mine", "target": {"metric": "accuracy"}, "forecasting": choices.model_dump(mode="json")}
    with pytest.raises(InputError, match=message):
        check_logs(load_plan(study, "study.yaml", tmp_path))


def test_a_log_of_scores_alone_is_forecast_by_their_own_curve(tmp_path):
    text = "run,step,acc,other,ce\n" + rows_of("a", range(10, 201, 10), 1)
    choices = log_of(tmp_path, text, end={"step": 800})
    choices = choices.model_copy(update={"proxies": ()})
    tables = forecast(*read_wide_curve(choices.curve, "accuracy").values(), "accuracy", ["t"], choices)
    row = tables["summary"].filter("is_end").row(0, named=True)
    assert row["method"] == "compute_only" and row["predicted"] == pytest.approx(0.8 - 800**-0.5, abs=1e-3)
