"""Figures of a data selection without a truth: the order of the corpora, and how far the proxies agree on it."""

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from proxycast.report import style

BETTER, WORSE, ALIKE, UNKNOWN = "#0072B2", "#D55E00", "0.88", "white"
CELL_INCHES = 0.2


@matplotlib.rc_context(style.STYLE)
def order_of_corpora(
    ranking: pl.DataFrame, pairs: pl.DataFrame, proxy: tuple[str, str, str, int], confidence: float
) -> Figure:
    """Score and place of every corpus with intervals, the best on top; beside it, which pairs can be told apart.

    `ranking`, `pairs`: the tables of `corpus_order`. `proxy`: statistic, weighting, size, step.
    """
    statistic, weighting, size, step = proxy
    at = {"statistic": statistic, "weighting": weighting, "size": size, "step": step}
    rows, pairs = ranking.filter(**at).sort("place", "corpus"), pairs.filter(**at)
    corpora = rows["corpus"].to_list()
    cells = CELL_INCHES * len(corpora)
    width = max(7.2, 4.4 + cells)
    figure = style.canvas(width, cells + 1.4)
    left, right = figure.subplots(1, 2, width_ratios=(width - 1.9 - cells, cells))
    _draw_scores(left, rows, _score_name(statistic, weighting))
    _draw_pairs(right, corpora, pairs)
    style.add_title(figure, f"The order of the corpora, predicted by {size} models at step {step:,}")
    told, count = pairs["told_apart"].sum(), len(pairs)
    if pairs["told_apart"].null_count() == count:
        note = "Beside the names: the place. One seed and one score a task: how sure the order is remains unknown."
    else:
        over = "solutions and seeds" if rows["seeds"].min() > 1 else "solutions alone, as there is one seed"
        note = (
            f"Bars: {confidence:.0%} intervals over {over}. Beside the names: place and interval.\n"
            f"Right: {told} of {count} pairs can be told apart. Blue: the row is better than the column; orange: "
            "worse;\ngrey: cannot be told apart. No large model has confirmed this order."
        )
    style.add_note(figure, note)
    return style.settled(figure)


def _score_name(statistic: str, weighting: str) -> str:
    name = style.score_name(statistic, weighting)
    unit = style.look(statistic).unit
    return f"{name}\n({unit}; higher is better)" if unit else f"{name}\n(higher is better)"


def _draw_scores(axes: Axes, rows: pl.DataFrame, name: str) -> None:
    y, labels = np.arange(len(rows)), []
    for height, row in enumerate(rows.iter_rows(named=True)):
        if height % 2:
            axes.axhspan(height - 0.5, height + 0.5, color="0.965", lw=0, zorder=0)
        if row["predicted_low"] is not None:
            axes.hlines(height, row["predicted_low"], row["predicted_high"], color=BETTER, lw=0.9, zorder=2)
        ends = "" if row["place_low"] is None else f" [{row['place_low']:.3g}, {row['place_high']:.3g}]"
        labels.append(f"{row['corpus']}   {row['place']:g}{ends}")
    axes.plot(rows["predicted"], y, "o", ms=4, color=BETTER, mew=0, zorder=3)
    axes.set_yticks(y, labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(name)


def _draw_pairs(axes: Axes, corpora: list[str], pairs: pl.DataFrame) -> None:
    """A square for each pair: the row is better than the column, worse, or cannot be told from it."""
    place = {corpus: number for number, corpus in enumerate(corpora)}
    for row in pairs.iter_rows(named=True):
        better, worse = place[row["better"]], place[row["worse"]]
        colours = {True: (BETTER, WORSE), False: (ALIKE, ALIKE), None: (UNKNOWN, UNKNOWN)}[row["told_apart"]]
        for x, y, colour in zip((worse, better), (better, worse), colours, strict=True):
            edge = "0.8" if colour == UNKNOWN else "white"
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=colour, ec=edge, lw=1))
    axes.set_xlim(-0.5, len(corpora) - 0.5)
    axes.set_ylim(len(corpora) - 0.5, -0.5)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(corpora)), [str(number + 1) for number in range(len(corpora))], fontsize=6)
    axes.set_yticks(range(len(corpora)), [str(number + 1) for number in range(len(corpora))], fontsize=6)
    axes.tick_params(length=0, pad=1)
    for spine in axes.spines.values():
        spine.set_visible(False)


@matplotlib.rc_context(style.STYLE)
def agreement_of_proxies(agreement: pl.DataFrame, ranking: pl.DataFrame) -> Figure:
    """Spearman's rho between the orders of `ranking`, of every two proxies, sizes and steps.

    `agreement`: `corpus_order.corpus_agreement`.
    """
    key = ["statistic", "weighting", "size", "step"]
    orders = ranking.select(key).unique(maintain_order=True).rows()
    number = {order: n for n, order in enumerate(orders)}
    values = np.eye(len(orders))
    for row in agreement.iter_rows(named=True):
        i, j = number[tuple(row[name] for name in key)], number[tuple(row[f"other_{name}"] for name in key)]
        values[i, j] = values[j, i] = np.nan if row["spearman"] is None else row["spearman"]
    several = len({order[2:] for order in orders}) > 1
    names = [
        style.readable(statistic, weighting) + (f", {size} at step {step:,}" if several else "")
        for statistic, weighting, size, step in orders
    ]
    figure = style.canvas(7.2, 0.27 * len(orders) + 1.3)
    axes, empty = figure.subplots(1, 2, width_ratios=(0.4 * len(orders), max(0.01, 3.6 - 0.4 * len(orders))))
    empty.set_axis_off()
    style.value_cells(axes, values, len(orders), lowest=-1)
    axes.set_yticks(range(len(orders)), [f"{name}   {n + 1}" for n, name in enumerate(names)])
    axes.set_xticks(range(len(orders)), [str(n + 1) for n in range(len(orders))])
    where = "" if several else f": {orders[0][2]} models at step {orders[0][3]:,}"
    style.add_title(figure, f"How far the proxies agree on the order of the corpora{where}")
    style.add_note(
        figure, "Spearman's ρ between two orders. 1 (blue): the same; 0 (white): unrelated; –1 (red): reversed."
    )
    return style.settled(figure)
