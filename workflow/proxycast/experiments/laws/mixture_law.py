"""The value of a mixture of sources, from the values of other mixtures: a law, what it is compared with, proposals.

The law of one task is log-linear in the ratios (data mixing laws, arXiv 2403.16952; Olmix, arXiv 2602.12237). Over one
such law the best mixture is always one at a corner of those seen. Over the mean of several it may lie between them.

Shapes: n mixtures that are fitted, m others, K sources, T tasks. Values are such that lower is better; a prediction is
the mean over tasks.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.spatial.distance import cdist

from proxycast.experiments import bootstrap
from proxycast.experiments.arrays import DECIMALS, Array

LAW, TREES, NEAREST, MEAN = "log_linear", "trees", "nearest", "mean"
FLOORS = (0.02, 0.1, 0.3, 1.0, 3.0, 30.0)  # below the least value, in ranges of the values; at 30 the law is linear
RIDGES = np.logspace(-5, 3, 17)  # in mean squared singular values of the ratios
LARGEST_EXPONENT = 50.0  # far beyond every value seen: such a mixture is never proposed
ONE_BY_ONE = 50  # mixtures up to which each is held out alone
PARTS, REPEATS = 10, 3
CANDIDATES = 20_000
PROPOSALS = 3  # within the mixtures seen, and as many around them
APART = 0.05  # share of the tokens by which proposals differ at least, from each other and from mixtures seen
REACH = 0.25  # share of the tokens by which a proposal differs from the nearest mixture at most
STREAM = 17  # of random numbers; those of rankings are in `candidate_order`


class Fitted(Protocol):
    """What every method makes of mixtures and their values."""

    def predict(self, ratios: Array) -> Array:
        """(m, K) -> (m,)."""


class LogLinear(NamedTuple):
    """Fitted laws of T tasks: value = floor + exp(a + (r - centre) @ t)."""

    floor: Array  # (T,)
    a: Array  # (T,)
    t: Array  # (K, T)
    centre: Array  # (K,)

    def predict(self, ratios: Array) -> Array:
        """The mean over tasks of the laws' values at `ratios` (m, K) -> (m,)."""
        exponents = np.minimum(self.a + (ratios - self.centre) @ self.t, LARGEST_EXPONENT)
        return (self.floor + np.exp(exponents)).mean(1)


def fit_log_linear(ratios: Array, values: Array) -> LogLinear:
    """The laws of `values` (n, T) at `ratios` (n, K).

    For each task and floor the logarithm of what exceeds the floor is fitted by ridge regression. Floor and ridge are
    those of the least squared error of values left out one by one, which a ridge has in closed form (the residual over
    1 - leverage).
    """
    centre = ratios.mean(0)
    u, s, v = np.linalg.svd(ratios - centre, full_matrices=False)
    ridges = RIDGES * max((s**2).mean(), np.finfo(float).tiny)
    shrinkage = s**2 / (s**2 + ridges[:, None])  # (L, r)
    leverage = 1 / len(ratios) + shrinkage @ (u**2).T  # (L, n)
    laws = [_one_law(u, s, v, shrinkage, leverage, ridges, of_task) for of_task in values.T]
    floors, intercepts, slopes = zip(*laws)
    return LogLinear(np.array(floors), np.array(intercepts), np.stack(slopes, 1), centre)


def _one_law(
    u: Array, s: Array, v: Array, shrinkage: Array, leverage: Array, ridges: Array, values: Array
) -> tuple[float, float, Array]:
    """Floor, a and t (K,) of one task's `values` (n,), from the decomposition of the centred ratios."""
    spread = np.ptp(values)
    if spread == 0:
        return values[0] - 1, 0.0, np.zeros(v.shape[1])
    best = (np.inf, 0.0, 0.0, np.zeros(v.shape[1]))
    for floor in values.min() - spread * np.array(FLOORS):
        logs = np.log(values - floor)
        a = logs.mean()
        parts = u.T @ (logs - a)  # (r,)
        residual = (logs - a) - (shrinkage * parts) @ u.T  # (L, n)
        with np.errstate(divide="ignore", invalid="ignore"):
            left_out = logs - residual / (1 - leverage)
        errors = ((floor + np.exp(np.minimum(left_out, LARGEST_EXPONENT)) - values) ** 2).mean(1)
        errors[~np.isfinite(errors) | (leverage > 1 - 1e-9).any(1)] = np.inf
        at = int(errors.argmin())
        if errors[at] < best[0]:
            best = (errors[at], floor, a, v.T @ (s / (s**2 + ridges[at]) * parts))
    return best[1:]


class Trees:
    """Gradient-boosted trees of the mean over tasks."""

    def __init__(self, ratios: Array, values: Array):
        from sklearn.ensemble import GradientBoostingRegressor  # slow to import

        trees = GradientBoostingRegressor(n_estimators=100, max_depth=2, min_samples_leaf=2, random_state=0)
        self.predict = trees.fit(ratios, values.mean(1)).predict


class Nearest:
    """The value of the nearest mixture, the mean where several are."""

    def __init__(self, ratios: Array, values: Array):
        self.ratios, self.values = ratios, values.mean(1)

    def predict(self, ratios: Array) -> Array:
        apart = distances(ratios, self.ratios)
        nearest = apart <= apart.min(1, keepdims=True) + 10.0**-DECIMALS
        return nearest @ self.values / nearest.sum(1)


class Mean:
    """The mean of all mixtures."""

    def __init__(self, ratios: Array, values: Array):
        self.value = values.mean()

    def predict(self, ratios: Array) -> Array:
        return np.full(len(ratios), self.value)


METHODS = {LAW: fit_log_linear, TREES: Trees, NEAREST: Nearest, MEAN: Mean}


def distances(ratios: Array, others: Array) -> Array:
    """Share of the tokens that differs between mixtures (m, K) and (n, K) -> (m, n): half the sum of differences."""
    return cdist(ratios, others, "cityblock") / 2


def parts_of(n: int, seed: int) -> list[list[NDArray[np.intp]]]:
    """The mixtures held out together, one list of parts for each repetition."""
    if n <= ONE_BY_ONE:
        return [[np.array([i]) for i in range(n)]]
    rng = np.random.default_rng(seed)
    return [np.array_split(rng.permutation(n), PARTS) for _ in range(REPEATS)]


def held_out(method: str, ratios: Array, values: Array, seed: int) -> tuple[Array, list[Fitted]]:
    """Predictions (n,) of mixtures held out, means over the repetitions; the fit without each of them, of the first."""
    n = len(ratios)
    predicted, without = [], [None] * n
    for repeat, parts in enumerate(parts_of(n, seed)):
        predicted.append(np.empty(n))
        for part in parts:
            rest = np.setdiff1d(np.arange(n), part)
            fitted = METHODS[method](ratios[rest], values[rest])
            predicted[-1][part] = fitted.predict(ratios[part])
            for i in part if repeat == 0 else ():
                without[i] = fitted
    return np.mean(predicted, axis=0), without


class Candidates(NamedTuple):
    """Mixtures to choose from (C, K), and whether each is a mean of mixtures seen."""

    ratios: Array
    inside: NDArray[np.bool_]


def candidates(law: LogLinear, ratios: Array, seed: int) -> Candidates:
    """Random mixtures: half of them means of three of those seen, half drawn around one of those seen.

    What they start from is drawn the more often the better the law predicts it. Those around come from Dirichlet
    distributions whose mean is a mixture seen, with a little of the mean of all so that a source that it lacks may come
    in. Those more than REACH away from the nearest one seen are left out, and of all those less than APART away.
    """
    rng, n = bootstrap.stream(seed, STREAM), CANDIDATES // 2
    best_first = ratios[np.argsort(law.predict(ratios), kind="stable")]

    def start(shape: tuple[int, ...]) -> Array:
        return best_first[(len(ratios) * rng.random(shape) ** 3).astype(int)]

    between = np.einsum("cp,cpk->ck", rng.dirichlet(np.ones(3), n), start((n, 3)))
    centres = 0.98 * start((n,)) + 0.02 * ratios.mean(0)
    drawn = rng.standard_gamma(centres * rng.choice([10, 30, 100], (n, 1)))
    around = drawn / drawn.sum(1, keepdims=True)
    every, inside = np.concatenate([between, around]), np.arange(2 * n) < n
    apart = distances(every, ratios).min(1)
    kept = (apart >= APART) & (inside | (apart <= REACH))
    return Candidates(every[kept], inside[kept])


def is_inside(mixture: Array, ratios: Array) -> bool:
    """Whether `mixture` (K,) is a mean, with any weights, of the mixtures `ratios` (n, K)."""
    _, residual = nnls(np.vstack([ratios.T, np.ones(len(ratios))]), np.append(mixture, 1.0))
    return residual < 1e-6


def proposals(law: LogLinear, ratios: Array, seed: int) -> Candidates:
    """The mixtures that the law predicts to be best, lowest value first: PROPOSALS within those seen, as many around.

    No two of a kind are nearer than APART before they are `rounded`.
    """
    drawn = candidates(law, ratios, seed)
    predicted = law.predict(drawn.ratios)
    chosen: list[int] = []
    for inside in (True, False):
        own: list[int] = []
        of_kind = np.flatnonzero(drawn.inside == inside)
        for at in of_kind[np.argsort(predicted[of_kind], kind="stable")]:
            far = not own or distances(drawn.ratios[[at]], drawn.ratios[own]).min() >= APART
            if far and (inside or not is_inside(drawn.ratios[at], ratios)):
                own.append(int(at))
            if len(own) == PROPOSALS:
                break
        chosen += own
    mixtures = rounded(drawn.ratios[chosen])
    best_first = np.argsort(law.predict(mixtures), kind="stable")
    return Candidates(mixtures[best_first], drawn.inside[chosen][best_first])


def rounded(ratios: Array) -> Array:
    """`ratios` (m, K) in whole thousandths that sum to 1; the largest of each row takes the rest."""
    whole = np.round(ratios * 1000)
    largest = whole.argmax(1)
    whole[np.arange(len(whole)), largest] += 1000 - whole.sum(1)
    return whole / 1000


def prediction_interval(
    fits: list[Fitted], residuals: Array, ratios: Array, confidence: float
) -> tuple[Array, Array] | None:
    """Ends (m,), (m,) of the intervals of the values at `ratios` (m, K): jackknife+, or CV+ where parts were held out.

    `fits`: that without each of the n mixtures, which it missed by `residuals` (n,). At confidence 1 - a the interval
    of a mixture drawn like the others covers its value with a probability of at least 1 - 2 a (Barber, Candes, Ramdas
    and Tibshirani, Predictive inference with the jackknife+, 2021, theorem 1). None for too few mixtures
    (`fewest_for_interval`).
    """
    n, missed = len(fits), np.abs(residuals)[:, None]
    if n < fewest_for_interval(confidence):
        return None
    predicted = np.stack([fitted.predict(ratios) for fitted in fits])  # (n, m)
    place = int(np.ceil(confidence * (n + 1) - 1e-9))
    return np.sort(predicted - missed, axis=0)[n - place], np.sort(predicted + missed, axis=0)[place - 1]


def fewest_for_interval(confidence: float) -> int:
    """Mixtures from which on jackknife+ has an interval: 19 at 95 %."""
    return int(np.ceil(confidence / (1 - confidence) - 1e-9))
