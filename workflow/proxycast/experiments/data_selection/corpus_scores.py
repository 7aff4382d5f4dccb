"""What the proxies and baselines of small models predict for each corpus: scores, the higher the better."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from proxycast.config.study import Proxy
from proxycast.config.truth import Target
from proxycast.experiments.arrays import DECIMALS
from proxycast.metrics import is_error
from proxycast.options import InputError
from proxycast.proxy_formulas import BASELINE_SIGNS, SIGNS, STATISTICS, WEIGHTINGS
from proxycast.solutions.rows import GENERIC_TEXT
from proxycast.truth.targets import HALVES

log = logging.getLogger(__name__)

# Of the table decision_accuracy. Here, because plans read it, and `ranking` imports scipy.
DECISION_ACCURACY_COLUMNS = [
    *("task", "statistic", "weighting", "kind", "depends_on_candidate", "size", "step", "seed"),
    *("tokens", "flops", "compute_fraction"),
    *("decision_accuracy", "low", "high", "spearman", "spearman_low", "spearman_high", "kendall", "corpora"),
    *("best_baseline", "difference", "difference_low", "difference_high", "note"),
]

_RUN = ["corpus", "size", "step", "seed", "tokens", "flops"]
_STATISTIC = ["statistic", "weighting", "kind", "depends_on_candidate"]
Signs = Mapping[str, int]  # metric -> 1, or -1 where less of it is better
HIGHER: Signs = {}  # higher is better, of every metric


def metric_signs(targets: pl.DataFrame, target: Target) -> Signs:
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
    signs: Signs = HIGHER,
    outside: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """What `decision_accuracy_table` takes: one score for every proxy checkpoint, task and statistic.

    Higher is better in all of them: the signs are applied here, those of metrics by `metric_signs`. Only corpora
    that have a target are compared, by the checkpoints that all of them have (`comparable`).
    Baselines carry the weighting "none". Those that know no tasks (generic cross-entropy, parameters, training compute,
    chance) are repeated under every task. The downstream metrics of the small models themselves are baselines at every
    size and step at which they were measured for all of them; so are statistics that others measured (`outside`,
    `outside_statistics.statistics_and_truth`) wherever there are some.
    """
    small = comparable(checkpoints).select("checkpoint", "parameters", *_RUN)
    tasks = pl.DataFrame({"task": sorted(tasks)})
    proxies = proxies.join(small, on="checkpoint", how="semi")
    parts = [
        _scores_of_proxies(proxies.filter(pl.col("task") != GENERIC_TEXT)),
        _scores_of_ratios(proxies.filter(pl.col("task") != GENERIC_TEXT)),
        _generic_cross_entropy(proxies.filter(pl.col("task") == GENERIC_TEXT)).join(tasks, how="cross"),
        _direct(targets, small, tasks, signs),
        *([] if outside is None else [_of_others(outside, small, tasks)]),
        _known_without_scoring(small).join(tasks, how="cross"),
    ]
    columns = ["checkpoint", "task", *_STATISTIC, "score"]
    scores = pl.concat([part.select(columns) for part in parts])
    return small.select("checkpoint", *_RUN).join(scores, on="checkpoint", maintain_order="right")


def mean_predictions(predicted: pl.DataFrame, truth_by_seed: pl.DataFrame) -> pl.DataFrame:
    """The table predictions: of each corpus, proxy, size and step the mean score over tasks and seeds, and the truth.

    `predicted`: `predictions`. `truth_by_seed`: corpus, task, seed, value, as given: less of it may be better.
    """
    truth = truth_by_seed.group_by("corpus").agg(truth=pl.col("value").mean().round(DECIMALS))
    means = predicted.group_by("corpus", *NAME, "size", "step", maintain_order=True).agg(
        predicted=pl.col("score").mean().round(DECIMALS)
    )
    return means.join(truth, on="corpus", maintain_order="left")


def predictions_by_size(
    checkpoints: pl.DataFrame,
    proxies: pl.LazyFrame,
    targets: pl.DataFrame,
    tasks: Sequence[str],
    signs: Signs = HIGHER,
    outside: pl.DataFrame | None = None,
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
    scored = proxies.select(*coded, "value").drop_nulls("checkpoint").collect(engine="streaming")
    for size in small["size"].unique(maintain_order=True):
        of_size = small.filter(size=size)
        names_of_size = of_size.select(pl.col("checkpoint").cast(scored.schema["checkpoint"]))
        found = scored.join(names_of_size, on="checkpoint", how="semi", maintain_order="left")
        found = found.cast(dict.fromkeys(names, pl.String))
        yield predictions(pl.concat([target, of_size]), found, targets, tasks, signs, outside)


def require_known(checkpoints: pl.DataFrame, proxies: pl.LazyFrame) -> None:
    """`InputError` for a scored checkpoint that the table of checkpoints lacks: it would be left out in silence."""
    scored = proxies.select("checkpoint").unique().collect(engine="streaming")
    for row in scored.join(checkpoints, on="checkpoint", how="anti").sort("checkpoint").iter_rows(named=True):
        raise InputError(
            f"checkpoints.parquet lacks {row['checkpoint']}, which has been scored: it is older than the study (as "
            "where results/ was copied without .snakemake/); remove it and run again"
        )


def comparable(checkpoints: pl.DataFrame) -> pl.DataFrame:
    """The small models by which corpora are compared: of each size, step and seed that every corpus with a target has.

    Without any target it is every corpus that must have them. Some runs of a ladder have checkpoints that others lack.
    The log says how many were left out.
    """
    judged = checkpoints.filter(role="target")
    corpora = (checkpoints if judged.is_empty() else judged).select("corpus").unique()
    small = checkpoints.filter(role="proxy").join(corpora, on="corpus", how="semi", maintain_order="left")
    everywhere = pl.col("corpus").n_unique().over("size", "step", "seed") == len(corpora)
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


def _direct(targets: pl.DataFrame, small: pl.DataFrame, tasks: pl.DataFrame, signs: Signs) -> pl.DataFrame:
    whole = targets.filter(~pl.col("metric").is_in(HALVES))
    measured = whole.join(small, on="checkpoint").join(tasks, on="task", how="semi")
    at = ["size", "step"]
    wanted = small.group_by(at).agg((pl.len() * len(tasks)).alias("wanted"))
    complete = measured.group_by("metric", *at).len().join(wanted, on=at).filter(pl.col("len") == pl.col("wanted"))
    score = pl.col("value") * pl.col("metric").replace_strict(signs, default=1, return_dtype=pl.Int64)
    return _as_baseline(
        measured.join(complete, on=["metric", *at], how="semi").with_columns(statistic="metric", score=score)
    )


def _of_others(outside: pl.DataFrame, small: pl.DataFrame, tasks: pl.DataFrame) -> pl.DataFrame:
    rows = outside.join(small, on="checkpoint", how="semi").join(tasks, on="task", how="semi")
    signed = pl.when("higher_is_better").then(pl.col("value")).otherwise(-pl.col("value"))
    return _as_baseline(rows.with_columns(score=signed))


def _known_without_scoring(small: pl.DataFrame) -> pl.DataFrame:
    constants = {"parameters": pl.col("parameters"), "training_compute": pl.col("flops"), "chance": pl.lit(0)}
    return pl.concat(
        _as_baseline(small.with_columns(statistic=pl.lit(name), score=score.cast(pl.Float64)))
        for name, score in constants.items()
    )


def _as_baseline(scores: pl.DataFrame) -> pl.DataFrame:
    return scores.with_columns(weighting=pl.lit("none"), kind=pl.lit("baseline"), depends_on_candidate=False)


def solution_scores(
    checkpoints: pl.DataFrame, proxies: pl.LazyFrame, predicted: pl.DataFrame, wanted: Sequence[Proxy]
) -> pl.DataFrame:
    """Signed scores of the `wanted` proxies for every solution, as `ranking.ranking_table` takes them.

    `proxies`: per solution (`proxy_formulas.solution_proxies`, `solution_ratios`). Of a ratio, `score` and
    `denominator` are a solution's two sums; else the denominator is 1. A baseline among the `wanted` that is not among
    these has one score a task, that of `predicted` (`predictions`); it stands as the task's only solution. Corpora
    without a target are there too, at the sizes and steps at which the others are compared.
    """
    of_solutions = signed_solutions(checkpoints, proxies, wanted)
    names = pl.DataFrame([proxy.model_dump() for proxy in wanted])
    of_tasks = predicted.join(names, on=NAME, how="semi", maintain_order="left")
    of_tasks = of_tasks.filter(weighting="none").join(of_solutions, on=NAME, how="anti", maintain_order="left")
    alone = {"solution": pl.lit(""), "denominator": pl.lit(1.0)}
    return pl.concat([of_solutions, of_tasks.with_columns(**alone).select(of_solutions.columns)])


def signed_solutions(checkpoints: pl.DataFrame, proxies: pl.LazyFrame, wanted: Sequence[Proxy]) -> pl.DataFrame:
    """The part of `solution_scores` that `proxies` hold."""
    names = pl.LazyFrame([proxy.model_dump() for proxy in wanted])
    compared, proxy = comparable(checkpoints), checkpoints.filter(role="proxy")
    candidates = proxy.join(compared, on="corpus", how="anti", maintain_order="left")
    candidates = candidates.join(compared, on=["size", "step"], how="semi", maintain_order="left")
    small = pl.concat([compared, candidates]).lazy().select("checkpoint", *SOLUTION_KEYS)
    return (
        proxies.join(names, on=NAME, how="semi", maintain_order="left")
        .join(small, on="checkpoint", maintain_order="left")
        .with_columns(score=pl.col("value") * pl.col("statistic").replace_strict(SIGNS, return_dtype=pl.Float64))
        .select(*SOLUTION_KEYS, "task", "solution", *NAME, "score", "denominator")
        .collect()
    )


SOLUTION_KEYS = ["corpus", "size", "step", "seed"]
NAME = ["statistic", "weighting"]


def tokens_read(token_stats: Iterable[Path], checkpoints: Collection[str]) -> int | None:
    """Tokens of prompts and solutions that one of the `checkpoints` reads to be scored; None where none was scored.

    A tail ends where its sequence ends. `token_stats`: a file for each checkpoint, which bears its name.
    """
    parts = [path for path in token_stats if path.stem in checkpoints]
    if not parts:
        return None
    columns = pl.scan_parquet(parts).select("checkpoint", "task", "solution", "position")
    first = columns.select(pl.col("checkpoint").first()).collect().item()
    one = columns.filter(checkpoint=first).group_by("task", "solution").agg(pl.col("position").max() + 1)
    return int(one.select(pl.col("position").sum()).collect().item())
