"""How far the order of corpora moves when the same models are trained at a lower learning rate.

Orders of corpora can flip with the learning rate of the small models, and lower rates can repair that ("Can Small
Training Runs Reliably Guide Data Curation?", arXiv 2512.24503).
"""

import logging
from collections.abc import Sequence

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Proxy
from proxycast.experiments import bootstrap
from proxycast.experiments.candidate_order import pair_table, resampled_scores
from proxycast.experiments.data_selection.corpus_scores import NAME, SOLUTION_KEYS, solution_scores
from proxycast.experiments.rank_statistics import spearman

log = logging.getLogger(__name__)

SCHEMA = {
    **dict.fromkeys((*NAME, "size", "slower_size"), pl.String),
    **dict.fromkeys(("step", "corpora"), pl.Int64),
    **dict.fromkeys(("spearman", "spearman_low", "spearman_high"), pl.Float64),
    **dict.fromkeys(("pairs", "pairs_moved", "pairs_moved_surely"), pl.Int64),
}


def rate_scores(
    checkpoints: pl.DataFrame, of_solutions: pl.LazyFrame, wanted: Sequence[Proxy], sizes: Sequence[str]
) -> pl.DataFrame:
    """`corpus_scores.solution_scores` of the models of both `sizes` at their last step, of the corpora that have both.

    `checkpoints`: corpus, size, step, seed, role and checkpoint of the study's models. `of_solutions`: proxies per
    solution. Seeds that a corpus lacks are left out for all.
    """
    both = checkpoints.filter(pl.col("size").is_in(list(sizes)), role="proxy")
    both = both.filter(pl.col("size").n_unique().over("corpus", "step") == 2)
    both = both.filter(pl.col("step") == pl.col("step").max())
    nothing = pl.DataFrame(schema=dict.fromkeys([*NAME, "task"], pl.String) | {"score": pl.Float64})
    nothing = both.select(SOLUTION_KEYS).clear().join(nothing, how="cross")
    return solution_scores(both, of_solutions.filter(tail="tokens"), nothing, wanted)


def rate_check_table(solution_scores: pl.DataFrame, size: str, slower: str, options: SelectionOptions) -> pl.DataFrame:
    """One row for each proxy: how the order of corpora by models of `size` agrees with that by models of `slower`.

    `solution_scores`: corpus, task, solution, statistic, weighting, size, step, seed, score (higher is better) of one
    step and of corpora that have both (`rate_scores`). spearman: over the corpora, with its interval
    over solutions and seeds (null where nothing could be resampled). pairs_moved: pairs of corpora whose order differs;
    pairs_moved_surely: those of them that both rates tell apart (`candidate_order.pair_table`).
    """
    rows = []
    for (statistic, weighting), scores in solution_scores.group_by(NAME, maintain_order=True):
        corpora = scores.select("corpus").unique().sort("corpus")
        names = corpora["corpus"].to_list()
        if len(names) < 2:
            continue
        found = [
            resampled_scores(scores.filter(size=name), corpora, options, group, f"{statistic}, {weighting}, {name}, ")
            for group, name in enumerate((size, slower))
        ]
        samples = np.array([spearman(a[None], b)[0] for a, b in zip(found[0].samples, found[1].samples)])
        low, high = (float(end) for end in bootstrap.percentile_interval(samples, options.confidence))
        sure = all(scores.resampled for scores in found)
        tables = [pair_table(names, scores, options.confidence) for scores in found]
        moved = tables[0].join(tables[1], left_on=["better", "worse"], right_on=["worse", "better"], suffix="_slower")
        moved = moved.filter(pl.col("difference") > 0, pl.col("difference_slower") > 0)
        rows.append(
            {
                **{"statistic": statistic, "weighting": weighting, "size": size, "slower_size": slower},
                **{"step": scores["step"][0], "corpora": len(names), "pairs": len(tables[0])},
                "spearman": float(spearman(found[0].points[None], found[1].points)[0]),
                "spearman_low": low if sure else None,
                "spearman_high": high if sure else None,
                "pairs_moved": len(moved),
                "pairs_moved_surely": len(moved.filter("told_apart", "told_apart_slower")),
            }
        )
    for row in rows:
        log.info(
            "%s/%s: %d of %d pairs of corpora change their order at the lower learning rate, %d of them surely",
            *(row[key] for key in (*NAME, "pairs_moved", "pairs", "pairs_moved_surely")),
        )
    return pl.DataFrame(rows, schema=SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))
