"""Figures of signal to noise: no two texts overlap, and the cells and points are those of the tables."""

import numpy as np
import polars as pl
import pytest
from drawn_texts import overlapping, texts
from noisy_study import BUDGETS, TASKS, study_of
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.truth import Target
from proxycast.experiments.data_selection.noisy_tasks import signal_tables
from proxycast.proxy_formulas import STATISTICS, WEIGHTINGS
from proxycast.report.comparisons import signal_figures as plots

HIGHLIGHTED = [("top5_accuracy", "token_frequency"), ("expert_rank", "token_frequency")]
EVERY_PROXY = [*((s, w) for s in STATISTICS for w in WEIGHTINGS), ("bits_per_byte", "none")]


@pytest.fixture(scope="module")
def tables():
    checkpoints, proxies, targets = study_of(scored=EVERY_PROXY)
    options, target = (
        SelectionOptions(bootstrap_replicates=100, noise_checkpoints=2),
        Target(size="9M", metric="accuracy"),
    )
    return signal_tables(checkpoints, TASKS, options, BUDGETS, proxies=proxies, targets=targets, target=target)


def words_of(figure):
    return [text.get_text() for text in texts(figure)[0]]


def test_every_ratio_is_in_its_cell(tables):
    signal = tables["signal_to_noise"]
    for size, step, panels in (("1M", 10, 1), ("2M", 20, 2)):
        figure = plots.signal_to_noise(signal, size, step, HIGHLIGHTED, 0.95)
        assert overlapping(figure) == [] and len(figure.axes) == panels
        names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert len(names) == len(STATISTICS) + len(HIGHLIGHTED) + 2  # bits per byte, and the metric itself
        row = signal.filter(task="sums", size=size, step=step, statistic="margin", weighting="uniform")
        cells = {(t.get_position()): t.get_text() for t in figure.axes[0].texts}
        assert cells[2, names.index("Margin, uniform weighting")] == f"{row['snr_seeds'].item():.1f}"


def test_points_and_rho_against_decision_accuracy(tables):
    signal, foresight = tables["signal_to_noise"], tables["snr_and_accuracy"]
    figure = plots.snr_against_decision_accuracy(signal, foresight, HIGHLIGHTED, 0.95)
    assert overlapping(figure) == []
    assert len(figure.axes) == 3 + 2  # noise between seeds, of checkpoints
    points = {round(y, 9) for line in figure.axes[0].lines for y in np.atleast_1d(line.get_ydata())}
    known = signal.filter(pl.col("kind") != "truth", task="all", size="1M", step=10)
    assert {round(y, 9) for y in known["decision_accuracy"]} <= points
    rho = foresight.filter(over="statistics", task="all", noise="seeds", size="1M", step=10, judged_size="1M")
    assert any(f"ρ {rho.filter(judged_step=10)['spearman'].item():.2f}" in word for word in words_of(figure))


@pytest.mark.parametrize("shown", [HIGHLIGHTED[:1], [*HIGHLIGHTED, *plots.COMPARED, ("accuracy", "none")]])
def test_repeats_stand_at_their_compute(tables, shown):
    figure = plots.repeats_over_compute(tables["repeats"], shown, 0.95)
    assert overlapping(figure) == [] and len(figure.axes) == len(shown)
    rows = tables["repeats"].filter(statistic=shown[0][0], weighting=shown[0][1], seeds=2, checkpoints=1)
    drawn = {round(x, 9) for line in figure.axes[0].lines for x in np.atleast_1d(line.get_xdata())}
    assert {round(x, 9) for x in rows["compute_fraction"]} <= drawn


def test_what_is_not_known_is_told(tables):
    signal = tables["signal_to_noise"].with_columns(snr_seeds=None, snr_checkpoints=None)
    for figure, told in (
        (plots.signal_to_noise(signal, "1M", 10, HIGHLIGHTED, 0.95), "No noise is known"),
        (
            plots.snr_against_decision_accuracy(signal, tables["snr_and_accuracy"].clear(), [], 0.95),
            "Too few statistics",
        ),
        (plots.repeats_over_compute(tables["repeats"].clear(), HIGHLIGHTED, 0.95), "nothing to compare"),
    ):
        assert overlapping(figure) == [] and any(told in word for word in words_of(figure))
