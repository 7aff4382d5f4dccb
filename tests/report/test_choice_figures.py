"""Figures of what choices cost: no two texts overlap, and what is drawn is what the tables say."""

import polars as pl
import pytest
from choice_study import HIGHLIGHTED, choice_tables, study
from drawn_texts import overlapping, texts
from proxycast.experiments.signal_to_noise import CONSTANT
from proxycast.report.comparisons import choice_figures as plots


@pytest.fixture(scope="module")
def tables():
    return choice_tables(study())


def words(figure) -> str:
    figure.draw_without_rendering()
    return " ".join(text.get_text() for text in texts(figure)[0])


def at_a_budget(table):
    return plots.corpus_methods(table.filter(size="40M", step=8, seed="mean"), HIGHLIGHTED)


@pytest.mark.parametrize("of", [{"noise": 5}, {"corpora": 4, "seeds": 1}], ids=["noise", "few corpora, one seed"])
def test_no_texts_overlap(of):
    tables = choice_tables(study(**of))
    costs = at_a_budget(tables["choices"]).filter(~pl.col("statistic").is_in(CONSTANT))
    gaps = plots.first_methods(at_a_budget(tables["margins"]), "statistic")
    for figure in (
        plots.regret_over_compute(tables["choices"], HIGHLIGHTED, "accuracy"),
        plots.regret_by_method(costs, "What choosing costs", "accuracy", "corpora"),
        plots.gap_calibration(gaps, "How sure a gap is", "corpora", "The truth may be noise: so they say."),
    ):
        assert overlapping(figure) == []


def test_lines_are_the_regrets_of_single_seeds(tables):
    figure = plots.regret_over_compute(tables["choices"], HIGHLIGHTED, "accuracy")
    rows = tables["choices"].filter(seed="single", statistic="cross_entropy").sort("compute_fraction")
    drawn = [line.get_ydata() for line in figure.axes[0].get_lines()]
    assert any(list(y) == rows["regret"].to_list() for y in drawn)
    assert f"random choice {rows['random_regret'][0]:.3g}" in words(figure)


def test_methods_are_sorted_by_regret_and_a_missing_interval_is_told(tables):
    rows = at_a_budget(tables["choices"])
    figure = plots.regret_by_method(rows, "What choosing costs", "accuracy", "corpora")
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    regrets = dict(zip(rows["label"], rows["regret"]))
    assert sorted(shown, key=regrets.get) == sorted(shown, key=lambda name: (regrets[name], shown.index(name)))
    assert set(rows.filter("named")["label"]) <= set(shown)
    missing = rows.filter(pl.col("label").is_in(shown))["regret_low"].null_count() > 0
    assert not missing or "Without an interval" in words(figure)


def test_calibrations_begin_with_what_was_named_in_advance(tables):
    gaps = plots.first_methods(at_a_budget(tables["margins"]), "statistic")
    names = gaps["label"].unique(maintain_order=True).to_list()
    assert set(names[:2]) == {"Cross-entropy, uniform weighting", "Top-5 accuracy, token-frequency weighting"}
    assert names[2] == "Expert bits per byte"


def test_nothing_to_calibrate_is_told(tables):
    empty = tables["margins"].clear()
    figure = plots.gap_calibration(at_a_budget(empty), "How sure a gap is", "corpora")
    assert "No score of this study differs" in words(figure)
