"""The figure of learning rates: no two texts overlap, and the marks are those of the table."""

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from drawn_texts import overlapping, texts
from proxycast.experiments.data_selection.rate_check import RATES_SCHEMA
from proxycast.report.comparisons.rate_figures import MOST_PANELS, orders_over_learning_rate

METHODS = [("top5_accuracy", "token_frequency"), ("expert_rank", "token_frequency"), ("bits_per_byte", "none")]
METHODS += [("multiple_choice_accuracy", "none"), ("margin", "uniform")]
FACTORS = {"": 1.0, "_third": 1 / 3, "_tenth": 0.1}


def rates_of(methods: list[tuple[str, str]], sizes=("30k", "43k"), seeds=2) -> pl.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for size in sizes:
        accuracy = {(name, method): rng.uniform(0.3, 0.9) for name in FACTORS for method in methods}
        for (fast, slow), method in [(pair, m) for pair in combinations(FACTORS, 2) for m in methods]:
            row = {"statistic": method[0], "weighting": method[1], "step": 9, "corpora": 9, "seeds": seeds, "note": ""}
            row |= {"size": size + fast, "factor": FACTORS[fast], "slower_size": size + slow}
            row |= {"slower_factor": FACTORS[slow], "agreement": rng.uniform(0.2, 0.9)}
            row |= {"decision_accuracy": accuracy[fast, method], "slower_decision_accuracy": accuracy[slow, method]}
            row |= {"seed_agreement": rng.uniform(0.5, 0.9) if seeds > 1 else None}
            for name in ("agreement", "decision_accuracy", "slower_decision_accuracy"):
                row |= {f"{name}_low": row[name] - 0.1, f"{name}_high": row[name] + 0.1}
            rows.append(row)
    return pl.DataFrame(rows, schema=RATES_SCHEMA)


@pytest.mark.parametrize("count, sizes, seeds", [(1, ("30k",), 2), (2, ("30k", "43k"), 1), (5, ("30k", "43k"), 2)])
def test_every_figure_of_the_table_is_drawn(count, sizes, seeds):
    rates = rates_of(METHODS[:count], sizes, seeds)
    figure = orders_over_learning_rate(rates, 0.95, "The truth may be noise.")
    shown = min(count, MOST_PANELS)
    assert overlapping(figure) == [] and len(figure.axes) == 2 * shown
    for n, (statistic, weighting) in enumerate(METHODS[:shown]):
        rows = rates.filter(statistic=statistic, weighting=weighting)
        above, below = (
            {round(float(y), 9) for line in axes.lines for y in line.get_ydata() if np.isfinite(y)}
            for axes in (figure.axes[n], figure.axes[shown + n])
        )
        wanted = [*rows["decision_accuracy"], *rows["slower_decision_accuracy"]]
        assert above - {0.5} == {round(y, 9) for y in wanted}
        wanted = [*rows["agreement"], *rows["seed_agreement"].drop_nulls()]
        assert below - {0.5} == {round(y, 9) for y in wanted}
        low, high = figure.axes[n].get_ylim()
        assert low < min(rows["decision_accuracy_low"]) and high > 1
    assert [t.get_text() for t in figure.axes[shown].get_xticklabels()] == [
        "1 and\n0.33",
        "1 and\n0.1",
        "0.33 and\n0.1",
    ]
    assert {f"{size}; below: runs of two rates" for size in sizes} <= {text.get_text() for text in texts(figure)[0]}


def test_no_two_rates_are_told():
    figure = orders_over_learning_rate(rates_of(METHODS).clear(), 0.95)
    assert overlapping(figure) == [] and any("No two sizes" in text.get_text() for text in texts(figure)[0])
