"""Models of recipes that had nothing to learn: copies of where they started, which are not compared."""

import logging
from collections.abc import Sequence

import polars as pl

from proxycast.tables import read_table

log = logging.getLogger(__name__)


def read_compared(checkpoints: str, recipes: Sequence[str]) -> pl.DataFrame:
    """The table `checkpoints` without copies; `recipes`: the path of a suite's post_training.parquet, if it has one."""
    table = read_table(checkpoints)
    for path in recipes:
        table = without_copies(table, read_table(path))
    return table


def without_copies(checkpoints: pl.DataFrame, recipes: pl.DataFrame) -> pl.DataFrame:
    """`checkpoints` (column run) but for those of runs whose `note` in `recipes` (run, base, recipe, note) tells why
    there was nothing to learn.

    A copy has the statistics of the model that it was made from, and so would count that one twice.
    """
    copies = recipes.filter(pl.col("note") != "")
    for run, base, recipe, note in copies.select("run", "base", "recipe", "note").iter_rows():
        log.warning(
            "%s, a copy, is not compared: the recipe %s of %s had nothing to learn (%s)", run, recipe, base, note
        )
    return checkpoints.join(copies, on="run", how="anti", maintain_order="left")
