"""How far the truth of each task can be trusted: its reliability by the number of problems behind it."""

import logging
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.arrays import DECIMALS, Array
from proxycast.experiments.bootstrap import bootstrap_weights, enough_to_resample, percentile_interval, too_few
from proxycast.experiments.model_selection.known_models import KnownModels, schema_of
from proxycast.experiments.reliability import (
    DEFAULTS,
    LEAST_RELIABILITY,
    NOISE,
    noise_ceiling,
    reliability,
    reliability_interval,
    verdict,
)

log = logging.getLogger(__name__)

TRUTH_SCHEMA = schema_of(
    *("task", "models", "lowest", "highest", "mean", "sd", "chance", "at_chance", "at_ceiling", "verdict"),
    *("reliability", "reliability_low", "reliability_high", "ceiling", "ceiling_low", "ceiling_high"),
    *("split_half", "split_half_low", "split_half_high", "note"),
)
MANY = 0.5  # share of the models at chance or with all right from which a task is marked


def mean_ceiling(truth: pl.DataFrame) -> float | None:
    """The mean over tasks of the ceiling in `task_truth_table`; None where that of a task is unknown."""
    ceilings = truth.filter(pl.col("task") != "all")["ceiling"]
    return None if ceilings.null_count() else ceilings.mean()


def task_truth_table(
    known: KnownModels, chance: Mapping[str, float], options: SelectionOptions = DEFAULTS
) -> pl.DataFrame:
    """How far each task's truth can be trusted, and "all", the mean over tasks: TRUTH_SCHEMA.

    A value p that is the share of n problems solved has the variance p (1 - p) / (n - 1), estimated without bias.
    `reliability` is 1 less the mean of that over the variance (divisor n - 1) between models. `ceiling`, its root, is
    the correlation that a perfect prediction can expect with so noisy a truth (`reliability.noise_ceiling`). Problems
    with credit between 0 and 1 vary less, so for them it is a lower bound. Both have a percentile bootstrap over the
    models. `verdict` rates the truth in a word (`reliability.verdict`). All are null where a value lies outside 0 to 1,
    where the number of problems is unknown or 1, and for a constant truth; `note` says so. `chance`: task -> what
    guessing gets, where that is known. `at_chance` and `at_ceiling` count the models of a task that `_within_noise`
    finds at chance and at all right; `note` and the log tell of a task where they are `MANY`.

    `split_half`: where the truth was measured over either half of the problems, the reliability that the correlation of
    the halves over models gives (`reliability.reliability`). It counts as noise only what differs between the halves:
    not how hard the problems are for all models alike, which a share's variance holds too.
    """
    given = known.sign * known.truth
    # Of comparisons with NaN, an unknown number of problems, none is true.
    possible = (known.problems > 1) & (given.min() >= 0) & (given.max() <= 1)
    undefined = np.full(given.shape, np.nan)
    noise = np.divide(given * (1 - given), known.problems - 1, out=undefined, where=possible)
    chances = [chance.get(task) for task in known.tasks]
    mean_chance = None if None in chances else float(np.mean(chances))
    rows = [_task_row(*row, options) for row in zip(known.tasks, given, noise, chances, strict=True)]
    rows.append(_task_row("all", given.mean(0), noise.sum(0) / len(known.tasks) ** 2, mean_chance, options))
    unknown = "" if np.isfinite(known.problems).all() else "the number of problems (n) is not given"
    if (given.min() < 0 or given.max() > 1) and not unknown:
        unknown = "the scores are no shares of problems"
    best = float(known.sign > 0)
    for row, values, problems in zip(rows, given, known.problems):  # of tasks, not of their mean
        row["at_chance"] = _within_noise(values, problems, row["chance"], options.confidence)
        row["at_ceiling"] = _within_noise(values, problems, best, options.confidence)
    if known.halves is not None:
        for row, halves in zip(rows, [*np.moveaxis(known.halves, 1, 0), known.halves.mean(1)]):
            row |= _split_half(halves, options)
    for row in rows:
        if row["reliability"] is None:
            row["note"] = f"reliability unknown: {unknown or 'all models tie, or a value rests on one problem'}"
        row["note"] = "; ".join(filter(None, [row["note"], _about_ends(row)]))
        if row["verdict"] == NOISE:
            log.warning("%s", about_noisy_task(row))
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        log.warning("the truth of %s: %s", ", ".join(row["task"] for row in rows if row["note"] == note), note)
    return pl.DataFrame(rows, TRUTH_SCHEMA)


def about_noisy_task(row: Mapping[str, object]) -> str:
    """What a row of `task_truth_table` with the verdict "noise" says, for the log and for figures."""
    low, high = row["reliability_low"], row["reliability_high"]
    interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    task = "the mean over tasks" if row["task"] == "all" else f"task {row['task']}"
    return f"The truth may be noise: {task} has a reliability of {row['reliability']:.2f}{interval}."


def _about_ends(row: Mapping[str, object]) -> str:
    """That many models are at chance or have all right; else empty."""
    at_chance, at_ceiling = row["at_chance"] or 0, row["at_ceiling"] or 0
    if at_chance + at_ceiling < MANY * row["models"]:
        return ""
    counts = {f"at chance ({row['chance'] or 0:.3g})": at_chance, "all right": at_ceiling}
    found = " and ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"of {row['models']} models, {found} within the noise of the problems: little tells them apart"


def _within_noise(values: Array, problems: Array, bound: float | None, confidence: float) -> int | None:
    """How many `values` (n,) lie beyond `bound`, or within the Wilson interval of a score of `bound` in `problems`.

    The interval (Wilson, 1927, doi:10.1080/01621459.1927.10502953) has a width at 0 and 1 too. A bound up to 1/2 is met
    from above, a larger one from below. None where the bound or a number of problems is unknown, and for values that
    are no shares.
    """
    if bound is None or not ((problems > 0) & (values >= 0) & (values <= 1)).all():
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (bound + z**2 / (2 * problems)) / (1 + z**2 / problems)
    width = z / (1 + z**2 / problems) * np.sqrt(bound * (1 - bound) / problems + z**2 / (4 * problems**2))
    inside = values <= centre + width if bound <= 1 / 2 else values >= centre - width
    return int(inside.sum())


def _split_half(halves: Array, options: SelectionOptions) -> dict[str, float | None]:
    """Reliability of the mean of `halves` (2, n), and its interval; None where models tie or are too few."""
    if np.ptp(halves, axis=1).min() == 0:
        return {}
    ends = reliability_interval(halves, options)
    low, high = (None, None) if isinstance(ends, str) else ends
    return {"split_half": reliability(halves), "split_half_low": low, "split_half_high": high}


def _task_row(task: str, values: Array, noise: Array, chance: float | None, options: SelectionOptions) -> dict:
    models, variance = len(values), values.var(ddof=1)
    row = dict.fromkeys(TRUTH_SCHEMA) | {"task": task, "models": models, "mean": values.mean(), "chance": chance}
    row |= {"lowest": values.min(), "highest": values.max(), "sd": float(np.sqrt(variance)), "note": ""}
    if np.isfinite(noise).all() and np.ptp(np.round(values, DECIMALS)) > 0:
        row["reliability"] = max(LEAST_RELIABILITY, float(1 - noise.mean() / variance))
        row["ceiling"] = noise_ceiling(row["reliability"]).spearman
        if enough_to_resample(models, options.confidence):
            weights = bootstrap_weights(models, options.bootstrap_replicates, options.seed)
            ends = percentile_interval(_reliability_samples(values, noise, weights), options.confidence)
            row["reliability_low"], row["reliability_high"] = map(float, ends)
            row["ceiling_low"], row["ceiling_high"] = (noise_ceiling(float(end)).spearman for end in ends)
        else:
            row["note"] = f"reliability: {too_few('models', models)}"
    row["verdict"] = verdict(row["reliability"], row["reliability_low"])
    return row


def _reliability_samples(values: Array, noise: Array, weights: Array) -> Array:
    """1 less mean noise over variance of `values` (n,) in the samples `weights` (B, n) -> (B,).

    NaN where a sample holds one value only; not below `reliability.LEAST_RELIABILITY`.
    """
    n = len(values)
    variance = (weights @ values**2 - (weights @ values) ** 2 / n) / (n - 1)
    undefined = np.full(len(weights), np.nan)
    ratio = np.divide(weights @ noise / n, variance, out=undefined, where=variance > 10.0**-DECIMALS)
    return np.maximum(1 - ratio, LEAST_RELIABILITY)
