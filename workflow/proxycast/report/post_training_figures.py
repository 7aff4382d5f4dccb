"""What post-training changes, from the tables populations, recipe_shifts and recipe_means of a model selection."""

import matplotlib
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from proxycast.proxy_formulas import SIGNS
from proxycast.report import style
from proxycast.report.model_selection_figures import KIND_LOOKS, first_tail, method_name

POPULATION_LOOKS = {  # name, colour, marker: those that a row of the figure has, from top to bottom
    "bases": ("Bases", "#E69F00", "s"),
    "all": ("All models", "#0072B2", "o"),
    "within_base": ("Models of one base, mean over bases", "#882255", "D"),
}
KINDS = {"scorer": KIND_LOOKS["scorer"], "proxy": ("Proxies", "#009E73")} | KIND_LOOKS
METHODS_TITLE = "What post-training does to the methods: Spearman's ρ, two tasks held out"
SHIFTS_TITLE = "What post-training does to a statistic, and to the truth"
APART = 0.25  # of a row, between populations


@matplotlib.rc_context(style.STYLE)
def populations_compared(populations: pl.DataFrame) -> Figure:
    """rho of every method among the bases, among all models, and within bases; a row a method, by kind."""
    known = populations.filter(
        pl.col("spearman").is_not_null(), pl.col("method") != "chance", pl.col("population").is_in([*POPULATION_LOOKS])
    )
    if known.is_empty():
        return style.without_data(METHODS_TITLE, "No base and no post-trained model has a truth.")
    rows = known.filter(pl.col("tail").is_in([first_tail(known, "post_training_methods"), ""]))
    heights = _heights(rows)
    shown = [name for name in POPULATION_LOOKS if name in set(rows["population"])]
    figure = style.canvas(7.2, 0.34 * len(heights) + 1.6)
    axes = figure.subplots()
    axes.axvline(0, lw=0.6, color="0.55", zorder=0.5)
    for row in rows.iter_rows(named=True):
        _draw_method(axes, heights[row["kind"], row["method"]], shown, row)
    lowest = min(rows.select(pl.min_horizontal("low", "spearman").min()).item(), 0)
    axes.set_xlim(max(-1.0, lowest) - 0.04, 1.04)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=(2, 5, 10)))
    axes.set_ylim(max(heights.values()) + 0.7, -0.6)
    names = [KINDS[kind][0] if method is None else method_name(method) for kind, method in heights]
    axes.set_yticks(list(heights.values()), names)
    for label, (kind, method) in zip(axes.get_yticklabels(), heights, strict=True):
        label.set(color=KINDS[kind][1], weight="bold" if method is None else "normal")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("Spearman's ρ with the truth, mean over folds")
    handles = [
        Line2D([], [], ls="", marker=marker, color=colour, ms=4.5, mew=0, label=name)
        for name, colour, marker in (POPULATION_LOOKS[name] for name in shown)
    ]
    above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 3, "frameon": False}
    axes.legend(handles=handles, fontsize=style.SMALL, **above)
    style.add_title(figure, METHODS_TITLE)
    style.add_note(figure, _about_populations(rows, shown))
    return style.settled(figure)


def _heights(rows: pl.DataFrame) -> dict[tuple[str, str | None], float]:
    """(kind, method) -> its height, by rho among all models within a kind; (kind, None): the heading above."""
    lines: dict[tuple[str, str | None], float] = {}
    of_all = pl.col("spearman").filter(population="all").mean()
    for kind in KINDS:
        own = rows.filter(kind=kind).group_by("method", maintain_order=True).agg(of_all)
        methods = own.sort("spearman", descending=True, nulls_last=True, maintain_order=True)["method"]
        for method in [None, *methods] if len(own) else []:
            lines[kind, method] = float(len(lines))
    return lines


def _draw_method(axes: Axes, height: float, shown: list[str], row: dict) -> None:
    place = shown.index(row["population"])
    _, colour, marker = POPULATION_LOOKS[row["population"]]
    at = height + (place - (len(shown) - 1) / 2) * APART
    if row["low"] is not None:
        axes.hlines(at, row["low"], row["high"], color=colour, lw=1.2, zorder=3)
    axes.plot(row["spearman"], at, marker=marker, ms=4, color=colour, mec="white", mew=0.4, zorder=4)
    beside = (1, height), (4 + 24 * place, 0), axes.get_yaxis_transform(), "offset points"
    value = round(row["spearman"], 2) + 0.0  # no -0.00
    axes.annotate(f"{value:.2f}", *beside, fontsize=6, color=colour, va="center_baseline")


def _about_populations(rows: pl.DataFrame, shown: list[str]) -> str:
    counts = {name: rows.filter(population=name).row(0, named=True) for name in shown}
    units = {name: f"{row['models']} models of {row['bases']} bases" for name, row in counts.items()}
    lines = [f"{POPULATION_LOOKS[name][0]}: {units[name]}." for name in shown]
    lines.append("Bars: bootstrap intervals over bases, each with all its models. Line at 0: chance.")
    lines += filter(None, style.about_missing_intervals(rows["low"], "models or bases").split("\n"))
    lines.append("Oracle: picked with the truth of the held-out models in hand; nobody can choose so in advance.")
    return "\n".join(lines)


@matplotlib.rc_context(style.STYLE)
def shifts_compared(shifts: pl.DataFrame, means: pl.DataFrame) -> Figure:
    """Shift of the truth over that of each statistic, a panel a statistic; a cross is the mean of a recipe.

    Both are of the mean over tasks. Where less of a statistic is better, its axis runs backwards: better is right.
    """
    shifts, means = shifts.filter(task="all"), means.filter(task="all")
    if shifts.is_empty():
        return style.without_data(SHIFTS_TITLE, "No post-trained model has a truth together with its base.")
    tail = first_tail(shifts, "post_training_shifts")
    shifts, means = shifts.filter(tail=tail), means.filter(tail=tail)
    statistics = shifts.select("statistic", "weighting").unique(maintain_order=True).rows()
    looks = style.distinct_looks(sorted(set(shifts["recipe"])))
    figure, grid, columns = style.panels(len(statistics), (1.75, 1.8), (1.5, 1.4), sharey=True)
    for axes, (statistic, weighting) in zip(grid, statistics, strict=True):
        own = {"statistic": statistic, "weighting": weighting}
        axes.set_title(style.look(statistic).label)
        _draw_shifts(axes, shifts.filter(**own), means.filter(**own), looks)
        axes.set_xlabel(f"Shift, {style.look(statistic).unit}" if style.look(statistic).unit else "Shift")
        if SIGNS[statistic] < 0:
            axes.invert_xaxis()
        axes.set_box_aspect(1)
    figure.supylabel("Shift of the truth")
    handles = [Line2D([], [], ls="", marker=m, color=c, ms=4, mew=0, label=name) for name, (c, m) in looks.items()]
    legend = {"title": "Recipe", "alignment": "left", "frameon": False, "fontsize": style.SMALL, "handletextpad": 0.1}
    figure.legend(handles=handles, loc="outside right upper", **legend)
    style.add_title(figure, SHIFTS_TITLE)
    models, bases = shifts["model"].n_unique(), shifts["base"].n_unique()
    style.add_note(
        figure,
        f"Each mark: a post-trained model less its base, mean over tasks ({models} models of {bases} bases). Crosses: "
        "mean of a recipe over bases.\nRight is what the statistic calls better: where less of it is better, its axis "
        "runs backwards. ρ: Spearman's, over the models.",
    )
    style.settled(figure)
    for axes, (statistic, weighting) in zip(grid, statistics, strict=True):
        _write_rho(axes, shifts, means, statistic, weighting)
    return figure


def _draw_shifts(axes: Axes, rows: pl.DataFrame, means: pl.DataFrame, looks: dict[str, tuple[str, str]]) -> None:
    axes.axhline(0, lw=0.6, color="0.75", zorder=0.5)
    axes.axvline(0, lw=0.6, color="0.75", zorder=0.5)
    for recipe, (colour, marker) in looks.items():
        own = rows.filter(recipe=recipe)
        drawing = {"marker": marker, "color": colour, "ms": 3, "mew": 0, "alpha": 0.55}
        axes.plot(own["difference"], own["truth_difference"], ls="", zorder=2, **drawing)
        mean = means.filter(recipe=recipe)
        axes.plot(mean["difference"], mean["truth_difference"], "+", ms=9, mew=1.8, color=colour, zorder=3)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.margins(0.08)


def _write_rho(axes: Axes, shifts: pl.DataFrame, means: pl.DataFrame, statistic: str, weighting: str) -> None:
    of_all = means.filter(recipe="all", statistic=statistic, weighting=weighting).row(0, named=True)
    text = "ρ undefined" if of_all["spearman"] is None else f"ρ {of_all['spearman']:.2f}"
    own = shifts.filter(statistic=statistic, weighting=weighting)
    style.in_emptiest_corner(axes, text, own["difference"].to_numpy(), own["truth_difference"].to_numpy())
