"""What judges say of candidates without a truth: whom they put first, and the evidence for that."""

from collections.abc import Iterator

import polars as pl

from proxycast.proxy_formulas import proxy_name
from proxycast.report.page.answers.wording import Fact, first_row, leading, listed
from proxycast.report.page.formats import with_interval


def facts_of_judges(judged: pl.DataFrame | None, name: str, **where: object) -> Iterator[Fact]:
    """One for each judge: its first proxy or scorer. `judged`: the table of that name; `name`: its candidates.

    `where`: which rows count, such as those of the study's last budget, or of all tasks.
    """
    if judged is None:
        return
    for (judge,), rows in judged.filter(**where).group_by("judge", maintain_order=True):
        keys = ["statistic", "weighting", "size", "step"] if "statistic" in rows.columns else ["scorer", "tail", "task"]
        order = rows.join(rows.head(1).select(keys), on=keys, how="semi", maintain_order="left").sort("place", name)
        yield Fact(f"Judge {judge}", "; ".join(_told(order, name)))


def _told(order: pl.DataFrame, name: str) -> Iterator[str]:
    row, leaders = first_row(order), leading(order, name)
    by = proxy_name(row["statistic"], row["weighting"]) if "statistic" in row else row["scorer"]
    expected = ""
    if row["predicted"] is not None and len(leaders) == 1:
        value = with_interval(row, "predicted", ".3g", "predicted_low", "predicted_high")
        expected = f", which is expected to score {value} in {row['metric']}"
    yield f"puts {listed(leaders)} first by {by}{expected}"
    yield row["evidence"]
    if row["warnings"]:
        yield f"caution: {row['warnings']}"
