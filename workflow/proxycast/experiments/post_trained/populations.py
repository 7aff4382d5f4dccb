"""How well each method orders bases, post-trained models, and the models that were made from one base.

Two tasks are held out, as in the split `two_tasks` of a model selection. There are four populations:

- `all`: every model;
- `bases`: those that were not post-trained (recipe `none`);
- `post_trained`: the others whose recipe is told;
- `within_base`: only models of the same base are compared, so that what pretraining made is held fixed. rho is that of
  each base with at least three models, then the mean over bases.

Scorers learn from, and are tested on, the models of the population; `within_base` they learn from all models. The
oracle is the proxy that is best in hindsight by the population's own measure. The truth of a model's base is a baseline
in all but `bases`; among `all` models a base is judged by its own truth there.

Shapes: T tasks, n models, M methods, F folds, G bases, B bootstrap samples.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.arrays import DECIMALS, Array
from proxycast.experiments.bootstrap import bootstrap_weights, percentile_interval, sure_interval
from proxycast.experiments.model_selection.folds import Fold, Scores, leave_two_tasks_out, mean_over_folds, score_folds
from proxycast.experiments.model_selection.known_models import (
    BASE,
    BASE_TRUTH,
    FEWEST_MODELS,
    FEWEST_OF_A_LABEL,
    KnownModels,
    Method,
    only_bases,
    schema_of,
    tells_post_training,
)
from proxycast.experiments.model_selection.scorers import Scorer, Univariate
from proxycast.experiments.rank_statistics import mean_of_known, spearman_samples

log = logging.getLogger(__name__)

ALL, BASES, POST_TRAINED, WITHIN_BASE = POPULATIONS = ("all", "bases", "post_trained", "within_base")
REFERENCE = "bits_per_byte"  # the baseline that is hardest to beat
BETTER, WORSE, NOT_TOLD_APART = "better", "worse", "not told apart"
POPULATIONS_SCHEMA = schema_of(
    *("population", "method", "kind", "tail", "models", "bases", "spearman", "low", "high"),
    *("difference", "difference_low", "difference_high", "verdict", "note"),
)
Models = NDArray[np.intp]


@dataclass(frozen=True)
class Judged:
    """What every method reaches in a population.

    `samples` (M, 1 + B): mean rho, first of the models themselves, then in samples of the `units`: models or bases.
    """

    population: str
    methods: list[Method]
    models: int
    bases: int
    samples: Array
    units: str

    def compared(self, own: Array, options: SelectionOptions) -> tuple[Array, Array, Array, NDArray[np.str_]]:
        """Value, ends of the interval, and why there is none, of `own` (..., 1 + B): rows of `samples`."""
        count = self.bases if self.units == "bases" else self.models
        values = np.round(own[..., 0], DECIMALS)
        return values, *sure_interval(values, own[..., 1:], count, options, self.units)

    def difference(self, method: Method, other: Method, options: SelectionOptions) -> tuple[float, float, float]:
        """rho of one method less that of the other, with the ends of its paired interval; NaN where there is none."""
        pair = self.samples[[self.methods.index(method), self.methods.index(other)]]
        (one, two), *_, why = self.compared(pair, options)
        low, high = percentile_interval(pair[0, 1:] - pair[1, 1:], options.confidence)
        return (one - two, np.nan, np.nan) if any(why) else (one - two, float(low), float(high))


def judge_populations(
    known: KnownModels,
    scorers: Mapping[str, Scorer],
    named: Sequence[tuple[str, str]],
    options: SelectionOptions,
    folds: Sequence[Fold],
    scores: Sequence[Scores],
    processes: int = 1,
) -> dict[str, Judged]:
    """Every population that has enough models, by name. Where no base is told apart, that is `all` alone.

    `named`: the proxies (statistic, weighting) that are judged beside scorers and baselines. `folds`, `scores`: of
    `folds.score_folds` where two tasks are held out, of all models.
    """
    base_truth = truth_of_bases(known)
    whole = [_with_named(known, fold, found, named, base_truth) for fold, found in zip(folds, scores, strict=True)]
    everyone = np.arange(len(known.models))
    judged = {ALL: _judged(ALL, known, folds, whole, options)}
    if not tells_post_training(known.recipes):
        return judged
    recipes = np.array(known.recipes)
    for name, members in ((BASES, recipes == BASE), (POST_TRAINED, ~np.isin(recipes, [BASE, ""]))):
        part = known.part(everyone[members])
        if len(part.models) < FEWEST_MODELS:
            log.warning("population %s is left out: it has %d models", name, len(part.models))
            continue
        own = leave_two_tasks_out(part)
        found, _ = score_folds(part, own, scorers, processes)
        # A base's own truth is what bases are judged by.
        known_of_bases = None if name == BASES or base_truth is None else base_truth[:, members]
        found = [
            _with_named(part, fold, of_fold, named, known_of_bases) for fold, of_fold in zip(own, found, strict=True)
        ]
        judged[name] = _judged(name, part, own, found, options)
    if groups := models_by_base(known):
        judged[WITHIN_BASE] = _judged_within(known, folds, whole, groups, options)
    else:
        log.warning("population %s is left out: no base has %d models", WITHIN_BASE, FEWEST_OF_A_LABEL)
    return judged


def models_by_base(known: KnownModels, fewest: int = FEWEST_OF_A_LABEL) -> list[Models]:
    """The models of every base that has so many, as places in `known`: of known recipes, and of a single base."""
    bases, is_told = np.array(known.bases), np.array(known.recipes) != ""
    groups = [np.flatnonzero((bases == base) & is_told) for base in only_bases(known)]
    return [group for group in groups if len(group) >= fewest]


def truth_of_bases(known: KnownModels) -> Array | None:
    """The truth (T, n) of the base of every model; None where that of some model is not among the models."""
    base_of = only_bases(known)
    if not known.bases or not set(known.bases) <= base_of.keys():
        return None
    return known.truth[:, [base_of[base] for base in known.bases]]


def populations_table(judged: Iterable[Judged], options: SelectionOptions) -> pl.DataFrame:
    """A row for every population and method, best first within a population: POPULATIONS_SCHEMA.

    Intervals are percentile bootstraps over bases, each with all models that were made from it; draws are the same for
    all methods. `difference`: to bits per byte of the same tail, paired; `verdict`: what its interval says.
    """
    rows = []
    for found in judged:
        values, low, high, why = found.compared(found.samples, options)
        of_population = {"population": found.population, "models": found.models, "bases": found.bases}
        for m, method in enumerate(found.methods):
            reference = Method(REFERENCE, "baseline", method.tail)
            ends = dict.fromkeys(("difference", "difference_low", "difference_high"))
            if reference in found.methods and method != reference:
                ends = dict(zip(ends, found.difference(method, reference, options)))
            named = {"method": method.name, "kind": method.kind, "tail": method.tail}
            own = {"spearman": values[m], "low": low[m], "high": high[m], "note": str(why[m])}
            rows.append(of_population | named | own | ends | {"verdict": told_verdict(*ends.values())})
    table = pl.DataFrame(rows, POPULATIONS_SCHEMA).with_columns(pl.selectors.float().fill_nan(None))
    place = pl.col("population").cast(pl.Enum(POPULATIONS))
    return table.sort(place, "spearman", descending=[False, True], nulls_last=True, maintain_order=True)


def told_verdict(difference: float | None, low: float | None, high: float | None) -> str | None:
    """What a paired interval says; None without one."""
    if None in (low, high) or np.isnan([low, high]).any():
        return None
    return BETTER if low > 0 else WORSE if high < 0 else NOT_TOLD_APART


def _with_named(
    known: KnownModels, fold: Fold, scores: Scores, named: Sequence[tuple[str, str]], base_truth: Array | None
) -> Scores:
    """The scores of a fold, and those of the named proxies and of the base's truth, which learn nothing."""
    found = dict(scores)
    if base_truth is not None:
        found[Method(BASE_TRUTH, "baseline", "")] = base_truth[np.ix_(fold.tasks, fold.test)]
    for tail, features in known.features.items():
        for proxy in named:
            if proxy in known.proxies and proxy[1] != "none":
                values = features[np.ix_(fold.tasks, fold.test)][..., known.proxies.index(proxy)]
                found[Method("/".join(proxy), "proxy", tail)] = np.round(values, DECIMALS)
    return found


def _judged(
    name: str, known: KnownModels, folds: Sequence[Fold], scores: Sequence[Scores], options: SelectionOptions
) -> Judged:
    bases = known.bases or known.models
    names, base_of = np.unique(bases, return_inverse=True)
    # A base is drawn with all that was made from it: its models are alike, and drawn alone would tell too much.
    weights = _once_and_resampled(len(names), options)[:, base_of]
    _, samples = mean_over_folds(known, folds, scores, weights)
    return Judged(name, list(scores[0]), len(bases), len(names), samples, "bases" if known.bases else "models")


def _once_and_resampled(n: int, options: SelectionOptions) -> Array:
    """How often each of `n` units is drawn (1 + B, n): first each once, then in the samples of the bootstrap."""
    return np.concatenate([np.ones((1, n)), bootstrap_weights(n, options.bootstrap_replicates, options.seed)])


def _judged_within(
    known: KnownModels,
    folds: Sequence[Fold],
    scores: Sequence[Scores],
    groups: Sequence[Models],
    options: SelectionOptions,
) -> Judged:
    scores = [
        {
            method: _best_within(known, method.tail, fold, groups) if method.kind == "oracle" else values
            for method, values in found.items()
        }
        for fold, found in zip(folds, scores, strict=True)
    ]
    weights = _once_and_resampled(len(groups), options)
    samples = mean_over_bases(known, folds, scores, groups, weights)
    count = sum(map(len, groups))
    return Judged(WITHIN_BASE, list(scores[0]), count, len(groups), samples, "bases")


def mean_over_bases(
    known: KnownModels, folds: Sequence[Fold], scores: Sequence[Scores], groups: Sequence[Models], weights: Array
) -> Array:
    """Mean over folds of the mean over a fold's tasks of the mean over bases of rho, in samples of bases (M, B).

    `groups`: the models of each base; `weights` (B, G): how often each base is drawn. Without bases whose models tie in
    the truth, then without tasks and folds of which nothing is left; NaN where nothing is.
    """
    once = {len(group): np.ones((1, len(group))) for group in groups}
    means = []
    for fold, found in zip(folds, scores, strict=True):
        both = np.stack(list(found.values()), axis=1)  # (2, M, n): all models are tested
        of_tasks = []
        for values, task in zip(both, fold.tasks, strict=True):
            rho = [spearman_samples(values[:, g], known.truth[task, g], once[len(g)])[:, 0] for g in groups]
            rho = np.stack(rho, axis=1)  # (M, G)
            total, count = np.nan_to_num(rho) @ weights.T, np.isfinite(rho).astype(float) @ weights.T
            of_tasks.append(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))
        means.append(mean_of_known(np.stack(of_tasks)))
    return mean_of_known(np.stack(means))


def _best_within(known: KnownModels, tail: str, fold: Fold, groups: Sequence[Models]) -> Array:
    """Scores (2, n) by the proxy, with its sign, that orders the models of each base best in the fold's tasks."""
    features = known.features[tail]
    ordered = [(t, group) for t in fold.tasks for group in groups if np.ptp(known.truth[t, group]) > 0]
    if not ordered:
        return np.zeros((2, len(known.models)))
    labels = np.repeat(np.arange(len(ordered)), [len(group) for _, group in ordered])
    truth = np.concatenate([known.truth[t, group] for t, group in ordered])
    best = Univariate().fit(np.concatenate([features[t, group] for t, group in ordered]), truth, labels)
    return np.round(best.sign_ * features[list(fold.tasks)][..., best.proxy_], DECIMALS)
