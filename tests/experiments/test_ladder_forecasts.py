"""Forecasts by the two-step law of the other runs, and of models, against laws that are fitted here by hand."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from conftest import PUBLISHED
from ladder_study import CUT, HORIZONS, LAW, LINK, PROXIES, TASK, ladder, laws, options, run, study
from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.experiments.forecasting import ladder_forecasts
from proxycast.experiments.forecasting.forecasts import FORECASTS_SCHEMA
from proxycast.experiments.forecasting.ladder_forecasts import (
    FOLDS,
    TWO_STEP_SCHEMA,
    Forecast,
    _bounds,
    _median,
    models_to_forecast,
    parameters_of,
)
from proxycast.experiments.forecasting.protocol import forecast, series_to_forecast
from proxycast.experiments.laws.two_step import LadderRun, fit_two_step
from proxycast.options import InputError
from proxycast.truth.training_log import read_wide_curve

ONE = PROXIES[:1]
BIG = {"big": {"parameters": 1e10, "tokens": 1e12}}


@pytest.fixture(scope="module")
def tables():
    return study(sd=0.002)


@pytest.fixture(scope="module")
def found(tables):
    return run(tables, models=BIG)


def as_runs(tables, statistic=PROXIES[0]):
    """The runs of the tables with the statistic as their loss: whole, and up to the cut."""
    checkpoints, targets, proxies = tables
    loss = proxies.filter(statistic=statistic.split("/")[0]).select("checkpoint", loss="value")
    rows = checkpoints.join(targets, on="checkpoint").join(loss, on="checkpoint").sort("step")
    runs = {}
    for (name,), part in rows.group_by("run"):
        size = part["flops"][0] / 6 / part["tokens"][0]
        for some in (part, part.filter(pl.col("step") <= CUT)):
            values = some["loss"].to_numpy()
            values = 1 - values if statistic.startswith("top1") else values
            made = LadderRun(name, size, some["tokens"].to_numpy(), values, some["value"].to_numpy())
            runs.setdefault(name, []).append(made)
    return runs


def of_method(found, method="two_step"):
    return found["forecasts"].filter(method=method)


def test_a_run_is_forecast_by_the_law_of_the_others_and_of_what_was_observed_of_it(tables, found):
    """Fitted here with what is known of each run; the method without a statistic is the median of both."""
    pool = of_method(found)
    assert len(pool) == 6 * len(HORIZONS) and dict(pool.schema) == FORECASTS_SCHEMA
    for name in ("200M-20", "1300M-50"):
        each = []
        for statistic in PROXIES:
            runs = as_runs(tables, statistic)
            law = fit_two_step([early if name == run else whole for run, (whole, early) in runs.items()])
            own = of_method(found, f"two_step, {statistic}").filter(run=name)
            each.append([law(runs[name][0].parameters, tokens) for tokens in own["tokens"]])
            assert own["predicted"].to_list() == pytest.approx(each[-1], abs=1e-6) and set(own["kind"]) == {"proxy"}
        own = pool.filter(run=name)
        assert own["predicted"].to_list() == pytest.approx(np.median(each, axis=0), abs=1e-6)
        assert own["error"].to_list() == pytest.approx((own["predicted"] - own["truth"]).to_list())


def test_the_interval_is_that_of_cross_validation(tables, found):
    """CV+ by a loop: of the runs of a fold is known what is known of the run that is forecast."""
    runs, name, horizon = as_runs(tables), "500M-50", 2
    rows = of_method(found, f"two_step, {PROXIES[0]}").filter(horizon=horizon)
    at = {row["run"]: row for row in rows.iter_rows(named=True)}
    others = sorted(set(runs) - {name})
    below, above = [], []
    for fold in (others[place::FOLDS] for place in range(FOLDS)):
        law = fit_two_step([runs[other][other in [*fold, name]] for other in runs])
        for other in fold:
            missed = abs(at[other]["truth"] - law(runs[other][0].parameters, at[other]["tokens"]))
            here = law(runs[name][0].parameters, at[name]["tokens"])
            below, above = [*below, here - missed], [*above, here + missed]
    # (1 - 0.8) (5 + 1) = 1.2 and 0.8 (5 + 1) = 4.8: the first and the fifth of five.
    assert at[name]["low"] == pytest.approx(min(below), abs=1e-5)
    assert at[name]["high"] == pytest.approx(max(above), abs=1e-5)


def test_nothing_beyond_its_cut_is_used_of_a_run(tables, found):
    """Its later scores and statistics are turned upside down; those of the other runs are what the law is made of."""
    name = "1300M-50"
    later = tables[0].filter(pl.col("step") > CUT, run=name)["checkpoint"].to_list()
    turned = pl.when(pl.col("checkpoint").is_in(later)).then(pl.col("value") / 2).otherwise("value").alias("value")
    again = laws((tables[0], tables[1].with_columns(turned), tables[2].with_columns(turned)), proxies=ONE)
    # With one statistic the method has no second name.
    assert set(again["forecasts"]["method"]) & {"two_step", f"two_step, {PROXIES[0]}"} == {"two_step"}
    before = of_method(found, f"two_step, {PROXIES[0]}").filter(run=name)["predicted"]
    assert of_method(again).filter(run=name)["predicted"].to_list() == pytest.approx(before.to_list(), abs=1e-9)


def test_an_error_rate_is_forecast_as_its_accuracy_would_be_and_without_noise_the_truth_is_met():
    checkpoints, targets, proxies = study()
    # Only a share of problems that is a whole number of them is told from a loss where lower is better.
    wrong = targets.with_columns(n=10**9, value=1 - (pl.col("value") * 1e9).round() / 1e9)
    found = laws((checkpoints, wrong, proxies), higher_is_better=False, proxies=ONE, models=BIG)
    assert of_method(found)["truth"].min() > 0.5 and of_method(found)["error"].abs().max() < 0.01
    model = found["two_step"].filter(kind="model").row(0, named=True)
    assert model["predicted"] == pytest.approx(1 - LINK(LAW(1e10, 1e12)), abs=0.03)


def test_the_table_has_every_law(tables, found):
    """One of each run, one of all runs, and one of each model, with how far they go beyond their runs."""
    table = found["two_step"]
    assert dict(table.schema) == TWO_STEP_SCHEMA
    assert table.group_by("kind").len().sort("kind").rows() == [("ladder", 3), ("model", 3), ("run", 18)]
    runs = as_runs(tables)
    law = fit_two_step([whole for whole, _ in runs.values()])
    model = table.filter(kind="model", method=f"two_step, {PROXIES[0]}").row(0, named=True)
    assert model["predicted"] == pytest.approx(law(1e10, 1e12), abs=1e-6)
    assert (model["alpha"], model["midpoint"]) == pytest.approx((law.loss.alpha, law.sigmoid.midpoint), rel=1e-4)
    assert model["parameters_beyond"] == pytest.approx(1e10 / 1.3e9) and model["runs"] == 6 and model["sizes"] == 3
    assert model["low"] < model["predicted"] < model["high"] and model["truth"] is None
    median = table.filter(kind="model", method="two_step").row(0, named=True)
    assert median["note"] == "the median of 2 laws" and median["alpha"] is None
    longest = of_method(found).filter(run="1300M-50")
    assert longest["caution"].str.contains("beyond its runs").any()


def test_the_forecasts_are_in_every_table(found):
    summary = found["summary"].filter(run="500M-50", horizon=2)
    assert summary["method"].to_list() == ["pooled", "other_runs", "two_step"]
    errors = found["errors"].filter(task="all", method="two_step", horizon=2).row(0, named=True)
    assert errors["forecasts"] == 6 and errors["coverage"] is not None
    paths = found["paths"].filter(run="500M-50", method="two_step")
    assert paths["tokens"].is_sorted() and paths["low"].null_count() == len(paths)


def test_a_run_that_is_a_model_is_only_that(tables, found):
    """Its last checkpoint is the truth; no law and no other forecast knows of it."""
    extra = study(ladder(sizes=(1e10,), lengths=(100,)))
    both = tuple(pl.concat([of_runs, of_extra]) for of_runs, of_extra in zip(tables, extra, strict=True))
    again = laws(both, models={"10000M-100": {}}, proxies=ONE)
    model = again["two_step"].filter(kind="model").row(0, named=True)
    assert (model["parameters"], model["tokens"]) == (1e10, 1e12)
    assert model["truth"] == extra[1]["value"][-1] and model["error"] == model["predicted"] - model["truth"]
    one = found["two_step"].filter(kind="model", method=f"two_step, {PROXIES[0]}").row(0, named=True)
    assert model["predicted"] == pytest.approx(one["predicted"], abs=1e-9)
    assert "10000M-100" not in {*again["forecasts"]["run"], *again["paths"]["run"]}
    assert (
        "10000M-100" not in series_to_forecast(*both, "accuracy", [TASK], options(models={"10000M-100": {}}))[2]["run"]
    )


WRONG = {
    "no tokens": ({"big": {"parameters": 1e10}}, 9, "forecasting.models.big.tokens: missing; give it, or the name"),
    "no size": ({"big": {"tokens": 1e12}}, 9, "forecasting.models.big.parameters: missing; give it, or the name"),
    "tokens of a run": (
        {"200M-20": {"tokens": 1e12}},
        9,
        "forecasting.models.200M-20.tokens: found 1e+12, but 200M-20 is a run whose last checkpoint has 4e+09",
    ),
    "two sizes": (BIG, 4, "forecasting.models: big cannot be forecast from the runs: 6 runs of known N and D"),
}


@pytest.mark.parametrize("case", WRONG)
def test_models_that_cannot_be_forecast_are_told_before_any_job(case):
    models, runs, text = WRONG[case]
    tables = study(ladder()[:runs])
    with pytest.raises(InputError) as error:
        series_to_forecast(*tables, "accuracy", [TASK], options(models=models))
    assert str(error.value).startswith(text)


def logged(found):
    return [record.getMessage() for record in found.records if record.getMessage().startswith("no two_step")]


def test_runs_of_too_few_sizes_have_no_law_and_one_line_says_so(caplog):
    tables = study(ladder(lengths=(20, 50, 200, 300))[:8])
    found = laws(tables, proxies=ONE)
    assert of_method(found).is_empty() and found["two_step"].is_empty()
    assert logged(caplog) == ["no two_step: 3 sizes are needed, found 2: N = 2e+08, 5e+08"]


def test_what_is_no_loss_has_no_law(caplog):
    """A statistic that is 0, and a truth that is no share."""
    tables = study()
    zero = tables[2].with_columns(
        value=pl.when(pl.col("statistic") == "cross_entropy").then(pl.col("value") * 0).otherwise("value")
    )
    caplog.set_level(logging.WARNING)
    assert of_method(laws((tables[0], tables[1], zero), proxies=ONE)).is_empty()
    assert logged(caplog) == [
        "no two_step of algebra on cross_entropy/uniform: it has values of 0, and the law is of log L"
    ]
    caplog.clear()
    found = laws((tables[0], tables[1].with_columns(pl.col("value") * 10), tables[2]), proxies=ONE)
    assert of_method(found).is_empty() and "the truth is no share of problems" in logged(caplog)[0]


def test_sizes_come_from_the_compute():
    checkpoints = study(ladder(sizes=(190_354_176, 1_279_395_840), lengths=(20,)))[0]
    assert sorted(parameters_of(checkpoints).values()) == [190_354_176, 1_279_395_840]
    assert parameters_of(checkpoints.drop("flops")) == {}
    assert parameters_of(checkpoints.with_columns(flops=None)) == {}


@pytest.mark.published
@pytest.mark.slow
def test_the_published_ladder_forecasts_its_runs_and_olmo_2_7b():
    """config/published_ladder.yaml with its one task MMLU; the model by OLMo-ladder's own code, rerun by others."""
    study = yaml.safe_load((Path(__file__).parents[2] / "config/published_ladder.yaml").read_text())["forecasting"]
    task = {"mmlu": study["curve"]["tasks"]["mmlu"]}
    study["curve"] |= {"path": PUBLISHED / "ladder_two_step_input.csv", "tasks": task}
    choices = ForecastingOptions(**study | {"rehearsal": None, "bootstrap_replicates": 100})
    found = forecast(*read_wide_curve(choices.curve, "accuracy").values(), "accuracy", ["mmlu"], choices)
    known = pl.read_csv(PUBLISHED / "ladder_two_step.csv").filter(task="mmlu_avg_test")
    model = found["two_step"].filter(kind="model").row(0, named=True)
    assert model["predicted"] == pytest.approx(known["two_step_7b_rerun"][0], abs=1e-6)
    assert model["truth"] == pytest.approx(known["actual_7b_4t"][0], abs=1e-8)
    rmse = dict(found["errors"].filter(task="all").select("method", "rmse").rows())
    assert rmse["two_step"] < rmse["other_runs"] < rmse["compute_only"] < rmse["last_value"]


def test_errors_of_a_median_over_statistics_are_those_of_the_median_forecast(tables, monkeypatch):
    """Signed, for models as for runs: two statistics that miss to either side cancel each other."""
    errors = np.random.default_rng(0).normal(0, 0.03, (3, 16))
    made = [
        Forecast(np.array([0.7]), {f"run{n}": (np.array([0.7]), np.array([error])) for n, error in enumerate(row)}, ())
        for row in errors
    ]
    low, high = _bounds(_median(made), 0.9)
    expected = np.sort(np.abs(np.median(errors, axis=0)))[-1]  # of 16: the place 0.9 * 17 rounded up
    assert high - 0.7 == pytest.approx(expected) and 0.7 - low == pytest.approx(expected)

    seen = []
    monkeypatch.setattr(ladder_forecasts, "_median", lambda made: seen.append(made) or _median(made))
    laws(tables, models=BIG)
    of_models = np.array([error for _, error in seen[-1][0].of_others.values()])
    assert len(seen[-1]) > 1 and (of_models > 0).any() and (of_models < 0).any()


def test_the_truth_of_a_model_is_that_of_its_last_step():
    checkpoints = pl.DataFrame({"checkpoint": ["m1", "m2"], "run": ["m", "m"], "step": [1, 2], "tokens": [100, 1000]})
    truths = pl.DataFrame({"checkpoint": ["m1", "m2", "m1"], "task": ["a", "a", "b"], "value": [0.1, 0.9, 0.2]})
    models = models_to_forecast(
        checkpoints.with_columns(flops=pl.col("tokens") * 6.0),
        truths.with_columns(metric=pl.lit("accuracy")),
        "accuracy",
        ForecastingOptions(fit_up_to_step=1000, models={"m": {}}),
    )
    assert [model.truth for model in models] == [{"a": 0.9}] and models[0].tokens == 1000
