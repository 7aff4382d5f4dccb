"""The tables of decision accuracies and ranks: every figure by hand, and intervals by resampling."""

import math

import numpy as np
import polars as pl
import pytest
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.bootstrap import bootstrap_weights
from proxycast.experiments.candidate_order import resampled_scores
from proxycast.experiments.data_selection.corpus_order import corpus_orders
from proxycast.experiments.data_selection.ranking import _ranks, decision_accuracy_table, ranking_table
from proxycast.options import InputError
from rank_loops import loop_decision_accuracy
from scipy import stats

FAST = SelectionOptions(bootstrap_replicates=200)
CORPORA = [f"corpus{i}" for i in range(8)]


def ranked(scores: pl.DataFrame, truth: pl.DataFrame, options: SelectionOptions, sign: int = 1) -> pl.DataFrame:
    return ranking_table(corpus_orders(scores, options, truth["corpus"].unique().to_list()), truth, options, sign)


def study(seed: int = 0, steps: tuple[int, ...] = (10, 10**10)) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Scores of two proxies and two baselines on two tasks, 2 seeds, and their truth."""
    rng = np.random.default_rng(seed)
    truth = pl.DataFrame({"corpus": CORPORA * 2, "task": ["a"] * 8 + ["b"] * 8, "value": rng.normal(size=16)})
    kinds = [("rank", "uniform", "proxy"), ("rank", "entropy", "proxy")]
    kinds += [("bits_per_byte", "none", "baseline"), ("parameters", "none", "baseline")]
    labels = pl.DataFrame(kinds, schema=["statistic", "weighting", "kind"], orient="row")
    scores = (
        truth.join(labels, how="cross")
        .join(pl.DataFrame({"seed": [0, 1]}), how="cross")
        .join(pl.DataFrame({"step": steps, "tokens": steps, "flops": [100.0 * step for step in steps]}), how="cross")
    )
    noise = rng.normal(size=len(scores))
    return (
        scores.with_columns(
            depends_on_candidate=pl.col("weighting") == "entropy",
            size=pl.lit("4M"),
            score=pl.when(pl.col("statistic") == "parameters").then(1.0).otherwise(pl.col("value") + noise),
        ).drop("value"),
        truth,
    )


def test_the_table_holds_every_figure_by_hand():
    predictions, truth = study()
    table = decision_accuracy_table(predictions, truth, 1e6, FAST)
    assert len(table) == 4 * 2 * 3 * 4  # statistics, steps, tasks with "all", seeds with "mean" and "single"
    where = {"statistic": "rank", "weighting": "entropy", "step": 10}
    for task in ("a", "b", "all"):
        wanted = predictions.filter(**where) if task == "all" else predictions.filter(**where, task=task)
        scores = wanted.group_by("corpus", "seed").agg(pl.col("score").mean()).sort("corpus")
        true = truth if task == "all" else truth.filter(task=task)
        y = true.group_by("corpus").agg(pl.col("value").mean()).sort("corpus")["value"].to_numpy()
        by_seed = [scores.filter(seed=s)["score"].to_numpy() for s in (0, 1)]
        found = {row["seed"]: row for row in table.filter(**where, task=task).to_dicts()}
        for seed, x in {"0": by_seed[0], "1": by_seed[1], "mean": np.mean(by_seed, axis=0)}.items():
            assert found[seed]["decision_accuracy"] == pytest.approx(loop_decision_accuracy(x, y))
            assert found[seed]["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
            assert found[seed]["kendall"] == pytest.approx(stats.kendalltau(x, y).statistic)
            assert found[seed]["low"] < found[seed]["decision_accuracy"] < found[seed]["high"]
        for figure in ("decision_accuracy", "spearman", "kendall"):
            assert found["single"][figure] == pytest.approx((found["0"][figure] + found["1"][figure]) / 2)
        assert found["0"]["corpora"] == 8 and found["0"]["compute_fraction"] == 1e-3
        assert found["0"]["kind"] == "proxy" and found["0"]["depends_on_candidate"]


def test_intervals_of_the_table_are_those_of_resampled_corpora():
    predictions, truth = study()
    row = decision_accuracy_table(predictions, truth, 1e6, FAST).row(
        by_predicate=(pl.col("statistic") == "rank")
        & (pl.col("weighting") == "uniform")
        & (pl.col("task") == "a")
        & (pl.col("seed") == "single")
        & (pl.col("step") == 10),
        named=True,
    )
    y = truth.filter(task="a").sort("corpus")["value"].to_numpy()
    scores = predictions.filter(task="a", step=10).sort("corpus")
    samples = {name: [] for name in ("rank", "bits_per_byte")}
    correlations = []
    for counts in bootstrap_weights(8, FAST.bootstrap_replicates, FAST.seed).astype(int):
        drawn = np.repeat(np.arange(8), counts)
        for name, weighting in (("rank", "uniform"), ("bits_per_byte", "none")):
            seeds = [scores.filter(statistic=name, weighting=weighting, seed=s)["score"].to_numpy() for s in (0, 1)]
            samples[name].append(np.mean([loop_decision_accuracy(x[drawn], y[drawn]) for x in seeds]))
            if name == "rank":
                correlations.append(np.mean([stats.spearmanr(x[drawn], y[drawn]).statistic for x in seeds]))
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.nanquantile(samples["rank"], [0.025, 0.975])))
    expected = tuple(np.nanquantile(correlations, [0.025, 0.975]))
    assert (row["spearman_low"], row["spearman_high"]) == pytest.approx(expected)
    assert row["best_baseline"] == "bits_per_byte"
    difference = np.subtract(samples["rank"], samples["bits_per_byte"])
    expected = tuple(np.nanquantile(difference, [0.025, 0.975]))
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(expected)


def test_the_best_baseline_differs_from_itself_by_nothing_and_constants_are_null():
    predictions, truth = study()
    table = decision_accuracy_table(predictions, truth, 1e6, FAST)
    best = table.filter(pl.col("statistic") == pl.col("best_baseline"))
    assert (best["difference"] == 0).all() and (best["difference_low"] == 0).all()
    constant = table.filter(statistic="parameters")
    assert (constant["decision_accuracy"] == 0.5).all()
    assert constant["spearman"].null_count() == constant["spearman_low"].null_count() == len(constant)
    assert not any(table[name].is_nan().any() for name in table.columns if table[name].dtype.is_float())
    undefined = decision_accuracy_table(predictions, truth.with_columns(value=pl.lit(0.0)), 1e6, FAST)
    for name in ("decision_accuracy", "low", "spearman", "best_baseline", "difference"):
        assert undefined[name].null_count() == len(undefined)


def test_four_corpora_have_no_interval():
    predictions, truth = study()
    few = [table.filter(pl.col("corpus").is_in(CORPORA[:4])) for table in (predictions, truth)]
    table = decision_accuracy_table(*few, 1e6, FAST)
    assert table["decision_accuracy"].null_count() == 0
    for name in ("low", "high", "spearman_low", "spearman_high"):
        assert table[name].null_count() == len(table)
    other = table.filter(pl.col("statistic") != pl.col("best_baseline"))
    assert other["difference"].null_count() == 0 and other["difference_low"].null_count() == len(other)
    assert set(table["note"]) == {"no interval: too few corpora (4)"}
    wide = SelectionOptions(bootstrap_replicates=200, confidence=0.5)  # 35 samples do for a tail of a quarter
    assert not decision_accuracy_table(*few, 1e6, wide)["note"].str.contains("too few").any()


def test_a_perfect_order_is_not_certain():
    """All samples of corpora in their true order are in their true order, and likewise upside down."""
    predictions, truth = study()
    true = pl.col("value") * pl.when(pl.col("weighting") == "uniform").then(1).otherwise(-1)
    perfect = predictions.join(truth, on=["corpus", "task"]).with_columns(
        score=pl.when(statistic="rank").then(true).otherwise("score")
    )
    table = decision_accuracy_table(perfect, truth, 1e6, FAST)
    for weighting, value in (("uniform", 1), ("entropy", 0)):
        rows = table.filter(statistic="rank", weighting=weighting)
        assert (rows["decision_accuracy"] == value).all()
        for name in ("low", "high", "spearman_low", "spearman_high", "difference_low", "difference_high"):
            assert rows[name].null_count() == len(rows)
        assert set(rows["note"]) == {"no interval: every sample of corpora gives the same extreme value"}
    # What is certain by definition stays so.
    chance = table.filter(statistic="parameters")
    assert (chance["low"] == 0.5).all() and (chance["high"] == 0.5).all() and set(chance["note"]) == {""}
    others = table.filter(statistic="bits_per_byte")
    assert others["low"].null_count() == 0 and set(others["note"]) == {""}


def test_without_a_baseline_there_is_no_difference():
    predictions, truth = study()
    table = decision_accuracy_table(predictions.filter(kind="proxy"), truth, 1e6, FAST)
    assert table["best_baseline"].null_count() == table["difference"].null_count() == len(table)


def test_the_table_refuses_what_is_missing_doubled_or_not_finite():
    predictions, truth = study()
    with pytest.raises(InputError, match="the predictions lack corpus corpus3"):
        decision_accuracy_table(predictions.filter(pl.col("corpus") != "corpus3"), truth, 1e6, FAST)
    with pytest.raises(InputError, match="the truth lacks corpus corpus3, corpus5"):
        two = pl.col("corpus").is_in(["corpus3", "corpus5"])
        decision_accuracy_table(predictions, truth.filter(~two), 1e6, FAST)
    with pytest.raises(InputError, match="the truth lacks task b"):
        decision_accuracy_table(predictions, truth.filter(task="a"), 1e6, FAST)
    one = (pl.col("corpus") == "corpus2") & (pl.col("task") == "b") & (pl.col("seed") == 1) & (pl.col("step") == 10)
    one &= pl.col("weighting") == "entropy"
    place = "size 4M, step 10: score of statistic rank, weighting entropy, .*, seed 1, task b, corpus corpus2"
    with pytest.raises(InputError, match=f"{place} is missing"):
        decision_accuracy_table(predictions.filter(~one), truth, 1e6, FAST)
    with pytest.raises(InputError, match=f"{place} occurs more than once"):
        decision_accuracy_table(pl.concat([predictions, predictions.filter(one)]), truth, 1e6, FAST)
    for bad in (math.nan, None):
        broken = predictions.with_columns(score=pl.when(one).then(bad).otherwise("score"))
        with pytest.raises(InputError, match=f"{place} is not finite"):
            decision_accuracy_table(broken, truth, 1e6, FAST)


def solution_study(noise: float, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """5 corpora whose score is their number, 2 tasks of 30 solutions, 2 seeds; the truth with 3 seeds."""
    rng = np.random.default_rng(seed)
    corpora = pl.DataFrame({"corpus": CORPORA[:5], "level": np.arange(5.0)})
    solutions = pl.DataFrame({"task": ["a"] * 30 + ["b"] * 30, "solution": [f"q{i}" for i in range(60)]})
    scores = corpora.join(solutions, how="cross").join(pl.DataFrame({"seed": [0, 1]}), how="cross")
    scores = scores.with_columns(
        statistic=pl.lit("rank"), weighting=pl.lit("uniform"), size=pl.lit("4M"), step=pl.lit(7)
    )
    scores = scores.with_columns(score=pl.col("level") + noise * rng.normal(size=len(scores))).drop("level")
    truth = corpora.join(pl.DataFrame({"seed": [0, 1, 2]}), how="cross")
    return scores, truth.with_columns(value=pl.col("level") + noise * rng.normal(size=len(truth))).drop("level")


def test_ranks_without_noise_are_certain():
    table = ranked(*solution_study(noise=0.0), FAST).sort("corpus")
    assert table["predicted"].to_list() == table["truth_low"].to_list() == [0, 1, 2, 3, 4]
    for name in ("predicted_rank", "predicted_rank_low", "predicted_rank_high", "true_rank", "true_rank_high"):
        assert table[name].to_list() == [5, 4, 3, 2, 1]


def test_the_interval_of_a_prediction_matches_its_variance_in_closed_form():
    """Var = Var of the mean of two seeds over draws of solutions + (expected squared difference of the seeds) / 8."""
    scores, truth = solution_study(noise=1.0)
    table = ranked(scores, truth, SelectionOptions(bootstrap_replicates=4000))
    for row in table.iter_rows(named=True):
        both = scores.filter(corpus=row["corpus"]).pivot("seed", index=["task", "solution"], values="score")
        both = both.with_columns(mean=(pl.col("0") + pl.col("1")) / 2, difference=pl.col("0") - pl.col("1"))
        # Two tasks of 30 solutions.
        variances = both.group_by("task").agg(pl.col("mean", "difference").var(ddof=0) / 30).drop("task").sum() / 4
        squared_difference = both["difference"].mean() ** 2 + variances["difference"].item()
        width = 2 * 1.96 * math.sqrt(variances["mean"].item() + squared_difference / 8)
        assert row["predicted"] == pytest.approx(both["mean"].mean())
        assert row["predicted_high"] - row["predicted_low"] == pytest.approx(width, rel=0.1)
        assert row["predicted_rank_low"] <= row["predicted_rank"] <= row["predicted_rank_high"]
        assert row["truth_low"] < row["truth"] < row["truth_high"]


def test_what_cannot_be_resampled_has_no_interval():
    """The truth of one seed; a prediction of one seed with one solution a task."""
    scores, truth = solution_study(noise=1.0)
    table = ranked(scores, truth.filter(seed=0), FAST)
    for name in ("truth_low", "truth_high", "true_rank_low", "true_rank_high"):
        assert table[name].null_count() == 5
    for name in ("truth", "true_rank", "predicted_low", "predicted_rank_high"):
        assert table[name].null_count() == 0
    single = scores.filter(pl.col("solution").is_in(["q0", "q59"]), seed=0)
    table = ranked(with_candidates(single, new=("corpus3", 0.5, [0])), truth, FAST)
    assert table["predicted_low"].null_count() == table["predicted_rank_high"].null_count() == 6
    assert table["truth_low"].null_count() == 1
    two_seeds = scores.filter(pl.col("solution").is_in(["q0", "q59"]))
    table = ranked(with_candidates(two_seeds, new=("corpus3", 0.5, [0])), truth, FAST)
    assert table.filter(pl.col("predicted_low").is_null())["corpus"].to_list() == ["new"]


def test_less_of_the_truth_may_be_better():
    """Its values stay as they are, and ranks turn round."""
    scores, truth = solution_study(noise=1.0)
    table = ranked(scores, truth, FAST, sign=-1)
    other = ranked(scores, truth.with_columns(-pl.col("value")), FAST)
    assert table.drop("truth", "truth_low", "truth_high").equals(other.drop("truth", "truth_low", "truth_high"))
    assert table["truth"].equals(-other["truth"]) and table["truth_low"].equals(
        (-other["truth_high"]).alias("truth_low")
    )
    assert table.sort("truth")["true_rank"].to_list() == [1, 2, 3, 4, 5]


def test_seeds_of_each_candidate_are_drawn_apart():
    """Two with the same scores, which differ between seeds: their samples are as far apart as those of any two."""
    scores, _ = solution_study(noise=1.0)
    one = scores.filter(corpus="corpus0").with_columns(score=pl.col("seed").cast(pl.Float64))
    samples = [resampled_scores(one, one.select("corpus").unique(), FAST, group)[1][:, 0] for group in (1, 2, 1)]
    assert np.array_equal(samples[0], samples[2]) and set(samples[0]) == {0, 0.5, 1}
    assert abs(np.corrcoef(samples[0], samples[1])[0, 1]) < 0.2


def test_the_draw_of_solutions_is_the_same_for_all_corpora():
    """A shift of every corpus by the same noisy solutions must not blur the ranks."""
    scores, truth = solution_study(noise=0.0)
    difficulty = pl.col("solution").str.slice(1).cast(pl.Float64) * 10
    table = ranked(scores.with_columns(score=pl.col("score") + difficulty), truth, FAST).sort("corpus")
    assert (table["predicted_high"] - table["predicted_low"] > 10).all()
    assert table["predicted_rank_low"].to_list() == table["predicted_rank_high"].to_list() == [5, 4, 3, 2, 1]


def test_seeds_widen_the_interval_of_their_own_corpus_only():
    scores, truth = solution_study(noise=0.0)
    unstable = (pl.col("corpus") == "corpus0") & (pl.col("seed") == 1)
    table = ranked(scores.with_columns(score=pl.col("score") + pl.when(unstable).then(9).otherwise(0)), truth, FAST)
    width = dict(zip(table["corpus"], table["predicted_high"] - table["predicted_low"], strict=True))
    assert width == {"corpus0": 9, "corpus1": 0, "corpus2": 0, "corpus3": 0, "corpus4": 0}


def test_a_truth_by_task_is_averaged_over_the_tasks():
    scores, truth = solution_study(noise=1.0)
    doubled = pl.concat(
        [
            truth.with_columns(task=pl.lit("a"), value=pl.col("value") - 1),
            truth.with_columns(task=pl.lit("b"), value=pl.col("value") + 1),
        ]
    )
    plain, by_task = ranked(scores, truth, FAST), ranked(scores, doubled, FAST)
    assert by_task["truth"].to_list() == pytest.approx(plain["truth"].to_list())
    assert by_task["truth_low"].to_list() == pytest.approx(plain["truth_low"].to_list())


def test_the_ranking_refuses_a_missing_corpus_or_solution():
    scores, truth = solution_study(noise=0.0)
    with pytest.raises(InputError, match="4M, 7, task a: score of corpus corpus4, seed 0, solution q0 is missing"):
        ranked(scores.filter(pl.col("corpus") != "corpus4"), truth, FAST)
    with pytest.raises(InputError, match="true value of corpus corpus3, seed 1, task all is missing"):
        ranked(scores, truth.filter(~((pl.col("corpus") == "corpus3") & (pl.col("seed") == 1))), FAST)
    one = (pl.col("solution") == "q42") & (pl.col("corpus") == "corpus0") & (pl.col("seed") == 0)
    with pytest.raises(InputError, match="4M, 7, task b: score of corpus corpus0, seed 0, solution q42 is missing"):
        ranked(scores.filter(~one), truth, FAST)


def with_candidates(scores: pl.DataFrame, **copies: tuple[str, float, list[int]]) -> pl.DataFrame:
    """Further corpora: name=(corpus whose scores it has, what is added to them, the seeds that it has)."""
    parts = [
        scores.filter(pl.col("seed").is_in(seeds), corpus=corpus).with_columns(
            corpus=pl.lit(name), score=pl.col("score") + shift
        )
        for name, (corpus, shift, seeds) in copies.items()
    ]
    return pl.concat([scores, *parts])


def test_candidates_are_placed_among_the_judged():
    """A corpus without a truth comes last, at one more than the judged corpora above it (half of one for a tie)."""
    scores, truth = solution_study(noise=0.0)
    places = {"best": ("corpus4", 1, [0, 1]), "between": ("corpus2", 0.5, [1]), "tied": ("corpus2", 0, [0])}
    places["also_best"] = ("corpus4", 2, [0, 1])
    table = ranked(with_candidates(scores, **places), truth, FAST)
    judged = [f"corpus{n}" for n in range(5)]
    assert table["corpus"].to_list() == [*judged, "also_best", "best", "between", "tied"]
    for name in ("predicted_rank", "predicted_rank_low", "predicted_rank_high"):
        assert table[name].to_list() == [5, 4, 3, 2, 1, 1, 1, 3, 3.5]
    assert table["predicted"].to_list() == [0, 1, 2, 3, 4, 6, 5, 2.5, 2]
    candidates = table.filter(~pl.col("corpus").is_in(judged))
    for name in ("truth", "truth_low", "truth_high", "true_rank", "true_rank_low", "true_rank_high"):
        assert candidates[name].null_count() == 4 and table[name].null_count() == 4


def test_candidates_change_nothing_for_the_judged():
    scores, truth = solution_study(noise=1.0)
    alone = ranked(scores, truth, FAST)
    table = ranked(with_candidates(scores, new=("corpus3", 0.5, [0, 1]), other=("corpus0", 0, [1])), truth, FAST)
    places = ["place", "place_low", "place_high"]  # among all corpora
    assert table.head(5).drop(places).equals(alone.drop(places))
    assert (
        alone.select(places).rows() == alone.select(name.replace("place", "predicted_rank") for name in places).rows()
    )


def test_a_candidate_is_resampled_over_the_same_solutions():
    """With the scores of a judged corpus in each solution, and no noise of seeds, it is never told from it."""
    scores, truth = solution_study(noise=1.0)
    first = scores.filter(seed=0)
    table = ranked(with_candidates(first, twin=("corpus3", 0, [0])), truth, FAST)
    one, twin = (table.filter(corpus=name).row(0, named=True) for name in ("corpus3", "twin"))
    for name in ("predicted", "predicted_low", "predicted_high"):
        assert one[name] == twin[name]
    # It shares a place with its like, and with none else: half a place behind it at most.
    for name in ("predicted_rank", "predicted_rank_low", "predicted_rank_high"):
        assert twin[name] == one[name] + 0.5


def test_ranks_of_candidates_in_every_draw():
    """Against counting, with ties: midranks of the judged by the library, places of the others one by one."""
    rng = np.random.default_rng(5)
    values = rng.integers(0, 4, (50, 7)).astype(float)
    found = _ranks(values, 4)
    for row, ranks in zip(values, found, strict=True):
        assert ranks[:4].tolist() == stats.rankdata(-row[:4]).tolist()
        for n in range(4, 7):
            assert ranks[n] == 1 + sum(v > row[n] for v in row[:4]) + 0.5 * sum(v == row[n] for v in row[:4])


def test_the_same_seed_gives_the_same_tables_and_the_same_draws_to_every_proxy():
    scores, truth = solution_study(noise=1.0)
    two = pl.concat([scores, scores.with_columns(weighting=pl.lit("entropy"))])
    table = ranked(two, truth, FAST)
    assert table.equals(ranked(two, truth, FAST))
    columns = ["corpus", "predicted_low", "predicted_rank_high"]
    assert table.filter(weighting="entropy").select(columns).equals(table.filter(weighting="uniform").select(columns))
    assert decision_accuracy_table(*study(), 1e6, FAST).equals(decision_accuracy_table(*study(), 1e6, FAST))
