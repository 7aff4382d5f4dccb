"""Model selection: tables in, folds that do not leak, and figures against scipy and loops."""

import logging
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from typing import get_args

import numpy as np
import polars as pl
import pytest
from proxycast.model_selection import (
    Method,
    ModelSelectionOptions,
    ScorerName,
    cheap_scorers,
    folds_table,
    leave_one_family_out,
    leave_two_tasks_out,
    mean_ceiling,
    measured,
    predictions_table,
    proxies_table,
    score_folds,
    stability_table,
    summary_table,
    truth_table,
    writers_table,
)
from proxycast.options import InputError
from proxycast.proxies import STATISTICS
from proxycast.ranking import SelectionOptions, bootstrap_weights
from proxycast.scorers import SCORERS, RankSVMLinear, RankSVMRBF, Sparse3, Univariate
from proxycast.solutions import GENERIC_TEXT
from pydantic import ValidationError
from scipy import stats

FAST = SelectionOptions(bootstrap_replicates=100)
TASKS = ["algebra", "sums", "dates", "words"]
MODELS = [f"{family}-{n}" for family in ("gpt2", "llama", "neox") for n in range(4)]
PROXIES = [("cross_entropy", "uniform"), ("top5_accuracy", "entropy"), ("expert_rank", "uniform")]
PROXIES += [("margin", "token_frequency")]
CHEAP = {
    "univariate": Univariate(),
    "sparse3": Sparse3(alphas=[0.1]),
    "rank_svm_linear": RankSVMLinear(Cs=[1.0]),
    "rank_svm_rbf": RankSVMRBF(Cs=[10.0], gammas=[0.1]),
}
CHECKPOINTS = pl.DataFrame(
    [
        {
            "checkpoint": model,
            "run": model,
            "step": 9,
            "family": model.split("-")[0],
            "parameters": 10 ** (6 + n % 4),
            "flops": 1e18 * (n + 1),
            "role": "candidate",
        }
        for n, model in enumerate(MODELS)
    ]
)


def proxies_of(seed=0, noise=0.4, tails=("tokens", "bytes"), tasks=TASKS) -> pl.DataFrame:
    """Better models (those of a higher number in MODELS) have better values, up to noise."""
    rng, rows = np.random.default_rng(seed), []
    for tail in tails:
        for task in [*tasks, GENERIC_TEXT]:
            for n, model in enumerate(MODELS):
                for statistic, weighting in PROXIES if task != GENERIC_TEXT else []:
                    good = n / 4 + noise * rng.normal()
                    rows.append((model, task, tail, statistic, weighting, STATISTICS[statistic].sign * good))
                for statistic in ("expert_cross_entropy", "bits_per_byte"):
                    rows.append((model, task, tail, statistic, "none", -n / 4 - 2 * noise * rng.normal()))
    return pl.DataFrame(rows, ["checkpoint", "task", "tail", "statistic", "weighting", "value"], orient="row")


def targets_of(seed=1, noise=0.1, tasks=TASKS, problems=40) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for task in tasks:
        for n, model in enumerate(MODELS):
            share = np.clip(0.2 + n / 20 + noise * rng.normal(), 0, 1)
            rows.append((model, task, "accuracy", round(share * problems) / problems, problems))
    return pl.DataFrame(rows, ["checkpoint", "task", "metric", "value", "n"], orient="row")


def gather(checkpoints=CHECKPOINTS, proxies=None, targets=None, tasks=TASKS):
    proxies = proxies_of() if proxies is None else proxies
    return measured(checkpoints, proxies, targets_of() if targets is None else targets, tasks, "accuracy")


@pytest.fixture(scope="module")
def known():
    return gather()


@pytest.fixture(scope="module")
def judged(known):
    """Folds of both splits, what all methods say in them, and what was chosen."""
    families, _ = leave_one_family_out(known)
    folds = [*leave_two_tasks_out(known), *families]
    return folds, *score_folds(known, folds, CHEAP)


def constant(table, value, **where):
    """`table` with a constant value where its columns are so."""
    here = pl.all_horizontal(pl.col(name) == wanted for name, wanted in where.items())
    return table.with_columns(value=pl.when(here).then(pl.lit(value, pl.Float64)).otherwise("value"))


def rank_correlation(x, y):
    """Spearman's rho, several times as fast as scipy's, which computes a p-value."""
    return np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]


def without(table, **where):
    return table.filter(~pl.all_horizontal(pl.col(name) == wanted for name, wanted in where.items()))


# Options


def test_options_name_every_scorer():
    assert set(get_args(ScorerName)) == set(ModelSelectionOptions().scorers) == set(SCORERS)
    assert ModelSelectionOptions().numbers == (10, 30, 100) and ModelSelectionOptions().draws == 5
    for wrong in ({"scorers": []}, {"scorers": ["best"]}, {"numbers": [0]}, {"draws": 0}, {"other": 1}):
        with pytest.raises(ValidationError):
            ModelSelectionOptions(**wrong)


def test_the_module_is_light_to_import():
    heavy = "{'sklearn', 'scipy', 'torch', 'transformers'}"
    code = f"import sys, proxycast.model_selection; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Tables in


def test_every_value_has_its_place_and_sign(known):
    proxies, targets = proxies_of(), targets_of()
    assert known.models == MODELS and known.tasks == TASKS and list(known.features) == ["tokens", "bytes"]
    assert known.families == [model.split("-")[0] for model in MODELS] and set(known.proxies) == set(PROXIES)
    for row in proxies.filter(pl.col("weighting") != "none").iter_rows(named=True):
        at = TASKS.index(row["task"]), MODELS.index(row["checkpoint"])
        found = known.features[row["tail"]][(*at, known.proxies.index((row["statistic"], row["weighting"])))]
        assert found == STATISTICS[row["statistic"]].sign * row["value"]
    for row in targets.iter_rows(named=True):
        assert known.truth[TASKS.index(row["task"]), MODELS.index(row["checkpoint"])] == row["value"]
    assert (known.problems == 40).all()


def test_baselines_have_their_sign_and_generic_text_is_repeated(known):
    found = {(method.name, method.tail): values for method, values in known.baselines.items()}
    assert {method.kind for method in known.baselines} == {"baseline"} and not known.left_out
    texts = ["expert_cross_entropy", "bits_per_byte", "generic_cross_entropy", "generic_bits_per_byte"]
    wanted = {(name, tail) for name in texts for tail in ("tokens", "bytes")}
    assert set(found) == wanted | {(name, "") for name in ("parameters", "training_compute", "chance")}
    for row in proxies_of().filter(weighting="none").iter_rows(named=True):
        generic, m = row["task"] == GENERIC_TEXT, MODELS.index(row["checkpoint"])
        name = row["statistic"].replace("expert", "generic") if generic else row["statistic"]
        name = "generic_bits_per_byte" if generic and name == "bits_per_byte" else name
        for t, task in enumerate(TASKS):
            if generic or task == row["task"]:
                assert found[name, row["tail"]][t, m] == -row["value"]
    assert (found["parameters", ""] == CHECKPOINTS["parameters"].to_numpy()).all()
    assert (found["training_compute", ""] == CHECKPOINTS["flops"].to_numpy()).all()
    assert (found["chance", ""] == 0).all()


def test_the_order_of_rows_and_other_rows_do_not_matter(known):
    other = CHECKPOINTS.head(1).with_columns(checkpoint=pl.lit("other"), role=pl.lit("proxy"))
    more = proxies_of().filter(checkpoint=MODELS[0]).with_columns(checkpoint=pl.lit("other"))
    metric = targets_of().with_columns(metric=pl.lit("other"), value=pl.lit(0.5))
    shuffled = gather(
        pl.concat([CHECKPOINTS, other]).sample(fraction=1, shuffle=True, seed=1),
        pl.concat([proxies_of(), more]).sample(fraction=1, shuffle=True, seed=2),
        pl.concat([targets_of(), metric]).sample(fraction=1, shuffle=True, seed=3),
    )
    assert shuffled.models == known.models and shuffled.families == known.families
    np.testing.assert_array_equal(shuffled.truth, known.truth)
    for tail, features in known.features.items():
        np.testing.assert_array_equal(shuffled.features[tail], features)
    for method, values in known.baselines.items():
        np.testing.assert_array_equal(shuffled.baselines[method], values)


def test_rbridge_is_a_baseline_where_it_is_known_for_all():
    expert = proxies_of().filter(statistic="bits_per_byte", tail="tokens").filter(pl.col("task") != GENERIC_TEXT)
    rbridge = expert.with_columns(statistic=pl.lit("rbridge"))
    found = gather(proxies=pl.concat([proxies_of(), rbridge])).baselines
    by_name = {(method.name, method.tail): values for method, values in found.items()}
    np.testing.assert_array_equal(by_name["rbridge", "tokens"], by_name["bits_per_byte", "tokens"])
    assert ("rbridge", "bytes") not in by_name


def test_baselines_that_are_not_known_for_all_are_left_out_with_a_note(caplog):
    checkpoints = CHECKPOINTS.with_columns(flops=pl.when(pl.col("checkpoint") != MODELS[3]).then("flops"))
    checkpoints = checkpoints.with_columns(parameters=pl.lit(0))
    proxies = without(proxies_of(), task="dates", checkpoint=MODELS[5], tail="bytes", statistic="bits_per_byte")
    with caplog.at_level(logging.WARNING):
        known = gather(checkpoints, proxies)
    left_out = {(method.name, method.tail): why for method, why in known.left_out.items()}
    assert left_out == {
        ("training_compute", ""): "known for 11 of 12 models in every task",
        ("parameters", ""): "known for 0 of 12 models in every task",
        ("bits_per_byte", "bytes"): "known for 11 of 12 models in every task",
    }
    assert "training_compute is not among the baselines: known for 11 of 12 models" in caplog.text
    folds = leave_two_tasks_out(known)
    table = summary_table(known, folds, score_folds(known, folds, {"univariate": Univariate()})[0], FAST)
    assert not set(known.left_out) & set(known.baselines)
    last = table.tail(3)
    assert set(last["method"]) == {"training_compute", "parameters", "bits_per_byte"}
    assert last["spearman"].null_count() == last["best_baseline"].null_count() == 3 and last["folds"].sum() == 0
    assert last["note"].str.starts_with("left out: known for ").all()
    assert table.head(-3)["spearman"].null_count() == 0


def test_a_model_is_the_last_checkpoint_of_its_run():
    early = CHECKPOINTS.with_columns(checkpoint=pl.col("checkpoint") + "-early", step=pl.lit(3, pl.Int64))
    assert gather(pl.concat([early, CHECKPOINTS])).models == gather().models


# Bad input


def test_too_few_tasks_or_models():
    with pytest.raises(InputError, match=r"tasks: found 2 \(algebra, sums\); .* at least 3 are needed"):
        gather(tasks=TASKS[:2])
    three = CHECKPOINTS.with_columns(role=pl.when(pl.col("family") == "llama").then(pl.lit("proxy")).otherwise("role"))
    three = three.filter(pl.col("checkpoint").str.ends_with("-0") | (pl.col("checkpoint") == "gpt2-1"))
    with pytest.raises(InputError, match=r"found 3 models of the role candidate \(gpt2-0, gpt2-1, neox-0\); .* 4"):
        gather(three)


def test_a_missing_value_is_named():
    where = {"checkpoint": "llama-2", "task": "dates"}
    with pytest.raises(InputError, match="targets.parquet .*every candidate needs accuracy.* task dates, .*llama-2 is"):
        gather(targets=without(targets_of(), **where))
    with pytest.raises(InputError, match="targets.parquet: holds no accuracy of a candidate .*found metrics .'other'"):
        gather(targets=targets_of().with_columns(metric=pl.lit("other")))
    place = "proxies.parquet, tail bytes .*: value of task dates, checkpoint llama-2, statistic"
    with pytest.raises(InputError, match=f"{place} .* is missing"):
        gather(proxies=without(proxies_of(), **where, tail="bytes"))
    one = where | {"tail": "bytes", "statistic": "expert_rank"}
    with pytest.raises(InputError, match=f"{place} expert_rank, weighting uniform is missing"):
        gather(proxies=without(proxies_of(), **one))
    with pytest.raises(InputError, match=f"{place} expert_rank, weighting uniform is not finite"):
        gather(proxies=constant(proxies_of(), np.nan, **one))
    with pytest.raises(InputError, match=f"{place} expert_rank, weighting uniform occurs more than once"):
        gather(proxies=pl.concat([proxies_of(), proxies_of().filter(**one)]))
    with pytest.raises(InputError, match="proxies.parquet: holds no proxy of gpt2-0 in task algebra"):
        gather(proxies=proxies_of().filter(task=GENERIC_TEXT))
    with pytest.raises(InputError, match="value of task algebra, checkpoint llama-2, .* is missing"):
        gather(proxies=without(proxies_of(), checkpoint="llama-2"))


def test_tasks_on_which_all_tie(caplog):
    tied = constant(targets_of(), 0.25, task="sums")
    with caplog.at_level(logging.WARNING):
        known = gather(targets=tied)
    assert "all models have the same accuracy in task sums: nothing is learned from it" in caplog.text
    folds = leave_two_tasks_out(known)
    scores, chosen = score_folds(known, folds, CHEAP)
    table = folds_table(known, folds, scores)
    null = table.filter(pl.col("spearman").is_null())
    assert set(null["task"]) == {"sums"} and len(null) == len(table.filter(task="sums")) > 0
    assert null["note"].str.starts_with("all models tie in the truth").all()
    # As if the task were not there: folds with it hold out one task, the others do not learn from it.
    three = gather(tasks=[task for task in TASKS if task != "sums"])
    alone, _ = score_folds(three, leave_two_tasks_out(three), CHEAP)
    for fold, own in zip(leave_two_tasks_out(three), alone, strict=True):
        at = next(n for n, other in enumerate(folds) if other.held_out == fold.held_out)
        for method, values in own.items():
            np.testing.assert_array_equal(scores[at][method], values)
    summary = summary_table(known, folds, scores, FAST)
    assert (summary["folds"] == 6).all() and summary["spearman"].null_count() == 0
    of_proxies, truth = proxies_table(known, FAST), truth_table(known, {})
    assert of_proxies.filter(task="sums")["spearman"].null_count() == len(of_proxies.filter(task="sums"))
    assert of_proxies.filter(pl.col("task") != "sums")["spearman"].null_count() == 0
    assert truth.filter(task="sums")["reliability"].item() is None
    for frame in (table, summary, of_proxies, truth, chosen):
        assert not any(frame[name].is_nan().any() for name in frame.columns if frame[name].dtype.is_float())
    twice = constant(tied, 0.5, task="dates")
    with pytest.raises(InputError, match="accuracy orders the models in 2 of 4 tasks; all models tie in sums, dates;"):
        gather(targets=twice)


# Folds


def test_folds_hold_out_every_pair_of_tasks(known):
    folds = leave_two_tasks_out(known)
    assert [fold.held_out for fold in folds] == [f"{a}, {b}" for a, b in combinations(TASKS, 2)]
    assert [fold.number for fold in folds] == list(range(6)) and {fold.split for fold in folds} == {"two_tasks"}
    assert all(list(fold.judged) == list(fold.taught) == list(range(12)) for fold in folds)


def test_families_are_held_out_with_every_pair(known, caplog):
    folds, note = leave_one_family_out(known)
    assert note == "" and [fold.number for fold in folds] == list(range(18))
    assert folds[0].held_out == "algebra, sums / gpt2" and {fold.split for fold in folds} == {"family"}
    for fold in folds:
        family = fold.held_out.split(" / ")[1]
        assert [MODELS[m] for m in fold.judged] == [model for model in MODELS if model.startswith(family)]
        assert sorted([*fold.judged, *fold.taught]) == list(range(12))
    small = CHECKPOINTS.with_columns(
        family=pl.when(pl.col("checkpoint").is_in(MODELS[:2])).then(pl.lit("pair")).otherwise("family")
    ).filter(pl.col("checkpoint") != "neox-3")
    with caplog.at_level(logging.WARNING):
        folds, note = leave_one_family_out(gather(small))
    assert {fold.held_out.split(" / ")[1] for fold in folds} == {"llama", "neox"}
    assert note == "never held out, itself or the rest too few: gpt2 (2 of 11 models), pair (2 of 11 models)"
    assert note in caplog.text
    one = CHECKPOINTS.with_columns(family=pl.lit("llama"))
    assert leave_one_family_out(gather(one))[0] == []


@pytest.mark.parametrize("split", ["two_tasks", "family"])
def test_predictions_do_not_see_what_is_held_out(known, judged, split):
    """Other truth for held-out tasks, of all models, and for held-out models, in all tasks, changes no prediction."""
    folds, scores, _ = judged
    at = next(n for n, fold in enumerate(folds) if fold.split == split) + 3
    fold = folds[at]
    rng = np.random.default_rng(3)
    hidden = set(TASKS[t] for t in fold.tasks)
    held = set() if split == "two_tasks" else {MODELS[m] for m in fold.judged}
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
        folds = leave_two_tasks_out(known) if split == "two_tasks" else leave_one_family_out(known)[0][:3]
        table = folds_table(known, folds, score_folds(known, folds, CHEAP)[0]).filter(kind="scorer")
        return table.group_by("method").agg(pl.col("spearman").mean()).sort("method")["spearman"].to_numpy()

    found = [protocol(permuted(targets_of(), rng, alike=split == "family")) for _ in range(permutations)]
    error = np.std(found, axis=0, ddof=1) / np.sqrt(permutations)
    assert np.shape(found) == (permutations, 4) and (np.abs(np.mean(found, axis=0)) < 3 * error).all()
    assert (error < 0.15).all()
    assert (protocol(targets_of()) > 0.5).all()


def test_held_out_families_are_standardised_beside_all_models(known, judged):
    """The score of a fold is the scorer's, fitted on the rest, on all models of the held-out task."""
    folds, scores, _ = judged
    fold = folds[-1]
    rest = [t for t in range(4) if t not in fold.tasks]
    X = known.features["bytes"]
    rows = X[rest][:, fold.taught].reshape(-1, 4), known.truth[rest][:, fold.taught].ravel(), np.repeat(rest, 8)
    for name, scorer in CHEAP.items():
        wanted = scorer.fit(*rows).predict(X[fold.tasks[1]])[fold.judged]
        found = next(v for m, v in scores[-1].items() if (m.name, m.tail) == (name, "bytes"))
        np.testing.assert_allclose(found[1], wanted, atol=1e-11)


def test_the_oracle_is_the_best_proxy_in_hindsight(known, judged):
    folds, scores, _ = judged
    for fold, found in list(zip(folds, scores, strict=True))[::3]:
        for tail, X in known.features.items():
            by_proxy = [
                np.mean([stats.spearmanr(X[t, fold.judged, p], known.truth[t, fold.judged])[0] for t in fold.tasks])
                for p in range(len(PROXIES))
            ]
            oracle = next(v for m, v in found.items() if (m.kind, m.tail) == ("oracle", tail))
            rho = [stats.spearmanr(v, known.truth[t, fold.judged])[0] for t, v in zip(fold.tasks, oracle)]
            assert np.mean(rho) == pytest.approx(np.max(np.abs(by_proxy)))


# Tables out


def test_the_table_of_folds_holds_scipys_correlations(known, judged):
    folds, scores, _ = judged
    table = folds_table(known, folds, scores)
    assert len(table) == (6 + 18) * 2 * (4 * 2 + 8 + 3 + 2)
    rows = table.iter_rows(named=True)
    for fold, found in zip(folds, scores, strict=True):
        for place, task in enumerate(fold.tasks):
            for method, values in found.items():
                row = next(rows)
                assert (row["split"], row["fold"], row["held_out"]) == (fold.split, fold.number, fold.held_out)
                assert (row["task"], row["models"]) == (TASKS[task], len(fold.judged))
                assert (row["method"], row["kind"], row["tail"]) == method
                if np.ptp(values[place]) == 0:
                    assert (row["spearman"], row["note"]) == (0, "orders nothing, counts 0")
                else:
                    wanted = rank_correlation(values[place], known.truth[task, fold.judged])
                    assert row["spearman"] == pytest.approx(wanted) and row["note"] == ""
    assert (table.filter(method="chance")["spearman"] == 0).all()


@pytest.mark.parametrize("split", ["two_tasks", "family"])
def test_the_summary_is_that_of_resampled_models(known, judged, split):
    folds, scores, _ = judged
    chosen = [n for n, fold in enumerate(folds) if fold.split == split][1:4]
    folds, scores = [folds[n] for n in chosen], [scores[n] for n in chosen]
    table = summary_table(known, folds, scores, FAST, "a note")
    methods, n = list(scores[0]), len(MODELS)

    def mean(method, drawn):
        """Mean over folds of the mean over tasks, without those whose truth is one value in the sample."""
        by_fold = []
        for fold, found in zip(folds, scores, strict=True):
            repeated = [place for place, m in enumerate(fold.judged) for _ in range(np.sum(drawn == m))]
            rho = []
            for t, values in zip(fold.tasks, found[method], strict=True):
                x, y = values[repeated], known.truth[t, fold.judged][repeated]
                if len(set(y)) > 1:
                    rho.append(rank_correlation(x, y) if len(set(x)) > 1 else 0)
            if rho:
                by_fold.append(np.mean(rho))
        return np.mean(by_fold), np.std(by_fold)

    weights = bootstrap_weights(n, FAST.bootstrap_replicates, FAST.seed).astype(int)
    draws = [np.repeat(np.arange(n), w) for w in weights]
    point = {method: mean(method, np.arange(n)) for method in methods}
    best = max((m for m in methods if m.kind == "baseline"), key=lambda m: round(point[m][0], 9))
    some = [m for m in methods if m.name == "sparse3" and m.tail == "tokens"]
    samples = {m: np.array([mean(m, drawn)[0] for drawn in draws]) for m in {*some, best}}
    rows = {(row["method"], row["kind"], row["tail"]): row for row in table.iter_rows(named=True)}
    assert set(rows) == set(methods) and list(table["spearman"]) == sorted(table["spearman"], reverse=True)
    for method in methods:
        row = rows[method]
        assert (row["split"], row["folds"], row["note"]) == (split, 3, "a note")
        assert row["spearman"] == pytest.approx(point[method][0])
        assert row["fold_sd"] == pytest.approx(point[method][1] * np.sqrt(3 / 2))
        assert row["difference"] == pytest.approx(point[method][0] - point[best][0])
        assert row["best_baseline"] == (f"{best.name} ({best.tail})" if best.tail else best.name)
    for method in some:
        row = rows[method]
        assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(samples[method], [0.025, 0.975])))
        wanted = np.quantile(samples[method] - samples[best], [0.025, 0.975])
        assert (row["difference_low"], row["difference_high"]) == pytest.approx(tuple(wanted))
        assert row["low"] < row["spearman"] <= row["high"]
    assert rows[best]["difference"] == rows[best]["difference_low"] == rows[best]["difference_high"] == 0


def test_predictions_have_midranks(known, judged):
    folds, scores, _ = judged
    table = predictions_table(known, folds, scores)
    assert len(table) == (6 * 12 + 18 * 4) * 2 * 21
    some = table.filter(pl.col("fold") % 3 == 0)
    for keys, own in some.group_by("split", "fold", "task", "method", "tail"):
        np.testing.assert_array_equal(own["predicted_rank"], stats.rankdata(-own["score"].to_numpy()))
        np.testing.assert_array_equal(own["true_rank"], stats.rankdata(-own["truth"].to_numpy()))
        assert own["model"].n_unique() == len(own) == (12 if keys[0] == "two_tasks" else 4)
    truth = targets_of().select("task", pl.col("checkpoint").alias("model"), "value")
    assert (table.join(truth, on=["task", "model"]).select(pl.col("truth") - pl.col("value")).to_series() == 0).all()
    one = table.filter(split="family", fold=4, task=TASKS[2], method="sparse3", tail="bytes")
    assert one["family"].to_list() == ["llama"] * 4 and one["model"].to_list() == MODELS[4:8]
    found = next(v for m, v in scores[6 + 4].items() if (m.name, m.tail) == ("sparse3", "bytes"))
    assert one["score"].to_list() == found[1].tolist() and folds[6 + 4].tasks[1] == 2


def test_what_was_chosen_is_what_was_fitted(known, judged):
    folds, _, chosen = judged
    assert set(chosen["scorer"]) == {"univariate", "sparse3", "rank_svm_linear"}
    counts = chosen.group_by("split", "fold", "scorer", "tail").len()
    for name, number in (("univariate", 1), ("sparse3", 3), ("rank_svm_linear", 4)):  # there are four proxies
        assert (counts.filter(scorer=name)["len"] == number).all()
        assert len(counts.filter(scorer=name)) == 2 * len(folds)
    assert (chosen.filter(scorer="univariate")["coefficient"].abs() == 1).all()
    fold = folds[2]
    rest = [t for t in range(4) if t not in fold.tasks]
    rows = known.features["tokens"][rest].reshape(-1, 4), known.truth[rest].ravel(), np.repeat(rest, 12)
    for name in ("univariate", "sparse3", "rank_svm_linear"):
        scorer = CHEAP[name].fit(*rows)
        own = chosen.filter(split="two_tasks", fold=2, scorer=name, tail="tokens", held_out=fold.held_out)
        found = {(s, w): c for s, w, c in own.select("statistic", "weighting", "coefficient").iter_rows()}
        assert found == {known.proxies[p]: pytest.approx(scorer.coef_[p]) for p in scorer.chosen_}


def test_stability_by_hand(known):
    folds = leave_two_tasks_out(known)[:3]
    where = {"split": "two_tasks", "held_out": "", "scorer": "sparse3", "tail": "tokens", "weighting": "uniform"}
    picks = [(0, "a", 1.0), (0, "b", 2.0), (1, "a", -1.0), (1, "c", 1.0), (2, "a", -3.0), (2, "b", 1.0)]
    chosen = pl.DataFrame([{**where, "fold": f, "statistic": s, "coefficient": c} for f, s, c in picks])
    table = stability_table(chosen, folds)
    rows = {row["statistic"]: (row["share"], row["same_sign"]) for row in table.iter_rows(named=True)}
    assert rows == {"a": (1, pytest.approx(2 / 3)), "b": (pytest.approx(2 / 3), 1), "c": (pytest.approx(1 / 3), 1)}
    assert table["statistic"].to_list() == ["a", "b", "c"]
    assert table["jaccard"].to_list() == [pytest.approx((1 / 3 + 1 + 1 / 3) / 3)] * 3
    single = stability_table(chosen.filter(fold=0), folds[:1])
    assert single["jaccard"].null_count() == 2 and single["share"].to_list() == [1, 1]


def test_stability_counts_each_split_by_its_own_folds(judged):
    folds, _, chosen = judged
    table = stability_table(chosen, folds)
    assert table["split"].unique(maintain_order=True).to_list() == ["two_tasks", "family"]
    shares = table.filter(scorer="univariate").group_by("split", "tail").agg(pl.col("share").sum())
    assert shares["share"].to_list() == pytest.approx([1] * 4)
    assert (table.filter(scorer="rank_svm_linear")["share"] == 1).all()


def test_three_tasks_leave_one_to_learn_from():
    known = gather(tasks=TASKS[:3])
    folds = leave_two_tasks_out(known)
    table = folds_table(known, folds, score_folds(known, folds, CHEAP)[0])
    notes = dict(table.filter(kind="scorer").select("method", "note").unique().iter_rows())
    fallback = "one training task: settings are the middle of their grids"
    assert notes == {"univariate": ""} | dict.fromkeys(["sparse3", "rank_svm_linear", "rank_svm_rbf"], fallback)
    assert set(table.filter(pl.col("kind") != "scorer", method="parameters")["note"]) == {""}


def test_where_nothing_can_be_learned_scorers_count_zero():
    """Only models of one family differ: without it all others tie."""
    flat = targets_of().with_columns(
        value=pl.when(pl.col("checkpoint").str.starts_with("gpt2")).then("value").otherwise(0.9)
    )
    known = gather(targets=flat)
    folds, _ = leave_one_family_out(known)
    scores, chosen = score_folds(known, folds, CHEAP)
    table = folds_table(known, folds, scores)
    own = table.filter(pl.col("held_out").str.ends_with("gpt2"), kind="scorer")
    assert (own["spearman"] == 0).all() and len(own) == 6 * 2 * 8
    assert own["note"].str.contains("all training models tie in every training task").all()
    others = table.filter(~pl.col("held_out").str.ends_with("gpt2"))
    assert others["spearman"].null_count() == len(others)
    llama = [n for n, fold in enumerate(folds) if fold.held_out.endswith("llama")]
    summary = summary_table(known, [folds[n] for n in llama], [scores[n] for n in llama], FAST)
    assert summary["spearman"].null_count() == summary["low"].null_count() == len(summary)
    assert (summary["note"] == "all models tie in the truth").all() and (summary["folds"] == 0).all()
    assert set(chosen["held_out"].str.split(" / ").list.last()) == {"llama", "neox"}


def test_writers_and_numbers_are_compared_with_all_solutions(known):
    expert = proxies_of().filter(pl.col("weighting") != "none", tail="tokens").with_columns(draw=pl.lit(0, pl.Int64))
    rng = np.random.default_rng(6)
    noisy = expert.with_columns(value=pl.col("value") + pl.Series(2 * rng.normal(size=len(expert))))
    subsets = pl.concat(
        [
            expert.with_columns(writer=pl.lit("all"), number=pl.lit(None, pl.Int64)),
            noisy.with_columns(writer=pl.lit("kimi"), number=pl.lit(10, pl.Int64)),
        ]
    )
    extra = subsets.with_columns(task=pl.lit("other"))
    folds = leave_two_tasks_out(known)
    table = writers_table(known, pl.concat([subsets, extra]), folds, cheap_scorers())
    assert table.select("writer", "number", "draw").unique(maintain_order=True).rows() == [
        ("all", None, 0),
        ("kimi", 10, 0),
    ]
    methods = ["univariate", "rank_svm_linear", "cross_entropy/uniform"]
    assert table["method"].to_list() == methods * 2
    assert table.head(3)["agreement"].to_list() == pytest.approx([1, 1, 1])
    scores, _ = score_folds(known, folds, {"univariate": Univariate(), "rank_svm_linear": RankSVMLinear(Cs=[1.0])})
    whole = folds_table(known, folds, scores).filter(tail="tokens").group_by("method").agg(pl.col("spearman").mean())
    whole = dict(whole.iter_rows())
    assert table["spearman"][:2].to_list() == pytest.approx([whole[name] for name in methods[:2]])
    # The fixed proxy learns nothing: every task stands in as many folds as any other.
    plain, other = (
        [-rows.filter(task=task, statistic="cross_entropy").sort("checkpoint")["value"].to_numpy() for task in TASKS]
        for rows in (expert, noisy)
    )
    agreement = np.mean([stats.spearmanr(a, b).statistic for a, b in zip(plain, other)])
    accuracy = np.mean([stats.spearmanr(b, truth).statistic for b, truth in zip(other, known.truth)])
    last = table.row(-1, named=True)
    assert (last["spearman"], last["agreement"]) == pytest.approx((accuracy, agreement))
    assert agreement < 0.9 and (table.tail(3)["agreement"] < 1).all()
    with pytest.raises(InputError, match="subsets: writer kimi, 10 problems, draw 0 .* neox-1, .* is missing"):
        lacking = subsets.filter((pl.col("checkpoint") != "neox-1") | (pl.col("writer") == "all"))
        writers_table(known, lacking, folds, cheap_scorers())


def test_single_proxies_are_judged_with_their_own_sign(known):
    table = proxies_table(known, FAST)
    assert len(table) == 5 * (2 * 4 + 8 + 3)
    assert table["task"].unique(maintain_order=True).to_list() == ["all", *TASKS]
    assert set(table.filter(kind="proxy", depends_on_candidate=True)["weighting"]) == {"entropy"}
    for row in table.filter(kind="proxy").iter_rows(named=True):
        column = known.features[row["tail"]][..., known.proxies.index((row["statistic"], row["weighting"]))]
        rho = [stats.spearmanr(x, y).statistic for x, y in zip(column, known.truth)]
        wanted = np.mean(rho) if row["task"] == "all" else rho[TASKS.index(row["task"])]
        assert row["spearman"] == pytest.approx(wanted) and row["low"] < row["spearman"] <= row["high"]
        assert row["models"] == 12
    baselines = {(row["statistic"], row["tail"]) for row in table.filter(weighting="none").iter_rows(named=True)}
    assert baselines == {(method.name, method.tail) for method in known.baselines}


# Truth


def test_the_truths_figures_by_hand(known):
    table = truth_table(known, {"algebra": 0.25, "sums": 0.2})
    assert table["task"].to_list() == [*TASKS, "all"] and (table["models"] == 12).all()
    for t, row in enumerate(table.iter_rows(named=True)):
        p = known.truth.mean(0) if row["task"] == "all" else known.truth[t]
        noise = known.truth * (1 - known.truth) / 39
        noise = noise.sum(0) / 16 if row["task"] == "all" else noise[t]
        found = [row[name] for name in ("lowest", "highest", "mean", "sd")]
        assert found == pytest.approx([p.min(), p.max(), p.mean(), p.std(ddof=1)])
        assert row["reliability"] == pytest.approx(1 - noise.mean() / p.var(ddof=1))
        assert row["ceiling"] == pytest.approx(np.sqrt(row["reliability"]))
    assert table["chance"].to_list() == [0.25, 0.2, None, None, None]
    assert truth_table(known, dict.fromkeys(TASKS, 0.5))["chance"].to_list() == [0.5] * 5


def test_reliability_is_the_squared_correlation_with_the_true_shares(known):
    """Many models, solved problems drawn from known shares: what is seen correlates with them at the ceiling."""
    rng = np.random.default_rng(7)
    shares = rng.uniform(0.2, 0.8, 4000)
    seen = rng.binomial(20, shares) / 20
    big = replace(known, truth=np.tile(seen, (4, 1)), problems=np.full((4, 4000), 20.0))
    row = truth_table(big, {}, FAST).row(0, named=True)
    assert row["reliability"] == pytest.approx(np.corrcoef(shares, seen)[0, 1] ** 2, abs=0.02)
    assert row["ceiling"] == pytest.approx(np.corrcoef(shares, seen)[0, 1], abs=0.02) and row["reliability"] < 0.85


def test_reliability_has_an_interval_and_a_verdict(known, caplog):
    """By hand from the samples of models; a truth of binomial noise alone, and one of few models."""
    row = truth_table(known, {}, FAST).row(0, named=True)
    p, samples = known.truth[0], []
    for counts in bootstrap_weights(12, FAST.bootstrap_replicates, FAST.seed).astype(int):
        drawn = np.repeat(p, counts)
        samples.append(max(-1, 1 - np.mean(drawn * (1 - drawn) / 39) / drawn.var(ddof=1)))
    assert (row["reliability_low"], row["reliability_high"]) == pytest.approx(
        tuple(np.quantile(samples, [0.025, 0.975]))
    )
    assert row["ceiling_low"] == pytest.approx(np.sqrt(max(0, row["reliability_low"])))
    assert row["verdict"] == "good" and 0.75 < row["reliability"] < 0.9 and row["note"] == "" and not caplog.messages
    chance = replace(known, truth=np.random.default_rng(3).binomial(40, 0.5, (4, 12)) / 40)
    table = truth_table(chance, {}, FAST)
    assert set(table["verdict"]) == {"noise"} and len(caplog.messages) == 5
    assert caplog.messages[0].startswith("The truth may be noise: task algebra has a reliability of ")
    few = replace(known, truth=known.truth[:, :4], problems=known.problems[:, :4])
    table = truth_table(few, {}, FAST)
    assert table["reliability_low"].null_count() == 5 and table["reliability"].null_count() == 0
    assert set(table["note"]) == {"reliability: no interval: too few models (4)"}
    assert mean_ceiling(table) == pytest.approx(table["ceiling"][:4].mean())


def test_an_unknown_number_of_problems_leaves_out_what_rests_on_it():
    for n in (pl.lit(None, pl.Int64), pl.when(pl.col("checkpoint") != "neox-1").then("n")):
        known = gather(targets=targets_of().with_columns(n=n))
        table = truth_table(known, {})
        assert table["reliability"][4] is None and mean_ceiling(table) is None
        unknown = table.filter(pl.col("reliability").is_null())
        assert set(unknown["note"]) == {"reliability unknown: the number of problems (n) is not given"}
        assert set(unknown["verdict"]) == {"unknown"}


def test_less_of_the_truth_may_be_better():
    """Scores, ranks and reliability are those of 1 less the error, which stands in the tables as it was given."""
    errors = targets_of().with_columns(value=(1 - pl.col("value")).round(6))
    known = measured(CHECKPOINTS, proxies_of(), errors, TASKS, "accuracy", sign=-1)
    other = gather(targets=errors.with_columns(value=-pl.col("value")))
    folds = leave_two_tasks_out(known)
    scorers = {"univariate": Univariate()}
    found, expected = (score_folds(of, folds, scorers) for of in (known, other))
    assert summary_table(known, folds, found[0], FAST).equals(summary_table(other, folds, expected[0], FAST))
    table, turned = predictions_table(known, folds, found[0]), predictions_table(other, folds, expected[0])
    assert table.drop("truth").equals(turned.drop("truth")) and (table["truth"] == -turned["truth"]).all()
    best = table.filter(true_rank=1).select("task", "model").unique(maintain_order=True).row(0, named=True)
    of_task = errors.filter(task=best["task"])
    assert of_task.filter(checkpoint=best["model"])["value"].item() == of_task["value"].min()
    truth, plain = truth_table(known, {}, FAST), truth_table(gather(), {}, FAST)
    assert truth["lowest"].to_list() == pytest.approx((1 - plain["highest"]).to_list())
    for name in ("reliability", "reliability_low", "ceiling"):
        assert truth[name].to_list() == pytest.approx(plain[name].to_list())


@pytest.mark.parametrize("models, told", [(4, "too few models (4)"), (12, "every sample of models gives the same")])
def test_models_in_their_true_order_are_not_certain(known, models, told, caplog):
    """Every sample of a perfect order is in order. The ceiling of a noisy truth lies below 1, and 1 is luck."""
    at = np.arange(models)
    few = replace(
        known,
        models=known.models[:models],
        truth=known.truth[:, at] + 0.001 * at,
        problems=known.problems[:, at],
        features={},
        baselines={
            Method("right", "baseline", ""): known.truth[:, at] + 0.001 * at,
            Method("noisy", "baseline", ""): np.random.default_rng(0).normal(size=(4, models)),
            Method("chance", "baseline", ""): np.zeros((4, models)),
        },
    )
    few = replace(few, baselines=few.baselines | {Method("also_right", "baseline", ""): 2 * few.truth})
    folds = leave_two_tasks_out(few)
    scores, _ = score_folds(few, folds, {})
    table = summary_table(few, folds, scores, FAST, ceiling=0.97)
    rows = {row["method"]: row for row in table.iter_rows(named=True)}
    for name in ("right", "also_right"):
        row = rows[name]
        assert row["spearman"] == 1 and row["low"] is row["high"] is None
        assert f"no interval: {told}" in row["note"] and "above the noise ceiling" in row["note"]
    assert rows["also_right"]["difference"] == 0 and rows["also_right"]["difference_low"] is None
    assert (rows["noisy"]["low"] is None) == (models == 4) and "ceiling" not in rows["noisy"]["note"]
    who = "right, also_right" if models == 12 else "noisy, chance"
    # Chance is certain by definition, where there are samples enough.
    assert (rows["chance"]["low"], rows["chance"]["high"]) == ((None, None) if models == 4 else (0, 0))
    assert any(message.startswith(f"two_tasks, {who}: no interval") for message in caplog.messages)
    alone = proxies_table(few, FAST).filter(statistic="right", task="all").row(0, named=True)
    assert alone["spearman"] == 1 and alone["low"] is None and told in alone["note"]


def test_reliability_is_unknown_for_what_is_no_share_of_several_problems():
    negative = gather(targets=targets_of().with_columns(value=-pl.col("value")))
    single = gather(targets=targets_of().with_columns(n=pl.lit(1, pl.Int64)))
    for known in (negative, single):
        table = truth_table(known, {})
        assert table["reliability"].null_count() == table["ceiling"].null_count() == 5
        assert table["sd"].null_count() == 0
        assert table["note"].str.starts_with("reliability unknown: ").all() and set(table["verdict"]) == {"unknown"}
