"""The comparison of learning rates, against scipy, loops over pairs and the table of decision accuracy."""

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.ladder import RatePair
from proxycast.config.study import Proxy
from proxycast.config.truth import Target
from proxycast.experiments.bootstrap import bootstrap_weights
from proxycast.experiments.data_selection.ranking import decision_accuracy_table
from proxycast.experiments.data_selection.rate_check import (
    SCHEMA,
    rate_check_table,
    rate_check_tables,
    rate_rows,
    rate_scores,
    rates_table,
)
from scipy.stats import spearmanr

OPTIONS = SelectionOptions(bootstrap_replicates=300)
PAIR = RatePair(size="4M", factor=1.0, slower_size="4M-rate0.25", slower_factor=0.25, step=10)


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
    row = rate_check_table(scores, PAIR, OPTIONS).row(0, named=True)
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
    found = rate_scores(checkpoints, named.drop("corpus", "size", "step", "seed").lazy(), wanted, PAIR)
    kept = scores.filter(pl.col("corpus") != "c", step=10)
    order = ["size", "corpus", "solution"]
    assert found.sort(order).select(kept.columns).equals(kept.sort(order))
    row = rate_check_table(found, PAIR, OPTIONS).row(0, named=True)
    assert (row["corpora"], row["pairs"], row["pairs_moved"], row["spearman"]) == (2, 1, 0, 1)
    of_solutions = named.drop("corpus", "size", "step", "seed").lazy()
    alone = PAIR.model_copy(update={"slower_size": "8M"})  # of which there is no model
    both = rate_check_tables(checkpoints, of_solutions, wanted, [alone, PAIR], OPTIONS)
    assert both.row(0, named=True) == row and both.schema == pl.Schema(SCHEMA) and len(both) == 1


def test_one_solution_has_no_interval():
    scores = scores_of({"4M": {"a": 2.0, "b": 1.0}, "4M-rate0.25": {"a": 1.0, "b": 2.0}}, solutions=1, noise=0.0)
    row = rate_check_table(scores, PAIR, OPTIONS).row(0, named=True)
    assert (row["spearman"], row["spearman_low"], row["pairs_moved"], row["pairs_moved_surely"]) == (-1, None, 1, 0)


def test_ties_do_not_move():
    scores = scores_of({"4M": {"a": 1.0, "b": 1.0}, "4M-rate0.25": {"a": 0.0, "b": 1.0}}, noise=0.0)
    assert rate_check_table(scores, PAIR, OPTIONS)["pairs_moved"].item() == 0


# Against the truth

CORPORA, TASKS, SEEDS = "abcdefgh", ("dates", "sums"), (0, 1, 2)
MARGIN, BITS = Proxy(statistic="margin"), Proxy(statistic="bits_per_byte", weighting="none")
SIZES = (PAIR.size, PAIR.slower_size)


def predicted_scores(seeds=SEEDS, decimals=1) -> pl.DataFrame:
    """Random scores, of which some tie; the same corpora, tasks and seeds at both rates."""
    rng = np.random.default_rng(1)
    quality = dict(zip(CORPORA, rng.standard_normal(len(CORPORA))))
    rows = [
        (corpus, task, proxy.statistic, proxy.weighting, kind, size, 10, seed)
        + (round(quality[corpus] + rng.standard_normal(), decimals),)
        for proxy, kind in ((MARGIN, "proxy"), (BITS, "baseline"))
        for size in SIZES
        for corpus in CORPORA
        for task in TASKS
        for seed in seeds
    ]
    columns = ["corpus", "task", "statistic", "weighting", "kind", "size", "step", "seed", "score"]
    table = pl.DataFrame(rows, columns, orient="row")
    return table.with_columns(depends_on_candidate=False, tokens=100, flops=6e3)


def true_values() -> pl.DataFrame:
    rng = np.random.default_rng(2)
    rows = [(corpus, task, rng.standard_normal()) for corpus in CORPORA for task in TASKS]
    return pl.DataFrame(rows, ["corpus", "task", "value"], orient="row")


def means_of(predicted: pl.DataFrame, proxy: Proxy, size: str, seed: int) -> list[float]:
    rows = predicted.filter(**proxy.model_dump(), size=size, seed=seed)
    return rows.group_by("corpus").agg(pl.col("score").mean().round(12)).sort("corpus")["score"].to_list()


def alike(one: list[float], other: list[float], counts: list[float]) -> float:
    """Share of pairs of drawn corpora that both order alike; a tie in either is a coin."""
    agree = total = 0.0
    for i, j in combinations(range(len(one)), 2):
        product = (one[i] - one[j]) * (other[i] - other[j])
        agree += counts[i] * counts[j] * (1 if product > 0 else 0.5 if product == 0 else 0)
        total += counts[i] * counts[j]
    return agree / total


def test_agreement_of_rates_and_of_seeds_by_hand():
    predicted = predicted_scores()
    row = rate_rows(predicted, true_values(), [PAIR], [MARGIN], OPTIONS).row(0, named=True)
    fast, slow = ([means_of(predicted, MARGIN, size, seed) for seed in SEEDS] for size in SIZES)
    crossed = [(fast[a], slow[b]) for a in SEEDS for b in SEEDS if a != b]
    within = [(rate[a], rate[b]) for rate in (fast, slow) for a, b in combinations(SEEDS, 2)]
    once = [1.0] * len(CORPORA)
    agreement, of_seeds = (np.mean([alike(*orders, once) for orders in found]) for found in (crossed, within))
    assert any(len(set(scores)) < len(scores) for scores in fast + slow)  # ties are among them
    assert row["agreement"] == pytest.approx(agreement) and row["seed_agreement"] == pytest.approx(of_seeds)
    assert row["seed_difference"] == pytest.approx(agreement - of_seeds)
    assert row["spearman"] == pytest.approx(np.mean([spearmanr(*orders).statistic for orders in crossed]))
    draws = bootstrap_weights(len(CORPORA), OPTIONS.bootstrap_replicates, OPTIONS.seed)
    samples = [
        np.mean([alike(*orders, list(counts)) for orders in crossed])
        - np.mean([alike(*orders, list(counts)) for orders in within])
        for counts in draws
    ]
    ends = np.quantile(samples, [0.025, 0.975])
    assert [row["seed_difference_low"], row["seed_difference_high"]] == pytest.approx(ends)
    assert (row["corpora"], row["seeds"], row["note"]) == (len(CORPORA), 3, "")


def test_accuracies_are_those_of_the_table_of_decision_accuracy():
    """With the same intervals; and a difference to the same models is none."""
    predicted, truth = predicted_scores(), true_values()
    found = rate_rows(predicted, truth, [PAIR], [BITS, MARGIN], OPTIONS)
    known = decision_accuracy_table(predicted, truth, 1e6, OPTIONS).filter(task="all", seed="single")
    for row in found.iter_rows(named=True):
        name = {key: row[key] for key in ("statistic", "weighting")}
        for size, prefix in zip(SIZES, ("", "slower_")):
            of_size = known.filter(**name, size=size).row(0, named=True)
            for end, of_table in (("", "decision_accuracy"), ("_low", "low"), ("_high", "high")):
                assert row[f"{prefix}decision_accuracy{end}"] == pytest.approx(of_size[of_table]), (name, size, end)
        assert row["difference"] == pytest.approx(row["slower_decision_accuracy"] - row["decision_accuracy"])
        assert row["difference_low"] < row["difference"] < row["difference_high"]
    fast = predicted.filter(size=PAIR.size)
    copied = pl.concat([fast, fast.with_columns(size=pl.lit(PAIR.slower_size))])
    same = rate_rows(copied, truth, [PAIR], [MARGIN], OPTIONS).row(0, named=True)
    assert (same["difference"], same["difference_low"], same["difference_high"]) == (0, 0, 0)
    assert same["seed_difference"] == pytest.approx(0)


def test_one_seed_and_few_corpora_say_what_is_unknown():
    row = rate_rows(predicted_scores(seeds=(0,)), true_values(), [PAIR], [MARGIN], OPTIONS).row(0, named=True)
    assert row["seed_agreement"] is row["seed_difference"] is row["seed_difference_low"] is None
    assert row["agreement_low"] < row["agreement"] and "one seed" in row["note"]
    few = pl.col("corpus").is_in(list("abc"))
    row = rate_rows(predicted_scores().filter(few), true_values().filter(few), [PAIR], [MARGIN], OPTIONS)
    assert row["agreement_low"].item() is row["difference_high"].item() is None
    assert row["note"].item() == "no interval: too few corpora (3)"


def test_rates_of_checkpoints_are_signed_and_of_the_last_step():
    """Bits per byte are the better the lower; other steps, sizes and statistics do not matter."""
    quality = {corpus: float(n) for n, corpus in enumerate(CORPORA)}
    models = [(corpus, size, step) for corpus in CORPORA for size in (*SIZES, "8M") for step in (5, 10)]
    models = [(*model, "proxy") for model in models] + [(corpus, "1B", 20, "target") for corpus in CORPORA]
    checkpoints = pl.DataFrame(models, ["corpus", "size", "step", "role"], orient="row").with_columns(
        *(
            pl.lit(number).alias(name)
            for name, number in (("seed", 0), ("parameters", 9), ("tokens", 7), ("flops", 6.0))
        ),
        checkpoint=pl.format("{}-{}-step{}", "corpus", "size", "step"),
    )
    value = -pl.col("corpus").replace_strict(quality, return_dtype=pl.Float64)
    flipped = pl.when(size=PAIR.slower_size, step=10).then(-value).otherwise(value)
    bits = checkpoints.filter(role="proxy").with_columns(statistic=pl.lit("bits_per_byte"), weighting=pl.lit("none"))
    proxies = bits.with_columns(task=pl.lit("sums"), tail=pl.lit("tokens"), value=flipped)
    proxies = proxies.select("checkpoint", "task", "tail", "statistic", "weighting", "value").lazy()
    targets = checkpoints.filter(role="target").with_columns(value=-value, task=pl.lit("sums"), n=9)
    targets = targets.select("checkpoint", "task", pl.lit("accuracy").alias("metric"), "value", "n")
    of_study = checkpoints, targets, ["sums"], Target(metric="accuracy", size="1B", table="truth.csv"), OPTIONS
    row = rates_table(*of_study, [BITS, MARGIN], [PAIR], proxies=proxies).row(0, named=True)
    assert (row["decision_accuracy"], row["slower_decision_accuracy"], row["difference"]) == (1, 0, -1)
    assert (row["agreement"], row["spearman"], row["step"]) == (0, -1, 10)
    assert row["agreement_low"] is row["difference_low"] is None and "the same extreme value" in row["note"]
