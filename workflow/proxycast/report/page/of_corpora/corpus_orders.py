"""The orders of corpora that a data selection has: by which proxy and at which budget, and how the page names both.

A control of the page holds such an order, a proxy or a budget as one text: its key.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import altair as alt
import polars as pl

from proxycast.report.page.blocks import Select
from proxycast.report.page.charts import MID_GREY, colour
from proxycast.report.page.formats import MISSING
from proxycast.report.page.study_results import StudyResults
from proxycast.report.style import COLOURS, readable

# Keys of a row in the language of Vega, and the columns that tables join to the same.
PROXY_KEY = "datum.statistic + '/' + datum.weighting"
BUDGET_KEY = "datum.size + '/' + datum.step"
ORDER_KEY = f"{PROXY_KEY} + '/' + {BUDGET_KEY}"
PROXY_COLUMNS = ("statistic", "weighting")
ORDER_COLUMNS = ("statistic", "weighting", "size", "step")
MOST_ORDERS = 12  # beyond them the reader finds none
DASHES = [[9, 3], [4, 3], [10, 3, 2, 3], [2, 2]]


@dataclass(frozen=True)
class Place:
    """A budget: size and step of small models."""

    size: str
    step: int
    name: str = ""  # in the study

    @property
    def key(self) -> str:
        return f"{self.size}/{self.step}"

    @property
    def label(self) -> str:
        return f"{self.quoted}: {self._at}" if self.quoted else self._at

    @property
    def short(self) -> str:
        return self.quoted or self._at

    @property
    def quoted(self) -> str:
        """The study's name of the budget, which may be any words; empty where it says no more than the size."""
        return "" if self.name in ("", self.size) else f'"{self.name}"'

    @property
    def _at(self) -> str:
        return f"{self.size} models at step {self.step:,}"

    @property
    def cell(self) -> dict[str, object]:
        return {"size": self.size, "step": self.step}


@dataclass(frozen=True)
class Order:
    """A proxy or baseline that orders the corpora at a budget."""

    statistic: str
    weighting: str
    at: Place

    @property
    def key(self) -> str:
        return f"{self.statistic}/{self.weighting}/{self.at.key}"

    @property
    def cell(self) -> dict[str, object]:
        return {"statistic": self.statistic, "weighting": self.weighting} | self.at.cell

    @property
    def label(self) -> str:
        return f"{readable(self.statistic, self.weighting)}, {self.at.label}"


def budgets_in(results: StudyResults, table: pl.DataFrame) -> list[Place]:
    """The study's budgets that `table` has rows of, the last first: it is the one that decides."""
    found = set(table.select("size", "step").iter_rows())
    named = {(budget.size, budget.step): budget.name for budget in reversed(results.budgets)}
    rest = sorted(found - named.keys(), key=lambda at: -at[1])
    return [Place(*at, named.get(at, "")) for at in [*named, *rest] if at in found]


def orders_of(results: StudyResults, ranking: pl.DataFrame) -> list[Order]:
    """The orders of the table ranking: those of the last budget first, proxies as the study names them."""
    found = set(ranking.select(*PROXY_COLUMNS, "size", "step").iter_rows())
    known = [(proxy.statistic, proxy.weighting) for proxy in results.study.highlighted]
    proxies = known + sorted({row[:2] for row in found} - set(known))
    places = budgets_in(results, ranking)
    return [Order(*proxy, at) for at in places for proxy in proxies if (*proxy, at.size, at.step) in found]


def sorted_as(rows: pl.DataFrame, cells: Sequence[Mapping[str, object]]) -> pl.DataFrame:
    """`rows` sorted as `cells` (of orders or places) stand, those of no cell last; rows of a cell keep their order."""
    by = pl.DataFrame(list(cells)).with_row_index("cell")
    on = [name for name in by.columns if name != "cell"]
    return (
        rows.join(by, on, "left", maintain_order="left").sort("cell", nulls_last=True, maintain_order=True).drop("cell")
    )


def order_select(orders: Iterable[Order]) -> Select:
    orders = list(orders)
    names = {order.key: f"{order.at.short}: {readable(order.statistic, order.weighting)}" for order in orders}
    return Select("order", "Order by", names, {order.key: order.at.label for order in orders})


def budget_select(name: str, places: Iterable[Place], label: str = "Budget") -> Select:
    return Select(name, label, {place.key: place.label for place in places})


def proxies_in(table: pl.DataFrame) -> list[tuple[str, str]]:
    return list(table.select(PROXY_COLUMNS).unique(maintain_order=True).iter_rows())


def name_of(proxies: Iterable[tuple[str, str]], key: str = PROXY_KEY) -> str:
    """The readable name of a proxy as an expression of Vega."""
    names = {f"{statistic}/{weighting}": readable(statistic, weighting) for statistic, weighting in proxies}
    return f"({json.dumps(names)})[{key}]"


def interval_text(value: str, low: str, high: str, how: str) -> str:
    """A value and its interval as an expression of Vega: "0.113 [0.05, 0.2]", without ends "0.113", else a dash."""
    number, *ends = (f"format(datum.{column}, '{how}')" for column in (value, low, high))
    interval = f"isValid(datum.{low}) && isValid(datum.{high}) ? ' [' + {ends[0]} + ', ' + {ends[1]} + ']' : ''"
    return f"isValid(datum.{value}) ? {number} + ({interval}) : '{MISSING}'"


def dashes_of(lines: Iterable[tuple[str, str]]) -> alt.StrokeDashValue:
    """Proxies solid, baselines each in dashes of its own: of two equal lines both are seen. No scale, so no legend."""
    names = [json.dumps(readable(*line)) for line in lines if line[1] == "none"]
    chosen = [{"test": f"datum.name == {name}", "value": dash} for name, dash in zip(names, cycle(DASHES))]
    return alt.StrokeDashValue([1, 0], condition=chosen)


def colours_of(proxies: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Readable name -> a colour of its own, that of the statistic where no other has it."""
    found: dict[str, str] = {}
    spare = [*map(str.lower, COLOURS), MID_GREY]
    for statistic, weighting in proxies:
        own = colour(statistic).lower()
        if own in found.values() or own == MID_GREY:
            own = next((other for other in spare if other not in found.values()), MID_GREY)
        found[readable(statistic, weighting)] = own
    return found
