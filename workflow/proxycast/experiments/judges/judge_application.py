"""Judges applied to candidates without a truth: their order, the expected metric, and how far to trust both.

A metric is predicted only where the score is the same quantity as in the judged study: the same tasks and options, and
for statistics per token the same tokenizer. Elsewhere the order stands alone. Everything else in which the new study
lies outside of what the judge saw (size, training, range of values, seeds, number of solutions) is told beside the
prediction, in words.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.candidate_order import place_table, resampled_scores
from proxycast.experiments.judges.judge_file import CorpusProxy, Judge, Reading, Share, read_judge
from proxycast.experiments.judges.judge_limits import (
    about_metric,
    about_reading,
    about_tasks,
    about_tokenizers,
    in_words,
    require_same_values,
)
from proxycast.experiments.judges.judge_links import predict, within
from proxycast.experiments.judges.judged_models import judged_models
from proxycast.experiments.model_selection import known_models
from proxycast.extraction.temperature_fit import with_tempered
from proxycast.options import InputError
from proxycast.proxy_formulas import solution_proxies, solution_ratios, tails
from proxycast.solutions.rows import GENERIC_TEXT

log = logging.getLogger(__name__)

DEFAULTS = SelectionOptions()
CORPORA_SCHEMA = {
    **dict.fromkeys(("judge", "study", "statistic", "weighting", "size"), pl.String),
    **{"step": pl.Int64, "corpus": pl.String, "seeds": pl.Int64},
    **dict.fromkeys((f"{name}{end}" for name in ("score", "place") for end in ("", "_low", "_high")), pl.Float64),
    **{"metric": pl.String, "predicted": pl.Float64, "predicted_low": pl.Float64, "predicted_high": pl.Float64},
    **{"link": pl.String, "judged_size": pl.String, "judged_step": pl.Int64},
    **dict.fromkeys(("decision_accuracy", "low", "high", "noise_ceiling"), pl.Float64),
    **{"evidence": pl.String, "warnings": pl.String},
}
CHECKPOINT = ["checkpoint"]
CHECKPOINT_OF_CORPUS = [*CHECKPOINT, "corpus", "size", "step", "seed", "active_parameters", "tokens"]
NEAR = math.log(1.1)  # a size or training within 10 % counts as the same


def apply_judge(
    judge: Judge | Path | str,
    values: pl.DataFrame | pl.LazyFrame,
    checkpoints: pl.DataFrame,
    *,
    name: str = "",
    reading: Reading | None = None,
    tokenizers: Sequence[str] = (),
    options: SelectionOptions = DEFAULTS,
) -> pl.DataFrame:
    """Order, expected metric, evidence and warnings of candidates that nobody has measured.

    `judge`: a judge, or its file. `values`: token statistics, which are read with the judge's own options, or proxies
    of single solutions: checkpoint, task, solution, statistic, weighting, value (as given: the sign is applied
    here) and tail, where there are two; of a ratio of sums also denominator (`proxy_formulas.solution_ratios`). What is
    known of a task alone has one row, with the solution "". `checkpoints`: checkpoint, corpus, size, step, seed,
    active_parameters (N) and tokens (D) for a judge of corpora; for one of models checkpoint, and name if that is
    another. `name` stands in the column judge, otherwise the name of its study. `reading` and `tokenizers`
    (fingerprints): how the values were made, where known.

    For a judge of corpora: CORPORA_SCHEMA, a row for each proxy, size and step, and corpus, best first; for one of
    models `judged_models.MODELS_SCHEMA`. `InputError` for values that the judge needs and that are missing, and for
    options under which values of proxies are others than the judge's.
    """
    judge = judge if isinstance(judge, Judge) else read_judge(judge)
    name = name or judge.study
    if reading is not None:
        require_same_values(judge, reading, f"judge {name}")
    needed = CHECKPOINT if judge.kind == "model_selection" else CHECKPOINT_OF_CORPUS
    _require_columns(checkpoints.columns, needed, f"judge {name}: checkpoints")
    values = values.lazy()
    if "logprob" in values.collect_schema().names():
        values = _of_token_stats(judge, values, f"judge {name}")
        reading = judge.reading.model_copy(update={"last_checkpoints": 1})  # the tokens are of single checkpoints
    _require_columns(values.collect_schema().names(), _VALUES, f"judge {name}: values")
    values, told = values.collect(), about_reading(judge, reading)
    if "denominator" not in values.columns:
        values = values.with_columns(denominator=pl.lit(1.0))
    if judge.kind == "model_selection":
        return judged_models(judge, values, checkpoints, name=name, told=told, tokenizers=tokenizers, options=options)
    return _judged_corpora(judge, values, checkpoints, name, told, tokenizers, options)


def _require_columns(found: Sequence[str], needed: Sequence[str], what: str) -> None:
    for column in needed:
        if column not in found:
            raise InputError(f"{what}: no column {column}; found {list(found)}; needed are {list(needed)}")


def judged_table(judges: Mapping[str, Judge], *inputs: pl.DataFrame, **options: object) -> pl.DataFrame:
    """`apply_judge` of several judges, one below the other. Each distinct warning is logged once."""
    table = pl.concat(apply_judge(judge, *inputs, name=name, **options) for name, judge in judges.items())
    counts: dict[tuple[str, str], int] = {}
    for name, warnings in table.select("judge", "warnings").iter_rows():
        for warning in filter(None, warnings.split("; ")):
            counts[name, warning] = counts.get((name, warning), 0) + 1
    for (name, warning), rows in counts.items():
        log.warning("judge %s, %d of %d rows: %s", name, rows, table["judge"].eq(name).sum(), warning)
    return table


def judged_values(
    checkpoints: pl.DataFrame,
    proxies: pl.LazyFrame,
    of_solutions: pl.LazyFrame,
    budgets: Sequence[tuple[str, int]],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The candidates of a study, and their values, as `apply_judge` takes both.

    Small models at the (size, step) of the `budgets`; without, the models of a model selection. `proxies`: of tasks,
    `of_solutions`: of single solutions. A baseline that has no values of solutions stands as a task's only solution.
    """
    candidates = known_models.candidates(checkpoints)
    if budgets:
        at = pl.DataFrame(budgets, ["size", "step"], orient="row")
        candidates = checkpoints.filter(role="proxy").join(at, on=["size", "step"], how="semi", maintain_order="left")
    names = candidates.lazy().select("checkpoint")
    columns = [*_VALUES, "denominator", "tail"]
    own = of_solutions.join(names, on="checkpoint", how="semi", maintain_order="left").select(columns).collect()
    baselines = proxies.filter(pl.col("task") != GENERIC_TEXT, weighting="none")
    baselines = baselines.join(own.lazy(), on=["checkpoint", "task", "tail", "statistic", "weighting"], how="anti")
    baselines = baselines.join(names, on="checkpoint", how="semi", maintain_order="left")
    alone = baselines.with_columns(solution=pl.lit(""), denominator=pl.lit(1.0)).select(columns)
    return candidates, pl.concat([own, alone.collect()])


def _of_token_stats(judge: Judge, token_stats: pl.LazyFrame, where: str) -> pl.LazyFrame:
    """Proxies of single solutions, and baselines of tasks, with the judge's options; all of its tails."""
    if judge.reading is None:
        raise InputError(f"{where}: its study ran no model, so nothing says how token statistics become its proxies")
    token_stats, _ = with_tempered(token_stats)
    token_stats, parts = token_stats.filter(pl.col("task") != GENERIC_TEXT), []
    # With a second tail `tails` cuts both: the statistics may hold more tokens than the judge's.
    found_tails = tails(token_stats, judge.reading.tail_tokens, judge.reading.tail_bytes or 1)
    for tail in ("tokens", *(["bytes"] if judge.reading.tail_bytes else [])):
        found = found_tails[tail]
        for part in (solution_proxies(found, judge.reading.proxies), solution_ratios(found)):
            parts.append(part.with_columns(tail=pl.lit(tail)))
    return pl.concat(parts, how="diagonal").with_columns(pl.col("denominator").fill_null(1.0))


_VALUES = ["checkpoint", "task", "solution", "statistic", "weighting", "value"]


def _judged_corpora(
    judge: Judge,
    values: pl.DataFrame,
    checkpoints: pl.DataFrame,
    name: str,
    told: list[str],
    tokenizers: Sequence[str],
    options: SelectionOptions,
) -> pl.DataFrame:
    values = values.filter(tail="tokens") if "tail" in values.columns else values
    scored = values.join(checkpoints.drop("tokens"), on="checkpoint", maintain_order="left")
    if scored.is_empty():
        raise InputError(f"judge {name}: the values hold none of the checkpoints; both need the same names")
    tasks, task_warnings, same_tasks = about_tasks(judge, values, name)
    told = [*told, *task_warnings]
    training = checkpoints.select("size", "step", N="active_parameters", D="tokens").unique(["size", "step"])
    parts = []
    for statistic, weighting in dict.fromkeys((p.statistic, p.weighting) for p in judge.corpus_proxies):
        seen = [p for p in judge.corpus_proxies if (p.statistic, p.weighting) == (statistic, weighting)]
        of_proxy = scored.filter(pl.col("task").is_in(tasks), statistic=statistic, weighting=weighting)
        if of_proxy.is_empty():
            raise InputError(
                f"judge {name}: its proxy {statistic}/{weighting} is missing among the values of the candidates"
            )
        of_proxy = of_proxy.with_columns(score=pl.col("value") * seen[0].sign)
        of_tokenizer, comparable = about_tokenizers(judge, statistic, weighting, tokenizers)
        for (size, step), cell in sorted(of_proxy.group_by("size", "step")):
            n, d = training.filter(size=size, step=step).select("N", "D").row(0)
            nearest = min(seen, key=lambda p: math.hypot(_ratio(n, p.parameters), _ratio(d, p.tokens)))
            found = _of_cell(cell, options, f"judge {name}, {size} at step {step}: ")
            apart = [*told, *of_tokenizer, *_about_training(seen, nearest, n, d), *_about_evidence(nearest, judge)]
            table = _with_prediction(found, nearest, judge, options, same_tasks and comparable, apart)
            parts.append(table.with_columns(judge=pl.lit(name), size=pl.lit(size), step=pl.lit(step, pl.Int64)))
    return pl.concat(parts).select(*CORPORA_SCHEMA).cast(CORPORA_SCHEMA)


def _of_cell(cell: pl.DataFrame, options: SelectionOptions, where: str) -> pl.DataFrame:
    """corpus, seeds, score and place with intervals: of all corpora with the seeds that all of them have."""
    corpora = cell.select("corpus").unique().sort("corpus")
    shared = cell.group_by("seed").agg(pl.col("corpus").n_unique()).filter(corpus=len(corpora))
    if shared.is_empty():
        raise InputError(f"{where}no seed is that of all {len(corpora)} corpora; they are compared seed by seed")
    scores = cell.join(shared.select("seed"), on="seed", how="semi", maintain_order="left")
    found = resampled_scores(scores, corpora, options, where=where)
    seeds = pl.lit(len(shared), pl.Int64).alias("seeds")
    return place_table(corpora, found, options.confidence).with_columns(seeds)


def _with_prediction(
    found: pl.DataFrame,
    nearest: CorpusProxy,
    judge: Judge,
    options: SelectionOptions,
    comparable: bool,
    told: list[str],
) -> pl.DataFrame:
    """The columns of a cell that come from the judge."""
    link, seeds = nearest.link, found["seeds"][0]
    if comparable and link is None:
        told = [*told, "no metric is predicted: the judge could fit no link"]
    if seeds < nearest.seeds:
        told = [
            *told,
            f"seeds: {seeds} for each corpus, the judge saw means over {nearest.seeds}, so intervals are narrow",
        ]
    outside = pl.lit("")
    if comparable and link is not None:
        ends = predict(link, found["score"].to_numpy(), options.confidence, judge.metric.bounds)
        beyond = f"value range: the score lies outside of the judge's, {link.lowest:.4g} to {link.highest:.4g}"
        outside = pl.when(within(link, pl.col("score"))).then(pl.lit("")).otherwise(pl.lit(beyond))
    else:
        ends = [pl.Series([None] * len(found), dtype=pl.Float64)] * 3
    share = nearest.mean if seeds > 1 and nearest.seeds > 1 else nearest.single
    texts = pl.concat_list(pl.lit("; ".join(told)), outside).list.filter(pl.element() != "").list.join("; ")
    columns = {"study": judge.study, "statistic": nearest.statistic, "weighting": nearest.weighting}
    columns |= {"metric": judge.metric.name, "link": link.form if comparable and link else None}
    columns |= {"judged_size": nearest.size, "judged_step": nearest.step, "decision_accuracy": share.value}
    columns |= {"low": share.low, "high": share.high, "noise_ceiling": judge.metric.ceiling.value}
    columns |= {"evidence": evidence_in_words(nearest, share, judge)}
    predicted = dict(zip(("predicted", "predicted_low", "predicted_high"), map(pl.Series, ends)))
    return found.with_columns(**{key: pl.lit(value) for key, value in columns.items()}, **predicted, warnings=texts)


def evidence_in_words(proxy: CorpusProxy, share: Share, judge: Judge) -> str:
    """How well a proxy did in the judged study, in a sentence."""
    pairs = proxy.corpora * (proxy.corpora - 1) // 2
    ceiling = judge.metric.ceiling.value
    against = "" if ceiling is None else f"; a perfect prediction is expected to reach {ceiling:.2f}"
    return (
        f"in {judge.study}, at {proxy.size} and {proxy.step_fraction:.0%} of the steps, this proxy decided "
        f"{in_words(share)} of {pairs} pairs of corpora by {judge.metric.name}{against}"
    )


def _about_evidence(nearest: CorpusProxy, judge: Judge) -> list[str]:
    """What speaks against trusting the judge at all."""
    told = about_metric(judge)
    if nearest.mean.value is None:
        told.append("the judge does not know how many pairs this proxy decides")
    elif (nearest.mean.value if nearest.mean.low is None else nearest.mean.low) <= 0.5:
        told.append("in the judge this proxy is not shown to do better than guessing")
    if nearest.link and (nearest.link.slope > 0) != judge.metric.higher_is_better:
        told.append("in the judge corpora with better scores had the worse metric")
    return told


def _about_training(seen: Iterable[CorpusProxy], nearest: CorpusProxy, n: int, d: int) -> list[str]:
    """Where size and training of the small models are not those of the judge."""
    told = []
    sizes = [p.parameters for p in seen]
    trained = [p.tokens for p in seen if p.parameters == nearest.parameters]
    for what, own, ends, near in (
        ("size: N", n, (min(sizes), max(sizes)), nearest.parameters),
        ("training: D", d, (min(trained), max(trained)), nearest.tokens),
    ):
        if _ratio(own, ends[0]) < -NEAR or _ratio(own, ends[1]) > NEAR:
            told.append(f"{what} = {own:.3g} lies outside of what the judge saw, {ends[0]:.3g} to {ends[1]:.3g}")
        elif abs(_ratio(own, near)) > NEAR:
            told.append(f"{what} = {own:.3g}, the nearest that the judge saw is {near:.3g}")
    return told


def _ratio(own: int, other: int) -> float:
    """ln(own / other); an untrained model counts as one that has seen one token."""
    return math.log(max(own, 1) / max(other, 1))
