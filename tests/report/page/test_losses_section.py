"""The section "Where the proxies lose": its numbers are the tables', and its verdicts the intervals'."""

import polars as pl
import pytest
from page_results import AT, MODELS, PROXIES, against, finished, smoke
from proxycast.report.page.blocks import Note, Table
from proxycast.report.page.html_page import page_html
from proxycast.report.page.sections.losses import compared, loss_section, verdict_of


@pytest.mark.parametrize(
    ("difference", "low", "high", "more", "verdict"),
    [
        (0.1, 0.02, 0.2, True, "better"),
        (0.1, 0.02, 0.2, False, "worse"),
        (-0.1, -0.2, -0.01, True, "worse"),
        (-0.1, -0.2, -0.01, False, "better"),
        (0.1, 0.0, 0.2, True, "not told apart"),
        (0.0, 0.0, 0.0, True, "identical"),
        (0.1, None, None, True, "ahead, no interval"),
        (0.1, None, None, False, "behind, no interval"),
        (0.0, None, None, True, "level, no interval"),
        (None, None, None, True, "not known"),
    ],
)
def test_the_verdict_is_that_of_the_interval(difference, low, high, more, verdict):
    assert verdict_of(difference, low, high, more) == verdict


def test_bits_per_byte_is_first_and_only_what_is_clearly_beaten_is_left_out(tmp_path):
    rows = [
        against(0.5, 0.3, 0.6, "chance"),
        against(0.125, -0.1, 0.2, "parameters"),
        against(-0.125, -0.2, -0.05, "expert_cross_entropy"),
        against(0.25, 0.1, 0.4, "bits_per_byte"),
        against(0.25, 0.1, 0.4, "bits_per_byte", task="homes"),
        against(0.25, 0.1, 0.4, "bits_per_byte", statistic="margin"),  # nobody has fixed it in advance
    ]
    results = finished(tmp_path, {"data_selection/against_baselines": rows})
    found = compared(results)
    assert found["rival"].to_list() == ["bits_per_byte", "expert_cross_entropy", "parameters", "chance"]
    assert found["verdict"].to_list() == ["better", "worse", "not told apart", "better"]
    table = next(block for block in loss_section(results).blocks if isinstance(block, Table))
    assert table.dataset.frame["rival"].to_list() == ["bits_per_byte", "expert_cross_entropy", "parameters"]
    (shown,) = table.dataset.frame.filter(rival="expert_cross_entropy").rows(named=True)
    assert (shown["value"], shown["rival_value"], shown["difference"]) == (0.75, 0.875, -0.125)
    assert (shown["low"], shown["high"]) == (-0.2, -0.05)
    html = page_html("x", [loss_section(results)], "")
    assert "-0.12 [-0.2, -0.05]" in html and "4 comparisons: 2 better, 1 " in html


def test_without_the_table_of_all_baselines_the_best_one_stands(tmp_path):
    own = {"statistic": PROXIES[0][0], "weighting": PROXIES[0][1], "kind": "proxy", "decision_accuracy": 0.5}
    own |= {"best_baseline": "parameters", "difference": -0.25, "difference_low": -0.5, "difference_high": 0.1}
    rival = {"statistic": "parameters", "weighting": "none", "kind": "baseline", "decision_accuracy": 0.75}
    results = finished(tmp_path, {"data_selection/summary": [AT | own, AT | own | rival]})
    (row,) = compared(results).rows(named=True)
    assert (row["rival"], row["value"], row["rival_value"]) == ("parameters", 0.5, 0.75)
    assert row["verdict"] == "not told apart"
    assert any("no baseline here" in block.text for block in loss_section(results).blocks if isinstance(block, Note))


def test_a_scorer_has_an_interval_to_the_best_baseline_alone(tmp_path):
    found = compared(finished(tmp_path, {"model_selection/summary": MODELS}))
    rows = {row["rival"]: row for row in found.rows(named=True)}
    assert rows["bits_per_byte (bytes)"]["verdict"] == "worse" and rows["bits_per_byte (bytes)"]["low"] == -0.4
    assert rows["parameters (bytes)"]["verdict"] == "behind, no interval"
    assert rows["parameters (bytes)"]["difference"] == 0.5 - 0.625


def test_less_error_of_a_forecast_is_better(tmp_path):
    at = {"task": "all", "horizon": 2.0, "best_baseline": "last_value"}
    rows = [
        at | {"method": "pooled", "kind": "proxy", "rmse": 0.2, "difference": -0.1} | _ends(-0.2, -0.05),
        at | {"method": "margin", "kind": "proxy", "rmse": 0.5, "difference": 0.2} | _ends(0.1, 0.3),
        at | {"method": "last_value", "kind": "baseline", "rmse": 0.3, "difference": 0.0} | _ends(0.0, 0.0),
    ]
    found = compared(finished(tmp_path, {"forecasting/errors": rows}))
    assert dict(found.select("method", "verdict").rows()) == {"pooled": "better", "margin": "worse"}
    assert set(found["rival_value"]) == {0.3}


def test_proxies_that_invert_are_those_that_depend_on_the_candidate(tmp_path):
    row = {"truth": "multiple_choice_accuracy", "task": "all", "kind": "proxy", "seed": "single", **AT}
    row |= {"low": 0.1, "high": 0.4}
    rows = [
        row | {"statistic": s, "weighting": w, "depends_on_candidate": depends, "decision_accuracy": value}
        for s, w, depends, value in (
            ("margin", "entropy", True, 0.3),
            ("margin", "expert_probability", True, 0.6),
            ("margin", "uniform", False, 0.2),
        )
    ]
    tables = {"data_selection/decision_accuracy": rows, "data_selection/against_baselines": [against(0.0, None, None)]}
    inverted = loss_section(finished(tmp_path, tables)).blocks[-1]
    assert inverted.dataset.frame.select("weighting", "decision_accuracy").rows() == [("entropy", 0.3)]
    assert "1 of 2 invert the order, of the others 1 of 1" in inverted.caption


def test_without_baselines_or_truth_the_section_says_so(tmp_path):
    for study, why in ((smoke(), "no baseline"), (smoke(target=None), "no truth")):
        (note,) = loss_section(finished(tmp_path, {}, study)).blocks
        assert why in note.text


def _ends(low: float, high: float) -> dict[str, float]:
    return {"difference_low": low, "difference_high": high}


def test_a_baseline_that_is_named_in_advance_is_not_its_own_rival(tmp_path):
    study = smoke(highlighted=["bits_per_byte"])
    row = {"statistic": "bits_per_byte", "weighting": "none", "kind": "baseline", "decision_accuracy": 0.5, **AT}
    row |= {"best_baseline": "bits_per_byte", "difference": 0.0} | _ends(0.0, 0.0)
    assert compared(finished(tmp_path, {"data_selection/summary": [row]}, study)).is_empty()
    assert compared(finished(tmp_path, {}, study)).schema["value"] == pl.Float64
