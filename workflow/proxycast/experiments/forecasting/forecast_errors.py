"""How far the forecasts are off, with a bootstrap over tasks and runs."""

from math import comb

import numpy as np
import polars as pl

from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.experiments.arrays import Array
from proxycast.experiments.bootstrap import bootstrap_weights, percentile_interval, stream
from proxycast.experiments.forecasting.cautions import FEW_UNITS, TRUTH_IS_CONSTANT, TRUTH_IS_NOISE, has_caution
from proxycast.experiments.forecasting.methods import tail_samples

ERRORS_SCHEMA = {
    **dict.fromkeys(("method", "kind", "task"), pl.String),
    **dict.fromkeys(("horizon", "rmse", "mae", "task_rmse", "rmse_low", "rmse_high"), pl.Float64),
    **dict.fromkeys(("coverage", "width", "interval_score"), pl.Float64),
    **{"forecasts": pl.Int64, "unjudged": pl.Int64, "best_baseline": pl.String},
    **dict.fromkeys(("difference", "difference_low", "difference_high"), pl.Float64),
    "caution": pl.String,
}


def errors_table(forecasts: pl.DataFrame, options: ForecastingOptions) -> pl.DataFrame:
    """RMSE, MAE and coverage of every method at every horizon, of each task and of all; best first within a horizon.

    `task_rmse` is the mean over tasks of their RMSE. Intervals are percentiles of a bootstrap that draws tasks and runs
    apart, since errors of one task, or of one run, are alike; null where there is but one of both. The difference, for
    all tasks, is the RMSE less that of the best baseline of the horizon, over the forecasts that both made. `width` and
    `interval_score` are of `interval_summary`. `forecasts` counts those with a truth, `unjudged` those without. Of a
    horizon where none has a truth only their number is known.
    """
    known = forecasts.filter(pl.col("error").is_not_null())
    key = ["method", "kind", "horizon"]
    error = pl.col("error")
    summary = [(error**2).mean().sqrt().alias("rmse"), error.abs().mean().alias("mae")]
    summary += [pl.col("covered").cast(pl.Float64).mean().alias("coverage"), pl.len().cast(pl.Int64).alias("forecasts")]
    summary += interval_summary(options.confidence)
    of_tasks = known.group_by(*key, "task", maintain_order=True).agg(summary).with_columns(task_rmse="rmse")
    mean = of_tasks.group_by(key).agg(task_rmse=pl.col("rmse").mean())
    of_all = known.group_by(key, maintain_order=True).agg(summary).join(mean, on=key).with_columns(task=pl.lit("all"))
    compared = [
        _compared(horizon, rows, options) for (horizon,), rows in known.group_by("horizon", maintain_order=True)
    ]
    intervals = pl.DataFrame(sum(compared, []), schema=COMPARED_SCHEMA)
    table = pl.concat([of_all.join(intervals, on=["method", "horizon"]), of_tasks], how="diagonal")
    made = pl.concat([forecasts.with_columns(task=pl.lit("all")), forecasts], how="diagonal")
    made = made.group_by(*key, "task", maintain_order=True).agg(unjudged=error.null_count().cast(pl.Int64))
    table = made.join(table, on=[*key, "task"], how="left", maintain_order="left")
    table = table.with_columns(pl.col("forecasts").fill_null(0), pl.col("caution").fill_null(""))
    table = table.sort(pl.col("task") != "all", "task", "horizon", "rmse", nulls_last=True, maintain_order=True)
    return table.select(pl.col(name).cast(kind) for name, kind in ERRORS_SCHEMA.items())


def interval_summary(confidence: float) -> list[pl.Expr]:
    """Mean width and mean interval score of forecasts with `low`, `high` and `truth`; nulls are left out.

    The interval score is the width plus 2 / (1 - confidence) times how far the truth lies outside; less is better
    (Winkler, 1972; Gneiting and Raftery, 2007, section 6.2).
    """
    low, high, truth = pl.col("low"), pl.col("high"), pl.col("truth")
    beyond = (low - truth).clip(0) + (truth - high).clip(0)
    score = high - low + 2 / (1 - confidence) * beyond
    return [(high - low).mean().alias("width"), score.mean().alias("interval_score")]


def with_noisy_truths(errors: pl.DataFrame, forecasts: pl.DataFrame) -> pl.DataFrame:
    """The errors with a caution of those truths that are noise, or do not vary."""
    known = forecasts.filter(pl.col("error").is_not_null())
    known = pl.concat([known.with_columns(task=pl.lit("all")), known])
    key = ["method", "horizon", "task"]
    noisy = known.filter(has_caution(TRUTH_IS_NOISE) | has_caution(TRUTH_IS_CONSTANT)).group_by(key).agg(n=pl.len())
    text = pl.format("{} of {} truths are noise or constant", "n", "forecasts")
    caution = pl.concat_str(pl.when(pl.col("caution") != "").then("caution"), text, separator="; ", ignore_nulls=True)
    return errors.join(noisy, on=key, how="left", maintain_order="left").with_columns(caution).drop("n")


COMPARED_SCHEMA = (
    dict.fromkeys(("method", "best_baseline", "caution"), pl.String)
    | {"horizon": pl.Float64}
    | dict.fromkeys(("rmse_low", "rmse_high", "difference", "difference_low", "difference_high"), pl.Float64)
)


def _compared(horizon: float, rows: pl.DataFrame, options: ForecastingOptions) -> list[dict]:
    """Of every method at one horizon: the interval of its RMSE, and its difference to the best baseline."""
    tables = _error_tables(rows)
    shape = next(iter(tables.values())).shape
    samples = min(np.prod([float(comb(2 * n - 1, n)) for n in shape]), options.bootstrap_replicates)
    caution = FEW_UNITS if 1 < samples < tail_samples(options.confidence) else ""
    weights, once = _two_way_weights(shape, options), np.ones((1, *shape))
    baselines = rows.filter(kind="baseline")["method"].unique(maintain_order=True)
    best = min(baselines, key=lambda method: _rmse(tables[method], once).item())
    found = []
    for method, errors in tables.items():
        row = dict.fromkeys(COMPARED_SCHEMA) | {"method": method, "horizon": horizon, "best_baseline": best}
        row["caution"] = caution
        found.append(row | _intervals(errors, tables[best], weights, options))
    return found


def _error_tables(rows: pl.DataFrame) -> dict[str, Array]:
    """Method -> its errors (tasks, runs), NaN where it made no forecast."""
    tasks, runs = rows["task"].unique().sort().to_list(), rows["run"].unique().sort().to_list()
    tables = {}
    for (method,), made in rows.group_by("method", maintain_order=True):
        tables[method] = np.full((len(tasks), len(runs)), np.nan)
        for task, run, error in made.select("task", "run", "error").iter_rows():
            tables[method][tasks.index(task), runs.index(run)] = error
    return tables


def _two_way_weights(shape: tuple[int, int], options: ForecastingOptions) -> Array:
    """How often every task and run is drawn -> (B, tasks, runs), both from a stream of random numbers of their own.

    From one stream as many tasks as runs would be drawn in the very same way.
    """
    of_tasks, of_runs = (
        bootstrap_weights(n, options.bootstrap_replicates, stream(options.seed, i)) for i, n in enumerate(shape)
    )
    return of_tasks[:, :, None] * of_runs[:, None]


def _rmse(errors: Array, weights: Array) -> Array:
    """errors (tasks, runs), weights (B, tasks, runs) -> (B,); NaN in a sample without a forecast."""
    there = ~np.isnan(errors)
    count = weights[:, there].sum(1)
    squares = weights[:, there] @ errors[there] ** 2
    return np.sqrt(np.divide(squares, count, out=np.full(len(weights), np.nan), where=count > 0))


def _intervals(errors: Array, baseline: Array, weights: Array, options: ForecastingOptions) -> dict:
    both = np.where(np.isnan(baseline), np.nan, errors), np.where(np.isnan(errors), np.nan, baseline)
    once = np.ones((1, *errors.shape))
    row = {}
    if not np.isnan(both[0]).all():
        row["difference"] = float((_rmse(both[0], once) - _rmse(both[1], once)).item())
    if errors.size > 1:
        row["rmse_low"], row["rmse_high"] = map(float, percentile_interval(_rmse(errors, weights), options.confidence))
    if errors.size > 1 and not np.isnan(both[0]).all():
        samples = _rmse(both[0], weights) - _rmse(both[1], weights)
        row["difference_low"], row["difference_high"] = map(float, percentile_interval(samples, options.confidence))
    return row
