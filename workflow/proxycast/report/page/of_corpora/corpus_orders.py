"""The orders of corpora that a data selection has: by which proxy and at which budget, and how the page names both.

A control of the page holds such an order, a proxy or a budget as one text: its key.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from proxycast.report.page.blocks import Select
from proxycast.report.page.charts import MID_GREY, colour
from proxycast.report.page.study_results import StudyResults
from proxycast.report.style import COLOURS, readable

# Keys of a row in the language of Vega, and the columns that tables join to the same.
PROXY_KEY = "datum.statistic + '/' + datum.weighting"
BUDGET_KEY = "datum.size + '/' + datum.step"
ORDER_KEY = f"{PROXY_KEY} + '/' + {BUDGET_KEY}"
PROXY_COLUMNS = ("statistic", "weighting")
ORDER_COLUMNS = ("statistic", "weighting", "size", "step")
MOST_ORDERS = 12  # beyond them the reader finds none


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
        at = f"{self.size} models at step {self.step:,}"
        return at if self.name in ("", self.size) else f"{self.name}: {at}"

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


def order_select(orders: Iterable[Order]) -> Select:
    orders = list(orders)
    names = {order.key: readable(order.statistic, order.weighting) for order in orders}
    return Select("order", "Order by", names, {order.key: order.at.label for order in orders})


def budget_select(name: str, places: Iterable[Place], label: str = "Budget") -> Select:
    return Select(name, label, {place.key: place.label for place in places})


def proxies_in(table: pl.DataFrame) -> list[tuple[str, str]]:
    return list(table.select(PROXY_COLUMNS).unique(maintain_order=True).iter_rows())


def name_of(proxies: Iterable[tuple[str, str]], key: str = PROXY_KEY) -> str:
    """The readable name of a proxy as an expression of Vega."""
    names = {f"{statistic}/{weighting}": readable(statistic, weighting) for statistic, weighting in proxies}
    return f"({json.dumps(names)})[{key}]"


def colours_of(proxies: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Readable name -> a colour of its own, that of the statistic where no other has it."""
    found: dict[str, str] = {}
    spare = [*COLOURS, MID_GREY]
    for statistic, weighting in proxies:
        own = colour(statistic)
        if own in found.values() or own == MID_GREY:
            own = next((other for other in spare if other not in found.values()), MID_GREY)
        found[readable(statistic, weighting)] = own
    return found
