"""The figures of the forecasts, from the tables of `forecasting/`."""

from collections.abc import Collection, Iterable, Sequence
from textwrap import wrap

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from proxycast.experiments.forecasting import cautions
from proxycast.experiments.forecasting.fitted_series import value_range
from proxycast.experiments.forecasting.methods import CHOSEN, COMPUTE_ONLY, LAST_VALUE, OTHER_RUNS, POOLED, TWO_STEP
from proxycast.experiments.forecasting.observed import TRUTH
from proxycast.report import style

# What is no statistic. The others have the looks of theirs.
METHODS = {
    POOLED: style.Look("Pooled proxies", "", "#0072B2", "o"),
    COMPUTE_ONLY: style.Look("Compute only (power law)", "", "#000000", "s"),
    LAST_VALUE: style.Look("Last value", "", "#777777", "D"),
    OTHER_RUNS: style.Look("Other runs", "", "#AA4499", "P"),
    TWO_STEP: style.Look("Two-step law (N and D)", "", "#009E73", "X"),
    "logistic": style.Look("Logistic in compute", "", "0.6"),
    "constant": style.Look("Constant", "", "0.6"),
}
OF_TRUTH = {cautions.TRUTH_IS_NOISE: "truth: noise", cautions.TRUTH_IS_CONSTANT: "truth: constant"}
REFERENCE = 0.9  # probability of the band that shows how far chance moves a share
CURVE_POINTS = 100
MANY_POINTS = 40  # of one run's truth; they are drawn small, behind the lines


def forecaster_name(method: str) -> str:
    """The name shown to people, of a baseline, pool or proxy ("statistic/weighting"), with the link that it names.

    A two-step law names the statistic that is its loss.
    """
    series, _, link = method.partition(", ")
    link = style.readable(*link.split("/")) if series == TWO_STEP and link else link
    name = METHODS[series].label if series in METHODS else style.readable(*series.split("/"))
    return f"{name}, {link}" if link else name


def forecaster_look(method: str) -> style.Look:
    series = method.partition(", ")[0]
    return METHODS.get(series) or style.look(series.split("/")[0])


@matplotlib.rc_context(style.STYLE)
def error_over_horizon(errors: pl.DataFrame, chosen: str | None, about_choice: str = "") -> Figure:
    """RMSE over tasks and runs against the horizon (log), with intervals; others are grey and behind.

    `chosen`: the method that the rehearsal chose, before anything beyond the cut was seen; None if there was none.
    `about_choice`: what there is to say of that.
    """
    every = errors.filter(task="all")
    rows = every.drop_nulls("rmse")
    title = "How far the forecasts are off, over the horizon"
    if rows.is_empty():
        return style.without_data(
            title, "No run has a checkpoint near any horizon: its forecasts cannot be judged yet."
        )
    figure = style.canvas(7.2, 4.4)
    axes = figure.subplots()
    shown = _shown(rows, chosen)
    behind = rows.filter(~pl.col("method").is_in([*shown, CHOSEN]))
    for (_, kind), own in behind.group_by("method", "kind", maintain_order=True):
        dashes = "-" if kind == "proxy" else (0, (1, 1.5))
        axes.plot(*own.sort("horizon").select("horizon", "rmse").to_numpy().T, ls=dashes, lw=0.8, color="0.8", zorder=1)
    ends = _over_horizons(axes, rows, shown, "rmse", ("rmse_low", "rmse_high"))
    _horizon_axis(axes, every["horizon"].unique().sort().to_list(), set(rows["horizon"]))
    drawn = rows.filter(pl.col("method").is_in(list(shown)))
    highest = drawn["rmse"].max()
    axes.set_ylim(0, max(1.08 * highest, min(drawn["rmse_high"].fill_null(0).max(), 1.6 * highest)))
    axes.set_ylabel("Root mean square error of the forecast truth")
    style.add_title(figure, title)
    notes = [*_about_errors(drawn, behind), *_about_missing_truths(every), about_choice]
    style.add_note(figure, "\n".join(filter(None, notes)))
    style.label_ends(figure, axes, ends)
    return figure


def _shown(rows: pl.DataFrame, chosen: str | None) -> dict[str, str]:
    """Method -> label of the lines that are named: pooled proxies (without a pool, every proxy) and baselines."""
    methods = dict(rows.select("method", "kind").unique(maintain_order=True).iter_rows())
    pools = [m for m in methods if m.partition(", ")[0] == POOLED]
    laws = [m for m in methods if m.partition(", ")[0] == TWO_STEP]
    proxies = pools or [m for m, kind in methods.items() if kind == "proxy" and m not in [CHOSEN, *laws]]
    baselines = [m for m, kind in methods.items() if kind == "baseline" and m not in laws]
    law = [TWO_STEP] if TWO_STEP in laws else []
    named = dict.fromkeys([*sorted(baselines), *sorted(proxies), *law, *([chosen] if chosen else [])])
    return {m: _broken(forecaster_name(m)) + ("\n(chosen in advance)" if m == chosen else "") for m in named}


def _broken(name: str) -> str:
    return name.replace(", ", ",\n")


def _over_horizons(
    axes: Axes, rows: pl.DataFrame, shown: dict[str, str], value: str, bounds: tuple[str, str] | None
) -> list[tuple[float, float, str, str]]:
    """Draw `value` of the methods over the horizon, each a little aside -> its line's end: x, y, label, colour."""
    ends = []
    for place, (method, label) in enumerate(shown.items()):
        own = rows.filter(method=method).drop_nulls(value).sort("horizon")
        if own.is_empty():
            continue
        appearance, proxy = forecaster_look(method), own["kind"][0] == "proxy"
        common = {"color": appearance.colour, "transform": style.aside(axes, place, len(shown), points=2.2)}
        dashes = "-" if method == method.partition(", ")[0] else (0, (1, 0.8))  # with another link than the linear one
        drawing = {"ls": dashes, "lw": 1.8} if proxy else {"ls": (0, (4, 1.5)), "lw": 0.9, "mfc": "white"}
        at, height = own["horizon"].to_numpy(), own[value].to_numpy()
        axes.plot(at, height, marker=appearance.marker, ms=4, mew=0.8, zorder=4 if proxy else 3, **common, **drawing)
        known = own.drop_nulls(bounds) if bounds else own.clear()
        if len(known):
            low, high = known.select(bounds).to_numpy().T
            axes.vlines(known["horizon"], low, high, lw=1.1 if proxy else 0.6, alpha=0.6, zorder=2, **common)
        ends.append((at[-1], height[-1], label, appearance.colour))
    return ends


def _horizon_axis(axes: Axes, horizons: Sequence[float], with_truth: Collection[float]) -> None:
    room = style.log_room(horizons[0], horizons[-1], 0.08)
    axes.set_xscale("log")
    axes.set_xlim(horizons[0] / room, horizons[-1] * room)
    labels = [f"{horizon:g}×" + ("" if horizon in with_truth else "\nnot judged") for horizon in horizons]
    axes.set_xticks(horizons, labels)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("Horizon, as a multiple of the training compute at the cut")


def _about_errors(drawn: pl.DataFrame, behind: pl.DataFrame) -> list[str]:
    least, most = drawn["forecasts"].min(), drawn["forecasts"].max()
    many = f"{least} to {most}" if least < most else f"{most}"
    text = f"Over {many} forecast{'s' if most > 1 else ''} (tasks and runs) a horizon and method. "
    known = drawn["rmse_low"].null_count() < len(drawn)
    text += (
        "Bars: bootstrap intervals over tasks and runs." if known else "No intervals: one task of one run is one value."
    )
    if drawn["caution"].str.contains(cautions.FEW_UNITS, literal=True).any():
        text += "\nThese are too few for an interval: its ends are those of a handful of samples."
    noisy = drawn["caution"].str.extract("([0-9]+ of [0-9]+ truths are noise or constant)").drop_nulls()
    text += f"\nAt one horizon or more {noisy[0]}: errors there tell nothing of a method." if len(noisy) else ""
    greys = {"proxy": "Grey: every proxy alone.", "control": "Grey, dotted: controls (a constant, a logistic)."}
    others = " ".join(words for kind, words in greys.items() if kind in set(behind["kind"]))
    return [text, others] if others else [text]


def _about_missing_truths(errors: pl.DataFrame) -> list[str]:
    """A line on the forecasts without a truth."""
    most = errors.group_by("horizon").agg(pl.col("unjudged").max()).filter(pl.col("unjudged") > 0).sort("horizon")
    parts = [f"{count} at {horizon:g}×" for horizon, count in most.iter_rows()]
    return [f"Without a truth, so not judged: {', '.join(parts)} (forecasts of each method)."] if parts else []


@matplotlib.rc_context(style.STYLE)
def forecast_coverage(
    errors: pl.DataFrame, chosen: str | None, confidence: float, about_rehearsals: str = ""
) -> Figure:
    """The share of truths inside the forecasts' intervals over the horizon, against the nominal `confidence`.

    `chosen` as above. `about_rehearsals`: how often intervals held before the cut. The band: where the share would lie
    (binomial), were the forecasts independent and the intervals right.
    """
    # Imported here: it takes a second.
    from scipy.stats import binom

    rows = errors.filter(task="all").drop_nulls("coverage")
    title = "How often the intervals of the forecasts cover the truth"
    if rows.is_empty():
        return style.without_data(title, "No forecast with an interval can be judged yet.")
    figure = style.canvas(7.2, 4.0)
    axes = figure.subplots()
    horizons = rows["horizon"].unique().sort().to_list()
    counts = [rows.filter(horizon=horizon)["forecasts"].max() for horizon in horizons]
    low, high = np.array([binom.interval(REFERENCE, n, confidence) for n in counts]).T / counts
    reach = style.log_room(horizons[0], horizons[-1], 0.08)
    at, ends_of = [horizons[0] / reach, *horizons, horizons[-1] * reach], [0, *range(len(horizons)), -1]
    axes.fill_between(at, low[ends_of], high[ends_of], color="0.93", lw=0, zorder=0.2)
    axes.axhline(confidence, lw=0.9, color="0.35", zorder=0.5)
    ends = _over_horizons(axes, rows, _shown(rows, chosen), "coverage", None)
    _horizon_axis(axes, horizons, horizons)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("Share of truths inside the interval")
    style.add_title(figure, title)
    spread = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
    style.add_note(
        figure,
        "\n".join(
            [
                f"Line: the nominal {confidence:.0%}. Band: where {REFERENCE:.0%} of such shares of {spread} forecasts "
                "would lie,\nwere the intervals right and the forecasts independent; those of one run or task are not.",
                *_about_missing_truths(errors.filter(task="all")),
                *filter(None, [about_rehearsals]),
            ]
        ),
    )
    style.label_ends(figure, axes, ends)
    return figure


@matplotlib.rc_context(style.STYLE)
def forecast_curves(
    observed: pl.DataFrame,
    paths: pl.DataFrame,
    run: str,
    metric: str,
    chosen: str | None = None,
    forecasts: pl.DataFrame | None = None,
) -> Figure:
    """Truth, forecast and interval over the tokens of one run, a panel for each task.

    Of the chosen method and compute only; the line alone of the two-step law, where there is one.

    What the fit saw is filled. Where none was `chosen` in advance, the pooled proxies are drawn, or else the first of
    the table. `metric`: the truth. Of `forecasts`, a panel says what is unreliable, and a cross shows a forecast
    that is another without the first checkpoints.
    """
    truth = observed.filter(run=run, series=TRUTH).filter(pl.col("tokens") > 0).sort("tokens", maintain_order=True)
    title = f"Forecasts of the run {run}"
    if truth.is_empty():
        return style.without_data(title, "The downstream scores of this run are not known.")
    paths = paths.filter(run=run)
    found = paths["method"].unique(maintain_order=True).to_list()
    pooled = next((m for m in found if m.partition(", ")[0] == POOLED), found[0])
    law = [TWO_STEP] if TWO_STEP in found else []
    methods = dict.fromkeys([COMPUTE_ONLY, chosen if chosen in found else pooled, *law])
    tasks = truth["task"].unique(maintain_order=True)
    size = (1.85, 1.65) if len(tasks) > 3 else (6.6 / len(tasks), 2.2)
    figure, grid, columns = style.panels(len(tasks), size, (0.6, 1.3), sharex=True)
    swayed = False
    drawn = paths.clear() if forecasts is None else forecasts.filter(pl.col("method").is_in(list(methods)), run=run)
    for axes, task in zip(grid, tasks, strict=True):
        axes.set_title(task)
        _curve(axes, truth.filter(task=task), {m: paths.filter(method=m, task=task).sort("tokens") for m in methods})
        swayed |= _crosses(axes, drawn.filter(task=task), methods)
        _write_cautions(axes, _cautions_of_panel(drawn.filter(task=task), methods), 36 if len(tasks) > 3 else 60)
    style.token_axis(grid, columns, paths["tokens"].min(), max(paths["tokens"].max(), truth["tokens"].max()), 0.04)
    figure.supylabel(
        f"{style.look(metric).label} ({style.look(metric).unit})"
        if style.look(metric).unit
        else style.look(metric).label
    )
    style.add_title(figure, title)
    points = {"ls": "", "marker": "o", "ms": 4, "mec": "0.15", "mew": 0.8}
    handles = [
        Line2D([], [], mfc="0.15", label="truth, fitted", **points),
        Line2D([], [], mfc="white", label="truth, not fitted", **points),
        Line2D([], [], color="0.35", lw=0.8, ls=(0, (2, 1.5)), label="the cut"),
        *(handle for m in methods for handle in _line_and_band(m)),
    ]
    if swayed:
        cross = {"ls": "", "marker": "x", "ms": 5, "color": "0.35"}
        handles.append(Line2D([], [], label="without the first quarter of what was fitted", **cross))
    drawing = {"frameon": False, "fontsize": style.SMALL, "columnspacing": 1.2, "handletextpad": 0.5}
    figure.legend(handles=handles, loc="outside lower left", ncols=3 if columns < 4 else 4 if swayed else 7, **drawing)
    return style.settled(figure)


def _crosses(axes: Axes, forecasts: pl.DataFrame, methods: Iterable[str]) -> bool:
    """Draw the forecasts without the first checkpoints, where they are others -> whether there were any."""
    if forecasts.is_empty():
        return False
    swayed = forecasts.filter(pl.col("caution").str.contains(cautions.SWAYED, literal=True))
    for method in methods:
        own = swayed.filter(method=method)
        axes.plot(own["tokens"], own["without_first"], ls="", marker="x", ms=5, color=forecaster_look(method).colour)
    if len(swayed):
        low, high = axes.get_ylim()
        room = (high - low) / 2
        least, most = swayed["without_first"].min() - room / 10, swayed["without_first"].max() + room / 10
        axes.set_ylim(min(low, max(least, low - room)), max(high, min(most, high + room)))
    return not swayed.is_empty()


def _cautions_of_panel(forecasts: pl.DataFrame, methods: Iterable[str]) -> list[str]:
    """Why forecasts of a panel are unreliable, in short."""
    if forecasts.is_empty():
        return []
    texts = [short for text, short in OF_TRUTH.items() if forecasts["caution"].str.contains(text, literal=True).any()]
    for method in methods:
        own = forecasts.filter(method=method)
        fell_back = own["fallback"].str.starts_with("constant").any()
        goes = own["caution"].str.extract(f"{cautions.GOES} ([^;]*)").drop_nulls().unique(maintain_order=True)
        few = own["caution"].str.contains(cautions.TOO_FEW, literal=True).any()
        none = own["caution"].str.contains(cautions.NO_INTERVAL, literal=True).any()
        parts = ["no curve"] * fell_back + [*goes] + ["rough interval"] * few + ["no interval"] * none
        texts += [f"{forecaster_name(method).split(' (')[0]}: {', '.join(parts)}"] if parts else []
    return texts


def _write_cautions(axes: Axes, texts: Sequence[str], width: int) -> None:
    """Write the texts at the top of a panel, in lines of `width` characters, above all that is drawn."""
    lines = [line for text in texts for line in wrap(text, width)]
    if lines:
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.1 * len(lines) * (high - low))
        drawing = {"va": "top", "fontsize": 6, "color": "0.35", "bbox": {"fc": "white", "ec": "none", "pad": 0.5}}
        axes.text(0.03, 0.98, "\n".join(lines), transform=axes.transAxes, **drawing)


def _line_and_band(method: str) -> tuple[Line2D | Patch, ...]:
    colour = forecaster_look(method).colour
    line = Line2D([], [], color=colour, ls=_dashes(method), label=forecaster_name(method))
    return (line,) if method == TWO_STEP else (line, Patch(fc=colour, alpha=0.18, label="its interval"))


def _dashes(method: str) -> object:
    return {COMPUTE_ONLY: (0, (4, 1.5)), TWO_STEP: (0, (1, 0.8))}.get(method, "-")


def _curve(axes: Axes, truth: pl.DataFrame, paths: dict[str, pl.DataFrame]) -> None:
    fitted, later = truth.filter("in_fit"), truth.filter(~pl.col("in_fit"))
    for method, path in paths.items():
        colour = forecaster_look(method).colour
        band = path.drop_nulls("low")
        axes.fill_between(band["tokens"], band["low"], band["high"], color=colour, alpha=0.14, lw=0, zorder=1)
        axes.plot(path["tokens"], path["predicted"], color=colour, ls=_dashes(method), lw=1.3, zorder=2)
    axes.plot(fitted["tokens"], fitted["value"], ls="", marker="o", ms=2.6, color="0.15", mew=0, zorder=3)
    many = len(later) > MANY_POINTS
    drawing = {"ms": 1.8, "mew": 0.35, "mec": "0.5"} if many else {"ms": 2.6, "mew": 0.6, "mec": "0.15"}
    axes.plot(later["tokens"], later["value"], ls="", marker="o", mfc="white", zorder=1.5 if many else 3, **drawing)
    axes.axvline(fitted["tokens"].max(), lw=0.8, ls=(0, (2, 1.5)), color="0.35", zorder=0.5)
    # An interval may be as wide as it likes; the points and lines are what is to be read.
    values = np.concatenate([truth["value"], *(path["predicted"] for path in paths.values())])
    room = max(np.ptp(values), 0.02)
    bands = np.concatenate([values, *(path[name].drop_nulls() for path in paths.values() for name in ("low", "high"))])
    axes.set_ylim(
        max(bands.min(), values.min() - 0.5 * room) - 0.05 * room,
        min(bands.max(), values.max() + 0.5 * room) + 0.05 * room,
    )
    axes.yaxis.set_major_locator(MaxNLocator(4))


@matplotlib.rc_context(style.STYLE)
def proxy_curves(observed: pl.DataFrame, fits: pl.DataFrame, run: str) -> Figure:
    """Values of every fitted statistic of one run over tokens, and the curves fitted to them, a panel for each."""
    seen = (
        observed.filter(run=run)
        .filter(pl.col("tokens") > 0, pl.col("series") != TRUTH)
        .sort("tokens", maintain_order=True)
    )
    title = f"Proxies over the run {run}, and the curves fitted to them"
    if seen.is_empty():
        return style.without_data(title, "No proxies were measured on this run.")
    # A series is followed by one curve, whatever the link behind it.
    fits = fits.filter(pl.col("curve") != "constant", run=run).with_columns(
        series=pl.col("method").str.split(", ").list.first()
    )
    fits = fits.unique(["task", "series"], keep="first", maintain_order=True)
    names, tasks = seen["series"].unique(maintain_order=True), sorted(set(seen["task"]))
    colours = {task: style.COLOURS[place % len(style.COLOURS)] for place, task in enumerate(tasks)}
    markers = {task: style.MARKERS[place // len(style.COLOURS)] for place, task in enumerate(tasks)}
    most = 2 if len(names) in (2, 4) else min(len(names), 3)
    figure, grid, columns = style.panels(len(names), (6.6 / most, 2.0), (1.2, 1.0), most, sharex=True)
    for axes, series in zip(grid, names, strict=True):
        axes.set_title(_broken(style.readable(*series.split("/"))))
        axes.set_ylabel(style.look(series.split("/")[0]).unit)
        for task in tasks:
            own, fit = seen.filter(series=series, task=task), fits.filter(series=series, task=task)
            drawing = {"ls": "", "marker": markers[task], "ms": 2.4, "color": colours[task], "mew": 0.5}
            for part, face in ((own.filter("in_fit"), colours[task]), (own.filter(~pl.col("in_fit")), "white")):
                axes.plot(part["tokens"], part["value"], mfc=face, **drawing)
            if len(fit):
                at = np.geomspace(own["tokens"].min(), own["tokens"].max(), CURVE_POINTS)
                line = np.clip(fitted_curve(fit.row(0, named=True), at), *value_range(series))
                axes.plot(at, line, color=colours[task], lw=1.0, alpha=0.8)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    style.token_axis(grid, columns, seen["tokens"].min(), seen["tokens"].max(), 0.04)
    handles = [Line2D([], [], color=colours[t], marker=markers[t], ms=3, lw=1, label=t) for t in tasks]
    drawing = {"title": "Task", "alignment": "left", "frameon": False, "fontsize": style.SMALL}
    figure.legend(handles=handles, loc="outside right upper", **drawing)
    style.add_title(figure, title)
    style.add_note(
        figure, "Filled: what the fit saw; hollow: what came after. A statistic without a curve follows none."
    )
    return style.settled(figure)


def fitted_curve(fit: dict, tokens: np.ndarray) -> np.ndarray:
    """The curve of a row of the table of fits, t = tokens over those at the cut.

    Power: a - b t^-c. Logistic: a - b / (1 + (t / m)^c). Constant: a.
    """
    t = tokens / fit["tokens_at_cut"]
    if fit["curve"] == "power":
        return fit["a"] - fit["b"] * t ** -fit["c"]
    if fit["curve"] == "logistic":
        return fit["a"] - fit["b"] / (1 + (t / fit["m"]) ** fit["c"])
    return np.full(len(t), fit["a"])
