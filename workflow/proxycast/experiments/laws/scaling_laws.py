"""Scaling laws from small models to the target: of a loss over compute, or over N and D, and on to a metric.

Two plain laws extrapolate one loss, `2_param` and `3_param`: L(C) = A C^-alpha + E, E = 0 in the first. A and E are
not negative and alpha lies in `EXPONENTS`; least squares. For given alpha the best A and E follow in closed form, so a
grid over alpha finds the global best, and finer grids around it refine it (variable projection: Golub and Pereyra,
1973).

The eight laws of DataDecide (arXiv 2504.11393, section 3.2 and appendix C) end in a metric, a share. As released they
are procedures, not only formulas: Huber's loss of log residuals, minimised by L-BFGS-B from fixed starts, then scipy's
`curve_fit` of a sigmoid from fixed starts. Both steps follow allenai/DataDecide and allenai/OLMo-ladder, because where
there are fewer sizes than parameters the start decides what comes out. That includes the gradient of `3_param-1_step`,
in which two entries are exchanged; with the right one the law would be another. A fit that ends early, or at a bound,
says so in its note. Light to import: plans read how many sizes a law needs.

Shapes: B data sets, n points, G candidates for alpha.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from proxycast.experiments.arrays import Array

EXPONENTS = (0.001, 3.0)  # of the plain laws
GRID = 200  # candidates for alpha at first
ZOOMS = 14  # each of them makes the grid four times finer, so that alpha is known to nine digits
HUBER = 1e-3  # log residuals beyond it count linearly
SMALLEST = 1e-6  # least value of a one-step law, whose logarithm is taken
LINK_POINTS = 4  # parameters of the sigmoid


class Law(NamedTuple):
    """What a scaling law fits, and from what."""

    form: str  # of `FORMS`, or "plain" and "plain_without_floor"
    sizes: int  # the fewest that it is fitted to
    parameters: int  # of the step that is fitted to the ends of runs
    steps: int = 2  # 0: the loss itself is predicted; 1: the metric is fitted directly; 2: a sigmoid leads on to it
    helper_point: bool = False  # a perfect metric at a loss of 0
    last_share: float = 0.9  # share of a run's last checkpoints that the sigmoid is fitted to


LAWS: Mapping[str, Law] = {
    "2_param": Law("plain_without_floor", 2, 2, steps=0),
    "3_param": Law("plain", 3, 3, steps=0),
    "2_param-default": Law("power_without_floor", 2, 2),
    "3_param-default": Law("power", 3, 3),
    "5_param-ai2": Law("chinchilla", 4, 5),
    "3_param-1_step": Law("power_in_sigmoid", 4, 7, steps=1),
    "5_param-1_step-ai2": Law("chinchilla_in_sigmoid", 4, 7, steps=1),
    "3_param-default-helper_points": Law("power", 3, 3, helper_point=True),
    "3_param-default-step2=0.5": Law("power", 3, 3, last_share=0.5),
    "3_param-default-helper_points-step2=0.5": Law("power", 3, 3, helper_point=True, last_share=0.5),
}


class Runs(NamedTuple):
    """One run at each of several sizes of one corpus, the smallest first, each with its checkpoints in order.

    `loss` falls as models get better and is positive; `metric` is a share, or None if it was not measured.
    """

    parameters: Array  # (sizes,)
    tokens: Array  # (sizes,): at the end
    loss: Sequence[Array]  # of each size (checkpoints,)
    metric: Sequence[Array] | None


class Fit(NamedTuple):
    """A fitted law: its parameters by name, what it predicts at the target, and how far to trust it."""

    parameters: Mapping[str, float]
    residual: float  # root mean square of the fitted points: of the loss or, in one step, of the metric
    predicted: float  # loss at the target or, of laws that end in a metric, the metric; NaN: not to be fitted
    points: int  # to which the first step was fitted
    note: str


# The plain laws, for many data sets at once


class PlainFits(NamedTuple):
    """B laws L(C) = A (C / C_largest)^-alpha + E, where C_largest is each data set's own."""

    amplitude: Array  # (B,)
    alpha: Array  # (B,)
    floor: Array  # (B,)
    largest: Array  # (B,)

    def __call__(self, compute: Array) -> Array:
        """compute (B, T) -> loss (B, T)."""
        relative = compute / self.largest[:, None]
        return self.amplitude[:, None] * relative ** -self.alpha[:, None] + self.floor[:, None]


def fit_plain(compute: Array, loss: Array, floor: bool) -> PlainFits:
    """Least squares of the plain law over compute and loss (B, n); without `floor`, E is 0."""
    largest = compute.max(1)
    log_c = np.log(compute / largest[:, None])
    alpha = np.geomspace(*EXPONENTS, GRID)[None].repeat(len(loss), axis=0)
    width = np.log(EXPONENTS[1] / EXPONENTS[0]) / (GRID - 1)
    offsets = np.linspace(-1, 1, 9)
    for _ in range(ZOOMS):
        best = _profile(log_c, loss, alpha, floor)[2].argmin(1)
        centre = np.take_along_axis(alpha, best[:, None], 1)
        alpha = np.clip(centre * np.exp(offsets * width), *EXPONENTS)
        width /= 4
    amplitude, lowest, squares = _profile(log_c, loss, alpha, floor)
    at = squares.argmin(1)[:, None]
    amplitude, alpha, lowest = (np.take_along_axis(values, at, 1)[:, 0] for values in (amplitude, alpha, lowest))
    return PlainFits(amplitude, alpha, lowest, largest)


def _profile(log_c: Array, loss: Array, alpha: Array, floor: bool) -> tuple[Array, Array, Array]:
    """The best A >= 0 and E >= 0 for each alpha (B, G), and the sum of squares that is left."""
    g = np.exp(-alpha[:, :, None] * log_c[:, None])  # (B, G, n)
    y = loss[:, None]
    alone = np.maximum((g * y).sum(-1) / (g**2).sum(-1), 0)  # A where E is 0
    if not floor:
        return alone, np.zeros_like(alone), ((y - alone[..., None] * g) ** 2).sum(-1)
    mean_g, mean_y = g.mean(-1, keepdims=True), y.mean(-1, keepdims=True)
    variance = ((g - mean_g) ** 2).sum(-1)
    covariance = ((g - mean_g) * (y - mean_y)).sum(-1)
    slope = np.divide(covariance, variance, out=np.zeros_like(covariance), where=variance > 0)
    slope = np.maximum(slope, 0)
    lowest = mean_y[..., 0] - slope * mean_g[..., 0]
    slope, lowest = np.where(lowest < 0, alone, slope), np.maximum(lowest, 0)
    return slope, lowest, ((y - slope[..., None] * g - lowest[..., None]) ** 2).sum(-1)


def fit_plain_laws(law: Law, compute: Array, loss: Array, target: float) -> list[Fit]:
    """A plain law for each row of compute and loss (B, n), predicted at `target` FLOPs."""
    floor = law.form == "plain"
    fitted = fit_plain(compute, loss, floor)
    residual = np.sqrt(((fitted(compute) - loss) ** 2).mean(1))
    predicted = fitted(np.full((len(loss), 1), target))[:, 0]
    # A in the unit of the loss at one FLOP, as the laws are written.
    amplitude = fitted.amplitude * fitted.largest**fitted.alpha
    fits = []
    for a, alpha, e, rms, at_target, relative in zip(
        amplitude, fitted.alpha, fitted.floor, residual, predicted, fitted.amplitude, strict=True
    ):
        ends = [f"alpha at its bound {end:g}" for end in EXPONENTS if np.isclose(alpha, end, rtol=1e-6) and relative]
        if floor and e == 0:
            ends.append("E at its bound 0")
        if relative == 0:
            ends.append("A at its bound 0: no gain from compute")
        values = {"A": a, "alpha": alpha} | ({"E": e} if floor else {})
        fits.append(Fit(values, rms, at_target, compute.shape[1], "; ".join(ends)))
    return fits


# The laws of DataDecide


class Form(NamedTuple):
    """A formula of N and D (2, n), its gradient (k, n), and where to look for its k parameters, in this order."""

    names: tuple[str, ...]
    value: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], Array]
    starts: tuple[tuple[float, ...], ...]
    bounds: tuple[tuple[float | None, float | None], ...]


def _compute(nd: Array) -> Array:
    return 6 * nd[0] * nd[1]


def _power(nd: Array, p: Array) -> Array:
    return np.exp(p[0]) / _compute(nd) ** p[1] + (p[2] if len(p) == 3 else 0)


def _power_gradient(nd: Array, p: Array) -> Array:
    compute = _compute(nd)
    gain = np.exp(p[0]) / compute ** p[1]
    return np.stack([gain, -gain * np.log(compute), np.ones_like(gain)][: len(p)])


def _chinchilla(nd: Array, p: Array) -> Array:
    return np.exp(p[0] - p[2] * np.log(nd[0])) + np.exp(p[1] - p[3] * np.log(nd[1])) + p[4]


def _chinchilla_gradient(nd: Array, p: Array) -> Array:
    (log_n, log_d) = np.log(nd)
    of_n, of_d = np.exp(p[0] - p[2] * log_n), np.exp(p[1] - p[3] * log_d)
    return np.stack([of_n, of_d, -of_n * log_n, -of_d * log_d, np.ones_like(of_n)])


def sigmoid(x: Array, a: float, x0: float, k: float, b: float) -> Array:
    """a / (1 + exp(-k (x - x0))) + b."""
    return a / (1 + np.exp(-k * (x - x0))) + b


def _power_in_sigmoid(nd: Array, p: Array) -> Array:
    return np.maximum(SMALLEST, sigmoid(_power(nd, p[:3]), p[3], p[5], p[4], p[6]))


def _power_in_sigmoid_gradient(nd: Array, p: Array) -> Array:
    """As released: the entries of k and of x0 are exchanged, and that of x0 has the sign of the loss's."""
    x = _power(nd, p[:3])
    exp = np.exp(-p[4] * (x - p[5]))
    by_x = p[3] * p[4] * exp / (1 + exp) ** 2
    by_k = p[3] * (x - p[5]) * exp / (1 + exp) ** 2
    return np.stack([*(by_x * _power_gradient(nd, p[:3])), 1 / (1 + exp), by_x, by_k, np.ones_like(x)])


def _chinchilla_in_sigmoid(nd: Array, p: Array) -> Array:
    return np.maximum(SMALLEST, sigmoid(_chinchilla(nd, p[:5]), p[5], 0, 1, p[6]))


def _chinchilla_in_sigmoid_gradient(nd: Array, p: Array) -> Array:
    share = sigmoid(_chinchilla(nd, p[:5]), 1, 0, 1, 0)
    by_x = p[5] * share * (1 - share)
    return np.stack([*(by_x * _chinchilla_gradient(nd, p[:5])), share, np.ones_like(share)])


POSITIVE, FREE = (0, None), (None, None)
SIGMOID_STARTS = (
    *((-0.7, 0.6, 7.0, 1.0), (-0.7, 1.4, 3.2, 1.3), (-2.7, 1.4, 3.2, 1.3), (-0.09, 0.6, 6.5, 0.1)),
    *((-0.64, -0.41, 12.7, 1.05), (-2.15771768e-02, 1.39273020, -58.5129498, 0.454084320)),
    (-1.60006552, 1.36001561, -495.252012, 0.410217043),
)
IN_SIGMOID = ("link_a", "link_k", "link_x0", "link_b")
FORMS: Mapping[str, Form] = {
    "power": Form(("a", "alpha", "E"), _power, _power_gradient, ((10, 0.4, 0.5),), (POSITIVE, (0, 1), POSITIVE)),
    "power_without_floor": Form(("a", "alpha"), _power, _power_gradient, ((10, 0.4),), (POSITIVE, (0, 1))),
    "chinchilla": Form(
        ("a", "b", "alpha", "beta", "E"), _chinchilla, _chinchilla_gradient, ((3, 6, 0.1, 0.2, 1),), (POSITIVE,) * 5
    ),
    "power_in_sigmoid": Form(
        ("a", "alpha", "E", *IN_SIGMOID),
        _power_in_sigmoid,
        _power_in_sigmoid_gradient,
        tuple((10, 0.4, 0.5, *start) for start in SIGMOID_STARTS),
        (FREE,) * 7,
    ),
    "chinchilla_in_sigmoid": Form(
        ("a", "b", "alpha", "beta", "E", "link_a", "link_b"),
        _chinchilla_in_sigmoid,
        _chinchilla_in_sigmoid_gradient,
        ((3, 5, 0.2, 0.3, 0, -1, 1),),
        (*(POSITIVE,) * 4, FREE, (-1, 0), (0, 1)),
    ),
}


class Found(NamedTuple):
    """Parameters that a search ended at, and what is to be said of it."""

    values: Array
    notes: tuple[str, ...]


def fit_huber(form: Form, nd: Array, y: Array) -> Found:
    """Parameters of `form` that minimise Huber's loss of log residuals over nd (2, n) and y (n,).

    Several starts are tried until the inverse Hessian that L-BFGS-B ends with is not huge, as released.
    """
    from scipy.optimize import minimize

    log_y = np.log(y)

    def loss(p: Array) -> tuple[float, Array]:
        value = form.value(nd, p)
        log_residual = np.log(value) - log_y
        size = np.abs(log_residual)
        total = np.where(size < HUBER, log_residual**2 / 2, HUBER * (size - HUBER / 2)).sum()
        return total, (form.gradient(nd, p) * np.clip(log_residual, -HUBER, HUBER) / value).sum(1)

    options = {"ftol": 0.0, "gtol": 1e-10, "maxiter": 1_000_000}
    with np.errstate(all="ignore"):
        for start in form.starts:
            result = minimize(loss, start, jac=True, bounds=form.bounds, tol=0.0, method="L-BFGS-B", options=options)
            if len(form.starts) == 1 or not result.hess_inv.todense().sum() > 1e6:
                break
    notes = [
        f"{name} at its bound {end:g}"
        for name, value, bounds in zip(form.names, result.x, form.bounds, strict=True)
        for end in bounds
        if end is not None and np.isclose(value, end, atol=1e-12)
    ]
    slope = np.abs(loss(result.x)[1]).max()
    if not slope < 1e-4 and not notes:
        notes.append("the search ended before an optimum")
    return Found(result.x, tuple(notes))


def fit_sigmoid(x: Array, y: Array, helper_point: bool) -> Found:
    """The sigmoid from loss x (n,) to metric y (n,) by `curve_fit`, from the released starts until one converges.

    `RuntimeError` if none does. Amplitude within -1 to 0, midpoint and slope positive, lower end within 0 to 1; starts
    after the first have no bounds.
    """
    from scipy.optimize import OptimizeWarning, curve_fit

    if helper_point:
        x, y = np.append(x, 0.0), np.append(y, 1.0)
    bounds, free = ([-1, 0, 0, 0], [0, np.inf, np.inf, 1]), (-np.inf, np.inf)
    for number, start in enumerate(((-1.0, 0.9, 3.0, 1.0), *SIGMOID_STARTS)):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error", OptimizeWarning)
            try:
                within = free if number else bounds
                values, _ = curve_fit(sigmoid, x, y, p0=start, bounds=within, maxfev=20_000)
            except (RuntimeError, OptimizeWarning):
                continue
        ends = [("a", values[0], -1), ("a", values[0], 0), ("b", values[3], 0), ("b", values[3], 1)]
        notes = [f"link_{n} at its bound {e}" for n, value, e in ends if not number and np.isclose(value, e, atol=1e-9)]
        return Found(values, tuple(notes))
    raise RuntimeError("the sigmoid from the loss to the metric converged from no start")


def last_tenth(values: Array) -> float:
    """The mean of the last tenth of a run's checkpoints, at least of its last one."""
    return float(values[int(np.ceil(0.9 * len(values))) if len(values) > 9 else -1 :].mean())


def last_part(values: Array, share: float) -> Array:
    """The last `share` of a run's checkpoints, as released: the first ceil((1 - share) n) are left out."""
    return values[int(np.ceil((1 - share) * len(values))) :]


class DataDecideFits:
    """The laws of DataDecide fitted to `runs` of one corpus; steps that several laws share are fitted once."""

    def __init__(self, runs: Runs, target: Array):
        """`target`: N and D of the target (2,)."""
        self.runs, self.target = runs, np.asarray(target, float)[:, None]
        self._first_step, self._sigmoid = cache(self._fit_first_step), cache(self._fit_sigmoid)

    def fit(self, law: Law) -> Fit:
        """`law` at the target. A law that cannot be fitted predicts NaN, and its note says why."""
        runs = self.runs
        if runs.metric is None:
            return Fit({}, np.nan, np.nan, 0, "the metric of the truth was not measured at these sizes")
        try:
            return self._two_steps(law) if law.steps == 2 else self._one_step(law)
        except (RuntimeError, ValueError) as error:
            return Fit({}, np.nan, np.nan, len(runs.parameters), f"not fitted: {error}")

    def _fit_first_step(self, name: str, of_metric: bool) -> tuple[Found, Array]:
        series = self.runs.metric if of_metric else self.runs.loss
        y = np.array([last_tenth(values) for values in series])
        if not (y > 0).all():
            raise ValueError(f"found {y.min():.3g}; the logarithm of every value is taken, so all must be positive")
        nd = np.stack([self.runs.parameters, self.runs.tokens])
        found = fit_huber(FORMS[name], nd, y)
        return found, FORMS[name].value(nd, found.values) - y

    def _fit_sigmoid(self, helper_point: bool, last_share: float) -> Found:
        x, y = (
            np.concatenate([last_part(values, last_share) for values in series])
            for series in (self.runs.loss, self.runs.metric)
        )
        if len(x) < LINK_POINTS:
            raise ValueError(f"found {len(x)} checkpoints for the sigmoid; it needs {LINK_POINTS}")
        return fit_sigmoid(x, y, helper_point)

    def _told(self, law: Law, found: Found, residual: Array, predicted: float, more: Mapping, notes: Sequence) -> Fit:
        form, sizes = FORMS[law.form], len(self.runs.parameters)
        values = dict(zip(form.names, map(float, found.values), strict=True))
        # A and B as the laws are written; the search is over their logarithms.
        values = {
            name.upper() if name in "ab" else name: np.exp(v) if name in "ab" else v for name, v in values.items()
        }
        few = [f"{law.parameters} parameters, {sizes} sizes: not unique"] if sizes < law.parameters else []
        note = "; ".join([*few, *found.notes, *notes])
        return Fit(values | more, float(np.sqrt((residual**2).mean())), predicted, sizes, note)

    def _one_step(self, law: Law) -> Fit:
        found, residual = self._first_step(law.form, True)
        predicted = float(FORMS[law.form].value(self.target, found.values)[0])
        return self._told(law, found, residual, predicted, {}, ())

    def _two_steps(self, law: Law) -> Fit:
        found, residual = self._first_step(law.form, False)
        link = self._sigmoid(law.helper_point, law.last_share)
        with np.errstate(over="ignore"):
            predicted = float(sigmoid(FORMS[law.form].value(self.target, found.values), *link.values)[0])
        of_link = dict(zip(("link_a", "link_x0", "link_k", "link_b"), map(float, link.values), strict=True))
        return self._told(law, found, residual, predicted, of_link, link.notes)
