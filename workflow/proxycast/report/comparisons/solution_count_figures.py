"""The figure of how many solutions are enough, from the tables solution_counts."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from proxycast.experiments.data_selection.solution_counts import WITHIN
from proxycast.report import style

LOOKS = {  # pick -> label, colour, marker
    "random": ("random", "0.35", "o"),
    "information": ("most informative", "#0072B2", "s"),
    "correlation": ("best correlated", "#D55E00", "^"),
}
FIGURES = {"decision_accuracy": "Decision accuracy", "spearman": "Spearman's rho, mean over tasks"}
WIDTH, TITLE_CHARACTERS = 1.85, 24  # of a panel: inches, characters of its title
NARROWEST = 5.6  # inches of the figure, for its note


@matplotlib.rc_context(style.STYLE)
def figure_over_number(counts: pl.DataFrame, figure_name: str, candidates: str, confidence: float, at: str) -> Figure:
    """`figure_name`, a column of `counts`, over the number of solutions; a column of panels for each proxy.

    `counts`: one budget of data_selection/solution_counts, or the models' table, which has no picks. `candidates`:
    "corpora" or "models". `at`: what the title says of the budget. Below, each pick less random solutions of the same
    number, where picks are judged.
    """
    title = f"How many solutions of each task are enough{at}"
    if counts.is_empty():
        return style.without_data(title, "No proxy has values per solution.")
    reference = "truth" if "truth" in counts["reference"] else "all solutions"
    counts = counts.filter(reference=reference)
    if "pick" in counts.columns:
        counts = counts.filter(score="mean")
    else:
        counts = counts.with_columns(pick=pl.lit("random"))
    keys = [name for name in ("statistic", "weighting", "tail") if name in counts.columns]
    cells = counts.partition_by(keys, as_dict=True, maintain_order=True)
    picks = [pick for pick in LOOKS if pick in set(counts["pick"]) - {"random"}]
    figure = style.canvas(max(WIDTH * len(cells) + 1.5, NARROWEST), 2.9 + 1.7 * bool(picks))
    rows = 2 if picks else 1
    grid = figure.subplots(rows, len(cells), squeeze=False, sharex=True, sharey="row", height_ratios=[5, 4][:rows])
    for column, (key, cell) in enumerate(cells.items()):
        name = style.readable(*key[:2]) + (f" ({key[2]})" if key[2:] else "")
        grid[0, column].set_title("\n".join(textwrap.wrap(name, TITLE_CHARACTERS)))
        _curves(grid[0, column], cell, figure_name)
        if picks:
            _differences(grid[1, column], cell, picks)
        grid[-1, column].set_xlabel("Solutions of each task")
    _number_axis(grid[0, 0], counts["solutions"].max())
    low, high = grid[0, 0].get_ylim()
    grid[0, 0].set_ylim(low - 0.1 * (high - low), high)  # room for what is enough
    grid[0, 0].set_ylabel(FIGURES[figure_name] + ("" if reference == "truth" else "\n(truth: all solutions)"))
    if picks:
        grid[1, 0].set_ylabel("Less random ones\nof the same number")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=style.SMALL)
    style.add_title(figure, title)
    style.add_note(figure, _note(counts, candidates, confidence, bool(picks)))
    return style.settled(figure)


def _curves(axes: Axes, cell: pl.DataFrame, figure_name: str) -> None:
    """Mean and band over draws of random solutions, the picks, and the level of all solutions."""
    given = cell.filter(pl.col("number") <= pl.col("solutions"))
    random = given.filter(pick="random")
    level = random[figure_name][-1]
    axes.axhline(np.nan if level is None else level, lw=0.8, ls=(0, (1, 1.5)), color="0.15", label="all solutions")
    axes.fill_between(*random.select("number", "draws_low", "draws_high").to_numpy().T, color="0.85", lw=0)
    for pick, (label, colour, marker) in LOOKS.items():
        line = given.filter(pick=pick)
        if line.is_empty():
            continue
        axes.plot(*line.select("number", figure_name), color=colour, marker=marker, ms=2.5, lw=1, label=label)
    enough, low, high = random.select("enough", "enough_low", "enough_high").row(0)
    if enough is None:  # all solutions together order nothing
        return
    axes.axvline(enough, lw=0.7, ls=(0, (4, 2)), color="0.35")
    interval = "" if low is None else f" [{low}, {high}]"
    right = enough**2 > random["solutions"][0]  # half of the logarithmic axis
    place = {"xytext": (-3 if right else 3, 0), "ha": "right" if right else "left", "fontsize": style.SMALL}
    axes.annotate(
        f"enough: {enough}{interval}",
        (enough, 0.02),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        **place,
    )


def _differences(axes: Axes, cell: pl.DataFrame, picks: Sequence[str]) -> None:
    axes.axhline(0, lw=0.6, color="0.35")
    for pick in picks:
        _, colour, marker = LOOKS[pick]
        line = cell.filter(pick=pick)
        ends = line.select("number", "difference_low", "difference_high").cast(pl.Float64)
        axes.fill_between(*ends.to_numpy().T, color=colour, alpha=0.15, lw=0)
        axes.plot(*line.select("number", "difference"), color=colour, marker=marker, ms=2.5, lw=1)


def _number_axis(axes: Axes, most: int) -> None:
    axes.set_xscale("log")
    axes.set_xlim(0.85, most * 1.18 + 0.2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(style.short_count))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _note(counts: pl.DataFrame, candidates: str, confidence: float, has_picks: bool) -> str:
    half_width = (counts["high"] - counts["low"]).median()
    lines = [
        f"Grey band: {confidence:.0%} of the draws of random solutions, all {candidates} as they are.",
        f"Enough: from this number on, the mean over draws is within {WITHIN} of all; interval over {candidates}.",
    ]
    if half_width is not None:
        lines.append(
            f"Intervals of the lines above over {candidates}, not drawn: median half-width {half_width / 2:.2f}."
        )
    if has_picks:
        lines.append(
            f"Picks are made on half of the {candidates}, judged on the others. Bands below: paired, over {candidates}."
        )
    lines += sorted({style.capital(note) + "." for note in counts["note"] if note and note != "extrapolated"})
    return "\n".join(lines)
