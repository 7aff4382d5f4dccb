"""The method that is chosen in advance."""

import numpy as np
import polars as pl
import pytest
from forecasting_study import CUT, ONE, STEPS, TASKS, chosen_of, options, run, small, study, with_values
from proxycast.experiments.forecasting.protocol import forecast
from proxycast.experiments.forecasting.rehearsal import about_choice


@pytest.fixture(scope="module")
def noisy():
    return run(study(runs=2, sd=0.004, shift=0.1), links=("linear", "logistic"), rehearsal=0.5)


def test_the_rehearsal_chooses(noisy):
    """Its errors are those of a study that ends at the cut, with the cut at half of it."""
    steps = [step for step in STEPS if step <= CUT]
    tables = study(runs=2, sd=0.004, shift=0.1)
    known = tables[0].filter(pl.col("step") <= CUT)
    early = forecast(
        *(known, *(table.join(known, on="checkpoint", how="semi") for table in tables[1:])),
        *("accuracy", TASKS),
        options(
            fit_up_to_step=100,
            horizons=tuple(step / 100 for step in steps if step > 100),
            horizon_tolerance=0.01,
            links=("linear", "logistic"),
        ),
    )
    wanted = early["forecasts"].group_by("method").agg(rmse=(pl.col("error") ** 2).mean().sqrt())
    both = noisy["rehearsal"].join(wanted, on="method", suffix="_wanted")
    assert len(both) == len(noisy["rehearsal"]) == 2 * 7 + 4
    assert both["rmse"].to_list() == pytest.approx(both["rmse_wanted"].to_list())
    assert (noisy["rehearsal"]["forecasts"] == 5 * 2 * 2).all() and noisy["rehearsal"]["rmse"].is_sorted()
    best = noisy["rehearsal"].filter(pl.col("kind") != "control")["method"][0]
    assert noisy["rehearsal"].filter("chosen")["method"].to_list() == [best]
    for name, columns in (("forecasts", ["predicted", "low", "error"]), ("paths", ["tokens", "predicted", "high"])):
        chosen, original = (noisy[name].filter(method=method).select(columns) for method in ("chosen", best))
        assert chosen.equals(original) and len(chosen)


@pytest.mark.parametrize("rehearsal, early", [(0.5, 130), (0.05, 130), (0.9, 170)])
def test_a_share_with_too_few_checkpoints_is_widened(caplog, rehearsal, early):
    """To the fourth checkpoint, which a curve needs: with three every method is a constant, and the last value wins."""
    tables = small(study(sd=0.001, steps=[30, 60, 90, 130, 170, 200, 400]))
    found = run(tables, rehearsal=rehearsal, proxies=ONE, horizons=(2,))
    wider = run(tables, rehearsal=early / CUT, proxies=ONE, horizons=(2,))
    columns = ["method", "rmse", "forecasts", "fitted", "chosen"]
    assert found["rehearsal"].select(columns).equals(wider["rehearsal"].select(columns))
    assert chosen_of(found) not in ([], ["last_value"])
    assert found["rehearsal"]["share"].unique().to_list() == [max(rehearsal, early / CUT)]
    text = (
        f"rehearsal: 2 of 2 run/task (r0/algebra ...) are fitted up to {early / CUT:.2f} of the cut, not {rehearsal:g}"
    )
    assert (text in caplog.text) == (early / CUT > rehearsal)
    assert (
        f"up to {early / CUT:.2g} of the cut" in about_choice(found["rehearsal"], options(rehearsal=rehearsal))
    ) == (early / CUT > rehearsal)


def test_every_run_and_task_is_rehearsed_as_far_as_it_needs(caplog):
    """A run with few early checkpoints, a task that was measured rarely, and one that cannot be rehearsed at all."""
    checkpoints, targets, proxies = small(study(runs=3, sd=0.001))
    few = {"r0": range(0, 4000), "r1": [60, 80, 160, 180, 200, 400], "r2": [40, 80, 120, 200, 400]}
    kept = checkpoints.filter(
        pl.struct("run", "step").map_elements(lambda row: row["step"] in few[row["run"]], return_dtype=pl.Boolean)
    )
    rare = pl.col("checkpoint").is_in(["r0-20", "r0-60", "r0-80", "r0-140", "r0-200", "r0-400"])
    targets = targets.filter((pl.col("task") != "logic") | ~pl.col("checkpoint").str.starts_with("r0") | rare)
    found = run((kept, targets, proxies), rehearsal=0.5, proxies=ONE, horizons=(2,))
    # r0/algebra up to 100, r0/logic and r1 up to 140 and 180; r2 has four checkpoints, and none is left to forecast.
    table = found["rehearsal"]
    assert table["pairs"].unique().to_list() == [4] and table["share"].unique().to_list() == [0.9]
    assert table["forecasts"].unique().to_list() == [5 + 1 + 1 + 1]
    assert table.filter(kind="proxy")["fitted"].to_list() == [4] and chosen_of(found) != ["last_value"]
    assert "no rehearsal of 2 of 6 run/task (r2/algebra ...): up to the cut they have fewer than 4" in caplog.text
    assert "rehearsal: 3 of 4 run/task (r0/logic ...) are fitted up to 0.90 of the cut, not 0.5" in caplog.text


def test_checkpoints_before_the_first_fitted_step_are_none_for_the_rehearsal():
    tables, changes = small(study(sd=0.001), "logic"), {"rehearsal": 0.5, "proxies": ONE, "horizons": (2,)}
    found = run(tables, ["logic"], fit_from_step=60, **changes)["rehearsal"]
    assert found["share"].unique().to_list() == [0.6] and found["forecasts"].unique().to_list() == [4]
    assert run(tables, ["logic"], fit_from_step=160, **changes)["rehearsal"].is_empty()


def test_nothing_is_chosen_where_nothing_can_be_rehearsed(caplog):
    tables = run(small(study(steps=[0, 50, 100, 150, 200, 400])), rehearsal=0.5, proxies=ONE, horizons=(2,))
    assert "no rehearsal of 2 of 2 run/task (r0/algebra ...)" in caplog.text
    assert "no method is chosen" in caplog.text
    assert tables["rehearsal"].is_empty() and "chosen" not in tables["forecasts"]["method"]
    assert "No method was chosen in advance" in about_choice(tables["rehearsal"], options(rehearsal=0.5))
    assert about_choice(tables["rehearsal"], options()) == ""


@pytest.mark.parametrize("early", [lambda step: 0.25, lambda step: 0.25 + 0.01 * (step // 20 % 2)])
def test_nothing_is_chosen_where_all_fall_back(caplog, early):
    """A truth that rises only after the first half of the cut."""
    tables = with_values(small(study()), lambda step: early(step) if step <= 100 else 0.25 + 0.002 * (step - 100))
    found = run(tables, rehearsal=0.5, proxies=ONE, horizons=(2,))
    assert len(found["rehearsal"]) == 5 and chosen_of(found) == [] and "chosen" not in found["forecasts"]["method"]
    assert found["rehearsal"].filter(pl.col("method").is_in([*ONE, "compute_only"]))["fitted"].to_list() == [0, 0]
    assert "no method is chosen: in the rehearsal all but the last value fell back to a constant" in caplog.text
    assert "every method fell back" in about_choice(found["rehearsal"], options(rehearsal=0.5))


def test_a_fallback_wins_nothing(caplog):
    """Where a method fell back, the last value's error counts; where all did, nothing is counted."""
    checkpoints, targets, proxies = study(runs=2, sd=0.001)
    steps = checkpoints.select("checkpoint", "run", "step")
    flat = with_values((checkpoints, targets, proxies), lambda step: 0.25)[1]  # learned after the cut, if ever
    targets = pl.concat([targets.filter(task="algebra"), flat.filter(task="logic")])
    of_r1 = (pl.col("statistic") == "margin") & pl.col("checkpoint").str.starts_with("r1")
    proxies = proxies.with_columns(value=pl.when(of_r1).then(0.5).otherwise("value"))
    proxies, changes = proxies.filter(statistic="margin"), {"proxies": ("margin/uniform",), "horizons": (2,)}
    found = run((checkpoints, targets, proxies), rehearsal=0.5, **changes)["rehearsal"]
    row = found.filter(method="margin/uniform").row(0, named=True)
    assert (row["fitted"], row["pairs"], row["forecasts"]) == (1, 2, 10)
    assert row["note"].startswith("fell back in 3 of 4 run/task (r0/logic ...): constant: ")
    assert "margin/uniform follows no power law" in row["note"] and row["note"] in caplog.text
    truth = targets.filter(task="algebra").join(steps, on="checkpoint")
    squares = {}
    for name in ("r0", "r1"):
        value = dict(truth.filter(run=name).select("step", "value").iter_rows())
        squares[name] = np.mean([(value[100] - value[step]) ** 2 for step in range(120, 201, 20)])
    last = found.filter(method="last_value")["rmse"].item()
    assert last == pytest.approx(np.sqrt((squares["r0"] + squares["r1"]) / 2))
    alone = (checkpoints.filter(run="r0"), targets, proxies)
    own = run(alone, ["algebra"], rehearsal=0.5, **changes)["rehearsal"].filter(method="margin/uniform")["rmse"].item()
    assert row["rmse"] == pytest.approx(np.sqrt((own**2 + squares["r1"]) / 2))
