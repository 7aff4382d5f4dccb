"""Methods among bases, post-trained models and models of one base, and claims about them: against scipy and loops."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from post_trained_study import TASKS, checkpoints_of, gather, measured_of
from proxycast.config.experiments.selection_options import Claim, ModelSelectionOptions, SelectionOptions
from proxycast.config.study import Study
from proxycast.config.truth import Target
from proxycast.experiments.bootstrap import bootstrap_weights
from proxycast.experiments.model_selection.folds import leave_two_tasks_out, score_folds
from proxycast.experiments.model_selection.known_models import Method
from proxycast.experiments.model_selection.model_tables import model_selection_tables
from proxycast.experiments.model_selection.scorers import RankSVMLinear, Univariate
from proxycast.experiments.post_trained.claim_limits import require_known_claim
from proxycast.experiments.post_trained.claim_verdicts import claims_table
from proxycast.experiments.post_trained.copies import without_copies
from proxycast.experiments.post_trained.populations import (
    judge_populations,
    mean_over_bases,
    models_by_base,
    populations_table,
    truth_of_bases,
)
from proxycast.experiments.post_trained.post_training_tables import OF_POST_TRAINING
from proxycast.options import InputError
from scipy.stats import spearmanr
from selection_study import rank_correlation

RECIPES = ["none", "sft", "rl", "overtrained_strong"]
OPTIONS = SelectionOptions(bootstrap_replicates=100)
SCORERS = {"univariate": Univariate(), "rank_svm_linear": RankSVMLinear(Cs=[1.0])}
MARGIN = ("margin", "uniform")
BITS, LOSS = Method("bits_per_byte", "baseline", "tokens"), Method("expert_cross_entropy", "baseline", "tokens")


@pytest.fixture(scope="module")
def known():
    return gather(checkpoints_of(recipes=RECIPES))


@pytest.fixture(scope="module")
def judged(known):
    folds = leave_two_tasks_out(known)
    scores, _ = score_folds(known, folds, SCORERS)
    return judge_populations(known, SCORERS, [MARGIN], OPTIONS, folds, scores)


@pytest.fixture(scope="module")
def table(judged):
    return populations_table(judged.values(), OPTIONS)


def members(known, population):
    recipes = np.array(known.recipes)
    return {"all": recipes != "", "bases": recipes == "none", "post_trained": recipes != "none"}[population]


@pytest.mark.parametrize("population, models", [("all", 24), ("bases", 6), ("post_trained", 18)])
def test_what_learns_nothing_has_the_mean_rho_of_the_population(known, table, population, models):
    here = members(known, population)
    for name, values in (
        ("bits_per_byte", known.baselines[BITS]),
        ("margin/uniform", known.features["tokens"][..., known.proxies.index(MARGIN)]),
    ):
        rho = [spearmanr(values[t, here], known.truth[t, here]).statistic for t in range(len(TASKS))]
        row = table.filter(population=population, method=name, tail="tokens").row(0, named=True)
        assert row["spearman"] == pytest.approx(np.mean(rho))  # every task is in as many folds
        assert (row["models"], row["bases"]) == (models, 6)


def test_within_a_base_is_the_mean_over_bases_and_everything_between_them_is_nothing(known, table):
    by_base = [np.flatnonzero(np.array(known.bases) == base) for base in dict.fromkeys(known.bases)]
    values = known.baselines[BITS]
    rho = [spearmanr(values[t, g], known.truth[t, g]).statistic for t in range(len(TASKS)) for g in by_base]
    row = table.filter(population="within_base", method="bits_per_byte", tail="tokens").row(0, named=True)
    assert row["spearman"] == pytest.approx(np.mean(rho)) and (row["models"], row["bases"]) == (24, 6)
    size = table.filter(population="within_base", method="parameters").row(0, named=True)
    assert size["spearman"] == 0  # all models of a base have the same
    assert table.filter(population="all", method="parameters")["spearman"].item() > 0.3
    own = table.filter(population="within_base", kind="oracle", tail="tokens")["spearman"].item()
    assert own >= table.filter(population="within_base", method="margin/uniform")["spearman"].item()


def test_scorers_learn_within_their_population(known, table):
    """Of the bases alone: as if the study had no other models."""
    alone = gather(checkpoints_of(recipes=RECIPES)).part(np.flatnonzero(members(known, "bases")))
    folds = leave_two_tasks_out(alone)
    scores, _ = score_folds(alone, folds, SCORERS)
    rho = [
        np.mean(
            [
                rank_correlation(found[Method(name, "scorer", "tokens")][place], alone.truth[task])
                for place, task in enumerate(fold.tasks)
            ]
        )
        for name in ("rank_svm_linear",)
        for fold, found in zip(folds, scores, strict=True)
    ]
    row = table.filter(population="bases", method="rank_svm_linear", tail="tokens")
    assert row["spearman"].item() == pytest.approx(np.mean(rho))
    # Within bases, by what was learned from all models.
    of_all = {
        fold.tasks: found
        for fold, found in zip(leave_two_tasks_out(known), score_folds(known, leave_two_tasks_out(known), SCORERS)[0])
    }
    groups = models_by_base(known)
    expected = [
        np.mean(
            [
                rank_correlation(
                    of_all[pair][Method("rank_svm_linear", "scorer", "tokens")][place][g], known.truth[t][g]
                )
                for place, t in enumerate(pair)
                for g in groups
            ]
        )
        for pair in combinations(range(len(TASKS)), 2)
    ]
    row = table.filter(population="within_base", method="rank_svm_linear", tail="tokens")
    assert row["spearman"].item() == pytest.approx(np.mean(expected))


def test_intervals_are_over_bases_with_draws_that_all_methods_share(known, judged, table):
    groups = models_by_base(known)
    rho = {
        method: np.array(
            [
                [spearmanr(known.baselines[method][t, g], known.truth[t, g]).statistic for g in groups]
                for t in range(len(TASKS))
            ]
        )
        for method in (BITS, LOSS)
    }
    draws = bootstrap_weights(6, 100, OPTIONS.seed)
    samples = {
        method: np.array([np.mean(np.repeat(own, w.astype(int), axis=1)) for w in draws]) for method, own in rho.items()
    }
    row = table.filter(population="within_base", method="bits_per_byte", tail="tokens").row(0, named=True)
    assert [row["low"], row["high"]] == pytest.approx(list(np.quantile(samples[BITS], [0.025, 0.975])))
    row = table.filter(population="within_base", method="expert_cross_entropy", tail="tokens").row(0, named=True)
    ends = np.quantile(samples[LOSS] - samples[BITS], [0.025, 0.975])
    assert [row["difference_low"], row["difference_high"]] == pytest.approx(list(ends))
    assert row["difference"] == pytest.approx(rho[LOSS].mean() - rho[BITS].mean())
    # Over all models a base is drawn with everything that was made from it.
    drawn = [np.concatenate([np.tile(g, int(n)) for g, n in zip(groups, w)]) for w in draws]
    values = known.baselines[BITS]
    means = [np.mean([spearmanr(values[t, d], known.truth[t, d]).statistic for t in range(len(TASKS))]) for d in drawn]
    row = table.filter(population="all", method="bits_per_byte", tail="tokens").row(0, named=True)
    assert [row["low"], row["high"]] == pytest.approx(list(np.quantile(means, [0.025, 0.975])))


def test_the_truth_of_the_base_is_a_baseline_except_among_bases(known, table):
    place = {base: n for n, base in enumerate(known.bases) if known.recipes[n] == "none"}
    values = truth_of_bases(known)
    for n, base in enumerate(known.bases):
        assert (values[:, n] == known.truth[:, place[base]]).all()
    here = members(known, "post_trained")
    rho = [spearmanr(values[t, here], known.truth[t, here]).statistic for t in range(len(TASKS))]
    row = table.filter(population="post_trained", method="base_truth")
    assert row["spearman"].item() == pytest.approx(np.mean(rho))
    assert set(table.filter(method="base_truth")["population"]) == {"all", "post_trained", "within_base"}
    twins = replace(known, bases=["one"] * len(known.bases))  # six models of the recipe none
    assert truth_of_bases(twins) is None and models_by_base(twins) == []
    unknown = replace(known, recipes=["" if recipe == "rl" else recipe for recipe in known.recipes])
    assert [len(group) for group in models_by_base(unknown)] == [len(group) - 1 for group in models_by_base(known)]


def test_bases_that_tie_and_bases_of_two_models_do_not_count(known):
    groups = models_by_base(known)
    flat = known.truth.copy()
    flat[:, groups[0]] = 0.5  # this base ties in every task
    changed = replace(known, truth=flat)
    folds = leave_two_tasks_out(changed)
    scores = [{BITS: known.baselines[BITS][np.ix_(fold.tasks, fold.test)]} for fold in folds]
    weights = np.array([[1.0, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0], [3, 2, 0, 0, 0, 1]])
    found = mean_over_bases(changed, folds, scores, groups, weights)[0]
    rho = np.array(
        [[spearmanr(known.baselines[BITS][t, g], flat[t, g]).statistic for g in groups[1:]] for t in range(4)]
    )
    assert found[0] == pytest.approx(rho.mean()) and np.isnan(found[1])
    assert found[2] == pytest.approx(((2 * rho[:, 0] + rho[:, 4]) / 3).mean())
    small = known.part(np.setdiff1d(np.arange(24), groups[0][:2]))
    assert [len(group) for group in models_by_base(small)] == [4] * 5


def test_post_training_that_ruins_the_loss_shows_after_it_and_not_before(table):
    rho = {
        (r["population"], r["method"]): r
        for r in table.filter(pl.col("tail").is_in(["tokens", ""])).iter_rows(named=True)
    }
    assert rho["bases", "bits_per_byte"]["spearman"] > 0.8 > 0.5 > rho["within_base", "bits_per_byte"]["spearman"]
    assert (
        rho["post_trained", "margin/uniform"]["verdict"] == rho["within_base", "margin/uniform"]["verdict"] == "better"
    )
    assert rho["bases", "margin/uniform"]["verdict"] == "not told apart"
    assert rho["all", "bits_per_byte"]["difference"] is rho["all", "chance"]["difference"] is None
    for population in ("all", "bases", "post_trained", "within_base"):
        assert table.filter(population=population)["spearman"].is_sorted(descending=True)


def test_released_models_have_the_base_of_their_family():
    rows = checkpoints_of(recipes=RECIPES).with_columns(corpus=pl.col("run"))
    assert gather(rows).bases == gather(rows).families
    assert {base.split(" ")[-1] for base in gather(checkpoints_of()).bases} == {"(llama)", "(gpt2)", "(gpt_neox)"}


CLAIM = Claim(
    methods=["rank_svm_linear", "margin/uniform", "parameters"],
    against=["bits_per_byte", "chance", "rbridge"],
    populations=["within_base", "bases"],
)


def test_verdicts_are_those_of_the_intervals(judged, known):
    table = claims_table(judged, CLAIM, {}, OPTIONS)
    assert [*dict.fromkeys(table["population"])] == ["within_base", "bases"]
    verdicts = {(r["population"], r["method"], r["baseline"]): r for r in table.iter_rows(named=True)}
    row = verdicts["within_base", "margin/uniform", "bits_per_byte"]
    assert row["verdict"] == "supported" and row["difference_low"] > 0
    expected = populations_table([judged["within_base"]], OPTIONS).filter(method="margin/uniform").row(0, named=True)
    assert [row[c] for c in ("spearman", "difference", "difference_low", "difference_high")] == [
        expected[c] for c in ("spearman", "difference", "difference_low", "difference_high")
    ]
    assert row["difference"] == pytest.approx(row["spearman"] - row["baseline_spearman"])
    assert verdicts["bases", "margin/uniform", "bits_per_byte"]["verdict"] == "undecided"
    missing = verdicts["bases", "margin/uniform", "rbridge"]
    assert missing["verdict"] == "undecided" and "rbridge is left out" in missing["note"]
    assert missing["spearman"] is None
    turned = Claim(methods=["bits_per_byte"], against=["margin/uniform"], populations=["within_base"])
    (row,) = claims_table(judged, turned, {}, OPTIONS).rows(named=True)
    assert row["verdict"] == "refuted" and row["difference_high"] < 0


def test_too_few_bases_decide_nothing():
    known = gather(checkpoints_of(bases=3, recipes=RECIPES))
    folds = leave_two_tasks_out(known)
    scores, _ = score_folds(known, folds, {"univariate": Univariate()})
    judged = judge_populations(known, {"univariate": Univariate()}, [], OPTIONS, folds, scores)
    assert "bases" not in judged  # three models
    claim = Claim(methods=["univariate"], against=["bits_per_byte"], populations=["within_base", "bases"])
    within, bases = claims_table(judged, claim, {}, OPTIONS).rows(named=True)
    assert within["verdict"] == bases["verdict"] == "undecided"
    assert within["note"] == "no interval: too few bases (3)" and within["difference_low"] is None
    assert bases["note"] == "the population has too few models"


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"methods": ["rank_svm"]}, r"claim.methods\[0\]: 'rank_svm' is unknown; did you mean 'rank_svm_linear'"),
        ({"methods": ["sparse3"]}, "'sparse3' is unknown"),
        ({"methods": ["margin"]}, "'margin' is unknown"),
        ({"against": ["bits_per_byte", "margin/unifrm"]}, r"claim.against\[1\]: 'margin/unifrm'"),
        ({"against": ["rank_svm_linear"]}, "stands in methods and in against"),
        (
            {"populations": ["all", "bases"]},
            "'bases' needs models of the recipe none and of others; found none, unknown",
        ),
    ],
)
def test_a_claim_that_names_what_is_not_there_is_refused(changed, message):
    given = {"methods": ["rank_svm_linear"], "against": ["bits_per_byte"]} | changed
    options = ModelSelectionOptions(scorers=["rank_svm_linear"])
    study = Study(study="mine", target=Target(metric="accuracy", table="truth.csv"), model_selection=options)
    known = ["bits_per_byte", "chance"], ["none", ""], "study.yaml"
    with pytest.raises(
        InputError, match=f"study.yaml: model_selection.{message if message[0] == 'c' else '.*' + message}"
    ):
        require_known_claim(study, Claim(**given), *known)
    require_known_claim(study, Claim(methods=["margin/uniform"], against=["chance"]), *known)


def tables_of(checkpoints, claim=None, targets=None):
    proxies, truth = measured_of(checkpoints_of(recipes=RECIPES))
    of_solutions = proxies.with_columns(solution=pl.lit("s"), tokens=pl.lit(9), denominator=pl.lit(1.0)).lazy()
    options = ModelSelectionOptions(scorers=["univariate"], claim=claim)
    target, truth = Target(metric="accuracy"), truth if targets is None else targets(truth)
    return model_selection_tables(checkpoints, truth, proxies, TASKS, target, OPTIONS, options, of_solutions, [])


def test_studies_that_tell_no_recipe_have_the_tables_of_before():
    checkpoints = checkpoints_of(recipes=RECIPES)
    told = tables_of(checkpoints)
    plain = tables_of(checkpoints.drop("recipe"))
    unknown = tables_of(checkpoints.with_columns(recipe=pl.lit("")))
    assert set(told) - set(plain) == set(OF_POST_TRAINING) and set(plain) == set(unknown)
    assert all(table.equals(unknown[name]) for name, table in plain.items())
    claim = Claim(methods=["margin/uniform"], against=["bits_per_byte"])
    claims = tables_of(checkpoints.drop("recipe"), claim)
    assert set(claims) - set(plain) == {"claims"} and claims["claims"]["population"].to_list() == ["all"]
    assert all(claims[name].equals(table) for name, table in plain.items())


def test_bases_without_a_truth_leave_an_empty_table():
    checkpoints = checkpoints_of(recipes=RECIPES)
    bases = checkpoints.filter(recipe="none")["checkpoint"]
    found = tables_of(checkpoints, targets=lambda truth: truth.filter(~pl.col("checkpoint").is_in(bases.to_list())))
    assert all(found[name].is_empty() for name in OF_POST_TRAINING) and found["summary"]["spearman"].max() > 0.5


def test_copies_are_not_compared(caplog):
    """Not even where they were measured."""
    checkpoints = checkpoints_of(recipes=RECIPES)
    recipes = checkpoints.filter(pl.col("recipe") != "none").select(
        "run", "recipe", base=pl.col("corpus"), note=pl.lit("")
    )
    assert without_copies(checkpoints, recipes).equals(checkpoints)
    nothing = pl.when(recipe="rl").then(pl.lit("every sample is wrong")).otherwise("note")
    left = without_copies(checkpoints, recipes.with_columns(note=nothing))
    assert left.equals(checkpoints.filter(pl.col("recipe") != "rl"))
    assert len(caplog.messages) == 6 and all("every sample is wrong" in said for said in caplog.messages)
    tables = tables_of(left)
    assert tables["populations"].filter(population="all")["models"].unique().to_list() == [6 * (len(RECIPES) - 1)]
    assert not any("-rl-" in str(table.to_dicts()) for table in tables.values())
