"""Statistics of corpora or models that others measured: a long table, and the checkpoints that its rows are of."""

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import polars as pl
from pydantic import TypeAdapter, ValidationError

from proxycast.config.errors import closest
from proxycast.config.ladder import Ladder
from proxycast.config.truth import OutsideStatistics, Target
from proxycast.metrics import about_share, is_share, outside_share
from proxycast.options import InputError, ShownName, told_value
from proxycast.proxy_formulas import SIGNS
from proxycast.truth.long_tables import Column, read_long_table, require_once
from proxycast.truth.targets import TARGETS_SCHEMA, read_target_table

log = logging.getLogger(__name__)

# A unit is a corpus or a model. Size, step and seed tell which small model of a corpus; an empty task means every task.
COLUMNS = {
    **{"unit": Column(pl.String), "task": Column(pl.String, may_be_empty=True), "statistic": Column(pl.String)},
    "value": Column(pl.Float64),
    **dict.fromkeys(("n", "parameters"), Column(pl.Int64, may_lack=True)),
    "tokens": Column(pl.Int64, may_lack=True, least=0),
    "flops": Column(pl.Float64, may_lack=True),
    "size": Column(pl.String, may_lack=True),
    **dict.fromkeys(("step", "seed"), Column(pl.Int64, may_lack=True, least=0)),
    "family": Column(pl.String, may_lack=True),
}
KEY = ("unit", "task", "statistic", "size", "step", "seed")
MODEL = ("unit", "size", "seed", "step")
OF_A_MODEL = ("parameters", "tokens", "flops", "family")
COUNTS = [name for name, column in COLUMNS.items() if column.kind == pl.Int64]
STATISTICS_SCHEMA = {
    **dict.fromkeys(("checkpoint", "task", "statistic"), pl.String),
    **{"higher_is_better": pl.Boolean, "value": pl.Float64, "n": pl.Int64},
}
OWN_BASELINES = ("parameters", "training_compute", "base_truth", "chance")  # of every study


def read_statistics(path: Path) -> pl.DataFrame:
    """The rows of a long table: COLUMNS and `row`, its number as an editor shows it; what is not known is null.

    `InputError` names the file and the row, for what `read_long_table` refuses, for a key (KEY) that has two values, a
    name that figures cannot show, and a statistic that is a share by its name and no share by its value.
    """
    table = read_long_table(path, COLUMNS, "statistics").with_columns(pl.col(COUNTS).cast(pl.Int64))
    require_once(table.with_columns(file=pl.lit(str(path))), KEY)
    for name in (name for name, column in COLUMNS.items() if column.kind == pl.String):
        for text in table[name].drop_nulls().unique(maintain_order=True):
            try:
                TypeAdapter(ShownName).validate_python(text)
            except ValidationError as error:
                why = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise InputError(f"{path}, row {_row(table, name, text)}, column {name}: {why}") from None
    shares = pl.col("statistic").is_in([name for name in table["statistic"].unique() if is_share(name)])
    for row in table.filter(shares, outside_share(pl.col("value"))).head(1).iter_rows(named=True):
        wrong = about_share(row["statistic"], row["value"])
        raise InputError(f"{path}, row {row['row']}, column value: found {row['value']!r}; {wrong}")
    return table


def _row(table: pl.DataFrame, column: str, value: object) -> int:
    return table.filter(pl.col(column) == value)["row"][0]


def with_own_names(table: pl.DataFrame, path: Path, names: Mapping[str, str]) -> pl.DataFrame:
    """The rows with the study's name of each unit. `names`: what a unit may be called -> its name in the study."""
    for unit in table["unit"].unique(maintain_order=True):
        if unit not in names:
            raise InputError(
                f"{path}, row {_row(table, 'unit', unit)}, column unit: found {told_value(unit)}, which is no corpus "
                f"or model of the study{closest(unit, names)}; it names {', '.join(sorted(set(names.values())))}"
            )
    named = table.with_columns(pl.col("unit").replace_strict(names, return_dtype=pl.String))
    # Two names of a unit can give one key.
    require_once(named.with_columns(file=pl.lit(str(path))), KEY)
    return named


def require_signs(table: pl.DataFrame, options: OutsideStatistics, target: Target | None, runs_models: bool) -> None:
    """`InputError` for a statistic without a sign, a sign without a statistic, a name that the study needs itself."""
    there, metrics = table["statistic"].unique(maintain_order=True).to_list(), metrics_of(target)
    for name in there:
        where = f"{options.table}, row {_row(table, 'statistic', name)}, column statistic: found {told_value(name)}"
        if name in OWN_BASELINES or runs_models and name in (*SIGNS, *metrics):
            raise InputError(f"{where}, which the study finds for itself; give this one another name")
        if options.sign(name) is None and name not in metrics:
            raise InputError(
                f"{where}, which has no sign; give statistics.higher_is_better: {{{name}: true}}, or false where less "
                "of it is better"
            )
    for name in options.higher_is_better:
        if name not in there:
            raise InputError(
                f"{options.table}, column statistic: no row of {name!r}, which statistics.higher_is_better names"
                f"{closest(name, there)}; found {', '.join(there)}"
            )
    for name in metrics:
        if options.sign(name) not in (None, target.sign(name)):
            raise InputError(
                f"{options.table}: more of {name} is {'better' if options.sign(name) > 0 else 'worse'} by "
                "statistics.higher_is_better or for proxycast itself, but the target says otherwise of this metric "
                "(target.higher_is_better, target.lower_is_better)"
            )


def metrics_of(target: Target | None) -> list[str]:
    return [target.metric, *target.other_metrics] if target else []


def _is_truth(target: Target | None) -> pl.Expr:
    """Of a study that runs no model: whether a row is of the truth, and no statistic that may predict it."""
    at_target = pl.col("size").eq_missing(pl.lit(target.size)) if target and target.size else pl.lit(True)
    return pl.col("statistic").is_in(metrics_of(target)) & at_target


def compared_rows(table: pl.DataFrame, path: Path, target: Target | None) -> pl.DataFrame:
    """The rows that a study without models uses, with `is_truth`. Of the target's own size only the truth counts.

    `InputError` for a truth that has another source as well.
    """
    table = table.with_columns(is_truth=_is_truth(target))
    if target is None:
        return table
    small = ~pl.col("size").eq_missing(pl.lit(target.size)) if target.size else pl.lit(True)
    if target.measured_here:
        return table.filter(small | pl.col("is_truth"))
    for row in table.filter("is_truth").head(1).iter_rows(named=True):
        raise InputError(
            f"{path}, row {row['row']}, column statistic: found {row['statistic']!r}, the metric that is to be "
            "predicted, but target names another source of the truth; give the truth once"
        )
    return table.filter(small)


def named_tasks(table: pl.DataFrame, path: Path, target: Target | None) -> list[str]:
    """Tasks of a study that runs no model: those of its statistics, or of the truth if all of these know no task."""
    table = compared_rows(table, path, target)
    for rows in (table.filter(~pl.col("is_truth")), table):
        if tasks := rows["task"].drop_nulls().unique(maintain_order=True).to_list():
            return tasks
    if target is None or target.table is None:
        raise InputError(f"{path}, column task: found no task in any row; name the tasks that the values are of")
    return read_target_table(target.table).filter(metric=target.metric)["task"].unique(maintain_order=True).to_list()


def models_of_table(table: pl.DataFrame, path: Path, ladder: Ladder | None) -> pl.DataFrame:
    """The models that the rows are of, one a row: MODEL, OF_A_MODEL (null where unknown), and the first `row` of each.

    An empty size, seed or step means every one of the unit. Where all are empty, a seed is 0, and a step is the last of
    the ladder's run, or 0 without a ladder. `InputError` for two rows of a model that contradict each other.
    """
    for place, name in enumerate(("size", "seed", "step")):
        told = pl.col(name).is_not_null().any().over(["unit", "size", "seed"][: place + 1])
        table = table.filter(~told | pl.col(name).is_not_null())
        if name == "seed":
            table = table.with_columns(pl.col("seed").fill_null(0))
    table = table.with_columns(pl.col("step").fill_null(_last_steps(table, ladder)).fill_null(0))
    for name in OF_A_MODEL:
        of = table.drop_nulls(name)
        first = of.group_by(MODEL, maintain_order=True).first()
        both = of.join(first, on=MODEL, nulls_equal=True, maintain_order="left")
        for row in both.filter(pl.col(name) != pl.col(f"{name}_right")).head(1).iter_rows(named=True):
            raise InputError(
                f"{path}, row {row['row']}, column {name}: found {row[name]!r}, but {row[f'{name}_right']!r} in row "
                f"{row['row_right']}, which is of the same model"
            )
    known = [pl.col(name).drop_nulls().first() for name in OF_A_MODEL]
    models = table.group_by(MODEL, maintain_order=True).agg(*known, pl.col("row").first())
    if ladder is None:
        return models
    n = {size: shape.parameters(ladder.vocabulary) for size, shape in ladder.sizes.items()}
    batch = {size: ladder.batch_tokens(size) for size in ladder.sizes}
    tokens = pl.col("step") * pl.col("size").replace_strict(batch, default=None, return_dtype=pl.Int64)
    parameters = pl.col("size").replace_strict(n, default=None, return_dtype=pl.Int64)
    return models.with_columns(pl.col("parameters").fill_null(parameters), pl.col("tokens").fill_null(tokens))


def _last_steps(table: pl.DataFrame, ladder: Ladder | None) -> pl.Series:
    """Of each row the last step of the ladder's run of its size and seed; null where there is none."""
    sizes = ladder.sizes if ladder else {}
    runs = table.select("size", "seed").unique().iter_rows()
    last = {run: ladder.last_step(*run) for run in runs if run[0] in sizes}
    return pl.Series("step", [last.get(run) for run in table.select("size", "seed").iter_rows()], pl.Int64)


def statistics_and_truth(
    table: pl.DataFrame,
    path: Path,
    options: OutsideStatistics,
    target: Target | None,
    checkpoints: pl.DataFrame,
    tasks: Collection[str],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The statistics of `checkpoints` in `tasks` (STATISTICS_SCHEMA) and the truth of the table (TARGETS_SCHEMA).

    `table`: `compared_rows`, or without the column is_truth, of a study that runs its models. `checkpoints`: their
    table. Rows of other checkpoints and tasks count for nothing, and the log tells of them. `InputError` for two rows
    that give one value of a checkpoint.
    """
    if "is_truth" not in table.columns:
        table = table.with_columns(is_truth=pl.lit(False))
    every = pl.DataFrame({"task": tasks}, schema={"task": pl.String})
    named = table.filter(pl.col("task").is_not_null())
    parts = [named, table.filter(pl.col("task").is_null()).drop("task").join(every, how="cross").select(named.columns)]
    rows = _of_checkpoints(pl.concat(parts), checkpoints)
    # Nothing predicts from the target itself.
    if target and target.size:
        rows = rows.filter((pl.col("role") == "target") == pl.col("is_truth"))
    rows = rows.filter(pl.col("is_truth") | pl.col("task").is_in(list(tasks)))
    lost = table.filter(~pl.col("row").is_in(rows["row"].unique().implode()))
    if len(lost):
        first = ", ".join(f"{name} {lost[name][0]}" for name in KEY if lost[name][0] is not None)
        log.warning("%s: %d rows count for nothing: the study compares no such value (%s)", path, len(lost), first)
    key = ["checkpoint", "task", "statistic"]
    for second in rows.filter(~pl.struct(key).is_first_distinct()).head(1).iter_rows(named=True):
        first = rows.filter(pl.col(name) == second[name] for name in key)["row"][0]
        of = ", ".join(second[name] for name in key)
        raise InputError(f"{path}, row {second['row']}: {of} has a value in row {first} already; give it once")
    signs = {name: options.sign(name) or target.sign(name) for name in rows["statistic"].unique()}
    higher = [name for name, sign in signs.items() if sign > 0]
    statistics = rows.filter(~pl.col("is_truth")).with_columns(higher_is_better=pl.col("statistic").is_in(higher))
    truth = rows.filter("is_truth").rename({"statistic": "metric"})
    return statistics.select(list(STATISTICS_SCHEMA)), truth.select(list(TARGETS_SCHEMA))


def _of_checkpoints(rows: pl.DataFrame, checkpoints: pl.DataFrame) -> pl.DataFrame:
    """Each row with every checkpoint that it is of: those of its unit with the size, seed and step that it names."""
    known, parts = checkpoints.select("checkpoint", "role", "size", "seed", "step", unit="corpus"), []
    told = pl.concat_list(pl.when(pl.col(name).is_not_null()).then(pl.lit(name)) for name in ("size", "seed", "step"))
    for (names,), part in rows.with_columns(told=told).group_by("told", maintain_order=True):
        on = ["unit", *(name for name in names if name)]
        parts.append(part.drop(set(MODEL) - set(on)).join(known, on=on).select(*_PLACED))
    return pl.concat(parts).sort("row", "checkpoint")


_PLACED = ["checkpoint", "role", "task", "statistic", "value", "n", "row", "is_truth"]


def require_complete(statistics: pl.DataFrame, wanted: pl.DataFrame, tasks: Collection[str], path: Path) -> None:
    """`InputError` for a statistic that some of the `wanted` checkpoints have and others lack, in some task.

    `wanted`: checkpoint and `cell`. A statistic is needed of all checkpoints of a cell, or of none.
    """
    every = pl.DataFrame({"task": list(tasks)}, schema={"task": pl.String})
    here = statistics.join(wanted, on="checkpoint")
    cells = here.select("statistic", "cell").unique(maintain_order=True)
    needed = cells.join(wanted, on="cell", maintain_order="left").join(every, how="cross", maintain_order="left")
    missing = needed.join(here, on=["statistic", "checkpoint", "task"], how="anti", maintain_order="left")
    for row in missing.head(1).iter_rows(named=True):
        raise InputError(
            f"{path}: no row of {row['statistic']}, task {row['task']}, for {row['checkpoint']}, and "
            f"{len(missing) - 1} more are missing; a statistic needs a value for every one that is compared"
        )


def require_at(statistics: pl.DataFrame, wanted: Iterable[tuple[str, str]], path: Path) -> None:
    """`InputError` for a (statistic, cell) that ranks corpora and that `statistics` (statistic, cell) has not."""
    there = sorted(set(statistics.select("statistic", "cell").iter_rows()))
    for name, cell in wanted:
        if (name, cell) not in there:
            others = ", ".join(other for statistic, other in there if statistic == name)
            raise InputError(
                f"{path}: no row of {name}, which `highlighted` names, for {cell}, where the study ranks"
                + (f"; give `budgets` where it has values: {others}" if others else "")
            )
