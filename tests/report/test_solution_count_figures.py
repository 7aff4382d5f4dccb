"""The figure of how many solutions are enough: no two texts overlap, and the lines are the table's."""

import numpy as np
import polars as pl
import pytest
from drawn_texts import overlapping, texts
from proxycast.report.comparisons.solution_count_figures import figure_over_number

PROXIES = [("top5_accuracy", "token_frequency"), ("top1_accuracy", "inverse_token_frequency")]


def counts_of(most=45, proxies=2, picks=("random", "information", "correlation"), enough=3, note=""):
    rows = []
    for (statistic, weighting), pick in [(p, k) for p in PROXIES[:proxies] for k in picks]:
        for number in sorted({n for n in (1, 3, 10, most) if n <= most}):
            value = 0.9 - 0.1 / number - 0.01 * picks.index(pick)
            interval = {"low": value - 0.1, "high": value + 0.05} if not note else {"low": None, "high": None}
            ends = dict(zip(("enough_low", "enough_high"), (None, None) if note else (1, most), strict=True))
            rows.append(
                {"statistic": statistic, "weighting": weighting, "reference": "truth", "pick": pick, "score": "mean"}
                | {"number": number, "decision_accuracy": value, **interval, "solutions": most, "note": note}
                | {"draws_low": value - 0.05, "draws_high": value + 0.02, "enough": enough, **ends}
                | {f"difference{end}": None if pick == "random" else -0.01 for end in ("", "_low", "_high")}
            )
    return pl.DataFrame(rows, infer_schema_length=None)


@pytest.mark.parametrize(
    "given",
    [
        {"proxies": 2},
        {"proxies": 1, "most": 1, "picks": ("random",), "enough": 1, "note": "no interval: too few corpora (2)"},
        {"proxies": 1, "most": 1000, "enough": 1000},
    ],
)
def test_no_texts_overlap_and_the_lines_are_those_of_the_table(given):
    counts = counts_of(**given)
    figure = figure_over_number(counts, "decision_accuracy", "corpora", 0.95, ": 43k models at step 256")
    assert overlapping(figure) == []
    first = counts.filter(statistic="top5_accuracy")
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    for pick, label in (("random", "random"), ("information", "most informative")):
        if pick in set(counts["pick"]):
            np.testing.assert_allclose(np.array(lines[label], float), first.filter(pick=pick)["decision_accuracy"])
    said = " ".join(text.get_text() for text in texts(figure)[0])
    assert f"enough: {counts['enough'][0]}" in said and given.get("note", "")[1:] in said


def test_a_table_without_rows_says_why_nothing_is_drawn():
    figure = figure_over_number(counts_of().clear(), "decision_accuracy", "corpora", 0.95, "")
    assert "No proxy has values per solution." in [text.get_text() for text in texts(figure)[0]]


def test_a_reference_that_orders_nothing_leaves_the_panel_empty():
    nothing = pl.lit(None, pl.Float64)
    names = ("decision_accuracy", "low", "high", "draws_low", "draws_high", "difference", "enough")
    counts = counts_of(note="the reference orders nothing").with_columns(nothing.alias(name) for name in names)
    figure = figure_over_number(counts, "decision_accuracy", "corpora", 0.95, "")
    assert overlapping(figure) == []
    assert any("The reference orders nothing." in text.get_text() for text in texts(figure)[0])


def test_models_have_one_line_and_a_tail():
    counts = counts_of(picks=("random",), proxies=1).rename({"decision_accuracy": "spearman"}).drop("pick", "score")
    counts = counts.with_columns(tail=pl.lit("bytes"))
    figure = figure_over_number(counts, "spearman", "models", 0.95, "")
    assert overlapping(figure) == [] and len(figure.axes) == 1
    assert "(bytes)" in figure.axes[0].get_title(loc="left").replace("\n", " ")
