"""The tables of what choosing a corpus costs, against the table of decision accuracies and against loops."""

import numpy as np
import polars as pl
import pytest
from choice_study import BUDGETS, FAST, PROXIES, TARGET, TASKS, choice_tables, study
from polars.testing import assert_frame_equal
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.truth import Target
from proxycast.experiments.candidate_order import ResampledScores, pair_table
from proxycast.experiments.choices import choice_figures
from proxycast.experiments.choosing.choice_rows import ELSEWHERE
from proxycast.experiments.data_selection import corpus_scores, corpus_truth
from proxycast.experiments.data_selection.ranking import decision_accuracy_table
from proxycast.options import InputError

KEY = ["statistic", "weighting", "size", "step", "seed"]


@pytest.fixture(scope="module")
def made():
    return study()


@pytest.fixture(scope="module")
def tables(made):
    return choice_tables(made)


@pytest.fixture(scope="module")
def predicted(made):
    checkpoints, proxies, targets = made
    signs = corpus_scores.metric_signs(targets, TARGET)
    return corpus_scores.predictions(checkpoints, proxies, targets, TASKS, signs)


def truth_of(made):
    checkpoints, _, targets = made
    truth = corpus_truth.oriented(corpus_truth.truth_by_seed(checkpoints, targets, "accuracy"), 1)
    return truth, truth.group_by("corpus").agg(pl.col("value").mean()).sort("corpus")


def test_accuracies_and_best_baselines_are_those_of_the_table_of_decision_accuracies(made, tables, predicted):
    expected = decision_accuracy_table(predicted, truth_of(made)[0], 6e13, FAST).filter(task="all")
    both = tables["choices"].join(expected, on=KEY, suffix="_expected")
    assert len(both) == len(tables["choices"]) == 2 * 5 * 11
    for name in ("decision_accuracy", "flops", "tokens", "compute_fraction", "corpora"):
        np.testing.assert_allclose(both[name], both[f"{name}_expected"])
    assert both["best_baseline"].equals(both["best_baseline_expected"])
    assert both["kind"].equals(both["kind_expected"])


def test_regrets_and_picks_by_loop(made, tables, predicted):
    of_corpus = dict(truth_of(made)[1].iter_rows())
    best = max(of_corpus, key=of_corpus.get)
    for row in tables["choices"].filter(seed="mean", kind="proxy").iter_rows(named=True):
        where = {name: row[name] for name in ("statistic", "weighting", "size", "step")}
        scores = predicted.filter(**where).group_by("corpus").agg(pl.col("score").mean())
        order = scores.sort("score", descending=True)["corpus"].to_list()
        assert (row["best"], row["picked"]) == (best, order[0])
        assert row["regret"] == pytest.approx(of_corpus[best] - of_corpus[order[0]], abs=1e-9)
        assert row["regret_top"] == pytest.approx(of_corpus[best] - max(of_corpus[c] for c in order[:3]), abs=1e-9)
        top = sorted(of_corpus, key=of_corpus.get)[-3:]
        assert row["recall"] == pytest.approx(len(set(top) & set(order[:3])) / 3)


def test_single_is_the_mean_over_the_seeds(made, tables, predicted):
    truth = truth_of(made)[1]["value"].to_numpy()
    for row in tables["choices"].filter(seed="single", statistic="cross_entropy").iter_rows(named=True):
        own = predicted.filter(statistic="cross_entropy", size=row["size"], step=row["step"])
        by_seed = own.group_by("seed", "corpus").agg(pl.col("score").mean()).sort("seed", "corpus")
        found = choice_figures(by_seed["score"].to_numpy().reshape(2, -1), truth)
        for name, values in found.items():
            assert row[name] == pytest.approx(values.mean())


def test_chance_is_the_yardstick_and_the_best_baseline_differs_from_itself_by_nothing(tables):
    chance = tables["choices"].filter(statistic="chance")
    for name in ("regret", "regret_top", "recall", "ndcg"):
        np.testing.assert_allclose(chance[name], chance[f"random_{name}"])
    own = tables["choices"].filter(pl.col("statistic") == pl.col("best_baseline"))
    assert own["difference"].abs().max() == 0
    # The column says nothing of the weighting, but a baseline has none.
    assert set(own["weighting"]) == {"none"}


def test_intervals_are_at_the_budgets_and_the_ends_of_training(tables):
    rows = tables["choices"].filter(statistic="chance", seed="mean").sort("size", "step")
    without = rows.filter(note=ELSEWHERE).select("size", "step").rows()
    assert without == [("10M", 2), ("40M", 4)]
    assert rows.filter(pl.col("note") != ELSEWHERE)["ndcg_low"].null_count() == 0
    assert rows.filter(note=ELSEWHERE)["ndcg_low"].null_count() == 2
    for name in ("decisions", "margins"):
        found = set(tables[name].select("size", "step").iter_rows())
        assert found == {(budget.size, budget.step) for budget in BUDGETS}


def test_few_corpora_give_no_interval_and_one_seed_no_noise(caplog):
    with caplog.at_level("INFO"):
        tables = choice_tables(study(corpora=4, seeds=1))
    assert (
        caplog.messages.count("size 10M, step 4 has one seed: nothing is known of its noise, in decisions and margins")
        == 1
    )
    told = tables["choices"].filter(pl.col("note") != ELSEWHERE)
    assert set(told["note"]) == {"no interval: too few corpora (4)"}
    assert told.select("regret_low", "recall_high", "difference_low").null_count().row(0)[0] == len(told)
    assert set(tables["decisions"]["rule"]) == {"every pair"}
    assert set(tables["margins"]["unit"]) == {"spread"}
    mean, single = (tables["choices"].filter(seed=seed).drop("seed", "picked") for seed in ("mean", "single"))
    assert_frame_equal(mean, single)


def test_a_metric_of_which_less_is_better(made):
    loss = choice_tables(made, target=Target(size="1B", metric="loss", higher_is_better=False))
    higher = choice_tables(made)
    columns = ["regret", "regret_low", "regret_top", "recall", "ndcg", "random_regret"]
    # The loss is less the accuracy, before it was rounded.
    assert loss["choices"]["regret"].min() >= 0
    np.testing.assert_allclose(
        loss["choices"].filter(kind="proxy")["random_regret"],
        higher["choices"].filter(kind="proxy")["random_regret"],
        atol=0.01,
    )
    assert loss["choices"].select(columns).null_count().row(0)[0] == 0


def test_means_over_checkpoints_and_tasks_are_those_of_the_data_selection(made):
    checkpoints, proxies, targets = made
    two = choice_tables(made, SelectionOptions(bootstrap_replicates=100, last_checkpoints=2))["choices"]
    steps = checkpoints.select("checkpoint", "run", "step", "size", "corpus", "seed")
    rows = proxies.filter(pl.col("task").is_in(TASKS), statistic="top5_accuracy").join(steps, on="checkpoint")
    last = rows.filter(size="10M").filter(pl.col("step").is_in([4, 6]))
    scores = last.group_by("corpus").agg(pl.col("value").mean()).sort("corpus")["value"].to_numpy()
    expected = choice_figures(scores[None], truth_of(made)[1]["value"].to_numpy())
    row = two.filter(statistic="top5_accuracy", size="10M", step=6, seed="mean").row(0, named=True)
    for name, values in expected.items():
        assert row[name] == pytest.approx(values.item())


def test_what_lacks_a_task_is_left_out_and_what_lacks_a_corpus_is_named(made):
    checkpoints, proxies, targets = made
    without = proxies.filter(~((pl.col("statistic") == "margin") & (pl.col("task") == TASKS[0])))
    found = choice_tables((checkpoints, without, targets))["choices"]
    assert set(found.filter(kind="proxy")["statistic"]) == {s for s, _ in PROXIES} - {"margin"}
    gone = (pl.col("statistic") == "margin") & pl.col("checkpoint").str.starts_with("corpus3-10M-seed1-step4")
    with pytest.raises(InputError, match="size 10M, step 4: score of statistic margin.*corpus corpus3 is missing"):
        choice_tables((checkpoints, proxies.filter(~gone), targets))


def test_statistics_of_others_that_nobody_knows_are_judged_like_all(made):
    checkpoints, _, _ = made
    small = checkpoints.filter(role="proxy")
    rows = small.select("checkpoint", statistic=pl.lit("of_others"), weighting=pl.lit("none"), higher_is_better=True)
    good = small["corpus"].str.strip_prefix("corpus").cast(pl.Float64)
    outside = pl.concat(rows.with_columns(value=good, task=pl.lit(task)) for task in TASKS)
    found = choice_tables(made, outside=outside)["choices"].filter(statistic="of_others")
    assert len(found) == 10 and set(found["kind"]) == {"baseline"}


def test_pairs_told_apart_are_decisions(made):
    names = [f"corpus{n}" for n in range(7)]
    points = np.arange(7.0)
    samples = points + np.random.default_rng(0).normal(size=(200, 7))
    pairs = pair_table(names, ResampledScores(points, samples, True), 0.9)
    key = {"statistic": "cross_entropy", "weighting": "uniform", "size": "10M", "step": 4}
    pairs = pairs.with_columns(**{name: pl.lit(value) for name, value in key.items()})
    rows = choice_tables(made, pairs=pairs)["decisions"].filter(rule="told apart")
    assert rows.select(*key).rows() == [tuple(key.values())]
    truth = dict(truth_of(made)[1].iter_rows())
    told = [(b, w) for b, w in pairs.filter("told_apart").select("better", "worse").rows() if truth[b] != truth[w]]
    right = sum(truth[b] > truth[w] for b, w in told)
    assert rows["decided"].item() == pytest.approx(len(told) / rows["pairs"].item())
    assert rows["accuracy"].item() == pytest.approx(right / len(told))


def test_decisions_of_every_pair_are_the_decision_accuracy(tables):
    every = tables["decisions"].filter(rule="every pair")
    both = every.join(tables["choices"].filter(seed="mean"), on=["statistic", "weighting", "size", "step"])
    np.testing.assert_allclose(both["decision_accuracy"], both["decision_accuracy_right"])
    agree = tables["decisions"].filter(rule="seeds agree")
    assert (agree["decided"] <= every["decided"] + 1e-12).all()


def test_margins_of_all_bins_hold_every_pair(tables):
    decided = tables["decisions"].filter(rule="every pair", statistic="margin")["pairs"][0]
    rows = tables["margins"].filter(statistic="margin", size="10M")
    totals = dict(rows.group_by("seed", "unit").agg(pl.col("pairs").sum()).select("seed", "pairs").iter_rows())
    assert totals == {"mean": decided, "single": 2 * decided}
    assert set(rows["unit"]) == {"spread", "seed noise"}
    assert "chance" not in set(tables["margins"]["statistic"])


def test_a_slope_without_end_ends_the_gap_at_nothing():
    rows = choice_tables(study(corpora=6, noise=0.25))["margins"].filter(pl.col("slope").is_not_null())
    endless = rows.filter(pl.col("slope_high").is_null(), pl.col("slope_low").is_not_null())
    assert len(endless) and (endless["gap_85_low"] == 0).all()
    assert rows["slope_high"].drop_nulls().is_finite().all()
