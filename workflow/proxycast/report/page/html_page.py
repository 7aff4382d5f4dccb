"""One HTML file for a study: its answer, its evidence, and where each number is from.

The file holds everything that it shows, and its content security policy lets it ask for nothing. The tables stand in it
once, as JSON; `assets/page.js` draws the charts from them, sorts, filters and writes the downloads.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import polars as pl
from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from proxycast.report.page.blocks import MOST_SHOWN, Block, Chart, Dataset, Html, Note, Section, Table, datasets_of
from proxycast.report.page.charts import is_flat, picture, vega_bundle
from proxycast.report.page.formats import shown, with_interval
from proxycast.report.page.sections.provenance import anchor_of
from proxycast.report.snakemake_report import script_json
from proxycast.tables import as_cells, atomic

ASSETS = files("proxycast.report.page") / "assets"


def page_html(title: str, sections: Iterable[Section], answer: Markup, about: str = "") -> str:
    """The page. `answer`: what stands at its top; `about`: one line below the title."""
    kept = [section for section in sections if section.blocks]
    datasets = _datasets(block for section in kept for block in section.blocks)
    charts = [block for section in kept for block in section.blocks if isinstance(block, Chart)]
    drawn = [chart for chart in charts if not is_flat(chart)]
    data = script_json({name: _columns(dataset) for name, dataset in datasets.items()}, allow_nan=False)
    specs = script_json({chart.id: {"spec": chart.spec, "data": [d.name for d in chart.datasets]} for chart in drawn})
    scripts = [*([vega_bundle()] if drawn else []), *map(_asset, _assets(".js"))]
    return _template("page.html.j2").render(
        title=title,
        about=about,
        answer=answer,
        sections=kept,
        style=Markup("\n".join(map(_asset, _assets(".css")))),
        data=Markup(data),
        specs=Markup(specs),
        scripts=list(map(Markup, scripts)),
        policy=_policy(scripts),
        is_traced=any(section.id == "trust" for section in kept),  # where each table's rule and fingerprint stand
        pictures={c.id: picture(c, {d.name: d.frame.to_dicts() for d in c.datasets}) for c in charts if is_flat(c)},
    )


def write_page(html: str, path: Path) -> None:
    with atomic(path) as temporary:
        temporary.write_text(html, encoding="utf8")


def _policy(scripts: Sequence[str]) -> str:
    """Only these scripts run, and nothing is loaded: no other script, page, font or address."""
    hashes = (base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    rest = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


def _datasets(blocks: Iterable[Block]) -> dict[str, Dataset]:
    found: dict[str, Dataset] = {}
    for block in blocks:
        for dataset in datasets_of(block):
            if found.setdefault(dataset.name, dataset) is not dataset:
                raise ValueError(f"two datasets of the page have the name {dataset.name}")
    return found


def _columns(dataset: Dataset) -> dict:
    """The dataset as JSON: its columns, as a csv may hold them too (`tables.as_cells`). NaN becomes null."""
    frame = dataset.frame.with_columns(pl.col(pl.Float32, pl.Float64).fill_nan(None))
    cells = as_cells(frame)
    escaped = {cell: name for cell, name in zip(cells.columns, frame.columns) if not cells[cell].equals(frame[name])}
    return {
        "table": dataset.table,
        "rows": dataset.rows,
        "columns": frame.to_dict(as_series=False),
        # What the download has in place of texts that a spreadsheet would take for formulas.
        "cells": {name: cells[cell].to_list() for cell, name in escaped.items()},
        "titles": cells.columns,
    }


def _rows(table: Table) -> list[dict]:
    """What an HTML table shows: the texts of each of its first rows, and what chooses the row."""
    rows, keys = [], [table.key] if isinstance(table.key, str) else table.key
    shown_rows = _shown_rows(table)
    for row in shown_rows.head(MOST_SHOWN).iter_rows(named=True):
        cells = [
            with_interval(row, c.name, c.format, c.low, c.high) if c.low else shown(row[c.name], c.format)
            for c in table.columns
        ]
        parts = [row[name] for name in keys] if table.key else [None]
        key = None if None in parts else "/".join(map(str, parts))  # a row without a value is no choice
        rows.append({"cells": cells, "key": key, "index": row[_INDEX]})
    return rows


_INDEX = "row of the dataset"


def _shown_rows(table: Table) -> pl.DataFrame:
    """The rows that the table has without its limit, with their index in the dataset."""
    return table.dataset.frame.with_row_index(_INDEX).filter(*(pl.col(k) == v for k, v in table.where.items()))


def _kind(block: Block) -> str:
    return {Chart: "chart", Table: "table", Html: "html", Note: "note"}[type(block)]


def _is_number(dataset: Dataset, name: str) -> bool:
    return dataset.frame.schema[name].is_numeric()


@cache
def _assets(suffix: str) -> list[str]:
    """Names of the assets of a kind: page.css or page.js, then those of single sections."""
    names = sorted(asset.name for asset in ASSETS.iterdir() if asset.name.endswith(suffix))
    return sorted(names, key=lambda name: name != f"page{suffix}")


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf8")


@cache  # to compile it takes as long as to fill it in
def _template(name: str) -> Template:
    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"rows_of": _rows, "kind_of": _kind, "is_number": _is_number, "datasets_of": datasets_of}
    environment.globals["count_of"] = lambda table: len(_shown_rows(table))
    environment.globals |= {"json": json.dumps, "most_shown": MOST_SHOWN, "anchor_of": anchor_of}
    return environment.get_template(name)
