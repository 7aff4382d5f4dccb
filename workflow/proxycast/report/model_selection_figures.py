"""The figures of the model selection, from the tables of `model_selection/`."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from proxycast.experiments.model_selection.subsets import EVERY_WRITER, GIVEN
from proxycast.experiments.model_selection.task_truth import about_noisy_task
from proxycast.experiments.reliability import ABOVE_CEILING, NOISE
from proxycast.options import InputError
from proxycast.report import style
from proxycast.report.label_placement import place_labels

SCORER_NAMES = {
    "univariate": "Best single proxy",
    "sparse3": "Best three proxies",
    "rank_svm_linear": "Linear RankSVM",
    "rank_svm_rbf": "RBF RankSVM",
}
HINDSIGHT = {"best_proxy_in_hindsight": "Best proxy in hindsight"}
KIND_LOOKS = {"scorer": ("Scorers", "#0072B2"), "baseline": ("Baselines", "0.35"), "oracle": ("Oracle", "#AA4499")}
SPLITS = {
    "two_tasks": "Two tasks held out",
    "family": "A family held out too",
    "recipe": "A recipe held out too",
}
LABELS_HELD_OUT = {"family": ("Diamonds", "D", "white"), "recipe": ("Triangles", "^", "0.75")}
TAILS = ("tokens", "bytes", "")
MOST_CHOSEN = 8  # proxies of one scorer that are shown
MOST_NAMED = 2  # models of one task that are named: those that are placed worst
WRITER_NAMES = {EVERY_WRITER: "All writers", GIVEN: "Given solutions"}


def method_name(method: str) -> str:
    """The name shown to people, of a scorer, a baseline, the oracle or a proxy ("statistic/weighting")."""
    known = SCORER_NAMES | HINDSIGHT
    return known.get(method) or style.readable(*method.split("/"))


@matplotlib.rc_context(style.STYLE)
def methods_compared(summary: pl.DataFrame, folds: pl.DataFrame, truth: pl.DataFrame) -> Figure:
    """Mean Spearman of every method with its interval and its folds, one panel for each split.

    `summary`, `folds`, `truth`: the tables of that name. Chance orders nothing: it is the line at 0. The dotted line
    is the mean over tasks of the ceiling that the noise of the truth sets, where it is known of every task. Where the
    truth may be noise, the title says so.
    """
    compared = summary.filter(pl.col("spearman").is_not_null(), pl.col("method") != "chance")
    splits = [split for split in SPLITS if split in set(compared["split"])]
    lines = _heights(compared.filter(split=splits[0]))
    aside = {"tokens": -0.2, "bytes": 0.2} if "bytes" in set(compared["tail"]) else {}
    figure = style.canvas(7.2 if len(splits) < len(SPLITS) else 9.6, 0.29 * len(lines) + 1.7)
    means = (
        folds.group_by("split", "fold", "method", "tail", maintain_order=True)
        .agg(pl.col("spearman").mean())
        .drop_nulls()
    )
    lowest = min(compared.select(pl.min_horizontal("low", "spearman").min()).item(), means["spearman"].min(), 0)
    ceilings = truth.filter(pl.col("task") != "all")["ceiling"]
    row = figure.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
    for axes, split in zip(row, splits, strict=True):
        own = compared.filter(split=split)
        count = own["folds"].max()
        axes.set_title(f"{SPLITS[split]}, {count} fold{'s' if count > 1 else ''}")
        axes.axvline(0, lw=0.6, color="0.55", zorder=0.5)
        if split == "two_tasks" and ceilings.null_count() == 0:
            axes.axvline(ceilings.mean(), lw=0.8, ls=(0, (1, 1.5)), color="0.15", zorder=0.5)
        for r in own.iter_rows(named=True):
            _draw_method(
                axes, lines, aside, r, means.filter(split=split, method=r["method"], tail=r["tail"])["spearman"]
            )
        _best_baseline(axes, own, lines)
    row[0].set_xlim(max(-1.0, lowest) - 0.04, 1.04)
    row[0].xaxis.set_major_locator(MaxNLocator(5, steps=(2, 5, 10)))
    row[0].set_ylim(max(lines.values()) + 1.0, -0.6)
    row[0].set_yticks(list(lines.values()), [KIND_LOOKS[kind][0] if m is None else method_name(m) for kind, m in lines])
    for label, (kind, method) in zip(row[0].get_yticklabels(), lines, strict=True):
        label.set(color=KIND_LOOKS[kind][1], weight="bold" if method is None else "normal")
    for axes in row:
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("Spearman's ρ, mean over folds")
    noise = {row["task"]: row for row in truth.filter(verdict=NOISE).iter_rows(named=True)}
    warning = about_noisy_task(noise["all"]) if "all" in noise else ""
    style.add_title(figure, "How well each method orders the models by their downstream scores", warning)
    style.add_note(figure, _about_methods(summary, compared, ceilings, [task for task in noise if task != "all"]))
    return style.settled(figure)


def _heights(rows: pl.DataFrame) -> dict[tuple[str, str | None], float]:
    """(kind, method) -> its height, best first within a kind; (kind, None): the heading above."""
    lines, height = {}, 0.0
    for kind in KIND_LOOKS:
        own = rows.filter(kind=kind).sort("spearman", descending=True, maintain_order=True)["method"]
        for method in [None, *own.unique(maintain_order=True)] if len(own) else []:
            lines[kind, method] = height
            height += 1.0
    return lines


def _draw_method(axes: Axes, lines: dict, aside: dict, row: dict, of_folds: pl.Series) -> None:
    """One method and tail: its mean and interval, the value beside the axes, and a point for each fold."""
    if (row["kind"], row["method"]) not in lines:  # known in this split only
        return
    height, colour = lines[row["kind"], row["method"]] + aside.get(row["tail"], 0.0), KIND_LOOKS[row["kind"]][1]
    alpha = np.clip(4 / (len(of_folds) + 1), 0.04, 0.25)  # so that many folds still show where most of them are
    axes.plot(of_folds, np.full(len(of_folds), height), ls="", marker="o", ms=2.4, mew=0, color=colour, alpha=alpha)
    if row["low"] is not None:
        axes.hlines(height, row["low"], row["high"], color=colour, lw=1.2, zorder=3)
    face = "white" if row["tail"] == "bytes" else colour
    axes.plot(row["spearman"], height, marker="o", ms=4.2, mec=colour, mfc=face, mew=0.9, zorder=4)
    place = (1, height), (2, 0), axes.get_yaxis_transform(), "offset points"
    axes.annotate(f"{row['spearman']:.2f}", *place, fontsize=6, color=colour, va="center_baseline")


def _best_baseline(axes: Axes, rows: pl.DataFrame, lines: dict) -> None:
    best = rows.filter(kind="baseline")["spearman"].max()
    axes.axvline(best, lw=0.9, ls=(0, (4, 2)), color=KIND_LOOKS["baseline"][1], zorder=0.6)
    left = best > 0.4
    place = (best, max(lines.values()) + 0.8), (-3 if left else 3, 0), "data", "offset points"
    axes.annotate(
        "best baseline", *place, fontsize=style.SMALL, color="0.35", ha="right" if left else "left", va="center"
    )


def _about_methods(
    summary: pl.DataFrame, compared: pl.DataFrame, ceilings: pl.Series, noise_tasks: Sequence[str]
) -> str:
    lines = ["Pale dots: single folds. Bars: bootstrap intervals over the models. Line at 0: chance."]
    if "bytes" in set(compared["tail"]):
        lines.append(
            "Filled: the last tokens of each solution are read; hollow: its last bytes, for all the same text."
        )
    if ceilings.null_count() == 0:
        above = compared["note"].str.contains(ABOVE_CEILING, literal=True).any()
        luck = " Beyond it: luck, or an estimate that is too low." if above else ""
        lines.append(f"Dotted: what the noise of the truth allows.{luck}")
    else:
        lines.append("What the noise of the truth allows is unknown.")
    lines += filter(None, style.about_missing_intervals(compared["low"], "models").split("\n"))
    if noise_tasks:
        lines.append(f"The truth may be noise in {', '.join(noise_tasks)}.")
    lines.append("Oracle: picked with the truth of the held-out models in hand; nobody can choose so in advance.")
    for row in (
        summary.filter(pl.col("note").str.starts_with("left out"))
        .unique(["method", "tail"], maintain_order=True)
        .iter_rows(named=True)
    ):
        tail = f" ({row['tail']})" if row["tail"] else ""
        lines.append(f"{method_name(row['method'])}{tail} is {row['note']}.")
    return "\n".join(lines)


@matplotlib.rc_context(style.STYLE)
def predicted_against_true_rank(
    predictions: pl.DataFrame, folds: pl.DataFrame, method: str, truth: pl.DataFrame | None = None
) -> Figure:
    """Predicted over true rank of every model, a panel for each task, where two tasks are held out.

    A task is held out in several folds: markers are the mean of its predicted ranks, bars reach from the least to the
    greatest. `method` was fixed before the results were seen. `truth`: tells the tasks whose truth may be noise.
    """
    tail = first_tail(predictions.filter(split="two_tasks", method=method), method)
    rows = predictions.filter(split="two_tasks", method=method, tail=tail)
    own_rho = folds.filter(split="two_tasks", method=method, tail=tail).group_by("task").agg(pl.col("spearman").mean())
    rho = dict(own_rho.iter_rows())
    name = pl.col("model").str.replace(r"-step\d+$", "")
    rank = pl.col("predicted_rank")
    points = rows.group_by("task", name.alias("model"), "family", "true_rank", maintain_order=True).agg(
        rank.mean(), rank.min().alias("low"), rank.max().alias("high")
    )
    families = style.distinct_looks(sorted(set(points["family"])))
    tasks = points["task"].unique(maintain_order=True)
    figure, grid, columns = style.panels(len(tasks), (1.85, 2.0), (1.5, 1.1), sharex=True, sharey=True)
    count = points.group_by("task").len()["len"].max()
    noise = set() if truth is None else set(truth.filter(verdict=NOISE)["task"])
    for axes, task in zip(grid, tasks, strict=True):
        axes.set_title(f"{task}: noise?" if task in noise else task)
        axes.plot([1, count], [1, count], lw=0.7, color="0.75", zorder=0.5)
        for family, (colour, marker) in families.items():
            own = points.filter(task=task, family=family)
            axes.vlines(own["true_rank"], own["low"], own["high"], color=colour, lw=0.8, alpha=0.6, zorder=2)
            drawing = {"marker": marker, "color": colour, "ms": 4, "mew": 0.4, "mec": "white"}
            axes.plot(own["true_rank"], own["predicted_rank"], ls="", zorder=3, **drawing)
        axes.set_box_aspect(1)
    apart = 5 if count < 30 else 10
    grid[0].set_xlim(0.2, count + 0.8)
    grid[0].set_ylim(0.2, count + 0.8)
    grid[0].set_xticks(ticks := [1, *range(apart, count + 1, apart)])
    grid[0].set_yticks(ticks)
    for axes in grid[-columns:]:
        axes.set_xlabel("True rank (1 is best)")
    figure.supylabel("Predicted rank (1 is best)")
    handles = [Line2D([], [], ls="", marker=m, color=c, ms=4, mew=0, label=f) for f, (c, m) in families.items()]
    legend = {"title": "Family", "alignment": "left", "frameon": False, "fontsize": style.SMALL, "handletextpad": 0.1}
    figure.legend(handles=handles, loc="outside right upper", **legend)
    style.add_title(figure, f"Predicted and true rank of every model: {method_name(method)}, two tasks held out")
    style.add_note(
        figure,
        "Markers: mean over the folds that hold the task out; bars: least and greatest of them. "
        f"ρ: Spearman's, mean over them.\nNamed: the {MOST_NAMED} models farthest off the diagonal."
        + (" Noise?: the truth may be noise." if noise & set(tasks) else ""),
    )
    style.settled(figure)
    for axes, task in zip(grid, tasks, strict=True):
        _name_farthest(axes, points.filter(task=task), rho.get(task))
    return figure


def _name_farthest(axes: Axes, points: pl.DataFrame, rho: float | None) -> None:
    x, y = points["true_rank"].to_numpy(), points["predicted_rank"].to_numpy()
    text = "ρ undefined: the truth ties" if rho is None else f"ρ {rho:.2f}"
    corner = style.in_emptiest_corner(axes, text, x, y)
    bars = points.select("true_rank", "low", pl.col("true_rank").alias("at"), "high").rows()
    farthest = np.argsort(-np.abs(x - y), kind="stable")[:MOST_NAMED]
    names = [name if place in farthest else "" for place, name in enumerate(points["model"])]
    place_labels(axes, x, y, names, bars, [corner], fontsize=5.5, color="0.15")


def first_tail(rows: pl.DataFrame, what: str) -> str:
    """The tail that is drawn where there are several: the one in tokens."""
    found = [tail for tail in TAILS if tail in set(rows["tail"])]
    if not found:
        raise InputError(f"nothing to draw for {what}: no such rows in the tables of the model selection")
    return found[0]


@matplotlib.rc_context(style.STYLE)
def proxies_chosen(stability: pl.DataFrame) -> Figure:
    """The proxies that most folds chose, for each scorer that names any; colour tells the statistic."""
    title = "Which proxies the folds chose"
    if stability.is_empty():
        return style.without_data(title, "None of this study's scorers names the proxies that it rests on.")
    stability = stability.filter(tail=first_tail(stability, "proxies_chosen"))
    key = ["scorer", "statistic", "weighting"]
    table, held_too = stability.filter(split="two_tasks"), []
    for split, (things, *_) in LABELS_HELD_OUT.items():
        share = stability.filter(split=split).select(*key, pl.col("share").alias(f"{split}_share"))
        table = table.join(share, on=key, how="left", maintain_order="left")
        held_too += [f"{things}: the share where a {split} of models is held out too."] if len(share) else []
    scorers = [name for name in SCORER_NAMES if name in set(table["scorer"])]
    shown = {name: table.filter(scorer=name).head(MOST_CHOSEN) for name in scorers}
    figure = style.canvas(7.2, 0.19 * sum(len(rows) for rows in shown.values()) + 0.45 * len(scorers) + 1.0)
    column = figure.subplots(
        len(scorers), 1, sharex=True, squeeze=False, height_ratios=[len(rows) + 0.5 for rows in shown.values()]
    )[:, 0]
    for axes, name in zip(column, scorers, strict=True):
        every = table.filter(scorer=name)
        axes.set_title(_about_choice(name, every, len(shown[name])))
        _choice_bars(axes, shown[name])
    column[0].set_xlim(0, 1.0)
    column[-1].set_xlabel("Share of folds that chose the proxy (two tasks held out)")
    style.add_title(figure, title)
    lines = [
        "Agreement of folds: size of the intersection over that of the union of what two folds chose, mean over pairs."
    ]
    if "rank_svm_linear" in scorers:
        lines.append(f"{SCORER_NAMES['rank_svm_linear']}: the five largest coefficients of each fold.")
    lines += held_too
    if (table["same_sign"] < 1).any():
        lines.append("“sign alike”: share of these folds in which the coefficient has the sign that it has in most.")
    style.add_note(figure, "\n".join(lines))
    return style.settled(figure)


def _about_choice(scorer: str, rows: pl.DataFrame, shown: int) -> str:
    count = f"{shown} of {len(rows)} proxies" if shown < len(rows) else f"{shown} prox{'ies' if shown > 1 else 'y'}"
    agreement = rows["jaccard"][0]
    return f"{SCORER_NAMES[scorer]}: {count}" + ("" if agreement is None else f", agreement of folds {agreement:.2f}")


def _choice_bars(axes: Axes, rows: pl.DataFrame) -> None:
    names = []
    for height, r in enumerate(rows.iter_rows(named=True)):
        axes.barh(height, r["share"], height=0.62, color=style.look(r["statistic"]).colour, alpha=0.85, lw=0)
        for split, (_, marker, face) in LABELS_HELD_OUT.items():
            if r[f"{split}_share"] is not None:
                look = {"ms": 3.2, "mfc": face, "mec": "0.1", "mew": 0.8, "zorder": 3, "clip_on": False}
                axes.plot(r[f"{split}_share"], height, marker, **look)
        if r["same_sign"] < 1:
            place = (1, height), (6, 0), axes.get_yaxis_transform(), "offset points"
            axes.annotate(f"sign alike {r['same_sign']:.0%}", *place, fontsize=6.5, va="center", color="0.35")
        names.append(f"{style.look(r['statistic']).label}, {style.weighting_name(r['weighting'])}")
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


@matplotlib.rc_context(style.STYLE)
def solutions_and_writers(writers: pl.DataFrame) -> Figure:
    """Spearman over the number of problems, and below it agreement with the order from all; a line for each writer."""
    title = "How far the order of the models depends on the solutions' number and writer"
    if writers.is_empty():
        return style.without_data(title, "This study has no proxies over parts of its solutions.")
    names = writers["writer"].unique(maintain_order=True).to_list()
    if len(names) == 2:  # all solutions are of one writer: "all" repeats them
        names.remove(EVERY_WRITER)
    styles = dict(zip(names, [("#000000", "o"), *style.distinct_looks(names[1:]).values()]))
    numbers = [*sorted(writers["number"].drop_nulls().unique()), None]
    found = writers["method"].unique(maintain_order=True).to_list()
    figure = style.canvas(1.9 * len(found) + 1.7, 5.0)
    grid = figure.subplots(2, len(found), sharex=True, sharey="row", squeeze=False)
    ends = {}
    for (row, value), (column, method) in (
        (r, c) for r in enumerate(["spearman", "agreement"]) for c in enumerate(found)
    ):
        axes = grid[row, column]
        ends[row, column] = []
        for place, (writer, drawing) in enumerate(styles.items()):
            rows = writers.filter(writer=writer, method=method).drop_nulls(value)
            aside = (place - (len(styles) - 1) / 2) * 0.07
            end = _over_numbers(axes, rows, value, numbers, aside, drawing)
            ends[row, column] += [(*end, WRITER_NAMES.get(writer, writer), drawing[0])] if end else []
        if row == 0:
            axes.set_title(method_name(method).replace(", ", ",\n"))
            axes.axhline(0, lw=0.6, color="0.55", zorder=0.5)
    grid[0, 0].set_xticks(range(len(numbers)), [*map(str, numbers[:-1]), "all"])
    grid[0, 0].set_xlim(-0.35, len(numbers) - 0.65)
    top = [axes.get_ylim()[1] for axes in grid[:, 0]]
    for axes, high in zip(grid[:, 0], top, strict=True):
        axes.set_ylim(top=min(high, 1.02))
    grid[0, 0].set_ylabel("Spearman's ρ with the truth,\nmean over folds")
    grid[1, 0].set_ylabel("Spearman's ρ with the order\nfrom all solutions of all writers")
    for axes in grid[1]:
        axes.set_xlabel("Problems per task")
    style.add_title(figure, title)
    style.add_note(figure, "Small points: single draws of the problems. Lines: means over draws. Two tasks held out.")
    last = len(found) - 1
    style.label_ends(figure, grid[0, last], ends[0, last])
    return figure


def _over_numbers(
    axes: Axes, rows: pl.DataFrame, value: str, numbers: list, aside: float, drawing: tuple[str, str]
) -> tuple[float, float] | None:
    """Draw one writer's line with the points behind it -> its end."""
    colour, marker = drawing
    at = pl.Series([numbers.index(number) + aside for number in rows["number"]], dtype=pl.Float64)
    rows = rows.with_columns(at=at)
    means = rows.group_by("at").agg(pl.col(value).mean()).sort("at")
    if means.is_empty():
        return None
    axes.plot(rows["at"], rows[value], ls="", marker="o", ms=2.2, mew=0, color=colour, alpha=0.35, zorder=2)
    axes.plot(means["at"], means[value], marker=marker, ms=4, mew=0.4, mec="white", lw=1.2, color=colour, zorder=3)
    return means["at"][-1], means[value][-1]


@matplotlib.rc_context(style.STYLE)
def model_selection_heatmap(proxies: pl.DataFrame) -> Figure:
    """Mean Spearman over tasks of every proxy alone, and of every baseline beside; 0 is white."""
    tail = first_tail(proxies.filter(kind="proxy"), "model_selection_heatmap")
    table = proxies.filter(pl.col("task") == "all", pl.col("tail").is_in([tail, ""]))
    alone, baselines = table.filter(kind="proxy"), table.filter(kind="baseline")
    figure = style.heat_maps(alone, baselines, "spearman", lowest=-1)
    count, tasks = table["models"].max(), proxies.filter(pl.col("task") != "all")["task"].n_unique()
    style.add_title(figure, f"Spearman's ρ of every proxy alone: {count} models, mean over {tasks} tasks")
    read = {
        "tokens": "The last tokens of each solution are read.",
        "bytes": "The last bytes of each solution are read.",
    }
    style.add_note(
        figure,
        "Blue: orders as the truth does; red: inverts it; white: neither (0)."
        f"{style.about_half_width(table, 'models')}\n"
        f"{read[tail]} The highest cell is the best of many in hindsight."
        f"{style.about_missing_intervals(table.drop_nulls('spearman')['low'], 'models')}{style.about_weights(alone)}",
    )
    return style.settled(figure)
