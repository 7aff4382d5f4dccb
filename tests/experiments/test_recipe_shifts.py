"""Shifts of statistics and of the truth by post-training: against loops over the tables, and scipy."""

import numpy as np
import polars as pl
import pytest
from post_trained_study import STATISTICS, TASKS, checkpoints_of, gather, measured_of
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.bootstrap import bootstrap_weights
from proxycast.experiments.model_selection.known_models import known_models
from proxycast.experiments.post_trained.recipe_shifts import means_table, recipe_shifts, shifts_table
from proxycast.proxy_formulas import SIGNS
from scipy.stats import spearmanr

RECIPES = ["none", "sft", "rl", "overtrained_strong"]
OPTIONS = SelectionOptions(bootstrap_replicates=100)
CHECKPOINTS = checkpoints_of(recipes=RECIPES)


@pytest.fixture(scope="module")
def shifts():
    return recipe_shifts(gather(CHECKPOINTS, tails=("tokens", "bytes")))


def measured():
    """checkpoint -> its corpus, family, recipe; (checkpoint, task, tail, statistic) -> value; the truth likewise."""
    proxies, targets = measured_of(CHECKPOINTS, tails=("tokens", "bytes"))
    values = {row[:4]: row[5] for row in proxies.iter_rows()}
    return values, {row[:2]: row[3] for row in targets.iter_rows()}


def test_a_shift_is_the_value_less_that_of_the_base(shifts):
    values, truth = measured()
    table = shifts_table(shifts)
    assert len(table) == 18 * (1 + len(TASKS)) * 2 * (len(STATISTICS) + 1)
    names = {row["run"]: row for row in CHECKPOINTS.iter_rows(named=True)}
    for row in table.sample(200, seed=0).iter_rows(named=True):
        model = names[row["model"]]
        base = f"{model['corpus']}-{model['size']}-seed0-step9"
        tasks = TASKS if row["task"] == "all" else [row["task"]]
        own = [
            (values[name, task, row["tail"], row["statistic"]], truth[name, task])
            for name in (base, model["checkpoint"])
            for task in tasks
        ]
        numbers = np.mean(np.reshape(own, (2, len(tasks), 2)), axis=1).T.ravel()  # base, model; their truths
        assert (row["recipe"], row["family"]) == (model["recipe"], model["family"])
        assert [row[name] for name in ("base_value", "value", "base_truth", "truth")] == pytest.approx(list(numbers))
        assert row["difference"] == pytest.approx(numbers[1] - numbers[0])
        assert row["truth_difference"] == pytest.approx(numbers[3] - numbers[2])


def places_of(values):
    """Twice the rank, of ties the mean one, less 1: the correlation is that of the ranks."""
    above = values[:, None] - values
    return (above > 0).sum(1) + (above >= 0).sum(1)


def test_means_are_over_bases_and_correlations_over_models(shifts):
    table, means = shifts_table(shifts), means_table(shifts, OPTIONS)
    assert means["recipe"].unique(maintain_order=True).to_list() == ["all", "overtrained_strong", "rl", "sft"]
    draws = bootstrap_weights(6, 100, OPTIONS.seed).astype(int)
    for row in means.filter(pl.col("task").is_in(["all", "sums"]), tail="tokens").iter_rows(named=True):
        own = table.filter(task=row["task"], tail="tokens", statistic=row["statistic"])
        own = own if row["recipe"] == "all" else own.filter(recipe=row["recipe"])
        by_base = own.group_by("base").agg(pl.col("difference", "truth_difference").mean()).sort("base")
        assert (row["models"], row["bases"]) == (len(own), 6)
        assert row["difference"] == pytest.approx(by_base["difference"].mean())
        drawn = [np.repeat(by_base["truth_difference"].to_numpy(), w).mean() for w in draws]
        assert [row["truth_low"], row["truth_high"]] == pytest.approx(list(np.quantile(drawn, [0.025, 0.975])))
        differences = SIGNS[row["statistic"]] * own["difference"].round(12).to_numpy()
        of_truth = own["truth_difference"].round(12).to_numpy()
        rho = spearmanr(differences, of_truth).statistic
        assert row["spearman"] == pytest.approx(rho)
        if abs(rho) > 1 - 1e-9:  # all samples may say the same, and then there is no interval
            continue
        places = {base: own.with_row_index().filter(base=base)["index"].to_list() for base in by_base["base"]}
        drawn = []
        for w in draws:
            at = [place for base, times in zip(by_base["base"], w) for place in places[base] * times]
            with np.errstate(invalid="ignore"):  # all may be equal in a sample
                drawn.append(np.corrcoef(*(places_of(values[at]) for values in (differences, of_truth)))[0, 1])
        assert [row["spearman_low"], row["spearman_high"]] == pytest.approx(list(np.nanquantile(drawn, [0.025, 0.975])))


def test_what_post_training_ruins_does_not_follow_the_truth(shifts):
    rows = {
        row["statistic"]: row
        for row in means_table(shifts, OPTIONS).filter(recipe="all", task="all", tail="tokens").iter_rows(named=True)
    }
    assert rows["margin"]["spearman_low"] > 0.6 > rows["cross_entropy"]["spearman"]
    assert rows["bits_per_byte"]["weighting"] == "none"


def test_a_truth_of_which_less_is_better_turns_the_correlation():
    proxies, targets = measured_of(CHECKPOINTS)
    errors = targets.with_columns(value=1 - pl.col("value"))
    known = known_models(CHECKPOINTS, proxies, errors, TASKS, "accuracy", sign=-1)
    own, other = (means_table(recipe_shifts(found), OPTIONS) for found in (known, gather(CHECKPOINTS)))
    assert own["spearman"].to_list() == pytest.approx(other["spearman"].to_list())
    assert own["truth_difference"].to_list() == pytest.approx((-other["truth_difference"]).to_list())


def test_models_without_one_base_have_no_shift(caplog):
    released = CHECKPOINTS.with_columns(corpus=pl.col("run"))  # two bases of each family
    shifts = recipe_shifts(gather(released))
    assert shifts.models == [] and "it has 2 models of the recipe none" in caplog.text
    assert shifts_table(shifts).is_empty() and means_table(shifts, OPTIONS).is_empty()
    one = recipe_shifts(gather(released.filter(pl.col("base") < 3)))
    assert set(one.bases) == {"llama", "gpt2", "gpt_neox"} and len(one.models) == 9
    row = means_table(one, OPTIONS).filter(recipe="rl", task="all", statistic="margin").row(0, named=True)
    assert row["low"] is None and row["note"] == "no interval: too few bases (3)" and row["spearman"] is not None
