"""Folds of the model selection: what is held out does not leak."""

import logging
from itertools import combinations, product

import numpy as np
import polars as pl
import pytest
from proxycast.experiments.model_selection.fold_tables import folds_table
from proxycast.experiments.model_selection.folds import (
    FAMILY,
    RECIPE,
    leave_one_label_out,
    leave_two_tasks_out,
    score_folds,
)
from scipy import stats
from selection_study import CHEAP, CHECKPOINTS, MODELS, PROXIES, TASKS, gather, proxies_of, targets_of


@pytest.fixture(scope="module")
def known():
    return gather()


@pytest.fixture(scope="module")
def scored(known):
    """Folds of both splits, what all methods say in them, and what was chosen."""
    families, _ = leave_one_label_out(known, FAMILY)
    folds = [*leave_two_tasks_out(known), *families]
    return folds, *score_folds(known, folds, CHEAP)


def test_folds_hold_out_every_pair_of_tasks(known):
    folds = leave_two_tasks_out(known)
    assert [fold.held_out for fold in folds] == [f"{a}, {b}" for a, b in combinations(TASKS, 2)]
    assert [fold.number for fold in folds] == list(range(6)) and {fold.split for fold in folds} == {"two_tasks"}
    assert all(list(fold.test) == list(fold.train) == list(range(12)) for fold in folds)


def test_families_are_held_out_with_every_pair(known, caplog):
    folds, note = leave_one_label_out(known, FAMILY)
    assert note == "" and [fold.number for fold in folds] == list(range(18))
    assert folds[0].held_out == "algebra, sums / gpt2" and {fold.split for fold in folds} == {"family"}
    for fold in folds:
        family = fold.held_out.split(" / ")[1]
        assert [MODELS[m] for m in fold.test] == [model for model in MODELS if model.startswith(family)]
        assert sorted([*fold.test, *fold.train]) == list(range(12))
    small = CHECKPOINTS.with_columns(
        family=pl.when(pl.col("checkpoint").is_in(MODELS[:2])).then(pl.lit("pair")).otherwise("family")
    ).filter(pl.col("checkpoint") != "neox-3")
    with caplog.at_level(logging.WARNING):
        folds, note = leave_one_label_out(gather(small), FAMILY)
    assert {fold.held_out.split(" / ")[1] for fold in folds} == {"llama", "neox"}
    assert note == "never held out, itself or the rest too few: gpt2 (2 of 11 models), pair (2 of 11 models)"
    assert note in caplog.text
    one = CHECKPOINTS.with_columns(family=pl.lit("llama"))
    assert leave_one_label_out(gather(one), FAMILY)[0] == []


RECIPES = [*["none"] * 4, *["sft"] * 3, *["rl"] * 2, *[""] * 3]  # of MODELS


def test_recipes_are_held_out_with_every_pair_and_models_without_one_never():
    known = gather(CHECKPOINTS.with_columns(recipe=pl.Series(RECIPES)))
    folds, note = leave_one_label_out(known, RECIPE)
    assert note == "never held out, itself or the rest too few: rl (2 of 12 models)"
    expected = [
        (f"{a}, {b} / {recipe}", [n for n in range(12) if RECIPES[n] == recipe])
        for (a, b), recipe in product(combinations(TASKS, 2), ("none", "sft"))
    ]
    assert [(fold.held_out, fold.test.tolist()) for fold in folds] == expected
    told = [n for n in range(12) if RECIPES[n]]  # an unknown recipe may be the one that is held out
    assert all(sorted([*fold.test, *fold.train]) == told for fold in folds)
    assert {fold.split for fold in folds} == {"recipe"} and [fold.number for fold in folds] == list(range(12))
    alike = gather(CHECKPOINTS.with_columns(recipe=pl.lit("none")))
    assert leave_one_label_out(alike, RECIPE)[0] == []


def test_a_study_that_tells_no_recipe_has_no_such_fold(known):
    empty = gather(CHECKPOINTS.with_columns(recipe=pl.lit("")))
    assert leave_one_label_out(known, RECIPE) == leave_one_label_out(empty, RECIPE) == ([], "")


@pytest.mark.parametrize("split", ["two_tasks", "family"])
def test_predictions_do_not_see_what_is_held_out(known, scored, split):
    """Other truth for held-out tasks, of all models, and for held-out models, in all tasks, changes no prediction."""
    folds, scores, _ = scored
    at = next(n for n, fold in enumerate(folds) if fold.split == split) + 3
    fold = folds[at]
    rng = np.random.default_rng(3)
    hidden = set(TASKS[t] for t in fold.tasks)
    held = set() if split == "two_tasks" else {MODELS[m] for m in fold.test}
    other = targets_of().with_columns(
        value=pl.when(pl.col("task").is_in(hidden) | pl.col("checkpoint").is_in(held))
        .then(pl.Series(rng.random(48)))
        .otherwise("value")
    )
    assert (other["value"] != targets_of()["value"]).sum() >= 24
    found, _ = score_folds(gather(targets=other), [fold], CHEAP)
    assert {method.kind for method in found[0]} == {"scorer", "baseline", "oracle"}
    for method, values in found[0].items():
        if method.kind != "oracle":
            np.testing.assert_array_equal(values, scores[at][method], err_msg=method.name)
    # And it does see the rest.
    rest = targets_of().with_columns(value=pl.Series(rng.permutation(targets_of()["value"].to_numpy())))
    found, _ = score_folds(gather(targets=rest), [fold], CHEAP)
    assert all((values != scores[at][m]).any() for m, values in found[0].items() if m.name == "rank_svm_linear")


def permuted(targets, rng, alike):
    """Every task's values dealt out anew to the models; `alike`: to the same models in all tasks."""
    order = rng.permutation(len(MODELS))
    tasks = [
        task.with_columns(value=task["value"].gather(order if alike else rng.permutation(len(MODELS))))
        for task in targets.partition_by("task", maintain_order=True)
    ]
    return pl.concat(tasks)


@pytest.mark.parametrize("split, permutations", [("two_tasks", 7), ("family", 11)])
def test_with_permuted_labels_nothing_is_predicted(split, permutations):
    """The whole protocol, from tables to the table of folds.

    With families held out the labels may even agree between tasks: models cannot be recognised.
    """
    proxies, rng = proxies_of(tails=("tokens",)), np.random.default_rng(4)

    def protocol(targets):
        known = gather(proxies=proxies, targets=targets)
        folds = leave_two_tasks_out(known) if split == "two_tasks" else leave_one_label_out(known, FAMILY)[0][:3]
        table = folds_table(known, folds, score_folds(known, folds, CHEAP)[0]).filter(kind="scorer")
        return table.group_by("method").agg(pl.col("spearman").mean()).sort("method")["spearman"].to_numpy()

    found = [protocol(permuted(targets_of(), rng, alike=split == "family")) for _ in range(permutations)]
    error = np.std(found, axis=0, ddof=1) / np.sqrt(permutations)
    assert np.shape(found) == (permutations, 4) and (np.abs(np.mean(found, axis=0)) < 3 * error).all()
    assert (error < 0.15).all()
    assert (protocol(targets_of()) > 0.5).all()


def test_held_out_families_are_standardised_beside_all_models(known, scored):
    """The score of a fold is the scorer's, fitted on the rest, on all models of the held-out task."""
    folds, scores, _ = scored
    fold = folds[-1]
    rest = [t for t in range(4) if t not in fold.tasks]
    X = known.features["bytes"]
    rows = X[rest][:, fold.train].reshape(-1, 4), known.truth[rest][:, fold.train].ravel(), np.repeat(rest, 8)
    for name, scorer in CHEAP.items():
        wanted = scorer.fit(*rows).predict(X[fold.tasks[1]])[fold.test]
        found = next(v for m, v in scores[-1].items() if (m.name, m.tail) == (name, "bytes"))
        np.testing.assert_allclose(found[1], wanted, atol=1e-11)


def test_the_oracle_is_the_best_proxy_in_hindsight(known, scored):
    folds, scores, _ = scored
    for fold, found in list(zip(folds, scores, strict=True))[::3]:
        for tail, X in known.features.items():
            by_proxy = [
                np.mean([stats.spearmanr(X[t, fold.test, p], known.truth[t, fold.test])[0] for t in fold.tasks])
                for p in range(len(PROXIES))
            ]
            oracle = next(v for m, v in found.items() if (m.kind, m.tail) == ("oracle", tail))
            rho = [stats.spearmanr(v, known.truth[t, fold.test])[0] for t, v in zip(fold.tasks, oracle)]
            assert np.mean(rho) == pytest.approx(np.max(np.abs(by_proxy)))
