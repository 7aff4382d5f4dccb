"""A ranking of candidates on a terminal: a table for each proxy, the pairs, and how far the proxies agree."""

import sys
from collections.abc import Iterator, Mapping

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxycast.experiments.opposed_pairs import opposed_pairs
from proxycast.library.candidate_ranking import ALL_TASKS, Ranking
from proxycast.options import printable
from proxycast.proxy_formulas import SIGNS, proxy_name

SHOWN_PAIRS = 10
WIDE = 200  # columns off a terminal, so that lines can be searched


def print_ranking(ranking: Ranking, solutions: Mapping[str, int]) -> None:
    """Print what holds over all tasks. `solutions`: their number in each task."""
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    tasks = ", ".join(f"{task} ({count:,} solutions)" for task, count in solutions.items())
    console.print(Text(printable(f"tasks: {tasks}; brackets are 95 % intervals over the solutions")))
    of_all = ranking.ranking.filter(task=ALL_TASKS)
    for (statistic, weighting), rows in of_all.group_by("statistic", "weighting", maintain_order=True):
        pairs = ranking.pairs.filter(task=ALL_TASKS, statistic=statistic, weighting=weighting)
        better = "more is better" if SIGNS[statistic] > 0 else "less is better"
        if len(solutions) > 1:
            better = "mean of the values standardised in each task, more is better"
        console.print(Text(f"\n{proxy_name(statistic, weighting)}, {better}", style="bold"))
        console.print(proxy_table(rows))
        if note := rows["note"][0]:
            console.print(Text(note, style="italic"))
        for line in pair_lines(pairs):
            console.print(Text(line))
        first = of_all.row(0, named=True)
        leading = ranking.pairs.filter(task=ALL_TASKS, statistic=first["statistic"], weighting=first["weighting"])
        if len(opposed := opposed_pairs(leading, pairs)):
            others = f"{len(opposed):,} of them" if len(pairs) > 1 else "them"
            leader = proxy_name(first["statistic"], first["weighting"])
            console.print(Text(f"tells {others} apart the other way round than {leader}", style="italic"))
    if len(of_all["candidate"].unique()) > 1:
        console.print()
        for row in ranking.agreement.iter_rows(named=True):
            rho = "not defined, all tie" if row["spearman"] is None else f"{row['spearman']:.2f}"
            one, other = (proxy_name(row[f"{of}statistic"], row[f"{of}weighting"]) for of in ("", "other_"))
            console.print(Text(f"Spearman's rho of {one} and {other}: {rho}"))


def proxy_table(rows: pl.DataFrame) -> Table:
    """The candidates by one proxy, best first."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("candidate", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("place", justify="right")
    for row in rows.iter_rows(named=True):
        table.add_row(Text(printable(row["candidate"])), _interval(row, "value", ".4f"), _interval(row, "place", "g"))
    return table


def pair_lines(pairs: pl.DataFrame) -> Iterator[str]:
    """Which pairs can be told apart, in a line or two."""
    if pairs.is_empty():
        return
    if pairs["told_apart"].null_count():
        yield "one solution: nothing says how sure this order is"
        return
    alike = [
        f"{better} and {worse}"
        for better, worse in pairs.filter(~pl.col("told_apart")).select("better", "worse").iter_rows()
    ]
    yield f"{len(pairs) - len(alike):,} of {len(pairs):,} pairs can be told apart"
    if alike:
        more = f" and {len(alike) - SHOWN_PAIRS:,} more" if len(alike) > SHOWN_PAIRS else ""
        yield printable(f"not told apart: {'; '.join(alike[:SHOWN_PAIRS])}{more}")


def _interval(row: Mapping[str, float | None], name: str, form: str) -> str:
    ends = row[f"{name}_low"], row[f"{name}_high"]
    interval = "" if None in ends else f" [{ends[0]:{form}}, {ends[1]:{form}}]"
    return f"{row[name]:{form}}{interval}"
