"""What each token contributes to the difference between two candidates of one proxy.

A proxy of a candidate is the mean over T tasks of the task's value, and a task's value is the sum of its tokens' shares
(`proxy_formulas.token_shares`). So the difference of two candidates, signed so that more is better, is a sum over
tokens, exactly:

    difference = sum over tokens of  sign (share of the first - share of the second) / T

What stands for a candidate may be a mean over checkpoints (seeds, last checkpoints); its shares are that mean, too.
Candidates with different tokenizers have no tokens in common: then the contributions are those of solutions. With one
candidate the second counts as 0, and the contributions sum to the candidate's own value.

Memory: the scored tokens of one task, of one checkpoint while its shares are made and of both candidates with 18
columns, then what `most` keeps. It depends neither on the number of checkpoints of the study nor on the size of
token_stats/: only the files of the compared checkpoints are opened, and of them one task's rows are read at a time.
Ten tasks of 400,000 tokens each took 2.0 GB at most (docs/how/tokens.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from proxycast.experiments.token_contrast.compared import Compared, Comparison
from proxycast.options import InputError
from proxycast.proxy_formulas import SIGNS, ProxyOptions, tails, token_shares
from proxycast.solutions.rows import GENERIC_TEXT
from proxycast.tables import scan_tables

DIGITS = 12  # significant; values that differ by less have no order
_TOKEN = ["solution", "position"]
_KEYS = ["solution", "position", "token", "bytes", "behind"]
_OF_A_CANDIDATE = ["rank", "entropy", "nll", "value", "weight", "share"]


@dataclass(frozen=True)
class Reading:
    """How the study's statistics are read: `files`: checkpoint -> its file; tails as in `proxy_formulas.tails`."""

    files: Mapping[str, Path]
    options: ProxyOptions
    tail_tokens: int
    tail_bytes: int | None
    sound: set[Path] = field(default_factory=set)  # files whose seal has been checked

    def shares(self, checkpoint: str, task: str, comparison: Comparison) -> pl.DataFrame:
        """`token_shares` of a checkpoint in a task, sorted by solution and position; `behind`: bytes behind a token.

        `InputError` if it has no statistics here.
        """
        if checkpoint not in self.files:
            raise InputError(f"no token statistics of checkpoint {checkpoint} here; run the study to make them")
        path, of_task = self.files[checkpoint], pl.col("task") == task
        stats = pl.scan_parquet(path, glob=False) if path in self.sound else scan_tables(path)
        self.sound.add(path)
        counts_all = self.options.token_frequency_scope == "study"  # f(y) is then counted in all tasks
        stats = stats.filter(pl.col("task") != GENERIC_TEXT if counts_all else of_task)
        stats = tails(stats, self.tail_tokens, self.tail_bytes).get(comparison.tail, stats)
        proxy = comparison.proxy
        shares = token_shares(stats, self.options, proxy.statistic, proxy.weighting).filter(of_task)
        behind = pl.col("bytes").cum_sum(reverse=True).over("solution") - pl.col("bytes")
        return shares.with_columns(behind=behind.cast(pl.Int64))


@dataclass(frozen=True)
class Contributions:
    """`tokens`: the largest, at most `most` of either sign a task, or none where tokenizers differ; `solutions`: all.

    tokens: task, solution, position, token, bytes, behind, contribution and, of each candidate, first_<x> and
    second_<x>, x in rank, entropy, nll, value, weight, share: their means over the candidate's checkpoints.
    solutions: task, solution, contribution. `total`: the difference, the sum over all tokens or solutions.
    """

    tokens: pl.DataFrame
    solutions: pl.DataFrame
    total: float


def contributions(comparison: Comparison, reading: Reading, tasks: Sequence[str], most: int) -> Contributions:
    """The contributions of all tokens; `most`: how many of either sign are kept a task, the largest."""
    sign, tokens, solutions, alike = SIGNS[comparison.proxy.statistic], [], [], True
    for task in tasks:
        sides = [_mean_shares(one, reading, task, comparison) for one in comparison.candidates]
        first, second = sides[0], sides[-1].with_columns(pl.lit(0.0).alias("share")) if len(sides) == 1 else sides[1]
        alike = alike and _are_of_the_same_tokens(first, second)
        signed = pl.col("contribution") * sign / len(tasks)
        of_solutions = [
            side.group_by("solution", maintain_order=True).agg(contribution=pl.col("share").sum() * factor)
            for side, factor in ((first, 1), (second, -1))
        ]
        summed = pl.concat(of_solutions).group_by("solution", maintain_order=True).agg(pl.col("contribution").sum())
        solutions.append(summed.select(pl.lit(task).alias("task"), "solution", signed))
        if alike:
            tokens.append(largest(_side_by_side(first, second, task).with_columns(signed), most))
    of_solutions = largest(pl.concat(solutions), None)
    found = largest(pl.concat(tokens), None) if alike else tokens_schema().clear()
    return Contributions(found, of_solutions, of_solutions["contribution"].sum())


def tokens_schema() -> pl.DataFrame:
    columns = {"task": pl.String, "solution": pl.String, "position": pl.Int32}
    columns |= {"token": pl.Int32, "bytes": pl.Int32, "behind": pl.Int64}
    columns |= {f"{side}_{name}": pl.Float64 for side in ("first", "second") for name in _OF_A_CANDIDATE}
    return pl.DataFrame(schema=columns | {"contribution": pl.Float64})


def _mean_shares(one: Compared, reading: Reading, task: str, comparison: Comparison) -> pl.DataFrame:
    """A row a token, sorted: `_KEYS` and the means of `_OF_A_CANDIDATE` over the candidate's checkpoints."""
    found = None
    for checkpoint, weight in one.weights.items():
        columns = [*_KEYS, *(pl.col(name) * weight for name in _OF_A_CANDIDATE)]
        part = reading.shares(checkpoint, task, comparison).select(columns)
        found = part if found is None else _added(found, part)
    return found


def _added(one: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    """The sums of two checkpoints' rows. Tokens that only one of them has stay: their tokenizers differ."""
    if _are_of_the_same_tokens(one, other):
        return one.with_columns(one[name] + other[name] for name in _OF_A_CANDIDATE)
    return pl.concat([one, other]).group_by(_KEYS, maintain_order=True).agg(pl.all().sum()).sort(_TOKEN)


def _are_of_the_same_tokens(first: pl.DataFrame, second: pl.DataFrame) -> bool:
    return first.select(_KEYS).equals(second.select(_KEYS))


def _side_by_side(first: pl.DataFrame, second: pl.DataFrame, task: str) -> pl.DataFrame:
    """Tokens of both candidates, which are the same, in the columns of `tokens_schema`; neither sign nor mean yet."""
    found = first.select(
        pl.lit(task).alias("task"), *_KEYS, *(pl.col(name).alias(f"first_{name}") for name in _OF_A_CANDIDATE)
    )
    others = second.select(pl.col(name).alias(f"second_{name}") for name in _OF_A_CANDIDATE)
    difference = pl.col("first_share") - pl.col("second_share")
    return found.hstack(others).with_columns(contribution=difference).select(tokens_schema().columns)


def largest(table: pl.DataFrame, most: int | None) -> pl.DataFrame:
    """The rows with the largest contributions first, at most `most` of either sign; ties in the order of the names."""
    size = pl.col("contribution").abs().round_sig_figs(DIGITS)
    keys = [name for name in ("task", "solution", "position") if name in table.columns]
    order = pl.arg_sort_by(size, *keys, descending=[True, *[False] * len(keys)])
    if most is not None:
        places = table.select(order.alias("row"), is_below=pl.col("contribution").gather(order) < 0)
        order = places.filter(pl.int_range(pl.len()).over("is_below") < most)["row"]
    # Gathered, as the head of a sorted table would keep all of it in memory.
    return table.select(pl.all().gather(order))
