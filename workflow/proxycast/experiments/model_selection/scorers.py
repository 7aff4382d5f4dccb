"""Scorers: estimators that learn from models of known accuracy how to order other models, or other tasks, by proxies.

Each is a scikit-learn estimator. `fit(X, y, groups)` takes one row for each model and task: proxies X (N, P),
downstream scores y (N,), tasks as groups (N,). `predict(X)` takes the rows of one task's models and returns a score
for each, higher is better; only its order within the task has a meaning. All learn from *preferences*: of two models
of a task, which has the higher y. So y counts by its order within a task, however easy or hard the task is.

Features are standardised within a task, over the models that are there: in `predict` over the models to be scored,
whose y may be unknown. A feature that is constant over the models of a task says nothing there and becomes 0. Two
values of y that are equal to `arrays.DECIMALS` decimals are a tie and no preference. Any larger difference
has full weight, however small it is beside the noise of the measurement. A task on which all tie is left out.

Settings (C, gamma, alpha) are chosen from a grid, by the mean Spearman correlation over the training tasks, each left
out once; of equal ones the first, which is the most cautious. With a single training task, which cannot be left out,
the middle of the grid is taken.
"""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from itertools import combinations, product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from scipy.stats import rankdata
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, check_X_y

from proxycast.experiments.arrays import DECIMALS, Array
from proxycast.experiments.rank_statistics import spearman
from proxycast.options import InputError

Labels = NDArray[np.generic]
Setting = TypeVar("Setting", bound=Hashable)
# A fit of every setting, in their order, to standardised rows (settings, X, y, groups). What it returns is not changed.
Learner = Callable[[Sequence[Setting], Array, Array, Labels], list[Any]]

ROWS_AT_ONCE = 4096  # of the samples of a bootstrap
READ = 5  # largest coefficients of a linear RankSVM that are reported
MOST_KEPT = 5000  # fits, of some kilobytes each


class Scorer(BaseEstimator):
    """What the scorers share: checks, standardisation and tasks that order nothing.

    A subclass gives `_fit` and `_score`, which see standardised features only. Every fitted scorer has `chosen_`, the
    columns of the proxies that speak for it (none where that cannot be said), and `coef_` (P,) if it is linear.
    """

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike) -> "Scorer":
        """Learn from models and tasks, one row each. `InputError` if all models tie in every task."""
        X, y = check_X_y(X, y, dtype=float)
        check_consistent_length(X, groups)
        y, groups = np.round(y, DECIMALS), np.asarray(groups)
        kept = np.isin(groups, [task for task in np.unique(groups) if np.ptp(y[groups == task]) > 0])
        if not kept.any():
            raise InputError("there is nothing to learn from: all models tie in every training task")
        self.n_features_in_ = X.shape[1]
        standardised = check_array(standardise(X[kept], groups[kept]))  # the sum of the largest floats is infinite
        # What thousands of small fits need not check again.
        with config_context(assume_finite=True, skip_parameter_validation=True):
            self._fit(standardised, y[kept], groups[kept])
        return self

    def predict(self, X: ArrayLike) -> Array:
        """Scores (n,) of the models of one task, higher is better."""
        check_is_fitted(self)
        X = check_array(X, dtype=float)
        if X.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {X.shape[1]} features; the scorer was fitted on {self.n_features_in_}")
        return self._score(standardise(X, np.zeros(len(X))))

    def predict_samples(self, X: Array) -> Array:
        """`predict` of B samples of the features of one task's models, (B, n, P) -> (B, n); a part at a time."""
        check_is_fitted(self)
        parts = np.array_split(X, -(-np.prod(X.shape[:2]) // ROWS_AT_ONCE))
        scores = [self._score(_standardised(part).reshape(-1, X.shape[-1])) for part in parts]
        return np.concatenate(scores).reshape(X.shape[:2])

    def _fit(self, X: Array, y: Array, groups: Labels) -> None:
        raise NotImplementedError

    def _score(self, X: Array) -> Array:
        return X @ self.coef_


def standardise(X: Array, groups: Labels) -> Array:
    """X (N, P) less its mean, by its standard deviation (divisor n), within every task; 0 where X is constant."""
    standardised = np.zeros_like(X)
    for task in np.unique(groups):
        rows = groups == task
        standardised[rows] = _standardised(X[rows])
    return standardised


def _standardised(X: Array) -> Array:
    """X (..., n, P) over the models of one task."""
    centred = X - X.mean(-2, keepdims=True)
    # The mean of equal numbers can differ from them in the last bit.
    most = np.abs(X).max(-2, keepdims=True)
    varies = np.ptp(X, axis=-2, keepdims=True) > 10.0**-DECIMALS * np.maximum(1, most)
    return np.divide(centred, centred.std(-2, keepdims=True), out=np.zeros_like(centred), where=varies)


class Univariate(Scorer):
    """The one proxy, up or down, that orders the models best: the largest absolute mean over tasks of Spearman's rho.

    A proxy that is constant in a task counts 0 there. Of equally good proxies the first is taken.
    `spearman_` (P,): those means; `proxy_`: the column chosen; `sign_`: 1, or -1 where lower turned out to be better.
    """

    def _fit(self, X: Array, y: Array, groups: Labels) -> None:
        rounded = np.round(X, DECIMALS)
        tasks = ((rounded[groups == task], y[groups == task]) for task in np.unique(groups))
        by_task = [_learned(_task_correlations, [None], *task, np.zeros(len(task[1])))[0] for task in tasks]
        self.spearman_ = np.nan_to_num(by_task).mean(0)
        self.proxy_ = int(np.round(np.abs(self.spearman_), DECIMALS).argmax())
        self.sign_ = -1 if self.spearman_[self.proxy_] < 0 else 1
        self.chosen_ = np.array([self.proxy_])
        self.coef_ = np.zeros(X.shape[1])
        self.coef_[self.proxy_] = self.sign_


def _task_correlations(_: Sequence[None], X: Array, y: Array, groups: Labels) -> list[Array]:
    """Spearman's rho (P,) of each column of X with y, the models of one task."""
    return [spearman(X.T, y)]


class Sparse3(Scorer):
    """The linear combination of three proxies that fits the preferences best, over all triples of proxies.

    A triple's weights w minimise

        mean over tasks of mean over models (r - w . z)^2  +  alpha |w|^2,

    z the standardised features, r the standardised midranks of y within the task. The triple of the lowest minimum is
    chosen; of equal ones (to `arrays.DECIMALS` decimals) the first in the order of columns. This is least
    squares on preferences: within a task the sum over pairs of (sign(y_i - y_j) - v . (z_i - z_j))^2 is, but for a
    constant and the scale of v, the sum over models of (r - w . z)^2, because half the sum over j of sign(y_i - y_j) is
    the midrank of y_i less the mean rank; a tie enters it as a difference of 0.

    With G the mean over tasks of z z' and b that of z r, the minimum is 1 - b' (G + alpha)^-1 b: one small system for
    each triple, all solved at once. Proxies are much alike, so alpha must be above 0.

    `proxies_`: the three columns; `coef_` (P,): w, 0 elsewhere; `alpha_`; `explained_`: b' (G + alpha)^-1 b.
    """

    def __init__(self, alphas: Sequence[float] = (1.0, 0.1, 0.01)):
        self.alphas = alphas

    def _fit(self, X: Array, y: Array, groups: Labels) -> None:
        if X.shape[1] < 3:
            raise InputError(f"a combination of three proxies needs at least three, found {X.shape[1]}")
        self.alpha_ = _tuned(self.alphas, _sparse3_fits, _sparse3_scores, X, y, groups)
        ((self.proxies_, weights, self.explained_),) = _learned(_sparse3_fits, [self.alpha_], X, y, groups)
        self.chosen_ = self.proxies_
        self.coef_ = np.zeros(X.shape[1])
        self.coef_[self.proxies_] = weights


Triple = tuple[NDArray[np.intp], Array, float]


def _sparse3_fits(alphas: Sequence[float], X: Array, y: Array, groups: Labels) -> list[Triple]:
    return best_triples(*_moments(X, y, groups), alphas)


def _sparse3_scores(alpha: float, fit: Triple, X: Array, test: Array) -> Array:
    triple, weights, _ = fit
    return test[:, triple] @ weights


def _moments(X: Array, y: Array, groups: Labels) -> tuple[Array, Array]:
    """G (P, P) and b (P,) of `Sparse3`: means over tasks of means over models."""
    grams, moments = [], []
    for z, r in ((X[groups == task], rankdata(y[groups == task])) for task in np.unique(groups)):
        grams.append(z.T @ z / len(z))
        moments.append(z.T @ ((r - r.mean()) / r.std()) / len(z))
    return np.mean(grams, axis=0), np.mean(moments, axis=0)


def best_triples(gram: Array, moments: Array, alphas: Sequence[float]) -> list[Triple]:
    """For each alpha the triple of the largest b' (G + alpha)^-1 b, its weights (3,) and that value.

    The small systems of all triples are solved by elimination.
    """
    i, j, k = _triples(len(gram))
    gram_ij, gram_ik, gram_jk = gram[i, j], gram[i, k], gram[j, k]
    diagonal = gram.diagonal()
    gram_jj, gram_kk, bi, moments_j, moments_k = diagonal[j], diagonal[k], moments[i], moments[j], moments[k]
    found = []
    for alpha in alphas:
        own = (diagonal + alpha)[i]
        ij, ik = gram_ij / own, gram_ik / own
        jj, jk = gram_jj + alpha - ij * gram_ij, gram_jk - ij * gram_ik
        kk = gram_kk + alpha - ik * gram_ik - jk**2 / jj
        bj = moments_j - ij * bi
        bk = moments_k - ik * bi - jk / jj * bj
        explained = bi**2 / own + bj**2 / jj + bk**2 / kk
        best = int(np.round(explained, DECIMALS).argmax())
        triple = np.array([i[best], j[best], k[best]])
        weights = np.linalg.solve(gram[np.ix_(triple, triple)] + alpha * np.eye(3), moments[triple])
        found.append((triple, weights, float(explained[best])))
    return found


@cache
def _triples(proxies: int) -> NDArray[np.intp]:
    """All triples i < j < k of so many columns, in lexicographic order -> (3, n)."""
    return np.array(list(combinations(range(proxies), 3))).T.copy()


class RankSVMLinear(Scorer):
    """Linear RankSVM (Herbrich et al. 2000; Joachims 2002), with the squared hinge.

    Over all pairs p = (i, j) of models of a task with y_i > y_j it minimises

        |w|^2 / 2  +  C mean over pairs of max(0, 1 - w . (z_i - z_j))^2.

    `LinearSVC` without an intercept solves this: each pair is there twice, as z_i - z_j of class 1 and as z_j - z_i of
    class -1, so that there are two classes. `coef_` (P,): w; `C_`; `pairs_`: their number.
    """

    def __init__(self, Cs: Sequence[float] = (0.01, 0.1, 1.0, 10.0)):
        self.Cs = Cs

    def _fit(self, X: Array, y: Array, groups: Labels) -> None:
        self.C_ = _tuned(self.Cs, _linear_weights, _linear_scores, X, y, groups)
        self.coef_ = _learned(_linear_weights, [self.C_], X, y, groups)[0].copy()
        self.pairs_ = len(preferences(y, groups)[0])
        self.chosen_ = np.argsort(-np.round(np.abs(self.coef_), DECIMALS), kind="stable")[:READ]


def _linear_scores(C: float, weights: Array, X: Array, test: Array) -> Array:
    return test @ weights


def _linear_weights(Cs: Sequence[float], X: Array, y: Array, groups: Labels) -> list[Array]:
    """w (P,) for every C."""
    better, worse = preferences(y, groups)
    differences, classes = X[better] - X[worse], _classes(len(better))
    both = np.concatenate([differences, -differences])
    settings = dict(loss="squared_hinge", dual=False, fit_intercept=False, tol=1e-6)
    return [LinearSVC(C=C / (2 * len(better)), **settings).fit(both, classes).coef_[0] for C in Cs]


def preferences(y: Array, groups: Labels) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows (better, worse) of every pair of models of the same task whose y differ."""
    return np.nonzero((groups[:, None] == groups) & (y[:, None] > y))


def _classes(pairs: int) -> Array:
    """Of every pair as it is, and of every pair turned round."""
    return np.repeat([1.0, -1.0], pairs)


class RankSVMRBF(Scorer):
    """RankSVM in the space of the kernel k(x, z) = exp(-gamma |x - z|^2) of standardised features, with the hinge.

    Over all pairs p = (i, j) of models of a task with y_i > y_j it minimises

        |f|^2 / 2  +  C mean over pairs of max(0, 1 - (f(z_i) - f(z_j))).

    A preference is a point of that space, the difference of two models, so the kernel of two pairs is

        K((i, j), (k, l)) = k(i, k) - k(i, l) - k(j, k) + k(j, l),

    the dual is that of an SVM with this kernel, and with its multipliers alpha_p, between 0 and C / pairs,

        f(x) = sum over pairs p = (i, j) of alpha_p (k(z_i, x) - k(z_j, x)).

    `SVC(kernel="precomputed")` solves it. It has an intercept, which RankSVM has not: each pair is there twice, as
    (i, j) of class 1 and as (j, i) of class -1, and an intercept of 0 is then optimal, because what it takes from the
    one it gives to the other.

    `gamma_`: one of `gammas`, by the number of features; `C_`; `pairs_`: their number; `models_` (N, P): standardised
    rows; `dual_coef_` (N,): the sum of alpha_p over the pairs in which a row is better, less that in which it is worse.
    """

    def __init__(self, Cs: Sequence[float] = (1.0, 10.0, 100.0), gammas: Sequence[float] = (0.01, 0.1, 1.0)):
        self.Cs = Cs
        self.gammas = gammas

    def _fit(self, X: Array, y: Array, groups: Labels) -> None:
        settings = [(C, gamma / X.shape[1]) for C, gamma in product(self.Cs, self.gammas)]
        self.C_, self.gamma_ = setting = _tuned(settings, _rbf_coefficients, _rbf_scores, X, y, groups)
        self.models_, self.pairs_ = X, len(preferences(y, groups)[0])
        self.dual_coef_ = _learned(_rbf_coefficients, [setting], X, y, groups)[0].copy()
        self.chosen_ = np.array([], int)

    def _score(self, X: Array) -> Array:
        return _rbf(self.gamma_, X, self.models_) @ self.dual_coef_


def _rbf_scores(setting: tuple[float, float], coefficients: Array, X: Array, test: Array) -> Array:
    return _rbf(setting[1], test, X) @ coefficients


def _rbf(gamma: float, X: Array, Z: Array) -> Array:
    return np.exp(-gamma * cdist(X, Z, "sqeuclidean"))


def _rbf_coefficients(settings: Sequence[tuple[float, float]], X: Array, y: Array, groups: Labels) -> list[Array]:
    """What each row of X counts in f, for every (C, gamma): (N,)."""
    better, worse = preferences(y, groups)
    pairs, classes = len(better), _classes(len(better))
    kernel = np.empty((2 * pairs, 2 * pairs))
    found = {}
    for gamma in dict.fromkeys(gamma for _, gamma in settings):
        of_rows = _rbf(gamma, X, X)
        half = of_rows[better] - of_rows[worse]  # (pairs, N)
        of_pairs = np.subtract(half[:, better], half[:, worse], out=kernel[:pairs, :pairs])
        kernel[pairs:, pairs:] = of_pairs
        kernel[:pairs, pairs:] = kernel[pairs:, :pairs] = -of_pairs
        for C in (C for C, own in settings if own == gamma):
            svm = SVC(C=C / (2 * pairs), kernel="precomputed").fit(kernel, classes)
            multipliers = np.zeros(2 * pairs)
            multipliers[svm.support_] = np.abs(svm.dual_coef_[0])
            alphas = multipliers.reshape(2, -1).sum(0)  # each pair is there twice
            found[C, gamma] = np.bincount(better, alphas, len(X)) - np.bincount(worse, alphas, len(X))
    return [found[setting] for setting in settings]


def _tuned(
    settings: Sequence[Setting],
    learn: Learner,
    score: Callable[[Setting, Any, Array, Array], Array],
    X: Array,
    y: Array,
    groups: Labels,
) -> Setting:
    """The setting whose fit to all tasks but one orders the one best: the mean over tasks of rho.

    `score(setting, fit, X, test)`: scores of the rows `test` by a fit to X. Equal scores for all models count 0.
    """
    names = np.unique(groups)
    if len(settings) == 1 or len(names) == 1:
        return settings[len(settings) // 2]
    means = np.zeros(len(settings))
    for test in (groups == task for task in names):
        train = X[~test]
        fits = _learned(learn, settings, train, y[~test], groups[~test])
        scores = [score(setting, fit, train, X[test]) for setting, fit in zip(settings, fits, strict=True)]
        means += np.nan_to_num(spearman(np.round(scores, DECIMALS), y[test])) / len(names)
    return settings[int(np.round(means, DECIMALS).argmax())]


_KEPT: dict[tuple, Any] = {}


def _learned(learn: Learner, settings: Sequence[Setting], X: Array, y: Array, groups: Labels) -> list[Any]:
    """`learn(settings, X, y, groups)`; what this process learned before from the same numbers is not learned again.

    Folds that leave two tasks out tune on the others, each left out once. So each set of tasks is met by several folds.
    """
    numbers = hashlib.sha256(repr(X.shape).encode())
    for values in (X, y, np.unique(groups, return_inverse=True)[1]):
        numbers.update(np.ascontiguousarray(values).tobytes())
    keys = {setting: (learn, setting, numbers.digest()) for setting in settings}
    found = {setting: fit for setting, key in keys.items() if (fit := _KEPT.get(key)) is not None}
    missing = [setting for setting in keys if setting not in found]
    if missing:
        found |= zip(missing, learn(missing, X, y, groups), strict=True)
    if len(_KEPT) + len(missing) > MOST_KEPT:
        _KEPT.clear()
    _KEPT.update((keys[setting], found[setting]) for setting in missing)
    return [found[setting] for setting in settings]


SCORERS: dict[str, type[Scorer]] = {
    "univariate": Univariate,
    "sparse3": Sparse3,
    "rank_svm_linear": RankSVMLinear,
    "rank_svm_rbf": RankSVMRBF,
}
