"""What makes a forecast unreliable is said beside it."""

import numpy as np
import polars as pl
import pytest
from forecasting_study import CUT, ONE, STEPS, options, run, small, study, with_values
from proxycast.config.experiments.forecasting_options import FitOptions
from proxycast.experiments.forecasting.cautions import curve_reliability, is_noise
from proxycast.experiments.forecasting.forecast_errors import errors_table


def cautions(tables, **wanted):
    return tables["forecasts"].filter(**wanted)["caution"].to_list()


def with_warm_up(tables, until=60, extra=1.5):
    """The tables, with losses that fall from far above the power law until step `until`, and accuracy with them."""
    checkpoints, targets, proxies = tables
    step = pl.col("checkpoint").str.split("-").list.last().cast(pl.Float64)
    shift = pl.when(step <= until).then(extra * (1 - step / (until + 20))).otherwise(0.0)
    factor = {"cross_entropy": 1.0, "expert_cross_entropy": 1.0, "bits_per_byte": 1 / 3, "top1_accuracy": -0.3}
    per_loss = pl.col("statistic").replace_strict({**factor, "margin": 0.3, "rbridge": 0.0})
    return (
        checkpoints,
        targets.with_columns(pl.col("value") - 0.2 * shift),
        proxies.with_columns(pl.col("value") + per_loss * shift),
    )


@pytest.mark.parametrize("sd", [0.0, 0.002])
@pytest.mark.parametrize("loss", ["least_squares", "soft_l1"])
def test_forecasts_that_the_first_checkpoints_decide_are_told(caplog, sd, loss):
    changes = {"fit": FitOptions(loss=loss), "proxies": ONE, "horizons": (2, 18)}
    tables = with_warm_up(small(study(sd=sd), "logic"))
    rows = run(tables, ["logic"], **changes)["forecasts"].filter(method=ONE[0], horizon=18)
    assert rows["caution"].str.contains("it changes much without the first checkpoints").all()
    assert "it changes much without the first checkpoints: cross_entropy/uniform (1 of 1 run/task)" in caplog.text
    later = run(tables, ["logic"], fit_from_step=80, **changes)["forecasts"].filter(method=ONE[0], horizon=18)
    assert rows["without_first"].to_list() == pytest.approx(later["predicted"].to_list())
    assert (later["error"].abs() < rows["error"].abs()).all()


@pytest.mark.parametrize("sd", [0.0, 0.002, 0.01])
def test_clean_power_laws_do_not_depend_on_the_first_checkpoints(caplog, sd):
    run(study(sd=sd))
    assert "it changes much" not in caplog.text
    assert "too few checkpoints to try their forecasts" not in caplog.text
    run(small(study(steps=[50, 100, 150, 200, 400])), proxies=ONE, horizons=(2,))
    assert "2 of 2 run/task (r0/algebra ...) have too few checkpoints to try their forecasts" in caplog.text


def test_a_curve_that_goes_beyond_the_range_of_the_truth_is_told(caplog):
    changes = {"proxies": ONE, "horizons": (2, 18)}
    found = run(small(study(shift=0.45)), **changes)
    assert "the curve goes above 1" in cautions(found, method="compute_only", horizon=18, task="logic")[0]
    assert "above 1" in set(found["fits"].filter(method="compute_only")["beyond"])
    assert "the curve goes above 1: " in caplog.text and "the asymptote lies above 1: " in caplog.text
    row = found["fits"].filter(method="cross_entropy/uniform", task="logic").row(0, named=True)
    assert row["asymptote"] == pytest.approx(1.35 - 0.2 * 1.5, abs=1e-3)
    assert set(cautions(run(small(study()), **changes), horizon=2)) == {""}


def test_a_forecast_below_chance_is_told(caplog):
    """Of a score that falls towards 0.2; its noise of 500 problems is 0.02 (one standard error)."""
    falling = with_values(small(study()), lambda step: 0.2 + 0.1 * (max(step, 1) / CUT) ** -0.5)
    found = run(falling, ["logic"], chance={"logic": 0.27}, proxies=ONE)
    assert cautions(found, method="compute_only") == ["", "", "", "the curve goes below chance"]
    assert found["forecasts"].filter(method="compute_only", horizon=18)["predicted"].item() == pytest.approx(
        0.2 + 0.1 * 18**-0.5, abs=1e-4
    )
    assert "the asymptote lies below chance: " in caplog.text
    assert "chance" not in "".join(cautions(run(falling, ["logic"], chance={"algebra": 0.27}, proxies=ONE)))


def test_an_interval_that_knows_no_noise_is_none(caplog):
    checkpoints, targets, proxies = study(steps=[200, 400])
    unknown = checkpoints, targets.with_columns(n=pl.lit(None, pl.Int64)), proxies
    rows = run(small(unknown), ["logic"], proxies=ONE)["forecasts"].filter(method="last_value")
    assert rows["low"].null_count() == rows["covered"].null_count() == len(rows)
    assert set(rows["caution"]) == {
        "too few checkpoints or bootstrap samples for its interval; no interval: its checkpoints show no noise"
    }
    assert "no interval: its checkpoints show no noise: " in caplog.text


def test_an_interval_of_a_handful_of_samples_is_told(caplog):
    """Four checkpoints in blocks of two make 16 samples; a tail of 5 % needs 20. Five make 125."""
    few = "too few checkpoints or bootstrap samples for its interval"

    def of(*steps, **changes):
        tables = small(study(steps=[*steps, 200, 400], sd=0.002))
        return cautions(run(tables, ["logic"], proxies=ONE, horizons=(2,), **changes), method=ONE[0])

    assert of(60, 100, 150) == [few] and few in caplog.text
    assert of(30, 60, 100, 150) == [""]
    assert of(30, 60, 100, 150, confidence=0.99) == [few]


@pytest.mark.parametrize("tasks, runs, few", [(2, 1, 3), (3, 1, 10), (2, 2, 9), (4, 1, 0), (2, 3, 0), (1, 1, 0)])
def test_errors_of_a_handful_of_tasks_and_runs_are_told(tasks, runs, few):
    """A sample of n with replacement is one of C(2 n - 1, n); 20 are needed. One value has no interval at all."""
    base = {"method": "last_value", "kind": "baseline", "horizon": 2.0, "covered": True}
    base |= {"low": 0.4, "high": 0.6, "truth": 0.5}
    rows = [base | {"task": f"t{t}", "run": f"r{r}", "error": 0.1 * (t + r)} for t in range(tasks) for r in range(runs)]
    table = errors_table(pl.DataFrame(rows), options()).filter(task="all")
    assert table["caution"].item() == ("too few tasks and runs for an interval" if few else "")


def test_a_truth_that_is_noise_is_told(caplog):
    rng = np.random.default_rng(1)
    noise = dict(zip(STEPS, 0.25 + 0.02 * rng.standard_normal(len(STEPS))))
    checkpoints, targets, proxies = small(study())
    noisy = with_values((checkpoints, targets, proxies), noise.get)[1]
    found = run(
        (checkpoints, pl.concat([targets.filter(task="algebra"), noisy.filter(task="logic")]), proxies), proxies=ONE
    )
    assert all("the truth is noise" in text for text in cautions(found, task="logic"))
    assert not any("the truth is noise" in text for text in cautions(found, task="algebra"))
    assert "the truth is noise of 1 of 2 run/task (r0/logic ...)" in caplog.text
    of = dict(found["forecasts"].select("task", "reliability").unique().iter_rows())
    values = np.array([noise[step] for step in STEPS if step > 0])
    assert of["logic"] == pytest.approx(1 - (np.diff(values) ** 2).mean() / 2 / values.var(ddof=1))
    assert of["logic"] < 0.4 and of["algebra"] > 0.5
    errors = found["errors"].filter(method=ONE[0], horizon=2)
    told = dict(errors.select("task", "caution").iter_rows())
    assert "1 of 2 truths are noise or constant" in told["all"] and told["algebra"] == ""
    constant = run(with_values(small(study()), lambda step: 0.25), proxies=ONE, horizons=(2, 4))
    assert set(constant["forecasts"]["caution"]) == {"the truth does not vary"}
    assert "the truth does not vary of 2 of 2 run/task" in caplog.text


def test_reliability_is_the_share_of_the_variance_that_is_no_noise():
    """Of a slow wave plus white noise, whose variances are known; of noise alone it is 0."""
    rng = np.random.default_rng(0)
    wave = np.sqrt(2) * np.sin(np.arange(2000) / 60)
    for sd in (0.0, 0.5, 1.0, 2.0):
        found = curve_reliability(wave + sd * rng.standard_normal(2000))
        assert found == pytest.approx(1 / (1 + sd**2), abs=0.05)
    assert curve_reliability(rng.standard_normal(20_000)) == pytest.approx(0, abs=0.03)
    called_noise = [[is_noise(rng.standard_normal(n)) for _ in range(400)] for n in (6, 20)]
    assert np.mean(called_noise, axis=1) == pytest.approx(0.9, abs=0.06)
    t = np.geomspace(0.1, 18, 8)
    assert not any(is_noise(0.6 - 0.1 * t**-c) for c in (0.1, 0.5, 1.0, 2.0))
