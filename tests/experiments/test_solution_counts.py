"""How many solutions are enough: against all subsets, loops over pairs and splits, and made-up solutions."""

from itertools import combinations, product

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget, Proxy
from proxycast.experiments import bootstrap
from proxycast.experiments.data_selection.solution_counts import (
    ALL,
    EXPONENTS,
    TRUTH,
    WITHIN,
    Judge,
    extrapolated,
    halves,
    numbers_up_to,
    smallest_enough,
    solution_tables,
)
from proxycast.experiments.model_selection.model_counts import model_count_table
from proxycast.experiments.rank_statistics import bootstrap_decision_accuracy
from rank_loops import loop_decision_accuracy
from selection_study import FAST, MODELS, TASKS, gather, of_solutions_of, proxies_from, rank_correlation, targets_of

RANK, BITS = Proxy(statistic="expert_rank", weighting="uniform"), Proxy(statistic="bits_per_byte", weighting="none")
BUDGETS = [Budget(name="small", size="20M", step=100)]


def study(corpora=6, seeds=2, tasks=("dates", "sums"), solutions=4, noise=0.6, useless=0, seed=0):
    """Checkpoints, values of solutions and truth: a better corpus has lower ranks, but for `useless` solutions."""
    rng, names = np.random.default_rng(seed), [f"c{n:02}" for n in range(corpora)]
    checkpoints, values = [], []
    for n, k in product(range(corpora), range(seeds)):
        key = {"corpus": names[n], "seed": k, "tokens": 100, "flops": 1e9, "parameters": 10}
        checkpoints.append(key | {"checkpoint": f"{names[n]}-{k}", "size": "20M", "step": 100, "role": "proxy"})
        checkpoints.append(key | {"checkpoint": f"{names[n]}-{k}-big", "size": "1B", "step": 9, "role": "target"})
        for task, m in product(tasks, range(solutions)):
            row = {"checkpoint": f"{names[n]}-{k}", "task": task, "solution": f"s{m:02}", "tail": "tokens"}
            rank = 9 + m % 5 + rng.normal() * (noise if m >= useless else 4) - (n / 3 if m >= useless else 0)
            values.append(row | {"statistic": "expert_rank", "weighting": "uniform", "value": rank, "denominator": 1.0})
            size = 10.0 + 5 * m
            bits = row | {"statistic": "bits_per_byte", "weighting": "none", "value": size * rank, "denominator": size}
            values.append(bits)
    truth = pl.DataFrame([(name, task, n / 10) for n, name in enumerate(names) for task in tasks], orient="row")
    truth.columns = ["corpus", "task", "value"]
    return pl.DataFrame(checkpoints), pl.DataFrame(values).lazy(), truth


def counts_of(made, with_truth=True, options=FAST):
    checkpoints, values, truth = made
    return solution_tables(checkpoints, values, truth if with_truth else None, options, BUDGETS, [RANK])


def scores_by(made, chosen, proxy=RANK):
    """Seed -> corpus -> score by the `chosen` (task -> solutions), in loops."""
    checkpoints, values, truth = made
    table = {(r["checkpoint"], r["task"], r["solution"]): (r["value"], r["denominator"])
             for r in values.filter(statistic=proxy.statistic).collect().iter_rows(named=True)}  # fmt: skip
    found = []
    for seed in checkpoints["seed"].unique().sort():
        row = []
        for corpus in truth["corpus"].unique().sort():
            ratios = [[table[f"{corpus}-{seed}", task, s] for s in some] for task, some in chosen.items()]
            row.append(-np.mean([sum(v for v, _ in of) / sum(d for _, d in of) for of in ratios]))
        found.append(row)
    return np.array(found)


@pytest.mark.parametrize("proxy", [RANK, BITS])
def test_the_mean_over_draws_is_that_over_all_subsets(proxy):
    made = study(corpora=6, noise=2)
    rows = counts_of(made)["solution_counts"].filter(
        statistic=proxy.statistic, reference=TRUTH, pick="random", score="mean"
    )
    names = [f"s{m:02}" for m in range(4)]
    for number in (1, 2, 3, 4):
        subsets = list(combinations(names, number))
        accuracies = [
            np.mean([loop_decision_accuracy(row, range(6)) for row in scores_by(made, {"dates": a, "sums": b}, proxy)])
            for a, b in product(subsets, subsets)
        ]
        (found,) = rows.filter(number=number).iter_rows(named=True)
        assert found["decision_accuracy"] == pytest.approx(np.mean(accuracies), abs=0.02 if number < 4 else 1e-12)
        assert min(accuracies) - 1e-12 <= found["draws_low"] <= found["draws_high"] <= max(accuracies) + 1e-12
    assert found["draws_low"] == found["draws_high"] == found["decision_accuracy"]


def test_with_all_solutions_the_interval_is_the_bootstrap_over_corpora():
    made = study(noise=2)
    row = (
        counts_of(made)["solution_counts"].filter(statistic="expert_rank", reference=TRUTH, number=4).row(0, named=True)
    )
    every = dict.fromkeys(("dates", "sums"), [f"s{m:02}" for m in range(4)])
    weights = bootstrap.bootstrap_weights(6, FAST.bootstrap_replicates, FAST.seed)
    samples = bootstrap_decision_accuracy(scores_by(made, every), np.arange(6.0), weights).mean(0)
    low, high = bootstrap.percentile_interval(samples, FAST.confidence)
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))


def test_all_solutions_agree_with_themselves_and_need_no_truth():
    made = study(noise=3, corpora=9)
    with_truth, without = (counts_of(made, known)["solution_counts"] for known in (True, False))
    assert set(without["reference"]) == {ALL} and set(with_truth["reference"]) == {TRUTH, ALL}
    assert without.equals(with_truth.filter(reference=ALL))
    assert (without.filter(number=4)["decision_accuracy"] == 1).all()
    assert without.filter(number=1)["decision_accuracy"].max() < 1


def test_judged_pairs_are_averaged_over_the_splits_that_judge_them():
    rng = np.random.default_rng(0)
    scores, order = rng.normal(size=(5, 3, 2, 7)), rng.normal(size=(2, 7))
    judged = rng.random((5, 7)) < 0.8
    curve, _ = Judge(order, [1, 2, 3], FAST).curve(scores, judged)
    for g in range(3):
        of_seeds = []
        for k in range(2):
            shares = []
            for i, j in combinations(range(7), 2):
                right = (order[k, i] - order[k, j]) * (scores[:, g, k, i] - scores[:, g, k, j]) > 0
                shares.append(right[judged[:, i] & judged[:, j]].mean())
            of_seeds.append(np.mean(shares))
        assert curve[g, 0] == pytest.approx(np.mean(of_seeds))


def test_halves_judge_every_pair_and_pick_on_the_rest():
    judged = halves(9, seed=0)
    assert (judged.sum(1) == 5).all()
    assert ((judged.astype(int).T @ judged) > 0).all()


def test_informative_solutions_help_where_others_tell_nothing():
    made = study(corpora=12, solutions=20, useless=14, noise=0.5)
    tables = counts_of(made)
    rows = tables["solution_counts"].filter(statistic="expert_rank", reference=TRUTH, number=4)
    for pick in ("information", "correlation"):
        row = rows.filter(pick=pick, score="mean").row(0, named=True)
        assert row["difference_low"] > 0
        assert row["difference"] == pytest.approx(
            row["decision_accuracy"] - rows.row(0, named=True)["decision_accuracy"]
        )
    filled = rows.filter(score="filled", pick="random").row(0, named=True)
    assert filled["difference_low"] > 0  # the model knows which of the random solutions to trust
    picks = tables["picked_solutions"].filter(statistic="expert_rank")
    assert set(picks.filter(pl.col("place") <= 6)["solution"]) == {f"s{m}" for m in range(14, 20)}
    for task in ("dates", "sums"):
        own = picks.filter(task=task)
        assert own["place"].to_list() == list(range(1, 21)) == sorted(own["random_place"])
        assert own["information"].is_sorted(descending=True)


@pytest.mark.parametrize("shape", [{"corpora": 2, "solutions": 1, "tasks": ["sums"], "seeds": 1}, {"corpora": 7}])
def test_few_corpora_and_a_single_solution_are_told_in_the_note(shape):
    rows = counts_of(study(**shape))["solution_counts"]
    assert rows["note"].str.contains(f"no picks are judged: {shape['corpora']} corpora").all()
    if shape["corpora"] < 5:
        assert rows["note"].str.contains("no interval: too few corpora").all()
        assert rows["low"].null_count() == rows["enough_low"].null_count() == len(rows)
        assert (rows["enough"] == 1).all()


def test_a_proxy_that_ties_all_corpora_orders_nothing_and_says_so():
    checkpoints, values, _ = study()
    tied = values.with_columns(value=pl.lit(3.0) * pl.col("denominator"))
    rows = counts_of((checkpoints, tied, None), with_truth=False)["solution_counts"]
    assert rows["note"].unique().to_list() == ["the reference orders nothing: all tie in it"]
    assert rows["decision_accuracy"].null_count() == rows["enough"].null_count() == len(rows)


def test_a_budget_without_values_is_left_out():
    checkpoints, values, truth = study()
    tables = solution_tables(checkpoints, values, truth, FAST, [Budget(name="x", size="20M", step=999)], [RANK])
    assert all(table.is_empty() for table in tables.values())


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=1, max_size=5), st.integers(0, 4))
def test_the_smallest_number_that_is_enough_is_found_by_a_loop(curves, level):
    numbers, curve = np.array([1, 2, 5, 9]), np.array(curves).T
    found = smallest_enough(numbers, curve, np.full(len(curves), level))
    for b, values in enumerate(curves):
        good = [n for i, n in enumerate(numbers) if all(value >= level for value in values[i:])]
        assert found[b] == min(good) if good else np.isnan(found[b])


@settings(max_examples=30)
@given(st.sampled_from(EXPONENTS), st.floats(0.4, 0.9), st.floats(-0.3, 0.3))
def test_a_curve_of_the_form_is_continued_exactly(exponent, level, slope):
    numbers = np.array([5, 6, 8, 10, 20, 30])
    curve = level - slope * numbers[:, None] ** -exponent
    assert extrapolated(numbers, curve, 60)[0] == pytest.approx(np.clip(level - slope * 60**-exponent, 0, 1))


@given(st.integers(1, 5000))
def test_numbers_rise_to_all(most):
    numbers = numbers_up_to(most)
    assert numbers[0] == 1 and numbers[-1] == most and numbers == sorted(set(numbers))
    assert all(b <= 2 * a for a, b in zip(numbers, numbers[1:]))


def test_models_are_ordered_within_tasks():
    values = of_solutions_of(noise=3)
    known = gather(proxies=proxies_from(values))
    table = model_count_table(known, values.lazy(), [Proxy(statistic="expert_rank", weighting="uniform")], FAST)
    truth = targets_of()
    for row in table.filter(pl.col("number") == 6, reference=TRUTH).iter_rows(named=True):
        own = values.filter(statistic=row["statistic"], tail=row["tail"])
        rho = []
        for task in TASKS:
            ratio = pl.col("value").sum() / pl.col("denominator").sum()
            scores = dict(own.filter(task=task).group_by("checkpoint").agg(ratio).iter_rows())
            true = dict(truth.filter(task=task).select("checkpoint", "value").iter_rows())
            rho.append(-rank_correlation([scores[m] for m in MODELS], [true[m] for m in MODELS]))
        assert row["spearman"] == pytest.approx(np.mean(rho)) and row["low"] < row["spearman"] < row["high"]
        assert row["draws_low"] == pytest.approx(row["draws_high"])
    few = table.filter(number=1, reference=ALL)
    assert (few["spearman"] < 1).all() and (table.filter(number=6, reference=ALL)["spearman"] > 1 - 1e-9).all()
    assert set(table["tail"]) == {"tokens", "bytes"} and (table["enough"] <= 6).all()
    level = table.filter(number=6)["spearman"] - WITHIN
    assert len(level) == 12


def test_models_without_a_truth_are_compared_with_all_solutions():
    values = of_solutions_of()
    known = gather(proxies=proxies_from(values))
    known = type(known)(**{**vars(known), "truth": np.full_like(known.truth, np.nan)})
    table = model_count_table(known, values.lazy(), [], SelectionOptions(bootstrap_replicates=100))
    assert set(table["reference"]) == {ALL} and set(table["statistic"]) == {"expert_cross_entropy", "bits_per_byte"}
