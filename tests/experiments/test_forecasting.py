"""Forecasts of made-up training curves: the protocol, the errors, and mistakes."""

import numpy as np
import polars as pl
import pytest
from forecasting_study import (
    CUT,
    ONE,
    PROXIES,
    STEPS,
    TASKS,
    TOKENS_PER_STEP,
    chosen_of,
    law,
    options,
    run,
    small,
    study,
    with_values,
)
from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.experiments.forecasting.forecast_errors import _two_way_weights, errors_table
from proxycast.options import InputError
from pydantic import ValidationError


@pytest.fixture(scope="module")
def noiseless():
    return run(study(runs=2))


@pytest.fixture(scope="module")
def noisy():
    return run(study(runs=2, sd=0.004, shift=0.1), links=("linear", "logistic"), rehearsal=0.5)


def test_nothing_after_the_cut_is_used():
    """Other values there change neither a forecast nor the choice; only runs that have finished are a baseline."""
    tables = study(runs=2, sd=0.004)
    later = tables[0].filter(pl.col("step") > CUT)["checkpoint"].to_list()

    def changed(table):
        wild = pl.when(pl.col("checkpoint").is_in(later)).then(pl.col("value") * 0.5 + 0.1).otherwise("value")
        return table.with_columns(wild.alias("value"))

    before = run(tables, rehearsal=0.5)
    after = run((tables[0], changed(tables[1]), changed(tables[2])), rehearsal=0.5)
    assert before["rehearsal"].equals(after["rehearsal"])
    columns = ["run", "task", "method", "horizon", "predicted", "low", "high"]
    kept = [tables["forecasts"].filter(pl.col("method") != "other_runs").select(columns) for tables in (before, after)]
    assert kept[0].equals(kept[1])
    assert not before["forecasts"]["error"].equals(after["forecasts"]["error"])


def test_the_untrained_model_is_not_fitted(noiseless):
    observed = noiseless["observed"].filter(run="r0", task="logic", series="truth").sort("step")
    assert observed.filter("in_fit")["step"].to_list() == list(range(20, 201, 20))
    later = run(study(), fit_from_step=60)["observed"].filter("in_fit", series="truth", task="logic")
    assert later["step"].sort().to_list() == list(range(60, 201, 20))


def test_the_mean_around_a_horizon():
    steps = [*range(20, 201, 20), 340, 380, 400, 440]
    tables = study(steps=steps)
    truth = tables[0].join(tables[1], on="checkpoint").filter(task="logic")
    near = truth.filter(pl.col("step").is_in([380, 400, 440]))["value"].mean()
    change = {"horizons": (2, 18), "horizon_tolerance": 0.1}
    rows = run(tables, at_horizon="mean", **change)["forecasts"].filter(task="logic", method="compute_only")
    assert rows["truth"].to_list() == [pytest.approx(near), None]
    assert rows["error"][0] == pytest.approx(0, abs=1e-6)
    assert rows["tokens"].to_list() == [pytest.approx((380 + 400 + 440) / 3 * 1000), 3_600_000]
    rows = run(tables, **change)["forecasts"].filter(task="logic", method="compute_only")
    assert rows["truth"][0] == truth.filter(step=400)["value"].item()
    assert rows.select("truth", "error", "covered").row(1) == (None, None, None)
    assert rows["predicted"].null_count() == 0 and rows["step"].to_list() == [400, 3600]


def test_a_run_that_has_not_ended_is_forecast_all_the_same(caplog):
    tables = run(study(steps=STEPS[:11]))
    assert tables["forecasts"]["truth"].null_count() == len(tables["forecasts"]) > 0
    assert "no checkpoint near any horizon; its forecasts are not judged" in caplog.text
    errors = tables["errors"]
    assert errors["rmse"].null_count() == len(errors) and errors["forecasts"].sum() == 0
    assert errors.filter(method="pooled", task="all")["unjudged"].to_list() == [2] * 4
    assert tables["paths"]["tokens"].max() == pytest.approx(18 * CUT * TOKENS_PER_STEP)


@pytest.mark.parametrize("one_run", [True, False])
def test_horizons_without_a_truth_are_told(caplog, one_run):
    checkpoints, targets, proxies = small(study(runs=2))
    gone = ["r0-1800"] if one_run else ["r0-1800", "r1-1800"]
    found = run((checkpoints, targets.filter(~pl.col("checkpoint").is_in(gone)), proxies), proxies=ONE)
    errors = found["errors"].filter(method="compute_only", task="all").sort("horizon")
    assert errors["unjudged"].to_list() == [0, 0, 2 if one_run else 4, 0]
    assert errors["forecasts"].to_list() == [4, 4, 2 if one_run else 0, 4]
    assert errors["rmse"].is_null().to_list() == [False, False, not one_run, False]
    text = f"horizon 9x: {2 if one_run else 4} of 4 run/task (r0/algebra ...) have no truth within 10 % of it"
    assert text in caplog.text and caplog.text.count("have no truth within") == 1
    of_task = found["errors"].filter(method="compute_only", task="logic", horizon=9)
    assert of_task["unjudged"].item() == (1 if one_run else 2)


def test_tasks_and_runs_are_drawn_apart():
    """As many of one as of the other: E sum_i w_i v_i = n of independent samples, 2 n - 1 of one sample."""
    weights = _two_way_weights((8, 8), options(bootstrap_replicates=4000))
    assert weights.shape == (4000, 8, 8) and (weights.sum((1, 2)) == 64).all()
    assert np.trace(weights, axis1=1, axis2=2).mean() == pytest.approx(8, abs=0.2)


def test_errors_are_those_of_the_forecasts(noisy):
    forecasts, errors = noisy["forecasts"], noisy["errors"]
    rows = forecasts.filter(method="compute_only", horizon=9)
    row = errors.filter(method="compute_only", horizon=9, task="all").row(0, named=True)
    error = rows["error"].to_numpy()
    assert row["rmse"] == pytest.approx(np.sqrt((error**2).mean())) and row["mae"] == pytest.approx(abs(error).mean())
    by_task = [np.sqrt((rows.filter(task=task)["error"] ** 2).mean()) for task in TASKS]
    assert row["task_rmse"] == pytest.approx(np.mean(by_task)) and row["forecasts"] == 4
    assert row["coverage"] == pytest.approx(rows["covered"].mean())
    assert row["rmse_low"] <= row["rmse"] <= row["rmse_high"]
    of_tasks = errors.filter(pl.col("task") != "all", method="compute_only", horizon=9).sort("task")
    assert of_tasks["rmse"].to_list() == pytest.approx(by_task)
    assert of_tasks["difference"].null_count() == 2
    overall = errors.filter(task="all", horizon=9)
    best = overall.filter(kind="baseline").sort("rmse").row(0, named=True)
    assert set(overall["best_baseline"]) == {best["method"]}
    assert overall["difference"].to_list() == pytest.approx((overall["rmse"] - best["rmse"]).to_list())
    assert overall.filter(method=best["method"])["difference_high"].item() == 0


def test_errors_of_what_only_some_forecast_are_paired():
    """One method has a forecast of one run only: it is compared over that run."""
    base = {"horizon": 2.0, "covered": True, "task": "t", "low": 0.4, "high": 0.6, "truth": 0.5}
    rows = [
        *(
            {**base, "method": "last_value", "kind": "baseline", "run": name, "error": e}
            for name, e in (("r0", 0.3), ("r1", 0.1))
        ),
        {**base, "method": "m", "kind": "proxy", "run": "r1", "error": -0.2},
    ]
    table = errors_table(pl.DataFrame(rows), options())
    row = table.filter(method="m", task="all").row(0, named=True)
    assert row["rmse"] == pytest.approx(0.2) and row["difference"] == pytest.approx(0.2 - 0.1)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((0.1, 0.1))
    once = table.filter(method="last_value", task="all").row(0, named=True)
    assert (once["rmse_low"], once["rmse_high"]) == pytest.approx((0.1, 0.3))
    alone = errors_table(pl.DataFrame(rows[1:2]), options()).row(0, named=True)
    assert alone["rmse_low"] is alone["difference_low"] is None and alone["difference"] == 0
    best = {**base, "method": "other_runs", "kind": "baseline", "run": "r1", "error": 0.05}
    row = (
        errors_table(pl.DataFrame([*rows, best]), options()).filter(method="last_value", task="all").row(0, named=True)
    )
    assert row["best_baseline"] == "other_runs"
    assert [row[name] for name in ("difference", "difference_low", "difference_high")] == pytest.approx([0.05] * 3)


def test_paths_and_observations(noiseless):
    path = noiseless["paths"].filter(run="r1", task="logic", method="compute_only")
    assert len(path) == 60 and (path["tokens"].min(), path["tokens"].max()) == pytest.approx((20_000, 3_600_000))
    wanted = 0.9 - 0.2 * law(path["tokens"].to_numpy() / TOKENS_PER_STEP, 1.6, 0.45, 0.5)
    assert path["predicted"].to_numpy() == pytest.approx(wanted, abs=1e-5)
    assert set(noiseless["paths"]["method"]) == set(noiseless["forecasts"]["method"]) - {"other_runs"}
    observed = noiseless["observed"]
    assert set(observed["series"]) == {
        *("truth", "generic_cross_entropy", "expert_cross_entropy", "bits_per_byte", *PROXIES)
    }
    assert observed.filter(run="r0", task="logic", series="cross_entropy/uniform", step=CUT)["value"].item() < 3
    assert observed.filter(series="generic_cross_entropy")["task"].unique().sort().to_list() == TASKS


def mirrored(tables):
    """The errors in place of the accuracies."""
    return tables[0], tables[1].with_columns(value=1 - pl.col("value")), tables[2]


def test_an_error_is_forecast_as_the_accuracy_beside_it():
    """Of 500 problems: an error is known for a share by that, and has their noise."""
    checkpoints, targets, proxies = small(study(sd=0.004))
    tables = checkpoints, targets.with_columns(value=(pl.col("value") * 500).round() / 500), proxies
    rising = run(tables, rehearsal=0.5, proxies=ONE)
    falling = run(mirrored(tables), rehearsal=0.5, proxies=ONE, higher_is_better=False)
    key = ["run", "task", "method", "horizon"]
    both = rising["forecasts"].join(falling["forecasts"], on=key, suffix="_of_error")
    assert len(both) == len(rising["forecasts"]) == len(falling["forecasts"])
    for name in ("predicted", "without_first"):
        known = both.drop_nulls(name)
        assert known[name].to_list() == pytest.approx((1 - known[f"{name}_of_error"]).to_list(), abs=1e-4)
    for name, other in (("low", "high"), ("high", "low")):  # the noise to come is drawn, not mirrored
        assert both[name].mean() == pytest.approx(1 - both[f"{other}_of_error"].mean(), abs=0.003)
    assert chosen_of(rising) == chosen_of(falling)
    assert rising["rehearsal"]["rmse"].to_list() == pytest.approx(falling["rehearsal"]["rmse"].to_list(), abs=1e-4)


def test_a_loss_has_no_upper_end():
    """A loss of 0.9 that rises after a change of the data: above 1, where a share would be cut off; never below 0."""
    changes = {"tasks": ["logic"], "proxies": ONE, "horizons": (2, 18)}
    rising = with_values(small(study()), lambda step: 0.9 + 0.08 * np.log(max(step, 1) / CUT))  # the limit c -> 0
    found = run(rising, higher_is_better=False, **changes)["forecasts"].filter(method="compute_only", horizon=18)
    assert found["predicted"].to_list() == pytest.approx([0.9 + 0.08 * np.log(18)], abs=0.01)
    assert (found["high"] > 1).all() and set(found["caution"]) == {""}
    as_share = run(rising, **changes)["forecasts"].filter(method="compute_only", horizon=18)
    assert as_share["predicted"].to_list() == [1] and set(as_share["caution"]) == {"the curve goes above 1"}
    assert (found["high"] - found["low"]).max() < 0.01  # it is no share of 500 problems, so it has not their noise
    falling = with_values(small(study()), lambda step: 1.1 - 0.3 * np.log(max(step, 1) / 20))
    found = run(falling, higher_is_better=False, **changes)
    rows = found["forecasts"].filter(method="compute_only", horizon=18)
    assert rows["predicted"].to_list() == [0.0] and set(rows["caution"]) == {"the curve goes below 0"}


def test_mistakes_are_told():
    checkpoints, targets, proxies = study()
    with pytest.raises(InputError, match=r"targets: no accuracy of algebra, logic; found \['exact_match'\]"):
        run((checkpoints, targets.with_columns(metric=pl.lit("exact_match")), proxies))
    with pytest.raises(InputError, match="run r0, task music: no accuracy"):
        run((checkpoints, targets, proxies), tasks=["logic", "music"])
    with pytest.raises(InputError, match=r"run r0, task algebra: no expert_rank/entropy; found \['bits_per_byte', "):
        run((checkpoints, targets, proxies), proxies=("expert_rank/entropy",))
    with pytest.raises(
        InputError, match=r"no accuracy at the steps 1 to 10 .*nothing to fit; it has those of \[0, 20, "
    ):
        run((checkpoints, targets, proxies), fit_up_to_step=10)
    broken = targets.with_columns(value=pl.when(pl.col("checkpoint") == "r0-60").then(np.nan).otherwise("value"))
    with pytest.raises(InputError, match="run r0, task algebra, truth, step 60: found nan; it must be a finite number"):
        run((checkpoints, broken, proxies))
    twice = checkpoints.with_columns(step=pl.when(pl.col("step") == 40).then(20).otherwise("step"))
    with pytest.raises(InputError, match="step 20: two checkpoints of one step"):
        run((twice, targets, proxies))


def test_options_are_checked():
    for changes, message in (
        ({"proxies": ("top9_accuracy/uniform",)}, "'top9_accuracy/uniform' is no statistic/weighting; statistics are"),
        ({"proxies": ("margin",)}, "'margin' is no statistic/weighting"),
        ({"horizons": (2, 2)}, "horizons names something twice: 2.0, 2.0"),
        ({"horizons": (1,)}, "greater than 1"),
        ({"links": ()}, "at least 1 item"),
    ):
        with pytest.raises(ValidationError, match=message):
            options(**changes)
    assert options(proxies=("bits_per_byte",)).proxies == ("bits_per_byte",)
    ForecastingOptions(fit_up_to_step=2)  # the default proxies are known
