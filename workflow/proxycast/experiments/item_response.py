"""Which solutions tell candidates apart: item response theory for a proxy's values.

The two-parameter logistic model (2PL), by which Fluid Benchmarking (arXiv 2509.11106) picks questions, takes answers
that are right or wrong. A proxy's value on a solution is neither: it is a mean over tokens, often without bounds. So
the linear counterpart of the 2PL is fitted, the congeneric model with normal errors (Jöreskog, Psychometrika 36, 1971;
Mellenbergh, Multivariate Behavioral Research 29, 1994):

    y_ij = mean_j + slope_j theta_i + e_ij,    theta_i ~ N(0, 1),    e_ij ~ N(0, noise_j)

of candidate i on solution j, a task at a time. An item of a 2PL tells of theta with Fisher information a^2 P (1 - P),
which is largest for candidates as able as the solution is hard. Here it is slope^2 / noise, the same at every ability:
one list serves all candidates, which are compared on the same solutions.

Shapes: n candidates, M solutions, ... any number of sets of candidates that are fitted at once.
"""

from typing import NamedTuple

import numpy as np

from proxycast.experiments.arrays import Array

PRIOR = 2.0  # candidates' worth of belief that a solution is all noise: without it few candidates give noise 0
ITERATIONS, TOLERANCE = 200, 1e-5
FEWEST_CANDIDATES = 4  # for a fit


class ItemResponses(NamedTuple):
    """The fitted model of M solutions. A solution that is the same for all candidates has slope and noise 0."""

    means: Array  # (..., M)
    slopes: Array  # (..., M), in the units of the values; most are positive
    noise: Array  # (..., M), variances

    @property
    def precisions(self) -> Array:
        """Weight of a solution's deviation in an estimate of theta, slope / noise -> (..., M)."""
        return np.divide(self.slopes, self.noise, out=np.zeros_like(self.slopes), where=self.noise > 0)

    @property
    def information(self) -> Array:
        """Fisher information on theta, slope^2 / noise -> (..., M); 0 of a solution that ranks upside down.

        A proxy's score is a mean over solutions, where such a solution does harm, however sure it is.
        """
        return np.where(self.slopes > 0, self.slopes * self.precisions, 0)


def fit_responses(values: Array) -> ItemResponses:
    """Fit the model to `values` (..., n, M), higher is better, by EM (Rubin and Thayer, Psychometrika 47, 1982).

    The mode of the posterior, not the maximum of the likelihood: noise_j has an inverse chi-squared prior worth `PRIOR`
    candidates at the variance of the solution's values. Few candidates often have a likelihood whose maximum is at
    noise 0 of one solution (a Heywood case), which would then be the ability itself. Slopes are turned so that their
    sum in standard deviations is positive.
    """
    means, deviations = values.mean(-2), values.std(-2)
    varies = deviations > 1e-9 * np.abs(values).max(-2, initial=0)
    scale = np.where(varies, deviations, 1)
    z = np.where(varies[..., None, :], (values - means[..., None, :]) / scale[..., None, :], 0)
    n, slopes = z.shape[-2], item_rest_correlation(z)
    noise = np.maximum(1 - slopes**2, 0.05)
    for _ in range(ITERATIONS):
        weights = slopes / noise
        variance = 1 / (1 + (slopes * weights).sum(-1, keepdims=True))  # of theta given the values, (..., 1)
        theta = (z @ weights[..., None])[..., 0] * variance  # (..., n)
        with_theta = (theta[..., None, :] @ z)[..., 0, :] / n  # (..., M)
        before, slopes = slopes, with_theta / ((theta**2).mean(-1, keepdims=True) + variance)
        noise = (n * (1 - slopes * with_theta) + PRIOR) / (n + PRIOR)
        if np.abs(slopes - before).max(initial=0) < TOLERANCE:
            break
    slopes = slopes * np.where(slopes.sum(-1, keepdims=True) < 0, -1, 1)
    return ItemResponses(means, np.where(varies, slopes * scale, 0), np.where(varies, noise * scale**2, 0))


def item_rest_correlation(values: Array) -> Array:
    """Pearson's correlation of a solution's `values` (..., n, M) with the mean of the task's others -> (..., M).

    0 where either is constant, and where there is no other solution.
    """
    centred = values - values.mean(-2, keepdims=True)
    rest = centred.sum(-1, keepdims=True) - centred
    spread = np.sqrt((centred**2).sum(-2) * (rest**2).sum(-2))
    tiny = 1e-12 * (1 + np.abs(values).max(initial=0) ** 2)
    return np.divide((centred * rest).sum(-2), spread, out=np.zeros_like(spread), where=spread > tiny)


def filled_means(values: Array, picked: Array, responses: ItemResponses, weights: Array) -> Array:
    """The mean over all solutions that a candidate is expected to have, known on the picked ones alone -> (..., G, n).

    What was not picked is filled in with mean_j + slope_j E[theta_i | picked values] (p-IRT of tinyBenchmarks, Polo et
    al., arXiv 2402.14992). `values` (n, M), `picked` (..., G, M) 1 or 0, `weights` (M,) of the mean. With every
    solution picked it is the mean itself, with none the same for all candidates.
    """
    means, slopes, precisions = (
        part[..., None, :] for part in (responses.means, responses.slopes, responses.precisions)
    )
    aimed = picked * precisions  # (..., G, M)
    distance = aimed @ values.T - (aimed * means).sum(-1, keepdims=True)  # (..., G, n)
    theta = distance / (1 + (aimed * slopes).sum(-1, keepdims=True))
    rest = (1 - picked) * weights
    known = (picked * weights) @ values.T
    total = known + (rest * means).sum(-1, keepdims=True) + theta * (rest * slopes).sum(-1, keepdims=True)
    return total / weights.sum()
