"""The figures of the models' order, from the tables `ranking`, `pairs` and `agreement` of `model_selection/`.

The first row of each table names the method whose order is told first (`model_ranking.leading_method`).
"""

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from proxycast.experiments.model_selection.model_ranking import ALL_TASKS, IN_SAMPLE, PARTLY
from proxycast.report import style
from proxycast.report.model_selection_figures import method_name

PREDICTED, LEARNED = "#0072B2", "0.6"
TAIL_WORDS = {"tokens": "last tokens", "bytes": "last bytes"}
NOT_JUDGED = "No truth, so nothing is judged: give `target` to learn how well each method orders the models."
MOST_COLUMNS = 4
LEAST_WIDTH = 6.6  # inches, which the notes need


def leading(table: pl.DataFrame) -> pl.DataFrame:
    """The rows of the method that is told first."""
    first = table.row(0, named=True)
    return table.filter(method=first["method"], tail=first["tail"])


def method_names(ranking: pl.DataFrame) -> dict[tuple[str, str], str]:
    """(method, tail) -> the name shown to people, as the table orders them, with the tail where there are several."""
    methods = ranking.select("method", "tail").unique(maintain_order=True).rows()
    several = len({tail for _, tail in methods if tail}) > 1
    return {
        (method, tail): f"{method_name(method)} ({TAIL_WORDS[tail]})" if several and tail else method_name(method)
        for method, tail in methods
    }


def about_method(ranking: pl.DataFrame) -> str:
    """The line that names the method of a figure, and why it is this one."""
    first = ranking.row(0, named=True)
    name = method_names(ranking)[first["method"], first["tail"]]
    rho = first["held_out_spearman"]
    unjudged = "named in advance (`highlighted`)." if first["tail"] else "which nothing judges."
    return f"Method: {name}, " + (unjudged if rho is None else f"best where two tasks are held out (mean ρ {rho:.2f}).")


@matplotlib.rc_context(style.STYLE)
def models_ranked(ranking: pl.DataFrame) -> Figure:
    """Score and interval of every model, best first over all tasks: a panel for all tasks, and one for each."""
    table = leading(ranking)
    order = table.filter(task=ALL_TASKS)["model"].to_list()
    tasks = table["task"].unique(maintain_order=True).to_list()
    tasks = tasks[1:] if len(tasks) == 2 else tasks  # a single task's own scores say more
    width = max(1.7, (LEAST_WIDTH - 1.6) / min(len(tasks), MOST_COLUMNS))
    figure, grid, columns = style.panels(
        len(tasks), (width, 0.19 * len(order) + 0.5), (1.6, 1.5), MOST_COLUMNS, sharey=True
    )
    for axes, task in zip(grid, tasks, strict=True):
        rows = {row["model"]: row for row in table.filter(task=task).iter_rows(named=True)}
        _draw_order(axes, [rows[model] for model in order])
        axes.set_title("All tasks" if task == ALL_TASKS else task)
        axes.tick_params(labelbottom=True)
    grid[0].set_yticks(range(len(order)), order)
    grid[0].set_ylim(len(order) - 0.4, -0.6)
    for axes in grid[-columns:]:
        axes.set_xlabel("Score, more is better")
    style.add_title(figure, "The models in their predicted order")
    style.add_note(figure, _about_order(ranking, table))
    return style.settled(figure)


def _draw_order(axes: Axes, rows: list[dict]) -> None:
    for height, row in enumerate(rows):
        colour = LEARNED if row["rests_on"] in (IN_SAMPLE, PARTLY) else PREDICTED
        if row["score_low"] is not None:
            axes.hlines(height, row["score_low"], row["score_high"], color=colour, lw=1.2)
        axes.plot(row["score"], height, marker="o", ms=4, mew=0, color=colour)
        place = (1, height), (3, 0), axes.get_yaxis_transform(), "offset points"
        axes.annotate(_place(row), *place, fontsize=6, color="0.3", va="center_baseline")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.margins(x=0.08)


def _place(row: dict) -> str:
    """Its place, and after it the interval: "2 [1–4]"."""
    if row["place_low"] is None or row["place_low"] == row["place_high"]:
        return f"{row['place']:g}"
    return f"{row['place']:g} [{row['place_low']:.3g}–{row['place_high']:.3g}]"


def _about_order(ranking: pl.DataFrame, table: pl.DataFrame) -> str:
    lines = [about_method(ranking)]
    lines.append("Beside the axes: the place, 1 is best. Bars and brackets: bootstrap intervals over the solutions.")
    if table["task"].n_unique() > 2:
        lines.append(
            "All tasks: mean over tasks of the score there, in standard deviations over models from their mean."
        )
    if table["score_low"].null_count():
        lines.append("Without a bar: nothing could be resampled (one solution, or one value for all).")
    if set(table["rests_on"]) & {IN_SAMPLE, PARTLY}:
        lines.append("Grey: the scorer has learned from this model's own truth here, so its place is no prediction.")
    if ranking["held_out_spearman"].null_count() == len(ranking):
        lines.append(NOT_JUDGED)
    return "\n".join(lines)


@matplotlib.rc_context(style.STYLE)
def model_pairs(pairs: pl.DataFrame, ranking: pl.DataFrame) -> Figure:
    """Which pairs of models can be told apart over all tasks: a square for each pair, the better model in its row."""
    order = leading(ranking).filter(task=ALL_TASKS)["model"].to_list()
    table = leading(pairs).filter(task=ALL_TASKS)
    grid = np.full((len(order), len(order)), np.nan)
    for row in table.drop_nulls("told_apart").iter_rows(named=True):
        grid[order.index(row["better"]), order.index(row["worse"])] = row["told_apart"]
    side = 0.2 * len(order) + 0.3
    figure = style.canvas(max(side + 2.0, LEAST_WIDTH), side + 2.1)
    axes = figure.subplots()
    edges = np.arange(len(order) + 1) - 0.5
    colours = matplotlib.colors.ListedColormap(["0.85", PREDICTED])
    axes.pcolormesh(
        edges, edges, np.ma.masked_invalid(grid), cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1.2
    )
    axes.set_aspect("equal")
    axes.set_xticks(range(len(order)), order, rotation=90)
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_ylabel("Better by score")
    axes.set_xlabel("Worse by score")
    style.add_title(figure, "Which models can be told apart, all tasks")
    told = f"({table['told_apart'].sum()} of {len(table)} pairs)"
    judged = f"Blue: the interval of the difference excludes 0 {told}; grey: it does not."
    if table["told_apart"].null_count():
        judged = "Nothing could be resampled, so no pair is judged."
    about = "Intervals resample the solutions, the same ones for both models of a pair."
    style.add_note(figure, "\n".join([about_method(ranking), judged, about]))
    return style.settled(figure)


@matplotlib.rc_context(style.STYLE)
def model_agreement(agreement: pl.DataFrame, ranking: pl.DataFrame) -> Figure:
    """Spearman's rho between the orders of every two methods over all tasks."""
    names = method_names(ranking)
    place = {method: n for n, method in enumerate(names)}
    grid = np.full((len(names), len(names)), np.nan)
    for row in agreement.filter(task=ALL_TASKS).drop_nulls("spearman").iter_rows(named=True):
        i, j = place[row["method"], row["tail"]], place[row["other_method"], row["other_tail"]]
        grid[i, j] = grid[j, i] = row["spearman"]
    figure = style.canvas(max(0.36 * len(names) + 3.4, LEAST_WIDTH), 0.27 * len(names) + 1.5)
    axes = figure.subplots()
    style.value_cells(axes, grid, len(names), -1)
    axes.set_xticks(range(len(names)), [str(n + 1) for n in place.values()])
    axes.set_yticks(range(len(names)), [f"{name}  {n}" for n, name in enumerate(names.values(), 1)])
    count = leading(ranking).filter(task=ALL_TASKS).height
    style.add_title(figure, f"How far the methods agree on the order of {count} models, all tasks")
    style.add_note(
        figure,
        "Spearman's ρ between two methods; 1: the same order, -1: the reverse.\n"
        "They read the same tokens, so methods that agree may be wrong together.",
    )
    return style.settled(figure)
