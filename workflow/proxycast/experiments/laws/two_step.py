"""The two-step law of OLMo's ladder: from N and D to a task's loss, and from the loss to its accuracy.

Step 1 is L(N, D) = A / N^alpha + B / D^beta + E, fitted to the ends of runs: the mean loss of the last checkpoints, at
the tokens of the last. Step 2 is a sigmoid from loss to accuracy, fitted to the checkpoints of all runs but the first
tenth of each, both values as trailing means. Both as in Bhagia et al., arXiv 2412.04403, sections 3.1 and 3.2, and as
allenai/OLMo-ladder fits them: a Huber loss of log L by L-BFGS-B with A and B as their logarithms, then least squares
with a point of no loss, whose accuracy is the greatest. Their single starts are joined by others, from the data: those
of the ladder all end in the same place, and losses of another unit or smaller models need them.

Any statistic can be the loss that is positive and falls towards a floor of at least 0 (`as_loss`). Shapes: R runs, n
checkpoints.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from math import ceil

import numpy as np

from proxycast.experiments.arrays import Array

FEWEST_RUNS, FEWEST_SIZES, FEWEST_LENGTHS = 6, 3, 3  # step 1 has five parameters, two of them of N and two of D
COLLINEAR = 0.999  # squared correlation of log N and log D, above which A / N^alpha is not told from B / D^beta
LAST, LAST_SHARE = 5, 8  # checkpoints in a mean: the published number, but no more than an eighth of a run's
SKIPPED = 0.1  # share of a run's checkpoints that step 2 leaves out, the first
HUBER = 1e-3  # of log L: where squares end
AT_BOUND = 1e-6


@dataclass(frozen=True)
class LadderRun:
    """What is known of a run: its checkpoints in order, each with a loss and an accuracy."""

    name: str
    parameters: float  # N
    tokens: Array  # (n,), D
    loss: Array  # (n,), above 0
    accuracy: Array  # (n,), 0 to 1

    @property
    def last(self) -> int:
        """How many checkpoints are put into a mean."""
        return min(LAST, ceil(len(self.tokens) / LAST_SHARE))


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) = exp(log_a - alpha log N) + exp(log_b - beta log D) + floor; no coefficient is below 0."""

    log_a: float
    log_b: float
    alpha: float
    beta: float
    floor: float

    def __call__(self, parameters: Array, tokens: Array) -> Array:
        of_size = np.exp(self.log_a - self.alpha * np.log(parameters))
        return of_size + np.exp(self.log_b - self.beta * np.log(tokens)) + self.floor


@dataclass(frozen=True)
class Sigmoid:
    """accuracy(L) = height / (1 + exp(-slope (L - midpoint))) + greatest: -1 <= height <= 0 <= greatest <= 1."""

    height: float
    midpoint: float
    slope: float
    greatest: float

    def __call__(self, loss: Array) -> Array:
        return self.height * (1 + np.tanh(self.slope * (loss - self.midpoint) / 2)) / 2 + self.greatest


@dataclass(frozen=True)
class TwoStepLaw:
    """Both steps, and the runs that they were fitted to."""

    loss: LossLaw
    sigmoid: Sigmoid
    parameters: Array  # (R,), N of the fitted runs
    tokens: Array  # (R,), D at their ends

    def __call__(self, parameters: Array, tokens: Array) -> Array:
        """The accuracy that N parameters reach with D tokens."""
        return self.sigmoid(self.loss(parameters, tokens))

    def extrapolation(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """N, D and N D as multiples of the largest among the fitted runs; above 1 no run went so far."""
        most = self.parameters.max(), self.tokens.max(), (self.parameters * self.tokens).max()
        return parameters / most[0], tokens / most[1], parameters * tokens / most[2]

    @property
    def at_bounds(self) -> list[str]:
        """In words, which coefficients ended at a bound; the point (0, 1) asks for a greatest accuracy of 1."""
        law, link = self.loss, self.sigmoid
        found = {
            "A": law.log_a <= AT_BOUND,
            "B": law.log_b <= AT_BOUND,
            "alpha": law.alpha <= AT_BOUND,
            "beta": law.beta <= AT_BOUND,
            "E": law.floor <= AT_BOUND,
            "height": min(-link.height, link.height + 1) <= AT_BOUND,
            "midpoint": link.midpoint <= AT_BOUND,
            "slope": link.slope <= AT_BOUND,
            "greatest accuracy": link.greatest <= AT_BOUND,
        }
        return [name for name, is_there in found.items() if is_there]


def fit_two_step(runs: Sequence[LadderRun], least: float = 0.0, start: TwoStepLaw | None = None) -> TwoStepLaw:
    """The law of `runs`. `least`: what guessing gets. `start`: a law of nearly the same runs, the only start then."""
    parameters = np.array([run.parameters for run in runs], float)
    tokens = np.array([run.tokens[-1] for run in runs], float)
    ends = np.array([run.loss[-run.last :].mean() for run in runs])
    loss, accuracy = [], []
    for run in runs:
        first = ceil(SKIPPED * len(run.loss))
        loss.append(trailing_mean(run.loss[first:], run.last))
        accuracy.append(trailing_mean(run.accuracy[first:], run.last))
    law = fit_loss_law(parameters, tokens, ends, start and start.loss)
    sigmoid = fit_sigmoid(np.concatenate(loss), np.concatenate(accuracy), least, start and start.sigmoid)
    return TwoStepLaw(law, sigmoid, parameters, tokens)


def lacking(runs: Sequence[tuple[float, float]]) -> str:
    """What a law of runs with these (N, D) lacks, in words; "" where it can be fitted."""
    sizes, lengths = ({values[place] for values in runs} for place in range(2))
    if len(runs) < FEWEST_RUNS:
        return f"{FEWEST_RUNS} runs of known N and D are needed for five parameters, found {len(runs)}"
    if len(sizes) < FEWEST_SIZES:
        return f"{FEWEST_SIZES} sizes are needed, found {len(sizes)}: N = {_told(sizes)}"
    if len(lengths) < FEWEST_LENGTHS:
        return f"{FEWEST_LENGTHS} lengths of training are needed, found {len(lengths)}: D = {_told(lengths)}"
    if np.corrcoef(np.log(np.array(runs, float).T))[0, 1] ** 2 > COLLINEAR:
        return f"D is N^k in all {len(runs)} runs, so what each does is not known; runs of other lengths are needed"
    return ""


def _told(values: set[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in sorted(values))


def as_loss(values: Array, sign: int) -> Array | str:
    """A statistic as a loss, positive and falling to a floor of at least 0, or why it is none.

    `sign`: +1 if the statistic rises as a model gets better. What rises below 1 is taken from 1, what rises below 0
    from 0.
    """
    loss = values
    if sign > 0:
        if values.max() >= 1:
            return "it rises and has no known upper end"
        loss = -values if values.max() < 0 else 1 - values
    return loss if loss.min() > 0 else f"it has values of {values.min():.4g}, and the law is of log L"


def trailing_mean(values: Array, length: int) -> Array:
    """The mean of each value and of up to `length` - 1 before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    firsts = np.maximum(ends - length, 0)
    return (sums[ends] - sums[firsts]) / (ends - firsts)


def fit_loss_law(parameters: Array, tokens: Array, loss: Array, start: LossLaw | None = None) -> LossLaw:
    """Minimise the sum of Huber losses of log L(N, D) - log loss; all arrays (R,)."""
    from scipy.optimize import minimize

    log_n, log_d, log_loss = np.log(parameters), np.log(tokens), np.log(loss)

    def huber(p: Array) -> tuple[float, Array]:
        of_size, of_length = np.exp(p[0] - p[2] * log_n), np.exp(p[1] - p[3] * log_d)
        fitted = of_size + of_length + p[4]
        residuals = np.log(fitted) - log_loss
        size = np.abs(residuals)
        value = np.where(size < HUBER, residuals**2 / 2, HUBER * (size - HUBER / 2)).sum()
        jacobian = np.stack([of_size, of_length, -of_size * log_n, -of_length * log_d, np.ones_like(fitted)])
        return value, jacobian @ (np.clip(residuals, -HUBER, HUBER) / fitted)

    options = {"ftol": 0.0, "gtol": 1e-10, "maxiter": 10**6, "maxfun": 10**6}
    starts = [astuple(start)] if start else [(3.0, 6.0, 0.1, 0.2, 1.0), *_starts(log_n, log_d, loss)]
    # On the way the search may try coefficients that are all 0, and log L is infinite.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = [
            minimize(huber, p, jac=True, bounds=[(0, None)] * 5, method="L-BFGS-B", tol=0.0, options=options)
            for p in starts
        ]
    best = min((made for made in found if np.isfinite(made.fun)), key=lambda made: made.fun)
    return LossLaw(*map(float, best.x))


def _starts(log_n: Array, log_d: Array, loss: Array) -> list[tuple[float, ...]]:
    """Laws through the mean loss, both terms equal: a flat one over a low floor, a steep one over a high floor."""
    found = []
    for exponent, share in ((0.2, 0.3), (0.5, 0.8)):
        floor = share * loss.min()
        log_term = np.log((loss.mean() - floor) / 2)
        found.append(
            (log_term + exponent * log_n.mean(), log_term + exponent * log_d.mean(), exponent, exponent, floor)
        )
    return [(max(p[0], 0.0), max(p[1], 0.0), *p[2:]) for p in found]


def fit_sigmoid(loss: Array, accuracy: Array, least: float = 0.0, start: Sigmoid | None = None) -> Sigmoid:
    """Least squares of accuracy (n,) on loss (n,), with the point (0, 1) among them. `least`: what guessing gets."""
    from scipy.optimize import least_squares

    x, y = np.append(loss, 0.0), np.append(accuracy, 1.0)

    def residuals(p: Array) -> Array:
        return Sigmoid(*p)(x) - y

    def jacobian(p: Array) -> Array:
        share = (1 + np.tanh(p[2] * (x - p[1]) / 2)) / 2
        steep = p[0] * share * (1 - share)
        return np.stack([share, -steep * p[2], steep * (x - p[1]), np.ones_like(x)], axis=1)

    middle, spread = float(np.median(loss)), max(float(loss.std()), 1e-3 * float(loss.mean()))
    of_data = (-0.7, middle, 2 / spread, 0.95), (-0.7, 0.6 * middle, 1 / spread, 0.95)
    starts = [astuple(start)] if start else [(least - 1, 0.9, 3.0, 1.0), *of_data]
    bounds = [-1, 0, 0, 0], [0, np.inf, np.inf, 1]
    tolerances = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-12)
    found = [
        least_squares(residuals, p, jac=jacobian, bounds=bounds, x_scale="jac", max_nfev=2000, **tolerances)
        for p in starts
    ]
    return Sigmoid(*map(float, min(found, key=lambda made: made.cost).x))
