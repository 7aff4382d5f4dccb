"""The figures of the data selection, from the tables of `data_selection/`."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from proxycast.options import InputError
from proxycast.report import style
from proxycast.report.label_placement import place_labels, spread

MOST_POINTS = 14  # on one line; more checkpoints are averaged with their neighbours
OVER, UNDER, EQUAL = "#0072B2", "#D55E00", "0.45"  # a corpus ranked better, worse, or as it deserves
CANDIDATE = "#882255"  # a corpus without a truth
PUBLISHED = ("accuracy", "accuracy_of_25_corpora")  # the curve of `published.published_curve`, which has no intervals
LINED_BASELINES = (
    *("multiple_choice_accuracy", "choice_log_likelihood", "generic_cross_entropy", "expert_cross_entropy"),
    *("primary_metric", "correct_prob_per_char", *PUBLISHED),
)


@matplotlib.rc_context(style.STYLE)
def decision_accuracy_over_compute(
    pareto: pl.DataFrame,
    ceiling: float | None,
    thresholds: Sequence[float],
    highlighted: Sequence[tuple[str, str]],
    warning: str = "",
) -> Figure:
    """Decision accuracy over training compute: all methods as points, the highlighted and main baselines as lines.

    Compute is the fraction of one target run's 6 N D, on a logarithmic axis. `highlighted`: proxies (statistic,
    weighting) that were fixed before the results were seen. The step line is the frontier over all rows, chosen after
    the results were seen, hence optimistic. `ceiling`: the decision accuracy that the noise of the truth allows; None
    or NaN where it is unknown. `warning`: what puts the truth in doubt, for the title.
    """
    pareto = pareto.filter(pl.col("compute_fraction") > 0)  # untrained models have no place on a logarithmic axis
    figure = style.canvas(7.2, 4.4)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(style.Powers())
    axes.xaxis.set_minor_formatter(style.Powers())
    # As an image also in the SVG: a full study has tens of thousands of points.
    for kind, drawing in (("proxy", {"marker": ".", "color": "0.75"}), ("baseline", {"marker": "x", "color": "0.5"})):
        cloud = pareto.filter(pl.col("kind") == kind).select("compute_fraction", "decision_accuracy")
        axes.plot(*cloud.to_numpy().T, ls="", ms=3, mew=0.6, rasterized=True, zorder=1, **drawing)
    series = _lines_to_draw(pareto, highlighted, LINED_BASELINES)
    ends = _curves(axes, series, "compute_fraction")
    low, high = pareto["compute_fraction"].min(), pareto["compute_fraction"].max()
    room = style.log_room(low, high, 0.03)
    edge = high * room
    frontier = pareto.filter("on_frontier").sort("compute_fraction")
    if len(frontier):
        steps = frontier["decision_accuracy"].to_list()
        axes.step([*frontier["compute_fraction"], edge], [*steps, steps[-1]], where="post", color="0.25", lw=0.9)
        ends.append((edge, steps[-1], "Best in hindsight,\nover all methods", "0.25"))
    axes.set_xlim(low / room**7, edge)  # on the left, room for the names of the horizontal lines
    axes.set_ylim(min([0.4, *(rows["decision_accuracy"].min() - 0.02 for *_, rows in series)]), 1.0)
    levels = [(level, f"threshold {level:g}", (0, (1, 4)), "0.55") for level in thresholds]
    levels.append((0.5, "chance 0.5", "-", "0.55"))
    if _known(ceiling):
        levels.append((ceiling, f"noise ceiling {ceiling:.3f}", (0, (1, 1.5)), "0.15"))
    axes.set_xlabel("Training compute of one small run, as a fraction of one target run's")
    axes.set_ylabel("Decision accuracy (fraction of corpus pairs)")
    style.add_title(figure, "How well small runs order the corpora, by training compute", warning)
    note = (
        "Grey points: every proxy. Grey crosses: every baseline.\nBars: bootstrap intervals over corpora, side by side."
    )
    if _known(ceiling) and (pareto["decision_accuracy"] > ceiling).any():
        note += (
            "\nAbove the noise ceiling, which a perfect prediction is expected to reach: luck, or too low a ceiling."
        )
    style.add_note(figure, note + _about_lines(series) + _about_intervals(series))
    style.label_ends(figure, axes, ends)
    _name_levels(axes, levels)
    return figure


@matplotlib.rc_context(style.STYLE)
def decision_accuracy_over_training(
    decision_accuracy: pl.DataFrame,
    ceiling: float | None,
    highlighted: Sequence[tuple[str, str]],
    baselines: Sequence[str],
    seed: str = "single",
    warning: str = "",
) -> Figure:
    """Decision accuracy over training tokens (log), one panel for each size of the small models; `ceiling` as above."""
    table = decision_accuracy.filter(pl.col("task") == "all", pl.col("seed") == seed, pl.col("tokens") > 0)
    curves = _lines_to_draw(table, highlighted, baselines)
    # Of a scaling law the size is a set of sizes, and no line.
    sizes = (
        pl.concat(rows for *_, rows in curves)
        .group_by("size")
        .agg((pl.col("flops") / pl.col("tokens")).mean().alias("cost"))
        .sort("cost")["size"]
    )
    figure, grid, columns = style.panels(len(sizes), (2.1, 2.4), (2.2, 0.8), sharex=True, sharey=True)
    ends = {}
    for axes, size in zip(grid, sizes, strict=True):
        axes.set_title(f"{size} models")
        axes.axhline(0.5, lw=0.6, color="0.55", zorder=0.5)
        if _known(ceiling):
            axes.axhline(ceiling, lw=0.8, ls=(0, (1, 1.5)), color="0.15", zorder=0.5)
        panel = [(statistic, weighting, rows.filter(size=size)) for statistic, weighting, rows in curves]
        ends[size] = _curves(axes, panel, "tokens", band=True)
    style.token_axis(grid, columns, table["tokens"].min(), table["tokens"].max(), 0.06)
    first, labelled = grid[0], grid[columns - 1]
    lowest = [rows.select(pl.min_horizontal("decision_accuracy", "low").min()).item() for *_, rows in curves]
    first.set_ylim(min([0.4, *lowest]), 1.0)
    figure.supylabel("Decision accuracy (fraction of corpus pairs)")
    style.add_title(figure, "How well small runs order the corpora, over their training", warning)
    drawn = [(name, rows.filter(size=size)) for name, _, rows in curves for size in sizes]
    note = f"Bands and bars: bootstrap intervals over corpora.\nLine: chance. Dotted: {_about_ceiling(ceiling)}"
    missing = _about_intervals(curves)
    style.grow(figure, missing.count("\n"))
    style.add_note(figure, note + _about_lines(drawn) + missing)
    style.label_ends(figure, labelled, ends[sizes[columns - 1]])
    return figure


@matplotlib.rc_context(style.STYLE)
def decision_accuracy_heatmap(
    decision_accuracy: pl.DataFrame, size: str, step: int, ceiling: float | None, seed: str = "mean", warning: str = ""
) -> Figure:
    """Decision accuracy of every proxy, statistics by weightings, and of every baseline beside; chance is white."""
    table = decision_accuracy.filter(
        pl.col("task") == "all", pl.col("size") == size, pl.col("step") == step, pl.col("seed") == seed
    )
    proxies, baselines = table.filter(pl.col("kind") == "proxy"), table.filter(pl.col("kind") == "baseline")
    if proxies.is_empty():
        raise InputError(f"decision_accuracy has no proxies with size={size}, step={step}, seed={seed}")
    figure = style.heat_maps(proxies, baselines, "decision_accuracy", lowest=0)
    style.add_title(figure, f"Decision accuracy: {size} models at step {step:,}", warning)
    style.add_note(
        figure,
        f"Blue: better than chance (0.5); red: worse.{style.about_half_width(table, 'corpora')}\n"
        f"{_averaging(seed)} {style.capital(_about_ceiling(ceiling))}"
        f"{_about_intervals([('', '', table)])}{style.about_weights(proxies)}",
    )
    return style.settled(figure)


@matplotlib.rc_context(style.STYLE)
def proxy_against_truth(
    ranking: pl.DataFrame,
    decision_accuracy: pl.DataFrame,
    proxy: tuple[str, str, str, int],
    ceiling: float | None,
    seed: str = "mean",
    warning: str = "",
    higher_is_better: bool = True,
) -> Figure:
    """Predicted score (x) against true accuracy (y) of every corpus, labelled, with intervals on both.

    `proxy`: statistic, weighting, size, step. Corpora without a truth stand on the x axis. What has no interval has no
    bar.

    The agreement in the corner is the row of `decision_accuracy` of the same proxy, size and step, with `seed`;
    `ceiling` is the noise ceiling of its decision accuracy, None or NaN where it is unknown.
    """
    statistic, weighting, size, step = proxy
    everything = _one_proxy(ranking, *proxy)
    rows, candidates = everything.drop_nulls("truth"), everything.filter(pl.col("truth").is_null())
    agreement = _one_proxy(decision_accuracy.filter(task="all", seed=seed), *proxy).row(0, named=True)
    figure = style.canvas(7.2, 5.6)
    axes = figure.subplots()
    x, y, bars = rows["predicted"].to_numpy(), rows["truth"].to_numpy(), []
    for r in rows.iter_rows(named=True):
        bars.append((r["predicted_low"], r["truth"], r["predicted_high"], r["truth"]))
        bars.append((r["predicted"], r["truth_low"], r["predicted"], r["truth_high"]))
    bars = [bar for bar in bars if None not in bar]
    for x0, y0, x1, y1 in bars:
        axes.plot([x0, x1], [y0, y1], color="0.82", lw=0.8, zorder=1)
    axes.plot(x, y, ls="", marker="o", ms=4.5, color=style.look(statistic).colour, mec="white", mew=0.5, zorder=3)
    axes.margins(0.08)
    names = [*rows["corpus"], *candidates["corpus"]]
    if len(candidates):
        lowest = rows.select(pl.min_horizontal("truth_low", "truth").min()).item()
        at, floor, more = _draw_candidates(axes, candidates, lowest - 0.07 * (y.max() - lowest))
        x, y, bars = np.append(x, at), np.append(y, floor), bars + more
    name = style.score_name(statistic, weighting)
    unit = f"{style.look(statistic).unit}; " if style.look(statistic).unit else ""
    axes.set_xlabel(f"{name} ({unit}higher is better)")
    metric = style.look(agreement.get("truth", "multiple_choice_accuracy"))
    unit = "; ".join(filter(None, [metric.unit, "" if higher_is_better else "lower is better"]))
    axes.set_ylabel(f"{metric.label} of the target models" + (f" ({unit})" if unit else ""))
    title = f"Prediction by the {size} models at step {step:,} against the truth, {len(rows)} corpora"
    style.add_title(figure, title, warning)
    unknown = _about_resampling(rows)
    unknown += "\nTriangles: corpora without a truth, at their predicted score." if len(candidates) else ""
    style.add_note(
        figure,
        f"Bars: intervals of the predicted score and of the true one. {_averaging(seed)}"
        f"{unknown}{style.about_missing_intervals([agreement['low']], 'corpora')}",
    )
    style.settled(figure)
    corner = style.in_emptiest_corner(axes, _figures_of(agreement, ceiling), x, y)
    place_labels(axes, x, y, names, bars, [corner], fontsize=6.5, color="0.15")
    return figure


def _figures_of(agreement: dict, ceiling: float | None) -> str:
    text = f"Spearman ρ  {style.value_with_interval(agreement, 'spearman', 'spearman_')}"
    text += f"\nDecision accuracy  {style.value_with_interval(agreement, 'decision_accuracy', '')}"
    return text + (f"\nNoise ceiling  {ceiling:.2f}" if _known(ceiling) else "\nNoise ceiling  unknown")


def _draw_candidates(axes: Axes, rows: pl.DataFrame, height: float) -> tuple[np.ndarray, np.ndarray, list[tuple]]:
    """Draw the predictions of corpora without a truth -> their x, y and bars."""
    floor = np.full(len(rows), height)
    low, at, high = rows.select("predicted_low", "predicted", "predicted_high").to_numpy().T
    axes.hlines(floor, low, high, color="0.82", lw=0.8, zorder=1)
    axes.plot(at, floor, ls="", marker="^", ms=6, color=CANDIDATE, mew=0, zorder=3)
    return at, floor, [bar for bar in zip(low, floor, high, floor) if np.isfinite(bar).all()]


@matplotlib.rc_context(style.STYLE)
def ranking_with_intervals(
    ranking: pl.DataFrame,
    decision_accuracy: pl.DataFrame,
    proxy: tuple[str, str, str, int],
    ceiling: float | None,
    seed: str = "mean",
    warning: str = "",
) -> Figure:
    """True and predicted rank of every corpus with intervals, the best on top; colour tells over- from under-ranked.

    Corpora without a truth stand below, at the rank that they would take among the others.
    """
    statistic, weighting, size, step = proxy
    rows = _one_proxy(ranking, *proxy)
    rows = rows.sort("true_rank", "predicted_rank", "corpus", nulls_last=True)
    corpora = rows["true_rank"].count()
    agreement = _one_proxy(decision_accuracy.filter(task="all", seed=seed), *proxy).row(0, named=True)
    figure = style.canvas(7.2, 0.185 * len(rows) + 1.6)
    axes = figure.subplots()
    _draw_ranks(axes, rows)
    axes.set_yticks(range(len(rows)), rows["corpus"].to_list())
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    # Below the last of the others there is one more place, for one without a truth.
    axes.set_xlim(0.5, corpora + (1.5 if corpora < len(rows) else 0.5))
    axes.set_xticks([1, *range(5, corpora + 1, 5)])
    axes.set_xlabel("Rank of the corpus (1 is best)")
    style.add_title(figure, f"Predicted and true rank of every corpus: {size} models at step {step:,}", warning)
    style.add_note(
        figure,
        f"Thin bars: intervals of the true rank (grey) and of the predicted rank (coloured). {_averaging(seed)}\n"
        f"Decision accuracy "
        f"{style.value_with_interval(agreement, 'decision_accuracy', '')}; {_about_ceiling(ceiling)}"
        f"{_about_resampling(rows)}{style.about_missing_intervals([agreement['low']], 'corpora')}",
    )
    keys = [
        ("true rank", "white", "0.15"),
        ("predicted: too good", OVER, OVER),
        ("too poor", UNDER, UNDER),
        ("right", EQUAL, EQUAL),
    ]
    if corpora < len(rows):
        keys.append(("without a truth", CANDIDATE, CANDIDATE))
    handles = [axes.plot([], [], "o", ms=4, mfc=face, mec=edge, label=label)[0] for label, face, edge in keys]
    name = f"Predicted by {style.readable(statistic, weighting)}"
    spacing = {"handletextpad": 0.1, "borderpad": 0, "borderaxespad": 0.4, "columnspacing": 1.2}
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "alignment": "left"}
    axes.legend(handles=handles, ncols=len(keys), title=name, frameon=False, fontsize=style.SMALL, **place, **spacing)
    return style.settled(figure)


def _draw_ranks(axes: Axes, rows: pl.DataFrame) -> None:
    for y, r in enumerate(rows.iter_rows(named=True)):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color="0.965", lw=0, zorder=0)
        if r["true_rank"] is None:
            colour, below = CANDIDATE, y
        else:
            error, above, below = r["predicted_rank"] - r["true_rank"], y - 0.18, y + 0.18
            colour = EQUAL if error == 0 else OVER if error < 0 else UNDER
            axes.plot([r["true_rank"], r["predicted_rank"]], [above, below], color=colour, lw=2.2, alpha=0.3, zorder=1)
            axes.hlines(above, *_ends(r, "true_rank"), color="0.55", lw=0.7, zorder=2)
            axes.plot(r["true_rank"], above, "o", ms=4, mfc="white", mec="0.15", mew=0.9, zorder=3)
        axes.hlines(below, *_ends(r, "predicted_rank"), color=colour, lw=0.7, zorder=2)
        axes.plot(r["predicted_rank"], below, "o", ms=4, color=colour, mew=0, zorder=3)


def _averaging(seed: str) -> str:
    known = {"mean": "Predictions averaged over seeds before judging.", "single": "Mean over single seeds."}
    return known.get(seed, f"Seed {seed}.")


def _known(ceiling: float | None) -> bool:
    return ceiling is not None and bool(np.isfinite(ceiling))


def _about_ceiling(ceiling: float | None) -> str:
    return f"noise ceiling {ceiling:.2f}." if _known(ceiling) else "noise ceiling unknown."


def _about_intervals(series: Sequence[tuple]) -> str:
    """Of what has a decision accuracy, whether some has no interval. The published curve never has one."""
    lows = [low for *_, rows in series for low in rows.filter(~pl.col("statistic").is_in(PUBLISHED))["low"]]
    return style.about_missing_intervals(lows, "corpora")


def _about_resampling(rows: pl.DataFrame) -> str:
    """Which of the intervals of `ranking.ranking_table` are missing, as there was nothing to resample."""
    text = "\nThe truth has one seed: how sure it is remains unknown." if rows["truth_low"].is_null().all() else ""
    if rows["predicted_low"].is_null().any():
        text += "\nOne seed and one score a task: how sure the prediction is remains unknown."
    return text


def _ends(row: dict, name: str) -> tuple[float, float]:
    """The interval in the columns `name`_low and `name`_high; NaN, which draws nothing, where there is none."""
    return tuple(np.nan if row[f"{name}_{end}"] is None else row[f"{name}_{end}"] for end in ("low", "high"))


def _one_proxy(table: pl.DataFrame, statistic: str, weighting: str, size: str, step: int) -> pl.DataFrame:
    rows = table.filter(statistic=statistic, weighting=weighting, size=size, step=step)
    if rows.is_empty():
        raise InputError(f"nothing to draw for {statistic}, {weighting} with size={size}, step={step}")
    return rows


def _lines_to_draw(
    table: pl.DataFrame, highlighted: Sequence[tuple[str, str]], baselines: Sequence[str]
) -> list[tuple[str, str, pl.DataFrame]]:
    """(statistic, weighting, its rows by compute) of each line to draw. An absent baseline is left out."""
    table, series = table.drop_nulls("decision_accuracy").sort("compute_fraction"), []
    for statistic, weighting in dict.fromkeys([*((name, "none") for name in baselines), *highlighted]):
        rows = table.filter(statistic=statistic, weighting=weighting)
        if len(rows):
            series.append((statistic, weighting, rows))
        elif (statistic, weighting) in highlighted:
            raise InputError(f"highlighted: {statistic}, {weighting}: there is no such proxy or baseline in the table")
    return series


def _curves(axes: Axes, series: Sequence[tuple], x: str, band: bool = False) -> list[tuple[float, float, str, str]]:
    """Draw the decision accuracy of each of `series` over `x` with intervals -> its line's end: x, y, label, colour.

    All methods share the same few values of `x`, so each line is drawn a point or two aside, or the bars would hide
    each other. `band`: the intervals of proxies as bands. A line of many checkpoints is drawn `_averaged`.
    """
    ends = []
    for place, (statistic, weighting, rows) in enumerate(series):
        if rows.is_empty():
            continue
        rows = _averaged(rows, x)
        appearance, proxy = style.look(statistic), weighting != "none"
        at, value, low, high = (rows[column].to_numpy() for column in (x, "decision_accuracy", "low", "high"))
        common = {"color": appearance.colour, "transform": style.aside(axes, place, len(series), points=1.6)}
        marker = style.WEIGHTING_LOOKS.get(weighting, ("", "o"))[1] if proxy else appearance.marker
        drawing = {"ls": "-", "lw": 1.6} if proxy else {"ls": (0, (4, 1.5)), "lw": 0.9, "mfc": "white"}
        axes.plot(at, value, marker=marker, ms=3.8, mew=0.8, zorder=4 if proxy else 3, **common, **drawing)
        if band and proxy and len(rows) > 1:
            axes.fill_between(at, low, high, alpha=0.14, lw=0, zorder=1, **common)
        else:
            axes.vlines(at, low, high, lw=0.9 if proxy else 0.6, alpha=0.6, zorder=2, **common)
        ends.append((at[-1], value[-1], style.readable(statistic, weighting).replace(", ", ",\n"), appearance.colour))
    return ends


def _averaged(rows: pl.DataFrame, x: str) -> pl.DataFrame:
    """At most `MOST_POINTS` rows: checkpoints whose `x` falls into the same part of its (logarithmic) range, averaged.

    The mean of the intervals' bounds is wider than an interval of the mean would be.
    """
    if len(rows) <= MOST_POINTS:
        return rows
    log = pl.col(x).log()
    part = ((log - log.min()) / (log.max() - log.min()) * MOST_POINTS).floor().clip(upper_bound=MOST_POINTS - 1)
    means = [pl.col(name).mean() for name in ("decision_accuracy", "low", "high")]
    return rows.group_by(part.alias("part")).agg(log.mean().exp(), *means).sort(x)


def _about_lines(series: Sequence[tuple]) -> str:
    averaged = any(len(rows) > MOST_POINTS for *_, rows in series)
    return " Markers on lines: means over checkpoints of similar compute." if averaged else ""


def _name_levels(axes: Axes, levels: Sequence[tuple[float, str, object, str]]) -> None:
    """Horizontal lines (height, name, dashes, colour), named at their left ends. The layout must be settled.

    A name stands above its line, or below it where the next line would run through the name. Of two lines at one
    height the later one is the next.
    """
    names, point = [], axes.figure.dpi / 72
    pixels = [axes.transData.transform((1, value))[1] for value, *_ in levels]
    for number, (value, name, dashes, colour) in enumerate(levels):
        axes.axhline(value, ls=dashes, lw=0.8, color=colour, zorder=0.5)
        height = pixels[number]
        following = [other for i, other in enumerate(pixels) if (other, i) > (height, number)]
        above = not any(other - height < 1.5 * style.SMALL * point for other in following)
        place = (0, value), (3, 1.5 if above else -1.5), axes.get_yaxis_transform(), "offset points"
        names.append(axes.annotate(name, *place, fontsize=style.SMALL, color=colour, va="bottom" if above else "top"))
    boxes = [name.get_window_extent(axes.figure.canvas.get_renderer()) for name in names]
    wanted = [(box.y0 + box.y1) / 2 for box in boxes]
    centres = spread(wanted, [box.height for box in boxes], axes.bbox.y0, np.inf)
    for name, before, centre in zip(names, wanted, centres, strict=True):
        name.set_position((3, name.get_position()[1] + (centre - before) / point))
