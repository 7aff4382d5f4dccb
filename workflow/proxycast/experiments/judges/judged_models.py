"""The scorers of a judge applied to models that nobody has measured."""

from collections.abc import Sequence

import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.arrays import DECIMALS
from proxycast.experiments.candidate_order import ResampledScores, place_table, resampled_scores
from proxycast.experiments.judges.judge_file import FittedScorer, Judge
from proxycast.experiments.judges.judge_limits import about_metric, about_solutions, about_tokenizers, in_words
from proxycast.experiments.judges.judge_links import predict, within
from proxycast.experiments.model_selection.model_ranking import ALL_TASKS, mean_over_tasks
from proxycast.options import InputError, told_value
from proxycast.proxy_formulas import STATISTICS

MODELS_SCHEMA = {
    **dict.fromkeys(("judge", "study", "scorer", "tail", "task", "model"), pl.String),
    **dict.fromkeys((f"{name}{end}" for name in ("score", "place") for end in ("", "_low", "_high")), pl.Float64),
    **{"metric": pl.String, "predicted": pl.Float64, "predicted_low": pl.Float64, "predicted_high": pl.Float64},
    **{"link": pl.String, "spearman": pl.Float64, "low": pl.Float64, "high": pl.Float64, "noise_ceiling": pl.Float64},
    **{"evidence": pl.String, "warnings": pl.String},
}
_PROXY = ["statistic", "weighting"]


def judged_models(
    judge: Judge,
    values: pl.DataFrame,
    checkpoints: pl.DataFrame,
    *,
    name: str,
    told: Sequence[str],
    tokenizers: Sequence[str],
    options: SelectionOptions,
) -> pl.DataFrame:
    """MODELS_SCHEMA: every scorer, task and model, and the task "all", the mean over tasks; best first.

    The arguments are those of `judge_application.apply_judge`; `told`: warnings of every row. Features are standardised
    over the candidates for the order, as in `scorers`, and with the judge's means for the metric, which is predicted
    for tasks that the judge learned from.
    """
    scored = values.join(checkpoints.select("checkpoint"), on="checkpoint", how="semi", maintain_order="left")
    models = scored.select("checkpoint").unique().sort("checkpoint")
    if models.is_empty():
        raise InputError(f"judge {name}: the values hold none of the checkpoints; both need the same names")
    names = dict(checkpoints.select("checkpoint", "name").iter_rows()) if "name" in checkpoints.columns else {}
    parts = []
    for scorer in judge.scorers:
        rows = _rows_of(scorer, scored, f"judge {name}, scorer {scorer.scorer}")
        found = {
            task: _resampled(scorer, of_task, models, options) for (task,), of_task in sorted(rows.group_by("task"))
        }
        found[ALL_TASKS] = mean_over_tasks(list(found.values()))
        tokenizer, comparable = about_tokenizers(judge, scorer.statistics[0], scorer.weightings[0], tokenizers)
        for task, scores in found.items():
            table = place_table(models.rename({"checkpoint": "model"}), scores, options.confidence)
            own = [*told, *tokenizer, *about_metric(judge), *_about_task(judge, task, scored)]
            table = _with_metric(table, judge, scorer, task, rows, comparable, options, own)
            table = table.with_columns(pl.col("model").replace(names), judge=pl.lit(name), task=pl.lit(task))
            parts.append(table.select(*MODELS_SCHEMA).cast(MODELS_SCHEMA))
    return pl.concat(parts)


def _rows_of(scorer: FittedScorer, values: pl.DataFrame, where: str) -> pl.DataFrame:
    """Signed values of the scorer's proxies for every solution, with coefficients. `InputError` for one that lacks."""
    if unknown := [statistic for statistic in scorer.statistics if statistic not in STATISTICS]:
        raise InputError(
            f"{where}: its statistic {told_value(unknown[0])} is unknown; known are {', '.join(STATISTICS)}"
        )
    names = pl.DataFrame({"statistic": scorer.statistics, "weighting": scorer.weightings, "coef": scorer.coefficients})
    signs = {statistic: STATISTICS[statistic].sign for statistic in scorer.statistics}
    of_tail = values.filter(tail=scorer.tail) if "tail" in values.columns else values
    rows = of_tail.join(names, on=_PROXY, maintain_order="left")
    missing = names.join(rows, on=_PROXY, how="anti")
    if len(missing):
        statistic, weighting = missing.row(0)[:2]
        raise InputError(
            f"{where}: {statistic}/{weighting} over the tail in {scorer.tail} is missing among the values of the models"
        )
    return rows.with_columns(value=pl.col("value") * pl.col("statistic").replace_strict(signs))


def _resampled(
    scorer: FittedScorer, rows: pl.DataFrame, models: pl.DataFrame, options: SelectionOptions
) -> ResampledScores:
    """The scores of one task's models: linear in the proxies, so a solution's score is one, too."""
    of_models = rows.group_by(*_PROXY, "checkpoint").agg(pl.col("value").mean())
    spread = of_models.group_by(_PROXY).agg(
        mean=pl.col("value").mean(),
        sd=pl.col("value").std(ddof=0),
        varies=pl.col("value").max() - pl.col("value").min()
        > 10.0**-DECIMALS * pl.max_horizontal(1, pl.col("value").abs().max()),
    )
    z = pl.when("varies").then((pl.col("value") - pl.col("mean")) / pl.col("sd")).otherwise(0.0)
    scores = (
        rows.join(spread, on=_PROXY, maintain_order="left")
        .group_by("checkpoint", "task", "solution", maintain_order=True)
        .agg(score=(z * pl.col("coef")).sum(), proxies=pl.len())
    )
    for row in scores.filter(pl.col("proxies") != len(scorer.coefficients)).head(1).iter_rows(named=True):
        raise InputError(
            f"{row['checkpoint']}, task {row['task']}, solution {row['solution']}: found {row['proxies']} proxies of "
            f"the scorer {scorer.scorer}, which has {len(scorer.coefficients)}; each needs one value"
        )
    return resampled_scores(scores.with_columns(seed=pl.lit(0)), models, options)


def _with_metric(
    table: pl.DataFrame,
    judge: Judge,
    scorer: FittedScorer,
    task: str,
    rows: pl.DataFrame,
    comparable: bool,
    options: SelectionOptions,
    told: list[str],
) -> pl.DataFrame:
    """The columns that come from the judge. `rows`: of all tasks."""
    seen = scorer.tasks.get(task)
    link = seen.link if seen and comparable else None
    outside: pl.Expr = pl.lit("")
    ends = [pl.Series([None] * len(table), dtype=pl.Float64)] * 3
    if link:
        spread = pl.DataFrame(
            {"statistic": scorer.statistics, "weighting": scorer.weightings, "mean": seen.means, "sd": seen.sds}
        )
        z = pl.when(pl.col("sd") > 0).then((pl.col("value") - pl.col("mean")) / pl.col("sd")).otherwise(0.0)
        means = rows.filter(task=task).group_by("checkpoint", *_PROXY).agg(pl.col("value", "coef").mean())
        own = means.join(spread, on=_PROXY).group_by(model="checkpoint").agg(own=(z * pl.col("coef")).sum())
        table = table.join(own, on="model", how="left", maintain_order="left")
        ends = predict(link, table["own"].to_numpy(), options.confidence, judge.metric.bounds)
        beyond = f"value range: the score lies outside of the judge's, {link.lowest:.4g} to {link.highest:.4g}"
        outside = pl.when(within(link, pl.col("own"))).then(pl.lit("")).otherwise(pl.lit(beyond))
    elif seen and comparable:
        told = [*told, "no metric is predicted: the judge could fit no link"]
    texts = pl.concat_list(pl.lit("; ".join(told)), outside).list.filter(pl.element() != "").list.join("; ")
    columns = {"study": judge.study, "scorer": scorer.scorer, "tail": scorer.tail, "metric": judge.metric.name}
    columns |= {"link": link.form if link else None, "spearman": scorer.two_tasks.value, "low": scorer.two_tasks.low}
    columns |= {"high": scorer.two_tasks.high, "noise_ceiling": judge.metric.ceiling.value}
    columns |= {"evidence": _evidence(judge, scorer)}
    return table.with_columns(
        **{key: pl.lit(value) for key, value in columns.items()},
        **dict(zip(("predicted", "predicted_low", "predicted_high"), map(pl.Series, ends))),
        warnings=texts,
    )


def _about_task(judge: Judge, task: str, values: pl.DataFrame) -> list[str]:
    seen = {found.name: found for found in judge.tasks}
    if task == ALL_TASKS:
        return []
    if task not in seen:
        return ["task: the judge did not see it, so no metric is predicted"]
    return about_solutions(task, seen[task].solutions, values)


def _evidence(judge: Judge, scorer: FittedScorer) -> str:
    """How well a scorer did in the judged study, in a sentence."""
    family = scorer.family
    held_out = "" if family.value is None else f", and {in_words(family)} where their family was held out too"
    ceiling = judge.metric.ceiling.value
    against = "" if ceiling is None else f"; a perfect prediction is expected to reach {ceiling:.2f}"
    return (
        f"in {judge.study}, over {len(judge.candidates)} models, this scorer reached a Spearman's rho of "
        f"{in_words(scorer.two_tasks)} on tasks that were held out{held_out}{against}"
    )
