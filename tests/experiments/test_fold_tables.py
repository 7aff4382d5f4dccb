"""Tables of the model selection against scipy and loops."""

import numpy as np
import polars as pl
import pytest
from proxycast.config.experiments.selection_options import ModelSelectionOptions
from proxycast.config.truth import Target
from proxycast.experiments.bootstrap import bootstrap_weights
from proxycast.experiments.model_selection.fold_tables import (
    folds_table,
    method_summary,
    predictions_table,
    proxies_table,
    stability_table,
)
from proxycast.experiments.model_selection.folds import FAMILY, leave_one_label_out, leave_two_tasks_out, score_folds
from proxycast.experiments.model_selection.model_tables import model_selection_tables
from proxycast.experiments.model_selection.scorers import RankSVMLinear, Univariate
from proxycast.experiments.model_selection.writer_comparison import cheap_scorers, writers_table
from proxycast.options import InputError
from scipy import stats
from selection_study import (
    CHEAP,
    CHECKPOINTS,
    FAST,
    MODELS,
    TASKS,
    gather,
    of_solutions_of,
    proxies_of,
    rank_correlation,
    targets_of,
)


@pytest.fixture(scope="module")
def known():
    return gather()


@pytest.fixture(scope="module")
def scored(known):
    """Folds of both splits, what all methods say in them, and what was chosen."""
    families, _ = leave_one_label_out(known, FAMILY)
    folds = [*leave_two_tasks_out(known), *families]
    return folds, *score_folds(known, folds, CHEAP)


def test_the_table_of_folds_holds_scipys_correlations(known, scored):
    folds, scores, _ = scored
    table = folds_table(known, folds, scores)
    assert len(table) == (6 + 18) * 2 * (4 * 2 + 8 + 3 + 2)
    rows = table.iter_rows(named=True)
    for fold, found in zip(folds, scores, strict=True):
        for place, task in enumerate(fold.tasks):
            for method, values in found.items():
                row = next(rows)
                assert (row["split"], row["fold"], row["held_out"]) == (fold.split, fold.number, fold.held_out)
                assert (row["task"], row["models"]) == (TASKS[task], len(fold.test))
                assert (row["method"], row["kind"], row["tail"]) == method
                if np.ptp(values[place]) == 0:
                    assert (row["spearman"], row["note"]) == (0, "orders nothing, counts 0")
                else:
                    wanted = rank_correlation(values[place], known.truth[task, fold.test])
                    assert row["spearman"] == pytest.approx(wanted) and row["note"] == ""
    assert (table.filter(method="chance")["spearman"] == 0).all()


@pytest.mark.parametrize("split", ["two_tasks", "family"])
def test_the_summary_is_that_of_resampled_models(known, scored, split):
    folds, scores, _ = scored
    chosen = [n for n, fold in enumerate(folds) if fold.split == split][1:4]
    folds, scores = [folds[n] for n in chosen], [scores[n] for n in chosen]
    table = method_summary(known, folds, scores, FAST, "a note")
    methods, n = list(scores[0]), len(MODELS)

    def mean(method, drawn):
        """Mean over folds of the mean over tasks, without those whose truth is one value in the sample."""
        by_fold = []
        for fold, found in zip(folds, scores, strict=True):
            repeated = [place for place, m in enumerate(fold.test) for _ in range(np.sum(drawn == m))]
            rho = []
            for t, values in zip(fold.tasks, found[method], strict=True):
                x, y = values[repeated], known.truth[t, fold.test][repeated]
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


def test_predictions_have_midranks(known, scored):
    folds, scores, _ = scored
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


def test_what_was_chosen_is_what_was_fitted(known, scored):
    folds, _, chosen = scored
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


def test_stability_counts_each_split_by_its_own_folds(scored):
    folds, _, chosen = scored
    table = stability_table(chosen, folds)
    assert table["split"].unique(maintain_order=True).to_list() == ["two_tasks", "family"]
    shares = table.filter(scorer="univariate").group_by("split", "tail").agg(pl.col("share").sum())
    assert shares["share"].to_list() == pytest.approx([1] * 4)
    assert (table.filter(scorer="rank_svm_linear")["share"] == 1).all()


def test_a_recipe_is_a_split_of_every_table():
    """rho of bits per byte by hand: mean over a recipe's models of the fold, over its tasks, over folds."""
    recipes = [("none", "sft", "rl")[n % 3] for n in range(12)]
    given = proxies_of(), targets_of(), TASKS, Target(metric="accuracy")
    options = FAST, ModelSelectionOptions(scorers=["univariate"]), of_solutions_of().lazy(), []

    def tables(checkpoints):
        proxies, targets, *rest = given
        return model_selection_tables(checkpoints, targets, proxies, *rest, *options)

    plain, told = tables(CHECKPOINTS), tables(CHECKPOINTS.with_columns(recipe=pl.Series(recipes)))
    for name in ("summary", "folds", "chosen", "stability", "predictions"):
        splits = told[name]["split"].unique(maintain_order=True).to_list()
        assert splits == ["two_tasks", "family", "recipe"], name
        assert told[name].filter(pl.col("split") != "recipe").equals(plain[name]), name
    assert told["ranking"].equals(plain["ranking"])
    bits = proxies_of().filter(statistic="bits_per_byte", tail="tokens").join(targets_of(), on=["checkpoint", "task"])
    bits = bits.join(pl.DataFrame({"checkpoint": MODELS, "recipe": recipes}), on="checkpoint")
    rho = [rank_correlation(-own["value"], own["value_right"]) for _, own in bits.group_by("task", "recipe")]
    row = told["summary"].filter(split="recipe", method="bits_per_byte", tail="tokens")
    assert row["spearman"].item() == pytest.approx(np.mean(rho)) and len(rho) == 12 and row["folds"].item() == 18
    empty = tables(CHECKPOINTS.with_columns(recipe=pl.lit("")))
    assert all(empty[name].equals(table) for name, table in plain.items())


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
    folds, _ = leave_one_label_out(known, FAMILY)
    scores, chosen = score_folds(known, folds, CHEAP)
    table = folds_table(known, folds, scores)
    own = table.filter(pl.col("held_out").str.ends_with("gpt2"), kind="scorer")
    assert (own["spearman"] == 0).all() and len(own) == 6 * 2 * 8
    assert own["note"].str.contains("all training models tie in every training task").all()
    others = table.filter(~pl.col("held_out").str.ends_with("gpt2"))
    assert others["spearman"].null_count() == len(others)
    llama = [n for n, fold in enumerate(folds) if fold.held_out.endswith("llama")]
    summary = method_summary(known, [folds[n] for n in llama], [scores[n] for n in llama], FAST)
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


def test_single_proxies_are_compared_with_their_own_sign(known):
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
