"""Figures of scaling laws: what they reach for their compute, whether they help their source, and the fitted curves."""

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from proxycast.report import style

LAW_NAMES = {
    "2_param": "A C⁻ᵅ",
    "3_param": "A C⁻ᵅ + E",
    "2_param-default": "A C⁻ᵅ, sigmoid",
    "3_param-default": "A C⁻ᵅ + E, sigmoid",
    "5_param-ai2": "A N⁻ᵅ + B D⁻ᵝ + E, sigmoid",
    "3_param-1_step": "A C⁻ᵅ + E in a sigmoid, one step",
    "5_param-1_step-ai2": "A N⁻ᵅ + B D⁻ᵝ + E in a sigmoid, one step",
    "3_param-default-helper_points": "A C⁻ᵅ + E, sigmoid with helper point",
    "3_param-default-step2=0.5": "A C⁻ᵅ + E, sigmoid of later half",
    "3_param-default-helper_points-step2=0.5": "A C⁻ᵅ + E, sigmoid with helper point, of later half",
}
METHOD = ["law", "statistic", "weighting"]
CURVES_SHOWN = 5  # corpora, from the best by the truth to the worst
MOST_LEVEL_TICKS = 6  # more of them are turned
GAIN, LOSS, UNCERTAIN = "#0072B2", "#D55E00", "0.45"


def _names(table: pl.DataFrame) -> list[tuple[str, str]]:
    return table.select("statistic", "weighting").unique(maintain_order=True).rows()


def _colours(sources: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The colour of each source: its look's own, or one that no other has."""
    spare = iter(style.COLOURS * len(sources))
    return {source: look if (look := style.look(source[0]).colour) != style.GREY else next(spare) for source in sources}


@matplotlib.rc_context(style.STYLE)
def law_decision_accuracy(
    pareto: pl.DataFrame, gains: pl.DataFrame, ceiling: float | None, warning: str = ""
) -> Figure:
    """Decision accuracy over training compute: sources at each size alone as lines, laws on them as markers.

    The compute of a law is the sum over the runs that it is fitted to. `gains`: a `law_gains` table.
    """
    title = "Scaling laws and single sizes, by training compute"
    gains = gains.filter(seed="single")
    if gains.is_empty():
        return style.without_data(title, "No law predicts all corpora: the table scaling_laws says why.")
    sources = _names(gains)
    colours = _colours(sources)
    alone = pareto.filter(~pl.col("size").is_in(gains["sizes"].implode()), pl.col("compute_fraction") > 0)
    alone = alone.drop_nulls("decision_accuracy")
    figure = style.canvas(7.2, 4.6)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(style.Powers())
    axes.xaxis.set_minor_formatter(style.Powers())
    for kind, marker, colour in (("proxy", ".", "0.78"), ("baseline", "x", "0.6")):
        cloud = alone.filter(kind=kind).select("compute_fraction", "decision_accuracy").to_numpy()
        axes.plot(*cloud.T, ls="", marker=marker, ms=3, mew=0.6, color=colour, rasterized=True, zorder=1)
    handles = []
    for statistic, weighting in sources:
        rows = alone.filter(statistic=statistic, weighting=weighting).sort("compute_fraction")
        line = {"color": colours[statistic, weighting], "label": style.readable(statistic, weighting), "lw": 1.1}
        handles += axes.plot(rows["compute_fraction"], rows["decision_accuracy"], "-", marker=".", zorder=2, **line)
    laws = gains["law"].unique(maintain_order=True).to_list()
    _draw_laws(axes, gains, laws, colours)
    points = pl.concat([alone.select("compute_fraction"), gains.select("compute_fraction")])["compute_fraction"]
    room = style.log_room(points.min(), points.max(), 0.03)
    axes.set_xlim(points.min() / room, points.max() * room**3)
    axes.axhline(0.5, lw=0.6, color="0.55", zorder=0.5)
    note = "Line: chance."
    if ceiling is not None and np.isfinite(ceiling):
        axes.axhline(ceiling, lw=0.8, ls=(0, (1, 1.5)), color="0.15", zorder=0.5)
        note += f" Dotted: noise ceiling {ceiling:.2f}."
    axes.set_ylim(min(0.4, gains["low"].min() or 1, gains["decision_accuracy"].min()) - 0.02, 1.0)
    axes.set_xlabel("Training compute, as a fraction of one target run's: of one run, or of all runs of a law")
    axes.set_ylabel("Decision accuracy (fraction of corpus pairs)")
    for n, law in enumerate(laws):
        marker = style.MARKERS[n % len(style.MARKERS)]
        handles += axes.plot([], [], marker, color="0.3", ms=5, label=f"law {LAW_NAMES[law]}")
    _legend_below_title(figure, title, handles, 3, warning)
    style.add_note(
        figure,
        f"Lines: what the laws extrapolate, at one size alone. Large markers: laws, at the compute of all sizes,\n"
        f"with bootstrap intervals over corpora. Grey points: other proxies; crosses: other baselines. {note}"
        f"{style.about_missing_intervals(gains['low'], 'corpora')}",
    )
    return style.settled(figure)


def _draw_laws(axes: Axes, gains: pl.DataFrame, laws: list[str], colours: dict[tuple[str, str], str]) -> None:
    """A marker and an interval for each law, source and set of sizes: markers tell laws, colours sources."""
    places = {method: n for n, method in enumerate(gains.select(*METHOD).unique(maintain_order=True).rows())}
    for row in gains.iter_rows(named=True):
        place = places[tuple(row[name] for name in METHOD)]
        moved = {"transform": style.aside(axes, place, len(places), 5.0)}
        moved["color"] = colours[row["statistic"], row["weighting"]]
        x, marker = row["compute_fraction"], style.MARKERS[laws.index(row["law"]) % len(style.MARKERS)]
        axes.plot(x, row["decision_accuracy"], marker, ms=6, mec="white", mew=0.6, zorder=4, **moved)
        if row["low"] is not None:
            axes.vlines(x, row["low"], row["high"], lw=0.8, alpha=0.6, zorder=3, **moved)


def _legend_below_title(figure: Figure, title: str, handles: list, columns: int, warning: str) -> None:
    """The title, what puts the figure in doubt, and a legend for which the figure grows."""
    lines = -(-len(handles) // columns)
    style.grow(figure, lines)
    style.add_title(figure, title, warning)
    figure.get_layout_engine().execute(figure)  # the title is placed
    top = figure._suptitle.get_window_extent().y0 / figure.bbox.height
    place = {"loc": "upper left", "bbox_to_anchor": (0, top), "borderpad": 0.2, "borderaxespad": 0.2}
    legend = figure.legend(handles=handles, ncols=columns, frameon=False, fontsize=style.SMALL, **place)
    legend.set_in_layout(False)
    # The layout keeps the title where it is and all below it within this rectangle.
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.17 * lines / figure.get_figheight()))


@matplotlib.rc_context(style.STYLE)
def law_differences(gains: pl.DataFrame, warning: str = "") -> Figure:
    """Decision accuracy of each law less that of its source at the largest size alone, with paired intervals."""
    title = "Does the law order corpora better than its largest size alone?"
    rows = gains.filter(seed="single")
    if rows.is_empty():
        return style.without_data(title, "No law predicts all corpora: the table scaling_laws says why.")
    sources = _names(rows)
    rows = pl.concat(rows.filter(statistic=statistic, weighting=weighting) for statistic, weighting in sources)
    several = len(sources) > 1
    figure = style.canvas(7.2, 0.2 * len(rows) + 1.5 + 0.2 * several * len(sources))
    axes = figure.subplots()
    y, ticks, labels, before = 0.0, [], [], None
    for row in rows.iter_rows(named=True):
        source = (row["statistic"], row["weighting"])
        if several and source != before:
            axes.text(
                0.005, y, style.readable(*source), transform=axes.get_yaxis_transform(), va="center", weight="bold"
            )
            y, before = y + 1, source
        low, high = row["difference_low"], row["difference_high"]
        known = low is not None
        colour = UNCERTAIN if not known or low <= 0 <= high else GAIN if low > 0 else LOSS
        axes.plot(row["difference"], y, "o", ms=4.5, color=colour, zorder=3)
        if known:
            axes.hlines(y, low, high, color=colour, lw=1.1, zorder=2)
        ticks.append(y)
        reached = f"{row['decision_accuracy']:.2f} at {row['compute_fraction']:.2g}"
        alone = f"{row['single_decision_accuracy']:.2f} at {row['single_compute_fraction']:.2g}"
        labels.append(f"{LAW_NAMES[row['law']]}: {row['sizes']}  ({reached}, alone {alone})")
        y += 1
    axes.axvline(0, lw=0.8, color="0.3", zorder=1)
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    figure.set_figwidth(7.2 + 0.06 * max(0, max(map(len, labels)) - 60))
    axes.set_xlabel("Difference of the decision accuracies")
    style.add_title(figure, title, warning)
    style.add_note(
        figure,
        "In brackets: decision accuracy at the compute that it took, as a fraction of one target run's; single seeds.\n"
        "Bars: paired bootstrap intervals over corpora. Blue: better, orange: worse, grey: not told apart."
        f"{style.about_missing_intervals(rows['difference_low'], 'corpora')}",
    )
    return style.settled(figure)


@matplotlib.rc_context(style.STYLE)
def law_curves(fits: pl.DataFrame, points: pl.DataFrame, best_first: list[str], warning: str = "") -> Figure:
    """What the plain laws fit: values over compute with their curves up to the target, for a few corpora.

    One panel a source, of the first set of sizes, the first task and seed. `best_first`: the corpora by the truth.
    """
    title = "Fitted laws of some corpora, from the best to the worst by the truth"
    plain = fits.filter(pl.col("law").is_in(["2_param", "3_param"])).drop_nulls(["corpus", "predicted"])
    if plain.is_empty():
        return style.without_data(title, "No law over compute alone was fitted.")
    sources = _names(plain)
    shown = [best_first[n] for n in np.unique(np.linspace(0, len(best_first) - 1, CURVES_SHOWN).round().astype(int))]
    plain = plain.filter(pl.col("corpus").is_in(shown), sizes=plain["sizes"][0], seed=plain["seed"].min())
    plain = plain.filter(task=plain["task"].min())
    size = (3.4, 2.5) if len(sources) > 1 else (6.2, 3.2)
    figure, grid, columns = style.panels(len(sources), size, (0.4, 1.6), most=2)
    for axes, (statistic, weighting) in zip(grid, sources, strict=True):
        own = plain.filter(statistic=statistic, weighting=weighting)
        first = {name: own[name][0] for name in ("statistic", "weighting", "sizes", "task", "seed")}
        _draw_curves(axes, own, points.filter(pl.col("corpus").is_in(shown), **first), shown)
        axes.set_title(style.readable(statistic, weighting))
        axes.set_ylabel("Score, higher is better")
    for axes in grid[-columns:]:
        axes.set_xlabel("Model size, by its training compute")
    laws = plain["law"].unique(maintain_order=True)
    handles = [grid[0].plot([], [], "o-", color=c, ms=3, label=name)[0] for name, c in zip(shown, style.COLOURS)]
    handles += [grid[0].plot([], [], color="0.3", ls=DASHES[law], label=f"law {LAW_NAMES[law]}")[0] for law in laws]
    _legend_below_title(figure, title, handles, 4, warning)
    row = plain.row(0, named=True)
    style.add_note(
        figure,
        f"Task {row['task']}, seed {row['seed']}. Dots: the ends of runs that the law is fitted to. Crosses: predicted "
        f"at the target,\nwhich has {row['extrapolation']:.3g} times the largest compute that was fitted.",
    )
    return style.settled(figure)


DASHES = {"2_param": (0, (4, 1.5)), "3_param": "-"}


def _draw_curves(axes: Axes, fits: pl.DataFrame, ends: pl.DataFrame, shown: list[str]) -> None:
    axes.set_xscale("log")
    ticks = ends.select("size", "compute_fraction").unique("size").sort("compute_fraction")
    ticks = [*ticks["compute_fraction"], 1], [*ticks["size"], "target"]
    axes.set_xticks(*ticks, rotation=45 if len(ticks[0]) > MOST_LEVEL_TICKS else 0)
    axes.xaxis.set_minor_locator(NullLocator())
    best = 1 if ends["score"].min() >= 0 else 0  # the score of a perfect model, as the law counts
    for corpus, colour in zip(shown, style.COLOURS):
        of_corpus = ends.filter(corpus=corpus).sort("compute_fraction")
        axes.plot(of_corpus["compute_fraction"], of_corpus["score"], "o", ms=3.5, color=colour, zorder=3)
        for fit in fits.filter(corpus=corpus).iter_rows(named=True):
            compute, target = (
                np.geomspace(of_corpus["compute_fraction"].min(), 1),
                fit["flops"] / fit["compute_fraction"],
            )
            loss = fit["A"] * (compute * target) ** -fit["alpha"] + (fit["E"] or 0)
            axes.plot(compute, best - loss, color=colour, ls=DASHES[fit["law"]], lw=1, zorder=2)
            axes.plot(1, fit["predicted"], "x", color=colour, ms=5, mew=1.2, zorder=4)
