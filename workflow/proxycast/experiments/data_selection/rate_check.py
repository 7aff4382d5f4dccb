"""How far the order of corpora moves when the same models are trained at another learning rate.

Orders of corpora can flip with the learning rate of the small models, and lower rates can repair that ("Can Small
Training Runs Reliably Guide Data Curation?", arXiv 2512.24503). Two tables: `rate_check` tells which pairs of corpora
move, from single solutions and without a truth; `rates` tells whether the lower rate orders more pairs as the truth
does, and whether another rate moves the order more than another seed does.

Shapes: K seeds, n corpora, P pairs of them, B bootstrap samples.
"""

import logging
from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np
import polars as pl

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.ladder import RatePair
from proxycast.config.study import Proxy
from proxycast.config.truth import Target
from proxycast.experiments import bootstrap
from proxycast.experiments.arrays import DECIMALS, Array, dense
from proxycast.experiments.candidate_order import pair_table, resampled_scores
from proxycast.experiments.data_selection.corpus_scores import (
    NAME,
    SOLUTION_KEYS,
    metric_signs,
    predictions,
    solution_scores,
)
from proxycast.experiments.data_selection.corpus_truth import oriented, truth_by_seed
from proxycast.experiments.rank_statistics import (
    ResampledTruth,
    bootstrap_spearman,
    mean_of_known,
    pair_signs,
    pair_weights,
    spearman,
)
from proxycast.solutions.rows import GENERIC_TEXT

log = logging.getLogger(__name__)

_PAIR = {"size": pl.String, "factor": pl.Float64, "slower_size": pl.String, "slower_factor": pl.Float64}
SCHEMA = {
    **dict.fromkeys(NAME, pl.String),
    **_PAIR,
    **dict.fromkeys(("step", "corpora"), pl.Int64),
    **dict.fromkeys(("spearman", "spearman_low", "spearman_high"), pl.Float64),
    **dict.fromkeys(("pairs", "pairs_moved", "pairs_moved_surely"), pl.Int64),
}
_FIGURES = ("agreement", "spearman", "seed_agreement", "seed_difference")
_ACCURACIES = ("decision_accuracy", "slower_decision_accuracy", "difference")
RATES_SCHEMA = {
    **dict.fromkeys(NAME, pl.String),
    **_PAIR,
    **dict.fromkeys(("step", "corpora", "seeds"), pl.Int64),
    **{name + end: pl.Float64 for name in (*_FIGURES, *_ACCURACIES) for end in ("", "_low", "_high")},
    "note": pl.String,
}


def rate_check_tables(
    checkpoints: pl.DataFrame,
    of_solutions: pl.LazyFrame,
    wanted: Sequence[Proxy],
    pairs: Sequence[RatePair],
    options: SelectionOptions,
) -> pl.DataFrame:
    """`rate_check_table` of every two rates, one after the other."""
    found = [(rate_scores(checkpoints, of_solutions, wanted, pair), pair) for pair in pairs]
    return pl.concat([rate_check_table(scores, pair, options) for scores, pair in found])


def rate_scores(
    checkpoints: pl.DataFrame, of_solutions: pl.LazyFrame, wanted: Sequence[Proxy], pair: RatePair
) -> pl.DataFrame:
    """`corpus_scores.solution_scores` of the models of both sizes at their last step, of the corpora that have both.

    `checkpoints`: corpus, size, step, seed, role and checkpoint of the study's models. `of_solutions`: proxies per
    solution. Seeds that a corpus lacks are left out for all.
    """
    both = checkpoints.filter(pl.col("size").is_in([pair.size, pair.slower_size]), role="proxy")
    both = both.filter(pl.col("size").n_unique().over("corpus", "step") == 2)
    both = both.filter(pl.col("step") == pl.col("step").max())
    nothing = pl.DataFrame(schema=dict.fromkeys([*NAME, "task"], pl.String) | {"score": pl.Float64})
    nothing = both.select(SOLUTION_KEYS).clear().join(nothing, how="cross")
    return solution_scores(both, of_solutions.filter(tail="tokens"), nothing, wanted)


def rate_check_table(solution_scores: pl.DataFrame, pair: RatePair, options: SelectionOptions) -> pl.DataFrame:
    """One row for each proxy: how the order of corpora by models of one rate agrees with that by models of a lower one.

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
            for group, name in enumerate((pair.size, pair.slower_size))
        ]
        samples = np.array([spearman(a[None], b)[0] for a, b in zip(found[0].samples, found[1].samples)])
        low, high = (float(end) for end in bootstrap.percentile_interval(samples, options.confidence))
        sure = all(scores.resampled for scores in found)
        tables = [pair_table(names, scores, options.confidence) for scores in found]
        moved = tables[0].join(tables[1], left_on=["better", "worse"], right_on=["worse", "better"], suffix="_slower")
        moved = moved.filter(pl.col("difference") > 0, pl.col("difference_slower") > 0)
        rows.append(
            {
                **{"statistic": statistic, "weighting": weighting, **pair.model_dump()},
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
            "%s/%s, %s, %s: %d of %d pairs of corpora change their order at the lower learning rate, %d of them surely",
            *(row[key] for key in (*NAME, "size", "slower_size", "pairs_moved", "pairs", "pairs_moved_surely")),
        )
    return pl.DataFrame(rows, schema=SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))


def rates_table(
    checkpoints: pl.DataFrame,
    targets: pl.DataFrame,
    tasks: Sequence[str],
    target: Target,
    options: SelectionOptions,
    wanted: Sequence[Proxy],
    pairs: Sequence[RatePair],
    *,
    proxies: pl.LazyFrame | None = None,
    outside: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """One row for each of the `wanted` and two rates: their orders of the corpora beside each other and the truth.

    The arguments are those of `data_tables.data_selection_tables`. Only sizes that every corpus with a truth has at the
    step of the pair are compared.
    """
    of_tasks = targets.filter(pl.col("task").is_in(tasks))
    signs = metric_signs(targets, target)
    truth = oriented(truth_by_seed(checkpoints, of_tasks, target.metric), signs[target.metric])
    at = [
        pair.model_dump(include={"step"}) | {"size": name} for pair in pairs for name in (pair.size, pair.slower_size)
    ]
    small = checkpoints.filter(role="proxy").join(pl.DataFrame(at), ["size", "step"], "semi", maintain_order="left")
    needed = pl.concat([checkpoints.filter(role="target"), small])
    names = pl.DataFrame([proxy.model_dump() for proxy in wanted])
    found = _of_models(proxies, small, names, tasks)
    predicted = predictions(needed, found, of_tasks, tasks, signs, outside)
    return rate_rows(predicted.join(names, on=NAME, how="semi", maintain_order="left"), truth, pairs, wanted, options)


def _of_models(
    proxies: pl.LazyFrame | None, small: pl.DataFrame, names: pl.DataFrame, tasks: Sequence[str]
) -> pl.DataFrame:
    """The rows of `proxies` that the comparison needs: of the `names`, and of the generic text."""
    if proxies is None:
        return pl.DataFrame(schema=dict.fromkeys(("checkpoint", "task", *NAME), pl.String) | {"value": pl.Float64})
    rows = proxies.filter(tail="tokens").join(small.lazy().select("checkpoint"), on="checkpoint", how="semi")
    is_wanted = pl.struct(NAME).is_in(names.select(NAME).to_dicts())
    return rows.filter(pl.col("task").is_in(list(tasks)) & is_wanted | (pl.col("task") == GENERIC_TEXT)).collect()


def rate_rows(
    predicted: pl.DataFrame,
    truth: pl.DataFrame,
    pairs: Sequence[RatePair],
    wanted: Sequence[Proxy],
    options: SelectionOptions,
) -> pl.DataFrame:
    """The rows of `rates_table` from `predicted` (`corpus_scores.predictions`) and `truth` (corpus, task, value).

    All are means over tasks. `agreement`: the share of pairs of corpora that a run of one rate orders as a run of the
    other and of another seed does; a pair that ties in either counts 1/2. `spearman`: their mean Spearman's rho.
    `seed_agreement`: the same share for two seeds of one rate, the mean of both rates; `seed_difference` is `agreement`
    less it: below 0 the rate moves the order more than a seed does. With one seed these three are null, and the two
    runs have the same seed. `decision_accuracy`: of one run against the truth, mean over seeds, as in the table of that
    name; `difference`: that of the lower rate less that of the higher. Every interval is over the corpora, from the
    samples of `ranking.decision_accuracy_table`, so differences are paired.
    """
    means = truth.group_by("corpus").agg(pl.col("value").mean()).sort("corpus")
    corpora, true = means.select("corpus"), np.round(means["value"].to_numpy(), DECIMALS)
    samples = bootstrap.bootstrap_weights(len(corpora), options.bootstrap_replicates, options.seed)
    rows = []
    for pair in pairs:
        for proxy in wanted:
            cells = predicted.filter(**proxy.model_dump(), step=pair.step)
            both = [cells.filter(size=name) for name in (pair.size, pair.slower_size)]
            if any(cell.is_empty() for cell in both):
                continue
            named = f"{proxy.statistic}, {proxy.weighting}"
            scores = [_by_seed(cell, corpora, f"{named}, {cell['size'][0]}: score") for cell in both]
            row = {**proxy.model_dump(), **pair.model_dump(), "corpora": len(corpora), "seeds": len(scores[0])}
            rows.append(row | _rate_figures(*scores, true, samples, options.confidence))
    return pl.DataFrame(rows, schema=RATES_SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))


def _by_seed(cell: pl.DataFrame, corpora: pl.DataFrame, name: str) -> Array:
    """Mean scores over tasks (K, n)."""
    axes = [cell.select("seed").unique().sort("seed"), cell.select("task").unique().sort("task"), corpora]
    return np.round(dense(cell, "score", name, axes).mean(1), DECIMALS)


def _rate_figures(fast: Array, slow: Array, truth: Array, samples: Array, confidence: float) -> dict[str, object]:
    """The figures of two rates, scores (K, n) each, and their intervals, null where they would be too certain."""
    # The first sample is the corpora as they are.
    found = _rate_samples(fast, slow, truth, np.concatenate([np.ones((1, len(truth))), samples]))
    ends = {name: bootstrap.percentile_interval(values[1:], confidence) for name, values in found.items()}
    enough = bootstrap.enough_to_resample(len(truth), confidence)
    shares = {name: -1 if name == "spearman" else 0 for name in found if not name.endswith("difference")}
    extreme = {n for n, worst in shares.items() if bootstrap.is_degenerate(found[n][0], *ends[n], worst, 1)}
    extreme |= {"difference"} if extreme & set(_ACCURACIES) else set()
    extreme |= {"seed_difference"} if extreme & {"agreement", "seed_agreement"} else set()
    row: dict[str, object] = {}
    for name, values in found.items():
        low, high = map(float, ends[name]) if enough and name not in extreme else (None, None)
        row |= {name: float(values[0]), f"{name}_low": low, f"{name}_high": high}
    notes = [] if enough else [bootstrap.too_few("corpora", len(truth))]
    notes += [bootstrap.all_alike("corpora")] if enough and extreme else []
    notes += ["one seed: nothing tells what another seed moves"] if len(fast) < 2 else []
    return row | {"note": "; ".join(notes)}


def _rate_samples(fast: Array, slow: Array, truth: Array, weights: Array) -> dict[str, Array]:
    """Each figure of two rates in every sample of `weights` (B, n) -> (B,)."""
    seeds = range(len(fast))
    crossed = list(permutations(seeds, 2)) or [(0, 0)]
    of_truth, of_pairs = ResampledTruth(truth, weights), pair_weights(weights)
    with np.errstate(invalid="ignore"):  # a sample of one corpus alone has no pair
        of_pairs /= of_pairs.sum(1, keepdims=True)

    def alike(one: Array, other: Array) -> Array:
        return of_pairs @ (1 + pair_signs(one) * pair_signs(other)) / 2

    found = {"agreement": np.mean([alike(fast[a], slow[b]) for a, b in crossed], axis=0)}
    rho = np.array([bootstrap_spearman(fast[[a]], slow[b], weights)[0] for a, b in crossed])
    found["spearman"] = mean_of_known(rho)
    within = [alike(rate[a], rate[b]) for rate in (fast, slow) for a, b in combinations(seeds, 2)]
    found["seed_agreement"] = np.mean(within, axis=0) if within else np.full(len(weights), np.nan)
    found["seed_difference"] = found["agreement"] - found["seed_agreement"]
    for name, rate in zip(_ACCURACIES, (fast, slow)):
        found[name] = of_truth.decision_accuracy(rate).mean(0)
    found["difference"] = found["slower_decision_accuracy"] - found["decision_accuracy"]
    return found
