"""What a study knows of its models: every value in its place, with its sign, and bad input."""

import logging
import subprocess
import sys
from itertools import product
from typing import get_args

import numpy as np
import polars as pl
import pytest
from proxycast.config.experiments.selection_options import ModelSelectionOptions, ScorerName
from proxycast.config.truth import Target
from proxycast.experiments.model_selection.fold_tables import folds_table, method_summary, proxies_table
from proxycast.experiments.model_selection.folds import leave_two_tasks_out, score_folds
from proxycast.experiments.model_selection.known_models import Method, known_models
from proxycast.experiments.model_selection.model_tables import judged_tables
from proxycast.experiments.model_selection.scorers import SCORERS, Univariate
from proxycast.experiments.model_selection.task_truth import task_truth_table
from proxycast.options import InputError
from proxycast.proxy_formulas import STATISTICS
from proxycast.solutions.rows import GENERIC_TEXT
from pydantic import ValidationError
from selection_study import (
    CHEAP,
    CHECKPOINTS,
    FAST,
    MODELS,
    PROXIES,
    TASKS,
    constant,
    gather,
    proxies_of,
    targets_of,
    without,
)


@pytest.fixture(scope="module")
def known():
    return gather()


def test_options_name_every_scorer():
    assert set(get_args(ScorerName)) == set(ModelSelectionOptions().scorers) == set(SCORERS)
    assert ModelSelectionOptions().numbers == (10, 30, 100) and ModelSelectionOptions().draws == 5
    for wrong in ({"scorers": []}, {"scorers": ["best"]}, {"numbers": [0]}, {"draws": 0}, {"other": 1}):
        with pytest.raises(ValidationError):
            ModelSelectionOptions(**wrong)


def test_what_the_plan_imports_is_light():
    heavy = "{'sklearn', 'scipy', 'torch', 'transformers'}"
    code = f"import sys, proxycast.experiments.model_selection.known_models; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


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


def test_losses_at_a_fitted_temperature_are_baselines_of_both_tails():
    """Of generic text too they have rows, which are no baseline."""
    names = {"bits_per_byte": "tempered_bits_per_byte", "expert_cross_entropy": "tempered_cross_entropy"}
    tempered = proxies_of().filter(pl.col("statistic").is_in(list(names)), weighting="none")
    tempered = tempered.with_columns(pl.col("statistic").replace(names), pl.col("value") / 2)
    own, found = gather().baselines, gather(proxies=pl.concat([proxies_of(), tempered])).baselines
    added = {(method.name, method.tail) for method in found.keys() - own.keys()}
    assert added == {(name, tail) for name in names.values() for tail in ("tokens", "bytes")}
    for name, plain in ((new, old) for old, new in names.items()):
        values = found[Method(name, "baseline", "bytes")]
        np.testing.assert_array_equal(values, own[Method(plain, "baseline", "bytes")] / 2)


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
    table = method_summary(known, folds, score_folds(known, folds, {"univariate": Univariate()})[0], FAST)
    assert not set(known.left_out) & set(known.baselines)
    last = table.tail(3)
    assert set(last["method"]) == {"training_compute", "parameters", "bits_per_byte"}
    assert last["spearman"].null_count() == last["best_baseline"].null_count() == 3 and last["folds"].sum() == 0
    assert last["note"].str.starts_with("left out: known for ").all()
    assert table.head(-3)["spearman"].null_count() == 0


def test_a_model_is_the_last_checkpoint_of_its_run():
    early = CHECKPOINTS.with_columns(checkpoint=pl.col("checkpoint") + "-early", step=pl.lit(3, pl.Int64))
    assert gather(pl.concat([early, CHECKPOINTS])).models == gather().models


def test_too_few_tasks_or_models():
    with pytest.raises(InputError, match=r"found 2 with a truth \(algebra, sums\); .* at least 3 are needed to judge"):
        gather(tasks=TASKS[:2])
    three = CHECKPOINTS.with_columns(role=pl.when(pl.col("family") == "llama").then(pl.lit("proxy")).otherwise("role"))
    three = three.filter(pl.col("checkpoint").str.ends_with("-0") | (pl.col("checkpoint") == "gpt2-1"))
    with pytest.raises(InputError, match=r"role candidate with a truth \(gpt2-0, gpt2-1, neox-0\); at least 4"):
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
    summary = method_summary(known, folds, scores, FAST)
    assert (summary["folds"] == 6).all() and summary["spearman"].null_count() == 0
    of_proxies, truth = proxies_table(known, FAST), task_truth_table(known, {})
    assert of_proxies.filter(task="sums")["spearman"].null_count() == len(of_proxies.filter(task="sums"))
    assert of_proxies.filter(pl.col("task") != "sums")["spearman"].null_count() == 0
    assert truth.filter(task="sums")["reliability"].item() is None
    for frame in (table, summary, of_proxies, truth, chosen):
        assert not any(frame[name].is_nan().any() for name in frame.columns if frame[name].dtype.is_float())
    twice = constant(tied, 0.5, task="dates")
    with pytest.raises(InputError, match="accuracy orders the models in 2 of 4 tasks; all models tie in sums, dates;"):
        gather(targets=twice)


def of_others(values, higher=False) -> pl.DataFrame:
    """A statistic that others measured: `values` (tasks, models)."""
    rows = [
        (m, t, "loss", higher, float(values[i][j]), None)
        for (i, t), (j, m) in product(*map(enumerate, (TASKS, MODELS)))
    ]
    return pl.DataFrame(rows, ["checkpoint", "task", "statistic", "higher_is_better", "value", "n"], orient="row")


def test_statistics_of_others_are_features_and_baselines():
    values = np.random.default_rng(5).normal(size=(len(TASKS), len(MODELS)))
    order = [MODELS.index(name) for name in sorted(MODELS)]
    arguments = CHECKPOINTS, proxies_of(), targets_of(), TASKS, "accuracy"
    own, known = known_models(*arguments), known_models(*arguments, outside=of_others(values))
    assert known.proxies == [*own.proxies, ("loss", "none")]
    for tail in ("tokens", "bytes"):
        assert np.array_equal(known.features[tail][..., :-1], own.features[tail])
        assert np.array_equal(known.features[tail][..., -1], -values[:, order])
    assert np.array_equal(known.baselines[Method("loss", "baseline", "")], -values[:, order])
    assert known.baselines.keys() - own.baselines.keys() == {Method("loss", "baseline", "")}
    read = known.without_outside()
    assert read.proxies == own.proxies and np.array_equal(read.features["bytes"], own.features["bytes"])
    found = proxies_table(known, FAST)
    assert set(found.filter(statistic="loss").select("kind", "weighting", "tail").iter_rows()) == {
        ("baseline", "none", "")
    }
    alone = known_models(CHECKPOINTS, None, *arguments[2:], outside=of_others(values, higher=True))
    assert alone.proxies == [("loss", "none")] and np.array_equal(alone.features[""][..., 0], values[:, order])
    with pytest.raises(
        InputError, match="statistics.parquet .*: value of task dates, checkpoint llama-1, statistic loss is"
    ):
        known_models(*arguments, outside=without(of_others(values), checkpoint="llama-1", task="dates"))


def test_statistics_of_others_have_one_order_whichever_models_are_asked_for():
    """Scorers learn from models with a truth, and order others: a column must mean the same for both."""
    values = np.random.default_rng(6).normal(size=(len(TASKS), len(MODELS)))
    loss = of_others(values)
    size = loss.with_columns(statistic=pl.lit("size"))
    last = CHECKPOINTS["checkpoint"].to_list()[-1]
    of_last = pl.col("checkpoint") == last
    table = pl.concat([size.filter(of_last), loss.filter(of_last), loss.filter(~of_last), size.filter(~of_last)])
    orders = [
        known_models(checkpoints, None, None, TASKS, outside=table).proxies
        for checkpoints in (CHECKPOINTS, CHECKPOINTS.filter(~of_last))
    ]
    assert orders[0] == orders[1] == [("size", "none"), ("loss", "none")]


def test_statistics_of_others_change_nothing_of_the_comparison_of_writers():
    """Solutions of one writer, or fewer of them, say nothing of what others measured."""
    values = np.random.default_rng(6).normal(size=(len(TASKS), len(MODELS)))
    whole = {"writer": pl.lit("all"), "number": pl.lit(None, pl.Int64), "draw": pl.lit(0, pl.Int64)}
    subsets = proxies_of().filter(pl.col("weighting") != "none").with_columns(**whole)
    target, options = Target(metric="accuracy"), ModelSelectionOptions(scorers=["univariate"])
    arguments = CHECKPOINTS, proxies_of(), targets_of(), TASKS, "accuracy"
    rest = target, FAST, options, subsets, {}, 1
    own = judged_tables(known_models(*arguments), *rest)
    both = judged_tables(known_models(*arguments, outside=of_others(values)), *rest)
    assert both["writers"].equals(own["writers"]) and len(own["writers"])
    assert both["summary"].filter(method="loss")["kind"].to_list() == ["baseline"] * 2
    assert both["truth"].equals(own["truth"])
