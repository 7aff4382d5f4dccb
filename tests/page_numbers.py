"""Reads a page's file as a program that knows nothing of how it was made, and compares its numbers with the tables."""

import json
import re
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import polars as pl

MISSING = "–"
NUMBER = r"[-+−]?(?:\d[\d,]*\.?\d*(?:e[-+]?\d+)?|inf)"
INTERVAL = re.compile(rf"(?P<value>.+?) \[(?P<low>{NUMBER}) ?%?, (?P<high>{NUMBER}) ?%?\]( ?%)?")


class PageFile(HTMLParser):
    """`data`: the datasets. `tables`: id -> (dataset, columns that its headers sort by, rows of (number, cells))."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.data, self.tables = {}, {}
        self.scripts, self.handlers = [], []  # attributes of <script>; attributes of any element that would run code
        self._table, self._text = None, None
        self.feed(path.read_text(encoding="utf8"))
        self.close()

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.handlers += [(tag, name) for name in given if name.startswith("on")]
        if tag == "script":
            self.scripts.append(given)
            self._text = []
        elif tag == "table":
            self._table = (given["data-of"], [], []) if "data-of" in given else None
            if self._table:
                self.tables[given["id"]] = self._table
        elif self._table and "data-sorts" in given:
            self._table[1].append(given["data-sorts"])
        elif self._table and "data-row" in given:
            self._table[2].append((int(given["data-row"]), []))
        elif self._table and tag == "td":
            self._text = []

    def handle_data(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            if self.scripts[-1].get("id") == "data":
                self.data = json.loads("".join(self._text))
            self._text = None
        elif tag == "td" and self._text is not None:
            self._table[2][-1][1].append("".join(self._text))
            self._text = None
        elif tag == "table":
            self._table = None


def check_numbers(page: Path, results: Path) -> PageFile:
    """Every dataset's rows are rows of its table on disk, and every cell of an HTML table is its dataset's value."""
    read = PageFile(page)
    for name, dataset in read.data.items():
        check_dataset(name, dataset, results)
    for name, (dataset, columns, rows) in read.tables.items():
        values = read.data[dataset]["columns"]
        assert rows or not next(iter(values.values())), name
        assert all(len(cells) == len(columns) for _, cells in rows)
        for number, cells in rows:
            row = {column: listed[number] for column, listed in values.items()}
            for column, text in zip(columns, cells):
                assert is_cell_of(text, column, row), (name, column, text, row[column])
    return read


def check_dataset(name: str, dataset: dict, results: Path) -> None:
    """In the columns that both have: some of a dataset's may be computed for the page."""
    path, columns = results / f"{dataset['table']}.parquet", dataset["columns"]
    if not path.is_file() and "table" in columns:
        return check_gathered(name, columns, results)
    assert path.is_file(), (name, f"no table {dataset['table']}")
    table = pl.read_parquet(path)
    shared = [column for column in columns if column in table.columns]
    assert shared, (name, "no column of its table")
    if "means over" in dataset["rows"]:  # their numbers are in no row, but within the table's
        means = [column for column in shared if table.schema[column].is_float()]
        for column in means:
            found = [value for value in columns[column] if value is not None]
            assert not found or table[column].min() <= min(found) <= max(found) <= table[column].max(), (name, column)
        shared = [column for column in shared if column not in means]
    known = {tuple(map(plain, row)) for row in table.select(shared).iter_rows()}
    rows = zip(*(columns[column] for column in shared))
    strange = [row for row in rows if tuple(map(plain, row)) not in known]
    assert not strange, (name, dataset["table"], shared, strange[:3])


def check_gathered(name: str, columns: dict, results: Path) -> None:
    """Rows of several tables, each of which names its own: their fractions stand there, or are differences of such."""
    known = {table: numbers_of(results / f"{table}.parquet") for table in set(columns["table"])}
    for row in (dict(zip(columns, values)) for values in zip(*columns.values())):
        given = {value for value in row.values() if isinstance(value, float)} - {0.0}
        strange = given - known[row["table"]]
        strange -= {a - b for a in given for b in given}
        assert not strange, (name, row, strange)


def numbers_of(path: Path) -> set[float]:
    floats = pl.read_parquet(path).select(pl.selectors.float())
    return {value for column in floats for value in column.drop_nulls()}


def plain(value: object) -> object:
    """As it can be compared: NaN is null on the page."""
    if isinstance(value, list):
        return tuple(value)
    return None if value != value else value


def is_cell_of(text: str, column: str, row: dict) -> bool:
    """Whether a cell shows the value of its column, and in brackets an interval whose ends are values of the row."""
    value, found = row[column], INTERVAL.fullmatch(text)
    if isinstance(value, int | float) and not isinstance(value, bool) and found:
        numbers = [v for v in row.values() if isinstance(v, int | float) and not isinstance(v, bool)]
        ends = [any(is_number(found[end] + " %" * ("%" in text), v) for v in numbers) for end in ("low", "high")]
        return is_number(found["value"] + " %" * ("%" in text and "%" not in found["value"]), value) and all(ends)
    if value is None:
        return text == MISSING
    if isinstance(value, bool):
        return text in (("yes", "true") if value else ("no", "false"))
    if isinstance(value, int | float):
        return is_number(text, value)
    return text == str(value)


def is_number(text: str, value: float) -> bool:
    """Whether `text` starts with a number, perhaps in percent, that is `value` rounded to the digits that it has."""
    found = re.match(rf"({NUMBER})( ?%)?", text)
    if not found:
        return False
    shown = Decimal(found[1].replace(",", "").replace("−", "-"))
    if not shown.is_finite():
        return float(shown) == value
    scaled = Decimal(value) * (100 if found[2] else 1)
    return abs(shown - scaled) <= Decimal(5).scaleb(shown.as_tuple().exponent - 1) * Decimal("1.0001")
