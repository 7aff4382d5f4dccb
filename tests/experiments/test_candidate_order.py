"""The order of candidates, against loops, closed forms and scipy."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.candidate_order import (
    ResampledScores,
    agreement_table,
    pair_table,
    place_table,
    resampled_scores,
)
from proxycast.experiments.opposed_pairs import opposed_pairs
from proxycast.options import InputError
from scipy.stats import norm, spearmanr

OPTIONS = SelectionOptions(bootstrap_replicates=4000)


def scores_of(values: dict[str, np.ndarray], task: str = "sums") -> pl.DataFrame:
    """`values`: candidate -> (seeds, solutions)."""
    rows = [
        (name, task, f"s{m}", k, float(value))
        for name, table in values.items()
        for (k, m), value in np.ndenumerate(np.atleast_2d(table))
    ]
    schema = {"corpus": pl.String, "task": pl.String, "solution": pl.String, "seed": pl.Int64, "score": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def of(values: dict[str, np.ndarray]) -> ResampledScores:
    return resampled_scores(scores_of(values), pl.DataFrame({"corpus": list(values)}), OPTIONS)


def test_pairs_share_what_is_hard_for_both():
    """Solutions differ by 10, candidates by 0.1 on each: the intervals of scores overlap, the pair is told apart."""
    rng = np.random.default_rng(0)
    hard = 10 * rng.standard_normal(50)
    found = of({"a": hard + 0.1 + 0.01 * rng.standard_normal(50), "b": hard})
    table = place_table(pl.DataFrame({"corpus": ["a", "b"]}), found, 0.95)
    assert table["corpus"].to_list() == ["a", "b"] and table["place"].to_list() == [1, 2]
    assert table["score_high"][1] > table["score_low"][0]
    pair = pair_table(["a", "b"], found, 0.95).row(0, named=True)
    assert (pair["better"], pair["worse"], pair["told_apart"]) == ("a", "b", True)
    assert pair["difference"] == pytest.approx(0.1, abs=0.01)


def test_the_interval_of_a_difference_is_that_of_the_closed_form():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 400))
    pair = pair_table(["a", "b"], of({"a": a + 0.02, "b": b}), 0.9).row(0, named=True)
    half = norm.ppf(0.95) * (a - b).std() / 20
    assert pair["difference_high"] - pair["difference_low"] == pytest.approx(2 * half, rel=0.05)


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_pairs_without_a_difference_are_told_apart_as_often_as_promised(gap):
    rng, told = np.random.default_rng(2), 0
    for _ in range(200):
        values = {"a": gap + rng.standard_normal(60), "b": rng.standard_normal(60)}
        options = SelectionOptions(bootstrap_replicates=400)
        found = resampled_scores(scores_of(values), pl.DataFrame({"corpus": ["a", "b"]}), options)
        told += pair_table(["a", "b"], found, 0.9)["told_apart"].item()
    assert told > 190 if gap else 8 <= told <= 35  # a share of 0.1 of 200: 20 expected, sd 4.2


def test_pairs_that_another_ranking_tells_apart_the_other_way_round():
    rng = np.random.default_rng(3)
    noise = 0.01 * rng.standard_normal((3, 30))
    one = pair_table("abc", of(dict(zip("abc", noise + [[2.0], [1.0], [0.0]]))), 0.95)
    other = pair_table("abc", of(dict(zip("abc", noise[::-1] + [[1.0], [2.0], [0.0]]))), 0.95)
    assert opposed_pairs(one, other).select("better", "worse").rows() == [("b", "a")]
    assert opposed_pairs(one, one).is_empty() and opposed_pairs(one, other.with_columns(told_apart=False)).is_empty()


def test_what_cannot_be_resampled_is_not_told_apart():
    found = of({"a": np.array([1.0]), "b": np.array([0.0]), "c": np.array([0.0])})
    places = place_table(pl.DataFrame({"corpus": ["a", "b", "c"]}), found, 0.95)
    assert places["place"].to_list() == [1, 2.5, 2.5] and places["place_low"].null_count() == 3
    pairs = pair_table(["a", "b", "c"], found, 0.95)
    assert pairs["told_apart"].null_count() == pairs["difference_low"].null_count() == 3


@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=2, max_size=5))
def test_agreement_is_that_of_scipy(rows):
    points = np.array(rows, float)
    names = pl.DataFrame({"statistic": [f"s{n}" for n in range(len(rows))]})
    for row in agreement_table(names, points).iter_rows(named=True):
        one, other = (points[int(row[key][1:])] for key in ("statistic", "other_statistic"))
        if np.ptp(one) and np.ptp(other):
            assert row["spearman"] == pytest.approx(spearmanr(one, other).statistic)
        else:
            assert row["spearman"] is None


def test_a_missing_solution_is_named():
    table = scores_of({"a": np.ones(2), "b": np.ones(2)})[:-1]
    with pytest.raises(InputError, match="task sums: score of corpus b, seed 0, solution s1 is missing"):
        resampled_scores(table, pl.DataFrame({"corpus": ["a", "b"]}), OPTIONS)
