"""The order of corpora with and without a truth: ratios, places, pairs and agreement, against loops and scipy."""

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget, Proxy
from proxycast.experiments import bootstrap
from proxycast.experiments.candidate_order import SEEDS, SOLUTIONS, resampled_scores
from proxycast.experiments.data_selection.corpus_order import (
    corpus_agreement,
    corpus_orders,
    corpus_pairs,
    order_table,
)
from proxycast.experiments.data_selection.data_tables import order_tables
from proxycast.experiments.data_selection.ranking import ranking_table
from proxycast.options import InputError
from proxycast.solutions.rows import GENERIC_TEXT
from scipy.stats import rankdata, spearmanr

FAST = SelectionOptions(bootstrap_replicates=100)
RATIO, MEAN = ("bits_per_byte", "none"), ("top5_accuracy", "token_frequency")


def scores_of(levels: dict[str, float], seeds=(0, 1), solutions=6, tasks=("sums", "days"), noise=0.3) -> pl.DataFrame:
    """Scores of corpora around their `levels`: a mean over solutions, and a ratio of sums over solutions."""
    rng, rows = np.random.default_rng(0), []
    for (corpus, level), task, n, seed in itertools.product(levels.items(), tasks, range(solutions), seeds):
        for number, (name, size) in enumerate(((MEAN, 1.0), (RATIO, 5.0 + n))):
            score = size * (level + noise * rng.standard_normal())
            rows.append((corpus, task, f"q{n}", *name, "4M", 7 + number, seed, score, size))
    names = ["corpus", "task", "solution", "statistic", "weighting", "size", "step", "seed", "score", "denominator"]
    return pl.DataFrame(rows, names, orient="row")


LEVELS = {"web": 0.2, "wiki": 0.9, "code": 0.5}


def test_a_ratio_is_one_of_sums_in_every_sample():
    """The draws are made again, solution by solution and seed by seed, and every ratio is a loop's."""
    scores = scores_of(LEVELS).filter(statistic=RATIO[0])
    corpora = pl.DataFrame({"corpus": sorted(LEVELS)})
    found = resampled_scores(scores, corpora, FAST)
    of_solutions = bootstrap.stream(FAST.seed, SOLUTIONS)
    draws = {task: bootstrap.bootstrap_weights(6, FAST.bootstrap_replicates, of_solutions) for task in ("days", "sums")}
    seeds = bootstrap.stream(FAST.seed, SEEDS, 0).multinomial(2, [0.5, 0.5], size=(FAST.bootstrap_replicates, 3))
    values = {row[:-2]: row[-2:] for row in scores.drop("statistic", "weighting", "size", "step").iter_rows()}

    def ratio(corpus, task, seed, counts):
        parts = [values[corpus, task, f"q{n}", seed] for n in range(6)]
        sums = [sum(count * part[side] for count, part in zip(counts, parts)) for side in (0, 1)]
        return sums[0] / sums[1]

    for n, corpus in enumerate(corpora["corpus"]):
        every = [ratio(corpus, task, seed, np.ones(6)) for seed in (0, 1) for task in draws]
        assert found.points[n] == pytest.approx(np.mean(every))
        for b in range(FAST.bootstrap_replicates):
            by_seed = [np.mean([ratio(corpus, task, seed, draws[task][b]) for task in draws]) for seed in (0, 1)]
            assert found.samples[b, n] == pytest.approx(np.dot(seeds[b, n], by_seed) / 2)


def test_the_interval_of_a_ratio_is_that_of_the_delta_method():
    """sqrt(n / (n - 1) sum((y - r x)^2)) / sum(x), as in `proxy_formulas.baseline_statistics`."""
    rng, n = np.random.default_rng(5), 300
    x = rng.integers(1, 400, n).astype(float)
    y = x * (1.5 + 0.3 * rng.standard_normal(n)) + 20 * rng.standard_normal(n)
    solutions = pl.DataFrame({"solution": [f"q{m:03d}" for m in range(n)], "score": y, "denominator": x})
    scores = solutions.with_columns(corpus=pl.lit("web"), task=pl.lit("sums"), seed=0)
    found = resampled_scores(scores, pl.DataFrame({"corpus": ["web"]}), SelectionOptions(bootstrap_replicates=4000))
    ratio = y.sum() / x.sum()
    error = np.sqrt(n / (n - 1) * ((y - ratio * x) ** 2).sum()) / x.sum()
    assert found.points.item() == pytest.approx(ratio) and found.samples.std() == pytest.approx(error, rel=0.06)
    assert abs((y / x).mean() - ratio) > error / 10  # the mean of ratios is another number


def test_without_a_denominator_the_ratio_is_the_mean():
    scores, corpora = scores_of(LEVELS).filter(statistic=MEAN[0]), pl.DataFrame({"corpus": sorted(LEVELS)})
    with_ones, without = (resampled_scores(t, corpora, FAST) for t in (scores, scores.drop("denominator")))
    assert np.array_equal(with_ones.points, without.points) and np.array_equal(with_ones.samples, without.samples)


def test_places_pairs_and_agreement_without_a_truth():
    scores = scores_of(LEVELS)
    orders = corpus_orders(scores, FAST)
    table = order_table(orders, 0.95)
    assert table["seeds"].unique().to_list() == [2]
    for name, step in ((MEAN, 7), (RATIO, 8)):
        rows = table.filter(statistic=name[0], weighting=name[1], step=step)
        assert rows["corpus"].to_list() == ["wiki", "code", "web"] and rows["place"].to_list() == [1, 2, 3]
        assert (rows["predicted_low"] <= rows["predicted"]).all() and (rows["place_high"] >= rows["place"]).all()
    values = {order.key["statistic"].item(): order.scores for order in orders}
    for row in corpus_pairs(orders, 0.95).iter_rows(named=True):
        score = values[row["statistic"]]
        better, worse = (sorted(LEVELS).index(row[side]) for side in ("better", "worse"))
        differences = score.samples[:, better] - score.samples[:, worse]
        assert row["difference"] == pytest.approx(score.points[better] - score.points[worse]) and row["difference"] > 0
        low, high = np.quantile(differences, [0.025, 0.975])
        assert (row["difference_low"], row["difference_high"]) == pytest.approx((low, high))
        assert row["told_apart"] == (low > 0 or high < 0)
    [agreement] = corpus_agreement(orders).iter_rows(named=True)
    assert (agreement["step"], agreement["other_step"]) == (7, 8)
    assert agreement["spearman"] == pytest.approx(spearmanr(*(score.points for score in values.values()))[0])


@settings(max_examples=30)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=6), st.integers(1, 2))
def test_places_are_midranks_of_the_scores(levels, seeds):
    names = {f"corpus{n}": float(level) for n, level in enumerate(levels)}
    scores = scores_of(names, seeds=range(seeds), solutions=2, noise=0).filter(statistic=RATIO[0])
    table = order_table(corpus_orders(scores, SelectionOptions(bootstrap_replicates=100)), 0.9).sort("corpus")
    expected = rankdata([-names[corpus] for corpus in table["corpus"]])
    for name in ("place", "place_low", "place_high"):
        assert table[name].to_list() == expected.tolist()


def test_corpora_without_a_truth_are_ordered_among_themselves():
    """All three are worse than the second of two with a truth: one predicted rank, and places of their own."""
    levels = {"best": 9.0, "good": 8.0, "x": 3.0, "y": 1.0, "z": 2.0}
    truth = pl.DataFrame({"corpus": ["best", "good"], "seed": [0, 0], "value": [0.9, 0.1]})
    orders = corpus_orders(scores_of(levels), FAST, ["best", "good"])
    table = ranking_table(orders, truth, FAST).filter(statistic=MEAN[0])
    assert table["corpus"].to_list() == list(levels)
    assert table["predicted_rank"].to_list() == [1, 2, 3, 3, 3] and table["place"].to_list() == [1, 2, 3, 5, 4]
    assert table["place_high"].to_list() == table["place"].to_list()
    pairs = corpus_pairs(orders, 0.95).filter(statistic=MEAN[0])
    assert len(pairs) == 10 and pairs["told_apart"].all() and ("x", "z") in pairs.select("better", "worse").rows()


def test_a_corpus_of_one_seed_and_one_solution_has_no_interval_and_is_told_from_none():
    scores = scores_of({"a": 5.0, "b": 4.0, "new": 3.0}, solutions=1)
    scores = scores.filter((pl.col("corpus") != "new") | (pl.col("seed") == 0))
    orders = corpus_orders(scores, FAST, ["a", "b"])
    pairs = corpus_pairs(orders, 0.95)
    alone = (pl.col("better") == "new") | (pl.col("worse") == "new")
    assert pairs.filter(alone)["told_apart"].null_count() == len(pairs.filter(alone)) == 4
    assert pairs.filter(~alone)["told_apart"].null_count() == 0


# From the tables of a study


def study(corpora, seeds=(0,), tasks=("sums",), solutions=4):
    """Checkpoints of one size and step, their values per solution and per task; the ratio is that of sums."""
    checkpoints, of_solutions, of_tasks = [], [], []
    for n, (corpus, seed) in enumerate(itertools.product(corpora, seeds)):
        name = f"{corpus}-small-seed{seed}-step4"
        row = {"checkpoint": name, "corpus": corpus, "size": "small", "step": 4, "seed": seed, "role": "proxy"}
        checkpoints.append(row | {"parameters": 10, "tokens": 20, "flops": 1200.0})
        for task in tasks:
            key = {"checkpoint": name, "task": task, "tail": "tokens"}
            sums = [(10.0 - n + m, 2.0 + m) for m in range(solutions)]
            for m, (y, x) in enumerate(sums):
                part = key | {"solution": f"q{m}"}
                of_solutions.append(part | dict(zip(("statistic", "weighting"), MEAN)) | {"value": n + m % 2.0})
                of_solutions.append(
                    part | dict(zip(("statistic", "weighting"), RATIO)) | {"value": y, "denominator": x}
                )
            total = {"value": sum(y for y, _ in sums) / sum(x for _, x in sums)}
            of_tasks.append(key | dict(zip(("statistic", "weighting"), RATIO)) | total)
        generic = {"checkpoint": name, "task": GENERIC_TEXT, "tail": "tokens", "weighting": "none", "value": 3.0 + n}
        of_tasks.append(generic | {"statistic": "expert_cross_entropy"})
    of_solutions = pl.LazyFrame(of_solutions, infer_schema_length=None).with_columns(pl.col("denominator").fill_null(1))
    return pl.DataFrame(checkpoints), pl.LazyFrame(of_tasks), of_solutions


HIGHLIGHTED = [Proxy(statistic=s, weighting=w) for s, w in (RATIO, ("generic_cross_entropy", "none"), MEAN)]
BUDGET = Budget(name="last", size="small", step=4)


def test_two_corpora_with_one_model_each_and_one_task_are_ordered():
    checkpoints, proxies, of_solutions = study(["web", "wiki"])
    tables = order_tables(checkpoints, proxies, of_solutions, ["sums"], FAST, [BUDGET], HIGHLIGHTED)
    ranking = tables["ranking"]
    names = ranking.select("statistic", "weighting").unique(maintain_order=True).rows()
    assert names == [(p.statistic, p.weighting) for p in HIGHLIGHTED]  # none of those known without scoring
    best = {statistic: rows["corpus"][0] for (statistic,), rows in ranking.group_by("statistic")}
    # The second has less loss on the solutions, more on the generic text.
    assert best == {"bits_per_byte": "wiki", "generic_cross_entropy": "web", "top5_accuracy": "wiki"}
    by_checkpoint = dict(proxies.collect().filter(statistic=RATIO[0]).select("checkpoint", "value").iter_rows())
    for corpus, predicted in ranking.filter(statistic=RATIO[0]).select("corpus", "predicted").iter_rows():
        assert predicted == pytest.approx(-by_checkpoint[f"{corpus}-small-seed0-step4"], abs=1e-12)
    known = ranking.group_by("statistic").agg(pl.col("place_low").null_count() == 0)
    assert dict(known.iter_rows()) == {"bits_per_byte": True, "generic_cross_entropy": False, "top5_accuracy": True}
    told = dict(tables["pairs"].select("statistic", "told_apart").iter_rows())
    assert told["top5_accuracy"] is True and told["generic_cross_entropy"] is None
    rho = tables["agreement"].select("statistic", "other_statistic", "spearman").rows()
    assert rho == [
        ("bits_per_byte", "generic_cross_entropy", -1),
        ("bits_per_byte", "top5_accuracy", 1),
        ("generic_cross_entropy", "top5_accuracy", -1),
    ]


def test_a_solution_that_a_corpus_lacks_is_named():
    checkpoints, proxies, of_solutions = study(["web", "wiki"])
    lacking = of_solutions.filter(~((pl.col("checkpoint") == "wiki-small-seed0-step4") & (pl.col("solution") == "q2")))
    with pytest.raises(InputError, match="task sums: score of corpus wiki, seed 0, solution q2 is missing"):
        order_tables(checkpoints, proxies, lacking, ["sums"], FAST, [BUDGET], HIGHLIGHTED)


def test_an_order_needs_a_score():
    with pytest.raises(InputError, match="highlighted: none of these proxies and baselines has a score"):
        corpus_orders(scores_of(LEVELS).clear(), FAST)


def test_seeds_that_only_some_corpora_have_are_left_out(caplog):
    checkpoints, proxies, of_solutions = study(["web", "wiki"], seeds=(0, 1))
    checkpoints = checkpoints.filter(pl.col("checkpoint") != "wiki-small-seed1-step4")
    proxies, of_solutions = (
        t.filter(pl.col("checkpoint") != "wiki-small-seed1-step4") for t in (proxies, of_solutions)
    )
    with caplog.at_level("INFO"):
        tables = order_tables(checkpoints, proxies, of_solutions, ["sums"], FAST, [BUDGET], HIGHLIGHTED)
    assert set(tables["ranking"]["seeds"]) == {1}
    assert "1 of 3 checkpoints are left out: not every corpus has them" in caplog.messages
