"""What holds for the sections of any page: rows are the tables', lists name what is there, charts can be drawn."""

import json
import re
from html import unescape
from pathlib import Path

import polars as pl
import vl_convert
from markupsafe import Markup
from proxycast.config.study import Study
from proxycast.report.page.blocks import Chart, Note, Table
from proxycast.report.page.html_page import page_html
from proxycast.report.page.study_results import StudyResults
from proxycast.tables import write_table


def results_of(tables: dict[str, pl.DataFrame], folder: Path, **study) -> StudyResults:
    """The results of a study that has these tables, such as `forecasting/paths`."""
    for name, table in tables.items():
        write_table(table, folder / f"{name}.parquet", "test")
    return StudyResults(Study.model_construct(**{name: None for name in Study.model_fields} | study), folder)


def without(results: StudyResults, name: str) -> StudyResults:
    """The same study, which lacks the table `name`."""
    rest = StudyResults(results.study, results.results)
    rest.table = lambda wanted: None if wanted == name else results.table(wanted)
    return rest


def blocks_of(sections) -> dict:
    """id -> block of all sections, without notes."""
    return {block.id: block for section in sections for block in section.blocks if not isinstance(block, Note)}


def notes_of(sections) -> list[Note]:
    return [block for section in sections for block in section.blocks if isinstance(block, Note)]


def datasets_of(sections) -> dict:
    found = {}
    for block in blocks_of(sections).values():
        found |= {data.name: data for data in ([block.dataset] if isinstance(block, Table) else block.datasets)}
    return found


def assert_rows_are_the_tables(sections, tables: dict[str, pl.DataFrame], derived: set[str] = frozenset()) -> None:
    """Each dataset's rows stand so in the table that it names, but for columns that name things for people."""
    for name, data in datasets_of(sections).items():
        table = tables[data.table]
        common = [column for column in data.frame.columns if column in table.columns]
        assert len(data.frame) and (name in derived or len(common) == len(table.columns)), name
        if name not in derived:
            foreign = data.frame.join(table, on=common, how="anti", nulls_equal=True)
            assert foreign.is_empty(), name


def assert_lists_name_what_is_there(sections) -> None:
    """A list's first value is what its chart shows at first, and each of its values is one of the data."""
    for block in blocks_of(sections).values():
        for select in getattr(block, "selects", ()) if not isinstance(block, Table) else ():
            assert len(select.options) > 1, block.id
            if not isinstance(block, Chart):
                assert all(f'data-value="{value}"' in block.markup for value in select.options), block.id
                continue
            [value] = [p["value"] for p in block.spec["params"] if p["name"] == select.name]
            assert value == next(iter(select.options)), block.id
            columns = {name for data in block.datasets for name in data.frame.columns}
            known = {v for data in block.datasets for column in data.frame for v in column if isinstance(v, str)}
            assert set(select.options) <= known | columns, block.id


def drawn(chart: Chart) -> str:
    """The chart as SVG, with what stands on the page when it opens."""
    rows = {data.name: data.frame.fill_nan(None).to_dicts() for data in chart.datasets}
    spec = chart.spec | {"datasets": json.loads(json.dumps(rows)), "width": 600}
    return vl_convert.vegalite_to_svg(spec)


def marks(svg: str, kind: str) -> int:
    """How many marks of a kind are drawn: `symbol`, `rule`, `rect`."""
    groups = re.findall(rf'<g class="mark-{kind} role-mark[^"]*"[^>]*>(.*?)</g>', svg, re.DOTALL)
    return sum(len(re.findall("<path|<line", group)) for group in groups)


def page_of(sections) -> str:
    return page_html("a study", sections, Markup(""))


def cells_of(html: str, table: str) -> list[list[str]]:
    """The texts of the rows of the HTML table with the id `table`."""
    [body] = re.findall(rf'<table id="{table}-rows".*?<tbody>(.*?)</tbody>', html, re.DOTALL)
    rows = re.findall(r"<tr data-row.*?</tr>", body, re.DOTALL)
    return [[unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)] for row in rows]
