"""What a choice of a corpus costs: regret, undecided pairs and the calibration of gaps, of every proxy and baseline.

All figures are over all tasks: score and truth are means over the tasks, as in the task "all" of decision_accuracy.

Shapes: S statistics, K seeds, n corpora, P pairs, B bootstrap samples.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget
from proxycast.config.truth import Target
from proxycast.experiments import bootstrap, choices, margins
from proxycast.experiments.arrays import DECIMALS, Array, dense
from proxycast.experiments.checkpoint_means import checkpoint_means
from proxycast.experiments.choosing.choice_rows import (
    CHOICE_COLUMNS,
    DECISION_COLUMNS,
    MARGIN_COLUMNS,
    Resampled,
    choice_columns,
    decision_columns,
    margin_table,
)
from proxycast.experiments.data_selection import corpus_scores, corpus_truth
from proxycast.experiments.rank_statistics import decision_accuracy, pair_signs
from proxycast.solutions.rows import GENERIC_TEXT

log = logging.getLogger(__name__)

ALL = "all"
EVERY_PAIR, SEEDS_AGREE, BEYOND_NOISE = "every pair", "seeds agree", "beyond seed noise"
TOLD_APART = "told apart"  # by the table pairs
METHOD = ["statistic", "weighting", "kind"]
CELL = ["size", "step"]
CORPUS_CHOICES = [
    *(*METHOD, *CELL, "seed", "tokens", "flops", "compute_fraction", "corpora", "decision_accuracy", "best", "picked"),
    *CHOICE_COLUMNS,
]
CORPUS_DECISIONS = [*METHOD, *CELL, "compute_fraction", "seeds", "rule", *DECISION_COLUMNS]
CORPUS_MARGINS = [*METHOD, *CELL, "compute_fraction", "seed", *MARGIN_COLUMNS]


class Cell(NamedTuple):
    """A size and step: the scores of all statistics, (S, K, n), and what its rows say of themselves."""

    statistics: pl.DataFrame  # METHOD
    at: pl.DataFrame  # one row: size, step, tokens, flops, compute_fraction
    scores: Array
    told: bool  # whether it has intervals
    budget: bool  # whether it is one of the study's budgets

    def labels(self, *names: str) -> pl.DataFrame:
        return self.statistics.join(self.at.select(names), how="cross", maintain_order="left")


def corpus_choice_tables(
    checkpoints: pl.DataFrame,
    targets: pl.DataFrame,
    tasks: Sequence[str],
    target: Target,
    options: SelectionOptions,
    budgets: Sequence[Budget],
    *,
    proxies: pl.LazyFrame | None = None,
    outside: pl.DataFrame | None = None,
    pairs: pl.DataFrame | None = None,
) -> dict[str, pl.DataFrame]:
    """The tables choices, decisions and margins of a data selection.

    `proxies`, `targets` and `outside` as in `data_tables.data_selection_tables`, but without means over checkpoints:
    they are taken here, of the means over tasks. `pairs`: the table of that name, which tells corpora apart.

    choices: every statistic, size and step, with the seeds "mean" (scores averaged over seeds) and "single" (mean over
    seeds of the figures of each). The best baseline is that of the highest decision accuracy in the same size, step and
    seed, as in decision_accuracy: with regret itself as the measure it would be the luckiest pick of many. Intervals
    are those of the study's budgets and of the last step of each size. decisions and margins are of the budgets.
    """
    by_seed = corpus_truth.truth_by_seed(checkpoints, targets.filter(pl.col("task").is_in(tasks)), target.metric)
    corpus_truth.require_differences(by_seed, target.metric)
    by_task = corpus_truth.oriented(by_seed, target.sign(target.metric))
    of_corpora = by_task.group_by("corpus").agg(pl.col("value").mean()).sort("corpus")
    corpora, truth = of_corpora.select("corpus"), np.round(of_corpora["value"].to_numpy(), DECIMALS)
    weights = bootstrap.bootstrap_weights(len(corpora), options.bootstrap_replicates, options.seed)
    resampled = Resampled("corpora", weights, options)
    signs = corpus_scores.metric_signs(targets, target)
    given = (_mean_over_tasks(table, tasks) for table in (proxies, targets, outside))
    predicted = _predicted(checkpoints, *given, signs, options.last_checkpoints)
    target_flops = checkpoints.filter(role="target")["flops"].max()
    found: dict[str, list[pl.DataFrame]] = {"choices": [], "decisions": [], "margins": []}
    for cell in _cells(predicted, corpora, target_flops, budgets):
        found["choices"].append(_choices(cell, corpora["corpus"].to_list(), truth, resampled))
        if cell.budget:
            found["decisions"].append(_decisions(cell, corpora["corpus"].to_list(), truth, resampled, pairs))
            found["margins"] += _margins(cell, truth, resampled)
    tables = {name: pl.concat(parts) for name, parts in found.items()}
    for size, step in tables["decisions"].filter(seeds=1).select(CELL).unique(maintain_order=True).iter_rows():
        log.info("size %s, step %s has one seed: nothing is known of its noise, in decisions and margins", size, step)
    return tables


def _mean_over_tasks(table: pl.LazyFrame | pl.DataFrame | None, tasks: Sequence[str]) -> pl.DataFrame | None:
    """`table` (checkpoint, task, ..., value) with one task, the mean over `tasks`, and the generic text as it is.

    What is not known in every task is left out.
    """
    if table is None:
        return None
    table = table.lazy()
    columns = table.collect_schema().names()
    if "tail" in columns:  # all models share a tokenizer, so a tail in tokens is the same span of text
        table = table.filter(tail="tokens")
    keys = [name for name in columns if name in ("checkpoint", "statistic", "weighting", "metric", "higher_is_better")]
    own = (
        table.filter(pl.col("task").is_in(list(tasks)))
        .group_by(keys, maintain_order=True)
        .agg(pl.col("value").mean(), count=pl.len())
    )
    own = own.filter(pl.col("count") == len(tasks)).select(*keys, "value", task=pl.lit(ALL))
    generic = table.filter(task=GENERIC_TEXT).select(*keys, "value", "task")
    return pl.concat([own, generic]).collect(engine="streaming")


def _predicted(
    checkpoints: pl.DataFrame,
    proxies: pl.DataFrame | None,
    targets: pl.DataFrame,
    outside: pl.DataFrame | None,
    signs: corpus_scores.Signs,
    last_checkpoints: int,
) -> pl.DataFrame:
    """`corpus_scores.predictions` of the means over tasks."""
    small = checkpoints.filter(role="proxy")
    empty = pl.DataFrame(schema=dict.fromkeys(("checkpoint", "statistic", "weighting"), pl.String) | _VALUE)
    proxies = empty if proxies is None else proxies
    values = [checkpoint_means(table.lazy(), small, last_checkpoints).collect() for table in (proxies, targets)]
    return corpus_scores.predictions(checkpoints, *values, [ALL], signs, outside)


_VALUE = {"value": pl.Float64, "task": pl.String}


def _cells(
    predicted: pl.DataFrame, corpora: pl.DataFrame, target_flops: float, budgets: Sequence[Budget]
) -> Iterator[Cell]:
    wanted = {(budget.size, budget.step) for budget in budgets}
    ends = set(predicted.group_by("size").agg(pl.col("step").max()).iter_rows())
    for (size, step), rows in predicted.group_by(CELL, maintain_order=True):
        statistics = rows.select(METHOD).unique(maintain_order=True)
        axes = [statistics, rows.select("seed").unique().sort("seed"), corpora]
        scores = np.round(dense(rows, "score", f"size {size}, step {step}: score", axes), DECIMALS)
        tokens, flops = pl.col("tokens").mean().round().cast(pl.Int64), pl.col("flops").mean()
        at = rows.group_by(CELL).agg(tokens, flops, compute_fraction=flops / target_flops)
        is_budget = (size, step) in wanted
        yield Cell(statistics, at, scores, is_budget or (size, step) in ends, is_budget)


def _choices(cell: Cell, corpora: Sequence[str], truth: Array, resampled: Resampled) -> pl.DataFrame:
    """Two rows a statistic: of the scores averaged over seeds, and the mean over single seeds."""
    mean, alone = np.round(cell.scores.mean(1), DECIMALS), np.round(cell.scores, DECIMALS)
    accuracies = {"mean": decision_accuracy(mean, truth), "single": decision_accuracy(alone, truth).mean(1)}
    of_all = _mean_and_single(alone, mean, truth, None)
    samples = _mean_and_single(alone, mean, truth, resampled.weights) if cell.told else {}
    parts, random = [], choices.at_random(truth)
    best = _named(corpora, truth == truth.max())
    picked = [_named(corpora, row == row.max()) for row in mean]
    baselines = np.flatnonzero(cell.statistics["kind"] == "baseline")
    for seed, accuracy in accuracies.items():
        baseline = int(baselines[accuracy[baselines].argmax()]) if len(baselines) else None
        points = {name: values[:, 0] for name, values in of_all[seed].items()}
        figures = choice_columns(
            points, samples.get(seed), random, points["regret"] / random["regret"], baseline, resampled, np.ptp(truth)
        )
        rows = cell.labels(*CELL, "tokens", "flops", "compute_fraction").with_columns(
            pl.lit(seed).alias("seed"),
            pl.lit(len(corpora), pl.Int64).alias("corpora"),
            pl.Series("decision_accuracy", accuracy, pl.Float64),
            pl.lit(best).alias("best"),
            pl.Series("picked", picked if seed == "mean" else [None] * len(mean), pl.String),
            pl.lit(None if baseline is None else cell.statistics["statistic"][baseline], pl.String).alias(
                "best_baseline"
            ),
            *figures,
        )
        parts.append(rows.select(CORPUS_CHOICES))
    return pl.concat(parts)


def _mean_and_single(scores: Array, mean: Array, truth: Array, weights: Array | None) -> dict[str, dict[str, Array]]:
    """Seed -> figure -> (S, 1) or (S, B)."""
    of_mean = choices.choice_figures(mean, truth, weights=weights)
    if scores.shape[1] == 1:
        return {"mean": of_mean, "single": of_mean}
    total = dict.fromkeys(of_mean, 0.0)
    for seed in np.moveaxis(scores, 1, 0):
        own = choices.choice_figures(seed, truth, weights=weights)
        total = {name: total[name] + own[name] for name in total}
    return {"mean": of_mean, "single": {name: values / scores.shape[1] for name, values in total.items()}}


MOST_NAMED = 3


def _named(corpora: Sequence[str], chosen: Array) -> str:
    names = [corpora[at] for at in np.flatnonzero(chosen)]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _decisions(
    cell: Cell, corpora: Sequence[str], truth: Array, resampled: Resampled, pairs: pl.DataFrame | None
) -> pl.DataFrame:
    """A row for each statistic and rule."""
    seeds = cell.scores.shape[1]
    by_rule = {EVERY_PAIR: pair_signs(np.round(cell.scores.mean(1), DECIMALS))}
    if seeds > 1:
        by_rule[SEEDS_AGREE] = choices.signs_where_seeds_agree(cell.scores)
        by_rule[BEYOND_NOISE] = choices.signs_beyond_noise(cell.scores, resampled.options.confidence)
    parts = [(rule, cell.labels(*CELL, "compute_fraction"), signs) for rule, signs in by_rule.items()]
    if pairs is not None:
        here = pairs.join(cell.at, on=CELL, how="semi", maintain_order="left")
        found = [signs_of(here.filter(statistic=s, weighting=w), corpora) for s, w, _ in cell.statistics.iter_rows()]
        known = [row for row, signs in enumerate(found) if signs is not None]
        if known:
            signs = np.stack([found[row] for row in known])
            parts.append((TOLD_APART, cell.labels(*CELL, "compute_fraction")[known], signs))
    return pl.concat(
        labels.with_columns(
            pl.lit(seeds, pl.Int64).alias("seeds"),
            pl.lit(rule).alias("rule"),
            *decision_columns(signs, truth, resampled),
        ).select(CORPUS_DECISIONS)
        for rule, labels, signs in parts
    )


def signs_of(pairs: pl.DataFrame, names: Sequence[str]) -> Array | None:
    """1, -1 or 0 of each pair i < j of `names`, by a `candidate_order.pair_table`; None where it tells nothing."""
    place = {name: number for number, name in enumerate(names)}
    among = pairs.filter(pl.col("better").is_in(names), pl.col("worse").is_in(names)).drop_nulls("told_apart")
    if among.is_empty():
        return None
    order = np.zeros((len(names), len(names)))
    for better, worse in among.filter("told_apart").select("better", "worse").iter_rows():
        order[place[better], place[worse]], order[place[worse], place[better]] = 1, -1
    return order[np.triu_indices(len(names), 1)]


def _margins(cell: Cell, truth: Array, resampled: Resampled) -> Iterator[pl.DataFrame]:
    """The tables of both units, for scores averaged over seeds and for single seeds."""
    seeds = cell.scores.shape[1]
    for seed, scores in (("mean", cell.scores.mean(1, keepdims=True)), ("single", cell.scores)):
        units = {margins.SPREAD: scores.std(-1, ddof=1)}  # (S, Q)
        if seeds > 1:
            noise = choices.seed_noise(cell.scores) / (np.sqrt(seeds) if seed == "mean" else 1)
            units[margins.SEED_NOISE] = np.tile(noise[:, None], scores.shape[1])
        for unit, sizes in units.items():
            labels = cell.labels(*CELL, "compute_fraction").with_columns(pl.lit(seed).alias("seed"))
            pairs = margins.pairs_of(scores, truth, sizes)
            yield margin_table(labels, pairs, unit, sizes.mean(1), resampled).select(CORPUS_MARGINS)
