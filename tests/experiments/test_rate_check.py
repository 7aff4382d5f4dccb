"""The check of the learning rate, against scipy and a loop over pairs."""

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Proxy
from proxycast.experiments.data_selection.rate_check import rate_check_table, rate_scores
from scipy.stats import spearmanr

OPTIONS = SelectionOptions(bootstrap_replicates=300)


def scores_of(
    means: dict[str, dict[str, float]], solutions: int = 40, noise: float = 0.5, every_step=False
) -> pl.DataFrame:
    """`means`: size -> corpus -> mean score. Those of an earlier step are others."""
    rng = np.random.default_rng(0)
    hard = rng.standard_normal(solutions)
    rows = [
        (
            corpus,
            "sums",
            f"s{n}",
            "margin",
            "uniform",
            size,
            step,
            0,
            mean * sign + hard[n] + noise * rng.standard_normal(),
        )
        for size, corpora in means.items()
        for corpus, mean in corpora.items()
        for step, sign in ((5, -1), (10, 1))
        if step == 10 or every_step
        for n in range(solutions)
    ]
    columns = ["corpus", "task", "solution", "statistic", "weighting", "size", "step", "seed", "score"]
    return pl.DataFrame(rows, columns, orient="row")


def test_pairs_that_move_and_the_correlation():
    fast, slow = {"a": 4.0, "b": 3.0, "c": 0.02, "d": 0.0}, {"a": 3.0, "b": 4.0, "c": 0.0, "d": 0.02}
    scores = scores_of({"4M": fast, "4M-rate0.25": slow})
    row = rate_check_table(scores, "4M", "4M-rate0.25", OPTIONS).row(0, named=True)
    means = scores.filter(step=10).group_by("size", "corpus").agg(pl.col("score").mean()).sort("corpus")
    one, other = (means.filter(size=size)["score"].to_list() for size in ("4M", "4M-rate0.25"))
    assert row["spearman"] == pytest.approx(spearmanr(one, other).statistic)
    moved = [(i, j) for i, j in combinations(range(4), 2) if (one[i] - one[j]) * (other[i] - other[j]) < 0]
    assert (row["pairs"], row["pairs_moved"], row["step"], row["corpora"]) == (6, len(moved), 10, 4)
    assert (0, 1) in moved and row["pairs_moved_surely"] == 1  # a and b; c and d cannot be told apart
    assert row["spearman_low"] <= row["spearman"] <= row["spearman_high"] <= 1


def test_a_corpus_without_the_second_training_and_earlier_steps_are_left_out():
    scores = scores_of({"4M": {"a": 2.0, "b": 1.0, "c": 0.0}, "4M-rate0.25": {"a": 2.0, "b": 1.0}}, every_step=True)
    name = pl.format("{}-{}-seed{}-step{}", "corpus", "size", "seed", "step")
    named = scores.with_columns(checkpoint=name, value=-pl.col("score"), denominator=1.0, tail=pl.lit("tokens"))
    checkpoints = named.select("checkpoint", "corpus", "size", "step", "seed", role=pl.lit("proxy")).unique()
    wanted = [Proxy(statistic="margin")]  # lower is better: its score is the negative value
    found = rate_scores(checkpoints, named.drop("corpus", "size", "step", "seed").lazy(), wanted, ["4M", "4M-rate0.25"])
    kept = scores.filter(pl.col("corpus") != "c", step=10)
    order = ["size", "corpus", "solution"]
    assert found.sort(order).select(kept.columns).equals(kept.sort(order))
    row = rate_check_table(found, "4M", "4M-rate0.25", OPTIONS).row(0, named=True)
    assert (row["corpora"], row["pairs"], row["pairs_moved"], row["spearman"]) == (2, 1, 0, 1)


def test_one_solution_has_no_interval():
    scores = scores_of({"4M": {"a": 2.0, "b": 1.0}, "4M-rate0.25": {"a": 1.0, "b": 2.0}}, solutions=1, noise=0.0)
    row = rate_check_table(scores, "4M", "4M-rate0.25", OPTIONS).row(0, named=True)
    assert (row["spearman"], row["spearman_low"], row["pairs_moved"], row["pairs_moved_surely"]) == (-1, None, 1, 0)


def test_ties_do_not_move():
    scores = scores_of({"4M": {"a": 1.0, "b": 1.0}, "4M-rate0.25": {"a": 0.0, "b": 1.0}}, noise=0.0)
    assert rate_check_table(scores, "4M", "4M-rate0.25", OPTIONS)["pairs_moved"].item() == 0
