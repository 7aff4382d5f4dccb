"""Data selection: every proxy and baseline of the small models as a prediction of the target's ranking of corpora."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from proxycast.compute import compute_to_reach_table, pareto_table
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget, Proxy
from proxycast.config.truth import Target
from proxycast.experiments.data_selection import corpus_scores, corpus_truth, law_predictions
from proxycast.experiments.data_selection.corpus_order import about_orders, corpus_orders, order_table
from proxycast.experiments.data_selection.law_predictions import LawCell
from proxycast.experiments.data_selection.ranking import (
    against_baselines_table,
    decision_accuracy_table,
    ranking_table,
)
from proxycast.experiments.reliability import ABOVE_CEILING
from proxycast.solutions.rows import Problem
from proxycast.truth.targets import MULTIPLE_CHOICE_ACCURACY, TARGETS_SCHEMA, chance_accuracy, log_unknown

log = logging.getLogger(__name__)

# Of a study that runs no model.
NO_SCORES = pl.LazyFrame(
    schema=dict.fromkeys(("checkpoint", "task", "solution", "statistic", "weighting"), pl.String)
    | dict.fromkeys(("value", "denominator"), pl.Float64)
)


def data_selection_tables(
    checkpoints: pl.DataFrame,
    targets: pl.DataFrame,
    tasks: Sequence[str],
    target: Target,
    options: SelectionOptions,
    budgets: Sequence[Budget],
    highlighted: Sequence[Proxy],
    *,
    proxies: pl.LazyFrame | None = None,
    of_solutions: pl.LazyFrame | None = None,
    token_stats: Iterable[Path] = (),
    problems: Mapping[str, Sequence[Problem]] | None = None,
    outside: pl.DataFrame | None = None,
    curve: pl.DataFrame | None = None,
    threads: int = 1,
) -> dict[str, pl.DataFrame]:
    """The tables of a judged data selection, by their names.

    With `options.scaling_laws` also scaling_laws, law_points and law_gains; the laws are in the other tables, too.
    `proxies`, `of_solutions` (per solution) and `token_stats` (a file for each checkpoint) come from models that were
    run, `outside` and `curve` from others (`outside_statistics.statistics_and_truth`, `published_curve`).
    """
    if target.table:
        log_unknown(targets, checkpoints["checkpoint"].to_list(), tasks)
    proxies, of_solutions = _in_tokens(proxies), _in_tokens(of_solutions)
    corpus_scores.require_known(checkpoints, proxies)
    small, large = checkpoints.filter(role="proxy"), checkpoints.filter(role="target")
    of_tasks = targets.filter(pl.col("task").is_in(tasks))
    truths = {m: corpus_truth.truth_by_seed(checkpoints, of_tasks, m) for m in (target.metric, *target.other_metrics)}
    corpus_truth.require_differences(truths[target.metric], target.metric)
    signs = corpus_scores.metric_signs(targets, target)
    means = {metric: corpus_truth.oriented(truth, signs[metric]) for metric, truth in truths.items()}
    at = pl.DataFrame([(budget.size, budget.step) for budget in budgets], ["size", "step"], orient="row")
    by_size = corpus_scores.predictions_by_size(checkpoints, proxies, targets, tasks, signs, outside)
    judged = _judged(by_size, checkpoints, means, target.metric, options, at, highlighted, threads)
    decision_accuracy = _with_curve(judged.decision_accuracy, curve, target.metric)
    # Scores of single solutions are many: the ranking is made at the study's budgets only.
    needed = large.vstack(small.join(at, ["size", "step"], "semi"))
    scores = corpus_scores.solution_scores(needed, of_solutions, judged.at_budgets, highlighted)
    orders = corpus_orders(scores, options, truths[target.metric]["corpus"].unique().to_list())
    of_target = decision_accuracy.filter(truth=target.metric)
    parameters = dict(checkpoints.select("size", "active_parameters").iter_rows())
    parameters |= {cell.size: sum(parameters[size] for size in cell.sizes) for cell in judged.cells}
    pareto = pareto_table(of_target, parameters, corpus_scores.tokens_read(token_stats, set(small["checkpoint"])))
    chance = {MULTIPLE_CHOICE_ACCURACY: chance_accuracy(problems or {})}
    truth = corpus_truth.metric_truth_table(truths, chance, options, signs)
    ceiling = truth.filter(metric=target.metric)["ceiling_decision_accuracy"].item()
    return {
        "summary": budget_summary(of_target, [*budgets, *judged.cells], highlighted, ceiling),
        "ranking": ranking_table(orders, truths[target.metric], options, signs[target.metric]),
        **about_orders(orders, options.confidence),
        "decision_accuracy": decision_accuracy,
        "against_baselines": judged.against_baselines,
        "pareto": pareto,
        "compute_to_reach": compute_to_reach_table(pareto, options.thresholds),
        "predictions": corpus_scores.mean_predictions(judged.at_budgets, truths[target.metric]),
        "truth": truth,
        **judged.laws,
    }


class _Judged(NamedTuple):
    """What comes of the predictions of all sizes."""

    decision_accuracy: pl.DataFrame  # of every truth
    at_budgets: pl.DataFrame  # predictions there
    against_baselines: pl.DataFrame
    laws: dict[str, pl.DataFrame]  # the tables of scaling laws
    cells: Sequence[LawCell]


def _judged(
    by_size: Iterable[pl.DataFrame],
    checkpoints: pl.DataFrame,
    truths: Mapping[str, pl.DataFrame],
    metric: str,
    options: SelectionOptions,
    at: pl.DataFrame,
    highlighted: Sequence[Proxy],
    threads: int,
) -> _Judged:
    """`truths`: metric -> corpus, task, value; `metric` is the target's. `at`: size and step of the budgets."""
    target_flops = checkpoints.filter(role="target")["flops"].max()
    accuracies, at_budgets, of_laws = {name: [] for name in truths}, [], []
    for predicted in by_size:
        for name, truth in truths.items():
            accuracies[name].append(decision_accuracy_table(predicted, truth, target_flops, options, threads))
        at_budgets.append(predicted.join(at, ["size", "step"], "semi"))
        if options.scaling_laws:
            of_laws.append(law_predictions.law_rows(predicted, options.scaling_laws, metric))
    laws, cells = {}, []
    if of_laws:
        rows = pl.concat(of_laws)
        laws, of_truths, cells = law_predictions.law_tables(rows, checkpoints, truths, metric, options, threads)
        for name, table in of_truths.items():
            accuracies[name].append(table)
    tables = [pl.concat(parts).select(pl.lit(name).alias("truth"), pl.all()) for name, parts in accuracies.items()]
    at_budgets = pl.concat(at_budgets)
    against = against_baselines_table(at_budgets, truths[metric], target_flops, options, highlighted)
    return _Judged(pl.concat(tables), at_budgets, against, laws, cells)


def order_tables(
    checkpoints: pl.DataFrame,
    proxies: pl.LazyFrame | None,
    of_solutions: pl.LazyFrame | None,
    tasks: Sequence[str],
    options: SelectionOptions,
    budgets: Sequence[Budget],
    highlighted: Sequence[Proxy],
    outside: pl.DataFrame | None = None,
) -> dict[str, pl.DataFrame]:
    """The tables ranking, pairs and agreement of a study without a truth, as in `data_selection_tables`."""
    proxies, of_solutions = _in_tokens(proxies), _in_tokens(of_solutions)
    corpus_scores.require_known(checkpoints, proxies)
    at = pl.DataFrame([(budget.size, budget.step) for budget in budgets], ["size", "step"], orient="row")
    small = checkpoints.join(at, ["size", "step"], "semi", maintain_order="left")
    of_small = proxies.filter(pl.col("checkpoint").is_in(small["checkpoint"].to_list())).collect(engine="streaming")
    predicted = corpus_scores.predictions(small, of_small, pl.DataFrame(schema=TARGETS_SCHEMA), tasks, outside=outside)
    scores = corpus_scores.solution_scores(small, of_solutions, predicted, highlighted)
    names = [(b.size, b.step, p.statistic, p.weighting) for b in budgets for p in highlighted]
    orders = sorted(
        corpus_orders(scores, options),
        key=lambda order: names.index(order.key.select("size", "step", "statistic", "weighting").row(0)),
    )
    return {
        "ranking": order_table(orders, options.confidence),
        **about_orders(orders, options.confidence),
    }


def _with_curve(decision_accuracy: pl.DataFrame, curve: pl.DataFrame | None, metric: str) -> pl.DataFrame:
    if curve is None:
        return decision_accuracy
    curve = curve.select(pl.lit(metric).alias("truth"), pl.all()).cast(dict(decision_accuracy.schema))
    return pl.concat([decision_accuracy, curve])


def _in_tokens(table: pl.LazyFrame | None) -> pl.LazyFrame:
    # All models share a tokenizer: a tail in tokens is the same span of text for all of them.
    return NO_SCORES if table is None else table.filter(tail="tokens")


def budget_summary(
    decision_accuracy: pl.DataFrame,
    budgets: Sequence[Budget | LawCell],
    highlighted: Sequence[Proxy],
    ceiling: float | None,
) -> pl.DataFrame:
    """At each budget, best first: the ten best proxies, the highlighted ones, all baselines, and the noise ceiling.

    Over all tasks, for a single seed (`seed` "single" of `decision_accuracy_table`). The ten best are chosen in
    hindsight. `note` says why an interval is missing, and which rows exceed the ceiling.
    """
    fixed = pl.DataFrame([proxy.model_dump() for proxy in highlighted]).with_columns(highlighted=True)
    rows = decision_accuracy.filter(task="all", seed="single").join(fixed, on=["statistic", "weighting"], how="left")
    rows = rows.with_columns(pl.col("highlighted").fill_null(False), noise_ceiling=pl.lit(ceiling, pl.Float64))
    above = (pl.col("decision_accuracy") > pl.col("noise_ceiling")).fill_null(False)
    told = pl.concat_list(pl.col("note"), pl.when(above).then(pl.lit(ABOVE_CEILING)).otherwise(pl.lit("")))
    rows = rows.with_columns(note=told.list.filter(pl.element() != "").list.join("; "))
    parts = []
    for budget in budgets:
        cell = rows.filter(size=budget.size, step=budget.step).sort(
            "decision_accuracy", descending=True, nulls_last=True
        )
        place = pl.col("decision_accuracy").rank("ordinal", descending=True).over("kind")
        kept = cell.filter((pl.col("kind") == "baseline") | pl.col("highlighted") | (place <= BEST))
        parts.append(kept.select(pl.lit(budget.name).alias("budget"), *SUMMARY_COLUMNS))
    table = pl.concat(parts)
    for note, count in table.filter(pl.col("note") != "").group_by("note", maintain_order=True).len().iter_rows():
        log.warning("%d of %d rows of the summary: %s", count, len(table), note)
    log.info(ABOUT_FAMILIES)
    return table


BEST = 10
ABOUT_FAMILIES = (
    "intervals of decision accuracy take corpora for independent: where several share sources, they are too narrow for "
    "corpora of other sources"
)
SUMMARY_COLUMNS = [
    *("size", "step", "compute_fraction", "statistic", "weighting", "kind", "highlighted", "depends_on_candidate"),
    *("decision_accuracy", "low", "high", "noise_ceiling", "spearman", "spearman_low", "spearman_high"),
    *("best_baseline", "difference", "difference_low", "difference_high", "note"),
]
