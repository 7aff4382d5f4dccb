"""Ways to forecast a training run: curve and link of a statistic, their pool, and what they are compared with.

Each is fitted to the early checkpoints of one task of one run, and answers for any time with a forecast and with those
of B bootstrap replicates. A replicate draws blocks of checkpoints' residuals about the fitted curve and link, the same
blocks for all statistics of a task, and the task's solutions with replacement, the same ones for all checkpoints (where
their values are not known: a shift by the standard error, shared by all checkpoints); fits both again; and adds to its
forecast the noise of a measurement to come: drawn residuals of the truth, and where they vary less than a share of its
problems does (binomial), the rest of that.

t: tokens as a multiple of those at the cut, within one run a multiple of compute. Shapes: n fitted checkpoints, T
times, B replicates, S solutions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from proxycast.config.experiments.forecasting_options import BASELINE_SERIES, ForecastingOptions, Link
from proxycast.experiments.arrays import Array
from proxycast.experiments.forecasting.fitted_series import (
    FittedSeries,
    NoCurve,
    draw_positions,
    fit_power_law,
    fit_series,
    inflated,
    value_range,
)
from proxycast.experiments.forecasting.observed import TaskRun
from proxycast.experiments.laws import curves

POOLED, LAST_VALUE, COMPUTE_ONLY = "pooled", "last_value", "compute_only"
OTHER_RUNS, TWO_STEP = "other_runs", "two_step"  # learnt from the other runs, so that no rehearsal can choose them
CHOSEN = "chosen"  # the method that the rehearsal chose, under a second name


@dataclass(frozen=True)
class Forecaster:
    """A method fitted to one task of one run."""

    point: Callable[[Array], Array]  # t (T,) -> (T,)
    replicates: Callable[[Array], Array]  # t (T,) -> (B, T)
    residuals: Array  # of the truth about the forecast, at the fitted checkpoints, inflated
    fits: tuple[dict, ...] = ()
    fallback: str = ""
    points: int = 0  # checkpoints that the fits have, the fewest of several
    fitted: bool = True  # False: a constant stands in for the method
    enough: bool = True  # False: because its checkpoints are too few


def direct(kind: str, data: TaskRun, method: str, options: ForecastingOptions) -> Forecaster:
    """The truth's own curve over compute; a constant where too little is known for another."""
    parameters, n = curves.CURVES[kind].parameters, len(data.truth.t)
    if kind != "constant" and n <= parameters:
        return _fallback(data, method, f"{n} checkpoints for {parameters} parameters", options, enough=False)
    fitted = fit_series(kind, data.truth, np.zeros((options.bootstrap_replicates, n)), options)
    if not fitted.good:
        return _fallback(data, method, f"the truth follows no {kind} curve", options)
    return Forecaster(
        point=lambda t: fitted.point(t)[0],
        replicates=fitted.replicates,
        residuals=fitted.residuals,
        points=n,
        fits=(_fit_row(data, method, fitted.point, n, fitted.point.a.item(), options),),
    )


def _fallback(
    data: TaskRun, method: str, reason: str, options: ForecastingOptions, *, enough: bool = True
) -> Forecaster:
    constant, text = direct("constant", data, method, options), f"constant: {reason}"
    fits = tuple(row | {"note": text} for row in constant.fits)
    return replace(constant, fits=fits, fallback=text, fitted=False, enough=enough)


def through_link(
    name: str, link: Link, followed: FittedSeries | NoCurve, data: TaskRun, method: str, options: ForecastingOptions
) -> Forecaster:
    """The curve of the statistic `name`, then the link to the truth; a constant where too little is known."""
    if isinstance(followed, NoCurve):
        return _fallback(data, method, followed.reason, options, enough=followed.enough)
    series, truth = data.statistics[name], data.truth
    both, of_series, of_truth = np.intersect1d(series.t, truth.t, return_indices=True)
    if len(both) <= curves.LINK_PARAMETERS:
        reason = f"{len(both)} checkpoints for {curves.LINK_PARAMETERS} parameters of the link"
        return _fallback(data, method, reason, options, enough=False)
    smooth = curves.moving_mean(len(series.t), options.smoothing)
    x = (smooth @ series.value)[of_series][None]
    y = (curves.moving_mean(len(truth.t), options.smoothing) @ truth.value)[of_truth]
    weights = curves.robust_weights(
        lambda weights: curves.fit_link(link, x, y[None], weights)(x), y, curves.LINK_PARAMETERS, options.fit
    )
    point = curves.fit_link(link, x, y[None], weights)
    linked = point(x)[0]
    if not curves.has_trend(y, linked, weights[0], curves.LINK_PARAMETERS, options.fit):
        return _fallback(data, method, f"the truth does not follow {name} by a {link} link", options)
    drawn = draw_positions(len(both), len(both), options)
    again = linked + curves.reweighting(weights) * inflated(y - linked, curves.LINK_PARAMETERS, options)[drawn]
    again = np.clip(again, 0, 1) if link == "logistic" else again
    links = curves.fit_link(link, x + (followed.shift @ smooth.T)[:, of_series], again, weights[0][drawn])
    low, high = value_range(name) if options.clip else (-np.inf, np.inf)
    residuals = truth.value[of_truth] - point(np.clip(followed.point(both), low, high))[0]
    at_last = point(np.clip(followed.point.a, low, high)[:, None]).item()
    row = _fit_row(data, method, followed.point, len(series.t), at_last, options)
    return Forecaster(
        point=lambda t: point(np.clip(followed.point(t), low, high))[0],
        replicates=lambda t: links(np.clip(followed.replicates(t), low, high)),
        residuals=inflated(residuals, curves.LINK_PARAMETERS, options),
        points=min(len(both), len(series.t)),
        fits=(row | {"link": link, "link_slope": point.slope.item(), "link_intercept": point.intercept.item()},),
    )


def _fit_row(
    data: TaskRun, method: str, fitted: curves.FittedCurve, points: int, asymptote: float, options: ForecastingOptions
) -> dict:
    """`asymptote`: what the forecast truth tends to."""
    c = None if fitted.c is None else fitted.c.item()
    at_bound = c is not None and any(abs(np.log(c / bound)) < 1e-6 for bound in options.fit.exponents)
    return dict.fromkeys(FITS_SCHEMA) | {
        **{"run": data.run, "task": data.task, "method": method, "curve": fitted.kind, "points": points},
        **{"a": fitted.a.item(), "b": fitted.b.item() if c is not None else None, "c": c},
        "m": None if fitted.m is None else fitted.m.item(),
        **{"tokens_at_cut": data.tokens_at_cut, "asymptote": asymptote, "beyond": data.beyond(asymptote)},
        "note": "the exponent c is at its bound" if at_bound else "",
    }


FITS_SCHEMA = {
    **dict.fromkeys(("run", "task", "method", "curve"), pl.String),
    **dict.fromkeys(("a", "b", "c", "m", "tokens_at_cut"), pl.Float64),
    **{
        "link": pl.String,
        "link_slope": pl.Float64,
        "link_intercept": pl.Float64,
        "asymptote": pl.Float64,
        "beyond": pl.String,
        "points": pl.Int64,
        "note": pl.String,
    },
}


def pooled(members: Mapping[str, Forecaster]) -> Forecaster:
    """The median of the members' forecasts, in every replicate too. A member that fell back is left out."""
    kept = [member for member in members.values() if member.fitted]
    if not kept:
        enough = any(member.enough for member in members.values())
        return replace(
            next(iter(members.values())), fits=(), fallback="constant: so it is for every proxy", enough=enough
        )
    lengths = {len(member.residuals) for member in kept}
    residuals = [member.residuals for member in kept if len(member.residuals) == max(lengths)]
    lost = [f"{name} ({member.fallback})" for name, member in members.items() if not member.fitted]
    return Forecaster(
        point=lambda t: np.median([member.point(t) for member in kept], axis=0),
        replicates=lambda t: np.median([member.replicates(t) for member in kept], axis=0),
        residuals=np.median(residuals, axis=0),
        points=min(member.points for member in kept),
        fallback=f"without {', '.join(lost)}" if lost else "",
    )


def last_value(data: TaskRun, own_curve: Forecaster, options: ForecastingOptions) -> Forecaster:
    """The truth at the cut; its noise is told by the residuals of the truth's own curve."""
    value = data.truth.value[-1]
    residuals = own_curve.residuals
    noise = residuals[draw_positions(len(residuals), 1, options, "last value")]  # (B, 1)
    return Forecaster(
        point=lambda t: np.full(len(t), value),
        replicates=lambda t: value + np.repeat(noise, len(t), axis=1),
        residuals=residuals,
        points=own_curve.points,
    )


def fit_methods(data: TaskRun, options: ForecastingOptions) -> dict[tuple[str, str], Forecaster]:
    """(method, kind) -> the fitted method. A link other than the linear one is part of the method's name."""
    own_curve = direct("power", data, COMPUTE_ONLY, options)
    baselines = [name for name in BASELINE_SERIES if name in data.statistics]
    proxies = options.proxies_of(data.task)
    followed = {name: fit_power_law(name, data, options) for name in dict.fromkeys([*proxies, *baselines])}
    found = {}
    for link in options.links:
        suffix = "" if link == "linear" else f", {link} link"
        linked = {
            name: through_link(name, link, curve, data, name + suffix, options) for name, curve in followed.items()
        }
        if proxies and len(options.proxies) > 1:
            found[POOLED + suffix, "proxy"] = pooled({name: linked[name] for name in proxies})
        kinds = {name: "baseline" if name in BASELINE_SERIES else "proxy" for name in linked}
        found |= {(name + suffix, kinds[name]): made for name, made in linked.items()}
    return found | {
        (COMPUTE_ONLY, "baseline"): own_curve,
        (LAST_VALUE, "baseline"): last_value(data, own_curve, options),
        ("logistic", "control"): direct("logistic", data, "logistic", options),
        ("constant", "control"): direct("constant", data, "constant", options),
    }


def forecast_interval(
    made: Forecaster,
    data: TaskRun,
    tokens: Array,
    groups: Sequence[Array],
    options: ForecastingOptions,
    *,
    of_curve: bool = False,
) -> tuple[Array, Array, Array]:
    """Forecast, low and high of every group of the times `tokens` (T,): of the mean of its measurements.

    `of_curve`: of the curve itself, without the noise of the measurements to come.
    """
    t = tokens / data.tokens_at_cut
    point = made.point(t)
    mean = np.stack([point[group].mean() for group in groups])
    samples = made.replicates(t) + (0 if of_curve else _noise(made, data, point, options))
    sides = [(1 - options.confidence) / 2, (1 + options.confidence) / 2]
    low, high = np.quantile(np.stack([samples[:, group].mean(1) for group in groups], axis=1), sides, axis=0)
    return tuple(bounded(values, data, options) for values in (mean, low, high))


def bounded(values: Array, data: TaskRun, options: ForecastingOptions) -> Array:
    """Forecasts, kept between the least and the greatest value that the truth can have."""
    return np.clip(values, *data.bounds) if options.clip else values


def resamples(made: Forecaster, options: ForecastingOptions) -> int:
    """How many different samples of its checkpoints' blocks a bootstrap can draw, and does at most."""
    different = made.points ** -(-made.points // options.block)
    return min(different, options.bootstrap_replicates)


def tail_samples(confidence: float) -> float:
    """The fewest samples of which one lies in either tail of an interval."""
    return 2 / (1 - confidence)


def _noise(made: Forecaster, data: TaskRun, point: Array, options: ForecastingOptions) -> Array:
    """Noise of measurements to come -> (B, T): drawn residuals, and what they lack of the noise of a share of n."""
    drawn = made.residuals[draw_positions(len(made.residuals), len(point), options, "to come")]
    if data.problems is None or not data.is_share:
        return drawn
    share = np.clip(point, 0, 1)
    lacking = np.maximum(share * (1 - share) / data.problems - made.residuals.var(), 0)
    return drawn + np.sqrt(lacking) * np.random.default_rng(options.seed).standard_normal(drawn.shape)
