"""Data selection: every proxy and baseline of the small models as a prediction of the target's ranking of corpora."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl

from proxycast.config import GENERIC_TEXT, Budget, Proxy, Target
from proxycast.metrics import is_error
from proxycast.options import InputError
from proxycast.proxies import BASELINE_SIGNS, STATISTICS, WEIGHTINGS
from proxycast.ranking import (
    ABOVE_CEILING,
    DECIMALS,
    DEFAULTS,
    NOISE,
    SelectionOptions,
    decision_accuracy,
    mean_correlation,
    noise_ceiling,
    reliability,
    reliability_interval,
    verdict,
)

log = logging.getLogger(__name__)

_RUN = ["corpus", "size", "step", "seed", "tokens", "flops"]
_STATISTIC = ["statistic", "weighting", "kind", "depends_on_candidate"]


HIGHER_IS_BETTER: Mapping[str, int] = {}


def metric_signs(targets: pl.DataFrame, target: Target) -> dict[str, int]:
    """Metric of the truth -> -1 where less of it is better, else 1 (`Target.sign`)."""
    signs = {metric: target.sign(metric) for metric in targets["metric"].unique().sort()}
    for metric, sign in signs.items():
        if is_error(metric) and sign > 0 and metric != target.metric:
            log.warning("%s counts as better the more; if less is better, name it in target.lower_is_better", metric)
    return signs


def predictions(
    checkpoints: pl.DataFrame,
    proxies: pl.DataFrame,
    targets: pl.DataFrame,
    tasks: Sequence[str],
    signs: Mapping[str, int] = HIGHER_IS_BETTER,
) -> pl.DataFrame:
    """What `ranking.decision_accuracy_table` judges: one score for every proxy checkpoint, task and statistic.

    Higher is better in all of them: the signs are applied here, those of metrics by `metric_signs`. Only corpora that
    have a target can be judged, and of their checkpoints only those that all of them have (`comparable`).
    Baselines carry the weighting "none". Those that know no tasks (generic cross-entropy, parameters, training compute,
    chance) are repeated under every task. The downstream metrics of the small models themselves are baselines at every
    size and step at which they were measured for all of them.
    """
    small = comparable(checkpoints).select("checkpoint", "parameters", *_RUN)
    tasks = pl.DataFrame({"task": sorted(tasks)})
    proxies = proxies.join(small, on="checkpoint", how="semi")
    parts = [
        _scores_of_proxies(proxies.filter(pl.col("task") != GENERIC_TEXT)),
        _scores_of_ratios(proxies.filter(pl.col("task") != GENERIC_TEXT)),
        _generic_cross_entropy(proxies.filter(pl.col("task") == GENERIC_TEXT)).join(tasks, how="cross"),
        _direct(targets, small, tasks, signs),
        _known_without_scoring(small).join(tasks, how="cross"),
    ]
    columns = ["checkpoint", "task", *_STATISTIC, "score"]
    scores = pl.concat([part.select(columns) for part in parts])
    return small.select("checkpoint", *_RUN).join(scores, on="checkpoint", maintain_order="right")


def predictions_by_size(
    checkpoints: pl.DataFrame,
    proxies: pl.LazyFrame,
    targets: pl.DataFrame,
    tasks: Sequence[str],
    signs: Mapping[str, int] = HIGHER_IS_BETTER,
) -> Iterator[pl.DataFrame]:
    """`predictions` of one size of the small models after the other: those of a large study would fill the memory.

    Until its turn comes, a row of the proxies is four small numbers and its value.
    """
    small, target = comparable(checkpoints), checkpoints.filter(role="target")
    names = {
        "checkpoint": small["checkpoint"],  # others, such as those of a target, become null
        "task": [*tasks, GENERIC_TEXT],
        "statistic": [*STATISTICS, *BASELINE_SIGNS],
        "weighting": [*WEIGHTINGS, "none"],
    }
    coded = [pl.col(name).cast(pl.Enum(known), strict=name != "checkpoint") for name, known in names.items()]
    judged = proxies.select(*coded, "value").drop_nulls("checkpoint").collect(engine="streaming")
    for size in small["size"].unique(maintain_order=True):
        of_size = small.filter(size=size)
        names_of_size = of_size.select(pl.col("checkpoint").cast(judged.schema["checkpoint"]))
        found = judged.join(names_of_size, on="checkpoint", how="semi", maintain_order="left")
        found = found.cast(dict.fromkeys(names, pl.String))
        yield predictions(pl.concat([target, of_size]), found, targets, tasks, signs)


def require_known(checkpoints: pl.DataFrame, proxies: pl.LazyFrame) -> None:
    """`InputError` for a scored checkpoint that the table of checkpoints lacks: it would be left out in silence."""
    scored = proxies.select("checkpoint").unique().collect(engine="streaming")
    for row in scored.join(checkpoints, on="checkpoint", how="anti").sort("checkpoint").iter_rows(named=True):
        raise InputError(
            f"checkpoints.parquet lacks {row['checkpoint']}, which has been scored: it is older than the study (as "
            "where results/ was copied without .snakemake/); remove it and run again"
        )


def comparable(checkpoints: pl.DataFrame) -> pl.DataFrame:
    """The small models by which corpora are judged: of each size, step and seed that every corpus with a target has.

    Some runs of a ladder have checkpoints that others lack. The log says how many were left out.
    """
    judged = checkpoints.filter(role="target").select("corpus").unique()
    small = checkpoints.filter(role="proxy").join(judged, on="corpus", how="semi", maintain_order="left")
    everywhere = pl.col("corpus").n_unique().over("size", "step", "seed") == len(judged)
    kept = small.filter(everywhere)
    if len(kept) < len(small):
        log.info("%d of %d checkpoints are left out: not every corpus has them", len(small) - len(kept), len(small))
    return kept


def _scores_of_proxies(proxies: pl.DataFrame) -> pl.DataFrame:
    signs = {name: statistic.sign for name, statistic in STATISTICS.items()}
    dependent = {name: weighting.depends_on_candidate for name, weighting in WEIGHTINGS.items()}
    return proxies.filter(pl.col("weighting") != "none").with_columns(
        score=pl.col("value") * pl.col("statistic").replace_strict(signs),
        kind=pl.lit("proxy"),
        depends_on_candidate=pl.col("weighting").replace_strict(dependent),
    )


def _scores_of_ratios(proxies: pl.DataFrame) -> pl.DataFrame:
    ratios = proxies.filter(pl.col("weighting") == "none")
    signs = pl.col("statistic").replace_strict(BASELINE_SIGNS)
    return _as_baseline(ratios.with_columns(score=pl.col("value") * signs))


def _generic_cross_entropy(proxies: pl.DataFrame) -> pl.DataFrame:
    ratios = proxies.filter(statistic="expert_cross_entropy").drop("task")
    return _as_baseline(ratios.with_columns(statistic=pl.lit("generic_cross_entropy"), score=-pl.col("value")))


def _direct(targets: pl.DataFrame, small: pl.DataFrame, tasks: pl.DataFrame, signs: Mapping[str, int]) -> pl.DataFrame:
    measured = targets.join(small, on="checkpoint").join(tasks, on="task", how="semi")
    at = ["size", "step"]
    wanted = small.group_by(at).agg((pl.len() * len(tasks)).alias("wanted"))
    complete = measured.group_by("metric", *at).len().join(wanted, on=at).filter(pl.col("len") == pl.col("wanted"))
    score = pl.col("value") * pl.col("metric").replace_strict(signs, default=1, return_dtype=pl.Int64)
    return _as_baseline(
        measured.join(complete, on=["metric", *at], how="semi").with_columns(statistic="metric", score=score)
    )


def _known_without_scoring(small: pl.DataFrame) -> pl.DataFrame:
    constants = {"parameters": pl.col("parameters"), "training_compute": pl.col("flops"), "chance": pl.lit(0)}
    return pl.concat(
        _as_baseline(small.with_columns(statistic=pl.lit(name), score=score.cast(pl.Float64)))
        for name, score in constants.items()
    )


def _as_baseline(scores: pl.DataFrame) -> pl.DataFrame:
    return scores.with_columns(weighting=pl.lit("none"), kind=pl.lit("baseline"), depends_on_candidate=False)


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


def truth_table(
    truths: dict[str, pl.DataFrame],
    chance: dict[str, float],
    options: SelectionOptions = DEFAULTS,
    signs: Mapping[str, int] = HIGHER_IS_BETTER,
) -> pl.DataFrame:
    """How far each truth can be trusted: one row a metric.

    `truths`: metric -> `truth_by_seed`, the target's metric first; `agreement` is the share of pairs of corpora that a
    metric orders as the first one does, each by its sign. `chance`: metric -> what guessing gets, where that is known.
    `reliability` is Spearman-Brown's over the seeds, the two ceilings are what a perfect prediction is expected to
    reach against so noisy a truth (`ranking.noise_ceiling`), each with a percentile bootstrap over the corpora;
    `verdict` says in a word what such a truth is worth (`ranking.verdict`). `above_chance` counts the corpora whose
    mean over seeds and tasks exceeds chance by two standard errors. What cannot be known is null; `note` says why.
    """
    rows = []
    for metric, truth in truths.items():
        row = _truth_row(metric, truth, chance.get(metric), options)
        rows.append(row | {"higher_is_better": signs.get(metric, 1) > 0})
        if row["verdict"] == NOISE:
            log.warning("%s", about_noise(row))
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


def about_noise(row: Mapping[str, object]) -> str:
    """What a row of `truth_table` with the verdict "noise" says, for the log and for figures."""
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


def _truth_row(metric: str, truth: pl.DataFrame, chance: float | None, options: SelectionOptions) -> dict:
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
    row["verdict"] = verdict(row["reliability"], row["reliability_low"])
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
    of_mean = reliability(by_seed)
    row = {"seed_noise": float(np.sqrt(by_seed.var(0, ddof=1).mean())), "reliability": of_mean}
    row["reliability_one_seed"] = float(mean_correlation(by_seed).item())
    row["ceiling_spearman"], row["ceiling_decision_accuracy"] = noise_ceiling(of_mean)
    ends = reliability_interval(by_seed, options)
    if isinstance(ends, str):
        notes.append(f"reliability: {ends}")
    else:
        row["reliability_low"], row["reliability_high"] = ends
        accuracies = (noise_ceiling(end).decision_accuracy for end in ends)
        row["ceiling_decision_accuracy_low"], row["ceiling_decision_accuracy_high"] = accuracies
    return row


def summary_table(
    decision_accuracy: pl.DataFrame, budgets: list[Budget], highlighted: list[Proxy], ceiling: float | None
) -> pl.DataFrame:
    """At each budget, best first: the ten best proxies, the highlighted ones, all baselines, and the noise ceiling.

    Over all tasks, for a single seed (`seed` "single" of `ranking.decision_accuracy_table`). The ten best are chosen in
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
    return table


BEST = 10
SUMMARY_COLUMNS = [
    *("size", "step", "compute_fraction", "statistic", "weighting", "kind", "highlighted", "depends_on_candidate"),
    *("decision_accuracy", "low", "high", "noise_ceiling", "spearman", "spearman_low", "spearman_high"),
    *("best_baseline", "difference", "difference_low", "difference_high", "note"),
]


def solution_scores(
    checkpoints: pl.DataFrame, proxies: pl.LazyFrame, predicted: pl.DataFrame, wanted: list[Proxy]
) -> pl.DataFrame:
    """Signed scores of the `wanted` proxies for every solution, as `ranking.ranking_table` takes them.

    `proxies`: per solution (`proxies.solution_proxies`). A baseline among the `wanted` has one score a task, that of
    `predicted` (`predictions`); it stands as the task's only solution. Corpora without a target are there too, at the
    sizes and steps at which the others are judged.
    """
    signs = {name: statistic.sign for name, statistic in STATISTICS.items()}
    names = pl.LazyFrame([proxy.model_dump() for proxy in wanted])
    judged, proxy = comparable(checkpoints), checkpoints.filter(role="proxy")
    candidates = proxy.join(checkpoints.filter(role="target"), on="corpus", how="anti", maintain_order="left")
    candidates = candidates.join(judged, on=["size", "step"], how="semi", maintain_order="left")
    small = pl.concat([judged, candidates]).lazy().select("checkpoint", *SOLUTION_KEYS)
    columns = [*SOLUTION_KEYS, "task", "solution", "statistic", "weighting", "score"]
    of_solutions = (
        proxies.join(names, on=["statistic", "weighting"], how="semi", maintain_order="left")
        .join(small, on="checkpoint", maintain_order="left")
        .with_columns(score=pl.col("value") * pl.col("statistic").replace_strict(signs, return_dtype=pl.Float64))
        .select(columns)
    )
    of_tasks = predicted.lazy().filter(weighting="none")
    of_tasks = of_tasks.join(names, on=["statistic", "weighting"], how="semi", maintain_order="left")
    return pl.concat([of_solutions, of_tasks.with_columns(solution=pl.lit("")).select(columns)]).collect()


SOLUTION_KEYS = ["corpus", "size", "step", "seed"]


def tokens_read(token_stats: pl.LazyFrame) -> int:
    """Tokens of prompts and solutions that one checkpoint reads to be scored; a tail ends where its sequence ends."""
    columns = token_stats.select("checkpoint", "task", "solution", "position")
    first = columns.select(pl.col("checkpoint").first()).collect().item()
    one = columns.filter(checkpoint=first).group_by("task", "solution").agg(pl.col("position").max() + 1)
    return int(one.select(pl.col("position").sum()).collect().item())
