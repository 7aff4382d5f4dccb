"""How well predicted scores order the corpora as the truth does: decision accuracies and ranks, with intervals.

Shapes: S statistics, K seeds, T tasks, n corpora, B bootstrap replicates.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata
from threadpoolctl import threadpool_limits

from proxycast.config.experiments.selection_options import Proxy, SelectionOptions
from proxycast.experiments import bootstrap
from proxycast.experiments.arrays import DECIMALS, Array, dense
from proxycast.experiments.candidate_order import resample_seeds
from proxycast.experiments.data_selection.corpus_order import CorpusOrder, place_columns
from proxycast.experiments.data_selection.corpus_scores import DECISION_ACCURACY_COLUMNS
from proxycast.experiments.rank_statistics import ResampledTruth, decision_accuracy, kendall, spearman
from proxycast.options import InputError


def decision_accuracy_table(
    predictions: pl.DataFrame, truth: pl.DataFrame, target_flops: float, options: SelectionOptions, threads: int = 1
) -> pl.DataFrame:
    """The agreement of every prediction (size, step, seed, task) with the truth, with intervals over the corpora.

    `predictions`: corpus, task, statistic, weighting, kind ("proxy" | "baseline"), depends_on_candidate, size, step,
    seed, tokens, flops (6 N D of one run), score (higher is better: the sign is applied already). `truth`: corpus,
    task, value. Within a size and step every statistic must have a score for every task of the truth, corpus and seed
    (`InputError` names what is missing); a baseline that knows no tasks is repeated under each.

    Besides each task there is the task "all", where score and truth are means over the tasks. Besides each seed there
    are "mean", the figures of the score averaged over the seeds, and "single", the mean over seeds of their figures:
    what one may expect of a single run. The best baseline is the one of highest decision accuracy in the same task,
    size, step and seed; chosen on the same data, it is if anything too good. All intervals and differences use the same
    samples of corpora. An undefined figure (a truth or prediction that is constant) is null. So is an interval that
    would be too certain, and `note` says why: `enough_to_resample`, `is_degenerate`. `threads` tasks are computed at a
    time.
    """
    corpora, tasks = _shared_names(predictions, truth, "corpus"), _shared_names(predictions, truth, "task")
    task_truth = dense(truth, "value", "true value", [tasks, corpora])
    task_truth = np.concatenate([task_truth.mean(0, keepdims=True), task_truth])  # (1 + T, n)
    weights = bootstrap.bootstrap_weights(len(corpora), options.bootstrap_replicates, options.seed)
    # Means that are equal but for the order of their sums are ties.
    truths = [ResampledTruth(np.round(values, DECIMALS), weights) for values in task_truth]
    parts = []
    for (size, step), cell in predictions.group_by("size", "step", maintain_order=True):
        statistics = cell.select("statistic", "weighting", "kind", "depends_on_candidate").unique(maintain_order=True)
        seeds = cell.select("seed").unique().sort("seed")
        axes = [statistics, seeds, tasks, corpora]
        scores = dense(cell, "score", f"size {size}, step {step}: score", axes)  # (S, K, T, n)
        scores = np.concatenate([scores.mean(2, keepdims=True), scores], axis=2)  # (S, K, 1 + T, n)
        seed_names = pl.DataFrame({"seed": [*seeds["seed"].cast(pl.String), "mean", "single"]})
        flops = cell["flops"].mean()
        labels = statistics.join(seed_names, how="cross").with_columns(
            size=pl.lit(size, predictions.schema["size"]),
            step=pl.lit(step, predictions.schema["step"]),
            tokens=pl.lit(round(cell["tokens"].mean()), pl.Int64),
            flops=pl.lit(flops, pl.Float64),
            compute_fraction=pl.lit(flops / target_flops, pl.Float64),
            corpora=pl.lit(len(corpora), pl.Int64),
        )
        figures_of = partial(agreement_figures, statistics=statistics, confidence=options.confidence)
        with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
            found = pool.map(figures_of, np.moveaxis(scores, 2, 0), truths)
            for task, figures in zip(["all", *tasks["task"]], found):
                parts.append(labels.with_columns(*figures, task=pl.lit(task)))
    return pl.concat(parts).select(DECISION_ACCURACY_COLUMNS)


def against_baselines_table(
    predictions: pl.DataFrame,
    truth: pl.DataFrame,
    target_flops: float,
    options: SelectionOptions,
    highlighted: Sequence[Proxy],
) -> pl.DataFrame:
    """Each highlighted proxy or baseline beside each other baseline, one seed, in each task and over all.

    `predictions`, `truth`: as in `decision_accuracy_table`, at the budgets. The samples are those of that table, so the
    row of the best baseline has its difference. Without another baseline there is no row.
    """
    fixed = pl.DataFrame([proxy.model_dump() for proxy in highlighted])
    named = predictions.join(fixed, on=["statistic", "weighting"], how="semi").with_columns(kind=pl.lit("proxy"))
    parts = []
    for (baseline,), rows in predictions.filter(kind="baseline").group_by("statistic", maintain_order=True):
        at = named.filter((pl.col("statistic") != baseline) | (pl.col("weighting") != "none"))
        at = at.join(rows.select("size", "step").unique(), on=["size", "step"], how="semi", maintain_order="left")
        if at.is_empty():
            continue
        compared = decision_accuracy_table(pl.concat([at, rows]), truth, target_flops, options).filter(seed="single")
        cell = ["size", "step", "task"]
        of_baseline = compared.filter(kind="baseline").select(
            *cell, pl.lit(baseline).alias("baseline"), pl.col("decision_accuracy").alias("baseline_decision_accuracy")
        )
        parts.append(compared.filter(kind="proxy").join(of_baseline, on=cell, maintain_order="left"))
    table = pl.concat(parts) if parts else pl.DataFrame(schema=dict.fromkeys(AGAINST_COLUMNS, pl.String))
    return table.select(pl.col(name).cast(dtype) for name, dtype in AGAINST_COLUMNS.items())


AGAINST_COLUMNS = (
    dict.fromkeys(("task", "statistic", "weighting"), pl.String)
    | {"depends_on_candidate": pl.Boolean, "size": pl.String, "step": pl.Int64, "compute_fraction": pl.Float64}
    | {"decision_accuracy": pl.Float64, "baseline": pl.String, "baseline_decision_accuracy": pl.Float64}
    | dict.fromkeys(("difference", "difference_low", "difference_high"), pl.Float64)
    | {"corpora": pl.Int64, "note": pl.String}
)


def agreement_figures(
    scores: Array, truth: ResampledTruth, statistics: pl.DataFrame, confidence: float
) -> list[pl.Series]:
    """The figures of `scores` (S, K, n): for each statistic K seeds, then "mean" and "single"."""
    scores = np.concatenate([scores, scores.mean(1, keepdims=True)], axis=1)
    scores = np.round(scores, DECIMALS)
    rows, shape = scores.reshape(-1, scores.shape[-1]), scores.shape[:2]

    def with_single(figures: Array) -> Array:
        figures = figures.reshape(*shape, *figures.shape[1:])
        return np.concatenate([figures, figures[:, :-1].mean(1, keepdims=True)], axis=1)

    corpora = scores.shape[-1]
    enough = bootstrap.enough_to_resample(corpora, confidence)
    accuracy = with_single(decision_accuracy(rows, truth.truth))  # (S, K + 2)
    samples = with_single(truth.decision_accuracy(rows))  # (S, K + 2, B)
    figures = {"decision_accuracy": accuracy}
    figures["low"], figures["high"] = bootstrap.percentile_interval(samples, confidence)
    figures["spearman"] = with_single(spearman(rows, truth.truth))
    figures["spearman_low"], figures["spearman_high"] = bootstrap.percentile_interval(
        with_single(truth.spearman(rows)), confidence
    )
    figures["kendall"] = with_single(kendall(rows, truth.truth))
    degenerate = bootstrap.is_degenerate(accuracy, figures["low"], figures["high"], 0, 1)
    vague = degenerate | (not enough)
    for low, high in (("low", "high"), ("spearman_low", "spearman_high")):
        figures[low], figures[high] = (np.where(vague, np.nan, figures[name]) for name in (low, high))
    baselines = np.flatnonzero(statistics["kind"] == "baseline")
    best_names = np.full(accuracy.shape, None)
    figures["difference"] = figures["difference_low"] = figures["difference_high"] = np.full(accuracy.shape, np.nan)
    if len(baselines):
        best = baselines[accuracy[baselines].argmax(0)]  # (K + 2,)
        seeds = np.arange(len(best))
        figures["difference"] = accuracy - accuracy[best, seeds]
        of_itself = np.arange(len(accuracy))[:, None] == best
        unsure = (vague | vague[best, seeds]) & ~of_itself
        ends = bootstrap.percentile_interval(samples - samples[best, seeds], confidence)
        figures["difference_low"], figures["difference_high"] = (np.where(unsure, np.nan, end) for end in ends)
        best_names = np.where(np.isnan(accuracy), None, statistics["statistic"].to_numpy()[best])
    columns = [pl.Series(name, values.ravel(), nan_to_null=True) for name, values in figures.items()]
    notes = (
        np.where(degenerate, bootstrap.all_alike("corpora"), "")
        if enough
        else np.full(vague.shape, bootstrap.too_few("corpora", corpora))
    )
    return [
        *columns,
        pl.Series("best_baseline", best_names.ravel().tolist(), dtype=pl.String),
        pl.Series("note", notes.ravel().tolist(), dtype=pl.String),
    ]


def _shared_names(predictions: pl.DataFrame, truth: pl.DataFrame, key: str) -> pl.DataFrame:
    """The values of `key`, sorted, in one column. `InputError` names those that only one of the two tables has."""
    predicted, true = set(predictions[key]), set(truth[key])
    for missing, where in ((true - predicted, "predictions lack"), (predicted - true, "truth lacks")):
        if missing:
            raise InputError(f"the {where} {key} {', '.join(map(str, sorted(missing)))}; both need the same ones")
    return pl.DataFrame({key: sorted(true)})


TRUTH_SEEDS = 0  # stream of random numbers; those of predictions are in `candidate_order`


def ranking_table(
    orders: Sequence[CorpusOrder], truth_by_seed: pl.DataFrame, options: SelectionOptions, sign: int = 1
) -> pl.DataFrame:
    """Predicted and true score and rank (1 is best, ties share the mean rank) of every corpus, with intervals.

    `orders`: `corpus_order.corpus_orders`, the corpora of `truth_by_seed` first. `truth_by_seed`: corpus, seed, value
    and, if there are several, task; it is averaged over tasks and seeds, in this order. The column `seeds` counts those
    behind a prediction. A corpus without a truth comes last, its true score and rank null; its predicted rank is the
    place it would take among the corpora that have one. Its `place`, as that of all others, is the one among all
    corpora. `sign` is -1 where less of the truth is better; its values stay as they are.

    The truth is resampled over its seeds, for each corpus on its own. A bootstrap over k seeds understates their
    variance by the factor (k - 1) / k, and sees none of it where k is 1. An interval is null where nothing can be
    resampled: of the truth with one seed, of a prediction with one seed and one solution a task.
    """
    known = truth_by_seed.select("corpus").unique().sort("corpus")
    if "task" not in truth_by_seed.columns:
        truth_by_seed = truth_by_seed.with_columns(task=pl.lit("all"))
    axes = [known, *(truth_by_seed.select(name).unique().sort(name) for name in ("seed", "task"))]
    truth = dense(truth_by_seed, "value", "true value", axes).mean(-1)  # (n, K)
    draws = bootstrap.stream(options.seed, TRUTH_SEEDS)
    truth_samples = resample_seeds(np.tile(truth, (options.bootstrap_replicates, 1, 1)), draws)
    resampled = np.full(len(known), truth.shape[1] > 1)
    values = truth.mean(1), truth_samples, resampled
    true_columns = _with_ranks("truth", "true_rank", *values, len(known), options.confidence, sign)
    truths = known.with_columns(*true_columns)
    parts = []
    for order in orders:
        columns = _with_ranks("predicted", "predicted_rank", *order.scores, len(known), options.confidence)
        ranked = order.labelled(order.corpora.select("corpus").with_columns(*columns, order.corpora["seeds"]))
        for more in (truths, place_columns(order, options.confidence)):
            ranked = ranked.join(more, on="corpus", how="left", maintain_order="left")
        parts.append(ranked)
    return pl.concat(parts)


def _with_ranks(
    score: str,
    rank: str,
    values: Array,
    samples: Array,
    resampled: NDArray[np.bool_],
    known: int,
    confidence: float,
    sign: int = 1,
) -> list[pl.Series]:
    """The columns of a score (n,) and its rank with their intervals, from the samples (B, n); null if not resampled."""
    values, samples = np.round(values, DECIMALS), np.round(samples, DECIMALS)
    ranks = _ranks(sign * values, known), _ranks(sign * samples, known)
    columns = []
    for name, point, draws in ((score, values, samples), (rank, *ranks)):
        low, high = (np.where(resampled, end, np.nan) for end in bootstrap.percentile_interval(draws.T, confidence))
        columns.append(pl.Series(name, point))
        columns += [pl.Series(f"{name}_{end}", at, nan_to_null=True) for end, at in (("low", low), ("high", high))]
    return columns


def _ranks(values: Array, known: int) -> Array:
    """Midranks (..., n) of the first `known` of `values` (..., n), 1 the highest, and the places of the others.

    Each of the others is placed among the first alone: one more than those above it, and half of those equal to it.
    """
    first, others = values[..., :known], values[..., known:]
    above = (first[..., None, :] > others[..., None]).sum(-1) + (first[..., None, :] == others[..., None]).sum(-1) / 2
    return np.concatenate([rankdata(-first, axis=-1), 1 + above], axis=-1)
