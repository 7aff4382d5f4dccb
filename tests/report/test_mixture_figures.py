"""Figures of mixtures: no two texts overlap, every mixture is a point, and bars are as long as the ratios."""

import numpy as np
import polars as pl
import pytest
from drawn_texts import overlapping, texts
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.data_selection.mixtures import mixture_tables
from proxycast.report.comparisons import mixture_figures as plots

KINDS = {"1-top5_accuracy/token_frequency/43k-step256": "proxy", "bits_per_byte/43k-step256": "baseline"}
KINDS |= {"1-multiple_choice_accuracy/140k": "truth"}


def tables_of(mixtures, sources, kinds):
    rng = np.random.default_rng(mixtures)
    ratios = rng.dirichlet(np.ones(sources), mixtures)
    known = {
        f"mixture_of_sources_{n}": {f"source {s} deduplicate": float(r) for s, r in enumerate(row)}
        for n, row in enumerate(ratios)
    }
    rows = [
        {"run": run, "task": task, "metric": metric, "kind": kind, "value": 1 + list(shares.values())[t] ** 2}
        | {"statistic": "s", "weighting": "none", "size": "1B", "step": 1}
        for metric, kind in kinds.items()
        for run, shares in known.items()
        for t, task in enumerate(("sums", "dates"))
    ]
    return mixture_tables(known, pl.DataFrame(rows), SelectionOptions(bootstrap_replicates=100))


@pytest.mark.parametrize("mixtures, sources, metrics", [(6, 3, 1), (11, 11, 3)])
def test_no_texts_overlap_and_every_mixture_is_drawn(mixtures, sources, metrics):
    kinds = dict(list(KINDS.items())[:metrics])
    tables = tables_of(mixtures, sources, kinds)
    figure = plots.held_out(tables["mixture_predictions"], tables["mixture_regression"])
    assert overlapping(figure) == []
    for axes in figure.axes:
        assert [len(line.get_xdata()) for line in axes.lines] == [mixtures, mixtures, 2]
    figure = plots.next_mixtures(tables["next_mixtures"], tables["ratios"], tables["mixture_regression"])
    assert overlapping(figure) == []
    for axes, metric in zip(figure.axes, kinds, strict=True):
        proposed = tables["next_mixtures"].filter(metric=metric)
        drawn = sorted(bar.get_width() for bar in axes.patches if bar.get_width() > 0)
        best = tables["ratios"].filter(run=proposed["best_seen"][0])
        expected = sorted([*best["ratio"], *proposed.filter(pl.col("ratio") > 0)["ratio"]])
        assert drawn == pytest.approx(expected)


def test_without_a_regression_the_figures_say_why():
    tables = tables_of(3, 3, {"bits_per_byte/1B": "baseline"})
    held_out = plots.held_out(tables["mixture_predictions"], tables["mixture_regression"])
    after = plots.next_mixtures(tables["next_mixtures"], tables["ratios"], tables["mixture_regression"])
    for figure in (held_out, after):
        assert overlapping(figure) == []
        assert any("Too few mixtures" in text.get_text() for text in texts(figure)[0])
