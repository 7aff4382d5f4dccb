"""How far the truth of each task can be trusted: figures by hand, intervals and verdicts."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from proxycast.experiments.bootstrap import bootstrap_weights
from proxycast.experiments.model_selection.fold_tables import method_summary, predictions_table, proxies_table
from proxycast.experiments.model_selection.folds import leave_two_tasks_out, score_folds
from proxycast.experiments.model_selection.known_models import Method, known_models
from proxycast.experiments.model_selection.scorers import Univariate
from proxycast.experiments.model_selection.task_truth import mean_ceiling, task_truth_table
from proxycast.experiments.reliability import reliability
from proxycast.truth.targets import HALVES
from scipy import stats
from selection_study import CHECKPOINTS, FAST, TASKS, gather, proxies_of, targets_of


@pytest.fixture(scope="module")
def known():
    return gather()


def test_the_truths_figures_by_hand(known):
    table = task_truth_table(known, {"algebra": 0.25, "sums": 0.2})
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
    assert task_truth_table(known, dict.fromkeys(TASKS, 0.5))["chance"].to_list() == [0.5] * 5


def test_reliability_is_the_squared_correlation_with_the_true_shares(known):
    """Many models, solved problems drawn from known shares: what is seen correlates with them at the ceiling."""
    rng = np.random.default_rng(7)
    shares = rng.uniform(0.2, 0.8, 4000)
    seen = rng.binomial(20, shares) / 20
    big = replace(known, truth=np.tile(seen, (4, 1)), problems=np.full((4, 4000), 20.0))
    row = task_truth_table(big, {}, FAST).row(0, named=True)
    assert row["reliability"] == pytest.approx(np.corrcoef(shares, seen)[0, 1] ** 2, abs=0.02)
    assert row["ceiling"] == pytest.approx(np.corrcoef(shares, seen)[0, 1], abs=0.02) and row["reliability"] < 0.85


def test_reliability_has_an_interval_and_a_verdict(known, caplog):
    """By hand from the samples of models; a truth of binomial noise alone, and one of few models."""
    row = task_truth_table(known, {}, FAST).row(0, named=True)
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
    table = task_truth_table(chance, {}, FAST)
    assert set(table["verdict"]) == {"noise"} and len(caplog.messages) == 5
    assert caplog.messages[0].startswith("The truth may be noise: task algebra has a reliability of ")
    few = replace(known, truth=known.truth[:, :4], problems=known.problems[:, :4])
    table = task_truth_table(few, {}, FAST)
    assert table["reliability_low"].null_count() == 5 and table["reliability"].null_count() == 0
    assert set(table["note"]) == {"reliability: no interval: too few models (4)"}
    assert mean_ceiling(table) == pytest.approx(table["ceiling"][:4].mean())


def test_an_unknown_number_of_problems_leaves_out_what_rests_on_it():
    for n in (pl.lit(None, pl.Int64), pl.when(pl.col("checkpoint") != "neox-1").then("n")):
        known = gather(targets=targets_of().with_columns(n=n))
        table = task_truth_table(known, {})
        assert table["reliability"][4] is None and mean_ceiling(table) is None
        unknown = table.filter(pl.col("reliability").is_null())
        assert set(unknown["note"]) == {"reliability unknown: the number of problems (n) is not given"}
        assert set(unknown["verdict"]) == {"unknown"}


def test_less_of_the_truth_may_be_better():
    """Scores, ranks and reliability are those of 1 less the error, which stands in the tables as it was given."""
    errors = targets_of().with_columns(value=(1 - pl.col("value")).round(6))
    known = known_models(CHECKPOINTS, proxies_of(), errors, TASKS, "accuracy", sign=-1)
    other = gather(targets=errors.with_columns(value=-pl.col("value")))
    folds = leave_two_tasks_out(known)
    scorers = {"univariate": Univariate()}
    found, expected = (score_folds(of, folds, scorers) for of in (known, other))
    assert method_summary(known, folds, found[0], FAST).equals(method_summary(other, folds, expected[0], FAST))
    table, turned = predictions_table(known, folds, found[0]), predictions_table(other, folds, expected[0])
    assert table.drop("truth").equals(turned.drop("truth")) and (table["truth"] == -turned["truth"]).all()
    best = table.filter(true_rank=1).select("task", "model").unique(maintain_order=True).row(0, named=True)
    of_task = errors.filter(task=best["task"])
    assert of_task.filter(checkpoint=best["model"])["value"].item() == of_task["value"].min()
    truth, plain = task_truth_table(known, {}, FAST), task_truth_table(gather(), {}, FAST)
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
    table = method_summary(few, folds, scores, FAST, ceiling=0.97)
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
        table = task_truth_table(known, {})
        assert table["reliability"].null_count() == table["ceiling"].null_count() == 5
        assert table["sd"].null_count() == 0
        assert table["note"].str.starts_with("reliability unknown: ").all() and set(table["verdict"]) == {"unknown"}


@pytest.mark.parametrize("problems, chance", [(30, 0.0), (30, 0.25), (8, 0.5), (400, 0.0)])
def test_models_at_chance_and_at_the_ceiling_are_counted(known, problems, chance, caplog):
    """Against the interval of scipy around a score at chance, and around all right."""
    caplog.set_level("WARNING")
    right = np.linspace(0, problems, 12).round()
    one = replace(known, truth=np.tile(right / problems, (4, 1)), problems=np.full((4, 12), float(problems)))
    table = task_truth_table(one, dict.fromkeys(TASKS, chance), FAST)
    at_chance = stats.binomtest(round(chance * problems), problems).proportion_ci(0.95, method="wilson").high
    ceiling = stats.binomtest(problems, problems).proportion_ci(0.95, method="wilson").low
    expected = [(right / problems <= at_chance).sum(), (right / problems >= ceiling).sum()]
    assert table.row(0, named=True)["at_chance"] == expected[0] > 0
    assert table.row(0, named=True)["at_ceiling"] == expected[1] > 0
    assert table.row(4, named=True)["at_chance"] is table.row(4, named=True)["at_ceiling"] is None
    marked = "within the noise of the problems" in table["note"][0]
    assert marked == (sum(expected) >= 6) == any("tells them apart" in message for message in caplog.messages)
    unknown = task_truth_table(replace(one, problems=np.full((4, 12), np.nan)), {}, FAST)
    assert unknown["at_chance"].null_count() == unknown["at_ceiling"].null_count() == 5
    # An error is the same upside down: nobody misses anything at its floor.
    errors = task_truth_table(replace(one, truth=one.truth - 1, sign=-1), {}, FAST)
    assert errors["at_ceiling"].to_list() == table["at_ceiling"].to_list() and errors["at_chance"].null_count() == 5


def test_a_task_that_nobody_solves_is_marked(known, caplog):
    shares = np.array([0, 0, 0, 0, 0, 1, 1, 2, 9, 30, 30, 30]) / 30
    one = replace(known, truth=np.stack([shares, *known.truth[1:]]), problems=np.full((4, 12), 30.0))
    table = task_truth_table(one, dict.fromkeys(TASKS, 0.0), FAST)
    words = "of 12 models, 8 at chance (0) and 3 all right within the noise of the problems: little tells them apart"
    assert table["note"][0] == words and f"the truth of algebra: {words}" in caplog.messages
    assert not table["note"][4] and table["at_chance"][0] == 8 and table["at_ceiling"][0] == 3


def drawn(rng: np.random.Generator, ability: np.ndarray, problems: int, samples: int) -> np.ndarray:
    """Shares (n models, problems) of right texts: a model solves a problem more often the easier it is."""
    odds = ability[:, None] - rng.normal(0, 1.5, problems)
    return rng.binomial(samples, 1 / (1 + np.exp(-odds))) / samples


def test_the_split_half_reliability_is_the_correlation_with_other_problems(known):
    """Two truths of 40 problems each agree as the halves of one say, on average over many draws."""
    rng, halves, found, others = np.random.default_rng(5), None, [], []
    ability = rng.normal(0, 0.6, 200)
    for _ in range(40):
        shares = drawn(rng, ability, 40, 4)
        halves = np.stack([shares[:, half::2].mean(1) for half in (0, 1)])
        found.append(reliability(halves))
        others.append(stats.spearmanr(shares.mean(1), drawn(rng, ability, 40, 4).mean(1))[0])
    assert np.mean(found) == pytest.approx(np.mean(others), abs=0.02)
    tiled = np.tile(shares.mean(1), (4, 1)), np.tile(halves[:, None], (1, 4, 1)), np.full((4, 200), 40.0)
    row = task_truth_table(replace(known, **dict(zip(("truth", "halves", "problems"), tiled))), {}, FAST).row(
        0, named=True
    )
    correlation = stats.spearmanr(*halves)[0]
    assert row["split_half"] == pytest.approx(2 * correlation / (1 + correlation))
    assert row["split_half_low"] < row["split_half"] < row["split_half_high"]
    # The variance of a share of single texts is more than the truth's noise.
    assert row["reliability"] < row["split_half"] - 0.03


def test_halves_come_from_the_table_of_the_truth():
    targets = targets_of().with_columns(metric=pl.lit("sampled_exact_match"))
    arguments = CHECKPOINTS, proxies_of()
    assert known_models(*arguments, targets, TASKS, "sampled_exact_match").halves is None
    halves = [targets.with_columns(value=pl.col("value") / n, metric=pl.lit(m)) for n, m in enumerate(HALVES, start=1)]
    known = known_models(*arguments, pl.concat([targets, *halves[::-1]]), TASKS, "sampled_exact_match")
    assert known.halves[0] == pytest.approx(known.truth) and known.halves[1] == pytest.approx(known.truth / 2)
    table = task_truth_table(known, {}, FAST)
    assert table["split_half"].to_list() == pytest.approx([1] * 5)  # the halves have one order
    lacking = pl.concat([targets, *halves]).head(-1)
    assert known_models(*arguments, lacking, TASKS, "sampled_exact_match").halves is None
    tied = replace(known, halves=np.stack([known.halves[0], np.zeros((4, 12))]))
    assert task_truth_table(tied, {}, FAST)["split_half"].null_count() == 5
