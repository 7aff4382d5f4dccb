"""Model selection: which of several models is best at a task that nobody has measured them on?

Scorers (`scorers.py`) learn from models and tasks whose downstream scores are known, and are judged by Spearman's rho
on what was held out. Two protocols, called splits:

- `two_tasks`: every pair of tasks is held out once. The models are the same in training and test, so a scorer may learn
  *which models* are good and recognise them by their proxies; where all tasks rank the models alike, it is right to.
- `family`: the pair of tasks is held out, and with it all models of a family. Nothing is known of the models to be
  ordered. This is the harder test, and rho of a few models is a coarse number.

Standardised features of a held-out task use the proxies of all its models, of held-out families and others, and no
downstream score (`scorers`). Baselines, which learn nothing, are judged on the same folds.

Shapes: T tasks, n models, m models judged, P proxies, M methods, B bootstrap samples. Scores are compared to
`ranking.DECIMALS` decimals.
"""

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from tqdm import tqdm

from proxycast.jobs import PROGRESS_SECONDS
from proxycast.options import InputError, Options
from proxycast.proxies import BASELINE_SIGNS, STATISTICS, WEIGHTINGS
from proxycast.ranking import (
    ABOVE_CEILING,
    DECIMALS,
    DEFAULTS,
    LEAST_RELIABILITY,
    NOISE,
    SelectionOptions,
    all_alike,
    bootstrap_spearman,
    bootstrap_weights,
    dense,
    enough_to_resample,
    interval,
    is_degenerate,
    noise_ceiling,
    too_few,
    verdict,
)
from proxycast.solutions import GENERIC_TEXT

if TYPE_CHECKING:
    from proxycast.scorers import Scorer

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
Tail = Literal["tokens", "bytes", ""]
ScorerName = Literal["univariate", "sparse3", "rank_svm_linear", "rank_svm_rbf"]

FEWEST_TASKS, FEWEST_MODELS, FEWEST_OF_A_FAMILY = 3, 4, 3
TWO_TASKS, FAMILY = "two_tasks", "family"
TIED = "all models tie in the truth"
ORDERS_NOTHING = "orders nothing, counts 0"
ONE_TASK = "one training task: settings are the middle of their grids"
NOTHING_TO_LEARN = "all training models tie in every training task"
# Of a study whose subsets hold proxies only: what stands for the expert's cross-entropy among them.
FIXED_PROXY = ("cross_entropy", "uniform")


class ModelSelectionOptions(Options):
    """How models are chosen by their proxies."""

    scorers: tuple[ScorerName, ...] = Field(
        ("univariate", "sparse3", "rank_svm_linear", "rank_svm_rbf"),
        min_length=1,
        description="what learns from the proxies: the best one, the best linear combination of three, RankSVMs",
    )
    numbers: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (10, 30, 100),
        description="problems drawn of every task, to see how far the ranking depends on their number and writer",
    )
    draws: int = Field(5, gt=0, description="draws of each of these numbers")


class Method(NamedTuple):
    """Something that scores models: one row of the summary."""

    name: str
    kind: Literal["scorer", "baseline", "oracle"]
    tail: Tail  # "" where no text is read


@dataclass(frozen=True)
class Measured:
    """All that is known of the models. Higher is better in all of it: signs are applied.

    `sign`: that of the truth, -1 where less of its metric is better; tables show its values as they were given.
    `problems` is NaN where their number is unknown. `left_out`: baselines that are not known for all models and tasks,
    and why.
    """

    models: list[str]
    families: list[str]
    tasks: list[str]
    truth: Array  # (T, n)
    problems: Array  # (T, n), behind each value of the truth
    proxies: list[tuple[str, str]]  # statistic, weighting
    features: dict[Tail, Array]  # (T, n, P)
    baselines: dict[Method, Array]  # (T, n)
    left_out: dict[Method, str]
    sign: int = 1


class Fold(NamedTuple):
    """What is held out: the models `judged`, in `tasks`. Learned from: the models `taught`, in all other tasks."""

    split: str
    number: int
    held_out: str
    tasks: tuple[int, int]
    judged: NDArray[np.intp]
    taught: NDArray[np.intp]


Scores = dict[Method, Array]  # of the models judged, in the two tasks: (2, m)

_TEXT = {"split", "held_out", "task", "method", "kind", "tail", "note", "scorer", "statistic", "weighting"}
_TEXT |= {"model", "family", "best_baseline", "writer", "verdict"}
_COUNTS = {"fold", "folds", "models", "number", "draw"}


def _schema(*columns: str) -> dict[str, pl.DataType]:
    return {c: pl.String if c in _TEXT else pl.Int64 if c in _COUNTS else pl.Float64 for c in columns}


FOLDS_SCHEMA = _schema("split", "fold", "held_out", "task", "method", "kind", "tail", "models", "spearman", "note")
SUMMARY_SCHEMA = _schema(
    *("split", "method", "kind", "tail", "folds", "spearman", "fold_sd", "low", "high"),
    *("best_baseline", "difference", "difference_low", "difference_high", "note"),
)
CHOSEN_SCHEMA = _schema("split", "fold", "held_out", "scorer", "tail", "statistic", "weighting", "coefficient")
PREDICTIONS_SCHEMA = _schema(
    *("split", "fold", "task", "model", "family", "method", "kind", "tail"),
    *("score", "predicted_rank", "truth", "true_rank"),
)
WRITERS_SCHEMA = _schema("writer", "number", "draw", "method", "spearman", "agreement")
TRUTH_SCHEMA = _schema(
    *("task", "models", "lowest", "highest", "mean", "sd", "chance", "verdict"),
    *("reliability", "reliability_low", "reliability_high", "ceiling", "ceiling_low", "ceiling_high", "note"),
)


def measured(
    checkpoints: pl.DataFrame,
    proxies: pl.DataFrame,
    targets: pl.DataFrame,
    tasks: Sequence[str],
    metric: str,
    sign: int = 1,
) -> Measured:
    """Gather the models of the role "candidate" from the tables of a study: the last checkpoint of each run.

    `sign`: -1 where less of the metric is better.
    `InputError` for fewer than three tasks or four models, for a value that is missing, doubled or not finite, and
    where fewer than three tasks order the models at all.
    """
    last = pl.col("step") == pl.col("step").max().over("run")
    models = checkpoints.filter(last, role="candidate").sort("checkpoint")
    if len(tasks) < FEWEST_TASKS:
        raise InputError(
            f"tasks: found {len(tasks)} ({', '.join(tasks)}); two are held out together, "
            f"so at least {FEWEST_TASKS} are needed"
        )
    if len(models) < FEWEST_MODELS:
        raise InputError(
            f"checkpoints.parquet: found {len(models)} models of the role candidate "
            f"({', '.join(models['checkpoint'])}); a ranking needs at least {FEWEST_MODELS}"
        )
    names = models.select("checkpoint")
    truth, problems = _truth(targets, names, tasks, metric)
    of_models = proxies.join(names, on="checkpoint", how="semi")
    expert = of_models.filter(pl.col("task").is_in(list(tasks)), pl.col("weighting") != "none")
    if expert.is_empty():
        raise InputError(f"proxies.parquet: holds no proxy of {names['checkpoint'][0]} in task {tasks[0]}; score it")
    found = set(expert.select("statistic", "weighting").iter_rows())
    known = [proxy for proxy in product(STATISTICS, WEIGHTINGS) if proxy in found]
    baselines, left_out = _baselines(models, of_models, tasks)
    for method, why in left_out.items():
        log.warning("%s is not among the baselines: %s", method.name, why)
    return Measured(
        models["checkpoint"].to_list(),
        models["family"].to_list(),
        list(tasks),
        sign * truth,
        problems,
        known,
        {
            tail: _features(expert.filter(tail=tail), names, tasks, known, f"proxies.parquet, tail {tail}")
            for tail in ("tokens", "bytes")
            if tail in expert["tail"]
        },
        baselines,
        left_out,
        sign,
    )


def _truth(targets: pl.DataFrame, names: pl.DataFrame, tasks: Sequence[str], metric: str) -> tuple[Array, Array]:
    """Values and numbers of problems, (T, n) each; NaN where a number is unknown."""
    wanted = pl.DataFrame({"task": tasks})
    rows = targets.filter(metric=metric).join(names, on="checkpoint", how="semi").join(wanted, on="task", how="semi")
    if rows.is_empty():
        known = sorted(targets["metric"].unique())
        raise InputError(
            f"targets.parquet: holds no {metric} of a candidate in the study's tasks; found metrics {known}"
        )
    name = f"targets.parquet (every candidate needs {metric} in every task): value"
    truth = np.round(dense(rows, "value", name, [wanted, names]), DECIMALS)
    tied = np.ptp(truth, axis=1) == 0
    if (~tied).sum() < FEWEST_TASKS:
        raise InputError(
            f"targets.parquet: {metric} orders the models in {(~tied).sum()} of {len(tasks)} tasks; all models tie in "
            f"{', '.join(np.array(tasks)[tied])}; at least {FEWEST_TASKS} tasks with differences are needed: give more "
            "problems, more models or a finer metric"
        )
    for task in np.array(tasks)[tied]:
        log.warning(
            "all models have the same %s in task %s: nothing is learned from it, nor judged by it", metric, task
        )
    counts = rows.with_columns(n=pl.col("n").cast(pl.Float64).fill_null(0))
    problems = dense(counts, "n", "targets.parquet: n", [wanted, names])
    return truth, np.where(problems > 0, problems, np.nan)


def _features(
    rows: pl.DataFrame, names: pl.DataFrame, tasks: Sequence[str], proxies: list[tuple[str, str]], where: str
) -> Array:
    """Signed proxies (T, n, P)."""
    axes = [
        pl.DataFrame({"task": tasks}),
        names,
        pl.DataFrame(proxies, schema={"statistic": pl.String, "weighting": pl.String}, orient="row"),
    ]
    name = f"{where} (every candidate needs every proxy in every task): value"
    return dense(rows, "value", name, axes) * [STATISTICS[statistic].sign for statistic, _ in proxies]


def _baselines(
    models: pl.DataFrame, proxies: pl.DataFrame, tasks: Sequence[str]
) -> tuple[dict[Method, Array], dict[Method, str]]:
    """Scores (T, n) of what is known without learning; and of the rest, why it is left out."""
    ratios, found = proxies.filter(weighting="none"), {}
    order = {"by": ["tail", "statistic"], "descending": [True, False]}  # tokens before bytes
    for statistic, tail in ratios.select("statistic", "tail").unique().sort(**order).iter_rows():
        own = {(c, t): v for c, t, v in ratios.filter(statistic=statistic, tail=tail).select(_CELL).iter_rows()}
        texts = {statistic: tasks}
        if statistic in _GENERIC:
            texts[_GENERIC[statistic]] = [GENERIC_TEXT] * len(tasks)
        for name, read in texts.items():
            values = [[own.get((model, text)) for model in models["checkpoint"]] for text in read]
            found[Method(name, "baseline", tail)] = BASELINE_SIGNS[statistic] * np.array(values, float)
    for name, column in (("parameters", "parameters"), ("training_compute", "flops")):
        values = models[column].cast(pl.Float64).fill_null(0).replace(0, np.nan).to_numpy()
        found[Method(name, "baseline", "")] = np.tile(values, (len(tasks), 1))
    found[Method("chance", "baseline", "")] = np.zeros((len(tasks), len(models)))
    known = {method: np.isfinite(values).all(0).sum() for method, values in found.items()}
    left_out = {
        method: f"known for {known[method]} of {len(models)} models in every task"
        for method, values in found.items()
        if known[method] < len(models) and (method.tail == "" or np.isfinite(values).any())
    }
    return {method: values for method, values in found.items() if known[method] == len(models)}, left_out


_CELL = ["checkpoint", "task", "value"]
_GENERIC = {"expert_cross_entropy": "generic_cross_entropy", "bits_per_byte": "generic_bits_per_byte"}


def leave_two_tasks_out(known: Measured) -> list[Fold]:
    """A fold for every pair of tasks; all models are in training and test."""
    everyone = np.arange(len(known.models))
    return [
        Fold(TWO_TASKS, number, f"{known.tasks[a]}, {known.tasks[b]}", (a, b), everyone, everyone)
        for number, (a, b) in enumerate(combinations(range(len(known.tasks)), 2))
    ]


def leave_one_family_out(known: Measured) -> tuple[list[Fold], str]:
    """A fold for every pair of tasks and family of at least three models; what is left out, in words.

    A family is held out only if at least three other models are left to learn from.
    """
    families = np.array(known.families)
    sizes = {str(family): int((families == family).sum()) for family in np.unique(families)}
    held = [f for f, n in sizes.items() if n >= FEWEST_OF_A_FAMILY and len(families) - n >= FEWEST_OF_A_FAMILY]
    others = [f"{family} ({n} of {len(families)} models)" for family, n in sizes.items() if family not in held]
    left_out = f"never held out, itself or the rest too few: {', '.join(others)}" if others else ""
    folds = []
    for pair, family in product(leave_two_tasks_out(known), held):
        judged, taught = np.flatnonzero(families == family), np.flatnonzero(families != family)
        folds.append(Fold(FAMILY, len(folds), f"{pair.held_out} / {family}", pair.tasks, judged, taught))
    if left_out:
        log.warning("families %s", left_out)
    return folds, left_out


def score_folds(
    known: Measured, folds: Iterable[Fold], scorers: Mapping[str, "Scorer"], processes: int = 1
) -> tuple[list[Scores], pl.DataFrame]:
    """Scores of every method in every fold, and what the scorers chose.

    `scorers`: name -> an estimator of `scorers`, which is cloned for every fold. The oracle is the proxy, with its
    sign, that orders the held-out models best in hindsight: what the choice of a single proxy could reach at most.

    The second is a row for every fold, scorer and proxy chosen: split, fold, held_out, scorer, tail, statistic,
    weighting, coefficient (univariate: 1, or -1 where the proxy is used against its sign; linear RankSVM: the five
    largest).
    """
    from joblib import Parallel, delayed

    found = Parallel(n_jobs=processes)(delayed(_score_fold)(known, fold, scorers) for fold in folds)
    chosen = [row for _, rows in found for row in rows]
    return [scores for scores, _ in found], pl.DataFrame(chosen, CHOSEN_SCHEMA, orient="row")


def _score_fold(known: Measured, fold: Fold, scorers: Mapping[str, "Scorer"]) -> tuple[Scores, list[tuple]]:
    from sklearn.base import clone

    from proxycast.scorers import Univariate

    found, chosen = {}, []
    for (name, scorer), (tail, features) in product(scorers.items(), known.features.items()):
        fitted = _fit(clone(scorer), known, features, _learned_from(known, fold), fold.taught)
        found[Method(name, "scorer", tail)] = _predict(fitted, features, fold)
        for column in [] if fitted is None else fitted.chosen_:
            row = (fold.split, fold.number, fold.held_out, name, tail, *known.proxies[column])
            chosen.append((*row, float(fitted.coef_[column])))
    for method, values in known.baselines.items():
        found[method] = values[np.ix_(fold.tasks, fold.judged)]
    for tail, features in known.features.items():
        fitted = _fit(Univariate(), known, features, fold.tasks, fold.judged)
        found[Method("best_proxy_in_hindsight", "oracle", tail)] = _predict(fitted, features, fold)
    return {method: np.round(values, DECIMALS) for method, values in found.items()}, chosen


def _learned_from(known: Measured, fold: Fold) -> list[int]:
    """Tasks that are not held out and order the training models."""
    tasks = [t for t in range(len(known.tasks)) if t not in fold.tasks]
    return [t for t in tasks if np.ptp(known.truth[t, fold.taught]) > 0]


def _fit(
    scorer: "Scorer", known: Measured, features: Array, tasks: Sequence[int], models: NDArray[np.intp]
) -> "Scorer | None":
    """The scorer, fitted to these models in these tasks; None if they tie in all of them."""
    at = np.ix_(tasks, models)
    if not tasks or (np.ptp(known.truth[at], axis=1) == 0).all():
        return None
    rows = features[at].reshape(-1, features.shape[-1])
    return scorer.fit(rows, known.truth[at].ravel(), np.repeat(tasks, len(models)))


def _predict(scorer: "Scorer | None", features: Array, fold: Fold) -> Array:
    """Scores (2, m) of the models judged, each beside all models of its task; 0 from what could not be fitted."""
    if scorer is None:
        return np.zeros((2, len(fold.judged)))
    return np.stack([scorer.predict(features[task])[fold.judged] for task in fold.tasks])


def spearman_samples(scores: Array, truth: Array, weights: Array) -> Array:
    """Spearman's rho of `scores` (M, m) with `truth` (m,) in the samples `weights` (B, m) -> (M, B).

    Equal scores order nothing: rho is 0, what a random order is expected to get. NaN where the truth is constant.
    """
    samples = bootstrap_spearman(scores, truth, weights)
    ordered = np.isfinite(bootstrap_spearman(truth[None], truth, weights))
    return np.where(ordered & np.isnan(samples), 0, samples)


def folds_table(known: Measured, folds: Sequence[Fold], scores: Sequence[Scores]) -> pl.DataFrame:
    """A row for every fold, held-out task and method: FOLDS_SCHEMA. `spearman` is null where the truth ties.

    A note says which rho are 0 by definition, and where a scorer had too little to learn from.
    """
    rows = []
    for fold, found in zip(folds, scores, strict=True):
        learned_from = len(_learned_from(known, fold))
        for place, task in enumerate(fold.tasks):
            truth = known.truth[task, fold.judged]
            values = np.stack([both[place] for both in found.values()])
            rho = spearman_samples(values, truth, np.ones((1, len(truth))))[:, 0]
            for method, own, value in zip(found, values, rho, strict=True):
                notes = [TIED] if np.ptp(truth) == 0 else [ORDERS_NOTHING] if np.ptp(own) == 0 else []
                if method.kind == "scorer" and learned_from == 0:
                    notes.append(NOTHING_TO_LEARN)
                elif method.kind == "scorer" and learned_from == 1 and method.name != "univariate":
                    notes.append(ONE_TASK)
                place_of_row = (fold.split, fold.number, fold.held_out, known.tasks[task])
                value = None if np.isnan(value) else float(value)
                rows.append((*place_of_row, method.name, method.kind, method.tail, len(truth), value, "; ".join(notes)))
    return pl.DataFrame(rows, FOLDS_SCHEMA, orient="row")


def summary_table(
    known: Measured,
    folds: Sequence[Fold],
    scores: Sequence[Scores],
    options: SelectionOptions,
    note: str = "",
    ceiling: float | None = None,
) -> pl.DataFrame:
    """A row for every method of one split, best first: SUMMARY_SCHEMA.

    `spearman`: mean over folds of the mean over a fold's tasks; `fold_sd` its standard deviation over folds, which
    share tasks and models, so it is no standard error. `low`, `high`: percentile bootstrap over the models, the same
    draws for all methods and folds; differences are paired with the best baseline, which is chosen on the data that
    judge it and so if anything too good. The bootstrap holds predictions fixed: it leaves out that scorers would have
    learned something else from other models, and that other tasks might have been at hand. A sample counts the folds in
    which it holds models that differ. An interval that would be too certain is null (`ranking.enough_to_resample`,
    `ranking.is_degenerate`). `note` is told in every row, with what else is to be said of it: why there is no interval,
    and that it exceeds the `ceiling` of `mean_ceiling`. Baselines that are left out come last, with the reason.
    """
    methods, split = list(scores[0]), folds[0].split
    rng = np.random.default_rng(options.seed)
    weights = bootstrap_weights(len(known.models), options.bootstrap_replicates, rng)
    by_fold, samples = _mean_over_folds(
        known, folds, scores, np.concatenate([np.ones((1, len(known.models))), weights])
    )
    means, samples = np.round(samples[:, 0], DECIMALS), samples[:, 1:]
    low, high, vague = sure_interval(means, samples, len(known.models), options)
    best = max((m for m, method in enumerate(methods) if method.kind == "baseline"), key=lambda m: means[m])
    unsure = (vague != "") | (vague[best] != "")
    unsure[best] = False  # it differs from itself by nothing
    ends = interval(samples - samples[best], options.confidence)
    difference_low, difference_high = (np.where(unsure, np.nan, end) for end in ends)
    count = np.isfinite(by_fold).sum(0)
    sd = [float(np.std(own[np.isfinite(own)], ddof=1)) if n > 1 else None for own, n in zip(by_fold.T, count)]
    rows = [
        {"split": split, **method._asdict(), "folds": int(count[m]), "spearman": means[m], "fold_sd": sd[m]}
        | {"low": low[m], "high": high[m], "best_baseline": _label(methods[best]), "difference": means[m] - means[best]}
        | {"difference_low": difference_low[m], "difference_high": difference_high[m]}
        | {"note": _join(note, vague[m], _above(means[m], ceiling)) if count[m] else TIED}
        for m, method in enumerate(methods)
    ]
    for told in sorted({row["note"] for row in rows} - {"", note, TIED}):
        names = [_label(method) for method, row in zip(methods, rows) if row["note"] == told]
        which = "every method" if len(names) == len(methods) else ", ".join(names)
        log.warning("%s, %s: %s", split, which, told.removeprefix(note).removeprefix("; "))
    rows += [
        {"split": split, **method._asdict(), "folds": 0, "note": f"left out: {why}"}
        for method, why in known.left_out.items()
    ]
    table = pl.DataFrame([{"method": row.pop("name"), **row} for row in rows], SUMMARY_SCHEMA)
    table = table.with_columns(pl.selectors.float().fill_nan(None))
    return table.sort("spearman", descending=True, nulls_last=True, maintain_order=True)


def sure_interval(
    values: Array, samples: Array, models: int, options: SelectionOptions
) -> tuple[Array, Array, NDArray[np.str_]]:
    """Ends of the intervals of Spearman's `values` (...) from their `samples` (..., B), and why there is none.

    The ends are NaN where an interval would be too certain, and the reason is empty elsewhere.
    """
    low, high = interval(samples, options.confidence)
    if not enough_to_resample(models, options.confidence):
        why = np.full(np.shape(values), too_few("models", models))
    else:
        why = np.where(is_degenerate(values, low, high, -1, 1), all_alike("models"), "")
    return np.where(why == "", low, np.nan), np.where(why == "", high, np.nan), why


def _above(value: float, ceiling: float | None) -> str:
    return ABOVE_CEILING if ceiling is not None and value > ceiling else ""


def _join(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _label(method: Method) -> str:
    return f"{method.name} ({method.tail})" if method.tail else method.name


def _mean_over_folds(
    known: Measured, folds: Sequence[Fold], scores: Sequence[Scores], weights: Array
) -> tuple[Array, Array]:
    """Mean over a fold's tasks in the first sample, (folds, M), and the mean of that over folds in all, (M, B).

    Without tasks or folds in which no two models differ in the truth; NaN where none is left.
    """
    by_fold, total, count = [], 0.0, 0.0
    for fold, found in zip(folds, scores, strict=True):
        both = np.stack(list(found.values()), axis=1)  # (2, M, m)
        samples = [
            spearman_samples(values, known.truth[task, fold.judged], weights[:, fold.judged])
            for task, values in zip(fold.tasks, both, strict=True)
        ]
        mean = _mean_of_known(np.stack(samples))
        by_fold.append(mean[:, 0])
        total, count = total + np.nan_to_num(mean), count + np.isfinite(mean)
    return np.stack(by_fold), np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _mean_of_known(values: Array) -> Array:
    """Mean over the first axis without NaN; NaN where there is nothing else."""
    count = np.isfinite(values).sum(0)
    return np.divide(np.nansum(values, 0), count, out=np.full(values.shape[1:], np.nan), where=count > 0)


def predictions_table(known: Measured, folds: Sequence[Fold], scores: Sequence[Scores]) -> pl.DataFrame:
    """Every score of every model judged: PREDICTIONS_SCHEMA. Ranks are among these models, 1 is best, midranks."""
    # Imported here: it takes a second, for which every start of Snakemake would wait, as config.py reads this module.
    from scipy.stats import rankdata

    rows = []
    for fold, found in zip(folds, scores, strict=True):
        names = [(known.models[m], known.families[m]) for m in fold.judged]
        for place, task in enumerate(fold.tasks):
            truth = known.truth[task, fold.judged]
            true_ranks, given = rankdata(-truth), known.sign * truth
            for method, both in found.items():
                columns = zip(names, both[place], rankdata(-both[place]), given, true_ranks, strict=True)
                rows += [(fold.split, fold.number, known.tasks[task], *who, *method, *rest) for who, *rest in columns]
    return pl.DataFrame(rows, PREDICTIONS_SCHEMA, orient="row")


def stability_table(chosen: pl.DataFrame, folds: Sequence[Fold]) -> pl.DataFrame:
    """How steadily the scorers choose (`chosen` of `score_folds`), a row for every proxy that a fold chose.

    Columns: split, scorer, tail, statistic, weighting, share (of the split's folds that chose it), same_sign (share of
    those in which it has the sign that it has in most), jaccard (of the scorer: size of the intersection over that of
    the union of two folds' proxies, mean over all pairs of folds; null for a single fold).
    """
    proxy, scorer = ["statistic", "weighting"], ["split", "scorer", "tail"]
    number = pl.col("split").replace_strict({s: sum(f.split == s for f in folds) for s in {f.split for f in folds}})
    positive = (pl.col("coefficient") >= 0).mean()
    shares = chosen.group_by(*scorer, *proxy, maintain_order=True).agg(
        (pl.len() / number.first()).alias("share"), pl.max_horizontal(positive, 1 - positive).alias("same_sign")
    )
    overlaps = [
        (
            *names,
            _mean_jaccard(
                [set(fold.select(proxy).iter_rows()) for _, fold in rows.group_by("fold", maintain_order=True)]
            ),
        )
        for names, rows in chosen.group_by(scorer, maintain_order=True)
    ]
    overlap = pl.DataFrame(overlaps, dict.fromkeys(scorer, pl.String) | {"jaccard": pl.Float64}, orient="row")
    table = shares.join(overlap, on=scorer, maintain_order="left")
    order = pl.col("scorer").rank("dense")  # keeps a scorer's rows together
    return table.sort("split", order, "tail", "share", descending=[True, False, True, True], maintain_order=True)


def _mean_jaccard(sets: Sequence[set]) -> float | None:
    overlaps = [len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
    return float(np.mean(overlaps)) if overlaps else None


def writers_table(
    known: Measured,
    subsets: pl.DataFrame,
    folds: Sequence[Fold],
    scorers: Mapping[str, "Scorer"],
    processes: int = 1,
) -> pl.DataFrame:
    """How far the ranking depends on who wrote the solutions, and on how many there are: WRITERS_SCHEMA.

    `subsets`: proxies over parts of the solutions, with columns writer ("all": of every writer), number (problems of a
    task; null: all) and draw. Everything is refitted on every subset, so `scorers` should be cheap (`cheap_scorers`).
    `spearman`: mean over folds, which leave two tasks out; `agreement`: Spearman's rho of the predicted order of the
    models with the one from all solutions of all writers, mean over folds and tasks.
    """
    from joblib import Parallel, delayed

    tail = next(iter(known.features))  # the one in tokens, where there are both
    reference, _ = score_folds(_with_features(known, {tail: known.features[tail]}), folds, scorers)
    subsets = subsets.filter(pl.col("task").is_in(known.tasks), pl.col("checkpoint").is_in(known.models), tail=tail)
    names = pl.DataFrame({"checkpoint": known.models})
    cells = subsets.partition_by("writer", "number", "draw", as_dict=True, maintain_order=True)

    def rows(writer: str, number: int | None, draw: int) -> list[tuple]:
        where = f"subsets: writer {writer}, {number or 'all'} problems, draw {draw}"
        features = {tail: _features(cells[writer, number, draw], names, known.tasks, known.proxies, where)}
        scores, _ = score_folds(_with_features(known, features), folds, scorers)
        _, means = _mean_over_folds(known, folds, scores, np.ones((1, len(names))))
        return [
            (
                writer,
                number,
                draw,
                method.name,
                mean,
                _agreement(*([of[method] for of in s] for s in (scores, reference))),
            )
            for method, mean in zip(scores[0], means[:, 0], strict=True)
            if method.kind != "oracle"
        ]

    bar = tqdm(cells, desc="writers", unit="subset", mininterval=PROGRESS_SECONDS, file=sys.stderr)
    found = Parallel(n_jobs=processes)(delayed(rows)(*cell) for cell in bar)
    return pl.DataFrame([row for some in found for row in some], WRITERS_SCHEMA, orient="row", nan_to_null=True)


def cheap_scorers() -> dict[str, "Scorer"]:
    """For `writers_table`: the best proxy, and a linear RankSVM with the middle C of its grid, to save inner folds."""
    from proxycast.scorers import RankSVMLinear, Univariate

    Cs = RankSVMLinear().Cs
    return {"univariate": Univariate(), "rank_svm_linear": RankSVMLinear(Cs=[Cs[len(Cs) // 2]])}


def _with_features(known: Measured, features: dict[Tail, Array]) -> Measured:
    """The same models with other proxies, and as only baseline the plain cross-entropy among them."""
    baselines = {}
    if FIXED_PROXY in known.proxies:
        ((tail, values),) = features.items()
        baselines[Method("/".join(FIXED_PROXY), "baseline", tail)] = values[..., known.proxies.index(FIXED_PROXY)]
    return replace(known, features=features, baselines=baselines)


def _agreement(scores: Sequence[Array], reference: Sequence[Array]) -> float:
    """Mean over folds and tasks of rho; equal scores count 0, unless the reference is constant."""
    pairs = zip(np.concatenate(scores), np.concatenate(reference), strict=True)
    rho = [spearman_samples(own[None], other, np.ones((1, len(own))))[0, 0] for own, other in pairs]
    return float(_mean_of_known(np.array(rho)))


def proxies_table(known: Measured, options: SelectionOptions) -> pl.DataFrame:
    """Every proxy and baseline on its own: a row for each of them and task, and for "all", the mean over tasks.

    Columns: tail, statistic, weighting ("none": a baseline), kind, depends_on_candidate, task, models, spearman with
    the proxy's own sign, low, high (percentile bootstrap over the models) and a note that says why they are missing.
    Null where all models tie in the truth. The best of many in this table is the best in hindsight.
    """
    dependent = {name: weighting.depends_on_candidate for name, weighting in WEIGHTINGS.items()}
    labels, scores = [], []
    for tail, features in known.features.items():
        labels += [(tail, *proxy, "proxy", dependent[proxy[1]]) for proxy in known.proxies]
        scores += list(np.moveaxis(features, -1, 0))
    labels += [(method.tail, method.name, "none", "baseline", False) for method in known.baselines]
    scores = np.round([*scores, *known.baselines.values()], DECIMALS)  # (M, T, n)
    draws = bootstrap_weights(len(known.models), options.bootstrap_replicates, options.seed)
    weights = np.concatenate([np.ones((1, len(known.models))), draws])
    samples = np.stack([spearman_samples(scores[:, t], truth, weights) for t, truth in enumerate(known.truth)])
    samples = np.concatenate([_mean_of_known(samples)[None], samples])  # (1 + T, M, 1 + B)
    low, high, vague = sure_interval(samples[..., 0], samples[..., 1:], len(known.models), options)
    columns = ["tail", "statistic", "weighting", "kind", "depends_on_candidate"]
    frame = pl.DataFrame(labels, columns, orient="row")
    return pl.concat(
        frame.with_columns(
            pl.lit(task).alias("task"),
            pl.lit(len(known.models)).cast(pl.Int64).alias("models"),
            pl.Series("spearman", samples[t, :, 0], nan_to_null=True),
            pl.Series("low", low[t], nan_to_null=True),
            pl.Series("high", high[t], nan_to_null=True),
            pl.Series("note", vague[t].tolist(), dtype=pl.String),
        )
        for t, task in enumerate(["all", *known.tasks])
    )


def mean_ceiling(truth: pl.DataFrame) -> float | None:
    """The mean over tasks of the ceiling in `truth_table`; None where that of a task is unknown."""
    ceilings = truth.filter(pl.col("task") != "all")["ceiling"]
    return None if ceilings.null_count() else ceilings.mean()


def truth_table(known: Measured, chance: Mapping[str, float], options: SelectionOptions = DEFAULTS) -> pl.DataFrame:
    """How far each task's truth can be trusted, and "all", the mean over tasks: TRUTH_SCHEMA.

    A value p that is the share of n problems solved has the variance p (1 - p) / (n - 1), estimated without bias;
    `reliability` is 1 less the mean of that over the variance (divisor n - 1) between models, and `ceiling` its root
    (`ranking.noise_ceiling`): the correlation that a perfect prediction could expect with so noisy a truth. Problems
    with credit between 0 and 1 vary less, so for them it is a lower bound. Both have a percentile bootstrap over the
    models; `verdict` says in a word what such a truth is worth (`ranking.verdict`). They are null where a value lies
    outside 0 to 1 or the number of problems is unknown or 1, and for a constant truth; `note` says so. `chance`: task
    -> what guessing gets, where that is known.
    """
    given = known.sign * known.truth
    # Of comparisons with NaN, an unknown number of problems, none is true.
    possible = (known.problems > 1) & (given.min() >= 0) & (given.max() <= 1)
    undefined = np.full(given.shape, np.nan)
    noise = np.divide(given * (1 - given), known.problems - 1, out=undefined, where=possible)
    chances = [chance.get(task) for task in known.tasks]
    mean_chance = None if None in chances else float(np.mean(chances))
    rows = [_truth_row(*row, options) for row in zip(known.tasks, given, noise, chances, strict=True)]
    rows.append(_truth_row("all", given.mean(0), noise.sum(0) / len(known.tasks) ** 2, mean_chance, options))
    unknown = "" if np.isfinite(known.problems).all() else "the number of problems (n) is not given"
    if (given.min() < 0 or given.max() > 1) and not unknown:
        unknown = "the scores are no shares of problems"
    for row in rows:
        if row["reliability"] is None:
            row["note"] = f"reliability unknown: {unknown or 'all models tie, or a value rests on one problem'}"
        if row["verdict"] == NOISE:
            log.warning("%s", about_noise(row))
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        log.warning("the truth of %s: %s", ", ".join(row["task"] for row in rows if row["note"] == note), note)
    return pl.DataFrame(rows, TRUTH_SCHEMA)


def about_noise(row: Mapping[str, object]) -> str:
    """What a row of `truth_table` with the verdict "noise" says, for the log and for figures."""
    low, high = row["reliability_low"], row["reliability_high"]
    interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    task = "the mean over tasks" if row["task"] == "all" else f"task {row['task']}"
    return f"The truth may be noise: {task} has a reliability of {row['reliability']:.2f}{interval}."


def _truth_row(task: str, values: Array, noise: Array, chance: float | None, options: SelectionOptions) -> dict:
    models, variance = len(values), values.var(ddof=1)
    row = dict.fromkeys(TRUTH_SCHEMA) | {"task": task, "models": models, "mean": values.mean(), "chance": chance}
    row |= {"lowest": values.min(), "highest": values.max(), "sd": float(np.sqrt(variance)), "note": ""}
    if np.isfinite(noise).all() and np.ptp(np.round(values, DECIMALS)) > 0:
        row["reliability"] = max(LEAST_RELIABILITY, float(1 - noise.mean() / variance))
        row["ceiling"] = noise_ceiling(row["reliability"]).spearman
        if enough_to_resample(models, options.confidence):
            weights = bootstrap_weights(models, options.bootstrap_replicates, options.seed)
            ends = interval(_reliability_samples(values, noise, weights), options.confidence)
            row["reliability_low"], row["reliability_high"] = map(float, ends)
            row["ceiling_low"], row["ceiling_high"] = (noise_ceiling(float(end)).spearman for end in ends)
        else:
            row["note"] = f"reliability: {too_few('models', models)}"
    row["verdict"] = verdict(row["reliability"], row["reliability_low"])
    return row


def _reliability_samples(values: Array, noise: Array, weights: Array) -> Array:
    """1 less mean noise over variance of `values` (n,) in the samples `weights` (B, n) -> (B,).

    NaN where a sample holds one value only; not below `ranking.LEAST_RELIABILITY`.
    """
    n = len(values)
    variance = (weights @ values**2 - (weights @ values) ** 2 / n) / (n - 1)
    undefined = np.full(len(weights), np.nan)
    ratio = np.divide(weights @ noise / n, variance, out=undefined, where=variance > 10.0**-DECIMALS)
    return np.maximum(1 - ratio, LEAST_RELIABILITY)
