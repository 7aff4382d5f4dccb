"""The forecasts of every method at every horizon, their paths between, and the forecast from other runs."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from tqdm import tqdm

from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.experiments.arrays import Array
from proxycast.experiments.forecasting import cautions
from proxycast.experiments.forecasting.fitted_series import inflated
from proxycast.experiments.forecasting.methods import (
    FITS_SCHEMA,
    OTHER_RUNS,
    Forecaster,
    bounded,
    fit_methods,
    forecast_interval,
)
from proxycast.experiments.forecasting.observed import TaskRun, task_runs, without_first
from proxycast.experiments.forecasting.run_end import End
from proxycast.experiments.laws.curves import LINK_PARAMETERS, fit_link
from proxycast.jobs import PROGRESS_SECONDS

log = logging.getLogger(__name__)

PATH_POINTS = 60
COMPARED_REPLICATES = 100  # of the forecasts without the first checkpoints: their intervals are in no table
FORECASTS_SCHEMA = {
    **dict.fromkeys(("run", "task", "method", "kind"), pl.String),
    **{"horizon": pl.Float64, "step": pl.Int64, "tokens": pl.Float64},
    **dict.fromkeys(("predicted", "low", "high", "truth", "error"), pl.Float64),
    **{"covered": pl.Boolean, "fallback": pl.String},
    # Without the first checkpoints, and of the truth: how much of its variance is no noise.
    **dict.fromkeys(("without_first", "reliability"), pl.Float64),
    **{"caution": pl.String},
}
PATHS_SCHEMA = {
    **dict.fromkeys(("run", "task", "method"), pl.String),
    **dict.fromkeys(("tokens", "predicted", "low", "high"), pl.Float64),
}


@dataclass(frozen=True)
class AtHorizon:
    """What is forecast: the truth at a checkpoint, or its mean over several."""

    horizon: float
    step: int
    tokens: Array  # of the checkpoints
    truth: float | None


def at_horizons(data: TaskRun, options: ForecastingOptions, end: End | None = None) -> list[AtHorizon]:
    """One for each horizon; without a checkpoint near it, the horizon itself (of a run's end, that) and no truth."""
    found = []
    for horizon in options.horizons:
        tokens, step = horizon * data.tokens_at_cut, round(horizon * data.step_at_cut)
        if end is not None and (data.run, horizon) == (end.run, end.horizon):
            tokens, step = end.tokens, end.step
        distance = (pl.col("tokens") / tokens - 1).abs()
        near = data.after.filter(distance <= options.horizon_tolerance + 1e-9).sort(distance)
        near = near.head(1) if options.at_horizon == "nearest" else near
        if near.is_empty():
            found.append(AtHorizon(horizon, step, np.array([tokens]), None))
        else:
            found.append(
                AtHorizon(horizon, near["step"][0], near["tokens"].to_numpy().astype(float), near["value"].mean())
            )
    return found


def forecast_all(
    observed: pl.DataFrame,
    of_solutions: Mapping[tuple, pl.DataFrame],
    options: ForecastingOptions,
    of_truth: dict,
    end: End | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The tables forecasts, fits and paths."""
    forecasts, fits, paths = [], [], []
    quick = options.model_copy(update={"bootstrap_replicates": min(options.bootstrap_replicates, COMPARED_REPLICATES)})
    pairs = list(task_runs(observed, of_solutions, **of_truth))
    unchecked = [f"{data.run}/{data.task}" for data in pairs if without_first(data) is None]
    if unchecked:
        log.warning(
            "%d of %d run/task (%s ...) have too few checkpoints to try their forecasts without the first ones",
            *(len(unchecked), len(pairs), unchecked[0]),
        )
    to_forecast = {f"{data.run}/{data.task}": at_horizons(data, options, end) for data in pairs}
    _tell_without_truth(to_forecast, options)
    for data, wanted in tqdm(zip(pairs, to_forecast.values()), "forecasts", len(pairs), mininterval=PROGRESS_SECONDS):
        if all(at.truth is None for at in wanted):
            log.warning(
                "run %s, task %s: no checkpoint near any horizon; its forecasts are not judged", data.run, data.task
            )
        reliability, about = cautions.about_truth(data)
        later = without_first(data)
        again = {} if later is None else cautions.worth_comparing(fit_methods(later, quick))
        last = max(float(data.after["tokens"].max() or 0), *(at.tokens.max() for at in wanted))
        grid = np.geomspace(data.truth.t[0] * data.tokens_at_cut, last, PATH_POINTS)
        for (method, kind), made in fit_methods(data, options).items():
            key = {"run": data.run, "task": data.task, "method": method}
            rows = list(_rows_of_method(made, data, wanted, options))
            if (method, kind) in again:
                other = forecast_interval(again[method, kind], later, *_times(wanted), quick, of_curve=True)
                rows = cautions.compared_without_first(rows, other, data)
            of_method = {"kind": kind, "fallback": made.fallback, "reliability": reliability}
            forecasts += [key | of_method | row | {"caution": "; ".join(about + row["caution"])} for row in rows]
            fits += made.fits
            point, low, high = forecast_interval(made, data, grid, [np.array([i]) for i in range(len(grid))], options)
            paths.append(
                pl.DataFrame({"tokens": grid, "predicted": point, "low": low, "high": high})
                .with_columns(**{name: pl.lit(text) for name, text in key.items()})
                .select(list(PATHS_SCHEMA))
            )
    return (pl.DataFrame(forecasts, schema=FORECASTS_SCHEMA), pl.DataFrame(fits, schema=FITS_SCHEMA), pl.concat(paths))


def _rows_of_method(
    made: Forecaster, data: TaskRun, wanted: Sequence[AtHorizon], options: ForecastingOptions
) -> Iterator[dict]:
    """The rows of a method's forecasts; `caution` is a list here."""
    tokens, groups = _times(wanted)
    free = made.point(tokens / data.tokens_at_cut)
    for at, group, predicted, low, high in zip(wanted, groups, *forecast_interval(made, data, tokens, groups, options)):
        told = cautions.about_forecast(made, data, free[group].mean(), (low, high), options)
        if cautions.NO_INTERVAL in told:
            low, high = np.nan, np.nan
        yield forecast_row(at, predicted, low, high) | {"caution": told}


def _times(wanted: Sequence[AtHorizon]) -> tuple[Array, list[Array]]:
    """All tokens of what is forecast (T,), and which of them belong to each."""
    ends = np.cumsum([len(at.tokens) for at in wanted])
    groups = [np.arange(end - len(at.tokens), end) for end, at in zip(ends, wanted)]
    return np.concatenate([at.tokens for at in wanted]), groups


def forecast_row(at: AtHorizon, predicted: float, low: float, high: float) -> dict:
    """One forecast; `low` and `high` are NaN where nothing is known of them, and null in the table."""
    has_truth, known = at.truth is not None, bool(np.isfinite(low))
    return {
        **{"horizon": at.horizon, "step": at.step, "tokens": float(at.tokens.mean()), "truth": at.truth},
        **{"predicted": predicted, "low": low if known else None, "high": high if known else None},
        "error": predicted - at.truth if has_truth else None,
        "covered": low <= at.truth <= high if has_truth and known else None,
    }


def _tell_without_truth(wanted: Mapping[str, Sequence[AtHorizon]], options: ForecastingOptions) -> None:
    """Horizons at which some or all truths are missing. `wanted`: run/task -> what is forecast."""
    for number, horizon in enumerate(options.horizons):
        without = [where for where, found in wanted.items() if found[number].truth is None]
        if without:
            log.warning(
                "horizon %gx: %d of %d run/task (%s ...) have no truth within %g %% of it; their forecasts there are "
                "not judged, and errors do not cover them",
                *(horizon, len(without), len(wanted), without[0], 100 * options.horizon_tolerance),
            )


def forecasts_from_other_runs(
    observed: pl.DataFrame, options: ForecastingOptions, of_truth: dict, end: End | None = None
) -> pl.DataFrame:
    """The forecast from finished runs: their truth at a horizon, regressed on their truth at the cut."""
    rows = []
    values = {
        (data.task, data.run, at.horizon): (data, at)
        for data in task_runs(observed, {}, **of_truth)
        for at in at_horizons(data, options, end)
    }
    for (task, run, horizon), (data, at) in values.items():
        others = [
            (other.truth.value[-1], end.truth)
            for (its_task, its_run, its_horizon), (other, end) in values.items()
            if (its_task, its_horizon) == (task, horizon) and its_run != run and end.truth is not None
        ]
        if others:
            key = {"run": run, "task": task, "method": OTHER_RUNS, "kind": "baseline"}
            predicted, low, high, fallback = from_other_runs(np.array(others), data, options)
            found, about = cautions.about_truth(data)
            about = about if np.isfinite(low) else [*about, cautions.NO_INTERVAL_OF_RUNS]
            rows.append(
                key
                | forecast_row(at, predicted, low, high)
                | {"fallback": fallback, "reliability": found, "caution": "; ".join(about)}
            )
    return pl.DataFrame(rows, schema=FORECASTS_SCHEMA)


def from_other_runs(others: Array, data: TaskRun, options: ForecastingOptions) -> tuple[float, float, float, str]:
    """Forecast, low, high and fallback from `others` (runs, 2): their truth at the cut and at the horizon.

    The line through them; with fewer than three runs, their mean change. Low and high are NaN for one other run.
    """
    x, y, now = others[:, 0], others[:, 1], data.truth.value[-1]
    count, line = len(others), len(others) > LINK_PARAMETERS
    y = y if line else y - x
    weights = np.ones((1, count))
    fit = fit_link("linear", (x if line else 0 * x)[None], y[None], weights)
    fitted = fit.intercept + fit.slope * x
    residuals = inflated(y - fitted, LINK_PARAMETERS if line else 1, options)
    replicates, rng = options.bootstrap_replicates, np.random.default_rng([options.seed, count])
    drawn = fitted + residuals[rng.integers(count, size=(replicates, count))]
    again = fit_link("linear", np.tile(x if line else 0 * x, (replicates, 1)), drawn, np.ones((replicates, count)))
    samples = again.intercept + again.slope * now + residuals[rng.integers(count, size=replicates)]
    offset = 0 if line else now
    low, high = np.quantile(samples + offset, [(1 - options.confidence) / 2, (1 + options.confidence) / 2])
    text = "" if line else f"mean change: {count} other runs for {LINK_PARAMETERS} parameters"
    if count == 1:
        low, high = np.nan, np.nan
    predicted = fit.intercept[0] + fit.slope[0] * now + offset
    return *map(float, bounded(np.array([predicted, low, high]), data, options)), text
