"""A judge learned from a model selection: its linear scorers, fitted to all models and tasks.

The RBF RankSVM is left out: it has no coefficients, and would have to carry all proxies of all models.

A scorer is fitted to the models that the link is fitted to, so its errors there are too small. The variance of a link
is therefore that of models that were left out: scorer, standardisation and line are fitted without them (in at most
`GROUPS` groups of models), and the mean of their squared errors stands for the residual variance. The form of the link
(`judge_links`) is the one with the smaller such error in the metric. Both were fixed before any result was looked at.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from joblib import Parallel, delayed
from scipy.special import expit, logit

from proxycast.config.experiments.selection_options import ModelSelectionOptions
from proxycast.config.truth import Target
from proxycast.experiments.arrays import DECIMALS, Array
from proxycast.experiments.judges.judge_file import FORMAT, FittedScorer, Form, Judge, Link, Reading, ScorerTask, Share
from proxycast.experiments.judges.judge_learning import metric_seen, origin, tasks_seen
from proxycast.experiments.judges.judge_links import FEWEST, fit_form
from proxycast.experiments.model_selection.folds import FAMILY, TWO_TASKS, fit_scorer
from proxycast.experiments.model_selection.known_models import KnownModels, known_models, measured
from proxycast.experiments.model_selection.scorers import SCORERS
from proxycast.experiments.model_selection.task_truth import mean_ceiling
from proxycast.metrics import is_share

GROUPS = 10
LINEAR = ("univariate", "sparse3", "rank_svm_linear")


def model_judge(
    study: str,
    checkpoints: pl.DataFrame,
    targets: pl.DataFrame,
    proxies: pl.DataFrame,
    tasks: Sequence[str],
    target: Target,
    options: ModelSelectionOptions,
    tables: Mapping[str, pl.DataFrame],
    *,
    reading: Reading | None = None,
    tokenizers: Sequence[str] = (),
    made_from: Mapping[str, str] | None = None,
    processes: int = 1,
) -> Judge:
    """What a finished model selection learned. `tables`: "summary" and "truth" of `model_selection_tables`.

    The other arguments are those of `model_selection_tables` and `judge_learning.corpus_judge`. A study without a
    linear scorer gets the univariate one.
    """
    own, tasks = measured(checkpoints, targets, tasks, target.metric)
    known = known_models(own, proxies, targets, tasks, target.metric, target.sign(target.metric))
    names = [name for name in options.scorers if name in LINEAR] or [LINEAR[0]]
    summary, truth = tables["summary"], tables["truth"]
    found = [
        _fitted(known, name, tail, summary, is_share(target.metric), processes)
        for name in names
        for tail in known.features
    ]
    ceiling = Share(value=mean_ceiling(truth), low=None, high=None)
    values = pl.Series((known.sign * known.truth).mean(0))
    return Judge(
        format=FORMAT,
        study=study,
        kind="model_selection",
        metric=metric_seen(values, target, ceiling, truth.filter(task="all")["verdict"].item()),
        target_size=None,
        target_flops=None,
        candidates=known.models,
        tasks=tasks_seen(tasks, proxies.lazy().filter(pl.col("tail") == next(iter(known.features)))),
        reading=reading,
        tokenizers=list(tokenizers),
        corpus_proxies=[],
        scorers=found,
        origin=origin(made_from or {}),
    )


def _fitted(
    known: KnownModels, name: str, tail: str, summary: pl.DataFrame, share: bool, processes: int
) -> FittedScorer:
    features, everyone = known.features[tail], np.arange(len(known.models))
    whole = _fit(name, known, features, everyone)
    columns = np.flatnonzero(whole.coef)
    links = _links(name, known, features, whole, share, processes)
    tasks = {
        task: ScorerTask(means=whole.means[t, columns].tolist(), sds=whole.sds[t, columns].tolist(), link=links[t])
        for t, task in enumerate(known.tasks)
    }
    of_split = {}
    for split in (TWO_TASKS, FAMILY):
        rows = summary.filter(split=split, method=name, kind="scorer", tail=tail).select("spearman", "low", "high")
        of_split[split] = Share(**dict(zip(("value", "low", "high"), rows.row(0) if len(rows) else (None,) * 3)))
    return FittedScorer(
        scorer=name,
        tail=tail,
        statistics=[known.proxies[column][0] for column in columns],
        weightings=[known.proxies[column][1] for column in columns],
        coefficients=whole.coef[columns].tolist(),
        two_tasks=of_split[TWO_TASKS],
        family=of_split[FAMILY],
        tasks=tasks,
    )


class _Fit(NamedTuple):
    """A linear scorer and the standardisation of its tasks; sds are 0 where a proxy is constant."""

    coef: Array  # (P,)
    means: Array  # (T, P)
    sds: Array  # (T, P)

    def scores(self, features: Array) -> Array:
        """Of `features` (T, n, P) -> (T, n)."""
        centred = features - self.means[:, None]
        z = np.divide(centred, self.sds[:, None], out=np.zeros_like(centred), where=self.sds[:, None] > 0)
        return z @ self.coef


def _fit(name: str, known: KnownModels, features: Array, models: Array) -> _Fit | None:
    """The scorer, fitted to these models in all tasks; None if they tie in all of them."""
    tasks = [t for t, truth in enumerate(known.truth) if np.ptp(truth[models]) > 0]
    scorer = fit_scorer(SCORERS[name](), known, features, tasks, models)
    if scorer is None:
        return None
    own = features[:, models]
    # As `scorers.standardise`: the mean of equal numbers can differ from them in the last bit.
    varies = np.ptp(own, axis=1) > 10.0**-DECIMALS * np.maximum(1, np.abs(own).max(1))
    return _Fit(scorer.coef_, own.mean(1), np.where(varies, own.std(1), 0))


def _links(
    name: str, known: KnownModels, features: Array, whole: _Fit, share: bool, processes: int
) -> list[Link | None]:
    """The link of every task, with the errors of models that were left out."""
    n = len(known.models)
    groups = [np.arange(first, n, min(GROUPS, n)) for first in range(min(GROUPS, n))]
    fits = Parallel(n_jobs=processes)(
        delayed(_fit)(name, known, features, np.setdiff1d(np.arange(n), group)) for group in groups
    )
    if None in fits:
        return [None] * len(known.tasks)
    metric, scores = known.sign * known.truth, whole.scores(features)
    return [
        _link(scores[t], metric[t], [fit.scores(features)[t] for fit in fits], groups, share)
        for t in range(len(known.tasks))
    ]


def _link(scores: Array, metric: Array, without: Sequence[Array], groups: Sequence[Array], share: bool) -> Link | None:
    """`without`: the scores (n,) of scorers that were fitted without the models of each of `groups`."""
    forms: list[Form] = ["linear", *(["logistic"] if share and ((metric > 0) & (metric < 1)).all() else [])]
    errors, variances = {}, {}
    for form in forms:
        there, back = (logit, expit) if form == "logistic" else (np.asarray, np.asarray)
        left_out = np.empty(len(metric))
        for own, group in zip(without, groups, strict=True):
            others = np.setdiff1d(np.arange(len(metric)), group)
            line = fit_form(own[others], metric[others], form) if len(others) >= FEWEST else None
            if line is None:
                return None
            left_out[group] = line.intercept + line.slope * (own[group] - line.mean) / line.sd
        errors[form] = float(np.sqrt(np.mean((metric - back(left_out)) ** 2)))
        variances[form] = float(np.mean((there(metric) - left_out) ** 2))
    best = min(forms, key=lambda form: round(errors[form], DECIMALS))
    line = fit_form(scores, metric, best)
    return line and line.model_copy(update={"residual_variance": variances[best], "left_out_error": errors})
