"""The section "Where the proxies lose": its numbers are the tables', and its verdicts the intervals'."""

import re

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


def test_bits_per_byte_is_first_and_what_is_beaten_is_folded_and_counted_by_kind(tmp_path):
    rows = [
        against(0.5, 0.3, 0.6, "chance"),
        against(0.125, -0.1, 0.2, "parameters"),
        against(0.25, 0.1, 0.4, "generic_cross_entropy"),
        against(-0.125, -0.2, -0.05, "expert_cross_entropy"),
        against(0.25, 0.1, 0.4, "bits_per_byte"),
        against(0.25, 0.1, 0.4, "bits_per_byte", task="homes"),
        against(0.25, 0.1, 0.4, "bits_per_byte", statistic="margin"),  # nobody has fixed it in advance
    ]
    results = finished(tmp_path, {"data_selection/against_baselines": rows})
    found = compared(results)
    assert found["rival"].to_list()[:2] == ["bits_per_byte", "expert_cross_entropy"]
    verdicts = dict(found.select("rival", "verdict").rows())
    assert verdicts == {
        **{"bits_per_byte": "better", "expert_cross_entropy": "worse", "parameters": "not told apart"},
        **{"chance": "better", "generic_cross_entropy": "better"},
    }
    section = loss_section(results)
    lost, won, *_ = [block for block in section.blocks if isinstance(block, Table)]
    assert lost.is_open and not won.is_open and lost.columns[1].name == "verdict"
    (row,) = lost.dataset.frame.filter(rival="expert_cross_entropy").rows(named=True)
    assert (row["value"], row["rival_value"], row["difference"]) == (0.75, 0.875, -0.125)
    assert (row["low"], row["high"]) == (-0.2, -0.05)
    html = page_html("x", [section], "")
    of = {id: re.search(f'id="losses-{id}-rows".*?</table>', html, re.DOTALL)[0] for id in ("table", "won")}
    assert "-0.12 [-0.2, -0.05]" in of["table"] and "generic_cross_entropy" not in of["table"]
    assert {name for name in verdicts if f"<td>{name}</td>" in of["won"]} == {
        *("bits_per_byte", "chance", "generic_cross_entropy")
    }
    plain, trivial = "2 comparisons with plain baselines (1 better, 1 worse)", "3 comparisons with trivial baselines"
    assert f"Order of the corpora: {plain}, {trivial} (2 better, 1 not told apart)." in html
    assert "single seed" in row["measure"] and "single seed" in section.blocks[0].text


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
    assert {name: row["kind"] for name, row in rows.items()} == {
        **{"bits_per_byte (bytes)": "plain", "parameters (bytes)": "trivial"}
    }
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


def test_what_inverts_for_sure_has_its_whole_interval_below_chance(tmp_path):
    row = {"truth": "multiple_choice_accuracy", "task": "all", "kind": "proxy", "seed": "single", **AT}
    rows = [
        row
        | {"statistic": s, "weighting": w, "depends_on_candidate": depends, "decision_accuracy": value, "high": high}
        for s, w, depends, value, high in (
            ("margin", "entropy", True, 0.3, 0.4),
            ("margin", "expert_disagreement", True, 0.35, 0.5),
            ("margin", "gaussian_nll", True, 0.45, None),
            ("margin", "expert_probability", True, 0.6, 0.7),
            ("margin", "uniform", False, 0.2, 0.45),
            ("wrong_confidence", "uniform", False, 0.25, 0.55),
        )
    ]
    rows = [row | {"low": 0.1} for row in rows]
    rows.append(rows[4] | {"statistic": "generic_cross_entropy", "weighting": "none", "kind": "baseline"})
    tables = {"data_selection/decision_accuracy": rows, "data_selection/against_baselines": [against(0.0, None, None)]}
    inverted = loss_section(finished(tmp_path, tables)).blocks[-1]
    assert inverted.dataset.frame.select("statistic", "weighting", "verdict").rows() == [
        ("margin", "uniform", "inverts"),
        ("generic_cross_entropy", "none", "inverts"),
        ("margin", "entropy", "inverts"),
        ("margin", "expert_disagreement", "may invert"),
        ("margin", "gaussian_nll", "may invert"),
    ]
    assert "Of 4 rows of proxies" in inverted.caption and "1 invert it and 2 may; of 3 other rows 2" in inverted.caption


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
