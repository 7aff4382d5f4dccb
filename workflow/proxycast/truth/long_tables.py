"""Tables of others in a long format, a value in each row, from .csv or .parquet: read and checked column by column."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from proxycast.options import InputError, require_regular, told_names, told_reason, told_value
from proxycast.tables import LARGEST_WHOLE, UNREADABLE, is_whole_parquet

TEXT = (pl.String, pl.Categorical, pl.Enum, pl.Binary, pl.Null)  # types of a parquet file that may hold text


@dataclass(frozen=True)
class Column:
    """A column of a long table. `kind`: String, a name; Float64, a finite number; Int64, a count of at least `least`.

    One that `may_lack` may have empty cells or NaN, and may be missing; one that `may_be_empty`, only empty cells.
    """

    kind: pl.DataType
    may_lack: bool = False
    may_be_empty: bool = False
    least: int = 1

    def rule(self, name: str) -> tuple[pl.Expr, str]:
        """Whether a cell that is not empty is right, and what it must be, in words."""
        cell = pl.col(name)
        if self.kind == pl.String:
            return (cell != "") & (cell == cell.str.strip_chars()), "a name, without white space around it"
        if self.kind == pl.Float64:
            return cell.is_finite(), "a finite number such as 0.431, without a percent sign"
        whole = cell.is_between(self.least, LARGEST_WHOLE) & (cell == cell.floor())
        return whole, f"a count of at least {self.least}, or empty where it is unknown"


Columns = Mapping[str, Column]


def read_long_table(path: Path, columns: Columns, what: str) -> pl.DataFrame:
    """The `columns` of a .csv or .parquet, and `row`, the number of each row as an editor shows it.

    In a .csv the first row after the header is 2, in a .parquet 1. Counts are floating-point numbers; what a column
    lacks is null; other columns are dropped. `what`: what the table holds, for messages. `InputError` names the file
    and the row: for a column that is missing, stands twice or holds another type, a name that is empty or has white
    space around it, a value that is no number.
    """
    table = _read_any_table(path, columns, what)
    # Counts as floats: a cast to integer would cut 1.5 to 1 in silence.
    kinds = {name: pl.Float64 if column.kind.is_numeric() else column.kind for name, column in columns.items()}
    typed = table.select("row", *(pl.col(name).cast(kind, strict=False) for name, kind in kinds.items()))
    typed = typed.with_columns(pl.col(n).fill_nan(None) for n in kinds if columns[n].may_lack and kinds[n] != pl.String)
    for name, column in columns.items():
        (rule, description), found = column.rule(name), table[name].cast(pl.String)
        lacks = found.is_null() | (found.str.to_lowercase() == "nan").fill_null(False) & (column.kind != pl.String)
        allowed = lacks if column.may_lack else found.is_null() & column.may_be_empty
        for row in typed.select((~(rule.fill_null(False) | allowed)).arg_true()).to_series()[:1]:
            raise InputError(
                f"{path}, row {typed['row'][row]}, column {name}: found {told_value(table[name][row])}; it must be "
                f"{description}"
            )
    return typed


def _read_any_table(path: Path, columns: Columns, what: str) -> pl.DataFrame:
    """The `columns` as they stand (of a .csv: as text), and `row`, the number of each row."""
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"{path}: found the suffix {path.suffix!r}; {what} are read from .csv or .parquet")
    if not path.is_file():
        raise InputError(f"{path}: no such file; it should hold {what}: {', '.join(columns)}")
    table = _read_csv(path, columns) if path.suffix == ".csv" else _read_parquet(path, columns)
    if table.is_empty():
        raise InputError(f"{path}: found a header without any row; there must be one for each {_each(columns)}")
    missing = [name for name in columns if name not in table.columns]
    return table.with_columns(pl.lit(None, pl.String).alias(name) for name in missing)


def _each(columns: Columns) -> str:
    return " and ".join(list(columns)[:2])


def _read_csv(path: Path, columns: Columns) -> pl.DataFrame:
    require_regular(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets begin a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read (byte {error.start + 1} is not UTF-8); save it as UTF-8") from None
    reader, line, rows = csv.reader(io.StringIO(text, newline=""), strict=True), 1, []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, row {line}: cannot be read ({error}); quotes must come in pairs") from None
    if not rows:
        raise InputError(f"{path}: cannot be read (it is empty); it must begin with the columns {list(columns)}")
    (_, header), *rows = rows
    if len(header) == 1 and (found := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise InputError(
            f"{path}, row 1: found columns separated by {found!r}; they must be separated by commas, and decimals "
            "have a point"
        )
    _require_columns(path, header, columns)
    for row, cells in rows:
        if len(cells) > len(header):
            raise InputError(
                f"{path}, row {row}: found {len(cells)} fields, but {len(header)} columns; decimals must have a point, "
                "and a field that holds a comma must stand in quotes"
            )
    texts = {
        name: [_cell(cells, place, strip=columns[name].kind != pl.String) for _, cells in rows]
        for place, name in enumerate(header)
        if name in columns
    }
    numbers = pl.Series("row", [row for row, _ in rows], pl.Int64)
    return pl.DataFrame(texts, schema=dict.fromkeys(texts, pl.String)).with_columns(numbers)


def _cell(cells: Sequence[str], place: int, strip: bool) -> str | None:
    """A field of a row, which may lack its last ones; None where it is empty."""
    text = cells[place] if place < len(cells) else ""
    return (text.strip() if strip else text) or None


def _read_parquet(path: Path, columns: Columns) -> pl.DataFrame:
    if not is_whole_parquet(path):
        raise InputError(f"{path}: found a truncated file or no parquet at all; copy or write it again")
    try:
        schema = pl.read_parquet_schema(path)
        _require_columns(path, list(schema), columns)
        table = pl.read_parquet(path, glob=False, columns=[name for name in columns if name in schema])
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read ({told_reason(error)}); write it again") from None
    for name, found in table.schema.items():
        is_name = columns[name].kind == pl.String
        text = found in TEXT
        if not (text or found.is_integer() or (found.is_numeric() and not is_name)):
            raise InputError(
                f"{path}, column {name}: found the type {found}; it must hold {'text' if is_name else 'numbers'}"
            )
    texts = {name: pl.col(name).cast(pl.String, strict=False) for name, found in table.schema.items() if found in TEXT}
    numbers = {
        name: text.str.strip_chars().replace("", None)
        for name, text in texts.items()
        if columns[name].kind != pl.String
    }
    try:
        return table.with_columns(**texts | numbers, row=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    except pl.exceptions.PolarsError as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path}, columns of text: found bytes that are not UTF-8 ({why})") from None


def _require_columns(path: Path, found: list[str], columns: Columns) -> None:
    """`InputError` for a column that is missing, unless it `may_lack`, or that stands twice."""
    for name, column in columns.items():
        alike = [other for other in found if other.strip().lower() == name]
        if len(alike) > 1:
            raise InputError(f"{path}, column {name}: stands there {len(alike)} times, as {alike}; give it once")
        if alike and alike != [name]:
            raise InputError(f"{path}, column {name}: found {alike[0]!r}; it must be spelled {name!r}")
        if not alike and not column.may_lack:
            needed = [each for each in columns if not columns[each].may_lack]
            raise InputError(f"{path}, column {name}: missing; found {told_names(found)}; there must be {needed}")


def require_once(table: pl.DataFrame, key: Sequence[str]) -> None:
    """`InputError` for a key that stands twice, if need be in another spelling. `table`: with `file` and `row`."""
    names = [name for name in key if table.schema[name] == pl.String]
    plain = {
        f"plain {name}": pl.col(name)
        .str.normalize("NFKC")
        .str.to_lowercase()
        .str.replace_all(r"\p{Cf}", "")  # characters without a width
        .str.replace_all(r"\s+", " ")
        for name in names
    }
    spelled = table.with_columns(**plain)
    parts = [f"plain {name}" if name in names else name for name in key]
    for second in spelled.filter(~pl.struct(parts).is_first_distinct()).head(1).iter_rows(named=True):
        first = spelled.filter(pl.col(name).eq_missing(pl.lit(second[name])) for name in parts).row(0, named=True)
        own, other = (tuple(row[name] for name in key if row[name] is not None) for row in (second, first))
        there = f"row {first['row']}" + (f" of {first['file']}" if first["file"] != second["file"] else "")
        spelling = "" if own == other else f" as {other}"
        raise InputError(
            f"{second['file']}, row {second['row']}, columns {list(key)}: {own} stands in {there} already{spelling}; "
            "give it once"
        )
