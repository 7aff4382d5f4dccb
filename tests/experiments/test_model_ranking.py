"""The models' order, with and without a truth: against loops, and what each place rests on."""

import logging

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxycast.config.experiments.selection_options import ModelSelectionOptions
from proxycast.config.study import Proxy
from proxycast.config.truth import Target
from proxycast.experiments import bootstrap
from proxycast.experiments.candidate_order import SOLUTIONS, ResampledScores
from proxycast.experiments.model_selection.known_models import known_models, measured
from proxycast.experiments.model_selection.model_ranking import (
    leading_method,
    learn,
    mean_over_tasks,
    ranking_tables,
    task_scores,
)
from proxycast.experiments.model_selection.model_tables import model_selection_tables
from proxycast.experiments.model_selection.scorers import SCORERS
from proxycast.options import InputError
from proxycast.proxy_formulas import STATISTICS
from scipy.stats import rankdata, spearmanr
from selection_study import (
    CHECKPOINTS,
    FAST,
    MODELS,
    PROXIES,
    TASKS,
    of_solutions_of,
    proxies_from,
    targets_of,
    without,
)

NAMED = [
    Proxy(statistic="top5_accuracy", weighting="entropy"),
    Proxy(statistic="bits_per_byte", weighting="none"),
]
FEW = ["univariate", "rank_svm_linear"]


@pytest.fixture(scope="module")
def of_solutions():
    return of_solutions_of()


@pytest.fixture(scope="module")
def proxies(of_solutions):
    return proxies_from(of_solutions)


@pytest.fixture(scope="module")
def known(proxies):
    return known_models(CHECKPOINTS, proxies, None, TASKS)


@pytest.fixture(scope="module")
def tables(known, of_solutions):
    return ranking_tables(known, of_solutions.lazy(), NAMED, FAST)


def values_of(of_solutions, model, task, tail, statistic, weighting):
    """(sign, [(value, denominator) of each solution])."""
    rows = of_solutions.filter(checkpoint=model, task=task, tail=tail, statistic=statistic, weighting=weighting)
    sign = STATISTICS[statistic].sign if statistic in STATISTICS else -1
    return sign, rows.sort("solution").select("value", "denominator").rows()


def drawn(sign, solutions, counts):
    """sum(value) / sum(denominator), by a loop; `counts`: how often each solution is drawn."""
    above = below = 0.0
    for count, (value, denominator) in zip(counts, solutions, strict=True):
        above, below = above + count * value, below + count * denominator
    return sign * above / below


METHODS = [("top5_accuracy", "entropy"), ("bits_per_byte", "none"), ("expert_cross_entropy", "none")]


def name_of(statistic, weighting):
    return statistic if weighting == "none" else f"{statistic}/{weighting}"


@pytest.mark.parametrize("task, tail", [("sums", "tokens"), ("dates", "bytes")])
def test_scores_places_and_pairs_of_a_task_are_those_of_a_loop(tables, of_solutions, task, tail):
    numbers = bootstrap.stream(FAST.seed, SOLUTIONS, TASKS.index(task))
    draws = bootstrap.bootstrap_weights(6, FAST.bootstrap_replicates, numbers)
    for method in METHODS:
        key = {"task": task, "method": name_of(*method), "tail": tail}
        values = [values_of(of_solutions, model, task, tail, *method) for model in MODELS]
        points = np.array([drawn(*own, np.ones(6)) for own in values])
        samples = np.array([[drawn(*own, counts) for own in values] for counts in draws])
        places = np.array([rankdata(-sample) for sample in samples])
        rows = {row["checkpoint"]: row for row in tables["ranking"].filter(**key).iter_rows(named=True)}
        assert set(rows) == set(MODELS)
        for m, model in enumerate(MODELS):
            row = rows[model]
            assert row["score"] == pytest.approx(points[m]) and row["place"] == rankdata(-points)[m]
            ends = np.quantile(np.column_stack([samples[:, m], places[:, m]]), [0.025, 0.975], axis=0).T.ravel()
            found = [row[f"{name}_{end}"] for name in ("score", "place") for end in ("low", "high")]
            assert found == pytest.approx(list(ends))
        for pair in tables["pairs"].filter(**key).iter_rows(named=True):
            a, b = (MODELS.index(pair[side]) for side in ("better", "worse"))
            low, high = np.quantile(samples[:, a] - samples[:, b], [0.025, 0.975])
            assert pair["difference"] == pytest.approx(points[a] - points[b]) and pair["difference"] >= 0
            assert pair["told_apart"] == (low > 0 or high < 0)


def test_over_all_tasks_the_scores_are_the_mean_of_standardised_ones(tables, known):
    for method in tables["ranking"].select("method", "tail").unique().iter_rows(named=True):
        rows = tables["ranking"].filter(**method)
        scores = np.array([rows.filter(task=task).sort("checkpoint")["score"].to_numpy() for task in TASKS])  # (T, n)
        wanted = ((scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)).mean(0)
        found = rows.filter(task="all").sort("checkpoint")
        np.testing.assert_allclose(found["score"], wanted, atol=1e-10)
        np.testing.assert_array_equal(found["place"], rankdata(-np.round(wanted, 12)))


def test_agreement_is_that_of_scipy(tables):
    for row in tables["agreement"].iter_rows(named=True):
        scores = []
        for own in ("", "other_"):
            key = {"task": row["task"], "method": row[f"{own}method"], "tail": row[f"{own}tail"]}
            scores.append(tables["ranking"].filter(**key).sort("checkpoint")["score"])
        assert row["spearman"] == pytest.approx(spearmanr(*scores).statistic)


def test_a_pair_is_told_apart_over_all_as_in_the_only_task(proxies, of_solutions):
    found = ranking_tables(known_models(CHECKPOINTS, proxies, None, TASKS[:1]), of_solutions.lazy(), NAMED, FAST)
    pairs = found["pairs"].sort("method", "tail", "better", "worse")
    assert pairs.filter(task="all")["told_apart"].to_list() == pairs.filter(task=TASKS[0])["told_apart"].to_list()
    assert 0 < pairs["told_apart"].sum() < len(pairs)


def test_what_is_hard_for_all_models_is_not_in_the_interval_over_all():
    shared = 10 * np.random.default_rng(0).standard_normal((500, 1))
    points = np.array([0.0, 1.0])
    found = mean_over_tasks([ResampledScores(points, shared + points, True)])
    np.testing.assert_allclose(found.samples, np.broadcast_to(found.points, (500, 2)), atol=1e-12)


def test_a_task_in_which_all_tie_adds_nothing():
    points, rng = np.array([0.0, 1.0, 3.0]), np.random.default_rng(0)
    real = ResampledScores(points, points + rng.standard_normal((50, 3)), True)
    tied = ResampledScores(np.full(3, 0.1), np.full((50, 3), 0.1), False)
    alone, both = mean_over_tasks([real]), mean_over_tasks([real, tied])
    np.testing.assert_allclose(2 * both.points, alone.points)
    np.testing.assert_allclose(2 * both.samples, alone.samples)


@given(st.lists(st.floats(-5, 5, width=16), min_size=4, max_size=4), st.floats(0.1, 100), st.floats(-50, 50))
def test_over_all_tasks_no_scale_of_a_task_counts(values, factor, shift):
    """Higher scores in one task, or in another unit, change nothing over all; the order of a single task stays."""
    rng = np.random.default_rng(0)
    one = ResampledScores(np.array(values), np.array(values) + rng.standard_normal((20, 4)), True)
    two = ResampledScores(rng.standard_normal(4), rng.standard_normal((20, 4)), True)
    rescaled = ResampledScores(factor * one.points + shift, factor * one.samples + shift, True)
    first, second = mean_over_tasks([one, two]), mean_over_tasks([rescaled, two])
    np.testing.assert_allclose(first.points, second.points, atol=1e-8)
    np.testing.assert_allclose(first.samples, second.samples, atol=1e-6, rtol=1e-6)
    assert abs(first.points.sum()) < 1e-9
    alone = mean_over_tasks([one]).points
    np.testing.assert_array_equal(rankdata(np.round(alone, 9)), rankdata(one.points))


def test_two_models_one_task_one_solution(proxies, of_solutions):
    """The smallest study: an order, and no interval."""
    two = CHECKPOINTS.filter(pl.col("checkpoint").is_in(["gpt2-0", "neox-3"]))
    one = of_solutions.filter(pl.col("checkpoint").is_in(two["checkpoint"].to_list()), solution="s0", task="sums")
    known = known_models(two, proxies_from(one), None, ["sums"])
    found = ranking_tables(known, one.lazy(), NAMED, FAST)
    first = found["ranking"].row(0, named=True)
    assert (first["model"], first["place"], first["task"]) == ("neox-3", 1.0, "all")
    assert found["ranking"]["place_low"].null_count() == len(found["ranking"])
    assert found["pairs"]["told_apart"].null_count() == len(found["pairs"])
    with pytest.raises(InputError, match="found 1 models of the role candidate; a ranking needs at least 2"):
        known_models(two.head(1), proxies, None, ["sums"])


def test_a_value_of_a_solution_that_is_missing_is_named(known, of_solutions):
    fewer = without(of_solutions, checkpoint="llama-2", solution="s3", task="dates", statistic="bits_per_byte")
    which = "task dates, tail tokens: value of statistic bits_per_byte, weighting none, .*llama-2, solution s3 is"
    with pytest.raises(InputError, match=which):
        ranking_tables(known, fewer.lazy(), NAMED, FAST)


def test_a_named_baseline_that_is_not_known_ranks_nothing_and_one_of_generic_text_has_no_interval(
    known, of_solutions, caplog
):
    named = [*NAMED, Proxy(statistic="rbridge", weighting="none"), Proxy(statistic="parameters", weighting="none")]
    with caplog.at_level(logging.WARNING):
        found = ranking_tables(known, of_solutions.lazy(), named, FAST)["ranking"]
    assert "highlighted: rbridge is not known for all models in every task" in caplog.text
    assert set(found["method"]) == {"top5_accuracy/entropy", "bits_per_byte", "expert_cross_entropy", "parameters"}
    parameters = found.filter(method="parameters", task="sums").sort("checkpoint")
    assert parameters["score"].to_list() == CHECKPOINTS.sort("checkpoint")["parameters"].to_list()
    assert parameters["score_low"].null_count() == len(parameters)


def test_losses_at_a_fitted_temperature_have_the_intervals_of_the_plain_ones(of_solutions):
    """Rows of the same values under the other names: the same places and intervals, named in advance or not."""
    names = {"bits_per_byte": "tempered_bits_per_byte", "expert_cross_entropy": "tempered_cross_entropy"}
    copies = of_solutions.filter(pl.col("statistic").is_in(list(names)), weighting="none")
    every = pl.concat([of_solutions, copies.with_columns(pl.col("statistic").replace(names))])
    found = known_models(CHECKPOINTS, proxies_from(every), None, TASKS)
    ranking = ranking_tables(found, every.lazy(), NAMED, FAST)["ranking"]
    for plain, tempered in names.items():
        one, other = (ranking.filter(method=name).drop("method") for name in (plain, tempered))
        assert one.equals(other) and other["place_high"].is_not_null().all() and len(other) > 0


def test_which_method_is_told_first(tables, known, of_solutions, caplog):
    assert tables["ranking"].row(0)[1:4] == ("top5_accuracy/entropy", "proxy", "tokens")
    other = of_solutions.with_columns(
        tokens=pl.when(pl.col("checkpoint") == "neox-0").then(pl.col("tokens") + 1).otherwise("tokens")
    )
    with caplog.at_level(logging.WARNING):
        found = ranking_tables(known, other.lazy(), NAMED, FAST)["ranking"]
    assert "the models' tokenizers differ" in caplog.text
    assert found.row(0)[1:4] == ("bits_per_byte", "baseline", "bytes")
    methods = list(task_scores(known, of_solutions.lazy(), 0, NAMED, list(known.baselines), FAST, {}))
    rho = {("expert_cross_entropy", "bytes"): 0.5, ("bits_per_byte", "bytes"): 0.4}
    best = leading_method(methods, NAMED, rho, True)
    assert (best.name, best.tail) == ("expert_cross_entropy", "bytes")
    assert leading_method(methods, [], {}, True).name == "bits_per_byte"


# With a truth

UNMEASURED, NEW_TASK = ["gpt2-3", "llama-1"], "words"


@pytest.fixture(scope="module")
def partly_measured():
    return targets_of().filter(~pl.col("checkpoint").is_in(UNMEASURED), pl.col("task") != NEW_TASK)


@pytest.fixture(scope="module")
def judged(proxies, of_solutions, partly_measured):
    target, options = Target(metric="accuracy"), ModelSelectionOptions(scorers=FEW)
    return model_selection_tables(
        CHECKPOINTS, partly_measured, proxies, TASKS, target, FAST, options, of_solutions.lazy(), NAMED
    )


def test_models_and_tasks_without_a_truth_are_ranked_by_what_the_others_teach(judged, proxies, partly_measured):
    """The scorers by hand: fitted to the ten models and three tasks with a truth, asked for all twelve in each task."""
    whole = known_models(CHECKPOINTS, proxies, None, TASKS)
    own, tasks = measured(CHECKPOINTS, partly_measured, TASKS, "accuracy")
    known = known_models(own, proxies, partly_measured, tasks, "accuracy")
    assert (len(known.models), known.tasks) == (10, TASKS[:3])
    for name, (tail, features) in [(name, item) for name in FEW for item in known.features.items()]:
        rows = features.reshape(-1, features.shape[-1])
        scorer = SCORERS[name]().fit(rows, known.truth.ravel(), np.repeat(range(3), 10))
        for t, task in enumerate(TASKS):
            found = judged["ranking"].filter(task=task, method=name, tail=tail).sort("checkpoint")
            np.testing.assert_allclose(found["score"], scorer.predict(whole.features[tail][t]), atol=1e-10)


def test_each_row_says_what_it_rests_on(judged):
    rests = {
        (row["task"], row["checkpoint"]): row["rests_on"]
        for row in judged["ranking"].filter(method="univariate", tail="tokens").iter_rows(named=True)
    }
    assert rests["sums", "gpt2-0"] == "in sample" and rests["sums", "gpt2-3"] == "other models"
    assert rests["words", "gpt2-0"] == "other tasks" and rests["words", "llama-1"] == "other models and tasks"
    assert rests["all", "gpt2-0"] == "partly in sample" and rests["all", "llama-1"] == "other models and tasks"
    others = judged["ranking"].filter(pl.col("kind") != "scorer")
    assert set(others["rests_on"]) == {"nothing learned"} and set(others["interval_over"]) == {"solutions"}
    scorers = judged["ranking"].filter(kind="scorer")
    assert set(scorers["interval_over"]) == {"solutions, with the fitted scorer"}


def test_the_truth_stands_beside_the_places_it_is_known_for(judged, partly_measured):
    rows = judged["ranking"].filter(pl.col("task") != "all").select("task", "checkpoint", "truth").unique()
    joined = rows.join(partly_measured, on=["task", "checkpoint"], how="left")
    assert joined.filter(pl.col("truth").ne_missing(pl.col("value"))).is_empty()
    assert rows["truth"].null_count() == 2 * 3 + 12
    mean = partly_measured.filter(checkpoint="neox-3")["value"].mean()
    assert judged["ranking"].filter(task="all", checkpoint="neox-3")["truth"].unique().to_list() == [
        pytest.approx(mean)
    ]


def test_the_first_method_did_best_on_held_out_tasks(judged):
    first = judged["ranking"].row(0, named=True)
    assert first["held_out_spearman"] == judged["ranking"]["held_out_spearman"].max()
    summary = judged["summary"].filter(split="two_tasks").select("method", "tail", "kind", "spearman")
    both = judged["ranking"].join(summary, on=["method", "tail", "kind"])
    assert set(both["kind"]) == {"scorer", "baseline"} and (both["held_out_spearman"] == both["spearman"]).all()


def test_the_judged_tables_are_those_of_the_measured_part_alone(judged, proxies, of_solutions, partly_measured):
    own = CHECKPOINTS.filter(~pl.col("checkpoint").is_in(UNMEASURED))
    target, options = Target(metric="accuracy"), ModelSelectionOptions(scorers=FEW)
    alone = model_selection_tables(
        own, partly_measured, proxies, TASKS[:3], target, FAST, options, of_solutions.lazy(), NAMED
    )
    for name in ("summary", "folds", "predictions", "truth", "proxies"):
        assert alone[name].equals(judged[name]), name


def test_samples_of_a_scorer_are_predictions_one_by_one(proxies):
    known = known_models(CHECKPOINTS, proxies, targets_of(), TASKS, "accuracy")
    learned = learn(known, ["univariate", "sparse3", "rank_svm_linear", "rank_svm_rbf"], {})
    samples = np.random.default_rng(0).standard_normal((7, len(MODELS), len(PROXIES)))
    samples[0, :, 1] = 0.25  # constant: says nothing
    for scorer in learned.scorers.values():
        wanted = [scorer.predict(sample) for sample in samples]
        np.testing.assert_allclose(scorer.predict_samples(samples), wanted, atol=1e-12)


def test_a_model_with_a_truth_in_some_tasks_only_is_refused(partly_measured, proxies, of_solutions):
    hole = without(partly_measured, checkpoint="neox-1", task="sums")
    with pytest.raises(
        InputError, match="or no row at all, to be ranked without a truth.*task sums, checkpoint neox-1"
    ):
        model_selection_tables(
            *(CHECKPOINTS, hole, proxies, TASKS, Target(metric="accuracy"), FAST, ModelSelectionOptions(scorers=FEW)),
            *(of_solutions.lazy(), NAMED),
        )


def test_without_a_truth_nothing_is_judged(proxies, of_solutions):
    found = model_selection_tables(
        CHECKPOINTS, None, proxies, TASKS[:1], None, FAST, ModelSelectionOptions(), of_solutions.lazy(), NAMED
    )
    assert set(found) == {"ranking", "pairs", "agreement"}
    assert found["ranking"]["held_out_spearman"].null_count() == len(found["ranking"])
    assert set(found["ranking"]["rests_on"]) == {"nothing learned"}
