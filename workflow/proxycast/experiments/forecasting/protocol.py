"""Forecast where training runs end, and compare the forecasts with the truth there.

A statistic of the model (a proxy, a loss) follows a curve over the run, and a link turns it into the truth (accuracy).
Both are fitted to the same checkpoints up to the cut (`methods`). What is forecast at a horizon, a multiple of the
compute at the cut, is the truth at the checkpoint there. An interval tells of noise and, by how far forecasts from
earlier cuts have missed, of a curve that is the wrong one (`conformal`); the table of errors says how often they cover.

One method is chosen before anything beyond the cut is seen. A rehearsal fits every method up to a share of the cut and
forecasts the checkpoints from there to the cut. The best one there is the method "chosen". Only what was really fitted
is chosen: the share is widened where it holds too few checkpoints, and a method that fell back to a constant is given
the error of the last value.

What makes a forecast unreliable stands beside it (`cautions`).
"""

import logging
from collections.abc import Mapping, Sequence

import polars as pl

from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.experiments.forecasting.cautions import FEW_UNITS, has_caution, tell_cautions
from proxycast.experiments.forecasting.conformal import INTERVALS_SCHEMA, about_rehearsals, with_conformal_intervals
from proxycast.experiments.forecasting.forecast_errors import errors_table, with_noisy_truths
from proxycast.experiments.forecasting.forecasts import forecast_all, forecasts_from_other_runs
from proxycast.experiments.forecasting.ladder_forecasts import forecasts_by_two_step, lacks, models_to_forecast
from proxycast.experiments.forecasting.methods import CHOSEN
from proxycast.experiments.forecasting.observed import TRUTH, observed_series, task_runs, values_of_solutions
from proxycast.experiments.forecasting.rehearsal import rehearse
from proxycast.experiments.forecasting.run_end import End, summary_table, with_end
from proxycast.options import InputError

log = logging.getLogger(__name__)


def series_to_forecast(
    checkpoints: pl.DataFrame,
    targets: pl.DataFrame,
    proxies: pl.DataFrame,
    metric: str,
    tasks: Sequence[str],
    options: ForecastingOptions,
) -> tuple[ForecastingOptions, End | None, pl.DataFrame]:
    """The options with the end as a horizon, the end, and the truth and statistics of every run; `InputError`s of all.

    The tables are those of `forecast`. It takes no time, so it also checks a log before the first job.
    """
    models_to_forecast(checkpoints, targets, metric, options)
    checkpoints = checkpoints.filter(~pl.col("run").is_in(list(options.models)))
    if options.models and (reason := lacks(checkpoints)):
        raise InputError(f"forecasting.models: {', '.join(options.models)} cannot be forecast from the runs: {reason}")
    of_metric = targets.filter(pl.col("metric") == metric, pl.col("task").is_in(list(tasks)))
    options, end = with_end(options, checkpoints.join(of_metric, on="checkpoint", how="semi"))
    observed = observed_series(checkpoints, targets, proxies, metric, tasks, options)
    if "logistic" in options.links and not observed.filter("in_fit", series=TRUTH)["value"].is_between(0, 1).all():
        raise InputError(f"forecasting.links: logistic needs a truth between 0 and 1, which {metric} is not")
    return options, end, observed


def forecast(
    checkpoints: pl.DataFrame,
    targets: pl.DataFrame,
    proxies: pl.DataFrame,
    metric: str,
    tasks: Sequence[str],
    options: ForecastingOptions,
    solution_proxies: pl.DataFrame | None = None,
    *,
    higher_is_better: bool = True,
    chance: Mapping[str, float] | None = None,
) -> dict[str, pl.DataFrame]:
    """The tables summary, forecasts, errors, intervals, fits, paths, observed, rehearsal and two_step by their schemas.

    `checkpoints`: checkpoint, run, step, tokens and, where known, flops. `targets`: checkpoint, task, metric, value, n.
    `proxies`: checkpoint, task, statistic, weighting, value, standard_error. `solution_proxies`: checkpoint, task,
    solution, statistic, weighting, value. Where a tail is told, that in tokens counts. `higher_is_better`: false for a
    truth that is an error or a loss. `chance`: task -> what guessing gets, where that is known. A forecast has a null
    truth where the run has no checkpoint near the horizon, as at the end of a run that goes on (`options.end`).
    `InputError` where nothing can be fitted.
    """
    of_truth = {"higher_is_better": higher_is_better, "chance": chance or {}}
    options, end, observed = series_to_forecast(checkpoints, targets, proxies, metric, tasks, options)
    models = models_to_forecast(checkpoints, targets, metric, options)
    checkpoints = checkpoints.filter(~pl.col("run").is_in(list(options.models)))
    of_solutions = values_of_solutions(checkpoints, solution_proxies)
    forecasts, fits, paths = forecast_all(observed, of_solutions, options, of_truth, end)
    intervals = pl.DataFrame(schema=INTERVALS_SCHEMA)
    if options.intervals == "conformal":
        pairs = list(task_runs(observed, {}, **of_truth))
        forecasts, paths, intervals = with_conformal_intervals(forecasts, paths, pairs, options)
    by_law = forecasts_by_two_step(observed, checkpoints, models, options, of_truth, end)
    of_other_runs = forecasts_from_other_runs(observed, options, of_truth, end)
    forecasts = pl.concat([forecasts, of_other_runs, by_law["forecasts"]])
    paths = pl.concat([paths, by_law["paths"]])
    rehearsal = rehearse(observed, options, higher_is_better=higher_is_better)
    chosen = rehearsal.filter("chosen")["method"].to_list()
    for method in chosen:  # one or none
        as_chosen = pl.lit(CHOSEN).alias("method")
        forecasts = pl.concat([forecasts, forecasts.filter(method=method).with_columns(as_chosen)])
        paths = pl.concat([paths, paths.filter(method=method).with_columns(as_chosen)])
        intervals = pl.concat([intervals, intervals.filter(method=method).with_columns(as_chosen)])
    _tell_fallbacks(forecasts.filter(pl.col("fallback") != "", pl.col("method") != CHOSEN))
    if text := about_rehearsals(intervals, next(iter(chosen), None)):
        log.info(text)
    tell_cautions(forecasts.filter(pl.col("method") != CHOSEN), fits)
    errors = with_noisy_truths(errors_table(forecasts, options), forecasts)
    if few := errors.filter(has_caution(FEW_UNITS))["horizon"].unique().sort().to_list():
        log.warning("%s of the errors at %s", FEW_UNITS, ", ".join(f"{horizon:g}x" for horizon in few))
    return {
        "summary": summary_table(forecasts, next(iter(chosen), None), checkpoints, options, end, intervals),
        "forecasts": forecasts,
        "errors": errors,
        "intervals": intervals,
        "fits": fits,
        "paths": paths,
        "observed": observed.drop("checkpoint", "n"),
        "rehearsal": rehearsal,
        "two_step": by_law["two_step"],
    }


def _tell_fallbacks(fell_back: pl.DataFrame) -> None:
    for (method, text), rows in fell_back.group_by("method", "fallback", maintain_order=True):
        where = rows.select(pl.format("{}/{}", "run", "task")).to_series().unique().sort()
        log.warning("%s of %d run/task (%s ...): %s", method, len(where), where[0], text)
