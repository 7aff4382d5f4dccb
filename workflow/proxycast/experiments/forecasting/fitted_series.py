"""A curve through one series of checkpoints, with its bootstrap replicates."""

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from proxycast.config.experiments.forecasting_options import BASELINE_SERIES, ForecastingOptions
from proxycast.experiments.arrays import Array
from proxycast.experiments.forecasting.observed import Series, TaskRun
from proxycast.experiments.laws import curves
from proxycast.proxy_formulas import STATISTICS

# Least and greatest value; all other statistics of `proxies` lie between 0 and 1.
RANGES = {"expert_rank": (1.0, np.inf), **dict.fromkeys(("cross_entropy", *BASELINE_SERIES), (0.0, np.inf))}


def value_range(series: str) -> tuple[float, float]:
    """Least and greatest value that a series can have; one that a logged curve brings along may have any."""
    statistic = series.partition("/")[0]
    return RANGES.get(statistic, (0.0, 1.0) if statistic in STATISTICS else (-np.inf, np.inf))


@dataclass(frozen=True)
class FittedSeries:
    """A curve through one series: its fit, the replicates' fits, and what was drawn for them."""

    point: curves.FittedCurve
    replicates: curves.FittedCurve
    residuals: Array  # (n,), inflated
    shift: Array  # (B, n): what another draw of solutions added to the values
    good: bool  # it tells more than a constant


def fit_series(kind: str, series: Series, shift: Array, options: ForecastingOptions) -> FittedSeries:
    smooth, parameters = curves.moving_mean(len(series.t), options.smoothing), curves.CURVES[kind].parameters
    y = smooth @ series.value

    def fit(weights: Array) -> curves.FittedCurve:
        return curves.fit_curve(kind, series.t, y[None], weights, options.fit.exponents)

    weights = curves.robust_weights(lambda weights: fit(weights)(series.t), y, parameters, options.fit)
    point = fit(weights)
    fitted = point(series.t)[0]
    residuals = inflated(series.value - fitted, parameters, options)
    drawn = draw_positions(len(series.t), len(series.t), options)
    again = (fitted + curves.reweighting(weights) * residuals[drawn] + shift) @ smooth.T
    replicates = curves.fit_curve(kind, series.t, again, weights[0][drawn], options.fit.exponents)
    good = kind == "constant" or curves.has_trend(y, fitted, weights[0], parameters, options.fit)
    return FittedSeries(point, replicates, residuals, shift, good)


def inflated(residuals: Array, parameters: int, options: ForecastingOptions) -> Array:
    """Residuals about their mean, as large as the noise is; larger where few checkpoints tell of it."""
    n = len(residuals)
    return (
        (residuals - residuals.mean())
        * curves.inflation(n, parameters)
        * curves.student(n, parameters, options.confidence)
    )


def draw_positions(n: int, length: int, options: ForecastingOptions, what: str = "fitted") -> Array:
    """Positions (B, length) among n checkpoints: the same for every series, so that noise that they share stays so."""
    seed = [options.seed, n, length, crc32(what.encode())]
    return curves.block_indices(n, length, options.bootstrap_replicates, options.block, seed)


@dataclass(frozen=True)
class NoCurve:
    """Why a statistic has no curve."""

    reason: str
    enough: bool  # it has the checkpoints that a curve needs


def fit_power_law(name: str, data: TaskRun, options: ForecastingOptions) -> FittedSeries | NoCurve:
    """The power law of the statistic `name`."""
    series, parameters = data.statistics.get(name), curves.CURVES["power"].parameters
    known = 0 if series is None else len(series.t)
    if known <= parameters:
        return NoCurve(f"{known} checkpoints for {parameters} parameters of the curve of {name}", enough=False)
    fitted = fit_series("power", series, _shift(name, series, options), options)
    return fitted if fitted.good else NoCurve(f"{name} follows no power law of compute", enough=True)


def _shift(name: str, series: Series, options: ForecastingOptions) -> Array:
    """What other solutions would add to the values (B, n): the same solutions for all checkpoints."""
    replicates = options.bootstrap_replicates
    if series.by_solution is None:
        normal = np.random.default_rng([options.seed, crc32(name.encode())]).standard_normal((replicates, 1))
        return normal * series.standard_error
    count = series.by_solution.shape[1]
    drawn = np.random.default_rng([options.seed, count]).multinomial(count, np.full(count, 1 / count), size=replicates)
    return (drawn / count - 1 / count) @ series.by_solution.T
