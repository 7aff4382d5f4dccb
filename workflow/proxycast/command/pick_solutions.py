"""Only some of the expert solutions, in files of their own: `proxycast pick`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from proxycast.library.solution_files import load_solutions
from proxycast.options import InputError, told_names, told_value
from proxycast.proxy_formulas import proxy_name
from proxycast.solutions.rows import Solution, write_solutions
from proxycast.truth.long_tables import Column, read_long_table

NAME = Column(pl.String, may_lack=True)
PLACE = Column(pl.Int64, may_lack=True)
COLUMNS = {"task": Column(pl.String), "solution": Column(pl.String), "place": PLACE, "random_place": PLACE}
LISTS = ["size", "step", "statistic", "weighting"]  # what tells several lists of one table apart


def pick_solutions(table: Path, solutions: Sequence[Path], out: Path, number: int | None, by: str, proxy: str) -> None:
    """Write `out`/<task>.jsonl with those of the `solutions` that the `table` lists, and print how many.

    `number`: the first so many of each task by the column `by`. `InputError` where the table lists nothing, or a task
    or an id that the solutions lack, and where a file would be overwritten.
    """
    wanted = picked(table, number, by, proxy)
    chosen = only(load_solutions(solutions), wanted, table)
    for path in (out / f"{task}.jsonl" for task in chosen):
        if path.exists():
            raise InputError(f"{path}: there is such a file already; remove it, or give another folder to --out")
    out.mkdir(parents=True, exist_ok=True)
    for task, rows in chosen.items():
        write_solutions(rows, out / f"{task}.jsonl")
        print(f"{out / f'{task}.jsonl'}: {len(rows)} solutions")


def picked(path: Path, number: int | None, by: str, proxy: str) -> dict[str, list[str]]:
    """Task -> ids of its picked solutions: of a table with several lists, those of `proxy`, else of the first list."""
    columns = COLUMNS | {name: PLACE if name == "step" else NAME for name in LISTS}
    rows = read_long_table(path, columns, "picked solutions")
    lists = rows.select(LISTS).unique(maintain_order=True)
    if proxy:
        names = [proxy_name(statistic, weighting) for *_, statistic, weighting in lists.drop_nulls().iter_rows()]
        if proxy not in names:
            known = ", ".join(dict.fromkeys(names)) or "none of a proxy"
            raise InputError(f"--proxy: {path} has no list of {proxy}; it has {known}")
        lists = lists[names.index(proxy)]
    rows = rows.join(lists.head(1), on=LISTS, how="semi", nulls_equal=True, maintain_order="left")
    if number is not None:
        if rows[by].null_count():
            raise InputError(f"{path}: --number needs a column {by} with the place of each solution, from 1")
        rows = rows.filter(pl.col(by) <= number)
    found = rows.group_by("task", maintain_order=True).agg(pl.col("solution").unique(maintain_order=True))
    if found.is_empty():
        raise InputError(f"{path}: lists no solution whose {by} is {number} or less; places start at 1")
    return dict(found.iter_rows())


def only(
    solutions: Mapping[str, Sequence[Solution]], wanted: Mapping[str, Sequence[str]], where: Path
) -> dict[str, list[Solution]]:
    """Task -> the `wanted` of its solutions, in their own order."""
    found = {}
    for task, ids in wanted.items():
        if task not in solutions:
            raise InputError(
                f"{where}: lists solutions of task {task!r}, of which there is no file; found tasks "
                f"{told_names(solutions, may_stand_alone=True)}"
            )
        if missing := set(ids) - {solution.id for solution in solutions[task]}:
            first = next(name for name in ids if name in missing)
            raise InputError(
                f"{where}: lists solution {told_value(first)} of task {task!r}, which no solution has as its id"
                + (f", and {len(missing) - 1} more such ids" if len(missing) > 1 else "")
                + "; give the solutions that the list was made of"
            )
        found[task] = [solution for solution in solutions[task] if solution.id in set(ids)]
    return found
