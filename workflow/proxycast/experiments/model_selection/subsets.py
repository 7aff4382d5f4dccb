"""Proxies over parts of the expert solutions, one writer's or a few: how far does a ranking hang on them?"""

import hashlib
import logging
from collections.abc import Mapping, Sequence

import polars as pl

from proxycast.proxy_formulas import ProxyOptions, solution_proxies, task_proxies
from proxycast.solutions.rows import Solution

log = logging.getLogger(__name__)

EVERY_WRITER = "all"
GIVEN = "given"  # the writer of solutions that name none
SUBSET = ["writer", "number", "draw"]
_SEPARATOR = "\x1f"  # between a checkpoint and its subset: no name holds it


def memberships(
    solutions: Mapping[str, Sequence[Solution]], numbers: Sequence[int], draws: int, seed: int
) -> pl.DataFrame:
    """Which solutions belong to which subset: writer, number, draw, task, solution.

    A subset is of one writer, or of all ("all"), and holds the solutions of `number` problems a task, or of every
    problem (number null, draw 0). The problems of a draw are those whose hash comes first: the same for all writers,
    and those of a smaller number among those of a larger. A number that no task exceeds is left out, and a writer who
    is missing from a task: subsets are compared over the same tasks.
    """
    written = {task: _by_writer(found) for task, found in solutions.items()}
    writers = list(dict.fromkeys(writer for found in written.values() for writer in found))
    for writer in [w for w in writers if any(w not in found for found in written.values())]:
        log.warning("writer %s has solutions of some tasks only, and is not compared with the others", writer)
        writers.remove(writer)
    rows = []
    for writer in dict.fromkeys([EVERY_WRITER, *writers]):
        most = max(len({s.problem_id for s in found[writer]}) for found in written.values())
        chosen = [(None, 0), *((number, draw) for number in numbers if number < most for draw in range(draws))]
        for task, found in written.items():
            for number, draw in chosen:
                kept = {*_drawn({s.problem_id for s in found[writer]}, task, draw, seed)[:number]}
                rows += [(writer, number, draw, task, s.id) for s in found[writer] if s.problem_id in kept]
    schema = {"writer": pl.String, "number": pl.Int64, "draw": pl.Int64, "task": pl.String, "solution": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _by_writer(solutions: Sequence[Solution]) -> dict[str, list[Solution]]:
    found: dict[str, list[Solution]] = {EVERY_WRITER: list(solutions)}
    for solution in solutions:
        found.setdefault(solution.writer or GIVEN, []).append(solution)
    return found


def _drawn(problems: set[str], task: str, draw: int, seed: int) -> list[str]:
    def place(problem: str) -> bytes:
        return hashlib.sha256(repr((seed, draw, task, problem)).encode()).digest()

    return sorted(problems, key=place)


def subset_proxies(token_stats: pl.LazyFrame, members: pl.DataFrame, options: ProxyOptions) -> pl.DataFrame:
    """`proxy_formulas.task_proxies` of every subset of `memberships`, with the columns writer, number, draw.

    Frequencies, mu and sigma are those of the subset, as if no other solution were there.
    """
    names = members.select(SUBSET).unique(maintain_order=True).with_row_index("subset")
    numbered = members.join(names, on=SUBSET, nulls_equal=True).select("task", "solution", "subset").lazy()
    tagged = token_stats.join(numbered, on=["task", "solution"]).with_columns(
        checkpoint=pl.format("{}" + _SEPARATOR + "{}", "checkpoint", "subset")
    )
    table = task_proxies(solution_proxies(tagged.drop("subset"), options)).collect(engine="streaming")
    parts = pl.col("checkpoint").str.split_exact(_SEPARATOR, 1)
    return (
        table.with_columns(
            checkpoint=parts.struct.field("field_0"), subset=parts.struct.field("field_1").cast(names["subset"].dtype)
        )
        .join(names, on="subset", maintain_order="left")
        .drop("subset")
    )
