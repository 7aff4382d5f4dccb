"""The truth of each corpus, by seeds of the target models, and how far it can be trusted."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.truth import Target
from proxycast.experiments import reliability
from proxycast.experiments.arrays import DECIMALS
from proxycast.experiments.data_selection.corpus_scores import HIGHER, Signs
from proxycast.experiments.rank_statistics import decision_accuracy
from proxycast.options import InputError

log = logging.getLogger(__name__)


def truth_by_seed(checkpoints: pl.DataFrame, targets: pl.DataFrame, metric: str) -> pl.DataFrame:
    """corpus, seed, task, value of the target size's last checkpoints. `InputError` names what a corpus lacks."""
    # First the target's, then the last: a smaller model may have been trained for more steps.
    last = checkpoints.filter(role="target").filter(pl.col("step") == pl.col("step").max().over("corpus", "seed"))
    found = last.join(targets.filter(metric=metric), on="checkpoint")
    if found.is_empty():
        known = sorted(targets["metric"].unique())
        raise InputError(f"the truth holds no {metric} of a target checkpoint; found {known}")
    wanted = last.select("corpus", "checkpoint").join(found.select("task").unique(), how="cross")
    missing = wanted.join(found, on=["checkpoint", "task"], how="anti")
    if len(missing):
        corpus, checkpoint, task = missing.sort(pl.all()).row(0)
        raise InputError(
            f"the truth lacks {metric} of corpus {corpus} ({checkpoint}, task {task}) and {len(missing) - 1} more"
        )
    return found.select("corpus", "seed", "task", "value", "n")


def require_differences(truth: pl.DataFrame, metric: str) -> None:
    """`InputError` if the truth (`truth_by_seed`) is the same for all corpora: nothing could predict their order."""
    means = truth.group_by("corpus").agg(pl.col("value").mean())["value"].round(12)
    if means.n_unique() == 1:
        raise InputError(
            f"the truth ranks nothing: {metric} is {means[0]:.3g} for all {len(means)} corpora; "
            "give more problems, more corpora or a finer metric (choice_log_likelihood)"
        )


def oriented(truth: pl.DataFrame, sign: int) -> pl.DataFrame:
    """corpus, task, value: the mean over seeds of `truth_by_seed`, higher is better."""
    return truth.group_by("corpus", "task").agg(pl.col("value").mean() * sign)


def mean_truth(checkpoints: pl.DataFrame, targets: pl.DataFrame, tasks: Sequence[str], target: Target) -> pl.DataFrame:
    """corpus, task, value: the `oriented` truth of the target's metric."""
    of_tasks = targets.filter(pl.col("task").is_in(tasks))
    return oriented(truth_by_seed(checkpoints, of_tasks, target.metric), target.sign(target.metric))


def metric_truth_table(
    truths: dict[str, pl.DataFrame],
    chance: dict[str, float],
    options: SelectionOptions = reliability.DEFAULTS,
    signs: Signs = HIGHER,
) -> pl.DataFrame:
    """How far each truth can be trusted: one row a metric.

    `truths`: metric -> `truth_by_seed`, the target's metric first; `agreement` is the share of pairs of corpora that a
    metric orders as the first one does, each by its sign. `chance`: metric -> what guessing gets, where that is known.
    `reliability` is Spearman-Brown's over the seeds, the two ceilings are what a perfect prediction is expected to
    reach against so noisy a truth (`reliability.noise_ceiling`), each with a percentile bootstrap over the corpora;
    `verdict` says in a word what such a truth is worth (`reliability.verdict`). `above_chance` counts the corpora whose
    mean over seeds and tasks exceeds chance by two standard errors. What cannot be known is null; `note` says why.
    """
    rows = []
    for metric, truth in truths.items():
        row = _metric_row(metric, truth, chance.get(metric), options)
        rows.append(row | {"higher_is_better": signs.get(metric, 1) > 0})
        if row["verdict"] == reliability.NOISE:
            log.warning("%s", about_noisy_metric(row))
        if row["note"]:
            log.warning("the truth %s: %s", metric, row["note"])
    means = [oriented(truth, signs.get(metric, 1)) for metric, truth in truths.items()]
    means = [mean.group_by("corpus").agg(pl.col("value").mean()).sort("corpus") for mean in means]
    values = [mean["value"].round(DECIMALS).to_numpy() for mean in means]
    agreement = pl.Series([float(decision_accuracy(own, values[0])) for own in values])
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(agreement=agreement).select(TRUTH_COLUMNS)


TRUTH_COLUMNS = [
    *("metric", "higher_is_better", "corpora", "tasks", "seeds", "lowest", "highest", "spread", "seed_noise"),
    *("verdict", "reliability", "reliability_low", "reliability_high", "reliability_one_seed", "ceiling_spearman"),
    *("ceiling_decision_accuracy", "ceiling_decision_accuracy_low", "ceiling_decision_accuracy_high"),
    *("chance", "above_chance", "agreement", "note"),
]


def about_noisy_metric(row: Mapping[str, object]) -> str:
    """What a row of `metric_truth_table` with the verdict "noise" says, for the log and for figures."""
    low, high = row["reliability_low"], row["reliability_high"]
    interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    return (
        f"The truth may be noise: {row['metric']} has a reliability of {row['reliability']:.2f}{interval} over "
        f"{row['seeds']} seeds; nothing can be concluded from it."
    )


def _macro(truth: pl.DataFrame) -> pl.DataFrame:
    """Mean over tasks, and number of problems (null where one is unknown), of every corpus and seed."""
    problems = pl.when(pl.col("n").is_not_null().all()).then(pl.col("n").sum())
    return truth.group_by("corpus", "seed").agg(pl.col("value").mean(), problems).sort("corpus", "seed")


def _metric_row(metric: str, truth: pl.DataFrame, chance: float | None, options: SelectionOptions) -> dict:
    macro, notes = _macro(truth), []
    by_seed = macro.pivot(on="seed", index="corpus", values="value").drop("corpus").to_numpy().T  # (seeds, corpora)
    mean, (seeds, corpora) = by_seed.mean(0), by_seed.shape
    row = {"metric": metric, "corpora": corpora, "tasks": truth["task"].n_unique(), "seeds": seeds}
    row |= {"lowest": mean.min(), "highest": mean.max(), "spread": mean.std(ddof=1)}
    row |= dict.fromkeys(_OF_RELIABILITY) | {"chance": chance, "above_chance": None}
    # A truth that is constant over the corpora (an exact match of zero) has no ranking to be reliable.
    constant = bool((np.ptp(by_seed.round(DECIMALS), axis=1) == 0).any())
    if seeds > 1 and not constant:
        row |= _reliability_row(by_seed, notes, options)
    else:
        notes.append("reliability unknown: " + ("a seed is the same for all corpora" if constant else "one seed"))
    row["verdict"] = reliability.verdict(row["reliability"], row["reliability_low"])
    problems = macro.group_by("corpus").agg(pl.when(pl.col("n").is_not_null().all()).then(pl.col("n").sum()))
    if chance is not None and problems["n"].null_count() == 0:
        n = problems.sort("corpus")["n"].to_numpy()
        row["above_chance"] = int((mean - 2 * np.sqrt(chance * (1 - chance) / n) > chance).sum())
    elif chance is not None:
        notes.append("above_chance unknown: the number of problems (n) is not given")
    return row | {"note": "; ".join(notes)}


_OF_RELIABILITY = [
    *("seed_noise", "reliability", "reliability_low", "reliability_high", "reliability_one_seed", "ceiling_spearman"),
    *("ceiling_decision_accuracy", "ceiling_decision_accuracy_low", "ceiling_decision_accuracy_high"),
]


def _reliability_row(by_seed: np.ndarray, notes: list[str], options: SelectionOptions) -> dict[str, float]:
    """What seeds, (seeds, corpora), tell of each other; what is missing is told in `notes`."""
    of_mean = reliability.reliability(by_seed)
    row = {"seed_noise": float(np.sqrt(by_seed.var(0, ddof=1).mean())), "reliability": of_mean}
    row["reliability_one_seed"] = float(reliability.mean_correlation(by_seed).item())
    row["ceiling_spearman"], row["ceiling_decision_accuracy"] = reliability.noise_ceiling(of_mean)
    ends = reliability.reliability_interval(by_seed, options)
    if isinstance(ends, str):
        notes.append(f"reliability: {ends}")
    else:
        row["reliability_low"], row["reliability_high"] = ends
        accuracies = (reliability.noise_ceiling(end).decision_accuracy for end in ends)
        row["ceiling_decision_accuracy_low"], row["ceiling_decision_accuracy_high"] = accuracies
    return row
