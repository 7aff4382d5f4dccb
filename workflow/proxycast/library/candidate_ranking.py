"""Candidates (models, or corpora by a model trained on each) ranked by proxies on the same expert solutions.

Candidates with one tokenizer are compared on the tokens that were scored. Tokenizers cut one text into different
tokens: the last thousand tokens are then not the same text, and a rank among 30 thousand tokens is not one among 150
thousand. Such candidates are compared on the last bytes of each solution that all of them were scored on (the tail
"bytes"), bits per byte stands first, and a note at every other proxy says that it counts tokens.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.arrays import DECIMALS
from proxycast.experiments.candidate_order import (
    agreement_table,
    pair_table,
    place_table,
    resampled_scores,
)
from proxycast.extraction.schema import temperatures_of
from proxycast.extraction.temperature_fit import with_tempered
from proxycast.library.proxy_values import RECOMMENDED, parsed_name, require_temperatures, require_token_stats
from proxycast.options import InputError, told_names
from proxycast.proxy_formulas import (
    SIGNS,
    TEMPERED,
    ProxyOptions,
    proxy_name,
    solution_proxies,
    solution_ratios,
    tails,
)

PER_BYTE = ("bits_per_byte", "tempered_bits_per_byte")
OTHER_TOKENIZERS = "counts tokens, and the tokenizers differ; trust bits_per_byte"
ALL_TASKS = "all"
_PROXY = ["statistic", "weighting"]
_SOLUTION = ["task", "solution"]


class Ranking(NamedTuple):
    """Three tables.

    `ranking`: task, statistic, weighting, tail, note, candidate, value, place; value and place with their interval
    (`_low`, `_high`). Best first within each task and proxy. Values have the unit of the proxy, also where less is
    better. The task "all" is the mean over tasks; if there are several, of standardised values, higher is better, as in
    a model selection: values of two tasks have no common scale.
    `pairs`: task, statistic, weighting, better, worse, difference (how much better, positive) with its interval,
    told_apart.
    `agreement`: statistic, weighting, other_statistic, other_weighting, spearman over the candidates, over all tasks.
    """

    ranking: pl.DataFrame
    pairs: pl.DataFrame
    agreement: pl.DataFrame


def rank(
    candidates: Mapping[str, pl.DataFrame | Sequence[pl.DataFrame]] | pl.DataFrame,
    proxies: Sequence[str] = RECOMMENDED,
    options: ProxyOptions | None = None,
    selection: SelectionOptions | None = None,
) -> Ranking:
    """Rank candidates by each of the named proxies, with intervals over solutions (and over seeds, if given).

    Args:
        candidates: candidate -> its token statistics, as `score` returns them; a list of them are training seeds. Or
            the values of proxies per solution, as `proxies(..., by="solution")` returns them: checkpoint (the
            candidate), task, solution, statistic, weighting, value, and seed if there are several. Their means are
            ranked, so a baseline is then a mean of ratios, and not the ratio of sums that it is for token statistics
            (with a column denominator, as a study's tables have it, it is that too).
        proxies: names as in `log_values`.
        options: details of the proxies; not used for values.
        selection: bootstrap samples, confidence and seed of the intervals.

    Raises:
        InputError: for an unknown proxy, no candidate, a table of several checkpoints, and a solution that a candidate
            lacks.
    """
    if not isinstance(candidates, Mapping | pl.DataFrame):
        found = type(candidates).__name__
        raise InputError(f"rank: candidates: found {found}; give candidate -> token statistics, or values per solution")
    names = [proxies] if isinstance(proxies, str) else proxies
    named = list(dict.fromkeys(map(parsed_name, names)))
    if not named:
        raise InputError("rank: proxies: found none; name at least one")
    if isinstance(candidates, pl.DataFrame):
        values, differ = _given_values(candidates), False
    else:
        tokens = _gathered(candidates)
        differ = not _share_tokens(tokens)
        statistics = [statistic for statistic, _ in named]
        require_temperatures(statistics, bool(temperatures_of(tokens.columns)), "rank")
        values = _values(tokens, differ, options or ProxyOptions(), tempered=not TEMPERED.keys().isdisjoint(statistics))
    if ALL_TASKS in values["task"]:
        raise InputError(f"rank: a task is named {ALL_TASKS!r}, as the mean over tasks is; give it another name")
    if differ:
        named.sort(key=lambda proxy: proxy[0] not in PER_BYTE)
    return _tables(values, named, differ, selection or SelectionOptions())


def _given_values(values: pl.DataFrame) -> pl.DataFrame:
    """Values per solution with the columns `candidate`, `seed`, `denominator` and one `tail`."""
    for column in ("checkpoint", *_SOLUTION, *_PROXY, "value"):
        if column not in values.columns:
            raise InputError(f"rank: column {column}: missing; give values per solution, found {values.columns}")
    given = {"seed": 0, "tail": "", "denominator": 1.0}
    missing = [pl.lit(value).alias(name) for name, value in given.items() if name not in values.columns]
    values = values.with_columns(*missing, candidate="checkpoint")
    if len(found := values["tail"].unique().sort()) > 1:
        raise InputError(f"rank: column tail: found {', '.join(found)}; give the values of one tail")
    return values


def _gathered(candidates: Mapping[str, pl.DataFrame | Sequence[pl.DataFrame]]) -> pl.DataFrame:
    """All token statistics, with `candidate` and `seed`; `checkpoint` names both together."""
    if not candidates:
        raise InputError("rank: found no candidate; give the token statistics of at least one")
    frames = []
    for name, found in candidates.items():
        seeds = [found] if isinstance(found, pl.DataFrame) else found
        if len(seeds) == 0:
            raise InputError(f"rank: candidate {name}: found no table; give the token statistics of at least one seed")
        for seed, frame in enumerate(seeds):
            _require_one_checkpoint(frame, f"rank: candidate {name}")
            both = {"checkpoint": f"{name}, seed {seed}" if len(seeds) > 1 else name, "candidate": name, "seed": seed}
            frames.append(frame.with_columns(pl.lit(value).alias(column) for column, value in both.items()))
    return pl.concat(frames, how="diagonal")


def _require_one_checkpoint(frame: pl.DataFrame, where: str) -> None:
    require_token_stats(frame.columns, where)
    if len(found := frame["checkpoint"].unique().sort()) != 1:
        names = f": {', '.join(told_names(found))}" if len(found) else ""
        raise InputError(
            f"{where}: found the token statistics of {len(found)} checkpoints{names}; give those of one, or of "
            "training seeds a list with a table for each"
        )


def _share_tokens(tokens: pl.DataFrame) -> bool:
    """Whether every candidate was scored on the same tokens of every solution, behind whatever prompt."""
    ordered = tokens.sort(*_SOLUTION, "position").select("checkpoint", *_SOLUTION, "token", "bytes")
    one, *others = (part.drop("checkpoint") for _, part in ordered.group_by("checkpoint", maintain_order=True))
    return all(one.equals(other) for other in others)


def _values(tokens: pl.DataFrame, differ: bool, options: ProxyOptions, tempered: bool) -> pl.DataFrame:
    """Every proxy and baseline of every solution: candidate, seed, tail and the columns of `solution_proxies`.

    Of a baseline `value` and `denominator` are a solution's two sums (`solution_ratios`), of a proxy the latter is 1.
    `tempered`: whether the tempered baselines are among them.
    """
    names = tokens.select("checkpoint", "candidate", "seed").unique()
    if tempered:
        tokens = with_tempered(tokens.lazy())[0].collect()
    if differ:
        covered = tokens.group_by("checkpoint", *_SOLUTION).agg(pl.col("bytes").sum())
        common = covered.group_by(_SOLUTION).agg(common=pl.col("bytes").min())
        tokens = tails(tokens.lazy().join(common.lazy(), on=_SOLUTION), 0, pl.col("common"))["bytes"].collect()
    parts = [
        solution_proxies(tokens.lazy(), options).with_columns(denominator=pl.lit(1.0)),
        solution_ratios(tokens.lazy()),
    ]
    values = pl.concat(pl.collect_all(parts), how="diagonal")
    return values.join(names, on="checkpoint", maintain_order="left").with_columns(
        tail=pl.lit("bytes" if differ else "tokens")
    )


def _tables(values: pl.DataFrame, proxies: list[tuple[str, str]], differ: bool, selection: SelectionOptions) -> Ranking:
    candidates = values.select("candidate").unique(maintain_order=True)
    tasks = values["task"].unique().sort().to_list()
    ranking, pairs, points = [], [], []
    for statistic, weighting in proxies:
        rows = values.filter(statistic=statistic, weighting=weighting)
        if rows.is_empty():
            raise InputError(f"proxy {proxy_name(statistic, weighting)}: no candidate has a value of it")
        _require_text(rows, proxy_name(statistic, weighting))
        sign = SIGNS[statistic]
        note = OTHER_TOKENIZERS if differ and statistic not in PER_BYTE else ""
        for task in [ALL_TASKS, *(tasks if len(tasks) > 1 else [])]:
            of_task = rows if task == ALL_TASKS else rows.filter(task=task)
            scores = of_task.with_columns(score=sign * pl.col("value"))
            over_tasks = task == ALL_TASKS and len(tasks) > 1
            scores = _standardised(scores) if over_tasks else scores
            found = resampled_scores(scores, candidates, selection, where=f"{proxy_name(statistic, weighting)}: ")
            key = {"task": task, "statistic": statistic, "weighting": weighting}
            columns = [pl.lit(value).alias(name) for name, value in key.items()]
            tail = [pl.lit(rows["tail"][0]).alias("tail"), pl.lit(note).alias("note")]
            places = place_table(candidates, found, selection.confidence)
            unit = 1 if over_tasks else sign
            ranking.append(_in_its_unit(places, unit).select(*columns, *tail, pl.all()))
            of_pairs = pair_table(candidates["candidate"].to_list(), found, selection.confidence)
            pairs.append(of_pairs.select(*columns, pl.all()))
            points += [np.round(found.points, DECIMALS)] if task == ALL_TASKS else []
    named = pl.DataFrame(proxies, schema=dict.fromkeys(_PROXY, pl.String), orient="row")
    return Ranking(pl.concat(ranking), pl.concat(pairs), agreement_table(named, np.stack(points)))


def _require_text(rows: pl.DataFrame, proxy: str) -> None:
    """`InputError` for a ratio that is undefined: the scored tokens of a task have no byte of their own."""
    sums = rows.group_by("candidate", "task", maintain_order=True).agg(pl.col("denominator").sum())
    for candidate, task in sums.filter(denominator=0).select("candidate", "task").head(1).iter_rows():
        raise InputError(f"rank: candidate {candidate}, task {task}: the scored tokens cover 0 bytes, so no {proxy}")


def _standardised(scores: pl.DataFrame) -> pl.DataFrame:
    """In each task the mean over candidates is 0 and their standard deviation (divisor n) 1; 0 where all tie."""
    ratios = scores.group_by("task", "candidate", "seed").agg(pl.col("score").sum() / pl.col("denominator").sum())
    means = ratios.group_by("task", "candidate").agg(pl.col("score").mean())
    of_tasks = means.group_by("task").agg(
        mean=pl.col("score").mean(),
        scale=pl.col("score").std(ddof=0),
        tied=pl.col("score").round(DECIMALS).n_unique() == 1,
    )
    standardised = (pl.col("score") - pl.col("mean") * pl.col("denominator")) / pl.col("scale")
    return scores.join(of_tasks, on="task", maintain_order="left").with_columns(
        score=pl.when("tied").then(0.0).otherwise(standardised)
    )


def _in_its_unit(places: pl.DataFrame, sign: int) -> pl.DataFrame:
    """`score` becomes `value`: where less is better the sign goes, and the ends of the interval change places."""
    ends = ("score_low", "score_high")[::sign]
    return places.select(
        "candidate",
        value=sign * pl.col("score"),
        value_low=sign * pl.col(ends[0]),
        value_high=sign * pl.col(ends[1]),
        place="place",
        place_low="place_low",
        place_high="place_high",
    )
