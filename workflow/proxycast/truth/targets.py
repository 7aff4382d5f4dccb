"""The truth as a table: its columns, its metrics, what guessing gets, and tables from elsewhere, checked as read."""

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from proxycast.config.errors import closest
from proxycast.metrics import SAMPLED_EXACT_MATCH, about_share, is_share, is_unbounded, mixed_units, outside_share
from proxycast.options import InputError, told_names
from proxycast.solutions.rows import Problem, once_each
from proxycast.truth.long_tables import Column, read_long_table, require_once

log = logging.getLogger(__name__)

MULTIPLE_CHOICE_ACCURACY = "multiple_choice_accuracy"  # share of problems, 0 to 1
CHOICE_LOG_LIKELIHOOD = "choice_log_likelihood"  # nats per problem
# The sampled exact match over the first, third, fifth... problem, and over the others: how reliable it is.
HALVES = (f"{SAMPLED_EXACT_MATCH}_odd", f"{SAMPLED_EXACT_MATCH}_even")

# `n`: problems behind the value; null where it is unknown.
TARGETS_SCHEMA = {"checkpoint": pl.String, "task": pl.String, "metric": pl.String, "value": pl.Float64, "n": pl.Int64}
KEY = ["checkpoint", "task", "metric"]
COLUMNS = {name: Column(kind, may_lack=name == "n") for name, kind in TARGETS_SCHEMA.items()}


def chance_accuracy(solutions: Mapping[str, Sequence[Problem]]) -> float | None:
    """What guessing gets in multiple choice: the mean over tasks of the mean of 1 / choices; None without choices."""
    tasks = [[1 / len(s.choices) for s in once_each(problems) if s.choices] for problems in solutions.values()]
    means = [math.fsum(task) / len(task) for task in tasks if task]
    return math.fsum(means) / len(means) if means else None


def chance_by_task(metric: str, problems: Mapping[str, Sequence[Problem]]) -> dict[str, float | None]:
    """Task -> `chance_accuracy` of its problems; nothing for a metric that guessing has no share in."""
    return {
        task: chance_accuracy({task: found}) for task, found in problems.items() if metric == MULTIPLE_CHOICE_ACCURACY
    }


def read_target_table(path: Path) -> pl.DataFrame:
    """Read checkpoint, task, metric, value, n from a .csv or .parquet: `read_target_tables` of one file."""
    return read_target_tables([path])


def read_target_tables(paths: Sequence[Path]) -> pl.DataFrame:
    """Read checkpoint, task, metric, value, n from .csv or .parquet files as one table (TARGETS_SCHEMA).

    `n` is null where it is unknown: an empty cell, NaN, or a file without that column. Other columns are dropped.
    `InputError` names the file, and the row as an editor shows it: in a .csv the first one after the header is 2, in a
    .parquet 1. It is raised for a column that is missing, stands twice or holds another type, a name that is empty or
    has white space around it, a value that is no number, a share beyond 0 to 1 (`metrics.is_share`), fractions beside
    percent, and a key that stands twice, also in two files or in another spelling (case, white space).
    """
    tables = [read_long_table(path, COLUMNS, "targets") for path in paths]
    everything = pl.concat(table.with_columns(file=pl.lit(str(path))) for path, table in zip(paths, tables))
    _require_one_unit(everything)
    require_once(everything, KEY)
    return everything.select(pl.col(name).cast(kind) for name, kind in TARGETS_SCHEMA.items())


def with_full_names(table: pl.DataFrame, meant: Mapping[str, Sequence[str]], source: object) -> pl.DataFrame:
    """The table with the names of checkpoints where it has short ones, such as `web` for `web-small-seed0-step0`.

    `meant`: short name -> the checkpoints that it may stand for. `InputError`, which begins with `source`, for a short
    name of several, and for a row that stands there by both names.
    """
    known = {name for names in meant.values() for name in names}
    short = [name for name in table["checkpoint"].unique(maintain_order=True) if name in meant and name not in known]
    for name in short:
        if len(meant[name]) > 1:
            raise InputError(
                f"{source}, column checkpoint: found {name!r}, which has {len(meant[name])} checkpoints; name one of "
                f"{told_names(meant[name])}"
            )
    full = table.with_columns(pl.col("checkpoint").replace({name: meant[name][0] for name in short}))
    for row in full.filter(pl.struct(KEY).is_duplicated()).head(1).iter_rows(named=True):
        raise InputError(
            f"{source}: {row['metric']} of {row['checkpoint']}, task {row['task']}, stands there by a short name too; "
            "give it once"
        )
    return full


def _require_one_unit(table: pl.DataFrame) -> None:
    """`InputError` for a share that is none, and for a metric whose values look like fractions beside percent.

    `table`: of all files, with `file` and `row`.
    """
    for (metric,), rows in table.group_by("metric", maintain_order=True):
        if is_share(metric):
            wrong = rows.filter(outside_share(pl.col("value")))
            for file, row, value in wrong.select("file", "row", "value").head(1).iter_rows():
                others = f"; so do {len(wrong) - 1} more rows" if len(wrong) > 1 else ""
                raise InputError(
                    f"{file}, row {row}, column value: found {value!r}; {about_share(metric, value)}{others}"
                )
        if is_unbounded(metric):
            continue
        for (task,), values in [*rows.group_by("task", maintain_order=True), ((None,), rows)]:
            if mixed := mixed_units(values["value"]):
                fraction, percent = mixed
                file, row = values.filter(value=percent).select("file", "row").row(0)
                where = f"task {task}" if task is not None else "all tasks"
                raise InputError(
                    f"{file}, row {row}, column value: found {percent!r}, but at most {fraction!r} in other rows of "
                    f"{metric}, {where}: percent beside fractions; give every value in the same unit, 0 to 1"
                )


def log_unknown(table: pl.DataFrame, checkpoints: Collection[str], tasks: Collection[str]) -> None:
    """Tell of rows whose checkpoint or task is none of the study's: they count for nothing, and may be misspelled."""
    for name, known in (("checkpoint", checkpoints), ("task", tasks)):
        rows = table.filter(~pl.col(name).is_in(list(known)))
        if len(rows):
            names = rows[name].unique(maintain_order=True)
            some = ", ".join(map(repr, names[:3])) + f" and {len(names) - 3} more" * (len(names) > 3)
            log.warning(
                "%d rows of the truth count for nothing, as their %s is none of the study's: %s%s",
                *(len(rows), name, some, closest(names[0], known)),
            )


def require_targets(
    table: pl.DataFrame, checkpoints: Iterable[str], tasks: Iterable[str], metric: str, path: Path
) -> None:
    """Raise InputError naming the first missing of checkpoints x tasks, and how many are missing, for `metric`."""
    there = set(table.filter(metric=metric).select("checkpoint", "task").iter_rows())
    tasks = list(tasks)
    missing = [(checkpoint, task) for checkpoint in checkpoints for task in tasks if (checkpoint, task) not in there]
    if missing:
        first = ", ".join(f"{checkpoint}/{task}" for checkpoint, task in missing[:3])
        known = [set(table[name]) for name in ("checkpoint", "task")]
        alike = "".join(closest(name, names) for name, names in zip(missing[0], known) if name not in names)
        raise InputError(
            f"{path}: {metric} missing for {len(missing)} of checkpoint/task: {first}{', ...' * (len(missing) > 3)}; "
            f"found metrics {sorted(table['metric'].unique())}{alike}"
        )
