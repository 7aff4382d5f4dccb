"""The least compute that reaches a decision accuracy: by what was named in advance, in hindsight, and by a baseline."""

import polars as pl

from proxycast.report.page.answers.wording import percent
from proxycast.report.page.blocks import Block, Column, Dataset, Table
from proxycast.report.page.of_corpora.corpus_orders import PROXY_COLUMNS
from proxycast.report.page.study_results import StudyResults
from proxycast.report.style import readable

TABLE = "data_selection/compute_to_reach"


def reached_blocks(results: StudyResults) -> list[Block]:
    reached = results.table(TABLE)
    if reached is None:
        return []
    rows = reached.sort("threshold", "compute_fraction", nulls_last=True, maintain_order=True)
    return [_cheapest(results, rows), _everything(rows)]


def _cheapest(results: StudyResults, rows: pl.DataFrame) -> Table:
    """A row for each threshold. What a study does not have, such as proxies of its own, has no column."""
    proxies = rows.filter(kind="proxy")
    named = [f"{proxy.statistic}/{proxy.weighting}" for proxy in results.study.highlighted]
    is_named = pl.concat_str(PROXY_COLUMNS, separator="/").is_in(named)
    is_law = pl.col("statistic").str.contains(" of ", literal=True)
    groups = {
        "named_in_advance": ("Named in advance", (proxies if len(proxies) else rows).filter(is_named)),
        "best_proxy": ("Best proxy, in hindsight", proxies),
        "plain_baseline": ("Best plain baseline", rows.filter(~is_law, kind="baseline")),
    }
    groups = {name: group for name, group in groups.items() if len(group[1])}
    frame = rows.select("threshold").unique(maintain_order=True)
    texts = {
        name: [_in_words(of.filter(pl.col("threshold") == at)) for at in frame["threshold"]]
        for name, (_, of) in groups.items()
    }
    return Table(
        "compute-reached",
        "The least compute that reaches a decision accuracy",
        Dataset(
            "reached", frame.with_columns(pl.Series(k, v) for k, v in texts.items()), TABLE, "the cheapest of each"
        ),
        [Column("threshold", "Accuracy, one seed", "g"), *(Column(n, title) for n, (title, _) in groups.items())],
        caption="In percent of the target's compute. Of methods that cost the same, the table's first is named.",
    )


def _in_words(rows: pl.DataFrame) -> str:
    """The cheapest of `rows`, which are sorted by compute, and how many are as cheap."""
    known = rows.drop_nulls("compute_fraction")
    if known.is_empty():
        return "never"
    first = known.row(0, named=True)
    alike = known.filter(compute_fraction=first["compute_fraction"])
    more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
    return f"{percent(first['compute_fraction'])}: {readable(first['statistic'], first['weighting'])}{more}"


def _everything(rows: pl.DataFrame) -> Table:
    return Table(
        "compute-to-reach",
        "The same for every method",
        Dataset("compute_to_reach", rows, TABLE),
        [
            Column("threshold", "Accuracy, one seed", "g"),
            Column("statistic", "Statistic"),
            Column("weighting", "Weighting"),
            Column("compute_fraction", "Of target compute", ".2g"),
            Column("size", "Size"),
            Column("step", "Step", ","),
            Column("kind", "Kind"),
        ],
        caption="Cheapest first; a dash: never reached.",
        key=PROXY_COLUMNS,
        selects="proxy",
        is_open=False,
    )
