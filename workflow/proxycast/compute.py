"""The cost of a prediction and its accuracy: FLOPs, the Pareto frontier, the compute that reaches a decision accuracy.

N always counts every parameter but the input embedding, including the output head (DataDecide's convention: for its
models of L layers and width d, N = L (16 d^2 + 2 d) + d + 50304 d). For a mixture of experts it counts the active
parameters, those that process a token. D counts training tokens.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from proxycast.options import InputError


def training_flops(parameters: int, tokens: int) -> int:
    """6 N D: 2 FLOPs per parameter and token forward, 4 backward (Kaplan et al., arXiv 2001.08361, section 2.1)."""
    return 6 * parameters * tokens


def scoring_flops(parameters: int, tokens: int) -> int:
    """2 N T: one forward pass over T tokens, prompts and solutions both counted."""
    return 2 * parameters * tokens


def pareto_frontier(compute: ArrayLike, accuracy: ArrayLike) -> NDArray[np.bool_]:
    """Mask (n,) of the points that no other point dominates.

    A point dominates another if it costs no more, is at least as accurate, and is better in one of the two. Equal
    points do not dominate each other. A point with accuracy NaN is never on the frontier.
    """
    compute, accuracy = np.asarray(compute, float), np.nan_to_num(np.asarray(accuracy, float), nan=-np.inf)
    costs, cost = np.unique(compute, return_inverse=True)
    best_at_cost = np.full(len(costs), -np.inf)
    np.maximum.at(best_at_cost, cost, accuracy)
    best_below_cost = np.concatenate([[-np.inf], np.maximum.accumulate(best_at_cost)[:-1]])
    return (accuracy == best_at_cost[cost]) & (accuracy > best_below_cost[cost])


def compute_to_reach(compute: ArrayLike, accuracy: ArrayLike, threshold: float) -> float | None:
    """Compute of the cheapest point at or above `threshold`, or None. More expensive points may fall below it again."""
    reached = np.asarray(compute, float)[np.asarray(accuracy, float) >= threshold]
    return float(reached.min()) if len(reached) else None


def pareto_table(
    decision_accuracy: pl.DataFrame, parameters: Mapping[str, int], scored_tokens: int | None
) -> pl.DataFrame:
    """Cost and decision accuracy of every statistic, weighting, size and step, over all tasks.

    `decision_accuracy`: a `decision_accuracy_table`, of which the rows with task "all" and seed "single" are used.
    `parameters`: active N of every size. `scored_tokens`: T, the tokens of prompts and solutions that one checkpoint
    reads; None if no model was run. `scoring_flops` is null then, and for baselines, whose cost is that of their own
    evaluation. Frontiers use the training compute of one run: `on_frontier` among all rows but those of the kind
    "published", which other corpora judged; `on_own_frontier` among rows of one statistic and weighting.
    """
    if unknown := set(decision_accuracy["size"]) - set(parameters):
        raise InputError(f"the number of parameters of size {', '.join(map(str, sorted(unknown)))} is not given")
    cost = {size: scored_tokens and float(scoring_flops(n, scored_tokens)) for size, n in parameters.items()}
    on_frontier = pl.struct("flops", "decision_accuracy").map_batches(_frontier, return_dtype=pl.Boolean)
    return (
        decision_accuracy.filter(pl.col("task") == "all", pl.col("seed") == "single")
        .with_columns(
            scoring_flops=pl.when(pl.col("kind") == "proxy").then(
                pl.col("size").replace_strict(cost, return_dtype=pl.Float64)
            ),
            on_frontier=on_frontier.over(pl.col("kind") == "published") & (pl.col("kind") != "published"),
            on_own_frontier=on_frontier.over("statistic", "weighting"),
        )
        .select(PARETO_COLUMNS)
    )


PARETO_COLUMNS = [
    *("statistic", "weighting", "kind", "size", "step", "tokens", "flops", "compute_fraction", "scoring_flops"),
    *("decision_accuracy", "low", "high", "on_frontier", "on_own_frontier"),
]


def _frontier(points: pl.Series) -> pl.Series:
    flops, accuracy = points.struct.field("flops"), points.struct.field("decision_accuracy").fill_null(float("nan"))
    return pl.Series(pareto_frontier(flops.to_numpy(), accuracy.to_numpy()))


def compute_to_reach_table(pareto: pl.DataFrame, thresholds: Sequence[float]) -> pl.DataFrame:
    """The cheapest row of `pareto_table` at or above each threshold, by statistic and weighting; null if none is."""
    rows = []
    for (statistic, weighting, kind), curve in pareto.group_by("statistic", "weighting", "kind", maintain_order=True):
        curve = curve.drop_nulls("decision_accuracy")
        for threshold in thresholds:
            cheapest = compute_to_reach(curve["compute_fraction"], curve["decision_accuracy"], threshold)
            size = step = None
            if cheapest is not None:
                at_cost = curve.filter(pl.col("compute_fraction") == cheapest)
                size, step = at_cost.sort("decision_accuracy").select("size", "step").row(-1)
            rows.append((statistic, weighting, kind, threshold, cheapest, size, step))
    columns = ("statistic", "weighting", "kind", "threshold", "compute_fraction", "size", "step")
    schema = {name: pareto.schema.get(name, pl.Float64) for name in columns}
    return pl.DataFrame(rows, schema=schema, orient="row")
