"""Methods of forecasting against known curves: what they predict, their intervals, and where they fall back."""

import numpy as np
import polars as pl
import pytest
from forecasting_study import CUT, PROXIES, TOKENS_PER_STEP, law, options, run, study, with_values
from proxycast.config.experiments.forecasting_options import FitOptions
from proxycast.experiments.forecasting.fitted_series import _shift, fit_series
from proxycast.experiments.forecasting.methods import Forecaster, _noise, direct
from proxycast.experiments.forecasting.observed import Series, TaskRun
from proxycast.experiments.laws.curves import student
from proxycast.options import InputError


@pytest.fixture(scope="module")
def noiseless():
    return run(study(runs=2))


@pytest.fixture(scope="module")
def noisy():
    return run(study(runs=2, sd=0.004, shift=0.1), links=("linear", "logistic"), rehearsal=0.5)


def test_a_statistic_stays_in_its_range():
    checkpoints, targets, proxies = study()
    falling = 1.0 - 0.4 * np.log(checkpoints["step"].to_numpy().clip(1) / CUT)  # below 0 soon after the cut
    of = dict(zip(checkpoints["checkpoint"], falling))
    is_loss = (pl.col("statistic") == "cross_entropy") & (pl.col("tail") == "tokens")
    value = pl.when(is_loss).then(pl.col("checkpoint").replace_strict(of)).otherwise("value")
    targets = targets.with_columns(value=0.9 - 0.2 * pl.col("checkpoint").replace_strict(of))
    tables = checkpoints, targets, proxies.with_columns(value=value)
    free, kept = (run(tables, clip=clip)["forecasts"].filter(method="cross_entropy/uniform") for clip in (False, True))
    assert free.filter(horizon=18)["predicted"].min() > 0.91  # its cross-entropy would be negative
    assert kept.filter(horizon=18)["predicted"].to_list() == pytest.approx([0.9, 0.9], abs=1e-3)
    assert kept.filter(horizon=2)["predicted"].to_list() == pytest.approx(free.filter(horizon=2)["predicted"].to_list())


def test_a_share_stays_between_0_and_1_and_nothing_else_does():
    rising = study(shift=0.45)  # a line that comes to more than all problems
    free, kept = (run(rising, clip=clip)["forecasts"].filter(method="compute_only") for clip in (False, True))
    assert free["predicted"].max() > 1 and kept["predicted"].max() == kept["high"].max() == 1
    same = free["high"] <= 1
    assert same.any() and kept.filter(same)["predicted"].to_list() == free.filter(same)["predicted"].to_list()
    checkpoints, targets, proxies = rising
    scaled = checkpoints, targets.with_columns(pl.col("value") * 3, n=pl.lit(None, pl.Int64)), proxies
    assert run(scaled)["forecasts"].filter(method="compute_only")["predicted"].max() > 1


def test_a_power_law_and_a_line_are_forecast_exactly(noiseless):
    rows = noiseless["forecasts"]
    for method in ("cross_entropy/uniform", "top1_accuracy/uniform", "bits_per_byte", "compute_only", "pooled"):
        of_method = rows.filter(method=method)
        assert of_method["horizon"].unique().sort().to_list() == [2, 4, 9, 18]
        assert len(of_method) == 2 * 2 * 4
        assert of_method["error"].abs().max() < 1e-5
        assert of_method["tokens"].to_list() == (of_method["horizon"] * CUT * TOKENS_PER_STEP).to_list()
        assert of_method["step"].to_list() == (of_method["horizon"] * CUT).to_list()
    assert set(rows["method"]) == {
        *(*PROXIES, "pooled", "expert_cross_entropy", "bits_per_byte", "generic_cross_entropy"),
        *("compute_only", "last_value", "other_runs", "constant", "logistic"),
    }
    kinds = dict(rows.select("method", "kind").unique().iter_rows())
    assert {name for name, kind in kinds.items() if kind == "proxy"} == {*PROXIES, "pooled"}
    assert {name for name, kind in kinds.items() if kind == "control"} == {"constant", "logistic"}


def test_fits_tell_the_parameters(noiseless):
    fits = noiseless["fits"].filter(run="r1", task="logic")
    row = fits.filter(method="cross_entropy/uniform").row(0, named=True)
    assert (row["curve"], row["link"], row["points"], row["tokens_at_cut"]) == ("power", "linear", 10, 200_000.0)
    found = [row[name] for name in ("a", "b", "c", "link_slope", "link_intercept")]
    assert found == pytest.approx([1.6, -0.45, 0.5, -0.2, 0.9], rel=1e-3)
    assert row["m"] is None and row["note"] == ""
    row = fits.filter(method="compute_only").row(0, named=True)
    assert [row[name] for name in ("a", "b", "c")] == pytest.approx([0.9 - 0.32, 0.09, 0.5], rel=1e-3)
    assert row["link"] is None
    assert fits.filter(method="logistic")["m"].item() > 0
    assert "last_value" not in fits["method"]


def test_the_last_value_and_the_constant(noiseless):
    last = noiseless["forecasts"].filter(method="last_value", run="r0", task="algebra")
    assert last["predicted"].to_list() == pytest.approx([0.9 - 0.2 * 1.9] * 4)
    early = [0.9 - 0.2 * float(law(step, 1.5, 0.4, 0.5)) for step in range(20, 201, 20)]
    constant = noiseless["forecasts"].filter(method="constant", run="r0")
    assert constant.filter(task="algebra")["predicted"].to_list() == pytest.approx([np.mean(early)] * 4)


def test_finished_runs_are_a_baseline():
    """The regression of the others' value at a horizon on theirs at the cut, by numpy; the run itself stays out."""
    tables = study(runs=5, sd=0.01)
    truth = tables[0].join(tables[1], on="checkpoint").filter(task="logic")
    at = {step: [truth.filter(step=step, run=f"r{i}")["value"].item() for i in range(5)] for step in (CUT, 18 * CUT)}
    found = run(tables, ["logic"])["forecasts"].filter(method="other_runs", horizon=18, task="logic").sort("run")
    for left in range(5):
        x, y = np.delete(at[CUT], left), np.delete(at[18 * CUT], left)
        assert found["predicted"][left] == pytest.approx(np.polyval(np.polyfit(x, y, 1), at[CUT][left]))
    assert (found["low"] < found["predicted"]).all() and (found["predicted"] < found["high"]).all()
    assert (found["kind"] == "baseline").all() and (found["fallback"] == "").all()


def test_few_finished_runs_give_their_mean_change():
    tables = study(runs=3, sd=0.01)
    truth = tables[0].join(tables[1], on="checkpoint").filter(task="logic")
    first, second, third = (
        truth.filter(run=name).filter(pl.col("step").is_in([CUT, 2 * CUT])).sort("step")["value"].to_list()
        for name in ("r0", "r1", "r2")
    )
    found = run(tables, ["logic"])["forecasts"].filter(method="other_runs", horizon=2, task="logic", run="r0")
    change = (second[1] - second[0] + third[1] - third[0]) / 2
    assert found["predicted"].item() == pytest.approx(first[0] + change)
    assert found["fallback"].item() == "mean change: 2 other runs for 2 parameters"
    assert "other_runs" not in run(study(), ["logic"])["forecasts"]["method"]
    two = run(study(runs=2), ["logic"])["forecasts"].filter(method="other_runs")
    assert two["low"].null_count() == two["high"].null_count() == two["covered"].null_count() == len(two) > 0


def test_pooled_is_the_median(noisy):
    rows = noisy["forecasts"]
    for suffix in ("", ", logistic link"):
        members = rows.filter(pl.col("method").is_in([name + suffix for name in PROXIES]))
        wanted = members.group_by("run", "task", "horizon").agg(pl.col("predicted").median().alias("wanted"))
        both = rows.filter(method="pooled" + suffix).join(wanted, on=["run", "task", "horizon"])
        assert both["predicted"].to_list() == pytest.approx(both["wanted"].to_list(), abs=1e-12)
        assert len(both) == 2 * 2 * 4


def test_a_logistic_link_stays_between_0_and_1():
    checkpoints, targets, proxies = study()
    steep = targets.with_columns(value=1 / (1 + (-8 * (pl.col("value") - 0.55)).exp()))
    tables = (checkpoints, steep, proxies)
    rows = run(tables, links=("logistic",))["forecasts"]
    exact = rows.filter(method="cross_entropy/uniform, logistic link")
    assert exact["error"].abs().max() < 1e-4
    assert not rows["method"].is_in(["pooled", "cross_entropy/uniform"]).any()
    fit = run(tables, links=("logistic",))["fits"].filter(method="bits_per_byte, logistic link", task="logic")
    assert fit["link_slope"].item() == pytest.approx(8 * -0.2 * 3, rel=1e-3)
    with pytest.raises(InputError, match="forecasting.links: logistic needs a truth between 0 and 1, which accuracy"):
        run((checkpoints, targets.with_columns(pl.col("value") + 1), proxies), links=("logistic",))


def test_smoothing_averages_neighbours():
    tables = study(sd=0.01)
    truth = tables[0].join(tables[1], on="checkpoint").filter(pl.col("step").is_between(20, CUT), task="logic")
    value = truth["value"].to_numpy()
    smooth = [value[max(0, i - 2) : i + 3].mean() for i in range(len(value))]
    found = run(tables, ["logic"], smoothing=2)
    constant = found["forecasts"].filter(method="constant", task="logic", horizon=2)
    assert constant["predicted"].item() == pytest.approx(np.mean(smooth))
    assert np.mean(smooth) != pytest.approx(value.mean(), abs=1e-5)
    observed = found["observed"].filter(series="truth", task="logic").sort("step")
    assert (
        observed["value"].to_list()
        == tables[0].join(tables[1], on="checkpoint").filter(task="logic")["value"].to_list()
    )


@pytest.mark.parametrize("loss", ["least_squares", "soft_l1"])
def test_intervals_of_parameters_cover_at_their_nominal_rate(loss):
    t, draws, replicates = np.linspace(1 / 20, 1, 20), 200, 100
    truth, far = np.array([0.7, 0.1, 0.5, 0.7 - 0.1 * 18**-0.5]), np.array([18.0])
    covered = np.zeros(4)
    for draw in range(draws):
        y = 0.7 - 0.1 * t**-0.5 + 0.004 * np.random.default_rng([1, draw]).standard_normal(20)
        choices = options(bootstrap_replicates=replicates, seed=draw, fit=FitOptions(loss=loss))
        found = fit_series("power", Series(t, y, np.zeros(20)), np.zeros((replicates, 20)), choices).replicates
        samples = np.stack([found.a, found.b, found.c, found(far)[:, 0]])
        low, high = np.quantile(samples, [0.05, 0.95], axis=1)
        covered += (low <= truth) & (truth <= high)
    assert ((covered / draws >= 0.85) & (covered / draws <= 0.95)).all(), covered / draws


def test_intervals_of_forecasts_cover_what_is_measured():
    """Noise of checkpoints alone, where every curve is the right one."""
    found = [run(study(runs=3, sd=0.004, n=10**6, seed=seed)) for seed in range(2)]
    rows = pl.concat([tables["forecasts"] for tables in found])
    rows = rows.filter(pl.col("method").is_in(["compute_only", "pooled", "expert_cross_entropy"]))
    assert len(rows) == 2 * 3 * 3 * 2 * 4
    assert 0.8 <= rows["covered"].mean() <= 0.97
    inside = (rows["low"] <= rows["truth"]) & (rows["truth"] <= rows["high"])
    assert inside.to_list() == rows["covered"].to_list()
    wide = run(study(sd=0.004), ["logic"], confidence=0.99)["forecasts"]
    narrow = run(study(sd=0.004), ["logic"], confidence=0.5)["forecasts"]
    assert ((wide["high"] - wide["low"]) > (narrow["high"] - narrow["low"])).mean() > 0.95


def test_few_problems_make_wide_intervals():
    """Without residuals the interval is the binomial one; with many problems the residuals rule."""
    row = run(study(n=50), ["logic"], bootstrap_replicates=1000)["forecasts"].filter(
        method="compute_only", task="logic", horizon=2
    )
    p = row["truth"].item()
    half = 1.645 * np.sqrt(p * (1 - p) / 50)
    assert (row["high"] - row["low"]).item() == pytest.approx(2 * half, rel=0.1)
    unknown = study()
    unknown = (unknown[0], unknown[1].with_columns(n=pl.lit(None, pl.Int64)), unknown[2])
    exact = run(unknown)["forecasts"].filter(method="compute_only")
    assert (exact["high"] - exact["low"]).max() < 1e-4


def test_noise_to_come_is_that_of_the_residuals_and_of_the_problems():
    rng = np.random.default_rng(0)
    value = 0.4 + 0.02 * rng.standard_normal(9)
    known = Series(np.linspace(0.1, 1, 9), value, np.zeros(9))
    choices = options(bootstrap_replicates=20_000, confidence=0.8)
    data = TaskRun("r", "t", 1e6, 10, known, {}, pl.DataFrame(), 400.0)
    made = direct("constant", data, "constant", choices)
    assert made.residuals.std() == pytest.approx(value.std(ddof=1) * student(9, 1, 0.8))
    for spread, sd in ((0.01, np.sqrt(0.25 / 400)), (0.04, 0.04)):
        residuals = np.tile([-spread, spread], 4)
        noise = _noise(Forecaster(made.point, made.replicates, residuals), data, np.array([0.5, 0.5, 0.5]), choices)
        assert noise.std(0) == pytest.approx([sd] * 3, rel=0.03)
        assert abs(noise.mean()) < 0.002


def test_solutions_are_drawn_together():
    """A solution that is harder for all checkpoints moves them all alike; so does a standard error."""
    rng = np.random.default_rng(0)
    of_checkpoint, of_solution = rng.standard_normal((6, 1)), rng.standard_normal(30)
    matrix = of_checkpoint + of_solution
    zeros = np.zeros(6)
    choices = options(bootstrap_replicates=4000)
    shift = _shift("x", Series(zeros, matrix.mean(1), zeros, matrix), choices)
    assert shift.shape == (4000, 6)
    assert np.ptp(shift, axis=1).max() < 1e-12
    assert shift[:, 0].std() == pytest.approx(of_solution.std() / np.sqrt(30), rel=0.05)
    assert abs(shift.mean()) < 0.01
    errors = np.linspace(0.1, 0.6, 6)
    shift = _shift("x", Series(zeros, zeros, errors), choices)
    assert shift.std(0) == pytest.approx(errors, rel=0.05)
    assert np.abs(np.corrcoef(shift.T)).min() == pytest.approx(1)


def by_solution(proxies, noise):
    """Values of 8 solutions of the cross-entropy: its mean plus `noise` (rows, 8)."""
    columns = ["checkpoint", "task", "tail", "statistic", "weighting", "value"]
    means = proxies.filter(statistic="cross_entropy", tail="tokens").select(columns)
    noise = noise - noise.mean(1, keepdims=True)
    rows = [
        (*row, f"s{i}", value + noise[at, i]) for at, (*row, value) in enumerate(means.iter_rows()) for i in range(8)
    ]
    return pl.DataFrame(rows, schema=[*columns[:-1], "solution", "value"], orient="row")


def test_values_of_solutions_widen_intervals(caplog):
    """Solutions that disagree about the checkpoints do; those that are merely harder than others change nothing."""
    checkpoints, targets, proxies = study(n=10**9)
    tables = checkpoints, targets, proxies.with_columns(standard_error=pl.lit(0.0))
    rng = np.random.default_rng(0)

    def width(solution_proxies=None):
        rows = run(tables, solution_proxies=solution_proxies)["forecasts"]
        rows = rows.filter(method="cross_entropy/uniform", horizon=18)
        return (rows["high"] - rows["low"]).to_numpy()

    plain, disagreeing = width(), by_solution(proxies, 0.3 * rng.standard_normal((30, 8)))
    assert (plain < 1e-3).all()
    assert (width(disagreeing) > 0.02).all()
    assert (width(by_solution(proxies, np.tile(0.3 * rng.standard_normal(8), (30, 1)))) < 1e-3).all()
    assert "standard errors are used" not in caplog.text
    assert width(disagreeing.filter(pl.col("checkpoint") != "r0-100")) == pytest.approx(plain)
    assert "not every checkpoint has all solutions; standard errors are used" in caplog.text


def falls_back(tables, method, **changes):
    found = run(tables, ["logic"], horizons=(2,), **changes)
    rows = found["forecasts"].filter(method=method, task="logic", run="r0")
    note = found["fits"].filter(method=method, task="logic", run="r0")
    assert not found["forecasts"]["predicted"].is_nan().any() and not found["forecasts"]["low"].is_nan().any()
    assert rows["predicted"].n_unique() == 1 or not rows["fallback"][0].startswith("constant")
    assert note.is_empty() or (note["curve"].item(), note["note"].item()) == ("constant", rows["fallback"][0])
    return rows["fallback"][0]


def test_too_few_checkpoints_fall_back_to_a_constant(caplog):
    tables = study(steps=[0, 100, 150, 200, 400])
    assert falls_back(tables, "compute_only") == "constant: 3 checkpoints for 3 parameters"
    assert falls_back(tables, "logistic") == "constant: 3 checkpoints for 4 parameters"
    wanted = "constant: 3 checkpoints for 3 parameters of the curve of margin/uniform"
    assert falls_back(tables, "margin/uniform") == wanted
    assert falls_back(tables, "pooled") == "constant: so it is for every proxy"
    assert f"margin/uniform of 1 run/task (r0/logic ...): {wanted}" in caplog.text
    one = run(study(steps=[200, 400]), ["logic"])["forecasts"]
    assert one["predicted"].is_finite().all() and one["low"].is_finite().all()


def test_too_few_common_checkpoints_fall_back():
    checkpoints, targets, proxies = study()
    few = targets.filter(pl.col("checkpoint").is_in(["r0-40", "r0-200", "r0-400"]))
    assert falls_back((checkpoints, few, proxies), "margin/uniform").endswith(
        "2 checkpoints for 2 parameters of the link"
    )


def test_curves_without_a_trend_fall_back():
    flat = lambda step: 0.25  # noqa: E731
    zigzag = lambda step: 0.25 + 0.01 * (step // 20 % 2)  # noqa: E731
    for values in (flat, zigzag):
        tables = with_values(study(), values)
        assert falls_back(tables, "compute_only") == "constant: the truth follows no power curve"
        wanted = "constant: the truth does not follow margin/uniform by a linear link"
        assert falls_back(tables, "margin/uniform") == wanted
        tables = with_values(study(), values, "margin")
        assert falls_back(tables, "margin/uniform") == "constant: margin/uniform follows no power law of compute"
        pooled = falls_back(tables, "pooled")
        assert pooled == "without margin/uniform (constant: margin/uniform follows no power law of compute)"
    keep = FitOptions(without_trend="fit")
    assert set(run(with_values(study(), zigzag), fit=keep)["forecasts"]["fallback"]) == {""}
    assert falls_back(with_values(study(), flat), "compute_only", fit=keep).startswith("constant")


def test_an_exponent_at_its_bound_is_noted():
    tables = with_values(study(), lambda step: 0.3 + 0.05 * np.log(max(step, 1) / 100))
    fits = run(tables)["fits"].filter(method="compute_only")
    assert set(fits["note"]) == {"the exponent c is at its bound"} and fits["c"].to_list() == pytest.approx([0.01] * 2)
