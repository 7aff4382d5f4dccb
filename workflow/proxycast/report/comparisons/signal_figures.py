"""Figures of signal to noise: by statistic and task, against decision accuracy, and what repeats buy."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from proxycast.experiments.signal_to_noise import ALL
from proxycast.proxy_formulas import WEIGHTINGS
from proxycast.report import style

NOISES = {"seeds": "noise between seeds", "checkpoints": "noise between the last checkpoints"}
LEAST_WIDTH = 6.4  # inches, of the longest line of text
SHORT = 50  # the last over the first number of a logarithmic axis
MOST_PANELS = 6  # for each kind of noise; the costliest sizes
COMPARED = (("bits_per_byte", "none"),)  # beside the proxies of the study
Names = Sequence[tuple[str, str]]  # (statistic, weighting)


@matplotlib.rc_context(style.STYLE)
def signal_to_noise(signal: pl.DataFrame, size: str, step: int, highlighted: Names, confidence: float) -> Figure:
    """Dispersion over noise of statistics (rows) and tasks (columns) at one size and step; a panel for each noise.

    Rows: the `highlighted` proxies, every statistic with uniform weights, and every baseline. `signal`: the table
    signal_to_noise.
    """
    title = f"Signal to noise: {size} models at step {step:,}"
    table = signal.filter(pl.col("kind") != "truth", size=size, step=step)
    known = [noise for noise in NOISES if table[f"snr_{noise}"].is_not_null().any()]
    if not known:
        return style.without_data(title, "No noise is known: one seed of each corpus, and too few checkpoints.")
    kept = set(highlighted) | {(s, "uniform") for s in table["statistic"]}
    kept |= {(s, "none") for s in table["statistic"]}
    names = [name for name in table.select("statistic", "weighting").unique(maintain_order=True).rows() if name in kept]
    tasks = [ALL, *sorted(set(table["task"]) - {ALL})]
    height = 0.185 * len(names)
    figure = style.canvas(7.2, 1.3 + len(known) * (height + 0.5))
    for number, (noise, axes) in enumerate(zip(known, figure.subplots(len(known), 1, squeeze=False)[:, 0])):
        found = {(r["statistic"], r["weighting"], r["task"]): r[f"snr_{noise}"] for r in table.iter_rows(named=True)}
        values = np.array([[found.get((*name, task)) for task in tasks] for name in names], dtype=float)
        _ratio_cells(axes, values)
        axes.set_yticks(range(len(names)), [style.readable(*name) for name in names], fontsize=style.SMALL)
        shown = ["mean of tasks" if task == ALL else task for task in tasks] if number == 0 else [""] * len(tasks)
        axes.set_xticks(range(len(tasks)), shown, rotation=35, ha="left", rotation_mode="anchor")
        axes.set_xlabel(f"Over {NOISES[noise]}")
    rows = table.filter(task=ALL)
    half = (rows["snr_seeds_high"] - rows["snr_seeds_low"]).median() if "seeds" in known else None
    about = "" if half is None else f" Median {confidence:.0%} interval of the first column: ±{half / 2:.1f}."
    style.add_title(figure, title)
    style.add_note(
        figure,
        "Standard deviation between corpora over that of one corpus. White: 1, noise alone; blue: more signal."
        f"\nA high ratio says that the order is repeatable, not that it is right.{about}",
    )
    return style.settled(figure)


def _ratio_cells(axes: Axes, values: np.ndarray) -> None:
    """A heat map of ratios on a logarithmic scale, white at 1, every value printed."""
    colours, scale = matplotlib.colormaps["RdBu"], LogNorm(1 / 20, 20)
    rows, columns = values.shape
    edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    shown = np.ma.masked_invalid(np.clip(values, 1 / 20, 20))
    axes.pcolormesh(*edges, shown, cmap=colours, norm=scale, edgecolors="white", linewidth=0.8)
    for (row, column), value in np.ndenumerate(values):
        known = np.isfinite(value)
        dark = known and np.dot(colours(scale(np.clip(value, 1 / 20, 20)))[:3], (0.299, 0.587, 0.114)) < 0.58
        text = "–" if not known else f"{value:.1f}" if value < 100 else f"{value:.0f}"
        colour = "white" if dark else "0.1"
        axes.text(column, row, text, ha="center", va="center_baseline", fontsize=6, color=colour)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


@matplotlib.rc_context(style.STYLE)
def snr_against_decision_accuracy(
    signal: pl.DataFrame, foresight: pl.DataFrame, highlighted: Names, confidence: float
) -> Figure:
    """Decision accuracy of one run over signal to noise, a point for each statistic; a panel for a size and noise.

    `signal`: the table signal_to_noise; `foresight`: the table snr_and_accuracy, whose rho stands above each panel.
    """
    title = "Does signal to noise foretell decision accuracy?"
    same = pl.col("size").eq(pl.col("judged_size")) & pl.col("step").eq(pl.col("judged_step"))
    of_cells = foresight.filter(same, over="statistics", task=ALL)
    if of_cells.is_empty():
        return style.without_data(title, "Too few statistics of a known noise and decision accuracy to tell.")
    chosen = pl.concat([of_cells.filter(noise=noise).tail(MOST_PANELS) for noise in NOISES])
    figure, grid, columns = style.panels(len(chosen), (2.2, 2.0), (0.4, 1.5), most=3, sharey=True)
    for number, (axes, row) in enumerate(zip(grid, chosen.iter_rows(named=True), strict=True)):
        at = f"snr_{row['noise']}"
        points = signal.filter(pl.col("kind") != "truth", task=ALL, size=row["size"], step=row["step"]).drop_nulls(at)
        _draw_points(axes, points.filter(pl.col(at) > 0), at, highlighted)
        axes.set_title(
            f"{row['size']} at step {row['step']:,}\nρ {style.value_with_interval(row, 'spearman', 'spearman_')}"
        )
        axes.set_xlabel(f"Signal over\n{NOISES[row['noise']]}")
        if number % columns == 0:
            axes.set_ylabel("Decision accuracy of one run")
    figure.set_figwidth(max(figure.get_figwidth(), LEAST_WIDTH))
    style.add_title(figure, title)
    _add_keys(
        figure,
        *_keys(grid[0], highlighted),
        f"Mean over tasks. ρ: Spearman's, over the points, with a {confidence:.0%} bootstrap interval over corpora.\n"
        "Line: chance. Below it a statistic inverts the order, however sure its signal is.",
    )
    return style.settled(figure)


def _add_keys(figure: Figure, handles: list, labels: list[str], note: str) -> None:
    """The note below the axes, and under it what the markers mean."""
    place = {"loc": "outside lower left", "ncols": 2, "frameon": False, "alignment": "left", "borderpad": 0}
    legend = figure.legend(handles, labels, title=note, fontsize=style.SMALL, title_fontsize=style.SMALL, **place)
    legend.get_title().set_color("0.35")


def _groups(highlighted: Names) -> list[tuple[str, pl.Expr, dict]]:
    """What is drawn alike: its name, its rows, and how."""
    named = pl.struct("statistic", "weighting").is_in([{"statistic": s, "weighting": w} for s, w in highlighted])
    depends = pl.col("weighting").is_in([name for name, w in WEIGHTINGS.items() if w.depends_on_candidate])
    proxy = pl.col("kind") == "proxy"
    groups = [
        ("proxy, weights that depend on the candidate", proxy & depends, {"marker": "o", "mfc": "none", "mec": "0.6"}),
        ("proxy, other weights", proxy & ~depends, {"marker": "o", "mfc": "0.5", "mec": "none"}),
        ("baseline", ~proxy & ~named, {"marker": "X", "mfc": "#D55E00", "mec": "white"}),
    ]
    for (statistic, weighting), marker in zip(highlighted, style.MARKERS[1:]):
        one = (pl.col("statistic") == statistic) & (pl.col("weighting") == weighting)
        look = {"marker": marker, "mfc": style.look(statistic).colour, "mec": "white", "ms": 6}
        groups.append((style.readable(statistic, weighting), one, look))
    return groups


def _draw_points(axes: Axes, points: pl.DataFrame, at: str, highlighted: Names) -> None:
    axes.set_xscale("log")
    axes.axhline(0.5, lw=0.6, color="0.55", zorder=0.5)
    for _, rows, drawing in _groups(highlighted):
        found = points.filter(rows)
        axes.plot(found[at], found["decision_accuracy"], ls="", mew=0.5, **{"ms": 3.6} | drawing)
    _number_log_axis(axes)
    axes.set_ylim(top=1)


def _number_log_axis(axes: Axes) -> None:
    """Plain numbers at 1, 2 and 5 where the axis is short, else powers of ten."""
    low, high = axes.get_xlim()
    if high / low < SHORT:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.xaxis.set_major_formatter(style.Powers())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _keys(axes: Axes, highlighted: Names) -> tuple[list, list[str]]:
    handles = [axes.plot([], [], ls="", mew=0.5, **{"ms": 4} | look)[0] for *_, look in _groups(highlighted)]
    return handles, [name for name, *_ in _groups(highlighted)]


@matplotlib.rc_context(style.STYLE)
def repeats_over_compute(repeats: pl.DataFrame, shown: Names, confidence: float) -> Figure:
    """Decision accuracy over compute: one run of each size, means of seeds, and means of the last checkpoints.

    `repeats`: the table. `shown`: a panel for each (statistic, weighting) that the table has.
    """
    title = "What buys more: another seed, the last checkpoints, or a larger model?"
    there = set(repeats.select("statistic", "weighting").rows())
    names = [name for name in dict.fromkeys(shown) if name in there][:MOST_PANELS]
    if not names:
        return style.without_data(title, "There is nothing to compare: no decision accuracy is known.")
    most = 2 if len(names) == 4 else 3
    figure, grid, columns = style.panels(len(names), (2.3, 2.2), (0.4, 1.5), most, sharex=True, sharey=True)
    for number, (axes, name) in enumerate(zip(grid, names, strict=True)):
        rows = repeats.filter(statistic=name[0], weighting=name[1]).sort("flops", "seeds")
        _draw_repeats(axes, rows)
        axes.set_title(style.readable(*name).replace(", ", ",\n"))
        if number % columns == 0:
            axes.set_ylabel("Decision accuracy")
    for axes in grid[-columns:]:
        axes.set_xlabel("Training compute / one target run's")
    _number_log_axis(grid[0])
    figure.set_figwidth(max(figure.get_figwidth(), LEAST_WIDTH))
    style.add_title(figure, title)
    _add_keys(
        figure,
        *grid[0].get_legend_handles_labels(),
        f"Mean over tasks. Bars: {confidence:.0%} bootstrap intervals over corpora.\n"
        "Seeds multiply the training compute; earlier checkpoints of a run cost no training, only scoring.",
    )
    return style.settled(figure)


def _draw_repeats(axes: Axes, rows: pl.DataFrame) -> None:
    axes.set_xscale("log")
    axes.axhline(0.5, lw=0.6, color="0.55", zorder=0.5)
    single = rows.filter(seeds=1, checkpoints=1)
    x, y = single["compute_fraction"].to_numpy(), single["decision_accuracy"].to_numpy()
    axes.plot(x, y, "o-", color="0.35", ms=3.5, lw=1, label="one run, of every size and step", zorder=3)
    _bars(axes, single, "0.35")
    first = True
    for _, cell in rows.filter(checkpoints=1).group_by("size", "step", maintain_order=True):
        if len(cell) > 1:
            label = "mean of 2, 3, … seeds of it" if first else None
            at = cell["compute_fraction"].to_numpy(), cell["decision_accuracy"].to_numpy()
            axes.plot(*at, "-", color=style.COLOURS[0], lw=1, zorder=2)
            axes.plot(at[0][1:], at[1][1:], "s", color=style.COLOURS[0], ms=3.5, label=label, zorder=4)
            _bars(axes, cell[1:], style.COLOURS[0])
            first = False
    recent = rows.filter(pl.col("checkpoints") > 1, pl.col("seeds") == 1)
    count = recent["checkpoints"].max()
    if count is not None:
        label = f"mean of the last {count} checkpoints of one run"
        x, y = recent["compute_fraction"].to_numpy(), recent["decision_accuracy"].to_numpy()
        axes.plot(x, y, "D", mfc="none", mec=style.COLOURS[1], ms=4.5, mew=1, label=label, zorder=5)


def _bars(axes: Axes, rows: pl.DataFrame, colour: str) -> None:
    rows = rows.drop_nulls("decision_accuracy_low")
    ends = (rows["decision_accuracy_low"].to_numpy(), rows["decision_accuracy_high"].to_numpy())
    axes.vlines(rows["compute_fraction"].to_numpy(), *ends, lw=0.7, alpha=0.5, color=colour, zorder=1)
