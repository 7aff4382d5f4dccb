"""What every figure shares: the style, the look of each statistic and baseline, and how texts keep apart.

No figure touches pyplot or leaves other global state behind, so figures can be made in any order.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation, Transform

from proxycast.proxy_formulas import SIGNS
from proxycast.report.label_placement import spread
from proxycast.tables import atomic

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so placed labels are equally wide on every machine
    "font.size": 8,
    "figure.titlesize": 9,
    "figure.titleweight": "bold",
    "figure.labelsize": 8,
    "figure.autolayout": False,  # whoever wants it says so for his figures; ours are laid out once
    "figure.constrained_layout.use": False,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.titlepad": 4,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.title_fontsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "text.parse_math": False,  # names of a study are text, whatever `$` and `\\` they hold
    "text.usetex": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "proxycast",  # the same tables give the same bytes
    "figure.dpi": 200,
    "savefig.dpi": 200,
}
SUPERSCRIPTS = str.maketrans("-\N{MINUS SIGN}0123456789", "⁻⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
POWER = re.compile(r"\$\\mathdefault\{(?P<number>[^{}]*?)(\^\{(?P<exponent>[^{}]*)\})?\}\$")
SMALL = 7  # points: labels inside the axes
GREY = "0.45"


@dataclass(frozen=True)
class Look:
    """How a statistic or a baseline is named for people, in which unit it is measured, and how it is drawn."""

    label: str
    unit: str
    colour: str
    marker: str = "o"


# Blue for the top-k accuracies, the darker the larger k; the other hues after Okabe and Ito and after Tol, safe for
# colour-blind eyes.
STATISTIC_LOOKS = {
    "cross_entropy": Look("Cross-entropy", "nats per token", "#D55E00"),
    "top1_accuracy": Look("Top-1 accuracy", "fraction of tokens", "#56B4E9"),
    "top2_accuracy": Look("Top-2 accuracy", "fraction of tokens", "#2A93D1"),
    "top3_accuracy": Look("Top-3 accuracy", "fraction of tokens", "#0072B2"),
    "top5_accuracy": Look("Top-5 accuracy", "fraction of tokens", "#0B3C6F"),
    "normalized_entropy": Look("Normalized entropy", "fraction of ln V", "#E69F00"),
    "expert_rank": Look("Expert rank", "rank, 1 is best", "#009E73"),
    "reciprocal_rank": Look("Reciprocal rank", "1 / rank", "#44AA99"),
    "margin": Look("Margin", "probability", "#CC79A7"),
    "wrong_confidence": Look("Wrong confidence", "probability", "#882255"),
}
BASELINE_LOOKS = {
    "multiple_choice_accuracy": Look("Multiple-choice accuracy", "fraction of questions", "#000000", "s"),
    "choice_log_likelihood": Look("Choice log-likelihood", "nats", "#777777", "D"),
    "generic_cross_entropy": Look("Generic-text cross-entropy", "nats per token", "#8A7A00", "^"),
    "generic_bits_per_byte": Look("Generic-text bits per byte", "bits per byte", "#C2B24A"),
    "expert_cross_entropy": Look("Expert cross-entropy", "nats per token", "#8C510A", "v"),
    "bits_per_byte": Look("Expert bits per byte", "bits per byte", "#B08A5B"),
    "tempered_cross_entropy": Look("Expert cross-entropy, tempered", "nats per token", "#4E7D2D", ">"),
    "tempered_bits_per_byte": Look("Expert bits per byte, tempered", "bits per byte", "#8AA65A", "<"),
    "rbridge": Look("rBridge", "weighted nats per token", "#AA4499", "X"),
    "exact_match": Look("Exact match", "fraction of problems", "#444444"),
    "sampled_exact_match": Look("Exact match of drawn texts", "fraction of texts", "#666633"),
    "primary_metric": Look("Accuracy (primary metric)", "fraction of questions", "#000000", "s"),
    "accuracy": Look("Accuracy, as published", "fraction of questions", "#000000", "s"),
    "accuracy_of_25_corpora": Look("Accuracy, as published of 25 corpora", "fraction of questions", "#000000", "s"),
    "correct_prob_per_char": Look("Correct probability, per character", "probability", "#777777", "D"),
    "log_correct_prob_per_char": Look("Correct probability, log per character", "nats", "#0072B2", "D"),
    "parameters": Look("Parameter count", "parameters", "#999999"),
    "training_compute": Look("Training compute", "FLOPs", "#999999"),
    "base_truth": Look("The base's own score", "", "#999999"),
    "chance": Look("Chance", "", "#999999"),
}
# For what has no look of its own (families, writers, tasks): eight colours after Okabe and Ito and after Tol.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#882255", "#E69F00", "#56B4E9", "#CC79A7", "#8A7A00")
MARKERS = "osD^vPXp"
WEIGHTING_LOOKS = {  # the marker tells two weightings of one statistic apart
    "uniform": ("uniform", "s"),
    "expert_probability": ("expert-probability", "P"),
    "expert_disagreement": ("expert-disagreement", "X"),
    "entropy": ("entropy", "p"),
    "inverse_entropy": ("inverse-entropy", "h"),
    "token_frequency": ("token-frequency", "o"),
    "inverse_token_frequency": ("inverse-token-frequency", "d"),
    "gaussian_nll": ("Gaussian-NLL", "*"),
}


def readable(statistic: str, weighting: str = "none") -> str:
    """The name shown to people: "Top-5 accuracy, token-frequency weighting". A baseline has the weighting "none"."""
    name = look(statistic).label
    return name if weighting == "none" else f"{name}, {weighting_name(weighting)} weighting"


def distinct_looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each; beyond eight, a colour comes again with another marker."""
    shift = [n + n // len(COLOURS) for n in range(len(names))]
    return {
        name: (COLOURS[n % len(COLOURS)], MARKERS[m % len(MARKERS)]) for n, (name, m) in enumerate(zip(names, shift))
    }


def score_name(statistic: str, weighting: str) -> str:
    """What an axis of predicted scores shows: they are signed, so that higher is better."""
    name = readable(statistic, weighting)
    small = f"{name[0].lower()}{name[1:]}"
    if statistic not in SIGNS:  # others measured it, and the study says what its sign is
        return f"Score by {small}"
    return f"Negative {small}" if SIGNS[statistic] < 0 else name


def look(statistic: str) -> Look:
    """The look of a statistic or baseline. What a study adds of its own is grey and is named as its table names it."""
    known = STATISTIC_LOOKS | BASELINE_LOOKS
    return known.get(statistic) or Look(statistic.replace("_", " ").capitalize(), "", GREY)


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as `path`.svg and `path`.png (200 dpi), each whole or not at all. `path` has no suffix."""
    for suffix, metadata in ((".svg", {"Date": None}), (".png", {})):
        with atomic(path.with_name(path.name + suffix)) as temporary, matplotlib.rc_context(STYLE):
            figure.savefig(temporary, metadata=metadata)


def canvas(width: float, height: float) -> Figure:
    """An empty figure, inches, whose layout makes room for every text."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(
    count: int, size: tuple[float, float], margins: tuple[float, float], most: int = 4, **sharing: object
) -> tuple[Figure, list[Axes], int]:
    """A figure of `count` axes, each about `size` inches, by rows of at most `most`; its axes; the axes in a row.

    `margins`: inches for all that is not inside the axes' places. Where the axes share x, the last of each column
    shows its numbers.
    """
    columns = 3 if count in (5, 6, 9) and most >= 3 else min(count, most)
    rows = -(-count // columns)
    figure = canvas(size[0] * columns + margins[0], size[1] * rows + margins[1])
    every = list(figure.subplots(rows, columns, squeeze=False, **sharing).flat)
    for spare in every[count:]:
        spare.remove()
    for last in every[:count][-columns:]:
        last.tick_params(labelbottom=True)
    return figure, every[:count], columns


def without_data(title: str, why: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure = canvas(7.2, 1.0)
    add_title(figure, title)
    figure.text(0.02, 0.3, why)
    return settled(figure)


def settled(figure: Figure) -> Figure:
    """The figure with its layout computed and fixed: what is placed by pixels stays there in every output format.

    With no engine at all, not even the placeholder that "none" leaves, for which `savefig` would draw each file twice.
    """
    engine = figure.get_layout_engine()
    if engine is not None and figure.axes:
        engine.execute(figure)  # what else drawing the figure does, drawing its files does again
    with matplotlib.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
    return figure


def add_title(figure: Figure, text: str, warning: str = "") -> None:
    """The title, and below it what puts the whole figure in doubt, for which the figure grows."""
    lines = textwrap.wrap(warning, int(13 * figure.get_figwidth()))
    grow(figure, len(lines))
    figure.suptitle("\n".join([text, *lines]), x=0.005, ha="left")


def grow(figure: Figure, lines: int) -> None:
    """Make room for more lines of a title or note, so that what names the lines of the axes keeps its place."""
    figure.set_figheight(figure.get_figheight() + 0.17 * lines)


def add_note(figure: Figure, text: str) -> None:
    figure.supxlabel(text, x=0.005, ha="left", fontsize=SMALL, color="0.35")


class Powers(LogFormatterSciNotation):
    """Numbers of a logarithmic axis as matplotlib has them, 10⁻², in Unicode: no text of a figure is mathematics."""

    def __call__(self, value: float, position: int | None = None) -> str:
        found = POWER.fullmatch(text := super().__call__(value, position))
        if found is None:
            return text
        return found["number"].replace(r"\times", "×") + (found["exponent"] or "").translate(SUPERSCRIPTS)


def log_room(low: float, high: float, share: float) -> float:
    """The factor that leaves `share` of a logarithmic axis from `low` to `high` free at an end; 2 if they are equal."""
    return max((high / low) ** share, 1.05) if high > low else 2.0


def token_axis(grid: Sequence[Axes], columns: int, low: float, high: float, share: float) -> None:
    """The logarithmic axis of training tokens from `low` to `high`, with room at its ends, that all of `grid` share."""
    room, first = log_room(low, high, share), grid[0]
    first.set_xscale("log")
    first.set_xlim(low / room, high * room)
    first.xaxis.set_major_locator(LogLocator(subs=(1,) if high / low > 30 else (1, 2, 5), numticks=6))
    first.xaxis.set_major_formatter(FuncFormatter(short_count))
    first.xaxis.set_minor_formatter(NullFormatter())
    for axes in grid[-columns:]:
        axes.set_xlabel("Training tokens")


def about_half_width(table: pl.DataFrame, units: str) -> str:
    half_width = (table["high"] - table["low"]).median()
    return "" if half_width is None else f" Bootstrap intervals over {units}: median half-width {half_width / 2:.2f}."


def aside(axes: Axes, place: int, count: int, points: float) -> Transform:
    """The axes' data moved sideways, so that the bars of `count` methods, `points` apart, do not hide each other."""
    shift = (place - (count - 1) / 2) * points / 72
    return axes.transData + ScaledTranslation(shift, 0, axes.figure.dpi_scale_trans)


def weighting_name(weighting: str) -> str:
    return WEIGHTING_LOOKS[weighting][0] if weighting in WEIGHTING_LOOKS else weighting.replace("_", "-")


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def short_count(value: float, _position: int = 0) -> str:
    """A count with a short-scale letter: 2000000000 -> "2B"."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= scale:
            return f"{value / scale:g}{letter}"
    return f"{value:g}"


def value_with_interval(row: dict, name: str, prefix: str) -> str:
    """Such as "0.86 [0.71, 0.93]", from the columns `name`, `prefix`low and `prefix`high; null is "undefined".

    A value without an interval is "0.86 [n/a]".
    """
    value, low, high = row[name], row[f"{prefix}low"], row[f"{prefix}high"]
    if value is None:
        return "undefined"
    return f"{value:.2f} [n/a]" if low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def about_missing_intervals(lows: Iterable[float | None], units: str) -> str:
    """Lines that say why some intervals over `units` (corpora, models) are missing; nothing where none is."""
    if None not in lows:
        return ""
    return f"\nWithout an interval: too few {units}, or every sample\nof them gives the same extreme value."


def in_order(names: pl.Series, known: dict) -> list[str]:
    """The distinct `names`: those that are `known` in the order of that table, then the others by the alphabet."""
    present = set(names)
    return [name for name in known if name in present] + sorted(present - set(known))


def label_ends(figure: Figure, axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name lines in the right margin, each beside its end (x, y, label, colour) or as near as the other names allow."""
    labels, margin = [], axes.get_yaxis_transform() + ScaledTranslation(16 / 72, 0, figure.dpi_scale_trans)
    for x, y, text, colour in ends:
        leader = {"arrowstyle": "-", "color": colour, "lw": 0.5, "alpha": 0.7, "shrinkB": 5, "relpos": (0, 0.5)}
        style = {"fontsize": SMALL, "color": colour, "va": "center", "arrowprops": leader}
        labels.append(axes.annotate(text, (x, y), (1, y), "data", margin, **style))
    settled(figure)
    renderer, to_pixels = figure.canvas.get_renderer(), axes.transData
    heights = [Text.get_window_extent(label, renderer).height + 0.02 * figure.dpi for label in labels]
    pixels = [to_pixels.transform((x, y))[1] for x, y, *_ in ends]
    centres = spread(pixels, heights, axes.bbox.y0, axes.bbox.y1)
    for label, centre in zip(labels, centres, strict=True):
        label.set_position((1, to_pixels.inverted().transform((0, centre))[1]))


def heat_maps(proxies: pl.DataFrame, baselines: pl.DataFrame, value: str, lowest: float) -> Figure:
    """The column `value` of every proxy, statistics by weightings, and of every baseline beside.

    Colours reach from `lowest` to 1, white in the middle. An asterisk marks weightings that depend on the candidate.
    """
    statistics = in_order(proxies["statistic"], STATISTIC_LOOKS)
    weightings = in_order(proxies["weighting"], WEIGHTING_LOOKS)
    compared = in_order(baselines["statistic"], BASELINE_LOOKS)
    marked = set(proxies.filter("depends_on_candidate")["weighting"])
    height = max(len(statistics), len(compared))
    figure = canvas(7.2, 0.27 * height + 2.1)
    left, right = figure.subplots(1, 2, width_ratios=(len(weightings), 1))
    value_cells(left, _matrix(proxies, statistics, weightings, value), height, lowest)
    left.set_yticks(range(len(statistics)), [look(name).label for name in statistics])
    names = [capital(weighting_name(name)) + ("*" if name in marked else "") for name in weightings]
    left.set_xticks(range(len(weightings)), names, rotation=35, ha="left", rotation_mode="anchor")
    value_cells(right, _matrix(baselines, compared, ["none"], value), height, lowest)
    right.yaxis.tick_right()
    right.set_yticks(range(len(compared)), [look(name).label for name in compared])
    right.set_xticks([0], ["Baselines"], rotation=35, ha="left", rotation_mode="anchor")
    return figure


def about_weights(proxies: pl.DataFrame) -> str:
    """What the asterisks of `heat_maps` mean, where there are any."""
    if not proxies["depends_on_candidate"].any():
        return ""
    return "\n* The weights depend on the candidate: such a proxy can invert a ranking."


def _matrix(table: pl.DataFrame, statistics: list[str], weightings: list[str], value: str) -> np.ndarray:
    """The column `value` of `table` as an array (statistics, weightings); NaN where there is none."""
    values = {(row["statistic"], row["weighting"]): row[value] for row in table.iter_rows(named=True)}
    return np.array([[values.get((s, w)) for w in weightings] for s in statistics], dtype=float).reshape(
        -1, len(weightings)
    )


def value_cells(axes: Axes, values: np.ndarray, height: int, lowest: float) -> None:
    """A heat map from `lowest` to 1, white in the middle, every value printed, in axes that are `height` rows high."""
    rows, columns = values.shape
    colours, scale = matplotlib.colormaps["RdBu"], Normalize(lowest, 1)
    edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    if rows:
        axes.pcolormesh(
            *edges, np.ma.masked_invalid(values), cmap=colours, norm=scale, edgecolors="white", linewidth=1.2
        )
    for (row, column), value in np.ndenumerate(values):
        dark = np.isfinite(value) and np.dot(colours(scale(value))[:3], (0.299, 0.587, 0.114)) < 0.58
        text = f"{value:.2f}" if np.isfinite(value) else "–"
        axes.text(
            column, row, text, ha="center", va="center_baseline", fontsize=SMALL, color="white" if dark else "0.1"
        )
    axes.set_ylim(height - 0.5, -0.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def in_emptiest_corner(axes: Axes, text: str, x: np.ndarray, y: np.ndarray) -> Annotation:
    """Write `text` in the corner of the axes whose nearest point is farthest away."""
    points = axes.transAxes.inverted().transform(axes.transData.transform(np.column_stack([x, y])))
    corners = [(0, 1), (1, 0), (0, 0), (1, 1)]
    right, top = max(corners, key=lambda corner: np.linalg.norm(points - corner, axis=1).min())
    return axes.annotate(
        text,
        (right, top),
        (6 - 12 * right, 6 - 12 * top),
        "axes fraction",
        "offset points",
        ha="right" if right else "left",
        va="top" if top else "bottom",
        fontsize=7.5,
        linespacing=1.4,
    )
