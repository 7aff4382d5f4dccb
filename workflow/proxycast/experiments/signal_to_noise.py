"""Signal to noise: how far candidates differ in a statistic, over how far one candidate differs from itself.

Signal is the spread between candidates (corpora) at one size and step, of single runs:

- `dispersion`: the standard deviation between candidates (divisor n - 1), averaged over seeds as variances. It has the
  unit of the statistic, and is defined for values of any sign.
- `relative_range`: (max - min) / |mean| over candidates, averaged over seeds; no unit. It is the signal of Signal and
  Noise (arXiv 2508.13144). It is null where the values have both signs or are 0: then the mean says nothing of their
  size.

Noise is what one candidate's value varies by, in two columns that are never added:

- `seed_noise`: the standard deviation between seeds of the same candidate (divisor K - 1), pooled over candidates as
  variances.
- `checkpoint_noise`: that over the last L checkpoints of a run (divisor L, as in Signal and Noise and in OLMo-ladder's
  figures/variance.csv), pooled over candidates and seeds. Where training still moves the statistic, the movement
  counts as noise.

Both have the unit of the statistic. Ratios: dispersion / noise, and relative range / relative noise, where the relative
noise of a run is its standard deviation over |its mean|, pooled alike. A statistic that is noise alone has a dispersion
over seed noise of 1, and a range over seed noise that grows with the number of candidates: 3.9 for 25 (the expected
range of 25 normal values in standard deviations; Tippett, 1925). So only the first can be read without knowing how many
candidates there are. Signal and Noise's published ratios below 1B take as noise the standard deviation over all corpora
and checkpoints together; that is no noise of a checkpoint, and such ratios are 3 to 6 whatever the statistic.

Intervals are percentile bootstraps over candidates, which are drawn for signal and noise together. The range has none:
a sample of the candidates can only have a smaller one.

Does signal to noise, which needs no truth, foretell decision accuracy? Fixed before the first look: Spearman's rho
between dispersion over noise and the decision accuracy of a single run, in the same samples of candidates. Over the
statistics (proxies and baselines): at the same size and step for each task, and for the mean over tasks also from each
size to every one of at least its compute. Over the tasks, which is Signal and Noise's claim: at the same size and step,
the mean of the rho of every statistic. Statistics that invert the order are left as they are: a high ratio says that an
order is repeatable, not that it is right.

Shapes: S statistics, K seeds, T tasks (the first is their mean, "all"), n candidates, L checkpoints, B samples.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from proxycast.experiments import bootstrap
from proxycast.experiments.arrays import DECIMALS, Array, dense
from proxycast.experiments.rank_statistics import (
    ResampledTruth,
    decision_accuracy,
    mean_of_known,
    rank_correlations,
)

log = logging.getLogger(__name__)

NAME = ["statistic", "weighting"]
ALL = "all"  # the task that is the mean over tasks
CONSTANT = ("parameters", "training_compute", "chance")  # alike for all candidates of a size


class Signal(NamedTuple):
    """How far candidates differ."""

    dispersion: Array  # (...), in the unit of the statistic
    relative_range: Array  # (...), no unit


class Noise(NamedTuple):
    """How far one candidate differs from itself."""

    deviation: Array  # (...), in the unit of the statistic
    relative: Array  # (...), no unit


def signal_of(values: ArrayLike) -> Signal:
    """The signal of `values` (..., n candidates); NaN where it is not defined."""
    values = np.asarray(values, float)
    mean = np.abs(values.mean(-1))
    one_sign = (values > 0).all(-1) | (values < 0).all(-1)
    relative = np.divide(np.ptp(values, axis=-1), mean, out=np.full(mean.shape, np.nan), where=one_sign)
    dispersion = values.std(-1, ddof=1) if values.shape[-1] > 1 else np.full(mean.shape, np.nan)
    return Signal(dispersion, relative)


def noise_of(repeats: ArrayLike, ddof: int) -> Noise:
    """The noise of `repeats` (..., n, r): r values of each of n runs or candidates; divisor r - `ddof`.

    Pooled over the n as mean squares. NaN where r <= `ddof`; the relative noise is NaN where a mean is 0.
    """
    repeats = np.asarray(repeats, float)
    if repeats.shape[-1] <= max(ddof, 1):
        unknown = np.full(repeats.shape[:-2], np.nan)
        return Noise(unknown, unknown)
    variance, mean = repeats.var(-1, ddof=ddof), repeats.mean(-1)
    squares = np.divide(variance, mean**2, out=np.full(mean.shape, np.nan), where=mean != 0)
    return Noise(np.sqrt(variance.mean(-1)), np.sqrt(squares.mean(-1)))


def ratio(signal: Array, noise: Array, scale: ArrayLike = 1.0) -> Array:
    """signal / noise, NaN where the noise is 0: less than rounding leaves of values of the size `scale`."""
    signal, noise = np.asarray(signal, float), np.asarray(noise, float)
    known = noise > 10.0**-DECIMALS * np.asarray(scale)
    return np.divide(signal, noise, out=np.full(np.broadcast_shapes(signal.shape, noise.shape), np.nan), where=known)


@dataclass(frozen=True)
class Cell:
    """The scores of all candidates at one size and step, and at the checkpoints before it."""

    size: str
    step: int
    flops: float  # training compute of one run, FLOPs
    statistics: pl.DataFrame  # statistic, weighting, kind; S rows
    tasks: list[str]  # T names, "all" first
    candidates: list[str]  # n names
    scores: Array  # (S, K, T, n)
    series: Array  # (S, K, L, T, n), the newest first; NaN of a statistic or seed with fewer than L checkpoints

    def labelled(self, **columns: ArrayLike) -> pl.DataFrame:
        """`columns` (S,) beside the names of the statistics, the size and the step; NaN becomes null."""
        named = [pl.Series(name, np.asarray(values), nan_to_null=True) for name, values in columns.items()]
        at = {"size": pl.lit(self.size), "step": pl.lit(self.step, pl.Int64)}
        return self.statistics.with_columns(*named, **at)


def cells(predictions: pl.DataFrame, at: pl.DataFrame, checkpoints: int) -> Iterator[Cell]:
    """The cells of `predictions` (`corpus_scores.predictions` of one size) at the steps of `at` (size, step).

    `checkpoints`: L. `InputError` names a score that is missing at the step itself.
    """
    predictions = predictions.filter(~pl.col("statistic").is_in(CONSTANT))
    for size, step in at.join(predictions.select("size", "step").unique(), ["size", "step"], "semi").rows():
        rows = predictions.filter(pl.col("size") == size, pl.col("step") <= step)
        now = rows.filter(step=step)
        statistics = now.select(*NAME, "kind").unique(maintain_order=True)
        names = {key: now.select(key).unique().sort(key) for key in ("seed", "task", "corpus")}
        where = f"size {size}, step {step}: score"
        scores = _with_mean(dense(now, "score", where, [statistics.select(NAME), *names.values()]))
        age = pl.col("step").rank("dense", descending=True).over("seed").cast(pl.Int64) - 1
        recent = rows.join(names["seed"], on="seed", how="semi").with_columns(age=age)
        series = _series(recent.filter(pl.col("age") < checkpoints), statistics, list(names.values()), checkpoints)
        tasks, candidates = [ALL, *names["task"]["task"]], names["corpus"]["corpus"].to_list()
        yield Cell(size, step, now["flops"].mean(), statistics, tasks, candidates, scores, series)


def _with_mean(scores: Array) -> Array:
    """`scores` (..., T - 1 tasks, n) with their mean over tasks in front; free of the order in which sums were made."""
    scores = np.round(scores, DECIMALS)
    return np.concatenate([scores.mean(-2, keepdims=True), scores], axis=-2)


def _series(recent: pl.DataFrame, statistics: pl.DataFrame, names: list[pl.DataFrame], checkpoints: int) -> Array:
    ages = pl.DataFrame({"age": range(checkpoints)}, schema={"age": pl.Int64})
    seeds, tasks, candidates = names
    shape = (len(statistics), len(seeds), checkpoints, 1 + len(tasks), len(candidates))
    found = np.full(shape, np.nan)
    whole = len(seeds) * checkpoints * len(tasks) * len(candidates)
    counts = recent.group_by(NAME).len().filter(pl.col("len") == whole)
    complete = statistics.with_row_index("row").join(counts, on=NAME, how="semi", maintain_order="left")
    if len(complete):
        axes = [complete.select(NAME), seeds, ages, tasks, candidates]
        kept = recent.join(complete, on=NAME, how="semi")
        found[complete["row"].to_numpy()] = _with_mean(dense(kept, "score", "score", axes))
    return found


@dataclass(frozen=True)
class CellSamples:
    """Ratios and decision accuracies of a cell (S, B) in the samples of candidates, and their values (S,)."""

    cell: Cell
    task: str
    snr: dict[str, tuple[Array, Array]]  # "seeds", "checkpoints" -> values (S,), samples (S, B)
    accuracy: tuple[Array, Array] | None


def cell_samples(cell: Cell, truth: Array | None, weights: Array) -> Iterator[CellSamples]:
    """Ratios of dispersion to noise of every task of `cell`, and its decision accuracies, in the samples `weights`.

    `truth` (T, n): higher is better; None where there is none. `weights`: (B, n).
    """
    for number, task in enumerate(cell.tasks):
        scores, series = cell.scores[:, :, number], cell.series[:, :, :, number]  # (S, K, n), (S, K, L, n)
        noises = {"seeds": _variance(scores, 1, 1), "checkpoints": _variance(series, 2, 0).mean(1)}
        size = np.abs(scores).max((1, 2))
        once = np.ones((1, scores.shape[-1]))
        found = {}
        for name, noise in noises.items():
            at, samples = (_dispersion_over(scores, noise, size, drawn) for drawn in (once, weights))
            found[name] = (at[:, 0], samples)
        accuracy = None if truth is None else _single_accuracy(scores, np.round(truth[number], DECIMALS), weights)
        yield CellSamples(cell, task, found, accuracy)


def _variance(values: Array, axis: int, ddof: int) -> Array:
    """The variance of `values` over `axis`; NaN where that holds no two values."""
    if values.shape[axis] < 2:
        return np.full(np.delete(values.shape, axis), np.nan)
    return values.var(axis, ddof=ddof)


def _dispersion_over(scores: Array, noise: Array, size: Array, weights: Array) -> Array:
    """Dispersion of `scores` (S, K, n) over the root of the mean of `noise` (S, n), in the samples (B, n) -> (S, B)."""
    n = scores.shape[-1]
    if n < 2:
        return np.full((len(scores), len(weights)), np.nan)
    centred = scores - scores.mean(-1, keepdims=True)  # or squares of a large mean would swallow the differences
    total = (centred @ weights.T) ** 2 / n
    between = np.maximum((centred**2) @ weights.T - total, 0).mean(1) / (n - 1)
    return ratio(np.sqrt(between), np.sqrt(noise @ weights.T / n), size[:, None])


def _single_accuracy(scores: Array, truth: Array, weights: Array) -> tuple[Array, Array]:
    """Decision accuracy of one seed's scores (S, K, n), mean over seeds: its values (S,) and samples (S, B)."""
    statistics, seeds, n = scores.shape
    rows = np.round(scores, DECIMALS).reshape(-1, n)
    values = decision_accuracy(rows, truth).reshape(statistics, seeds).mean(1)
    samples = ResampledTruth(truth, weights).decision_accuracy(rows)
    return values, samples.reshape(statistics, seeds, -1).mean(1)


def interval_columns(figures: dict[str, tuple[Array, Array]], candidates: int, confidence: float) -> dict[str, Array]:
    """`figures`, values (S,) and samples (S, B), as columns with the ends of their intervals; NaN where none is.

    There is none with too few candidates, and of a decision accuracy that is 0 or 1 in every sample.
    """
    columns = {}
    enough = bootstrap.enough_to_resample(candidates, confidence)
    for name, (values, samples) in figures.items():
        ends = bootstrap.percentile_interval(samples, confidence)
        known = np.full(len(values), enough)
        if name.startswith("decision_accuracy"):
            known &= ~bootstrap.is_degenerate(values, *ends, 0, 1)
        columns[name] = values
        columns |= {f"{name}_{end}": np.where(known, at, np.nan) for end, at in zip(("low", "high"), ends)}
    return columns


def signal_rows(samples: CellSamples, confidence: float) -> pl.DataFrame:
    """The rows of the table `signal_to_noise` of one cell and task, the columns `SIGNAL_COLUMNS`."""
    cell, number = samples.cell, samples.cell.tasks.index(samples.task)
    scores, series = cell.scores[:, :, number], cell.series[:, :, :, number]
    (seeds, n), checkpoints = scores.shape[1:], series.shape[2]
    spread = signal_of(scores)  # (S, K)
    dispersion, reach = np.sqrt((spread.dispersion**2).mean(1)), spread.relative_range.mean(1)
    # (S, n, K); (S, n K, L)
    of_seeds = noise_of(np.moveaxis(scores, 1, 2), 1)
    of_checkpoints = noise_of(np.moveaxis(series, 2, 3).reshape(len(scores), -1, checkpoints), 0)
    columns = {
        "mean": scores.mean((1, 2)),
        "relative_range": reach,
        "dispersion": dispersion,
        "seed_noise": of_seeds.deviation,
        "checkpoint_noise": of_checkpoints.deviation,
    }
    columns |= interval_columns({f"snr_{name}": found for name, found in samples.snr.items()}, n, confidence)
    why = np.full(len(scores), "", dtype=object)
    for name, noise in (("seeds", of_seeds), ("checkpoints", of_checkpoints)):
        columns[f"range_snr_{name}"] = ratio(reach, noise.relative)
        alike = np.isfinite(noise.deviation) & np.isnan(columns[f"snr_{name}"])
        why[alike] += f"; no noise between {name}: every value is the same"
    why[np.isnan(of_checkpoints.deviation)] += f"; {TOO_FEW.format(checkpoints)}"
    if seeds == 1:
        why += f"; {ONE_SEED}"
    if not bootstrap.enough_to_resample(n, confidence):
        why += f"; {bootstrap.too_few('corpora', n)}"
    accuracy = np.full(len(scores), np.nan) if samples.accuracy is None else samples.accuracy[0]
    table = cell.labelled(**columns, decision_accuracy=accuracy).with_columns(
        task=pl.lit(samples.task),
        corpora=pl.lit(n, pl.Int64),
        seeds=pl.lit(seeds, pl.Int64),
        checkpoints=pl.lit(checkpoints, pl.Int64),
        note=pl.Series([text.removeprefix("; ") for text in why], dtype=pl.String),
    )
    return table.select(SIGNAL_COLUMNS).cast(dict.fromkeys(list(columns), pl.Float64))


ONE_SEED = "no noise between seeds: one seed"
TOO_FEW = "no noise between checkpoints: fewer than {} up to this step"
SIGNAL_COLUMNS = [
    *("task", *NAME, "kind", "size", "step", "corpora", "seeds", "checkpoints", "mean"),
    *("dispersion", "relative_range", "seed_noise", "checkpoint_noise"),
    *("snr_seeds", "snr_seeds_low", "snr_seeds_high", "range_snr_seeds"),
    *("snr_checkpoints", "snr_checkpoints_low", "snr_checkpoints_high", "range_snr_checkpoints"),
    *("decision_accuracy", "note"),
]


def tell_unknown_noise(signal: pl.DataFrame, number: int) -> None:
    """Say once for all rows of `signal`, the table `signal_to_noise`, which noise is unknown.

    `number`: checkpoints of which there may be too few.
    """
    small = signal.filter(pl.col("kind") != "truth")
    for column, why in (
        ("seed_noise", "one seed of each corpus"),
        ("checkpoint_noise", f"fewer than {number} checkpoints (selection.noise_checkpoints) up to the step"),
    ):
        unknown = small.filter(pl.col(column).is_null()).select("size", "step").unique(maintain_order=True)
        if len(unknown):
            where = ", ".join(f"{size} at step {step}" for size, step in unknown.rows())
            log.warning("signal_to_noise: %s is empty for statistics of %s: %s", column, where, why)


def foresight_rows(of_noise: CellSamples, of_accuracy: CellSamples, confidence: float) -> list[dict]:
    """Whether signal to noise in one cell foretells which statistics decide well in another, or the same.

    A row for each kind of noise, over the statistics that both cells have. `spearman` has an interval over candidates.
    `picked_...` is the statistic of the greatest ratio, which could be chosen without a truth, and its decision
    accuracy; `mean_decision_accuracy` is that of a statistic drawn at random. No row of fewer than `LEAST` statistics.
    """
    index = of_noise.cell.statistics.with_row_index("here")
    both = index.join(of_accuracy.cell.statistics.with_row_index("there"), on=NAME, maintain_order="left")
    rows = []
    for name, (values, samples) in of_noise.snr.items():
        accuracy, accuracies = of_accuracy.accuracy
        here, there = both["here"].to_numpy(), both["there"].to_numpy()
        known = np.isfinite(values[here]) & np.isfinite(accuracy[there])
        here, there = here[known], there[known]
        if len(here) < LEAST:
            continue
        at = rank_correlations(values[here, None], accuracy[there, None])[0]
        drawn = rank_correlations(samples[here], accuracies[there])
        best = values[here].argmax()
        picked = of_noise.cell.statistics.row(int(here[best]), named=True)
        row = {"over": "statistics", "noise": name, "task": of_noise.task, "count": len(here)}
        row |= _foresight(of_noise.cell, of_accuracy.cell, at, drawn, confidence)
        row |= {f"picked_{key}": picked[key] for key in NAME}
        row["picked_decision_accuracy"] = float(accuracy[there][best])
        row["mean_decision_accuracy"] = float(accuracy[there].mean())
        row["best_decision_accuracy"] = float(accuracy[there].max())
        rows.append(row)
    return rows


def foresight_over_tasks(of_tasks: Sequence[CellSamples], confidence: float) -> list[dict]:
    """Whether signal to noise foretells on which tasks a statistic decides well: a row for each kind of noise.

    `of_tasks`: every task of one cell. `spearman` is the mean of the statistics' own rho over the tasks, of all for
    which every task has a ratio and a decision accuracy. No row with fewer than `LEAST` tasks.
    """
    rows, cell = [], of_tasks[0].cell
    for name in of_tasks[0].snr:
        values, samples = (np.stack([one.snr[name][part] for one in of_tasks]) for part in (0, 1))  # (T, S), (T, S, B)
        accuracy, accuracies = (np.stack([one.accuracy[part] for one in of_tasks]) for part in (0, 1))
        known = (np.isfinite(values) & np.isfinite(accuracy)).all(0)
        if len(of_tasks) < LEAST or not known.any():
            continue
        at = mean_of_known(rank_correlations(values[:, known], accuracy[:, known]))
        drawn = mean_of_known(rank_correlations(samples[:, known], accuracies[:, known]))
        row = {"over": "tasks", "noise": name, "task": None, "count": len(of_tasks)}
        rows.append(row | _foresight(cell, cell, at, drawn, confidence))
    return rows


def foresight_in_cell(of_tasks: Sequence[CellSamples], confidence: float) -> list[dict]:
    """The rows of every task of one cell, and those over its tasks."""
    rows = [row for of_task in of_tasks for row in foresight_rows(of_task, of_task, confidence)]
    return rows + foresight_over_tasks(of_tasks, confidence)


def foresight_table(over_all: Sequence[CellSamples], rows: Sequence[dict], confidence: float) -> pl.DataFrame:
    """The table `snr_and_accuracy`: of the mean over tasks (`over_all`, every cell), then the other `rows`.

    From each cell to every one of at least its compute.
    """
    across = [
        row
        for of_noise in over_all
        for judged in over_all
        if judged.cell.flops >= of_noise.cell.flops
        for row in foresight_rows(of_noise, judged, confidence)
    ]
    return pl.DataFrame([*across, *rows], schema=FORESIGHT_SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))


def _foresight(here: Cell, there: Cell, at: float, drawn: Array, confidence: float) -> dict:
    columns = interval_columns({"spearman": (np.array([at]), drawn[None])}, len(here.candidates), confidence)
    where = {"size": here.size, "step": here.step, "judged_size": there.size, "judged_step": there.step}
    return where | {name: float(values[0]) for name, values in columns.items()}


LEAST = 4  # of fewer a rank correlation says nothing
FORESIGHT_SCHEMA = {
    **dict.fromkeys(("over", "noise", "task", "size"), pl.String),
    **{"step": pl.Int64, "judged_size": pl.String, "judged_step": pl.Int64, "count": pl.Int64},
    **dict.fromkeys(("spearman", "spearman_low", "spearman_high"), pl.Float64),
    **dict.fromkeys(("picked_statistic", "picked_weighting"), pl.String),
    **dict.fromkeys(("picked_decision_accuracy", "mean_decision_accuracy", "best_decision_accuracy"), pl.Float64),
}
