"""Logs of training runs: tables with a row for each step and a column for each measurement.

Every cell becomes a row of one long table (`_cells`): run, step, column, value, and where it stands. So it does not
matter whether runs stand under each other (`run_column`), beside each other (`<run> - <column>`, as in the export of a
chart from W&B) or in files of their own, nor whether a step's measurements are spread over rows and files.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

import polars as pl

from proxycast.compute import training_flops
from proxycast.config.experiments.forecasting_options import Column, LoggedRun, WideCurve
from proxycast.metrics import about_share, is_share, is_unbounded, mixed_units, outside_share
from proxycast.options import SAFE_NAME, InputError, require_regular, told_names, told_reason, told_value
from proxycast.tables import LARGEST_WHOLE, UNREADABLE, is_whole_parquet, read_csv

CELLS_SCHEMA = {
    **{"run": pl.String, "step": pl.Int64, "column": pl.String, "value": pl.Float64},
    **{"file": pl.String, "row": pl.Int64, "cell": pl.String},  # where it stands; `cell`: the file's own column name
}
BEFORE_COLUMN = " - "  # between a run's name and the metric in a chart's export from W&B
NOT_MEASURED = ("", "nan")


def read_wide_curve(curve: WideCurve, metric: str) -> dict[str, pl.DataFrame]:
    """The tables "checkpoints", "targets" and "proxies" of the runs, as far as `forecasting.forecast` needs them.

    A checkpoint is a step of a run with at least one measurement; `flops` is 6 N D, null where N is not known.
    Statistics stand there with the weighting "none". `InputError` for a column that is missing or empty, a run that is
    missing, a step that is no whole number, a value that is no number, two values at one run and step, tokens that fall
    or are missing, a truth beyond 0 to 1 where the metric is a share (`metrics.is_share`).
    """
    wanted = _wanted(curve)
    keys = _keys_of_columns(wanted)
    extra = {name: key for key, name in (("tokens", curve.tokens), ("parameters", curve.parameters)) if name}
    extra.pop(curve.step, None)  # a log without steps may have its tokens in their place
    cells = _cells(curve, extra | keys)
    logged = _one_row_a_step(cells, list(keys))
    logged = logged.with_columns(tokens=_tokens(curve, logged, cells), parameters=_parameters(curve, logged, cells))
    logged = logged.with_columns(
        checkpoint=pl.format("{}-step{}", "run", "step"), flops=training_flops(logged["parameters"], logged["tokens"])
    )
    values = {key: _mean(logged, column) for key, column in wanted.items()}
    _require_truths(curve, metric, logged, values)

    def measured(key: str, **same: str) -> pl.DataFrame:
        table = pl.DataFrame({"checkpoint": logged["checkpoint"], "value": values[key]}).drop_nulls()
        return table.with_columns(**{name: pl.lit(text) for name, text in same.items()})

    targets = [
        measured(f"tasks.{task}.truth", task=task, metric=metric).with_columns(n=pl.lit(columns.problems, pl.Int64))
        for task, columns in curve.tasks.items()
    ]
    proxies = [
        measured(key, task=task, tail="tokens", statistic=name, weighting="none").with_columns(
            standard_error=pl.lit(None, pl.Float64)
        )
        for task, columns in curve.tasks.items()
        for key, name in (
            *((f"tasks.{task}.statistics.{name}", name) for name in columns.statistics),
            *((f"shared.{name}", name) for name in curve.shared),
        )
    ]
    return {
        "checkpoints": logged.select("checkpoint", "run", "step", "tokens", "flops"),
        "targets": pl.concat(targets),
        "proxies": pl.concat(proxies or [NO_PROXIES]),
    }


NO_PROXIES = pl.DataFrame(
    schema={"checkpoint": pl.String, "value": pl.Float64}
    | dict.fromkeys(("task", "tail", "statistic", "weighting"), pl.String)
    | {"standard_error": pl.Float64}
)


def run_names(curve: WideCurve) -> list[str]:
    """The runs of the log: those that the study names, or else all that its files have, sorted."""
    if curve.run or curve.runs:
        return [curve.run] if curve.run else list(curve.runs)
    return sorted(_cells(curve, _keys_of_columns(_wanted(curve)))["run"].unique())


def _wanted(curve: WideCurve) -> dict[str, Column]:
    """Key of the configuration, below `forecasting.curve` -> the columns that it names, with their weights."""
    wanted = {f"shared.{name}": column for name, column in curve.shared.items()}
    for task, columns in curve.tasks.items():
        wanted[f"tasks.{task}.truth"] = columns.truth
        wanted |= {f"tasks.{task}.statistics.{name}": column for name, column in columns.statistics.items()}
    return wanted


def _keys_of_columns(wanted: dict[str, Column]) -> dict[str, str]:
    """Column -> the first key that names it."""
    return {name: key for key, column in reversed(wanted.items()) for name in column}


def _cells(curve: WideCurve, keys: dict[str, str]) -> pl.DataFrame:
    """CELLS_SCHEMA: every number of the study's runs in the columns `keys` (column -> key of the configuration)."""
    files = [(path, None) for path in curve.path]
    files += [(path, name) for name, run in curve.runs.items() for path in run.path]
    parts, headers = [pl.DataFrame(schema=CELLS_SCHEMA)], []
    for path, run in files:
        table = _read(path)
        headers += table.columns
        parts.append(_cells_of_file(path, table, curve, run, list(keys)))
    for name, key in keys.items():
        if not any(header == name or header.endswith(f"{BEFORE_COLUMN}{name}") for header in headers):
            raise InputError(
                f"{_told(curve)}: forecasting.curve.{key}: no column {name!r}; found {_some(headers, name)}"
            )
    cells = _of_named_runs(curve, pl.concat(parts))
    for name, key in keys.items():
        if cells.filter(column=name).is_empty():
            raise InputError(
                f"{_told(curve)}: forecasting.curve.{key}: column {name!r} has no number in any row of the study's runs"
            )
    _require_one_value(cells)
    return cells


def _cells_of_file(
    path: Path, table: pl.DataFrame, curve: WideCurve, run: str | None, names: Sequence[str]
) -> pl.DataFrame:
    """The cells of one file, each run under the log's name. `run`: the study's name of the file's only run, if so."""
    _require_column(path, table, "step", curve.step)
    placed = _placed(table.columns, names, curve, run)
    by_row = run is None and curve.run_column
    if by_row:
        _require_column(path, table, "run_column", curve.run_column)
    elif plain := [name for name in table.columns if name in names and name not in placed]:
        raise InputError(
            f"{path}, column {plain[0]}: found no run before its name, as in '<run>{BEFORE_COLUMN}{plain[0]}'; name "
            "the only run with forecasting.curve.run, or the column of the runs with run_column"
        )
    steps, parts = _numbers(path, table, curve.step), [pl.DataFrame(schema=CELLS_SCHEMA)]
    rows = pl.int_range(len(table), eager=True) + _first_row(path)
    runs = _texts(path, table, curve.run_column) if by_row else None
    for cell, (of_run, column) in placed.items():
        values = _numbers(path, table, cell)
        there = values.is_not_null()
        _require_steps(path, table, curve.step, steps, there)
        if by_row and len(lost := (there & runs.is_null()).arg_true()):
            raise InputError(
                f"{path}, row {rows[lost[0]]}, column {curve.run_column}: found nothing; it must name the row's run"
            )
        part = pl.DataFrame({"step": steps, "value": values, "row": rows}).with_columns(
            run=runs if by_row else pl.lit(of_run), column=pl.lit(column), file=pl.lit(str(path)), cell=pl.lit(cell)
        )
        part = part.filter(there).select(pl.col(name).cast(kind) for name, kind in CELLS_SCHEMA.items())
        parts.append(part)
    return pl.concat(parts)


def _placed(
    header: Sequence[str], names: Sequence[str], curve: WideCurve, run: str | None
) -> dict[str, tuple[str | None, str]]:
    """Column of a file -> what the log calls its run, and which of the `names` it is. The run is None if rows tell it.

    Columns with a suffix, as the `__MIN` and `__MAX` of W&B, are none of these.
    """
    if run is None and curve.run_column:
        return {name: (None, name) for name in names if name in header}
    only = run or curve.run or (next(iter(curve.runs)) if len(curve.runs) == 1 else None)
    called = _called(only, curve.runs.get(only, LoggedRun())) if only else None
    placed = {}
    for cell in header:
        if called and cell in names:
            placed[cell] = (called, cell)
            continue
        # The longest, where one name ends with another.
        ends = [name for name in names if cell.endswith(f"{BEFORE_COLUMN}{name}")]
        if ends:
            name = max(ends, key=len)
            placed[cell] = (cell.removesuffix(f"{BEFORE_COLUMN}{name}"), name)
    return placed


def _called(name: str, run: LoggedRun) -> str:
    """What the log calls a run of the study."""
    return run.name or name


def _of_named_runs(curve: WideCurve, cells: pl.DataFrame) -> pl.DataFrame:
    """The cells of the study's runs, under the study's names."""
    found = cells["run"].unique(maintain_order=True).to_list()
    if curve.run or curve.runs:
        runs = curve.runs or {curve.run: LoggedRun()}
        names = {_called(name, run): name for name, run in runs.items()}
        if len(names) < len(runs):
            raise InputError("forecasting.curve.runs: two runs have one name in the log; names must differ")
        for called in names:
            if called not in found:
                raise InputError(
                    f"{_told(curve)}: forecasting.curve.{'run' if curve.run else 'runs'}: no measurement of a run "
                    f"{called!r}; found those of {told_names(found, may_stand_alone=True)}"
                )
        return cells.filter(pl.col("run").is_in(list(names))).with_columns(pl.col("run").replace(names))
    for name in found:
        if not pl.Series([name]).str.contains(SAFE_NAME)[0]:
            raise InputError(
                f"{_told(curve)}: found the run {told_value(name)}; a name must begin with a letter or digit and hold "
                "only those and '_', '.', '-': name every run that is to be read, this one as in "
                f"forecasting.curve.runs: {{my-run: {{name: {told_value(name)}}}}}"
            )
    return cells


def _require_one_value(cells: pl.DataFrame) -> None:
    """`InputError` for two values of one column at one run and step."""
    several = cells.filter((pl.col("value").n_unique() > 1).over("run", "step", "column"))
    if len(several):
        first = several.row(0, named=True)
        same = several.filter(*(pl.col(key) == first[key] for key in ("run", "step", "column")))
        other = same.filter(pl.col("value") != first["value"]).row(0, named=True)
        where = f"in row {first['row']}" + ("" if first["file"] == other["file"] else f" of {first['file']}")
        raise InputError(
            f"{other['file']}, row {other['row']}, column {other['cell']}: found {other['value']!r}, but "
            f"{first['value']!r} {where}, both of run {first['run']} at step {first['step']}; give one value"
        )


def _one_row_a_step(cells: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """run, step and the columns `names`: a row for every step of a run with one of these measurements, in order."""
    of_names = cells.filter(pl.col("column").is_in(names)).unique(["run", "step", "column"], keep="first")
    # Columns may have any names, also "run" and "step".
    places = {name: f"column {name}" for name in names}
    of_names = of_names.with_columns(pl.col("column").replace(places))
    wide = of_names.pivot(on="column", on_columns=list(places.values()), index=["run", "step"], values="value")
    return wide.sort("run", "step")


def _mean(logged: pl.DataFrame, column: Column) -> pl.Series:
    """The weighted mean of the columns; null where one of them is."""
    total = sum(logged[f"column {name}"] * weight for name, weight in column.items())
    return total / sum(column.values()) if len(column) > 1 else logged[f"column {next(iter(column))}"]


def _tokens(curve: WideCurve, logged: pl.DataFrame, cells: pl.DataFrame) -> pl.Series:
    """Training tokens of every row of `logged`: of their column, or step times tokens a step."""
    if curve.tokens == curve.step:
        return logged["step"]
    if curve.tokens is None:
        of_runs = {name: run.tokens_per_step or curve.tokens_per_step for name, run in curve.runs.items()}
        each = [of_runs.get(run, curve.tokens_per_step) for run in logged["run"]]
        tokens = logged["step"] * pl.Series(each, dtype=pl.Float64)
        for row in (tokens > LARGEST_WHOLE).arg_true()[:1]:
            raise InputError(
                f"{_told(curve)}: step {logged['step'][row]} times tokens_per_step {each[row]:g} is too large"
            )
        return tokens.cast(pl.Int64)
    known = cells.filter(column=curve.tokens).unique(["run", "step"], keep="first")
    known = logged.select("run", "step").join(known, on=["run", "step"], how="left", maintain_order="left")
    for row in known.filter(pl.col("value").is_null()).head(1).iter_rows(named=True):
        raise InputError(
            f"{_told(curve)}, column {curve.tokens}: found no tokens of run {row['run']} at step {row['step']}, which "
            "has measurements; give them, or tokens_per_step in place of `tokens`"
        )
    is_wrong = ~pl.col("value").is_between(0, LARGEST_WHOLE) | ((pl.col("value") == 0) & (pl.col("step") > 0))
    for row in known.filter(is_wrong).head(1).iter_rows(named=True):
        raise InputError(
            f"{_place(row)}: found {row['value']!r} at step {row['step']}; it must be a number of tokens, above 0 "
            "unless at step 0"
        )
    before = known.with_columns(before=pl.col("value").shift().over("run"), earlier=pl.col("step").shift().over("run"))
    for row in before.filter(pl.col("value") < pl.col("before")).head(1).iter_rows(named=True):
        raise InputError(
            f"{_place(row)}: found {row['value']:.0f} tokens at step {row['step']}, but {row['before']:.0f} at step "
            f"{row['earlier']} of run {row['run']}; tokens may not fall while steps rise"
        )
    return known["value"].round().cast(pl.Int64)


def _parameters(curve: WideCurve, logged: pl.DataFrame, cells: pl.DataFrame) -> pl.Series:
    """N of every row of `logged`, null where it is not known."""
    of_runs = {name: run.parameters for name, run in curve.runs.items()}
    if curve.parameters:
        known = cells.filter(column=curve.parameters).sort("run", "step", maintain_order=True)
        for row in known.filter(pl.col("value") <= 0).head(1).iter_rows(named=True):
            raise InputError(f"{_place(row)}: found {row['value']!r}; it must be a number of parameters, above 0")
        for (run,), rows in known.group_by("run", maintain_order=True):
            other = rows.filter(pl.col("value") != rows["value"][0])
            for row in other.head(1).iter_rows(named=True):
                raise InputError(
                    f"{_place(row)}: found {row['value']!r}, but {rows['value'][0]!r} in row {rows['row'][0]}, both of "
                    f"run {run}; a run has one number of parameters"
                )
            of_runs[run] = rows["value"][0]
        for run in logged["run"].unique(maintain_order=True):
            if of_runs.get(run) is None:
                raise InputError(f"{_told(curve)}, column {curve.parameters}: found no parameters of run {run}")
    return pl.Series([of_runs.get(run) for run in logged["run"]], dtype=pl.Float64)


def _require_truths(curve: WideCurve, metric: str, logged: pl.DataFrame, values: dict[str, pl.Series]) -> None:
    """`InputError` for a truth that is no share where the metric is one, and for percent beside fractions."""
    found = []
    for task, columns in curve.tasks.items():
        rows = logged.select("run", "step", value=values[f"tasks.{task}.truth"])
        for row in rows.filter(outside_share(pl.col("value")) & is_share(metric)).head(1).iter_rows(named=True):
            names = ", ".join(columns.truth)
            raise InputError(
                f"{_told(curve)}, run {row['run']}, step {row['step']}, column {names} (task {task}): "
                f"found {row['value']!r}; {about_share(metric, row['value'])}"
            )
        found += rows["value"].drop_nulls().to_list()
    if not is_unbounded(metric) and (mixed := mixed_units(found)):
        raise InputError(
            f"{_told(curve)}: found {mixed[1]!r}, but at most {mixed[0]!r} elsewhere in the truths of {metric}: "
            "percent beside fractions; give every value in the same unit, 0 to 1"
        )


# Files


def _read(path: Path) -> pl.DataFrame:
    """The table of a file; of a .csv every column as text."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; forecasting.curve names .csv or .parquet files with a row for each step"
        )
    if path.suffix != ".parquet":
        return read_csv(path)
    require_regular(path)
    if not is_whole_parquet(path):
        raise InputError(f"{path}: found a truncated file or no parquet at all; copy or write it again")
    try:
        return pl.read_parquet(path, glob=False)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read ({told_reason(error)}); write it again") from None


def _first_row(path: Path) -> int:
    """The number of the first row, as an editor shows it: a .csv has its header before."""
    return 1 if path.suffix == ".parquet" else 2


def _texts(path: Path, table: pl.DataFrame, name: str) -> pl.Series:
    """A column of names; null where it is empty."""
    found = table[name]
    if not (found.dtype.is_integer() or found.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
        raise InputError(f"{path}, column {name}: found the type {found.dtype}; it must hold names")
    text = found.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def _numbers(path: Path, table: pl.DataFrame, name: str) -> pl.Series:
    """A column as numbers, null where nothing was measured: an empty cell, or NaN as a number or in letters."""
    found = table[name]
    if found.dtype in (pl.String, pl.Null, pl.Categorical, pl.Enum):
        found = found.cast(pl.String).str.strip_chars()
        given = found.is_not_null() & ~found.str.to_lowercase().is_in(NOT_MEASURED)
    elif found.dtype.is_numeric():
        given = found.is_not_null() & ~found.cast(pl.Float64).is_nan().fill_null(False)
    else:
        raise InputError(f"{path}, column {name}: found the type {found.dtype}; it must hold numbers")
    numbers = found.cast(pl.Float64, strict=False)
    numbers = numbers.set(~given, None)
    for row in (given & ~numbers.is_finite().fill_null(False)).arg_true()[:1]:
        raise InputError(
            f"{path}, row {row + _first_row(path)}, column {name}: found {told_value(table[name][row])}; it must be a "
            "number"
        )
    return numbers


def _require_steps(path: Path, table: pl.DataFrame, name: str, steps: pl.Series, there: pl.Series) -> None:
    """`InputError` for a measurement, `there`, in a row without a step."""
    whole = steps.is_between(0, LARGEST_WHOLE) & (steps == steps.floor())
    for row in (there & ~whole.fill_null(False)).arg_true()[:1]:
        raise InputError(
            f"{path}, row {row + _first_row(path)}, column {name}: found {told_value(table[name][row])}; it must be a "
            "step, a whole number of at least 0"
        )


def _require_column(path: Path, table: pl.DataFrame, key: str, name: str) -> None:
    if name not in table.columns:
        raise InputError(f"{path}: forecasting.curve.{key}: no column {name!r}; found {_some(table.columns, name)}")


def _place(row: dict) -> str:
    return f"{row['file']}, row {row['row']}, column {row['cell']}"


def _told(curve: WideCurve) -> str:
    """The files of a log, for a message."""
    first, *others = curve.files
    return f"{first}" + (f" and {len(others)} more" if others else "")


def _some(names: Iterable[str], wanted: str) -> str:
    """The names most like the wanted one, and how many there are."""
    names = list(names)
    like = get_close_matches(wanted, names, n=3, cutoff=0.0)
    return f"{len(names)} columns, among them {', '.join(map(repr, told_names(like)))}"
