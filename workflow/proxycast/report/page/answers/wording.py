"""What an answer is made of, and how numbers, intervals, costs and lists of names are written in a sentence."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np
import polars as pl

from proxycast.config.truth import Target
from proxycast.metrics import is_share
from proxycast.report.page.formats import with_interval

MOST_NAMES = 5  # that a sentence lists
Row = Mapping[str, object]


class Fact(NamedTuple):
    """What a reader must know beside the decision: `label` says what it is about, in two or three words."""

    label: str
    text: str


@dataclass(frozen=True)
class Answer:
    """`sentence`: the decision, its interval. `facts`: how sure, at what cost. `missing`: what is unknown, and why.

    `warning`: what must be known before the sentence is read, such as a truth that may be noise. All are plain text:
    names in them are as the study has them.
    """

    sentence: str
    facts: Sequence[Fact] = ()
    missing: Sequence[str] = ()
    warning: str = ""


def first_row(table: pl.DataFrame | None, **where: object) -> Row | None:
    """The first row of a table that is so, or None."""
    return None if table is None else next(known_rows(table.filter(**where).head(1)), None)


def known_rows(table: pl.DataFrame) -> Iterator[Row]:
    """The rows of a table. What is no finite number becomes None, as null is."""
    for row in table.iter_rows(named=True):
        yield {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}


def listed(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """Names in words: "a", "a and b", "a, b and c", "a, b, c and 12 more"."""
    *first, last = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return f"{', '.join(first)} and {last}" if first else last


def counted(number: int, thing: str, things: str = "") -> str:
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def two_digits(value: float) -> str:
    """A number with two significant digits, or all that stand before the point; powers of ten only far from 1."""
    if value and not 1e-9 < abs(value) < 1e12:
        return f"{value:.1e}"
    rounded = float(f"{value:.2g}") if abs(value) < 10 else round(value)
    return np.format_float_positional(rounded + 0.0, trim="-")  # + 0.0: no -0


def power_of_ten(number: float, unit: str) -> str:
    return f"{number:.2e} {unit}".replace("e+", "e")


def percent(share: float) -> str:
    """A share as in "0.002 %"."""
    return f"{two_digits(100 * share)} %"


def cost(row: Row, name: str, metric: str, low: str = "", high: str = "") -> str:
    """A difference of the truth: in points where the metric is a share, "0.4 points [0, 1.1]", else in its unit.

    `name`, `low`, `high`: columns of the row; without the latter two no interval is shown.
    """
    value, low, high = (row[column] if column else None for column in (name, low, high))
    points = is_share(metric)
    factor = 100 if points else 1
    unit = " points" if points else ""
    ends = "" if low is None or high is None else f" [{two_digits(factor * low)}, {two_digits(factor * high)}]"
    return f"{two_digits(factor * value)}{unit}{ends}{'' if points else f' in {metric}'}"


def versus(row: Row, own: str) -> str:
    """Whether `own` beats the best baseline: by the row's `difference` (above 0: it does) and its interval."""
    value, low, high = (row[f"difference{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return f"whether {own} beats it is not known"
    difference = with_interval(row, "difference", "+.2f", "difference_low", "difference_high")
    if low is None or high is None:
        word = "ahead of it" if value > 0 else "behind it" if value < 0 else "as good as it"
        return f"{own} is {word}, but how sure that is remains unknown (difference {difference})"
    if low > 0:
        return f"{own} beats it (difference {difference})"
    if high < 0:
        return f"it beats {own} (difference {difference})"
    return f"{own} is not shown to beat it (difference {difference})"


def undecided(pairs: pl.DataFrame, leaders: Sequence[str]) -> list[str]:
    """Who cannot be told apart from a leader, best first. `pairs`: one ranking of `candidate_order.pair_table`."""
    unsure = pairs.filter(~pl.col("told_apart")).select("better", "worse")
    found = dict.fromkeys(name for pair in unsure.iter_rows() if set(leaders) & set(pair) for name in pair)
    return [name for name in found if name not in leaders]


def leading(ranking: pl.DataFrame, name: str) -> list[str]:
    """Who is first by place: one, or those that tie."""
    return ranking.filter(pl.col("place") == pl.col("place").min())[name].sort().to_list()


def clause_of_leader(ranking: pl.DataFrame, name: str, things: str) -> str:
    """Who leads. `name`: the column of candidates, `things`: what many of them are called."""
    leaders = leading(ranking, name)
    if len(ranking) == 1:
        return f"{leaders[0]} is the only {name}, so there is nothing to choose between"
    if len(leaders) == len(ranking):
        return f"all {len(leaders)} {things} tie, so nothing is chosen: {listed(leaders)}"
    return f"{listed(leaders)} {'leads' if len(leaders) == 1 else 'tie for the lead'} among {len(ranking)} {things}"


def clause_of_undecided(ranking: pl.DataFrame, pairs: pl.DataFrame, name: str, things: str) -> Iterator[str]:
    """Who cannot be told apart from the leaders; nothing if all candidates lead."""
    leaders = leading(ranking, name)
    if len(leaders) == len(ranking):
        return
    like, them = undecided(pairs, leaders), "it" if len(leaders) == 1 else "them"
    of_leader = pairs.filter(pl.col("better").is_in(leaders) | pl.col("worse").is_in(leaders))
    if of_leader["told_apart"].null_count() == len(of_leader):
        yield f"whether any other {name} can be told apart from {them} is not known"
    elif unknown := of_leader["told_apart"].null_count():
        known = f"{listed(like)} cannot be told apart from {them}, and " if like else ""
        yield f"{known}of {counted(unknown, name, things)} it is not known whether they can be told apart from {them}"
    elif not like:
        yield f"every other {name} can be told apart from {them}"
    elif len(like) == 1:
        yield f"{like[0]} cannot be told apart from {them}"
    elif len(like) == len(ranking) - len(leaders):
        yield f"none of the other {len(like)} {things} can be told apart from {them}"
    else:
        yield f"these {len(like)} {things} cannot be told apart from {them}: {listed(like)}"


def fact_of_pairs(pairs: pl.DataFrame) -> Iterator[Fact]:
    """How many pairs the order decides surely."""
    known = pairs.drop_nulls("told_apart")
    if len(known):
        unsure, rest = known.filter(~pl.col("told_apart")), len(pairs) - len(known)
        beyond = f"; of {rest} that is not known" if rest else ""
        told = f"{len(unsure)} of {counted(len(pairs), 'pair')} cannot be told apart"
        yield Fact("Undecided", (told if len(unsure) else "none: every pair can be told apart") + beyond)


def brackets(confidence: float, target: Target | None, clauses: Iterable[str], facts: Iterable[Fact]) -> Fact:
    """What the brackets are and, where the answer tells points, what a point is."""
    said = " ".join([*clauses, *(fact.text for fact in facts)])
    points = f"; a point is a hundredth of {target.metric}" if target and " points" in said else ""
    return Fact("Brackets", f"{percent(confidence)} intervals{points}")


def sentence(clauses: Iterable[str]) -> str:
    return f"{'; '.join(clauses)}."


def why(row: Row | None) -> str:
    """The reason that a row's note gives for what is missing, behind a colon; empty where it gives none."""
    note = (row or {}).get("note")
    return f": {note.rpartition('no interval: ')[2]}" if note else ""
