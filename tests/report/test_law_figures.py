"""Figures of scaling laws from made-up tables: no two texts overlap, every law and set of sizes is named."""

from itertools import product

import numpy as np
import polars as pl
import pytest
from drawn_texts import overlapping, texts
from proxycast.experiments.data_selection.law_predictions import GAINS_SCHEMA, LAWS_SCHEMA, POINTS_SCHEMA
from proxycast.experiments.laws.scaling_laws import LAWS
from proxycast.report.comparisons import law_figures as plots

SOURCES = [("top5_accuracy", "token_frequency", "proxy"), ("bits_per_byte", "none", "baseline")]
SETS = ["150M to 530M", "4M, 60M, 150M"]
CORPORA = [f"a-corpus-with-a-long-name-{n}" for n in range(7)]


def gains(laws=("2_param", "3_param"), sources=SOURCES, low=0.7) -> pl.DataFrame:
    rows = []
    for number, (law, (statistic, weighting, kind), sizes) in enumerate(product(laws, sources, SETS)):
        middle = (number % 3 - 1) / 20
        rows.append(
            {"law": law, "statistic": statistic, "weighting": weighting, "kind": kind, "sizes": sizes, "seed": "single"}
            | {"compute_fraction": 0.2 + number / 50, "decision_accuracy": 0.8, "low": low, "high": low and 0.9}
            | {"single_size": "530M", "single_compute_fraction": 0.1, "single_decision_accuracy": 0.8 - middle}
            | {"difference": middle, "difference_low": low and middle - 0.04, "difference_high": low and middle + 0.04}
            | {"corpora": 7, "fits": 7, "fits_noted": 0, "note": ""}
        )
    return pl.DataFrame(rows, GAINS_SCHEMA)


def pareto() -> pl.DataFrame:
    rows = [
        {"statistic": statistic, "weighting": weighting, "kind": kind, "size": "4M"}
        | {"compute_fraction": x, "decision_accuracy": y}
        for statistic, weighting, kind in [*SOURCES, ("chance", "none", "baseline"), ("margin", "uniform", "proxy")]
        for x, y in ((1e-4, 0.5), (1e-2, 0.7), (1e-1, None if statistic == "chance" else 0.82))
    ]
    law = {"statistic": "2_param of bits_per_byte", "weighting": "none", "kind": "baseline", "size": SETS[0]}
    return pl.DataFrame([*rows, law | {"compute_fraction": 0.3, "decision_accuracy": 0.1}])


def fits() -> tuple[pl.DataFrame, pl.DataFrame]:
    sizes, rows, points = ["150M", "300M", "530M"], [], []
    for (statistic, weighting, kind), (number, corpus) in product(SOURCES, enumerate(CORPORA)):
        best = 1 if kind == "proxy" else 0
        loss = [0.3 + number / 50 + 0.2 * c**-0.3 for c in (1, 4, 12)]
        key = {"statistic": statistic, "weighting": weighting, "sizes": "150M to 530M", "corpus": corpus, "task": "t"}
        for size, compute, value in zip(sizes, (1e19, 4e19, 1.2e20), loss, strict=True):
            points.append(key | {"size": size, "seed": 0, "step": 1, "tokens": 1, "flops": compute})
            points[-1] |= {"compute_fraction": compute / 7e20, "score": best - value}
        for law in ("2_param", "3_param"):
            rows.append(key | {"law": law, "kind": kind, "seed": 0, "points": 3, "flops": 1.7e20, "note": ""})
            rows[-1] |= {"compute_fraction": 1.7 / 7, "extrapolation": 5.8, "A": 50.0, "alpha": 0.1, "predicted": -0.4}
            rows[-1] |= {"E": 0.1} if law == "3_param" else {}
    return pl.DataFrame(rows, LAWS_SCHEMA), pl.DataFrame(points, POINTS_SCHEMA)


@pytest.mark.parametrize("warning", ["", "The truth may be noise: accuracy has a reliability of 0.1 over 3 seeds."])
def test_no_texts_overlap(warning):
    drawn = [
        plots.law_decision_accuracy(pareto(), gains(), 0.93, warning),
        plots.law_decision_accuracy(pareto(), gains(tuple(LAWS), SOURCES[1:], low=None), None, warning),
        plots.law_differences(gains(), warning),
        plots.law_differences(gains(tuple(LAWS), SOURCES[1:]), warning),
        plots.law_curves(*fits(), CORPORA, warning),
    ]
    for figure in drawn:
        assert not overlapping(figure)


def test_every_row_is_named_and_coloured_by_what_is_known():
    table = gains()
    figure = plots.law_differences(table)
    words = " ".join(text.get_text() for text in texts(figure)[0])
    assert all(
        words.count(f"{plots.LAW_NAMES[law]}: {sizes} ") == 2 for law, sizes in product(("2_param", "3_param"), SETS)
    )
    colours = [line.get_color() for line in figure.axes[0].lines if line.get_marker() == "o"]
    of_gain = {-1: plots.LOSS, 0: plots.UNCERTAIN, 1: plots.GAIN}
    in_order = pl.concat(table.filter(statistic=statistic) for statistic, *_ in SOURCES)
    assert colours == [of_gain[int(np.sign(round(value, 6)))] for value in in_order["difference"]]


def test_laws_stand_at_the_compute_of_all_their_sizes():
    axes = plots.law_decision_accuracy(pareto(), gains(), 0.93).axes[0]
    marked = sorted(line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 6)
    assert marked == pytest.approx(sorted(gains()["compute_fraction"]))
    assert not any(0.1 in np.asarray(line.get_ydata(), float) for line in axes.lines)  # no law among the single sizes


def test_curves_pass_where_the_law_says():
    axes = plots.law_curves(*fits(), CORPORA).axes[1]
    curve = next(line for line in axes.lines if len(line.get_xdata()) == 50)
    x, y = curve.get_xdata(), curve.get_ydata()
    assert y[-1] == pytest.approx(-(50 * (x[-1] * 7e20) ** -0.1)) and x[-1] == 1


def test_tables_without_a_law_say_so():
    none, (fitted, points) = gains().clear(), fits()
    for figure in (
        plots.law_decision_accuracy(pareto(), none, 0.9),
        plots.law_differences(none),
        plots.law_curves(fitted.clear(), points, CORPORA),
    ):
        assert any("No law" in text.get_text() for text in texts(figure)[0])
