"""The figure of learning rates: whether a lower one orders the corpora better, and how far it moves their order."""

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from proxycast.report import style

MOST_PANELS = 4  # methods, in the order of the study
METHOD = ["statistic", "weighting"]
FACTORS = ["factor", "slower_factor"]
Factors = list[tuple[float, float]]  # of every two rates that are compared
ABOUT_SEEDS = (
    "\nBelow, two runs of different seeds are compared. Where a filled mark lies below the hollow one beside it,"
    "\nthe rate moves the order more than another seed does."
)
APART = 5  # points between the marks of two sizes


@matplotlib.rc_context(style.STYLE)
def orders_over_learning_rate(rates: pl.DataFrame, confidence: float, warning: str = "") -> Figure:
    """Above the decision accuracy at each rate, below the agreement of every two rates; a column for each method.

    `rates`: the table. Sizes that differ in the rate alone have one colour and one line, named by the size of the
    highest rate.
    """
    title = "Does the order of corpora move with the learning rate of the small models?"
    methods = rates.select(METHOD).unique(maintain_order=True).rows()[:MOST_PANELS]
    if not methods:
        return style.without_data(title, "No two sizes could be compared that differ in the learning rate alone.")
    compared = rates.select(FACTORS).unique(maintain_order=True).rows()
    series, width = _series(rates), max(1.95 * len(methods) + 0.4, 6.4)
    figure = style.canvas(width, 5.6 + 0.16 * len(series))
    grid = figure.subplots(2, len(methods), squeeze=False, sharex="row", sharey="row")
    for column, method in enumerate(methods):
        rows = rates.filter(statistic=method[0], weighting=method[1])
        above, below = grid[:, column]
        above.set_title(style.readable(*method).replace(", ", ",\n"))
        for place, (name, sizes) in enumerate(series.items()):
            of_size = rows.filter(pl.col("size").is_in(sizes))
            look = {"color": style.COLOURS[place], "label": name}
            _draw_accuracy(above, of_size, place, len(series), look)
            _draw_agreement(below, of_size, place, len(series), look, compared)
    _name_axes(grid, rates, compared)
    style.add_title(figure, title, warning)
    handles, labels = grid[1, 0].get_legend_handles_labels()
    note = f"Above, one run at each rate. Means over tasks; bars: {confidence:.0%} bootstrap intervals over corpora."
    note += " Line at 0.5: chance."
    note += ABOUT_SEEDS if rates["seed_agreement"].count() else "\nBelow, two runs of one seed are compared."
    place = {"loc": "outside lower left", "ncols": 2, "frameon": False, "alignment": "left", "borderpad": 0}
    legend = figure.legend(handles, labels, title=note, fontsize=style.SMALL, title_fontsize=style.SMALL, **place)
    legend.get_title().set_color("0.35")
    return style.settled(figure)


def _series(rates: pl.DataFrame) -> dict[str, list[str]]:
    """Size of the highest rate -> the sizes that differ from it in the rate alone, itself first."""
    found: dict[str, list[str]] = {}
    for size, slower in rates.select("size", "slower_size").unique(maintain_order=True).rows():
        first = next((name for name, sizes in found.items() if size in sizes), size)
        sizes = found.setdefault(first, [size])
        sizes += [slower] if slower not in sizes else []
    return found


def _draw_accuracy(axes: Axes, rows: pl.DataFrame, place: int, count: int, look: dict) -> None:
    names = ["factor", "decision_accuracy", "decision_accuracy_low", "decision_accuracy_high"]
    faster = rows.select(names)
    slower = rows.select(pl.col("slower_factor").alias("factor"), *(pl.col(f"slower_{n}").alias(n) for n in names[1:]))
    points = pl.concat([faster, slower]).unique("factor").sort("factor")
    side = style.aside(axes, place, count, APART)
    axes.plot(points["factor"], points["decision_accuracy"], "o-", transform=side, lw=1, **look)
    known = points.drop_nulls(names[2])
    axes.vlines(known["factor"], known[names[2]], known[names[3]], lw=0.8, color=look["color"], transform=side)


def _draw_agreement(axes: Axes, rows: pl.DataFrame, place: int, count: int, look: dict, compared: Factors) -> None:
    at = [compared.index(pair) for pair in rows.select(FACTORS).rows()]
    side, beside = (style.aside(axes, place + shift, count, 2.4 * APART) for shift in (-0.2, 0.2))
    named = {
        True: f"{look['label']}; below: runs of two rates",
        False: f"{look['label']}: runs of one rate, mean of both",
    }
    for name, moved, filled in (("agreement", side, True), ("seed_agreement", beside, False)):
        ends = np.array(rows[f"{name}_low"], float), np.array(rows[f"{name}_high"], float)
        axes.vlines(at, *ends, lw=0.8, color=look["color"], alpha=1 if filled else 0.5, transform=moved)
        face = look["color"] if filled else "white"
        values = np.array(rows[name], float)
        axes.plot(at, values, "o", transform=moved, color=look["color"], mfc=face, label=named[filled])


def _name_axes(grid: np.ndarray, rates: pl.DataFrame, compared: Factors) -> None:
    """`grid`: axes (2, methods). Limits are set by hand: marks that are moved aside count for none."""
    factors = sorted({factor for pair in compared for factor in pair})
    for row, names in zip(grid, (("decision_accuracy", "slower_decision_accuracy"), ("agreement", "seed_agreement"))):
        lowest = rates.select(pl.min_horizontal(pl.col([*names, *(f"{name}_low" for name in names)]).min())).item()
        for axes in row:
            axes.axhline(0.5, lw=0.6, color="0.55", zorder=0.5)
            axes.set_ylim(max(min(lowest - 0.05, 0.4), -0.03), 1.03)
    for above, below in grid.T:
        above.set_xscale("log")
        above.set_xlim(factors[0] / 1.6, factors[-1] * 1.6)
        above.xaxis.set_major_locator(FixedLocator(factors))
        above.xaxis.set_minor_locator(NullLocator())
        above.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        above.set_xlabel("Learning rate / usual")
        below.set_xlim(-0.5, len(compared) - 0.5)
        below.set_xticks(range(len(compared)), [f"{a:.2g} and\n{b:.2g}" for a, b in compared])
        below.set_xlabel("Rates compared")
    grid[0, 0].set_ylabel("Decision accuracy\n(pairs ordered as the truth does)")
    grid[1, 0].set_ylabel("Pairs of corpora\nthat two runs order alike")
