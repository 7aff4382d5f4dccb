"""Training curves that others logged: one table with a row for each step, and published ones."""

from pathlib import Path

import polars as pl
import pytest
from conftest import PUBLISHED
from forecasting_study import chosen_of, options
from page_studies import check_planned
from proxycast.config.experiments.forecasting_options import FitOptions, ForecastingOptions, WideCurve
from proxycast.experiments.forecasting.protocol import forecast
from proxycast.options import InputError
from proxycast.study.loader import load_plan
from proxycast.study.yaml_files import read_yaml
from proxycast.truth.training_log import read_wide_curve
from pydantic import ValidationError


def wide(tmp_path, text, **changes):
    (tmp_path / "log.csv").write_text(text)
    task = {"truth": "acc", "problems": 100, "statistics": {"loss": "ce"}}
    values = {"path": tmp_path / "log.csv", "run": "r", "step": "s", "tokens_per_step": 8, "tasks": {"t": task}}
    return WideCurve(**(values | changes))


GOOD = "s,acc,ce,c4\n20,0.3,2.5,3\n10,0.2,3.5,4\n30,,2.0,2\n"


def test_a_wide_table_becomes_long_ones(tmp_path):
    tables = read_wide_curve(wide(tmp_path, GOOD, shared={"generic_cross_entropy": "c4"}), "accuracy")
    assert tables["checkpoints"].rows() == [
        ("r-step10", "r", 10, 80, None),
        ("r-step20", "r", 20, 160, None),
        ("r-step30", "r", 30, 240, None),
    ]
    targets = tables["targets"].select("checkpoint", "task", "metric", "value", "n").rows()
    assert targets == [("r-step10", "t", "accuracy", 0.2, 100), ("r-step20", "t", "accuracy", 0.3, 100)]
    values = tables["proxies"].select("checkpoint", "task", "statistic", "weighting", "value").rows()
    assert ("r-step30", "t", "loss", "none", 2.0) in values and len(values) == 6
    assert ("r-step30", "t", "generic_cross_entropy", "none", 2.0) in values


def test_a_wide_table_of_what_is_no_share(tmp_path):
    assert 3.5 in read_wide_curve(wide(tmp_path, GOOD.replace("0.3", "3.5")), "score")["targets"]["value"]
    curve = wide(tmp_path, GOOD.replace("0.3", "30"))
    assert 30.0 in read_wide_curve(curve, "perplexity")["targets"]["value"]
    with pytest.raises(
        InputError, match="found 30.0, but at most 0.* elsewhere in the truths of score: percent beside"
    ):
        read_wide_curve(curve, "score")


@pytest.mark.parametrize(
    "text, words",
    [
        (GOOD.replace("acc,", "acc,acc,", 1), "acc: stands there 2 times|the same number of fields"),
        (GOOD.replace(",", ";"), "no column|cannot be read"),
        (GOOD + "1,2,3,4,5,6,7,8,9\n", "cannot be read .*the same number of fields in each row"),
    ],
)
def test_a_wide_table_that_is_no_csv_is_one_line(tmp_path, text, words):
    with pytest.raises(InputError, match=words) as caught:
        read_wide_curve(wide(tmp_path, text), "score")
    assert "\n" not in str(caught.value)


def test_mistakes_in_a_wide_table(tmp_path):
    for text, message in (
        (
            GOOD.replace("acc", "accuracy"),
            "forecasting.curve.tasks.t.truth: no column 'acc'; found 4 columns, among them 'acc",
        ),
        (GOOD.replace("2.5", "x"), "row 2, column ce: found 'x'; it must be a number"),
        (GOOD.replace("0.3", "inf"), "row 2, column acc: found 'inf'; it must be a number"),
        (GOOD.replace("0.3", "30"), r"step 20, column acc \(task t\): found 30.0; accuracy is a share .* 0 to 1"),
        (
            GOOD.replace("20,", "10,"),
            "row 3, column acc: found 0.2, but 0.3 in row 2, both of run r at step 10; give one",
        ),
        (GOOD.replace("20,", "1.5,"), "row 2, column s: found '1.5'; it must be a step, a whole number"),
        (GOOD.replace("30,,", ",,"), "row 4, column s: found None; it must be a step"),
        (GOOD.replace("30,,", "NaN,,"), "row 4, column s: found 'NaN'; it must be a step"),
        ("s,acc,ce\n10,,2\n20,NaN,1\n", "tasks.t.truth: column 'acc' has no number in any row of the study's runs"),
    ):
        with pytest.raises(InputError, match=message):
            read_wide_curve(wide(tmp_path, text), "accuracy")
    with pytest.raises(InputError, match="none.csv: no such file; forecasting.curve names"):
        read_wide_curve(wide(tmp_path, GOOD, path=tmp_path / "none.csv"), "accuracy")
    with pytest.raises(ValidationError, match="tasks.t.statistics.loss is also in `shared`"):
        wide(tmp_path, GOOD, shared={"loss": "c4"})
    curve = wide(tmp_path, GOOD)
    assert options(curve=curve, proxies=("loss",)).proxies == ("loss",)
    assert ForecastingOptions(curve=curve, fit_up_to_step=30).proxies == ("loss",)
    with pytest.raises(ValidationError, match=r"proxies: 'margin/uniform' is no statistic of `curve`; known are"):
        options(curve=curve, proxies=("margin/uniform",))


# OLMES tasks whose accuracy is `len_norm` and which are one column: MMLU is four, BoolQ's is `acc`. The test split
# where it is there, else the validation split. Problems: every published accuracy is a whole number of them.
OLMES = {
    **{"hellaswag": ("val", 10042), "arc_easy": ("test", 2376), "arc_challenge": ("test", 1172), "csqa": ("val", 1221)},
    **{"openbookqa": ("test", 500), "piqa": ("val", 1838), "socialiqa": ("val", 1954), "winogrande": ("val", 1267)},
}


@pytest.fixture(scope="module")
def olmo2_curve():
    """Options by their changes, of OLMo-2 7B's own curve."""
    tasks = {
        name: {
            "truth": f"eval/downstream/{name}_{split}_rc_5shot_len_norm",
            "problems": problems,
            "statistics": {
                "bits_per_byte": f"eval/downstream_bpb/{name}_{split}_rc_5shot_bpb",
                "correct_probability": f"eval/downstream_soft/{name}_{split}_rc_5shot_soft",
                "log_correct_probability": f"eval/downstream_soft_log/{name}_{split}_rc_5shot_soft_log",
            },
        }
        for name, (split, problems) in OLMES.items()
    }
    losses = {"generic_cross_entropy": "c4_en", "pile_cross_entropy": "pile"}
    common = dict(
        curve=WideCurve(
            path=PUBLISHED / "olmo2_7b_training_curve.csv",
            run="OLMo-2-7B",
            step="_step",
            tokens_per_step=4_194_304,
            shared={name: f"eval/{column}-validation/CrossEntropyLoss" for name, column in losses.items()},
            tasks=tasks,
        ),
        at_horizon="mean",
        proxies=("bits_per_byte", "correct_probability", "log_correct_probability", *losses),
        links=("linear", "logistic"),
        fit=FitOptions(loss="least_squares", without_trend="fit"),
        bootstrap_replicates=100,
    )
    return lambda **changes: ForecastingOptions(**common, **changes)


@pytest.fixture(scope="module")
def olmo2(olmo2_curve):
    """Fit on steps up to 50,000, forecast the mean of steps >= 860,000, 18 times the compute."""
    choices = olmo2_curve(fit_up_to_step=50_000, horizons=(18,), horizon_tolerance=0.045)
    tables = read_wide_curve(choices.curve, "accuracy")
    return tables, forecast(*tables.values(), "accuracy", list(OLMES), choices)


@pytest.mark.published
@pytest.mark.browser
def test_the_page_of_a_published_curve(browser, olmo2, tmp_path):
    measured, tables = olmo2
    config = Path(__file__).parents[2] / "config"
    plan = load_plan(read_yaml(config / "published_olmo2.yaml"), "published_olmo2", config)
    check_planned(browser, plan, tmp_path, "forecasting", tables, measured)


@pytest.mark.published
def test_the_known_answers_of_a_published_curve(olmo2):
    tables, found = olmo2
    rows = found["forecasts"].filter(method="compute_only")
    end = tables["checkpoints"].filter(pl.col("step") >= 860_000)
    assert rows["tokens"].to_list() == pytest.approx([end["tokens"].mean()] * 8)
    truth = tables["targets"].join(end, on="checkpoint").group_by("task").agg(pl.col("value").mean())
    assert rows["truth"].sum() == pytest.approx(truth["value"].sum())
    problems = tables["targets"].select((pl.col("value") * pl.col("n")).alias("hits"))["hits"]
    assert (problems - problems.round()).abs().max() < 1e-3
    assert found["observed"].filter("in_fit", series="truth", task="piqa")["step"].to_list() == list(
        range(5_000, 50_001, 5_000)
    )
    rmse = dict(found["errors"].filter(task="all").select("method", "rmse").iter_rows())
    known = {"last_value": 0.081, "compute_only": 0.043, "generic_cross_entropy": 0.041, "bits_per_byte": 0.040}
    assert {name: rmse[name] for name in known} == pytest.approx(known, abs=0.002)


@pytest.mark.published
def test_the_rule_chosen_in_advance_on_a_published_curve(olmo2):
    """What the rehearsal up to step 50,000 chose, and what it came to."""
    _, found = olmo2
    assert found["rehearsal"].filter("chosen")["method"].item() == "pooled, logistic link"
    row = found["errors"].filter(method="chosen", task="all").row(0, named=True)
    assert row["rmse"] == pytest.approx(0.0352, abs=0.0005)
    assert row["difference"] < 0 < row["difference_high"]  # better than the best baseline, but not beyond doubt


@pytest.mark.published
@pytest.mark.parametrize("cut, chosen", [(20_000, []), (30_000, ["generic_cross_entropy, logistic link"])])
def test_a_published_curve_with_few_checkpoints(olmo2_curve, cut, chosen):
    """One every 5,000 steps: half of either cut holds too few. Four leave nothing to rehearse, six do.

    When constants competed, the last value was chosen at both; at 9 times the second it is off by 0.063.
    """
    curve = olmo2_curve(fit_up_to_step=cut, horizons=(9,), horizon_tolerance=0.1)
    found = forecast(*read_wide_curve(curve.curve, "accuracy").values(), "accuracy", list(OLMES), curve)
    assert chosen_of(found) == chosen
    rmse = dict(found["errors"].filter(task="all").select("method", "rmse").iter_rows())
    assert ("chosen" in rmse) == bool(chosen)
    if chosen:
        assert rmse["last_value"] == pytest.approx(0.063, abs=0.001)
        assert rmse["chosen"] == pytest.approx(0.025, abs=0.001)
