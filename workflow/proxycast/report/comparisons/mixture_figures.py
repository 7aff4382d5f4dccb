"""Figures of the regression over mixtures: how it does on mixtures held out, and which it proposes next."""

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from proxycast.experiments.laws.mixture_law import LAW, NEAREST
from proxycast.report import style

TITLE_HELD_OUT = "What the ratios of sources predict of mixtures that were held out"
TITLE_NEXT = "Which mixture next: what the log-linear law proposes, and the best mixture seen"
OF_LAW, OF_NEAREST, OTHER = "#0072B2", "0.55", "0.8"
ROW_INCHES = 0.27
LARGEST_SOURCES = 10
COLOURS = (*style.COLOURS, "#B08A5B", "#44AA99")
WHY_NOTHING = "Too few mixtures share all their sources with others; the log says how many are needed."


def _shown(regression: pl.DataFrame) -> list[str]:
    """The first metric of each kind: a proxy and bits per byte at the largest budget, and the truth."""
    return regression.unique("kind", keep="first", maintain_order=True)["metric"].to_list()


def _title(metric: str) -> str:
    name, *parts = metric.split("/")
    return f"{name}\n{', '.join(parts)}"


@matplotlib.rc_context(style.STYLE)
def held_out(predictions: pl.DataFrame, regression: pl.DataFrame) -> Figure:
    """Predicted against measured value of every mixture that was held out, by the law and by the nearest mixture.

    `predictions`, `regression`: the tables mixture_predictions and mixture_regression.
    """
    if regression.is_empty():
        return style.without_data(TITLE_HELD_OUT, WHY_NOTHING)
    metrics = _shown(regression)
    figure, grid, _ = style.panels(len(metrics), (7.2 / len(metrics), 2.3), (0, 1.0), most=3)
    for axes, metric in zip(grid, metrics, strict=True):
        rows = predictions.filter(metric=metric)
        _draw_predictions(axes, rows, regression.filter(metric=metric))
        axes.set_title(_title(metric))
        axes.set_xlabel("Measured, lower is better")
        axes.locator_params(nbins=5)
    grid[0].set_ylabel("Predicted without the mixture")
    told = regression.row(0, named=True)
    style.add_title(figure, TITLE_HELD_OUT)
    style.add_note(
        figure,
        f"Blue: the log-linear law in the ratios; grey rings: the value of the nearest other mixture. "
        f"{told['mixtures']} mixtures of {told['sources']} sources.\n"
        "Spearman's \u03c1 with bootstrap intervals over mixtures. On the line, prediction and measurement are equal.",
    )
    return style.settled(figure)


def _draw_predictions(axes: Axes, rows: pl.DataFrame, judged: pl.DataFrame) -> None:
    x, y = rows["value"].to_numpy(), rows["predicted"].to_numpy()
    for method, face, edge, order in ((NEAREST, "none", OF_NEAREST, 2), (LAW, OF_LAW, "none", 3)):
        of_method = (rows["method"] == method).to_numpy()
        axes.plot(x[of_method], y[of_method], "o", ms=4.5, mfc=face, mec=edge, mew=0.9, zorder=order)
    ends = [x.min(), x.max()]
    axes.plot(ends, ends, color="0.8", lw=0.8, zorder=1)
    lines = []
    for method, name in ((LAW, "law"), (NEAREST, "nearest")):
        row = judged.row(by_predicate=pl.col("method") == method, named=True)
        lines.append(f"{name} \u03c1 {style.value_with_interval(row, 'spearman', '')}")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.35 * (high - low))  # room for the text
    at = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate("\n".join(lines), (0, 1), (6, -4), va="top", fontsize=7.5, linespacing=1.4, **at)


@matplotlib.rc_context(style.STYLE)
def next_mixtures(proposed: pl.DataFrame, ratios: pl.DataFrame, regression: pl.DataFrame) -> Figure:
    """The best mixture seen and the proposed ones as stacked bars of their sources, with value and distance.

    `proposed`, `ratios`, `regression`: the tables next_mixtures, ratios and mixture_regression.
    """
    if proposed.is_empty():
        return style.without_data(TITLE_NEXT, WHY_NOTHING)
    metrics = _shown(regression)
    rows = [_bars(proposed.filter(metric=metric), ratios) for metric in metrics]
    together = pl.concat(bars.select("source", "ratio") for bars, _ in rows)
    by_share = together.group_by("source").agg(pl.col("ratio").sum()).sort("ratio", "source", descending=[True, False])
    sources = by_share.filter(pl.col("ratio") > 0)["source"].to_list()
    colours = {source: COLOURS[n] if n < LARGEST_SOURCES else OTHER for n, source in enumerate(sources)}
    height = sum(len(labels) for _, labels in rows) * ROW_INCHES + 0.45 * len(metrics)
    figure = style.canvas(7.2, height + 1.5)
    grid = figure.subplots(len(metrics), 1, squeeze=False, height_ratios=[len(labels) + 1 for _, labels in rows])
    for axes, metric, (bars, labels) in zip(grid.flat, metrics, rows, strict=True):
        _draw_bars(axes, bars, labels, colours)
        axes.set_title(metric.replace("/", ", "))
    grid.flat[-1].set_xlabel("Share of the tokens")
    named = {source: colour for source, colour in colours.items() if colour != OTHER}
    named |= {"other sources": OTHER} if len(sources) > LARGEST_SOURCES else {}
    handles = [matplotlib.patches.Patch(color=colour, label=source) for source, colour in named.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=style.SMALL)
    style.add_title(figure, TITLE_NEXT, _doubts(regression, metrics))
    return style.settled(figure)


def _doubts(regression: pl.DataFrame, metrics: list[str]) -> str:
    """What puts the proposals in doubt, in one sentence."""
    laws = regression.filter(pl.col("metric").is_in(metrics), method=LAW)
    doubted = laws.filter(pl.col("note") != "")
    if doubted.is_empty():
        return ""
    metric, note = doubted.select("metric", "note").row(0)
    return f"Caution: the law is in doubt in {len(doubted)} of {len(laws)} panels. By {metric.split('/')[0]}: {note}."


def _bars(proposed: pl.DataFrame, ratios: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, str]]:
    """run, source, ratio of the best mixture seen and of the proposed ones; what stands behind each bar."""
    first = proposed.row(0, named=True)
    seen = ratios.filter(run=first["best_seen"]).select("run", "source", "ratio")
    labels = {first["best_seen"]: f"measured {first['best_value']:.3g}"}
    for row in proposed.unique("run", keep="first", maintain_order=True).iter_rows(named=True):
        ends = "" if row["low"] is None else f" [{row['low']:.3g}, {row['high']:.3g}]"
        place = f"{row['distance']:.0%} from {row['nearest']}" + ("" if row["inside"] else ", outside")
        labels[row["run"]] = f"predicted {row['predicted']:.3g}{ends}\n{place}"
    return pl.concat([seen, proposed.select("run", "source", "ratio")]), labels


def _draw_bars(axes: Axes, bars: pl.DataFrame, labels: dict[str, str], colours: dict[str, str]) -> None:
    for y, (run, label) in enumerate(labels.items()):
        shares = dict(bars.filter(run=run).select("source", "ratio").iter_rows())
        left = 0.0
        for source, colour in colours.items():
            share = shares.get(source, 0.0)
            axes.barh(y, share, left=left, height=0.72, color=colour, lw=0)
            left += share
        axes.annotate(
            label,
            (1, y),
            (5, 0),
            ("axes fraction", "data"),
            "offset points",
            va="center",
            fontsize=6.2,
            linespacing=1.0,
        )
    axes.set_yticks(np.arange(len(labels)), list(labels))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
