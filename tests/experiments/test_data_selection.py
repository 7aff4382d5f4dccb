"""What the data selection is made from: signs, repeated baselines, the truth by seed and its reliability."""

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget, Proxy
from proxycast.config.truth import Target
from proxycast.experiments.data_selection.corpus_order import corpus_orders
from proxycast.experiments.data_selection.corpus_scores import (
    comparable,
    mean_predictions,
    metric_signs,
    predictions,
    require_known,
    solution_scores,
    tokens_read,
)
from proxycast.experiments.data_selection.corpus_truth import (
    about_noisy_metric,
    metric_truth_table,
    oriented,
    require_differences,
    truth_by_seed,
)
from proxycast.experiments.data_selection.data_tables import budget_summary
from proxycast.experiments.data_selection.ranking import decision_accuracy_table, ranking_table
from proxycast.experiments.reliability import noise_ceiling
from proxycast.options import InputError
from proxycast.proxy_formulas import BASELINES, STATISTICS, WEIGHTINGS
from proxycast.solutions.rows import GENERIC_TEXT
from proxycast.truth.targets import TARGETS_SCHEMA
from scipy import stats

CORPORA, TASKS, SEEDS = ["a", "b", "c", "d"], ["homes", "sums"], [0, 1, 2]
TARGET_STEPS = [4, 8]
LOWER_IS_BETTER = {"expert_cross_entropy": -1, "bits_per_byte": -1, "rbridge": -1}


def checkpoint(corpus: str, role: str, seed: int, step: int) -> dict:
    size, parameters = ("small", 100) if role == "proxy" else ("large", 1000)
    run = f"{corpus}-{size}-seed{seed}"
    tokens = 32 * step
    return {
        **{"checkpoint": f"{run}-step{step}", "run": run, "corpus": corpus, "family": "llama", "size": size},
        **{"parameters": parameters, "step": step, "tokens": tokens, "flops": 6 * parameters * tokens},
        **{"seed": seed, "role": role, "source": "", "revision": ""},
    }


SMALL = [checkpoint(corpus, "proxy", seed, step) for corpus in CORPORA for seed in (0, 1) for step in (2, 4)]
LARGE = [checkpoint(corpus, "target", seed, step) for corpus in CORPORA for seed in SEEDS for step in TARGET_STEPS]
CHECKPOINTS = pl.DataFrame(SMALL + LARGE)


@pytest.fixture(scope="module")
def proxies() -> pl.DataFrame:
    """Random values for each small checkpoint: 80 proxies of each task, two baselines of each and of generic text."""
    random = np.random.default_rng(0)
    keys = [(task, s, w) for task in TASKS for s in STATISTICS for w in WEIGHTINGS]
    keys += [(task, s, "none") for task in (*TASKS, GENERIC_TEXT) for s in BASELINES]
    keys += [(task, "rbridge", "none") for task in TASKS]  # of a study with writers
    rows = [(c["checkpoint"], *key, random.normal()) for c in SMALL for key in keys]
    return pl.DataFrame(rows, ["checkpoint", "task", "statistic", "weighting", "value"], orient="row")


@pytest.fixture(scope="module")
def targets() -> pl.DataFrame:
    """Accuracy of all checkpoints; log-likelihood of all but one small one; exact match of target checkpoints alone."""
    random = np.random.default_rng(1)
    rows = [(c["checkpoint"], task, "accuracy", random.random(), 40) for c in SMALL + LARGE for task in TASKS]
    rows += [(c["checkpoint"], task, "likelihood", -random.random(), 40) for c in SMALL[1:] + LARGE for task in TASKS]
    rows += [(c["checkpoint"], task, "exact_match", 0.0, 40) for c in LARGE for task in TASKS]
    return pl.DataFrame(rows, TARGETS_SCHEMA, orient="row")


# Predictions


@pytest.fixture(scope="module")
def predicted(proxies, targets) -> pl.DataFrame:
    return predictions(CHECKPOINTS, proxies, targets, TASKS)


def test_every_score_has_its_sign(predicted, proxies):
    """Against a loop over the rows of the proxies."""
    names = CHECKPOINTS.select("checkpoint", "corpus", "size", "step", "seed")
    key = ["corpus", "size", "step", "seed", "task", "statistic", "weighting"]
    found = {tuple(row[k] for k in key): row["score"] for row in predicted.iter_rows(named=True)}
    for row in proxies.join(names, on="checkpoint").filter(pl.col("task") != GENERIC_TEXT).iter_rows(named=True):
        signs = LOWER_IS_BETTER if row["weighting"] == "none" else {n: s.sign for n, s in STATISTICS.items()}
        assert found[tuple(row[k] for k in key)] == signs[row["statistic"]] * row["value"]


def test_a_better_model_scores_higher(predicted, proxies):
    """Lower is better for losses and ranks, higher for accuracies: the signs that were fixed before any target."""
    lower = {"cross_entropy", "normalized_entropy", "expert_rank", "margin", "wrong_confidence", *LOWER_IS_BETTER}
    best = (
        proxies.filter(task="sums")
        .group_by("statistic", "weighting")
        .agg(pl.col("value").min().alias("min"), pl.col("value").max().alias("max"))
    )
    scores = predicted.filter(task="sums").group_by("statistic", "weighting").agg(pl.col("score").max())
    for row in best.join(scores, on=["statistic", "weighting"]).iter_rows(named=True):
        assert row["score"] == (-row["min"] if row["statistic"] in lower else row["max"])


def test_kinds(predicted):
    proxies = predicted.filter(kind="proxy")
    assert proxies.select("statistic", "weighting").n_unique() == 80
    assert set(proxies.filter("depends_on_candidate")["weighting"]) == {
        w for w, weighting in WEIGHTINGS.items() if weighting.depends_on_candidate
    }
    baselines = predicted.filter(kind="baseline")
    assert set(baselines["weighting"]) == {"none"} and not baselines["depends_on_candidate"].any()
    known = {"parameters", "training_compute", "chance", "generic_cross_entropy", "accuracy", "likelihood"}
    assert set(baselines["statistic"]) == {*LOWER_IS_BETTER, *known}
    # Nothing of a target checkpoint may be a prediction of itself.
    assert set(predicted["size"]) == {"small"}


def test_each_prediction_stands_once_for_each_small_checkpoint_and_task(predicted):
    everywhere = predicted.filter(pl.col("statistic") != "likelihood")
    counts = everywhere.group_by("statistic", "weighting").agg(
        pl.len(), pl.struct("corpus", "size", "step", "seed", "task").n_unique().alias("distinct")
    )
    assert set(counts["len"]) == set(counts["distinct"]) == {len(SMALL) * len(TASKS)}


def test_baselines_that_know_no_task_are_repeated(predicted, proxies):
    generic = proxies.filter(task=GENERIC_TEXT, statistic="expert_cross_entropy").join(CHECKPOINTS, on="checkpoint")
    for row in generic.iter_rows(named=True):
        cell = predicted.filter(statistic="generic_cross_entropy", **{k: row[k] for k in ("corpus", "step", "seed")})
        assert sorted(cell["task"]) == TASKS and set(cell["score"]) == {-row["value"]}
    cell = predicted.filter(corpus="b", step=4, seed=1, task="sums")
    one = {name: cell.filter(statistic=name)["score"].item() for name in ("parameters", "training_compute", "chance")}
    assert one == {"parameters": 100, "training_compute": 6 * 100 * 32 * 4, "chance": 0}


def test_metrics_are_baselines_where_they_are_complete(predicted, targets):
    direct = predicted.filter(statistic="accuracy", corpus="c", step=2, seed=1, task="homes")["score"].item()
    assert direct == targets.filter(checkpoint="c-small-seed1-step2", task="homes", metric="accuracy")["value"].item()
    assert "exact_match" not in set(predicted["statistic"])
    # One small checkpoint of step 2 lacks its likelihood: at that step it is no baseline, at the other it is.
    likelihood = predicted.filter(statistic="likelihood")
    assert set(likelihood["step"]) == {4} and len(likelihood) == len(SMALL) // 2 * len(TASKS)


def test_halves_of_a_metric_are_no_baselines(proxies, targets):
    drawn = [
        targets.filter(metric="accuracy").with_columns(metric=pl.lit(f"sampled_exact_match{n}"))
        for n in ("", "_odd", "_even")
    ]
    found = set(predictions(CHECKPOINTS, proxies, pl.concat([targets, *drawn]), TASKS)["statistic"])
    assert {name for name in found if name.startswith("sampled")} == {"sampled_exact_match"}


def test_a_scored_checkpoint_must_be_in_the_table(proxies):
    require_known(CHECKPOINTS, proxies.lazy())
    older = CHECKPOINTS.filter(pl.col("corpus") != "d")
    with pytest.raises(
        InputError, match=r"^checkpoints.parquet lacks d-small-seed\d-step\d, .*remove it and run again"
    ):
        require_known(older, proxies.lazy())


def test_without_generic_text_only_its_baseline_is_missing(proxies, targets, predicted):
    found = predictions(CHECKPOINTS, proxies.filter(pl.col("task") != GENERIC_TEXT), targets, TASKS)
    expected = predicted.filter(pl.col("statistic") != "generic_cross_entropy")
    assert len(expected) < len(predicted)
    assert_frame_equal(found, expected, check_row_order=False)


def test_without_any_measured_metric(proxies, targets):
    truth_alone = targets.filter(pl.col("checkpoint").str.contains("large"))
    assert "accuracy" not in set(predictions(CHECKPOINTS, proxies, truth_alone, TASKS)["statistic"])


def test_predictions_are_what_the_ranking_takes(predicted, targets):
    truth = truth_by_seed(CHECKPOINTS, targets, "accuracy").group_by("corpus", "task").agg(pl.col("value").mean())
    table = decision_accuracy_table(predicted, truth, 1e6, SelectionOptions(bootstrap_replicates=100))
    chance = table.filter(statistic="chance")["decision_accuracy"]
    assert set(chance) == {0.5}
    # By hand: pairs of corpora in the same order, for one cell.
    cell = {"statistic": "margin", "weighting": "entropy", "step": 4}
    scores = predicted.filter(**cell, seed=1, task="sums").sort("corpus")["score"]
    true = truth.filter(task="sums").sort("corpus")["value"]
    agree = [(scores[i] > scores[j]) == (true[i] > true[j]) for i in range(4) for j in range(i)]
    found = table.filter(**cell, seed="1", task="sums")["decision_accuracy"].item()
    assert found == pytest.approx(np.mean(agree))
    assert table.equals(decision_accuracy_table(predicted, truth, 1e6, SelectionOptions(bootstrap_replicates=100), 3))


def test_mean_predictions_by_hand(predicted, targets):
    truth = truth_by_seed(CHECKPOINTS, targets, "accuracy")
    table = mean_predictions(predicted, truth)
    assert len(table) == len(predicted.select("corpus", "statistic", "weighting", "step").unique())
    cell = {"corpus": "c", "statistic": "margin", "weighting": "entropy", "step": 4}
    found = table.filter(**cell).row(0, named=True)
    scores = {(r["seed"], r["task"]): r["score"] for r in predicted.filter(**cell).iter_rows(named=True)}
    assert len(scores) == 2 * len(TASKS) and found["predicted"] == pytest.approx(np.mean(list(scores.values())))
    last = [c["checkpoint"] for c in LARGE if c["corpus"] == "c" and c["step"] == 8]
    true = targets.filter(pl.col("checkpoint").is_in(last), metric="accuracy")["value"]
    assert len(true) == len(SEEDS) * len(TASKS) and found["truth"] == pytest.approx(true.mean())


def test_measurements_alone_are_predictions(targets):
    """A study that judges what others measured has no proxies; its one task is what it says."""
    nothing = dict.fromkeys(("checkpoint", "task", "statistic", "weighting"), pl.String) | {"value": pl.Float64}
    found = predictions(CHECKPOINTS, pl.DataFrame(schema=nothing), targets, ["sums"])
    found = found.filter(pl.col("statistic") != "likelihood")
    assert set(found["statistic"]) == {"accuracy", "parameters", "training_compute", "chance"}
    assert set(found["task"]) == {"sums"} and found.height == 4 * len(SMALL)
    measured = dict(targets.filter(task="sums", metric="accuracy").select("checkpoint", "value").iter_rows())
    for row in found.filter(statistic="accuracy").iter_rows(named=True):
        name = "{corpus}-{size}-seed{seed}-step{step}".format(**row)
        assert row["score"] == measured[name] and row["checkpoint"] == name


# Corpora and checkpoints that cannot be compared

# Of a corpus without a target, of a step and of a seed that only some corpora with one have.
NEW = [checkpoint("new", "proxy", seed, step) for seed in (1, 7) for step in (2, 4, 6)]
EXTRA = [checkpoint("a", "proxy", 0, 6), checkpoint("b", "proxy", 0, 6), checkpoint("c", "proxy", 5, 4)]
UNEVEN = pl.DataFrame([*NEW, *EXTRA, *SMALL, *LARGE])


def test_comparable_by_brute_force(caplog):
    """Each size, step and seed that every corpus with a target has; against sets."""
    with caplog.at_level("INFO"):
        found = set(comparable(UNEVEN)["checkpoint"])
    judged = {c["corpus"] for c in LARGE}
    have = {corpus: {(c["step"], c["seed"]) for c in [*SMALL, *EXTRA] if c["corpus"] == corpus} for corpus in judged}
    everywhere = set.intersection(*have.values())
    names = {f"{corpus}-small-seed{seed}-step{step}" for corpus in judged for step, seed in everywhere}
    assert found == names == {c["checkpoint"] for c in SMALL}
    assert caplog.messages == [
        f"{len(EXTRA)} of {len(SMALL) + len(EXTRA)} checkpoints are left out: not every corpus has them"
    ]
    caplog.clear()
    assert comparable(CHECKPOINTS).rows() == pl.DataFrame(SMALL).rows() and not caplog.messages


def test_sizes_are_compared_one_by_one():
    """A step that two corpora have of different sizes is none that both have."""
    other = [{**c, "size": "tiny", "checkpoint": f"{c['checkpoint']}-tiny"} for c in EXTRA if c["corpus"] == "a"]
    more = [checkpoint(corpus, "proxy", 0, 6) for corpus in "bcd"]
    assert set(comparable(pl.DataFrame([*SMALL, *LARGE, *other, *more]))["checkpoint"]) == {
        c["checkpoint"] for c in SMALL
    }


def more_proxies(proxies: pl.DataFrame) -> pl.DataFrame:
    """The values of a small model, also as those of all that cannot be compared."""
    one = proxies.filter(checkpoint=SMALL[0]["checkpoint"])
    return pl.concat([proxies, *(one.with_columns(checkpoint=pl.lit(c["checkpoint"])) for c in [*NEW, *EXTRA])])


def test_what_cannot_be_compared_is_not_judged(predicted, proxies, targets):
    measured = [(c["checkpoint"], task, "accuracy", 0.5, 40) for c in [*NEW, *EXTRA] for task in TASKS]
    more = pl.concat([targets, pl.DataFrame(measured, TARGETS_SCHEMA, orient="row")])
    found = predictions(UNEVEN, more_proxies(proxies), more, TASKS)
    key = ["checkpoint", "task", "statistic", "weighting"]
    assert found.sort(key).equals(predicted.sort(key).select(found.columns))


# The truth


def test_truth_is_that_of_the_last_target_checkpoints(targets):
    truth = truth_by_seed(CHECKPOINTS, targets, "accuracy")
    assert truth.height == len(CORPORA) * len(SEEDS) * len(TASKS)
    for row in truth.iter_rows(named=True):
        name = f"{row['corpus']}-large-seed{row['seed']}-step8"
        assert row["value"] == targets.filter(checkpoint=name, task=row["task"], metric="accuracy")["value"].item()


def test_a_small_model_that_was_trained_longer_is_not_the_last_target(targets):
    longer = pl.concat([CHECKPOINTS, pl.DataFrame([checkpoint("a", "proxy", 1, 16)])])
    expected = truth_by_seed(CHECKPOINTS, targets, "accuracy")
    assert_frame_equal(truth_by_seed(longer, targets, "accuracy"), expected, check_row_order=False)


def test_truth_that_lacks_a_corpus(targets):
    fewer = targets.filter(~pl.col("checkpoint").str.starts_with("c-large"))
    with pytest.raises(InputError, match=r"lacks accuracy of corpus c \(c-large-seed0-step8, task homes\) and 5 more"):
        truth_by_seed(CHECKPOINTS, fewer, "accuracy")


def test_a_truth_that_ties_all_corpora_is_told(targets):
    tied = targets.with_columns(value=pl.lit(0.5))
    with pytest.raises(InputError, match="the truth ranks nothing: accuracy is 0.5 for all 4 corpora"):
        require_differences(truth_by_seed(CHECKPOINTS, tied, "accuracy"), "accuracy")
    require_differences(truth_by_seed(CHECKPOINTS, targets, "accuracy"), "accuracy")


def test_truth_that_lacks_one_task_of_a_seed(targets):
    fewer = targets.filter(~((pl.col("checkpoint") == "b-large-seed2-step8") & (pl.col("task") == "sums")))
    with pytest.raises(InputError, match=r"of corpus b \(b-large-seed2-step8, task sums\) and 0 more"):
        truth_by_seed(CHECKPOINTS, fewer, "accuracy")


def test_truth_of_an_unknown_metric(targets):
    with pytest.raises(InputError, match=r"holds no acuracy .* found \['accuracy', 'exact_match', 'likelihood'\]"):
        truth_by_seed(CHECKPOINTS, targets, "acuracy")


def some_truth(values: np.ndarray, n: int = 50) -> pl.DataFrame:
    """A table of `truth_by_seed` from values (seeds, tasks, corpora)."""
    rows = [(f"corpus{c:02d}", s, f"task{t}", v, n) for (s, t, c), v in np.ndenumerate(values)]
    return pl.DataFrame(rows, ["corpus", "seed", "task", "value", "n"], orient="row").sample(
        fraction=1, shuffle=True, seed=0
    )


def test_truth_table_by_hand():
    random = np.random.default_rng(2)
    values = np.clip(random.normal(0.5, 0.1, (1, 1, 12)) + random.normal(0, 0.05, (3, 2, 12)), 0, 1)
    values[..., 5] = 0.27  # above chance, by less than two standard errors
    row = metric_truth_table({"accuracy": some_truth(values)}, {"accuracy": 0.25}).row(0, named=True)
    by_seed = values.mean(1)  # (seeds, corpora)
    mean = by_seed.mean(0)
    between = np.mean([stats.spearmanr(by_seed[i], by_seed[j]).statistic for i in range(3) for j in range(i)])
    reliability = 3 * between / (1 + 2 * between)
    expected = {
        **{"metric": "accuracy", "corpora": 12, "tasks": 2, "seeds": 3},
        **{"lowest": mean.min(), "highest": mean.max(), "spread": np.sqrt(((mean - mean.mean()) ** 2).sum() / 11)},
        "seed_noise": np.sqrt(np.mean([np.sum((column - column.mean()) ** 2) / 2 for column in by_seed.T])),
        **{"reliability": reliability, "reliability_one_seed": between, "chance": 0.25},
        "ceiling_spearman": np.sqrt(reliability),
        "ceiling_decision_accuracy": noise_ceiling(reliability).decision_accuracy,
        "agreement": 1.0,
        "above_chance": sum(m > 0.25 + 2 * np.sqrt(0.25 * 0.75 / (50 * 2 * 3)) for m in mean),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert row["above_chance"] < 12 and row["reliability_low"] < reliability < row["reliability_high"]


def test_truth_table_without_what_cannot_be_known():
    """One seed has no reliability, nor has an exact match of zero everywhere; without a chance none is above it."""
    random = np.random.default_rng(3)
    truths = {"one": some_truth(random.random((1, 2, 4))), "zero": some_truth(np.zeros((3, 2, 4)))}
    table = metric_truth_table({"both": some_truth(random.random((2, 1, 4)))} | truths, {"one": 0.25})
    unknown = ["seed_noise", "reliability", "reliability_one_seed", "ceiling_spearman", "ceiling_decision_accuracy"]
    assert table.filter(metric="both").select(unknown).null_count().sum_horizontal().item() == 0
    for metric in truths:
        assert set(table.filter(metric=metric).select(unknown).row(0)) == {None}
    assert [value is None for value in table["above_chance"]] == [True, False, True]


def test_a_truth_that_is_noise_says_so(caplog):
    """Seeds that know nothing of each other, that contradict each other, and a truth that can be repeated."""
    random = np.random.default_rng(8)
    noise, quality = random.random((3, 1, 12)), np.linspace(0.2, 0.8, 12)
    up = np.array([[[0.1, 0.2, 0.3]], [[0.3, 0.2, 0.1]]])
    truths = {"noise": noise, "opposite": up, "clear": quality + 0.08 * random.normal(size=(3, 1, 12))}
    table = metric_truth_table({name: some_truth(values) for name, values in truths.items() if name != "opposite"}, {})
    assert table["verdict"].to_list() == ["noise", "excellent"]
    row, clear = table.row(0, named=True), table.row(1, named=True)
    assert row["reliability_low"] <= 0 < clear["reliability_low"] < clear["reliability"] < clear["reliability_high"]
    ends = [noise_ceiling(clear[f"reliability_{end}"]).decision_accuracy for end in ("low", "high")]
    assert [clear["ceiling_decision_accuracy_low"], clear["ceiling_decision_accuracy_high"]] == pytest.approx(ends)
    assert (
        caplog.messages == [about_noisy_metric(row)] and "reliability of " in caplog.text and "clear" not in caplog.text
    )
    alone = metric_truth_table({"opposite": some_truth(up)}, {}).row(0, named=True)
    assert alone["reliability"] == alone["reliability_one_seed"] == -1 and alone["verdict"] == "noise"
    assert alone["ceiling_decision_accuracy"] == 0.5 and alone["reliability_low"] is None
    assert alone["note"] == "reliability: no interval: too few corpora (3)"
    assert "has a reliability of -1.00 over 2 seeds; nothing can be concluded" in about_noisy_metric(alone)


def test_an_unknown_number_of_problems_leaves_out_what_rests_on_it():
    values = np.random.default_rng(9).random((2, 2, 6))
    known, some = some_truth(values), some_truth(values).with_columns(n=pl.when(seed=0, task="task1").then("n"))
    row = metric_truth_table({"accuracy": known}, {"accuracy": 0.25}).row(0, named=True)
    for truth in (some, known.with_columns(n=pl.lit(None, pl.Int64))):
        found = metric_truth_table({"accuracy": truth}, {"accuracy": 0.25}).row(0, named=True)
        assert found.pop("note") == "above_chance unknown: the number of problems (n) is not given"
        assert found == {name: value for name, value in row.items() if name != "note"} | {"above_chance": None}
    assert row["above_chance"] is not None and row["note"] == ""
    alone = metric_truth_table({"accuracy": some_truth(values[:1])}, {}).row(0, named=True)
    assert alone["note"] == "reliability unknown: one seed" and alone["verdict"] == "unknown"


def test_losses_are_better_the_less(proxies, targets, caplog):
    """A loss of 1 - accuracy predicts, is predicted and agrees as the accuracy does; its values stay as they are."""
    loss = targets.filter(metric="accuracy").with_columns(metric=pl.lit("loss"), value=1 - pl.col("value"))
    both = pl.concat([targets, loss])
    signs = metric_signs(both, Target(other_metrics=["loss"], lower_is_better=["loss"]))
    assert signs == {"accuracy": 1, "exact_match": 1, "likelihood": 1, "loss": -1} and not caplog.messages
    predicted = predictions(CHECKPOINTS, proxies, both, TASKS, signs)
    truths = {metric: truth_by_seed(CHECKPOINTS, both, metric) for metric in ("accuracy", "loss")}
    table = metric_truth_table(truths, {}, signs=signs)
    assert table["agreement"].to_list() == [1, 1] and table["higher_is_better"].to_list() == [True, False]
    assert table["lowest"][1] == pytest.approx(1 - table["highest"][0])
    options = SelectionOptions(bootstrap_replicates=100)
    judged = [
        decision_accuracy_table(predicted, oriented(truth, signs[metric]), 1e6, options)
        for metric, truth in truths.items()
    ]
    assert_frame_equal(*judged)
    accuracy, error = (judged[0].filter(statistic=name).drop("statistic") for name in truths)
    to_itself = ["difference_low", "difference_high"]  # null but for the best baseline, with so few corpora
    assert_frame_equal(accuracy.drop(to_itself), error.drop(to_itself))
    metric_signs(both, Target(metric="accuracy"))  # it would be a baseline upside down
    assert caplog.messages[-1].startswith("loss counts as better the more; if less is better, name it in target.lower")


def test_agreement_of_truths_by_hand():
    """Share of pairs of corpora in the same order as by the first metric; a pair that ties counts half."""
    random = np.random.default_rng(4)
    first = random.random((3, 2, 6))
    others = {
        "reversed": 1 - first,
        "noisy": first + random.random((3, 2, 6)),
        "tied": np.round(first.mean((0, 1)), 1) + np.zeros((3, 2, 6)),
    }
    table = metric_truth_table({name: some_truth(values) for name, values in ({"first": first} | others).items()}, {})
    mean = first.mean((0, 1))
    for name, values in others.items():
        own = np.round(values.mean((0, 1)), 9)
        pairs = [np.sign(own[i] - own[j]) * np.sign(mean[i] - mean[j]) for i in range(6) for j in range(i)]
        assert table.filter(metric=name)["agreement"].item() == pytest.approx((np.mean(pairs) + 1) / 2)
    assert table["agreement"][:2].to_list() == [1, 0]


# The summary


def test_summary_has_the_best_the_highlighted_and_all_baselines(predicted, targets):
    truth = truth_by_seed(CHECKPOINTS, targets, "accuracy").group_by("corpus", "task").agg(pl.col("value").mean())
    table = decision_accuracy_table(predicted, truth, 1e6, SelectionOptions(bootstrap_replicates=100))
    budgets = [Budget(name=f"after {step}", size="small", step=step) for step in (2, 4)]
    for budget in budgets:
        judged = table.filter(task="all", seed="single", step=budget.step)
        proxies = judged.filter(kind="proxy").sort("decision_accuracy", maintain_order=True)
        # The worst proxy is surely not among the ten best.
        highlighted = Proxy(**proxies.select("statistic", "weighting").row(0, named=True))
        summary = budget_summary(table, budgets, [highlighted], ceiling=0.9).filter(budget=budget.name)
        found = summary.filter(kind="proxy")
        assert found.filter("highlighted").select("statistic", "weighting").rows() == [
            tuple(vars(highlighted).values())
        ]
        best = sorted(proxies["decision_accuracy"], reverse=True)[:10]
        assert found.filter(~pl.col("highlighted"))["decision_accuracy"].to_list() == best
        baselines = summary.filter(kind="baseline").drop_nulls("decision_accuracy")
        expected = judged.filter(kind="baseline").drop_nulls("decision_accuracy")
        assert sorted(baselines["statistic"]) == sorted(expected["statistic"])
        assert summary["decision_accuracy"].drop_nulls().is_sorted(descending=True)
        assert set(summary["noise_ceiling"]) == {0.9}


def test_the_summary_says_what_is_luck_and_what_has_no_interval(predicted, targets, caplog):
    truth = truth_by_seed(CHECKPOINTS, targets, "accuracy").group_by("corpus", "task").agg(pl.col("value").mean())
    table = decision_accuracy_table(predicted, truth, 1e6, SelectionOptions(bootstrap_replicates=100))
    budget, highlighted = Budget(name="last", size="small", step=4), Proxy(statistic="margin")
    summary = budget_summary(table, [budget], [highlighted], ceiling=0.6)
    luck = "above the noise ceiling, which a perfect prediction is expected to reach: luck, or too low a ceiling"
    for row in summary.iter_rows(named=True):
        notes = ["no interval: too few corpora (4)"] + [luck] * ((row["decision_accuracy"] or 0) > 0.6)
        assert row["note"] == "; ".join(notes) and row["low"] is None
    counts = summary.group_by("note").len()
    assert sorted(caplog.messages) == sorted(
        f"{count} of {len(summary)} rows of the summary: {note}" for note, count in counts.iter_rows()
    )
    assert not budget_summary(table, [budget], [highlighted], ceiling=None)["note"].str.contains("luck").any()


# Per solution


@pytest.fixture(scope="module")
def per_solution() -> pl.DataFrame:
    random = np.random.default_rng(4)
    keys = [
        (task, f"p{n}", s, w) for task in TASKS for n in range(3) for s in STATISTICS for w in ("uniform", "entropy")
    ]
    rows = [(c["checkpoint"], *key, random.normal()) for c in SMALL for key in keys]
    columns = ["checkpoint", "task", "solution", "statistic", "weighting", "value"]
    return pl.DataFrame(rows, columns, orient="row").with_columns(denominator=pl.lit(1.0))


WANTED = [Proxy(statistic="cross_entropy"), Proxy(statistic="top1_accuracy", weighting="entropy")]


def test_solution_scores(per_solution, predicted):
    scores = solution_scores(CHECKPOINTS, per_solution.lazy(), predicted, WANTED)
    assert scores.height == len(SMALL) * len(TASKS) * 3 * len(WANTED)
    wanted = {("cross_entropy", "uniform"): -1, ("top1_accuracy", "entropy"): 1}
    assert set(scores.select("statistic", "weighting").rows()) == set(wanted)
    key = ["corpus", "size", "seed", "step", "task", "solution", "statistic", "weighting"]
    values = per_solution.join(CHECKPOINTS, on="checkpoint")
    joined = scores.join(values, on=key, validate="1:1")
    assert joined.height == scores.height
    for row in joined.iter_rows(named=True):
        assert row["score"] == wanted[row["statistic"], row["weighting"]] * row["value"]


def test_solution_scores_are_what_the_ranking_takes(per_solution, predicted, targets):
    scores = solution_scores(CHECKPOINTS, per_solution.lazy(), predicted, WANTED)
    options, truth = SelectionOptions(bootstrap_replicates=100), truth_by_seed(CHECKPOINTS, targets, "accuracy")
    table = ranking_table(corpus_orders(scores, options, CORPORA), truth, options)
    cell = {"statistic": "top1_accuracy", "weighting": "entropy", "size": "small", "step": 2}
    by_hand = scores.filter(corpus="d", **cell)["score"].mean()
    assert table.filter(corpus="d", **cell)["predicted"].item() == pytest.approx(by_hand)


def test_solution_scores_of_candidates(per_solution, predicted):
    """At the sizes and steps at which the others are judged, with whatever seeds; other checkpoints are left out."""
    one = per_solution.filter(checkpoint=SMALL[0]["checkpoint"])
    more = [one.with_columns(checkpoint=pl.lit(c["checkpoint"])) for c in [*NEW, *EXTRA]]
    scores = solution_scores(UNEVEN, pl.concat([per_solution, *more]).lazy(), predicted, WANTED)
    new = scores.filter(corpus="new")
    assert set(new.select("step", "seed").rows()) == {(step, seed) for step in (2, 4) for seed in (1, 7)}
    assert new.height == 4 * len(TASKS) * 3 * len(WANTED)
    rest = scores.filter(pl.col("corpus") != "new")
    plain = solution_scores(CHECKPOINTS, per_solution.lazy(), predicted, WANTED)
    assert rest.sort(pl.all()).equals(plain.sort(pl.all()))
    same = scores.filter(corpus=SMALL[0]["corpus"], seed=SMALL[0]["seed"], step=SMALL[0]["step"])
    key = ["task", "solution", "statistic", "weighting"]
    assert same.select(*key, "score").sort(key).equals(new.filter(seed=7, step=4).select(*key, "score").sort(key))


def test_baselines_are_ranked_by_their_score_of_a_task(per_solution, predicted, targets):
    wanted = [*WANTED, Proxy(statistic="generic_cross_entropy", weighting="none")]
    scores = solution_scores(CHECKPOINTS, per_solution.lazy(), predicted, wanted)
    baseline = scores.filter(weighting="none")
    expected = predicted.filter(statistic="generic_cross_entropy")
    key = ["corpus", "size", "step", "seed", "task", "score"]
    assert sorted(baseline.select(key).rows()) == sorted(expected.select(key).rows())
    assert set(baseline["solution"]) == {""} and baseline.height == len(SMALL) * len(TASKS)
    truth = truth_by_seed(CHECKPOINTS, targets, "accuracy")
    options = SelectionOptions(bootstrap_replicates=100)
    table = ranking_table(corpus_orders(scores, options, CORPORA), truth, options)
    row = table.filter(weighting="none", corpus="b", step=4).row(0, named=True)
    by_corpus = {c: expected.filter(corpus=c, step=4)["score"].mean() for c in CORPORA}
    assert row["predicted"] == pytest.approx(by_corpus["b"])
    assert row["predicted_rank"] == 1 + sum(score > by_corpus["b"] for score in by_corpus.values())


def test_no_solutions_at_all(predicted):
    """A study that runs no model."""
    names = ("checkpoint", "task", "solution", "statistic", "weighting")
    numbers = dict.fromkeys(("value", "denominator"), pl.Float64)
    nothing = pl.LazyFrame(schema=dict.fromkeys(names, pl.String) | numbers)
    wanted = [Proxy(statistic="accuracy", weighting="none")]
    assert solution_scores(CHECKPOINTS, nothing, predicted, wanted).height == len(SMALL) * len(TASKS)


def test_tokens_read_counts_prompts_and_one_checkpoint(tmp_path):
    rows = [
        *[(checkpoint, "sums", "p0", position) for checkpoint in "xy" for position in (4, 5, 6)],  # 7 tokens
        *[(checkpoint, "sums", "p1", position) for checkpoint in "xy" for position in (2, 3)],  # 4 tokens
        *[(checkpoint, "homes", "p0", position) for checkpoint in "xy" for position in (8, 9)],  # 10 tokens
    ]
    token_stats = pl.DataFrame(rows, ["checkpoint", "task", "solution", "position"], orient="row")
    for (checkpoint,), part in token_stats.group_by("checkpoint"):
        part.write_parquet(tmp_path / f"{checkpoint}.parquet")
    parts = sorted(tmp_path.iterdir())
    assert tokens_read(parts, {"x", "y"}) == tokens_read(parts, {"y"}) == 7 + 4 + 10
    assert tokens_read(parts, {"z"}) is None
