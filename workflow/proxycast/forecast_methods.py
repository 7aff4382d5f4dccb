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
from functools import cached_property
from math import ceil
from typing import Annotated, Literal
from zlib import crc32

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from proxycast.curves import (
    CURVES,
    LINK_PARAMETERS,
    Array,
    FitOptions,
    FittedCurve,
    block_indices,
    fit_curve,
    fit_link,
    has_trend,
    inflation,
    moving_mean,
    reweighting,
    robust_weights,
    student,
)
from proxycast.options import Options
from proxycast.proxies import STATISTICS, WEIGHTINGS
from proxycast.wide_curve import WideCurve

GENERIC_CROSS_ENTROPY = "generic_cross_entropy"
BASELINE_SERIES = (GENERIC_CROSS_ENTROPY, "expert_cross_entropy", "bits_per_byte")
POOLED, LAST_VALUE, COMPUTE_ONLY = "pooled", "last_value", "compute_only"
Link = Literal["linear", "logistic"]
# Least and greatest value; all other statistics of `proxies` lie between 0 and 1.
RANGES = {
    "expert_rank": (1.0, np.inf),
    **dict.fromkeys(("cross_entropy", *BASELINE_SERIES), (0.0, np.inf)),
}


def value_range(series: str) -> tuple[float, float]:
    """Least and greatest value that a series can have; one that a logged curve brings along may have any."""
    statistic = series.partition("/")[0]
    return RANGES.get(statistic, (0.0, 1.0) if statistic in STATISTICS else (-np.inf, np.inf))


class ForecastingOptions(Options):
    """Forecasts of training runs."""

    curve: WideCurve | None = Field(None, description="one run that others logged; no model is run")
    fit_up_to_step: int = Field(gt=0, description="the cut: last training step that forecasts may use")
    fit_from_step: int = Field(1, ge=1, description="first step that is fitted; the untrained model lies on no curve")
    horizons: tuple[Annotated[float, Field(gt=1)], ...] = Field(
        (2, 4, 9, 18), min_length=1, description="What is forecast. Unit: multiples of the compute at the cut."
    )
    at_horizon: Literal["nearest", "mean"] = Field(
        "nearest", description="the truth at a horizon: that of the nearest checkpoint, or the mean over all near ones"
    )
    horizon_tolerance: float = Field(
        0.1, gt=0, lt=1, description="How far from a horizon a checkpoint may lie. Unit: share of the horizon."
    )
    proxies: tuple[str, ...] = Field(
        (
            *("cross_entropy/uniform", "top1_accuracy/uniform", "top5_accuracy/token_frequency"),
            *("reciprocal_rank/uniform", "margin/uniform"),
        ),
        min_length=1,
        description="proxies fixed in advance, statistic/weighting, or a statistic of `curve`; each makes a forecast, "
        "and the median of their forecasts is the method pooled",
    )
    links: tuple[Link, ...] = Field(
        ("linear",), min_length=1, description="links from a statistic to the truth; each makes methods of its own"
    )
    fit: FitOptions = Field(FitOptions(), description="how curves and links are fitted")
    smoothing: int = Field(
        0,
        ge=0,
        description="Checkpoints on either side with which each one is averaged before the fit, never beyond the cut.",
    )
    clip: bool = Field(
        True,
        description="keep every statistic in its range (an accuracy between 0 and 1, a cross-entropy above 0) and the "
        "truth between 0 and 1, where it lies there at all fitted checkpoints: no curve knows where a benchmark ends. "
        "A loss has no upper end.",
    )
    rehearsal: float | None = Field(
        0.5,
        gt=0,
        lt=1,
        description="The method chosen in advance is the one that forecasts best up to the cut from the checkpoints "
        "in this share of it. The share is widened where it holds fewer checkpoints than a fit needs; where nothing "
        "can be fitted, and with null, none is chosen.",
    )
    bootstrap_replicates: int = Field(500, ge=100, description="Bootstrap samples behind every interval.")
    block: int = Field(2, gt=0, description="Neighbouring checkpoints whose residuals are drawn together.")
    confidence: float = Field(0.9, gt=0, lt=1, description="Probability that an interval is to cover.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap's random numbers.")

    @model_validator(mode="after")
    def _known(self) -> "ForecastingOptions":
        if self.fit_from_step >= self.fit_up_to_step:
            raise ValueError(f"fit_from_step: {self.fit_from_step} is not before fit_up_to_step, {self.fit_up_to_step}")
        for key in ("horizons", "proxies", "links"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} names something twice: {', '.join(map(str, values))}")
        if self.curve:
            for task, columns in self.curve.tasks.items():
                known = [*columns.statistics, *self.curve.shared]
                for name in self.proxies:
                    if name not in known:
                        raise ValueError(f"proxies: {name!r} is no statistic of curve.tasks.{task}; known are {known}")
            return self
        for name in self.proxies:
            statistic, _, weighting = name.partition("/")
            if name not in BASELINE_SERIES and not (statistic in STATISTICS and weighting in WEIGHTINGS):
                raise ValueError(
                    f"proxies: {name!r} is no statistic/weighting; statistics are {', '.join(STATISTICS)}; weightings "
                    f"are {', '.join(WEIGHTINGS)}; baselines are {', '.join(BASELINE_SERIES)}"
                )
        return self


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


@dataclass(frozen=True)
class FittedSeries:
    """A curve through one series: its fit, the replicates' fits, and what was drawn for them."""

    point: FittedCurve
    replicates: FittedCurve
    residuals: Array  # (n,), inflated
    shift: Array  # (B, n): what another draw of solutions added to the values
    good: bool  # it tells more than a constant


def fit_series(kind: str, series: Series, shift: Array, options: ForecastingOptions) -> FittedSeries:
    smooth, parameters = moving_mean(len(series.t), options.smoothing), CURVES[kind].parameters
    y = smooth @ series.value

    def fit(weights: Array) -> FittedCurve:
        return fit_curve(kind, series.t, y[None], weights, options.fit.exponents)

    weights = robust_weights(lambda weights: fit(weights)(series.t), y, parameters, options.fit)
    point = fit(weights)
    fitted = point(series.t)[0]
    residuals = _inflated(series.value - fitted, parameters, options)
    drawn = _draw(len(series.t), len(series.t), options)
    again = (fitted + reweighting(weights) * residuals[drawn] + shift) @ smooth.T
    replicates = fit_curve(kind, series.t, again, weights[0][drawn], options.fit.exponents)
    good = kind == "constant" or has_trend(y, fitted, weights[0], parameters, options.fit)
    return FittedSeries(point, replicates, residuals, shift, good)


def _inflated(residuals: Array, parameters: int, options: ForecastingOptions) -> Array:
    """Residuals about their mean, as large as the noise is; larger where few checkpoints tell of it."""
    n = len(residuals)
    return (residuals - residuals.mean()) * inflation(n, parameters) * student(n, parameters, options.confidence)


def _draw(n: int, length: int, options: ForecastingOptions, what: str = "fitted") -> Array:
    """Positions (B, length) among n checkpoints: the same for every series, so that noise that they share stays so."""
    seed = [options.seed, n, length, crc32(what.encode())]
    return block_indices(n, length, options.bootstrap_replicates, options.block, seed)


def direct(kind: str, data: TaskRun, method: str, options: ForecastingOptions) -> Forecaster:
    """The truth's own curve over compute; a constant where too little is known for another."""
    parameters, n = CURVES[kind].parameters, len(data.truth.t)
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


@dataclass(frozen=True)
class NoCurve:
    """Why a statistic has no curve."""

    reason: str
    enough: bool  # it has the checkpoints that a curve needs


def follow(name: str, data: TaskRun, options: ForecastingOptions) -> FittedSeries | NoCurve:
    """The power law of the statistic `name`."""
    series, parameters = data.statistics.get(name), CURVES["power"].parameters
    known = 0 if series is None else len(series.t)
    if known <= parameters:
        return NoCurve(f"{known} checkpoints for {parameters} parameters of the curve of {name}", enough=False)
    fitted = fit_series("power", series, _shift(name, series, options), options)
    return fitted if fitted.good else NoCurve(f"{name} follows no power law of compute", enough=True)


def through_link(
    name: str, link: Link, followed: FittedSeries | NoCurve, data: TaskRun, method: str, options: ForecastingOptions
) -> Forecaster:
    """The curve of the statistic `name`, then the link to the truth; a constant where too little is known."""
    if isinstance(followed, NoCurve):
        return _fallback(data, method, followed.reason, options, enough=followed.enough)
    series, truth = data.statistics[name], data.truth
    both, of_series, of_truth = np.intersect1d(series.t, truth.t, return_indices=True)
    if len(both) <= LINK_PARAMETERS:
        reason = f"{len(both)} checkpoints for {LINK_PARAMETERS} parameters of the link"
        return _fallback(data, method, reason, options, enough=False)
    smooth = moving_mean(len(series.t), options.smoothing)
    x = (smooth @ series.value)[of_series][None]
    y = (moving_mean(len(truth.t), options.smoothing) @ truth.value)[of_truth]
    weights = robust_weights(lambda weights: fit_link(link, x, y[None], weights)(x), y, LINK_PARAMETERS, options.fit)
    point = fit_link(link, x, y[None], weights)
    linked = point(x)[0]
    if not has_trend(y, linked, weights[0], LINK_PARAMETERS, options.fit):
        return _fallback(data, method, f"the truth does not follow {name} by a {link} link", options)
    drawn = _draw(len(both), len(both), options)
    again = linked + reweighting(weights) * _inflated(y - linked, LINK_PARAMETERS, options)[drawn]
    again = np.clip(again, 0, 1) if link == "logistic" else again
    links = fit_link(link, x + (followed.shift @ smooth.T)[:, of_series], again, weights[0][drawn])
    low, high = value_range(name) if options.clip else (-np.inf, np.inf)
    residuals = truth.value[of_truth] - point(np.clip(followed.point(both), low, high))[0]
    at_last = point(np.clip(followed.point.a, low, high)[:, None]).item()
    row = _fit_row(data, method, followed.point, len(series.t), at_last, options)
    return Forecaster(
        point=lambda t: point(np.clip(followed.point(t), low, high))[0],
        replicates=lambda t: links(np.clip(followed.replicates(t), low, high)),
        residuals=_inflated(residuals, LINK_PARAMETERS, options),
        points=min(len(both), len(series.t)),
        fits=(row | {"link": link, "link_slope": point.slope.item(), "link_intercept": point.intercept.item()},),
    )


def _shift(name: str, series: Series, options: ForecastingOptions) -> Array:
    """What other solutions would add to the values (B, n): the same solutions for all checkpoints."""
    replicates = options.bootstrap_replicates
    if series.by_solution is None:
        normal = np.random.default_rng([options.seed, crc32(name.encode())]).standard_normal((replicates, 1))
        return normal * series.standard_error
    count = series.by_solution.shape[1]
    drawn = np.random.default_rng([options.seed, count]).multinomial(count, np.full(count, 1 / count), size=replicates)
    return (drawn / count - 1 / count) @ series.by_solution.T


def _fit_row(
    data: TaskRun, method: str, fitted: FittedCurve, points: int, asymptote: float, options: ForecastingOptions
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
    noise = residuals[_draw(len(residuals), 1, options, "last value")]  # (B, 1)
    return Forecaster(
        point=lambda t: np.full(len(t), value),
        replicates=lambda t: value + np.repeat(noise, len(t), axis=1),
        residuals=residuals,
        points=own_curve.points,
    )


def methods(data: TaskRun, options: ForecastingOptions) -> dict[tuple[str, str], Forecaster]:
    """(method, kind) -> the fitted method. A link other than the linear one is part of the method's name."""
    own_curve = direct("power", data, COMPUTE_ONLY, options)
    baselines = [name for name in BASELINE_SERIES if name in data.statistics]
    followed = {name: follow(name, data, options) for name in dict.fromkeys([*options.proxies, *baselines])}
    found = {}
    for link in options.links:
        suffix = "" if link == "linear" else f", {link} link"
        linked = {
            name: through_link(name, link, curve, data, name + suffix, options) for name, curve in followed.items()
        }
        if len(options.proxies) > 1:
            found[POOLED + suffix, "proxy"] = pooled({name: linked[name] for name in options.proxies})
        kinds = {name: "baseline" if name in BASELINE_SERIES else "proxy" for name in linked}
        found |= {(name + suffix, kinds[name]): made for name, made in linked.items()}
    return found | {
        (COMPUTE_ONLY, "baseline"): own_curve,
        (LAST_VALUE, "baseline"): last_value(data, own_curve, options),
        ("logistic", "control"): direct("logistic", data, "logistic", options),
        ("constant", "control"): direct("constant", data, "constant", options),
    }


def interval(
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


FIRST = 0.25  # share of the fitted checkpoints, without which forecasts are made once more


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


def _noise(made: Forecaster, data: TaskRun, point: Array, options: ForecastingOptions) -> Array:
    """Noise of measurements to come -> (B, T): drawn residuals, and what they lack of the noise of a share of n."""
    drawn = made.residuals[_draw(len(made.residuals), len(point), options, "to come")]
    if data.problems is None or not data.is_share:
        return drawn
    share = np.clip(point, 0, 1)
    lacking = np.maximum(share * (1 - share) / data.problems - made.residuals.var(), 0)
    return drawn + np.sqrt(lacking) * np.random.default_rng(options.seed).standard_normal(drawn.shape)


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
    residuals = _inflated(y - fitted, LINK_PARAMETERS if line else 1, options)
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
