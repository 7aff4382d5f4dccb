"""Figures of what a choice costs: regret over compute and by method, and how sure a predicted gap is.

They are made from the tables choices and margins. A row of what is drawn carries its `label` and `colour`
(`corpus_methods`, `model_methods`), so that corpora and models are drawn alike.
"""

from collections.abc import Sequence
from itertools import product

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from proxycast.experiments.choosing.choice_rows import ELSEWHERE
from proxycast.experiments.margins import SEED_NOISE, SPREAD, SURE
from proxycast.report import style
from proxycast.report.model_selection_figures import KIND_LOOKS, TAILS, method_name

LINED = (
    *("multiple_choice_accuracy", "primary_metric", "choice_log_likelihood", "generic_cross_entropy"),
    *("expert_cross_entropy", "bits_per_byte"),
)
BEST = 5  # proxies that are shown for what they got in hindsight
MOST_CURVES = 4
UNIT_NAMES = {SPREAD: "Gap, in spreads", SEED_NOISE: "Gap, in seed noise"}
# Calibrations that are shown first, behind those of what was named in advance.
FIRST = ("rank_svm_linear", "univariate", "bits_per_byte", "expert_cross_entropy", *LINED)


def corpus_methods(rows: pl.DataFrame, highlighted: Sequence[tuple[str, str]]) -> pl.DataFrame:
    """Rows of a data selection with `label`, `colour`, `highlighted` in advance, and `named`: that, or a baseline."""
    key = list(zip(rows["statistic"], rows["weighting"], rows["kind"]))
    names = {
        "label": [style.readable(statistic, weighting) for statistic, weighting, _ in key],
        "colour": [style.look(statistic).colour for statistic, *_ in key],
        "highlighted": [(statistic, weighting) in highlighted for statistic, weighting, _ in key],
        "named": [(s, w) in highlighted or kind == "baseline" for s, w, kind in key],
    }
    kinds = {"label": pl.String, "colour": pl.String, "highlighted": pl.Boolean, "named": pl.Boolean}
    return rows.with_columns(pl.Series(name, values, kinds[name]) for name, values in names.items())


def first_methods(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    """The `named` rows, the `highlighted` ones first, then those of `FIRST`, by the column `name`."""
    order = {method: place for place, method in enumerate(dict.fromkeys(FIRST))}
    place = pl.col(name).replace_strict(order, default=len(order), return_dtype=pl.Int64)
    place = pl.when("highlighted").then(-1).otherwise(place)
    return rows.filter("named").sort(place, maintain_order=True)


def model_methods(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of a model selection with the same columns, of the tail that is drawn where there are two."""
    tail = next((tail for tail in TAILS if tail in set(rows["tail"])), "")
    rows = rows.filter(pl.col("tail").is_in([tail, ""]))
    labels = pl.Series("label", [method_name(method) for method in rows["method"]], pl.String)
    colours = pl.Series("colour", [KIND_LOOKS[kind][1] for kind in rows["kind"]], pl.String)
    return rows.with_columns(labels, colours, named=pl.lit(True), highlighted=pl.lit(False))


@matplotlib.rc_context(style.STYLE)
def regret_over_compute(
    choices: pl.DataFrame, highlighted: Sequence[tuple[str, str]], metric: str, warning: str = ""
) -> Figure:
    """Regret of the pick over training compute: all methods as points, the highlighted and main baselines as lines.

    `choices`: the table of a data selection. Each value is the mean over single seeds. The step line is the least
    regret at no more compute, chosen after the results were seen.
    """
    rows = choices.filter(pl.col("seed") == "single", pl.col("compute_fraction") > 0).sort("compute_fraction")
    figure = style.canvas(7.2, 4.4)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(style.Powers())
    axes.xaxis.set_minor_formatter(style.Powers())
    for kind, drawing in (("proxy", {"marker": ".", "color": "0.75"}), ("baseline", {"marker": "x", "color": "0.5"})):
        cloud = rows.filter(kind=kind).select("compute_fraction", "regret")
        axes.plot(*cloud.to_numpy().T, ls="", ms=3, mew=0.6, rasterized=True, zorder=1, **drawing)
    names = [*((name, "none") for name in LINED), *highlighted]
    lines = [rows.filter(statistic=s, weighting=w) for s, w in dict.fromkeys(names)]
    lines = [line for line in lines if len(line)]
    ends = [_line(axes, line, place, len(lines)) for place, line in enumerate(lines)]
    low, high = rows["compute_fraction"].min(), rows["compute_fraction"].max()
    room, random = style.log_room(low, high, 0.03), rows["random_regret"][0]
    least = rows.group_by("compute_fraction").agg(pl.col("regret").min()).sort("compute_fraction")
    steps = least["regret"].cum_min().to_list()
    axes.step(
        [*least["compute_fraction"], high * room], [*steps, steps[-1]], where="post", color="0.25", lw=0.9, zorder=1.5
    )
    ends.append((high * room, steps[-1], "Least in hindsight,\nover all methods", "0.25"))
    axes.set_xlim(low / room**9, high * room)  # on the left, room for the name of the horizontal line
    highest = max([random, *(line.select(pl.max_horizontal("regret", "regret_high").max()).item() for line in lines)])
    axes.set_ylim(-0.03 * highest, 1.06 * highest)
    axes.axhline(random, lw=0.8, color="0.55", zorder=0.5)
    axes.annotate(
        f"random choice {random:.3g}",
        *((0, random), (3, 1.5), axes.get_yaxis_transform(), "offset points"),
        **{"fontsize": style.SMALL, "color": "0.45", "va": "bottom"},
    )
    axes.set_xlabel("Training compute of one small run, as a fraction of one target run's")
    axes.set_ylabel(f"Regret of the pick\n({_unit(metric)})")
    style.add_title(figure, "What choosing the corpus with the best score costs, by training compute", warning)
    note = (
        "Regret: the target models' result on the best corpus less that on the picked one; mean over single seeds.\n"
        "Grey points: every proxy. Grey crosses: every baseline. Bars: bootstrap intervals over corpora."
    )
    if (choices["note"] == ELSEWHERE).any():
        note += "\nIntervals are those of the study's budgets and of the last step of each size."
    style.add_note(figure, note)
    style.label_ends(figure, axes, ends)
    return figure


def _line(axes: Axes, rows: pl.DataFrame, place: int, count: int) -> tuple[float, float, str, str]:
    """Draw one method over compute -> its end: x, y, label, colour."""
    statistic, weighting = rows["statistic"][0], rows["weighting"][0]
    look, proxy = style.look(statistic), weighting != "none"
    at, value, low, high = (
        rows[name].cast(pl.Float64).to_numpy() for name in ("compute_fraction", "regret", "regret_low", "regret_high")
    )
    common = {"color": look.colour, "transform": style.aside(axes, place, count, points=1.6)}
    marker = style.WEIGHTING_LOOKS.get(weighting, ("", "o"))[1] if proxy else look.marker
    drawing = {"ls": "-", "lw": 1.6} if proxy else {"ls": (0, (4, 1.5)), "lw": 0.9, "mfc": "white"}
    axes.plot(at, value, marker=marker, ms=3.8, mew=0.8, zorder=4 if proxy else 3, **common, **drawing)
    axes.vlines(at, low, high, lw=0.9 if proxy else 0.6, alpha=0.6, zorder=2, **common)
    return at[-1], value[-1], style.readable(statistic, weighting).replace(", ", ",\n"), look.colour


@matplotlib.rc_context(style.STYLE)
def regret_by_method(rows: pl.DataFrame, title: str, metric: str, units: str, warning: str = "") -> Figure:
    """Regret of the pick and of the best of the top k, and recall and NDCG at k, of each method; least regret first.

    `rows`: of one budget and seed, or of one split, with `label`, `colour` and `named`. Of methods that were not named
    in advance the best by decision accuracy are shown.
    """
    others = rows.filter(~pl.col("named")).sort("decision_accuracy", descending=True, nulls_last=True).head(BEST)
    shown = pl.concat([rows.filter("named"), others])
    shown = shown.sort("regret", "regret_top", "decision_accuracy", descending=[False, False, True])
    figure, k = style.canvas(7.2, 0.23 * len(shown) + 1.9), shown["top_k"][0]
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    heights = np.arange(len(shown))
    # A task in a large unit may put chance so far away that nothing else could be seen.
    ends = shown.select(pl.max_horizontal("regret", "regret_high", "regret_top", "regret_top_high").max()).item()
    farthest = {left: 20 * ends or np.inf, right: np.inf}
    pick, top = {"marker": "o", "filled": True}, {"marker": "D", "filled": False}
    for axes, figures in ((left, (("regret", pick), ("regret_top", top))), (right, (("recall", pick), ("ndcg", top)))):
        for place, (name, drawing) in enumerate(figures):
            _dots(axes, shown, name, heights + 0.2 * (2 * place - 1), **drawing)
            if shown[f"random_{name}"][0] <= farthest[axes]:
                axes.axvline(shown[f"random_{name}"][0], lw=0.8, ls=("-", (0, (2, 2)))[place], color="0.6", zorder=0.5)
        for y in heights[1::2]:
            axes.axhspan(y - 0.5, y + 0.5, color="0.965", lw=0, zorder=0)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    left.set_yticks(heights, shown["label"].to_list())
    for label, colour in zip(left.get_yticklabels(), shown["colour"]):
        label.set_color(colour)
    left.set_ylim(len(shown) - 0.5, -0.5)
    left.set_xlabel(f"Regret\n({_unit(metric)})")
    right.set_xlabel(f"Recall and NDCG at {k}")
    right.set_xlim(-0.03, 1.03)
    _key(left, (("the pick", pick), (f"best of the top {k}", top)))
    _key(right, ((f"recall at {k}", pick), (f"NDCG at {k}", top)))
    style.add_title(figure, title, warning)
    note = f"Bars: bootstrap intervals over {units}. Vertical lines: a random choice (dashed: of the hollow markers)."
    if len(others):
        note += (
            f"\nBeside the methods named in advance and all baselines: the {len(others)} other proxies that order most "
        )
        note += "pairs rightly, in hindsight."
    if shown["random_regret"][0] > farthest[left]:
        note += f"\nA random choice is not shown: it loses {shown['random_regret'][0]:.3g}."
    missing = _missing(shown, units)
    style.grow(figure, missing.count("\n") + note.count("\n"))
    style.add_note(figure, note + missing)
    return style.settled(figure)


def _dots(axes: Axes, rows: pl.DataFrame, name: str, heights: np.ndarray, marker: str, filled: bool) -> None:
    for y, value, low, high, colour in zip(
        heights, rows[name], rows[f"{name}_low"], rows[f"{name}_high"], rows["colour"]
    ):
        if low is not None:
            axes.hlines(y, low, high, color=colour, lw=0.9, alpha=0.7, zorder=2)
        if value is not None:
            axes.plot(value, y, marker=marker, ms=3.8, mec=colour, mfc=colour if filled else "white", mew=0.9, zorder=3)


def _key(axes: Axes, names: Sequence[tuple[str, dict]]) -> None:
    handles = [
        axes.plot([], [], ls="", marker=look["marker"], ms=4, mec="0.3", mfc="0.3" if look["filled"] else "white")[0]
        for _, look in names
    ]
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2, "frameon": False, "fontsize": style.SMALL}
    axes.legend(handles, [name for name, _ in names], handletextpad=0.1, borderpad=0, borderaxespad=0.3, **place)


@matplotlib.rc_context(style.STYLE)
def gap_calibration(margins: pl.DataFrame, title: str, units: str, warning: str = "") -> Figure:
    """Share of pairs that are ordered rightly over the predicted gap, a panel for each method and unit.

    `margins`: rows of one budget and seed, or of one split, with `label` and `colour`, the first methods first.
    """
    methods = margins["label"].unique(maintain_order=True).to_list()[:MOST_CURVES]
    if not methods:
        return style.without_data(title, "No score of this study differs between candidates.")
    kinds = [unit for unit in UNIT_NAMES if unit in set(margins["unit"])]
    drawn = list(product(kinds, methods))
    columns = len(methods) if len(methods) > 2 else MOST_CURVES
    rows = -(-len(drawn) // columns)
    figure = style.canvas(1.75 * columns + 0.7, 2.15 * rows + 1.2)
    grid = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for spare in grid[len(drawn) :]:
        spare.remove()
    widest = dict(margins.filter(pl.col("label").is_in(methods)).group_by("unit").agg(pl.col("gap").max()).iter_rows())
    for number, (axes, (unit, method)) in enumerate(zip(grid, drawn)):
        own = margins.filter(unit=unit, label=method)
        axes.axhline(0.5, lw=0.6, color="0.55", zorder=0.5)
        axes.axhline(SURE, lw=0.7, ls=(0, (1, 1.5)), color="0.3", zorder=0.5)
        if len(own):
            _curve(axes, own)
        if number < columns:
            axes.set_title(method.replace(", ", ",\n"), fontsize=7.5)
        axes.set_xlabel(UNIT_NAMES[unit])
        axes.set_xlim(0, 1.08 * widest[unit])
    grid[0].set_ylim(-0.03, 1.05)
    grid[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.supylabel("Pairs ordered as in truth")
    style.add_title(figure, title, warning)
    note = (
        f"Points: pairs in bins of the gap, bars: bootstrap intervals over {units}, none where every sample gives the "
        f"same extreme.\nCurve: logistic regression through 50 % at a gap of 0. Dotted: {SURE:.0%}; in words the gap "
        "that reaches it, with its interval.\nSpread: standard deviation of the scores between candidates."
    )
    style.add_note(figure, note)
    return style.settled(figure)


def _curve(axes: Axes, rows: pl.DataFrame) -> None:
    """One method in one unit: its bins, its curve, and the gap that is right as often as `SURE` says."""
    first, colour = rows.row(0, named=True), rows["colour"][0]
    at, right, low, high = (rows[n].cast(pl.Float64).to_numpy() for n in ("gap", "right", "right_low", "right_high"))
    axes.vlines(at, low, high, color=colour, lw=0.9, alpha=0.7, zorder=2)
    axes.plot(at, right, ls="", marker="o", ms=3.6, color=colour, mec="white", mew=0.4, zorder=3)
    if first["slope"] is None:
        return
    x = np.linspace(0, 1.2 * at.max(), 200)
    axes.plot(x, 1 / (1 + np.exp(-first["slope"] * x)), color=colour, lw=1.1, zorder=1)
    if first["gap_85"] is None:
        said = "no gap is\nright so often"
    else:
        high = "∞" if first["gap_85_high"] is None else f"{first['gap_85_high']:.2g}"
        low = first["gap_85_low"]
        said = f"{SURE:.0%} at {first['gap_85']:.2g}" + ("" if low is None else f"\n[{low:.2g}, {high}]")
    place = (1, 0), (-4, 4), "axes fraction", "offset points"
    paper = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.85}
    axes.annotate(said, *place, fontsize=style.SMALL, ha="right", va="bottom", color=colour, bbox=paper)


def _missing(rows: pl.DataFrame, units: str) -> str:
    """Whether an interval is missing, in words."""
    lows = [low for name in ("regret", "regret_top", "recall", "ndcg") for low in rows[f"{name}_low"]]
    return style.about_missing_intervals(lows, units)


def _unit(metric: str) -> str:
    look = style.look(metric)
    name = f"{look.label[0].lower()}{look.label[1:]}"
    return f"{name}, {look.unit}" if look.unit else name
