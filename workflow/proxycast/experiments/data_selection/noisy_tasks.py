"""Less noise: tasks that only add noise are left out, seeds and checkpoints are averaged; and what each gains.

Fixed before the first look:

*Tasks.* Two rules name the tasks of a statistic at a size and step, from the scores of small models alone:

- `indistinct`: the task cannot tell the corpora apart. The F-test of a one-way analysis of variance, corpora as groups
  and seeds as repeats, does not reject at 1 - `confidence` (Fisher, Statistical Methods for Research Workers, 1925).
  Such a task only adds noise. If every task is so, none is left out.
- `lowers_snr`: without the task the mean over tasks has more signal to noise (dispersion over seed noise,
  `signal_to_noise`). Tasks are left out one by one, each time that whose loss raises the ratio most, until none does.

Each rule is judged on other corpora than it saw. The corpora are halved at random `SPLITS` times; one half names the
tasks, and the other is ordered by the mean over seeds and all tasks, and by that over the tasks that remain. The truth
is always the mean over all tasks. A pair of corpora has the mean of both over the splits that held it out; the gain is
the mean difference over pairs, with a bootstrap over corpora, as everywhere.

*Repeats.* Every statistic of one run is compared with the mean of several seeds, with the mean of the last
`noise_checkpoints` checkpoints, and with both. Seeds multiply the training compute; earlier checkpoints cost no
training, and all are scored. `rival`: the single run that the same compute buys instead, that of the most compute among
the sizes and steps here that cost more than one run and no more than all of the seeds. It is chosen by its cost alone.

Shapes: S statistics, K seeds, T tasks, n corpora, m corpora of a half, M splits, P pairs, B samples.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget
from proxycast.config.truth import Target
from proxycast.experiments import bootstrap
from proxycast.experiments import signal_to_noise as snr
from proxycast.experiments.arrays import DECIMALS, Array, dense
from proxycast.experiments.data_selection import corpus_scores
from proxycast.experiments.data_selection.corpus_truth import oriented, truth_by_seed
from proxycast.experiments.rank_statistics import ResampledTruth
from proxycast.truth.targets import TARGETS_SCHEMA

log = logging.getLogger(__name__)

Mask = NDArray[np.bool_]
RULES = ("indistinct", "lowers_snr")
SPLITS = 200
LEAST_CORPORA = 4  # two that choose and two that judge
HALVES = 3  # stream of random numbers; those below are of `ranking` and `candidate_order`


def signal_tables(
    checkpoints: pl.DataFrame,
    tasks: Sequence[str],
    options: SelectionOptions,
    budgets: Sequence[Budget],
    *,
    proxies: pl.LazyFrame | None = None,
    targets: pl.DataFrame | None = None,
    target: Target | None = None,
    outside: pl.DataFrame | None = None,
) -> dict[str, pl.DataFrame]:
    """The table signal_to_noise, and with a truth also snr_and_accuracy, task_choice and repeats.

    At the last step of each size that most seeds reach, and at the budgets. Always of single checkpoints, whatever
    `options.last_checkpoints` says. `task_choice` has the budgets only. The arguments are those of
    `data_tables.data_selection_tables`.
    """
    proxies = NO_PROXIES if proxies is None else proxies.filter(tail="tokens")
    targets = pl.DataFrame(schema=TARGETS_SCHEMA) if targets is None else targets
    of_tasks = targets.filter(pl.col("task").is_in(tasks))
    signs = corpus_scores.HIGHER if target is None else corpus_scores.metric_signs(targets, target)
    needed, at = _needed(checkpoints, budgets, options.noise_checkpoints)
    truth, truth_cells = None, []
    if target is not None:
        truths = {m: truth_by_seed(checkpoints, of_tasks, m) for m in (target.metric, *target.other_metrics)}
        truth, truth_cells = oriented(truths[target.metric], signs[target.metric]), _truth_cells(truths, signs, needed)
    tables = {"signal_to_noise": [], "snr_and_accuracy": [], "task_choice": [], "repeats": []}
    over_all, without_choice = [], {"": []}
    by_size = corpus_scores.predictions_by_size(needed, proxies, of_tasks, tasks, signs, outside)
    for cell in chain.from_iterable(snr.cells(of_size, at, options.noise_checkpoints) for of_size in by_size):
        weights = bootstrap.bootstrap_weights(len(cell.candidates), options.bootstrap_replicates, options.seed)
        values = None if truth is None else _truth_of(truth, cell)
        samples = list(snr.cell_samples(cell, values, weights))
        tables["signal_to_noise"] += [snr.signal_rows(of_task, options.confidence) for of_task in samples]
        if values is None:
            continue
        over_all.append(samples[0])
        tables["snr_and_accuracy"] += snr.foresight_in_cell(samples[1:], options.confidence)
        tables["repeats"].append(_repeats_of(cell, values[0], weights))
        if any((budget.size, budget.step) == (cell.size, cell.step) for budget in budgets):
            tables["task_choice"].append(task_choice(cell, values[0], weights, options))
            without_choice.setdefault(why_no_choice(cell), []).append(f"{cell.size} at step {cell.step}")
    for cell in truth_cells:
        weights = bootstrap.bootstrap_weights(len(cell.candidates), options.bootstrap_replicates, options.seed)
        samples = snr.cell_samples(cell, None, weights)
        tables["signal_to_noise"] += [snr.signal_rows(of_task, options.confidence) for of_task in samples]
    signal = pl.concat(tables["signal_to_noise"])
    snr.tell_unknown_noise(signal, options.noise_checkpoints)
    if truth is None:
        return {"signal_to_noise": signal}
    del without_choice[""]
    for why, where in without_choice.items():
        log.warning("task_choice has no row of %s: %s", ", ".join(where), why)
    flops = checkpoints.filter(role="target")["flops"].max()
    return {
        "signal_to_noise": signal,
        "snr_and_accuracy": snr.foresight_table(over_all, tables["snr_and_accuracy"], options.confidence),
        "task_choice": pl.concat([pl.DataFrame(schema=TASK_CHOICE_SCHEMA), *tables["task_choice"]]),
        "repeats": repeats_table(tables["repeats"], flops, options.confidence),
    }


NO_PROXIES = pl.LazyFrame(
    schema=dict.fromkeys(("checkpoint", "task", "statistic", "weighting"), pl.String) | {"value": pl.Float64}
)


def _needed(checkpoints: pl.DataFrame, budgets: Sequence[Budget], number: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The targets and the small models that the tables need, and the sizes and steps (size, step) of these tables.

    Of a large study the small models are many: only the `number` last checkpoints before a step are kept.
    """
    small = corpus_scores.comparable(checkpoints)
    seeds = small.group_by("size", "step").agg(pl.col("seed").n_unique(), pl.col("flops").mean())
    most = seeds.filter(pl.col("seed") == pl.col("seed").max().over("size"))
    last = most.filter(pl.col("step") == pl.col("step").max().over("size"))
    named = pl.DataFrame(
        [(b.size, b.step) for b in budgets], schema={"size": pl.String, "step": pl.Int64}, orient="row"
    )
    named = seeds.join(named, on=["size", "step"], how="semi")
    at = pl.concat([last, named]).unique(["size", "step"]).sort("flops", "size", "step").select("size", "step")
    steps = small.select("size", "seed", "step").unique()
    before = at.join(steps, on="size", suffix="_of_run").filter(pl.col("step_of_run") <= pl.col("step"))
    age = pl.col("step_of_run").rank("ordinal", descending=True).over("size", "step", "seed")
    window = before.filter(age <= number).select("size", "seed", step="step_of_run").unique()
    kept = small.join(window, on=["size", "seed", "step"], how="semi", maintain_order="left")
    return pl.concat([checkpoints.filter(role="target"), kept]), at


def _truth_of(truth: pl.DataFrame, cell: snr.Cell) -> Array:
    """The true values (T, n) of the corpora of `cell`, in its order of tasks."""
    axes = [pl.DataFrame({"task": cell.tasks[1:]}), pl.DataFrame({"corpus": cell.candidates})]
    values = dense(truth, "value", "true value", axes)
    return np.concatenate([values.mean(0, keepdims=True), values])


def _truth_cells(
    truths: dict[str, pl.DataFrame], signs: corpus_scores.Signs, checkpoints: pl.DataFrame
) -> list[snr.Cell]:
    """The metrics of the target models themselves, of the seeds that every corpus has."""
    large = checkpoints.filter(role="target")
    found = []
    for metric, truth in truths.items():
        shared = pl.col("corpus").n_unique().over("seed") == truth["corpus"].n_unique()
        rows = truth.filter(shared).select(
            *("corpus", "task", "seed"),
            score=pl.col("value") * signs[metric],
            statistic=pl.lit(metric),
            weighting=pl.lit("none"),
            kind=pl.lit("truth"),
            size=pl.lit(large["size"][0]),
            step=pl.lit(large["step"].max(), pl.Int64),
            flops=pl.lit(large["flops"].max(), pl.Float64),
        )
        found += snr.cells(rows, rows.select("size", "step").unique(), 1)
    return found


# Tasks that only add noise


def indistinct_tasks(scores: Array, confidence: float) -> Mask:
    """Which tasks of `scores` (S, K, T, n) cannot tell the candidates apart, by the rule `indistinct` -> (S, T).

    All False where every task is so, or with one seed.
    """
    seeds, n = scores.shape[1], scores.shape[-1]
    if seeds < 2:
        return np.zeros((len(scores), scores.shape[2]), bool)
    between = seeds * scores.mean(1).var(-1, ddof=1)  # (S, T)
    within = scores.var(1, ddof=1).mean(-1)
    bound = f_distribution.isf(1 - confidence, n - 1, n * (seeds - 1))
    found = between <= bound * within
    return found & ~found.all(-1, keepdims=True)


def tasks_that_lower_snr(scores: Array) -> Mask:
    """Which tasks of `scores` (S, K, T, n) are left out by the rule `lowers_snr` -> (S, T). All False with one seed."""
    statistics, seeds, tasks, n = scores.shape
    kept = np.ones((statistics, tasks), bool)
    if seeds < 2:
        return ~kept
    centred = scores - scores.mean(-1, keepdims=True)
    apart = scores - scores.mean(1, keepdims=True)
    # Variances of any mean over tasks follow from the covariances of tasks, (S, T, T).
    signal = np.einsum("sktn,skun->stu", centred, centred) / (seeds * (n - 1))
    noise = np.einsum("sktn,skun->stu", apart, apart) / (n * (seeds - 1))
    scale = np.abs(scores).max((1, 3)).sum(-1)  # (S,)

    def squared_ratio(of: Mask) -> Array:
        """Signal over noise, both variances, of the sum over the tasks `of` (S, ..., T) -> (S, ...)."""
        parts = [np.einsum("s...t,stu,s...u->s...", of, v, of, optimize=True) for v in (signal, noise)]
        least = (10.0**-DECIMALS * scale).reshape(-1, *(1,) * (of.ndim - 2)) ** 2
        without_noise = np.where(parts[0] > least, np.inf, 0)  # a task without signal, too, tells nothing
        return np.where(parts[1] > least, parts[0] / np.maximum(parts[1], least), without_noise)

    at = squared_ratio(kept.astype(float))
    for _ in range(tasks - 1):
        without = kept[:, None] & ~np.eye(tasks, dtype=bool)  # (S, T, T): one less each
        ratios = np.where(kept, squared_ratio(without.astype(float)), -np.inf)
        worst = ratios.argmax(1)
        best = ratios[np.arange(statistics), worst]
        better = best > at * (1 + 10.0**-DECIMALS)
        if not better.any():
            break
        kept[better, worst[better]] = False
        at = np.where(better, best, at)
    return ~kept


def named_tasks(scores: Array, rule: str, confidence: float) -> Mask:
    """The tasks of `scores` (S, K, T, n) that `rule` leaves out -> (S, T)."""
    return indistinct_tasks(scores, confidence) if rule == "indistinct" else tasks_that_lower_snr(scores)


@dataclass(frozen=True)
class HeldOut:
    """Agreement with the truth on corpora that chose nothing, means over the splits that held a pair out."""

    with_all: Array  # (S, P)
    without: Array  # (S, P)
    left_out: Array  # (S,), mean number of tasks


def held_out_agreement(
    scores: Array, truth: Array, rule: str, confidence: float, splits: int, rng: np.random.Generator
) -> HeldOut:
    """How pairs of held-out corpora are ordered with all tasks of `scores` (S, K, T, n), and without those named.

    `truth` (n,). 1: as the truth, 0: the other way, 1/2: a tie. NaN for a pair that no split held out.
    """
    statistics, n = len(scores), scores.shape[-1]
    means = scores.mean(1)  # (S, T, n)
    i, j = np.triu_indices(n, 1)
    right = np.sign(truth[i] - truth[j])

    def agreement(values: Array) -> Array:
        values = np.round(values, DECIMALS)
        return (1 + np.sign(values[:, i] - values[:, j]) * right) / 2

    of_all, total, count = agreement(means.mean(1)), np.zeros((statistics, len(i))), np.zeros(len(i))
    left_out = np.zeros(statistics)
    for _ in range(splits):
        choosing = np.zeros(n, bool)
        choosing[rng.permutation(n)[: n // 2]] = True
        named = named_tasks(scores[..., choosing], rule, confidence)
        kept = ~named / (~named).sum(-1, keepdims=True)
        judged = ~choosing[i] & ~choosing[j]
        total += np.where(judged, agreement(np.einsum("st,stn->sn", kept, means)), 0)
        count += judged
        left_out += named.sum(-1)
    without = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return HeldOut(np.where(count > 0, of_all, np.nan), without, left_out / splits)


def why_no_choice(cell: snr.Cell) -> str:
    """Why tasks cannot be chosen and judged; empty where they can."""
    _, seeds, tasks, corpora = cell.scores.shape
    if seeds < 2:
        return "one seed: no noise is known"
    if tasks < 3:  # with their mean
        return "one task: nothing can be left out"
    too_few = f"{corpora} corpora: too few to choose and to judge, at least {LEAST_CORPORA}"
    return too_few if corpora < LEAST_CORPORA else ""


def task_choice(cell: snr.Cell, truth: Array, weights: Array, options: SelectionOptions) -> pl.DataFrame:
    """The rows of the table `task_choice` of one cell: a row for each statistic and rule.

    `truth` (n,): the mean over all tasks. No row where `why_no_choice` has a reason.
    """
    scores, n = cell.scores[:, :, 1:], len(cell.candidates)
    if why_no_choice(cell):
        return pl.DataFrame(schema=TASK_CHOICE_SCHEMA)
    i, j = np.triu_indices(n, 1)
    macro, names = np.round(truth, DECIMALS), np.array(cell.tasks[1:])
    parts = []
    for rule in RULES:
        rng = bootstrap.stream(options.seed, HALVES)  # the same halves for every cell and rule
        held = held_out_agreement(scores, macro, rule, options.confidence, SPLITS, rng)
        named = named_tasks(scores, rule, options.confidence)
        used = np.isfinite(held.without[0]) & (macro[i] != macro[j])
        pairs = (weights[:, i] * weights[:, j]).T[used]  # (P, B)
        once = np.ones((used.sum(), 1))
        figures = {"decision_accuracy": held.with_all, "decision_accuracy_without": held.without}
        figures["gain"] = held.without - held.with_all
        of_pairs = {
            name: (_pair_mean(values[:, used], once)[:, 0], _pair_mean(values[:, used], pairs))
            for name, values in figures.items()
        }
        part = cell.labelled(
            **snr.interval_columns(of_pairs, n, options.confidence), left_out_in_splits=held.left_out
        ).with_columns(
            rule=pl.lit(rule),
            tasks=pl.lit(len(names), pl.Int64),
            named=pl.Series(named.sum(-1), dtype=pl.Int64),
            left_out=pl.Series([", ".join(names[row]) for row in named], dtype=pl.String),
            splits=pl.lit(SPLITS, pl.Int64),
            note=_no_interval(n, options.confidence),
        )
        parts.append(part.select(list(TASK_CHOICE_SCHEMA)).cast(TASK_CHOICE_SCHEMA))
    return pl.concat(parts)


def _no_interval(corpora: int, confidence: float) -> pl.Expr:
    """Why a row has no interval; empty where it has one."""
    if not bootstrap.enough_to_resample(corpora, confidence):
        return pl.lit(bootstrap.too_few("corpora", corpora))
    alike = pl.when(pl.col("decision_accuracy_low").is_null())
    return alike.then(pl.lit(bootstrap.all_alike("corpora"))).otherwise(pl.lit(""))


def _pair_mean(values: Array, pairs: Array) -> Array:
    """Mean of `values` (S, P) over pairs that occur `pairs` (P, B) times -> (S, B); NaN where a sample has none."""
    total = pairs.sum(0)
    shape = (len(values), len(total))
    return np.divide(values @ pairs, total, out=np.full(shape, np.nan), where=total > 0)


TASK_CHOICE_SCHEMA = {
    **dict.fromkeys(("statistic", "weighting", "kind", "size"), pl.String),
    **{"step": pl.Int64, "rule": pl.String, "tasks": pl.Int64, "named": pl.Int64, "left_out": pl.String},
    **{"left_out_in_splits": pl.Float64, "splits": pl.Int64},
    **{
        f"{name}{end}": pl.Float64
        for name in ("decision_accuracy", "decision_accuracy_without", "gain")
        for end in ("", "_low", "_high")
    },
    "note": pl.String,
}


# Repeats


@dataclass(frozen=True)
class Repeats:
    """Decision accuracies of means of seeds and checkpoints in one cell: (seeds, checkpoints) -> (S,), (S, B)."""

    cell: snr.Cell
    found: dict[tuple[int, int], tuple[Array, Array]]


def _repeats_of(cell: snr.Cell, truth: Array, weights: Array) -> Repeats:
    """Every number of seeds of `cell`, the mean over all choices of so many; `truth` (n,) over all tasks."""
    resampled = ResampledTruth(np.round(truth, DECIMALS), weights)
    at_once = ResampledTruth(resampled.truth, np.ones((1, len(truth))))
    means = {1: cell.scores[:, :, 0], cell.series.shape[2]: cell.series[:, :, :, 0].mean(2)}  # (S, K, n)
    found = {}
    for checkpoints, scores in means.items():
        known = np.isfinite(scores).all((1, 2))
        for number in range(1, scores.shape[1] + 1):
            groups = list(combinations(range(scores.shape[1]), number))
            parts = []
            for judge in (at_once, resampled):
                figures = [judge.decision_accuracy(np.round(scores[:, list(g)].mean(1), DECIMALS)) for g in groups]
                parts.append(np.where(known[:, None], np.mean(figures, axis=0), np.nan))
            found[number, checkpoints] = (parts[0][:, 0], parts[1])
    return Repeats(cell, found)


def repeats_table(repeated: Sequence[Repeats], target_flops: float, confidence: float) -> pl.DataFrame:
    """One row for each statistic, size, step, number of seeds and of checkpoints whose mean is the candidate's value.

    `target_flops`: training compute of one target run. Rows that cannot be computed are left out.
    """
    by_cost = sorted(repeated, key=lambda repeats: repeats.cell.flops)
    parts = [
        _repeats_rows(repeats, seeds, checkpoints, by_cost, target_flops, confidence)
        for repeats in by_cost
        for seeds, checkpoints in repeats.found
    ]
    return pl.concat([pl.DataFrame(schema=REPEATS_SCHEMA), *parts])


def _repeats_rows(
    repeats: Repeats,
    seeds: int,
    checkpoints: int,
    by_cost: Sequence[Repeats],
    target_flops: float,
    confidence: float,
) -> pl.DataFrame:
    cell, (values, samples) = repeats.cell, repeats.found[seeds, checkpoints]
    one, one_samples = repeats.found[1, 1]
    compute = seeds * cell.flops
    affordable = [r for r in by_cost if cell.flops < r.cell.flops <= compute]
    figures = {"decision_accuracy": (values, samples), "gain": (values - one, samples - one_samples)}
    rival, rival_values = affordable[-1] if affordable else None, np.full(len(values), np.nan)
    over = np.full(len(values), np.nan), np.full(samples.shape, np.nan)
    if rival is not None:
        keys = cell.statistics.select(snr.NAME).with_row_index("row")
        both = keys.join(rival.cell.statistics.with_row_index("there"), on=snr.NAME, maintain_order="left")
        row, there = both["row"].to_numpy(), both["there"].to_numpy()
        of_rival, of_rival_samples = rival.found[1, 1]
        rival_values[row] = of_rival[there]
        over[0][row], over[1][row] = values[row] - of_rival[there], samples[row] - of_rival_samples[there]
    figures["over_rival"] = over
    columns = {"rival_decision_accuracy": rival_values}
    columns |= snr.interval_columns(figures, len(cell.candidates), confidence)
    rows = cell.labelled(**columns).with_columns(
        seeds=pl.lit(seeds, pl.Int64),
        checkpoints=pl.lit(checkpoints, pl.Int64),
        scored_checkpoints=pl.lit(seeds * checkpoints, pl.Int64),
        flops=pl.lit(compute, pl.Float64),
        compute_fraction=pl.lit(compute / target_flops, pl.Float64),
        rival_size=pl.lit(rival and rival.cell.size, pl.String),
        rival_step=pl.lit(rival and rival.cell.step, pl.Int64),
        rival_compute_fraction=pl.lit(rival and rival.cell.flops / target_flops, pl.Float64),
        note=_no_interval(len(cell.candidates), confidence),
    )
    return rows.select(list(REPEATS_SCHEMA)).cast(REPEATS_SCHEMA).filter(pl.col("decision_accuracy").is_not_null())


REPEATS_SCHEMA = {
    **dict.fromkeys(("statistic", "weighting", "kind", "size"), pl.String),
    **dict.fromkeys(("step", "seeds", "checkpoints", "scored_checkpoints"), pl.Int64),
    **dict.fromkeys(("flops", "compute_fraction", "decision_accuracy"), pl.Float64),
    **dict.fromkeys(("decision_accuracy_low", "decision_accuracy_high", "gain", "gain_low", "gain_high"), pl.Float64),
    **{"rival_size": pl.String, "rival_step": pl.Int64},
    **dict.fromkeys(("rival_compute_fraction", "rival_decision_accuracy"), pl.Float64),
    **dict.fromkeys(("over_rival", "over_rival_low", "over_rival_high"), pl.Float64),
    "note": pl.String,
}
