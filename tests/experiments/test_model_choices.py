"""The tables of what choosing a model costs, against loops over folds and tasks."""

import numpy as np
import polars as pl
import pytest
from proxycast.config.experiments.selection_options import ModelSelectionOptions
from proxycast.config.study import Proxy
from proxycast.config.truth import Target
from proxycast.experiments.choices import choice_figures, decision_figures
from proxycast.experiments.choosing.model_choices import Test as OfFold
from proxycast.experiments.choosing.model_choices import _figures, model_choice_tables
from proxycast.experiments.model_selection.model_tables import model_selection_tables
from proxycast.experiments.rank_statistics import decision_accuracy
from selection_study import CHECKPOINTS, FAST, TASKS, of_solutions_of, proxies_from, targets_of

TARGET = Target(metric="accuracy", table="truth.csv")
METHOD = ["method", "kind", "tail"]


@pytest.fixture(scope="module")
def given():
    of_solutions = of_solutions_of(tails=("tokens",))
    options = ModelSelectionOptions(scorers=["univariate"])
    named = [Proxy(statistic="top5_accuracy", weighting="entropy")]
    return model_selection_tables(
        CHECKPOINTS,
        targets_of(),
        proxies_from(of_solutions),
        TASKS,
        TARGET,
        FAST,
        options,
        of_solutions.lazy(),
        named,
    )


@pytest.fixture(scope="module")
def tables(given):
    return model_choice_tables(given["predictions"], given["ranking"], given["pairs"], 1, FAST)


def test_figures_are_means_over_tasks_then_folds(given, tables):
    for row in tables["choices"].iter_rows(named=True):
        own = given["predictions"].filter(**{name: row[name] for name in ("split", *METHOD)})
        folds = {}
        for (fold, _), test in own.group_by("fold", "task", maintain_order=True):
            truth, scores = test["truth"].to_numpy(), test["score"].to_numpy()[None]
            figures = {name: values.item() for name, values in choice_figures(scores, truth).items()}
            figures["decision_accuracy"] = decision_accuracy(scores, truth).item()
            figures["regret_share"] = figures["regret"] / (truth.max() - truth.mean()) if np.ptp(truth) else np.nan
            folds.setdefault(fold, []).append(figures)
        assert row["folds"] == len(folds)
        for name in figures:
            means = [np.nanmean([task[name] for task in tasks]) for tasks in folds.values()]
            assert row[name] == pytest.approx(np.nanmean(means)), name


def test_methods_are_those_of_the_summary_and_chance_is_the_yardstick(given, tables):
    keys = ["split", *METHOD]
    known = given["summary"].drop_nulls("spearman").select(keys)
    assert known.join(tables["choices"], on=keys, how="anti").is_empty()
    chance = tables["choices"].filter(method="chance")
    for name in ("regret", "regret_top", "recall", "ndcg"):
        np.testing.assert_allclose(chance[name], chance[f"random_{name}"])
    own = tables["choices"].filter(split="two_tasks").sort("decision_accuracy")
    best = own.filter(kind="baseline").row(-1, named=True)
    tail = f" ({best['tail']})" if best["tail"] else ""
    assert set(own["best_baseline"]) == {best["method"] + tail}
    np.testing.assert_allclose(own["difference"], own["regret"] - best["regret"])


def test_where_less_is_better_the_order_of_the_truth_turns_round(given):
    errors = given["predictions"].with_columns(truth=1 - pl.col("truth"))
    turned = model_choice_tables(errors, given["ranking"], given["pairs"], -1, FAST)["choices"]
    straight = model_choice_tables(given["predictions"], given["ranking"], given["pairs"], 1, FAST)["choices"]
    for name in ("regret", "recall", "ndcg", "regret_high", "difference_low"):
        np.testing.assert_allclose(turned[name].to_numpy(), straight[name].to_numpy(), atol=1e-9)


def test_decisions_are_of_methods_that_learn_nothing(given, tables):
    rows = tables["decisions"]
    assert "univariate" not in set(rows["method"]) and "top5_accuracy/entropy" in set(rows["method"])
    key = dict(zip(METHOD, rows.select(METHOD).row(0)))
    ranking = given["ranking"].filter(task="all", **key).sort("model")
    place = {model: n for n, model in enumerate(ranking["model"])}
    signs = np.zeros((12, 12))
    told = given["pairs"].filter(task="all", **key).filter("told_apart")
    for better, worse in told.select("better", "worse").iter_rows():
        signs[place[better], place[worse]], signs[place[worse], place[better]] = 1, -1
    expected = decision_figures(signs[np.triu_indices(12, 1)][None], ranking["truth"].to_numpy())
    for name, values in expected.items():
        assert rows[name][0] == pytest.approx(values.item())


def test_margins_are_of_the_split_in_which_every_model_is_tested(given, tables):
    rows = tables["margins"]
    assert set(rows["split"]) == {"two_tasks"} and set(rows["unit"]) == {"spread"}
    truth = given["predictions"].filter(split="two_tasks", method="bits_per_byte")
    pairs = 0
    for _, test in truth.group_by("fold", "task"):
        i, j = np.triu_indices(12, 1)
        values = test["truth"].to_numpy()
        pairs += int((values[i] != values[j]).sum())
    assert rows.filter(method="bits_per_byte")["pairs"].sum() == pairs


def test_without_anything_told_apart_the_tables_are_there_and_empty(given):
    ranking, pairs = given["ranking"].clear(), given["pairs"].clear()
    family = given["predictions"].filter(split="family")
    tables = model_choice_tables(family, ranking, pairs, 1, FAST)
    whole = model_choice_tables(given["predictions"], given["ranking"], given["pairs"], 1, FAST)
    assert tables["decisions"].is_empty() and tables["margins"].is_empty() and len(tables["choices"])
    for name, table in tables.items():
        assert table.schema == whole[name].schema


def test_scores_that_differ_by_the_order_of_a_sum_tie():
    test = OfFold(0, np.arange(3), np.array([[0.1 + 0.2, 0.3, 0.1]]), np.array([1.0, 2.0, 0.0]))
    figures = _figures(test, np.ones((1, 3)))
    assert figures["regret"].item() == 0.5 and figures["decision_accuracy"].item() == pytest.approx(2.5 / 3)
