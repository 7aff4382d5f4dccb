"""Beside the order that answers the study: what would have cost less compute, and what the other named orders pick."""

from collections import Counter
from collections.abc import Iterator, Mapping

import polars as pl

from proxycast.proxy_formulas import proxy_name
from proxycast.report.page.answers.wording import Fact, cost, first_row, listed, percent
from proxycast.report.page.study_results import StudyResults


def fact_of_cheapest(results: StudyResults) -> Iterator[Fact]:
    """The least compute of a single seed that reaches the highest threshold that any method reaches, of three kinds."""
    reached = results.table("data_selection/compute_to_reach")
    if reached is None:
        return
    reached = reached.filter(pl.col("compute_fraction").is_finite() & pl.col("threshold").is_finite())
    if reached.is_empty():
        return
    threshold = reached["threshold"].max()
    at = reached.filter(threshold=threshold).sort("compute_fraction", maintain_order=True)
    named = pl.DataFrame([p.model_dump(include={"statistic", "weighting"}) for p in results.study.highlighted])
    kinds = {
        "named in advance": at.join(named, ["statistic", "weighting"], "semi", maintain_order="left"),
        "a proxy, in hindsight": at.filter(kind="proxy"),
        "a plain baseline": at.filter(kind="baseline"),
    }
    told = [
        f"by {proxy_name(row['statistic'], row['weighting'])} ({kind}) at {percent(row['compute_fraction'])}"
        for kind, rows in kinds.items()
        for row in rows.head(1).iter_rows(named=True)
    ]
    never = [kind for kind, rows in kinds.items() if rows.is_empty()]
    text = f"one seed first decides {threshold:g} of pairs rightly {', '.join(told)} of the target's compute"
    yield Fact("Cheapest", text + "".join(f"; by none that is {kind}" for kind in never))


def fact_of_other_orders(results: StudyResults, decides: Mapping[str, object], metric: str) -> Iterator[Fact]:
    """What the other named orders pick, and its cost. `decides`: statistic, weighting, size and step of the answer."""
    choices, picks = results.table("data_selection/choices"), Counter()
    for proxy in results.study.highlighted:
        for budget in results.budgets:
            where = {
                "statistic": proxy.statistic,
                "weighting": proxy.weighting,
                "size": budget.size,
                "step": budget.step,
            }
            row = first_row(choices, **where, seed="mean")
            if row and where != decides and row["picked"] is not None and row["regret"] is not None:
                picks[row["picked"], cost(row, "regret", metric)] += 1
    if picks:
        told = [f"{picked} ({price}{f', {times} times' * (times > 1)})" for (picked, price), times in picks.items()]
        orders = "the other order picks" if picks.total() == 1 else f"the {picks.total()} other orders pick"
        yield Fact("Other orders", f"{orders} {listed(told)}, by proxies and budgets that were named in advance")
