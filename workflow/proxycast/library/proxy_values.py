"""From token statistics to proxies and baselines, of tasks and of single solutions, and to what a training logs."""

from collections.abc import Iterable, Sequence
from typing import Literal

import polars as pl

from proxycast.config.errors import closest, parse
from proxycast.extraction.schema import TOKEN_STATS_SCHEMA, temperatures_of
from proxycast.extraction.temperature_fit import with_tempered
from proxycast.options import InputError
from proxycast.proxy_formulas import (
    BASELINES,
    STATISTICS,
    TEMPERED,
    WEIGHTINGS,
    ProxyOptions,
    baseline_statistics,
    solution_proxies,
    solution_ratios,
    tails,
    task_proxies,
)

TAIL_TOKENS = 1000  # as `score` has it
# Named in advance: the two that the paper recommends, and a plain baseline on the same solutions.
RECOMMENDED = ("top5_accuracy/token_frequency", "top1_accuracy/inverse_token_frequency", "bits_per_byte")


def proxies(
    token_stats: pl.DataFrame | pl.LazyFrame,
    by: Literal["task", "solution"] = "task",
    *,
    tail_tokens: int | None = None,
    tail_bytes: int | None = None,
    **options: object,
) -> pl.DataFrame:
    """The 80 proxies and the baselines of each model and task, with standard errors, or of each single solution.

    `token_stats`: the table of `score`; tables of several models may be put together (`pl.concat`). `tail_tokens`: how
    many tokens at the end of each solution count; without it all that were scored. `tail_bytes`: that of `score`; with
    it there is a row for each tail, "tokens" (the last 1000, if `tail_tokens` does not say) and "bytes". `options`:
    those of a study's `proxies` (config/README.md), as `rank_ties="best"`.

    Columns: checkpoint, task, statistic, weighting ("none" for baselines), value, standard_error (over solutions; null
    for one solution), solutions, tokens, tail. By solution: checkpoint, task, solution, statistic, weighting, value,
    tokens, tail; the task's value of a proxy is the mean over its solutions, that of a baseline a ratio of sums. A
    solution without a byte of its own has no bits per byte (null). The `tempered` baselines are there if the statistics
    were scored with `temperatures`; the temperature is fitted to all tokens of a checkpoint in the table.
    Statistics that are better when lower have the sign -1 in `proxy_formulas.SIGNS`.

    Raises InputError for a table without these columns or with impossible values.
    """
    chosen, table = parse(ProxyOptions, options, "proxies"), token_stats.lazy()
    require_token_stats(table.collect_schema().names(), "proxies")
    if by not in ("task", "solution"):
        raise InputError(f"proxies: by: found {by!r}; give 'task' or 'solution'")
    table, _ = with_tempered(table)
    found = []
    for tail, scored in _tails(table, tail_tokens, tail_bytes).items():
        of_solutions = solution_proxies(scored, chosen).collect().lazy()
        tables = (
            [task_proxies(of_solutions), baseline_statistics(scored)]
            if by == "task"
            else [of_solutions, _solution_baselines(scored)]
        )
        found += [part.with_columns(tail=pl.lit(tail)) for part in pl.collect_all(tables)]
    return pl.concat(found)


def _tails(table: pl.LazyFrame, tail_tokens: int | None, tail_bytes: int | None) -> dict[str, pl.LazyFrame]:
    if tail_bytes is None and tail_tokens is not None:
        return {"tokens": tails(table, tail_tokens, tail_bytes=1)["tokens"]}  # with a second tail it cuts the first
    return tails(table, TAIL_TOKENS if tail_tokens is None else tail_tokens, tail_bytes)


def require_token_stats(columns: Sequence[str], where: str) -> None:
    """`InputError`, which begins with `where`, for a table that lacks a column of token statistics."""
    needed = ("checkpoint", "task", "solution", *(name for name in TOKEN_STATS_SCHEMA if name != "key"))
    if missing := [name for name in needed if name not in columns]:
        raise InputError(f"{where}: found no column {missing[0]}; give the token statistics that score returns")


def _solution_baselines(token_stats: pl.LazyFrame) -> pl.LazyFrame:
    """The ratios of `ratios_of` of every solution, in the columns of `solution_proxies`; null where x is 0."""
    y, x = pl.col("value"), pl.col("denominator")
    return solution_ratios(token_stats).with_columns(value=pl.when(x > 0).then(y / x)).drop("denominator")


def log_values(
    token_stats: pl.DataFrame, names: Sequence[str] = RECOMMENDED, tail_tokens: int | None = None
) -> dict[str, float]:
    """What a training logs of one model: `proxy/<task>/<statistic>/<weighting>` -> value.

    `token_stats`: the table of `score`. `names`: `statistic/weighting` of a proxy, or the name of a baseline, which is
    logged with the weighting "none". `tail_tokens` as in `proxies`: give it where the table holds a tail in bytes, too.
    Raises InputError for an unknown name, and for a tempered baseline of statistics without temperatures.
    """
    wanted = pl.DataFrame(list(map(parsed_name, names)), ["statistic", "weighting"], orient="row")
    require_temperatures(wanted["statistic"], bool(temperatures_of(token_stats.columns)), "proxies")
    rows = wanted.join(
        proxies(token_stats, tail_tokens=tail_tokens), on=["statistic", "weighting"], how="left", maintain_order="left"
    )
    return {
        f"proxy/{row['task']}/{row['statistic']}/{row['weighting']}": row["value"] for row in rows.iter_rows(named=True)
    }


def require_temperatures(statistics: Iterable[str], are_there: bool, where: str) -> None:
    """`InputError`, which begins with `where`, for a tempered baseline of token statistics without temperatures."""
    tempered = [name for name in statistics if name in TEMPERED]
    if tempered and not are_there:
        raise InputError(
            f"{where}: {tempered[0]}: needs token statistics at temperatures; give `temperatures` to proxycast.score"
        )


def parsed_name(name: str) -> tuple[str, str]:
    """(statistic, weighting) of a name; the weighting of a baseline is "none"."""
    baselines = BASELINES | TEMPERED
    known = {**{f"{s}/{w}": (s, w) for s in STATISTICS for w in WEIGHTINGS}, **{b: (b, "none") for b in baselines}}
    if name not in known:
        raise InputError(
            f"proxies: found {name!r}{closest(name, known)}; give <statistic>/<weighting>, of "
            f"{', '.join(STATISTICS)} and {', '.join(WEIGHTINGS)}, or a baseline, {' or '.join(baselines)}"
        )
    return known[name]
