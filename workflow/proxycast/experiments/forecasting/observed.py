"""What was measured of each task and run: the truth and the statistics, up to the cut and after it."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import numpy as np
import polars as pl

from proxycast.config.experiments.forecasting_options import BASELINE_SERIES, GENERIC_CROSS_ENTROPY, ForecastingOptions
from proxycast.experiments.arrays import Array
from proxycast.experiments.laws.curves import CURVES
from proxycast.options import InputError
from proxycast.solutions.rows import GENERIC_TEXT

log = logging.getLogger(__name__)

TRUTH = "truth"
# "statistic/weighting", or the statistic alone where it has no weighting.
SERIES_NAME = (
    pl.when(pl.col("weighting") == "none").then("statistic").otherwise(pl.format("{}/{}", "statistic", "weighting"))
)
FIRST = 0.25  # share of the fitted checkpoints, without which forecasts are made once more


@dataclass(frozen=True)
class Series:
    """The fitted checkpoints of one statistic, or of the truth."""

    t: Array  # (n,)
    value: Array  # (n,)
    standard_error: Array  # (n,), 0 where it is not known
    by_solution: Array | None = None  # (n, S)


@dataclass(frozen=True)
class TaskRun:
    """One task of one run: what may be known at the cut, and the truth after it."""

    run: str
    task: str
    tokens_at_cut: float
    step_at_cut: int
    truth: Series
    statistics: dict[str, Series]
    after: pl.DataFrame  # step, tokens, value, n of the truth beyond the cut
    problems: float | None
    higher_is_better: bool = True
    chance: float | None = None  # what guessing gets, where that is known

    @cached_property
    def is_share(self) -> bool:
        """Whether the truth can be a share of problems: it lies between 0 and 1 wherever it may be known.

        Where lower is better, so may a loss. A share of n problems is a whole number of them, and a loss is not.
        """
        values = self.truth.value
        if values.min() < 0 or values.max() > 1:
            return False
        if self.higher_is_better:
            return True
        if self.problems is None:
            return False
        missed = values * self.problems
        return bool(np.abs(missed - missed.round()).max() < 1e-3)

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest value that the truth can have: of a share 0 and 1, of a loss that was never below 0, 0."""
        if self.is_share:
            return 0.0, 1.0
        return (0.0 if not self.higher_is_better and self.truth.value.min() >= 0 else -np.inf), np.inf

    def beyond(self, value: float) -> str:
        """In words, where `value` lies that the truth cannot have or guessing would beat; "" for any other."""
        low, high = self.bounds
        if value < low or value > high:
            return f"above {high:g}" if value > high else f"below {low:g}"
        if self.chance is None:
            return ""
        # Scores at chance fall below it by what their problems vary.
        noise = np.sqrt(self.chance * (1 - self.chance) / self.problems) if self.problems else 0.0
        return "below chance" if value < self.chance - 2 * noise else ""


def observed_series(
    checkpoints: pl.DataFrame,
    targets: pl.DataFrame,
    proxies: pl.DataFrame,
    metric: str,
    tasks: Sequence[str],
    options: ForecastingOptions,
) -> pl.DataFrame:
    """run, task, series, step, tokens, value, standard_error, in_fit, checkpoint, n: the truth and all statistics.

    The cross-entropy on generic text stands under every task. Runs without any truth are left out.
    """
    if "tail" in proxies.columns:
        proxies = proxies.filter(tail="tokens")
    truth = targets.filter(pl.col("metric") == metric, pl.col("task").is_in(list(tasks)))
    if truth.is_empty():
        raise InputError(f"targets: no {metric} of {', '.join(tasks)}; found {sorted(targets['metric'].unique())}")
    columns = ["checkpoint", "task", "series", "value", "standard_error", "n"]
    null = pl.lit(None, pl.Float64)
    truth = truth.with_columns(series=pl.lit(TRUTH), standard_error=null, n=pl.col("n").cast(pl.Float64))
    proxies = proxies.with_columns(series=SERIES_NAME, n=null)
    generic = proxies.filter(task=GENERIC_TEXT, series="expert_cross_entropy").drop("task")
    generic = generic.with_columns(series=pl.lit(GENERIC_CROSS_ENTROPY)).join(
        pl.DataFrame({"task": tasks}), how="cross"
    )
    wanted = dict.fromkeys([*options.proxies, *BASELINE_SERIES])
    own = proxies.filter(pl.col("series").is_in(list(wanted)), pl.col("task").is_in(list(tasks)))
    everything = pl.concat([part.select(columns) for part in (truth, generic, own)])
    observed = checkpoints.select("checkpoint", "run", "step", "tokens").join(everything, on="checkpoint")
    cuts = pl.col("run").replace_strict(
        {run: cut_of(run, options) for run in set(observed["run"])}, return_dtype=pl.Int64
    )
    observed = observed.filter((pl.col("series") == TRUTH).any().over("run")).select(
        *("run", "task", "series", "step", "tokens", "value", "standard_error"),
        pl.col("step").is_between(options.fit_from_step, cuts).alias("in_fit"),
        *("checkpoint", "n"),
    )
    _check_observed(observed, metric, tasks, options, proxies)
    return observed.sort("run", "task", "series", "step", maintain_order=True)


def cut_of(run: str, options: ForecastingOptions) -> int | None:
    """The last step of a run that forecasts may use, as the options have it."""
    logged = options.curve.runs.get(run) if options.curve else None
    return logged.fit_up_to_step if logged and logged.fit_up_to_step else options.fit_up_to_step


def _check_observed(
    observed: pl.DataFrame, metric: str, tasks: Sequence[str], options: ForecastingOptions, proxies: pl.DataFrame
) -> None:
    for row in observed.filter(~pl.col("value").is_finite().fill_null(False)).iter_rows(named=True):
        raise InputError(f"{_place_of(row)}: found {row['value']}; it must be a finite number")
    for row in observed.filter(pl.struct("run", "task", "series", "step").is_duplicated()).iter_rows(named=True):
        raise InputError(f"{_place_of(row)}: two checkpoints of one step; a run has one at each step")
    pairs = observed.select("run").unique().join(pl.DataFrame({"task": tasks}), how="cross").sort("run", "task")
    # A log may lack a statistic in some runs; the method that needs it falls back there, and says so.
    for series, what in ((TRUTH, metric), *((name, name) for name in options.proxies if not options.curve)):
        there = observed.filter(series=series)
        for run, task in pairs.join(there, on=["run", "task"], how="anti").iter_rows():
            found = sorted(proxies.filter(pl.col("task") == task)["series"].unique()) if series != TRUTH else []
            raise InputError(f"run {run}, task {task}: no {what}{f'; found {found}' if found else ''}")
    fitted = observed.filter("in_fit", series=TRUTH)
    for run, task in pairs.join(fitted, on=["run", "task"], how="anti").iter_rows():
        steps = observed.filter(run=run, task=task, series=TRUTH)["step"].sort().to_list()
        raise InputError(
            f"run {run}, task {task}: no {metric} at the steps {options.fit_from_step} to {cut_of(run, options)} "
            f"(forecasting.fit_from_step, fit_up_to_step), so there is nothing to fit; it has those of {steps}"
            + ("; to leave a run out, name the others in forecasting.curve.runs" if options.curve else "")
        )


def _place_of(row: Mapping[str, object]) -> str:
    return f"run {row['run']}, task {row['task']}, {row['series']}, step {row['step']}"


def values_of_solutions(checkpoints: pl.DataFrame, solution_proxies: pl.DataFrame | None) -> dict[tuple, pl.DataFrame]:
    """(run, task, series) -> step, solution, value."""
    if solution_proxies is None:
        return {}
    if "tail" in solution_proxies.columns:
        solution_proxies = solution_proxies.filter(tail="tokens")
    values = solution_proxies.join(checkpoints.select("checkpoint", "run", "step"), on="checkpoint")
    values = values.select("run", "task", SERIES_NAME.alias("series"), "step", "solution", "value")
    return values.partition_by("run", "task", "series", as_dict=True, include_key=False)


def task_runs(
    observed: pl.DataFrame,
    of_solutions: Mapping[tuple, pl.DataFrame],
    *,
    higher_is_better: bool,
    chance: Mapping[str, float],
) -> Iterator[TaskRun]:
    """Every task of every run. Times are multiples of the tokens at the run's last fitted checkpoint."""
    for (run, task), rows in observed.group_by("run", "task", maintain_order=True):
        truth = rows.filter(series=TRUTH)
        last = truth.filter("in_fit")[-1]
        tokens = float(last["tokens"].item())
        parts = rows.filter("in_fit").partition_by("series", as_dict=True)
        yield TaskRun(
            run=run,
            task=task,
            tokens_at_cut=tokens,
            step_at_cut=last["step"].item(),
            truth=_series(parts[TRUTH,], tokens),
            statistics={
                name: _series(part, tokens, of_solutions.get((run, task, name)))
                for (name,), part in parts.items()
                if name != TRUTH
            },
            after=truth.filter(pl.col("step") > last["step"].item()),
            problems=last["n"].item(),
            higher_is_better=higher_is_better,
            chance=chance.get(task),
        )


def _series(rows: pl.DataFrame, tokens_at_cut: float, of_solutions: pl.DataFrame | None = None) -> Series:
    matrix = None
    if of_solutions is not None:
        wide = of_solutions.pivot(on="solution", index="step", values="value")
        wide = rows.select("step").join(wide, on="step", how="left", maintain_order="left").drop("step")
        if wide.null_count().sum_horizontal().item() == 0:
            matrix = wide.select(sorted(wide.columns)).to_numpy()
        else:
            log.warning(
                "%s: not every checkpoint has all solutions; standard errors are used",
                _place_of(rows.row(0, named=True)),
            )
    return Series(
        t=rows["tokens"].to_numpy() / tokens_at_cut,
        value=rows["value"].to_numpy(),
        standard_error=rows["standard_error"].fill_null(0).to_numpy(),
        by_solution=matrix,
    )


def without_first(data: TaskRun) -> TaskRun | None:
    """The task and run without the first `FIRST` of its fitted checkpoints; None where too few would be left."""
    left_out = ceil(FIRST * len(data.truth.t))
    if len(data.truth.t) - left_out <= CURVES["power"].parameters:
        return None
    start = data.truth.t[left_out]
    statistics = {name: _from(start, series) for name, series in data.statistics.items()}
    return replace(data, truth=_from(start, data.truth), statistics=statistics)


def _from(start: float, series: Series) -> Series:
    later = series.t >= start
    of_solutions = None if series.by_solution is None else series.by_solution[later]
    return Series(series.t[later], series.value[later], series.standard_error[later], of_solutions)
