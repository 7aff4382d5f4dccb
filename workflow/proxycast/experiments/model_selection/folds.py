"""Folds of the model selection: which models and tasks are held out, and the scores of every method there."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import polars as pl
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.base import clone

from proxycast.experiments.arrays import DECIMALS, Array
from proxycast.experiments.model_selection.known_models import FEWEST_OF_A_LABEL, KnownModels, Method, schema_of
from proxycast.experiments.model_selection.scorers import Scorer, Univariate
from proxycast.experiments.rank_statistics import mean_of_known, spearman_samples

log = logging.getLogger(__name__)

TWO_TASKS, FAMILY, RECIPE = "two_tasks", "family", "recipe"
LABELS = {FAMILY: "families", RECIPE: "recipes"}  # split -> the labels of `KnownModels` that it holds out


class Fold(NamedTuple):
    """Scorers are tested on the models `test` in the two `tasks`, and trained on the models `train` in the others."""

    split: str
    number: int
    held_out: str
    tasks: tuple[int, int]
    test: NDArray[np.intp]
    train: NDArray[np.intp]


Scores = dict[Method, Array]  # of the test models in the two test tasks: (2, m)
CHOSEN_SCHEMA = schema_of("split", "fold", "held_out", "scorer", "tail", "statistic", "weighting", "coefficient")


def leave_two_tasks_out(known: KnownModels) -> list[Fold]:
    """A fold for every pair of tasks; all models are in training and test."""
    everyone = np.arange(len(known.models))
    return [
        Fold(TWO_TASKS, number, f"{known.tasks[a]}, {known.tasks[b]}", (a, b), everyone, everyone)
        for number, (a, b) in enumerate(combinations(range(len(known.tasks)), 2))
    ]


def leave_one_label_out(known: KnownModels, split: str) -> tuple[list[Fold], str]:
    """A fold for every pair of tasks and label of at least three models; what is left out, in words.

    `split`: one of `LABELS`. A label is held out only if at least three other models are left for training. The empty
    label, of models of which it is not known, is never held out, and such a recipe is not learned from either.
    """
    labels = np.array(getattr(known, LABELS[split]), dtype=str)
    sizes = {str(label): int((labels == label).sum()) for label in np.unique(labels) if label}
    # Models of unknown recipes may be of the one that is held out; a family without a name is its own.
    told = labels != "" if split == RECIPE else np.ones(len(labels), dtype=bool)
    held = [name for name, n in sizes.items() if min(n, told.sum() - n) >= FEWEST_OF_A_LABEL]
    others = [f"{label} ({n} of {len(labels)} models)" for label, n in sizes.items() if label not in held]
    left_out = f"never held out, itself or the rest too few: {', '.join(others)}" if others else ""
    folds = []
    for pair, label in product(leave_two_tasks_out(known), held):
        test, train = np.flatnonzero(labels == label), np.flatnonzero((labels != label) & told)
        folds.append(Fold(split, len(folds), f"{pair.held_out} / {label}", pair.tasks, test, train))
    if left_out:
        log.warning("%s %s", LABELS[split], left_out)
    return folds, left_out


def score_folds(
    known: KnownModels, folds: Iterable[Fold], scorers: Mapping[str, Scorer], processes: int = 1
) -> tuple[list[Scores], pl.DataFrame]:
    """Scores of every method in every fold, and what the scorers chose.

    `scorers`: name -> an estimator of `scorers`, which is cloned for every fold. The oracle is the proxy, with its
    sign, that orders the test models best in hindsight: what the choice of a single proxy could reach at most.

    The second is a row for every fold, scorer and proxy chosen: split, fold, held_out, scorer, tail, statistic,
    weighting, coefficient (univariate: 1, or -1 where the proxy is used against its sign; linear RankSVM: the five
    largest).
    """
    found = Parallel(n_jobs=processes)(delayed(_score_fold)(known, fold, scorers) for fold in folds)
    chosen = [row for _, rows in found for row in rows]
    return [scores for scores, _ in found], pl.DataFrame(chosen, CHOSEN_SCHEMA, orient="row")


def _score_fold(known: KnownModels, fold: Fold, scorers: Mapping[str, Scorer]) -> tuple[Scores, list[tuple]]:
    found, chosen = {}, []
    for (name, scorer), (tail, features) in product(scorers.items(), known.features.items()):
        fitted = fit_scorer(clone(scorer), known, features, training_tasks(known, fold), fold.train)
        found[Method(name, "scorer", tail)] = _test_scores(fitted, features, fold)
        for column in [] if fitted is None else fitted.chosen_:
            row = (fold.split, fold.number, fold.held_out, name, tail, *known.proxies[column])
            chosen.append((*row, float(fitted.coef_[column])))
    for method, values in known.baselines.items():
        found[method] = values[np.ix_(fold.tasks, fold.test)]
    for tail, features in known.features.items():
        fitted = fit_scorer(Univariate(), known, features, fold.tasks, fold.test)
        found[Method("best_proxy_in_hindsight", "oracle", tail)] = _test_scores(fitted, features, fold)
    return {method: np.round(values, DECIMALS) for method, values in found.items()}, chosen


def training_tasks(known: KnownModels, fold: Fold) -> list[int]:
    """The training tasks of a fold: those in which the training models differ."""
    tasks = [t for t in range(len(known.tasks)) if t not in fold.tasks]
    return [t for t in tasks if np.ptp(known.truth[t, fold.train]) > 0]


def fit_scorer(
    scorer: Scorer, known: KnownModels, features: Array, tasks: Sequence[int], models: NDArray[np.intp]
) -> Scorer | None:
    """The scorer, fitted to these models in these tasks; None if they tie in all of them."""
    at = np.ix_(tasks, models)
    if not tasks or (np.ptp(known.truth[at], axis=1) == 0).all():
        return None
    rows = features[at].reshape(-1, features.shape[-1])
    return scorer.fit(rows, known.truth[at].ravel(), np.repeat(tasks, len(models)))


def _test_scores(scorer: Scorer | None, features: Array, fold: Fold) -> Array:
    """Scores (2, m) of the test models, standardised among all models of the task; 0 where nothing could be fitted."""
    if scorer is None:
        return np.zeros((2, len(fold.test)))
    return np.stack([scorer.predict(features[task])[fold.test] for task in fold.tasks])


def mean_over_folds(
    known: KnownModels, folds: Sequence[Fold], scores: Sequence[Scores], weights: Array
) -> tuple[Array, Array]:
    """Mean over a fold's tasks in the first sample, (folds, M), and the mean of that over folds in all, (M, B).

    Without tasks or folds in which no two models differ in the truth; NaN where none is left.
    """
    by_fold, total, count = [], 0.0, 0.0
    for fold, found in zip(folds, scores, strict=True):
        both = np.stack(list(found.values()), axis=1)  # (2, M, m)
        samples = [
            spearman_samples(values, known.truth[task, fold.test], weights[:, fold.test])
            for task, values in zip(fold.tasks, both, strict=True)
        ]
        mean = mean_of_known(np.stack(samples))
        by_fold.append(mean[:, 0])
        total, count = total + np.nan_to_num(mean), count + np.isfinite(mean)
    return np.stack(by_fold), np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
