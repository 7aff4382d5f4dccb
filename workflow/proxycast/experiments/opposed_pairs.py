"""Pairs on which two rankings disagree. Light to import: the command and the end of a study tell them."""

import polars as pl


def opposed_pairs(pairs: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """The rows of `others` that are told apart the other way round than `pairs` has them, told apart or not.

    Both are `candidate_order.pair_table` of the same candidates; `others` may hold several rankings.
    """
    reverse = {"left_on": ["better", "worse"], "right_on": ["worse", "better"]}
    return others.filter("told_apart").join(pairs.filter(pl.col("difference") > 0), how="semi", **reverse)
