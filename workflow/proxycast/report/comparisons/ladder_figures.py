"""The figures of the two-step law: what it forecast against what came, and the law over compute by size."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from proxycast.experiments.forecasting.methods import TWO_STEP
from proxycast.experiments.forecasting.observed import TRUTH
from proxycast.experiments.laws.two_step import LossLaw, Sigmoid, TwoStepLaw
from proxycast.report import style

MODEL = "#D55E00"
LINE_POINTS = 80
NO_LAW = (
    "No law was fitted: the runs are too few or too much alike, or no statistic and truth go together with it.\n"
    "The log of the forecasts says what is missing."
)


def _colours(sizes: Sequence[float]) -> dict[float, str]:
    """N -> its colour, the darker the larger."""
    shades = matplotlib.colormaps["viridis_r"](np.linspace(0.12, 1, len(sizes)))
    return dict(zip(sizes, map(matplotlib.colors.to_hex, shades), strict=True))


@matplotlib.rc_context(style.STYLE)
def two_step_predictions(two_step: pl.DataFrame, metric: str) -> Figure:
    """What `two_step` forecast at the last horizon against the truth, of every run and model, a panel for each task."""
    rows = two_step.filter(pl.col("kind") != "ladder", pl.col("truth").is_not_null(), method=TWO_STEP)
    title = f"Two-step law: forecasts of {_in_words(metric)}"
    if rows.is_empty():
        return style.without_data(title, NO_LAW if two_step.is_empty() else "Nothing that it forecast is known yet.")
    tasks = rows["task"].unique(maintain_order=True).to_list()
    figure, grid, columns = style.panels(len(tasks), _size(len(tasks)), (1.6, 1.0))
    colours = _colours(_sizes(two_step))
    for axes, task in zip(grid, tasks, strict=True):
        own = rows.filter(task=task)
        _forecasts_and_truths(axes, own, colours)
        rmse = own.select((pl.col("error").filter(kind="run") ** 2).mean().sqrt()).item()
        axes.set_title(task + ("" if rmse is None else f" (RMSE {rmse:.3f})"))
    figure.supylabel("Forecast")
    for axes in grid[-columns:]:
        axes.set_xlabel("Truth")
    style.add_title(figure, title)
    _legend(figure, colours, rows, "Runs by size N")
    style.add_note(
        figure,
        "A run is forecast from its cut by the law of the others, a model (star) by that of all.\n"
        "Bars: intervals. On the line forecast and truth are the same. RMSE: of the runs.",
    )
    return style.settled(figure)


def _forecasts_and_truths(axes: Axes, rows: pl.DataFrame, colours: Mapping[float, str]) -> None:
    for row in rows.iter_rows(named=True):
        is_model = row["kind"] == "model"
        colour = MODEL if is_model else colours[row["parameters"]]
        if row["low"] is not None:
            axes.vlines(row["truth"], row["low"], row["high"], color=colour, lw=0.8, alpha=0.5, zorder=1)
        drawing = {"marker": "*", "ms": 9} if is_model else {"marker": "o", "ms": 3.2}
        axes.plot(row["truth"], row["predicted"], color=colour, mew=0, zorder=3 if is_model else 2, **drawing)
    values = rows.select("truth", "predicted", "low", "high").to_numpy()
    least, most = np.nanmin(values), np.nanmax(values)
    room = max(0.05 * (most - least), 0.005)
    axes.plot([least - room, most + room], [least - room, most + room], color="0.6", lw=0.7, zorder=0)
    axes.set_xlim(least - room, most + room)
    axes.set_ylim(least - room, most + room)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))


@matplotlib.rc_context(style.STYLE)
def two_step_law(two_step: pl.DataFrame, observed: pl.DataFrame, metric: str, *, higher_is_better: bool) -> Figure:
    """The law of all runs over training compute, a line for each size, with the runs' ends and the models."""
    # Of a pool, its first member is drawn.
    laws = two_step.filter(pl.col("log_a").is_not_null(), kind="ladder").unique(
        "task", keep="first", maintain_order=True
    )
    title = "The two-step law of all runs"
    if laws.is_empty():
        return style.without_data(title, NO_LAW)
    figure, grid, columns = style.panels(len(laws), _size(len(laws)), (1.6, 1.0), sharex=True)
    colours = _colours(_sizes(two_step))
    models = two_step.filter(pl.col("kind") == "model")
    for axes, row in zip(grid, laws.iter_rows(named=True), strict=True):
        axes.set_title(row["task"])
        ends = _ends(two_step, observed.filter(series=TRUTH, task=row["task"]))
        law = TwoStepLaw(
            LossLaw(*(row[name] for name in ("log_a", "log_b", "alpha", "beta", "floor"))),
            Sigmoid(*(row[name] for name in ("height", "midpoint", "slope", "greatest"))),
            *(ends[name].to_numpy() for name in ("parameters", "tokens")),
        )
        _law_over_compute(axes, law, ends, colours, higher_is_better=higher_is_better)
        for model in models.filter(task=row["task"], method=row["method"]).iter_rows(named=True):
            _model_over_compute(axes, law, model, ends, higher_is_better=higher_is_better)
    _compute_axis(grid, columns)
    unit = style.look(metric).unit
    figure.supylabel(style.look(metric).label + (f" ({unit})" if unit else ""))
    style.add_title(figure, title)
    _legend(figure, colours, models, "Ends of runs\nby size N")
    statistic = laws["method"].str.strip_prefix(f"{TWO_STEP}, ").unique().to_list()
    told = f"\nDrawn: the law on {style.readable(*statistic[0].split('/'))}." if statistic != [TWO_STEP] else ""
    known = "\nA cross is what the law says of a model, a star what it scored." if len(models) else ""
    style.add_note(figure, f"Lines: the law, from fewer to more tokens; dashed: beyond the runs.{known}{told}")
    return style.settled(figure)


def _size(panels: int) -> tuple[float, float]:
    return (1.65, 1.6) if panels > 3 else (max(4.95 / panels, 1.65), 2.3)


def _sizes(two_step: pl.DataFrame) -> list[float]:
    return two_step.filter(kind="run")["parameters"].unique().sort().to_list()


def _ends(two_step: pl.DataFrame, truth: pl.DataFrame) -> pl.DataFrame:
    """run, parameters, tokens, value: the last truth of every run of the ladder."""
    sizes = two_step.filter(kind="run").select("run", "parameters").unique()
    last = truth.sort("step").group_by("run", maintain_order=True).last().select("run", "tokens", "value")
    return sizes.join(last, on="run").sort("parameters", "tokens")


def _law_over_compute(
    axes: Axes, law: TwoStepLaw, ends: pl.DataFrame, colours: Mapping[float, str], *, higher_is_better: bool
) -> None:
    for size, colour in colours.items():
        own = ends.filter(parameters=size)
        if own.is_empty():
            continue
        tokens = np.geomspace(own["tokens"].min() / 1.5, own["tokens"].max() * 1.5, LINE_POINTS)
        line = law(size, tokens)
        axes.plot(6 * size * tokens, line if higher_is_better else 1 - line, color=colour, lw=1.0, zorder=2)
        compute = 6 * size * own["tokens"].to_numpy()
        axes.plot(compute, own["value"], ls="", marker="o", ms=3.2, mew=0, color=colour, zorder=3)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _model_over_compute(
    axes: Axes, law: TwoStepLaw, model: dict, ends: pl.DataFrame, *, higher_is_better: bool
) -> None:
    n, d = model["parameters"], model["tokens"]
    tokens = np.geomspace(min(ends["tokens"].max(), d / 2), d, LINE_POINTS)
    line = law(n, tokens)
    axes.plot(6 * n * tokens, line if higher_is_better else 1 - line, color=MODEL, lw=1.0, ls=(0, (3, 1.5)), zorder=2)
    if model["low"] is not None:
        axes.vlines(6 * n * d, model["low"], model["high"], color=MODEL, lw=0.9, alpha=0.6, zorder=2)
    axes.plot(6 * n * d, model["predicted"], marker="x", ms=5, mew=1.3, color=MODEL, zorder=4)
    if model["truth"] is not None:
        axes.plot(6 * n * d, model["truth"], marker="*", ms=8, mew=0, color=MODEL, zorder=3)


def _compute_axis(grid: Sequence[Axes], columns: int) -> None:
    first = grid[0]
    first.set_xscale("log")
    first.xaxis.set_major_locator(LogLocator(numticks=5))
    first.xaxis.set_major_formatter(style.Powers())
    first.xaxis.set_minor_formatter(NullFormatter())
    for axes in grid[-columns:]:
        axes.set_xlabel("Compute 6 N D (FLOPs)")


def _in_words(metric: str) -> str:
    name = style.look(metric).label
    return name[0].lower() + name[1:]


def _legend(figure: Figure, colours: Mapping[float, str], rows: pl.DataFrame, title: str) -> None:
    points = {"ls": "", "mew": 0}
    handles = [
        Line2D([], [], marker="o", ms=4, color=colour, label=f"{style.short_count(float(f'{size:.2g}'))}", **points)
        for size, colour in colours.items()
    ]
    names = rows.filter(kind="model")["run"].unique(maintain_order=True).to_list()
    handles += [Line2D([], [], marker="*", ms=8, color=MODEL, label=name, **points) for name in names]
    drawing = {"frameon": False, "fontsize": style.SMALL, "title_fontsize": style.SMALL, "alignment": "left"}
    figure.legend(handles=handles, loc="outside right upper", title=title, handletextpad=0.3, **drawing)
