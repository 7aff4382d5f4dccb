"""The order of all corpora under each proxy, with or without a truth: places, pairs told apart, agreement."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.arrays import DECIMALS
from proxycast.experiments.candidate_order import (
    ResampledScores,
    agreement_table,
    pair_table,
    place_table,
    resampled_scores,
)
from proxycast.options import InputError

KEYS = ["statistic", "weighting", "size", "step"]
PLACES = ["place", "place_low", "place_high"]


class CorpusOrder(NamedTuple):
    """Resampled scores of n corpora under one proxy at one size and step."""

    key: pl.DataFrame  # one row: statistic, weighting, size, step
    corpora: pl.DataFrame  # (n): corpus; seeds: how many are behind its score
    scores: ResampledScores

    def labelled(self, table: pl.DataFrame) -> pl.DataFrame:
        """`table` with the columns of `key` behind its first one."""
        first, *others = table.columns
        return table.select(first).join(self.key, how="cross").hstack(table.select(others))


def corpus_orders(
    solution_scores: pl.DataFrame, options: SelectionOptions, judged: Collection[str] = ()
) -> list[CorpusOrder]:
    """The order of the corpora under every proxy, size and step of `solution_scores`.

    `solution_scores`: corpus, task, solution, statistic, weighting, size, step, seed, score (higher is better) and, of
    ratios, denominator (`resampled_scores`). `judged`: the corpora that have a truth. They come first, and need the
    same seeds; the others follow, each with the seeds that it has. Without any, all corpora need the same seeds.

    Scores are resampled over the solutions of each task, the same for all corpora, and over the seeds, for each corpus
    on its own. `InputError` names a score that is missing.
    """
    if solution_scores.is_empty():
        raise InputError("highlighted: none of these proxies and baselines has a score at the study's budgets")
    orders = []
    for (*names,), cell in solution_scores.group_by(KEYS, maintain_order=True):
        every = cell.select("corpus").unique().sort("corpus")
        first = pl.DataFrame({"corpus": sorted(judged)}, {"corpus": pl.String}) if judged else every
        others = every.join(first, on="corpus", how="anti", maintain_order="left")
        groups = [first, *others.iter_slices(1)]
        parts = [
            resampled_scores(
                cell.join(group, on="corpus", how="semi"), group, options, number, ", ".join(map(str, names)) + ", "
            )
            for number, group in enumerate(groups)
        ]
        scores = ResampledScores(
            np.concatenate([part.points for part in parts]),
            np.concatenate([part.samples for part in parts], axis=-1),
            np.repeat([part.resampled for part in parts], [len(group) for group in groups]),
        )
        seeds = cell.group_by("corpus").agg(pl.col("seed").n_unique().cast(pl.Int64).alias("seeds"))
        corpora = pl.concat(groups).join(seeds, on="corpus", how="left", maintain_order="left")
        orders.append(CorpusOrder(cell.select(KEYS).head(1), corpora, scores))
    return orders


def place_columns(order: CorpusOrder, confidence: float) -> pl.DataFrame:
    """corpus, and its place among all corpora with its interval; 1 is best, ties share the mean place."""
    return place_table(order.corpora, order.scores, confidence).select("corpus", *PLACES)


def order_table(orders: Sequence[CorpusOrder], confidence: float) -> pl.DataFrame:
    """Predicted score and place of every corpus, best first under each proxy, size and step. Nothing judges them."""
    columns = [f"{name}{end}" for name in ("predicted", "place") for end in ("", "_low", "_high")]
    parts = []
    for order in orders:
        table = place_table(order.corpora, order.scores, confidence).rename(lambda n: n.replace("score", "predicted"))
        parts.append(order.labelled(table.select("corpus", *columns, "seeds")))
    return pl.concat(parts)


def corpus_pairs(orders: Sequence[CorpusOrder], confidence: float) -> pl.DataFrame:
    """`candidate_order.pair_table` of every order: which corpora can be told apart."""
    parts = []
    for order in orders:
        pairs = pair_table(order.corpora["corpus"].to_list(), order.scores, confidence)
        parts.append(order.key.join(pairs, how="cross", maintain_order="right"))
    return pl.concat(parts)


def about_orders(orders: Sequence[CorpusOrder], confidence: float) -> dict[str, pl.DataFrame]:
    """The tables pairs and agreement."""
    return {"pairs": corpus_pairs(orders, confidence), "agreement": corpus_agreement(orders)}


def corpus_agreement(orders: Sequence[CorpusOrder]) -> pl.DataFrame:
    """Spearman's rho between every two orders (two proxies, sizes or steps), over the corpora that all of them have."""
    points = [
        dict(zip(order.corpora["corpus"], np.round(order.scores.points, DECIMALS), strict=True)) for order in orders
    ]
    everywhere = sorted(set.intersection(*map(set, points)))
    values = np.array([[of_order[corpus] for corpus in everywhere] for of_order in points])
    return agreement_table(pl.concat(order.key for order in orders), values)
