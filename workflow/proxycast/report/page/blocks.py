"""What a page is made of: sections of charts, tables, grids and text. Each number names the table that it is from.

Every table is on the page once, as a `Dataset`. Charts draw from it, HTML tables show its rows, and its download is
the whole of it as csv.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl
from markupsafe import Markup

MOST_SHOWN = 200  # rows of an HTML table; its download has all


@dataclass(frozen=True, eq=False)
class Dataset:
    """A result table, or the part of it that the page uses.

    `name` is unique on the page and one word; `table` is the result table without suffix, such as
    `data_selection/pareto`; `rows` says in words which of its rows are meant, if not all. A dataset that no result
    table holds is `made_from` several.
    """

    name: str
    frame: pl.DataFrame
    table: str
    rows: str = ""
    made_from: Sequence[str] = ()


@dataclass(frozen=True)
class Column:
    """A column of an HTML table: what stands above it, and how a value is shown (`formats.shown`)."""

    name: str
    title: str
    format: str = ""  # of Python, such as ".2f"; empty: as it is
    low: str = ""  # columns of an interval, shown behind the value
    high: str = ""


@dataclass(frozen=True)
class Select:
    """A list above a chart or grid that sets `name` to the value of an option; the first is chosen as the page opens.

    `options`: value -> text. `groups`: value -> the heading that its option stands under, if options have any.
    """

    name: str
    label: str
    options: Mapping[str, str]
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class When:
    """A block that stands on the page only while the control `name` has this `value`.

    `is_first`: the control has the value when the page opens.
    """

    name: str
    value: str
    is_first: bool


@dataclass(frozen=True, eq=False)
class Chart:
    """A chart of Vega-Lite. `spec` names its data (`alt.NamedData`) by the names of `datasets`.

    A control with `data-select="name"`, as `selects` are, sets the chart's parameter `name`, if it has one.
    """

    id: str
    title: str
    spec: dict
    datasets: Sequence[Dataset]
    caption: str = ""
    alt: str = ""  # what it shows, for those who do not see it
    selects: Sequence[Select] = ()
    marks: int | None = None  # most rows that are drawn at a time, where a control chooses among them; None: all


@dataclass(frozen=True, eq=False)
class Table:
    """An HTML table of a dataset's rows, in their order, that sorts, filters and downloads.

    With `key` and `selects`, a row is chosen by the control `selects` if its column `key` has the control's value; of
    several columns the value is theirs, joined by "/". `where`: only rows with these values of their columns are shown.
    """

    id: str
    title: str
    dataset: Dataset
    columns: Sequence[Column]
    caption: str = ""
    key: str | tuple[str, ...] = ""
    selects: str = ""
    is_open: bool = True  # else the reader unfolds it
    where: Mapping[str, object] = field(default_factory=dict)
    when: When | None = None


@dataclass(frozen=True, eq=False)
class Html:
    """Markup of our own templates, such as a grid or tokens: what a study says in it is escaped."""

    id: str
    title: str
    markup: Markup
    datasets: Sequence[Dataset] = ()
    caption: str = ""
    selects: Sequence[Select] = ()
    when: When | None = None


@dataclass(frozen=True)
class Note:
    """A paragraph. A caution stands out."""

    text: str
    is_caution: bool = False


Block = Chart | Table | Html | Note


def datasets_of(block: Block) -> Sequence[Dataset]:
    """What a block is drawn from."""
    if isinstance(block, Table):
        return [block.dataset]
    return () if isinstance(block, Note) else block.datasets


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the page with a heading, and a place in its contents. Without blocks it is left out."""

    id: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
