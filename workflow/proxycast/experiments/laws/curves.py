"""Curves over a training run and links from a proxy to the truth, for one data set or all bootstrap replicates at once.

A curve is linear in a and b once its exponent c (and midpoint m) is given. So for every c on a grid the best a and b
follow in closed form, the grid's best point is where a pattern search starts, and each of thousands of replicates costs
a few small sums (variable projection: Golub and Pereyra, 1973). The grid takes the place of several starts: nothing is
random, and no start is the user's to find.

t is relative: tokens as a multiple of those at the cut, so that b is what is left to gain there. Shapes: B data sets, n
checkpoints, T times, G candidates for k non-linear parameters. Light to import: the workflow plans with its options.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxycast.config.experiments.forecasting_options import FitOptions
from proxycast.experiments.arrays import Array

TOLERANCE = 1e-5  # of the logarithms of c and m; below 1e-7 sums of squares tell no difference
SEARCH_ROUNDS = 100  # of the pattern search; about 10 are used
LINK_STEPS = 60  # of Levenberg's method; about 10 are used


def _power(log_t: Array, theta: Array) -> Array:
    return np.exp(-np.exp(theta[..., :1]) * log_t)


def _logistic(log_t: Array, theta: Array) -> Array:
    return (1 - np.tanh(np.exp(theta[..., :1]) * (log_t - theta[..., 1:]) / 2)) / 2


class Curve(NamedTuple):
    """f(t) = a - b g(t; theta), theta = (log c) or (log c, log m)."""

    formula: str
    parameters: int
    basis: Callable[[Array, Array], Array] | None  # log t (n,), theta (..., k) -> g (..., n)
    grid: tuple[int, ...]  # points of the grid, in log c and log m


CURVES = {
    "power": Curve("a - b t^-c", 3, _power, (64,)),
    "logistic": Curve("a - b / (1 + (t / m)^c)", 4, _logistic, (24, 12)),
    "constant": Curve("a", 1, None, ()),
}


@dataclass(frozen=True)
class FittedCurve:
    """`B` curves of one kind."""

    kind: str
    a: Array  # (B,)
    b: Array  # (B,)
    theta: Array  # (B, k)

    def __call__(self, t: Array) -> Array:
        """t (T,) -> (B, T)."""
        if self.kind == "constant":
            return np.repeat(self.a[:, None], len(t), axis=1)
        return self.a[:, None] - self.b[:, None] * CURVES[self.kind].basis(np.log(t), self.theta)

    @property
    def c(self) -> Array | None:
        return np.exp(self.theta[:, 0]) if self.kind != "constant" else None

    @property
    def m(self) -> Array | None:
        return np.exp(self.theta[:, 1]) if self.kind == "logistic" else None


def fit_curve(kind: str, t: Array, y: Array, weights: Array, exponents: tuple[float, float]) -> FittedCurve:
    """Least squares of `kind` over t (n,) for every row of y (B, n), weighted by `weights` (B, n).

    a and b are free; c lies within `exponents`, the midpoint m of a logistic between the first and the last t.
    """
    curve = CURVES[kind]
    if kind == "constant":
        mean = (weights * y).sum(1) / weights.sum(1)
        return FittedCurve(kind, mean, np.zeros_like(mean), np.empty((len(y), 0)))
    log_t = np.log(t)
    bounds = np.array([np.log(exponents), (log_t.min(), log_t.max())][: len(curve.grid)])  # (k, 2)
    axes = [np.linspace(*bound, points) for bound, points in zip(bounds, curve.grid)]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)[None]  # (1, G, k)
    best = _profile(curve.basis(log_t, grid), y, weights).squares.argmin(1)
    theta = _pattern_search(curve, log_t, y, weights, grid[0, best], bounds)
    profile = _profile(curve.basis(log_t, theta[:, None]), y, weights)
    return FittedCurve(kind, profile.a[:, 0], profile.b[:, 0], theta)


class _Profile(NamedTuple):
    """The best a and b of every candidate (B, G), and what is left then: weighted sum of squares."""

    a: Array
    b: Array
    squares: Array


def _profile(g: Array, y: Array, weights: Array) -> _Profile:
    """g (B or 1, G, n), y and weights (B, n)."""
    total = weights.sum(1)[:, None]
    mean_y = (weights * y).sum(1)[:, None] / total
    mean_g = (g @ weights[:, :, None])[..., 0] / total  # (B, G)
    centred = y - mean_y
    covariance = (g @ (weights * centred)[:, :, None])[..., 0]
    variance = ((g - mean_g[..., None]) ** 2 * weights[:, None]).sum(-1)
    # A basis that is the same at all t (one t, or c so small that nothing moves) has no slope to fit.
    slope = np.divide(covariance, variance, out=np.zeros_like(covariance), where=variance > 1e-20 * total)
    squares = (weights * centred**2).sum(1)[:, None] - slope * covariance
    return _Profile(mean_y - slope * mean_g, -slope, squares)


def _pattern_search(curve: Curve, log_t: Array, y: Array, weights: Array, theta: Array, bounds: Array) -> Array:
    """Refine theta (B, k) from the grid's best: a step to the best neighbour, shorter where no farthest one is best."""
    halves = 4 if len(bounds) == 1 else 2  # neighbours on either side
    offsets = np.array(list(product(np.arange(-halves, halves + 1) / halves, repeat=len(bounds))))  # (G, k)
    offsets = offsets[np.argsort(np.abs(offsets).sum(1), kind="stable")]  # of equals the nearest is the best
    spacing = (bounds[:, 1] - bounds[:, 0]) / (np.array(curve.grid) - 1)
    span = np.ones(len(theta))
    active = np.arange(len(theta))
    for _ in range(SEARCH_ROUNDS):  # a sum of squares that is flat to the last digit has no best neighbour
        candidates = theta[active, None] + offsets * span[active, None, None] * spacing
        candidates = np.clip(candidates, bounds[:, 0], bounds[:, 1])  # (B, G, k)
        best = _profile(curve.basis(log_t, candidates), y[active], weights[active]).squares.argmin(1)
        theta[active] = candidates[np.arange(len(active)), best]
        span[active] /= np.where(np.abs(offsets[best]).max(1) < 1, halves, 1)
        active = active[span[active] * spacing.max() > TOLERANCE]
        if not len(active):
            break
    return theta


@dataclass(frozen=True)
class FittedLink:
    """`B` links of one kind: intercept + slope x, or 1 / (1 + exp(-(intercept + slope x)))."""

    kind: Literal["linear", "logistic"]
    intercept: Array  # (B,)
    slope: Array  # (B,)

    def __call__(self, x: Array) -> Array:
        """x (B, T) -> (B, T)."""
        line = self.intercept[:, None] + self.slope[:, None] * x
        return line if self.kind == "linear" else (1 + np.tanh(line / 2)) / 2


LINK_PARAMETERS = 2


def fit_link(kind: str, x: Array, y: Array, weights: Array) -> FittedLink:
    """Least squares of y on x for every row (B, n), weighted. A logistic link needs 0 <= y <= 1."""
    if kind == "linear":
        line = _profile(x[:, None], y, weights)
        return FittedLink(kind, line.a[:, 0], -line.b[:, 0])
    centre, unit = x.mean(1, keepdims=True), x.std(1, keepdims=True)
    u = (x - centre) / np.where(unit > 0, unit, 1)
    inside = np.clip(y, 0.01, 0.99)  # only where to start: the logit of 0 or 1 is infinite
    start = _profile(u[:, None], np.log(inside / (1 - inside)), weights)
    beta = _levenberg(u, y, weights, np.stack([start.a[:, 0], -start.b[:, 0]], axis=1))
    slope = beta[:, 1] / np.where(unit > 0, unit, 1)[:, 0]
    return FittedLink(kind, beta[:, 0] - slope * centre[:, 0], slope)


def _levenberg(u: Array, y: Array, weights: Array, beta: Array) -> Array:
    """Minimise sum w (y - 1 / (1 + exp(-(beta_0 + beta_1 u))))^2 in every row, from beta (B, 2)."""

    def residuals(beta: Array) -> tuple[Array, Array]:
        p = (1 + np.tanh((beta[:, :1] + beta[:, 1:] * u) / 2)) / 2
        return p, y - p

    p, r = residuals(beta)
    squares, damping = (weights * r**2).sum(1), np.full(len(beta), 1e-3)
    for _ in range(LINK_STEPS):
        jacobian = (p * (1 - p))[..., None] * np.stack([np.ones_like(u), u], axis=-1)  # (B, n, 2)
        weighted = jacobian * weights[..., None]
        normal = weighted.transpose(0, 2, 1) @ jacobian
        gradient = (weighted * r[..., None]).sum(1)
        scale = np.trace(normal, axis1=1, axis2=2) / 2 + 1e-300
        damped = normal + (damping * scale + 1e-12 * scale)[:, None, None] * np.eye(2)
        step = np.linalg.solve(damped, gradient[..., None])[..., 0]
        p_new, r_new = residuals(beta + step)
        squares_new = (weights * r_new**2).sum(1)
        better = squares_new <= squares
        beta = np.where(better[:, None], beta + step, beta)
        p, r = np.where(better[:, None], p_new, p), np.where(better[:, None], r_new, r)
        squares, damping = np.where(better, squares_new, squares), np.where(better, damping / 10, damping * 10)
        if (np.abs(step).max(initial=0) < 1e-10) and better.all():
            break
    return beta


def robust_weights(fit: Callable[[Array], Array], y: Array, parameters: int, options: FitOptions) -> Array:
    """Weights (1, n) under which `fit`, least squares with weights (1, n) -> fitted values (1, n), minimises the loss.

    soft_l1 by iterated reweighting, w = 1 / sqrt(1 + z^2): each round lowers the sum of 2 (sqrt(1 + z^2) - 1), because
    that is concave in z^2. The scale in z is taken once, from the fit by least squares.
    """
    weights = np.ones((1, len(y)))
    if options.loss == "least_squares":
        return weights
    fitted = fit(weights)
    deviation = 1.4826 * np.median(np.abs(y - fitted)) * inflation(len(y), parameters)
    # Without noise residuals are as small as the search is fine: no outlier is to be found among those.
    scale = options.loss_scale * max(deviation, 1e-4 * float(np.std(y)), 1e-300)
    for _ in range(100):
        weights = 1 / np.sqrt(1 + ((y - fitted) / scale) ** 2)
        before, fitted = fitted, fit(weights)
        if np.abs(fitted - before).max() < 1e-4 * scale:
            break
    return weights


def inflation(n: int, parameters: int) -> float:
    """What residuals of `n` points are multiplied by to have the noise's variance: a fit takes up some of it."""
    return float(np.sqrt(n / (n - parameters))) if n > parameters else 1.0


def student(n: int, parameters: int, confidence: float) -> float:
    """How much wider than a normal interval Student's is, whose noise is known from `n` points only."""
    from scipy.special import ndtri, stdtrit

    side = (1 + confidence) / 2
    return float(stdtrit(n - parameters, side) / ndtri(side)) if n > parameters else 1.0


def reweighting(weights: Array) -> float:
    """How much more a fit by soft_l1 varies than one with its final `weights` held fixed (1 for equal weights).

    The ratio E w / E psi' of an M-estimator (Huber, Robust Statistics, 1981, section 7.6); psi'(z) = w(z)^3 here.
    """
    return float(weights.mean() / (weights**3).mean())


def has_trend(y: Array, fitted: Array, weights: Array, parameters: int, options: FitOptions) -> bool:
    """Whether the fit of y (n,) is to be used: its BIC (Schwarz, 1978) is below that of the weighted mean of y.

    Never for a constant y; for any other if `without_trend` is "fit".
    """
    if np.ptp(y) <= 1e-12 * np.abs(y).max(initial=0):
        return False
    if options.without_trend == "fit":
        return True
    n, mean = len(y), (weights * y).sum() / weights.sum()
    around_mean = (weights * (y - mean) ** 2).sum()
    left = max((weights * (y - fitted) ** 2).sum(), 1e-24 * around_mean)  # of a fit without a residual
    return n * np.log(left / around_mean) + (parameters - 1) * np.log(n) < 0


def moving_mean(n: int, neighbours: int) -> Array:
    """The matrix (n, n) that replaces each of n values by the mean of itself and `neighbours` on either side."""
    near = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= neighbours
    return near / near.sum(1, keepdims=True)


def block_indices(n: int, length: int, replicates: int, block: int, seed: list[int]) -> NDArray[np.intp]:
    """Positions among n checkpoints, drawn in circular blocks -> (replicates, length) (Politis and Romano, 1992)."""
    starts = np.random.default_rng(seed).integers(n, size=(replicates, -(-length // block)))
    positions = (starts[:, :, None] + np.arange(block)) % n
    return positions.reshape(replicates, starts.shape[1] * block)[:, :length]
