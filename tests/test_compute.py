import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxycast.compute import (
    compute_to_reach,
    compute_to_reach_table,
    pareto_frontier,
    pareto_table,
    scoring_flops,
    training_flops,
)
from proxycast.options import InputError

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)


def test_flops_of_the_smallest_datadecide_model():
    layers, width = 8, 64
    parameters = layers * (16 * width**2 + 2 * width) + width + 50304 * width
    assert parameters == 3_744_832
    assert training_flops(parameters, 375_193_600) == 8_430_221_996_851_200
    assert scoring_flops(parameters, 1000) == 7_489_664_000


@given(points)
def test_the_frontier_is_what_nothing_dominates(points):
    compute, accuracy = [p[0] for p in points], [p[1] for p in points]
    expected = [
        not any(c <= cost and a >= value and (c < cost or a > value) for c, a in points) for cost, value in points
    ]
    assert pareto_frontier(compute, accuracy).tolist() == expected


def test_an_undefined_accuracy_is_on_no_frontier():
    assert pareto_frontier([1, 2, 3], [math.nan, 0.6, math.nan]).tolist() == [False, True, False]


@given(points, st.integers(0, 7))
def test_compute_to_reach_is_the_cheapest_point_at_or_above(points, threshold):
    compute, accuracy = [p[0] for p in points], [p[1] for p in points]
    costs = [c for c, a in points if a >= threshold]
    assert compute_to_reach(compute, accuracy, threshold) == (min(costs) if costs else None)


def curves() -> pl.DataFrame:
    """Rows of a decision_accuracy table; a and b are proxies, c is a baseline that was undefined once."""
    rows = [
        ("a", "4M", 1, 1e10, 0.6),
        ("a", "4M", 2, 2e10, 0.8),
        ("a", "8M", 2, 4e10, 0.7),
        ("b", "4M", 1, 1e10, 0.7),
        ("b", "8M", 2, 4e10, 0.9),
        ("c", "4M", 1, 1e10, None),
        ("c", "8M", 2, 4e10, 0.5),
    ]
    table = pl.DataFrame(rows, schema=["statistic", "size", "step", "flops", "decision_accuracy"], orient="row")
    table = table.with_columns(
        weighting=pl.when(pl.col("statistic") == "c").then(pl.lit("none")).otherwise(pl.lit("uniform")),
        kind=pl.when(pl.col("statistic") == "c").then(pl.lit("baseline")).otherwise(pl.lit("proxy")),
        tokens=pl.lit(100),
        compute_fraction=pl.col("flops") / 1e12,
        low=pl.col("decision_accuracy") - 0.1,
        high=pl.col("decision_accuracy") + 0.1,
    )
    others = [("b_task", "single"), ("all", "mean"), ("all", "0")]
    perfect = [
        table.with_columns(pl.lit(1.0).alias("decision_accuracy"), task=pl.lit(t), seed=pl.lit(s)) for t, s in others
    ]
    return pl.concat([table.with_columns(task=pl.lit("all"), seed=pl.lit("single")), *perfect])


def test_the_pareto_table_uses_single_runs_over_all_tasks():
    table = pareto_table(curves(), {"4M": 10, "8M": 20, "90M": 1}, scored_tokens=50)
    assert table["decision_accuracy"].to_list() == [0.6, 0.8, 0.7, 0.7, 0.9, None, 0.5]
    assert table["on_frontier"].to_list() == [False, True, False, True, True, False, False]
    assert table["on_own_frontier"].to_list() == [True, True, False, True, True, False, True]
    assert table["scoring_flops"].to_list() == [1000, 1000, 2000, 1000, 2000, None, None]


def test_without_any_scored_token_the_cost_of_scoring_is_unknown():
    assert pareto_table(curves(), {"4M": 10, "8M": 20}, scored_tokens=None)["scoring_flops"].null_count() == 7


def test_a_curve_of_other_corpora_is_on_no_frontier():
    """ "b" is the best; as a curve that was published for other corpora it leaves the frontier to the others."""
    kind = pl.when(pl.col("statistic") == "b").then(pl.lit("published")).otherwise("kind")
    table = pareto_table(curves().with_columns(kind=kind), {"4M": 10, "8M": 20}, scored_tokens=50)
    assert table["statistic"].to_list() == list("aaabbcc")
    assert table["on_frontier"].to_list() == [True, True, False, False, False, False, False]


def test_a_size_without_parameters_is_named():
    with pytest.raises(InputError, match="8M"):
        pareto_table(curves(), {"4M": 10}, scored_tokens=50)


def test_the_table_of_compute_to_reach():
    pareto = pareto_table(curves(), {"4M": 10, "8M": 20}, scored_tokens=50)
    found = compute_to_reach_table(pareto, [0.7, 0.85])
    assert found.rows() == [
        ("a", "uniform", "proxy", 0.7, 0.02, "4M", 2),
        ("a", "uniform", "proxy", 0.85, None, None, None),
        ("b", "uniform", "proxy", 0.7, 0.01, "4M", 1),
        ("b", "uniform", "proxy", 0.85, 0.04, "8M", 2),
        ("c", "none", "baseline", 0.7, None, None, None),
        ("c", "none", "baseline", 0.85, None, None, None),
    ]
    assert compute_to_reach_table(pareto.head(0), [0.7]).schema == found.schema


def test_many_points_are_fast_enough_to_compare():
    rng = np.random.default_rng(0)
    compute, accuracy = rng.random(200_000), rng.random(200_000)
    frontier = pareto_frontier(compute, accuracy)
    ordered = accuracy[frontier][np.argsort(compute[frontier])]
    assert (np.diff(ordered) > 0).all()
