"""Tasks that only add noise, and repeats: against scipy and plain loops; and a whole study with and without a truth."""

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from noisy_study import BUDGETS, TASKS, study_of
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.truth import Target
from proxycast.experiments import signal_to_noise as snr
from proxycast.experiments.bootstrap import bootstrap_weights, percentile_interval
from proxycast.experiments.data_selection import noisy_tasks
from proxycast.experiments.rank_statistics import decision_accuracy
from proxycast.options import InputError
from scipy.stats import f_oneway

OPTIONS = SelectionOptions(bootstrap_replicates=200, noise_checkpoints=2)


def scores_of(statistics=5, seeds=3, tasks=4, n=8, seed=0, noisy=()):
    """(S, K, T, n) with a signal in every task but the `noisy` ones."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=n) * ~np.isin(np.arange(tasks), noisy)[:, None]
    return 3 + signal + 0.5 * rng.normal(size=(statistics, seeds, tasks, n))


def cell_of(scores, flops=1.0, size="1M", step=10, series=None):
    statistics, seeds, tasks, n = scores.shape
    names = pl.DataFrame({"statistic": [f"s{i}" for i in range(statistics)]})
    names = names.with_columns(weighting=pl.lit("uniform"), kind=pl.lit("proxy"))
    with_mean = np.concatenate([scores.mean(2, keepdims=True), scores], axis=2)
    series = np.full((statistics, seeds, 2, tasks + 1, n), np.nan) if series is None else series
    tasks = ["all", *TASKS[:tasks]]
    return snr.Cell(size, step, flops, names, tasks, [f"c{i}" for i in range(n)], with_mean, series)


def test_indistinct_tasks_are_those_that_analysis_of_variance_does_not_tell_apart():
    scores = scores_of(statistics=40, noisy=(1, 3))
    found = noisy_tasks.indistinct_tasks(scores, 0.95)
    for s in range(40):
        p = np.array([f_oneway(*scores[s, :, t].T).pvalue for t in range(4)])
        assert (found[s] == (p >= 0.05)).all()
    assert found[:, [1, 3]].mean() > 0.8 and found[:, [0, 2]].mean() < 0.1
    alone = noisy_tasks.indistinct_tasks(scores_of(statistics=40, noisy=(0, 1, 2, 3)), 0.95)
    assert not alone.all(1).any()  # where every task is noise, none is left out
    one_seed = scores[:, :1]
    assert not noisy_tasks.indistinct_tasks(one_seed, 0.95).any()
    assert not noisy_tasks.tasks_that_lower_snr(one_seed).any()


def test_tasks_that_lower_the_ratio_are_left_out_one_by_one():
    scores = scores_of(statistics=30, seed=1, noisy=(2,))
    found = noisy_tasks.tasks_that_lower_snr(scores)

    def squared_ratio(one, tasks):
        mean = one[:, tasks].mean(1)
        return mean.var(-1, ddof=1).mean() / mean.var(0, ddof=1).mean()

    for one, left_out in zip(scores, found):
        kept = list(range(4))
        while len(kept) > 1:
            without = [[t for t in kept if t != out] for out in kept]
            best = max(without, key=lambda tasks: squared_ratio(one, tasks))
            if squared_ratio(one, best) <= squared_ratio(one, kept):
                break
            kept = best
        assert sorted(np.flatnonzero(~left_out)) == kept
    assert found[:, 2].mean() > 0.8 > found[:, [0, 1, 3]].mean() + 0.3


@pytest.mark.parametrize("rule", noisy_tasks.RULES)
def test_the_corpora_that_choose_tasks_do_not_judge_them(rule):
    scores, truth = scores_of(statistics=3, n=7, seed=2, noisy=(1, 2)), np.random.default_rng(3).normal(size=7)
    held = noisy_tasks.held_out_agreement(scores, truth, rule, 0.95, 30, np.random.default_rng(5))
    rng, pairs = np.random.default_rng(5), list(combinations(range(7), 2))
    found = {(s, pair): [] for s in range(3) for pair in pairs}
    for _ in range(30):
        order = rng.permutation(7)
        choosing, judging = np.sort(order[:3]), set(order[3:].tolist())
        named = noisy_tasks.named_tasks(scores[..., choosing], rule, 0.95)
        for s in range(3):
            values = scores[s][:, ~named[s]].mean((0, 1))
            for i, j in pairs:
                if {i, j} <= judging:
                    found[s, (i, j)].append((values[i] > values[j]) == (truth[i] > truth[j]))
    expected = [[np.mean(found[s, pair]) for pair in pairs] for s in range(3)]
    assert held.without == pytest.approx(np.array(expected))
    assert held.with_all.mean(1) == pytest.approx(decision_accuracy(scores.mean((1, 2)), truth))
    assert (held.left_out > 0).all()


@pytest.mark.parametrize("rule", noisy_tasks.RULES)
def test_the_gain_of_leaving_noise_out_is_found_and_none_is_invented(rule):
    def gain(noisy, amount):
        found = []
        for seed in range(12):
            scores, truth = scores_of(statistics=1, n=20, seed=seed), np.random.default_rng(seed).normal(size=20)
            scores[:, :, noisy] = 3 + amount * np.random.default_rng(seed + 99).normal(size=scores[:, :, noisy].shape)
            rng = np.random.default_rng(0)
            held = noisy_tasks.held_out_agreement(scores, truth, rule, 0.95, 20, rng)
            found.append(np.nanmean(held.without - held.with_all))
        return np.mean(found)

    # The truth is the signal of `scores_of`: its first draws.
    assert gain([0, 1], 5) > 0.1
    assert abs(gain([], 0)) < 0.03


def test_why_there_is_no_choice_of_tasks():
    for scores, why in (
        (scores_of(seeds=1), "one seed: no noise is known"),
        (scores_of(tasks=1), "one task: nothing can be left out"),
        (scores_of(n=3), "3 corpora: too few to choose and to judge, at least 4"),
    ):
        n = scores.shape[-1]
        table = noisy_tasks.task_choice(cell_of(scores), np.arange(n) * 1.0, bootstrap_weights(n, 100, 0), OPTIONS)
        assert table.is_empty() and dict(table.schema) == noisy_tasks.TASK_CHOICE_SCHEMA
        assert noisy_tasks.why_no_choice(cell_of(scores)) == why
    assert noisy_tasks.why_no_choice(cell_of(scores_of(seeds=2, tasks=2, n=4))) == ""


def test_repeats_are_means_of_seeds_and_checkpoints_at_their_cost():
    rng, truth = np.random.default_rng(0), np.arange(8.0)
    weights, cells = bootstrap_weights(8, 200, 0), []
    for flops, size in ((1.0, "1M"), (1.9, "2M"), (2.5, "3M")):
        scores = scores_of(statistics=2, seed=int(flops * 10))
        series = rng.normal(size=(2, 3, 2, 5, 8))
        series[1] = np.nan  # the second statistic has too few checkpoints
        cells.append(cell_of(scores, flops, size, series=series))
    repeated = [noisy_tasks._repeats_of(cell, truth, weights) for cell in cells]
    table = noisy_tasks.repeats_table(repeated, 10.0, 0.95)
    assert dict(table.schema) == noisy_tasks.REPEATS_SCHEMA and len(table) == 3 * (3 * 2 + 3)
    for row in table.iter_rows(named=True):
        cell, s = cells[int(row["size"][0]) - 1], int(row["statistic"][1])
        values = cell.scores[s, :, 0] if row["checkpoints"] == 1 else cell.series[s, :, :, 0].mean(1)
        chosen = [list(seeds) for seeds in combinations(range(3), row["seeds"])]
        expected = np.mean([decision_accuracy(values[seeds].mean(0), truth) for seeds in chosen])
        one = np.mean([decision_accuracy(cell.scores[s, k, 0], truth) for k in range(3)])
        assert row["decision_accuracy"] == pytest.approx(expected)
        assert row["gain"] == pytest.approx(expected - one)
        assert row["flops"] == row["seeds"] * cell.flops and row["compute_fraction"] == row["flops"] / 10
        assert row["scored_checkpoints"] == row["seeds"] * row["checkpoints"]
        rival = {("1M", 2): 1, ("1M", 3): 2, ("2M", 2): 2, ("2M", 3): 2}.get((row["size"], row["seeds"]))
        assert row["rival_size"] == (None if rival is None else f"{rival + 1}M")
        if rival is not None:
            other = np.mean([decision_accuracy(cells[rival].scores[s, k, 0], truth) for k in range(3)])
            assert row["over_rival"] == pytest.approx(expected - other)
            assert row["over_rival_low"] <= row["over_rival"] <= row["over_rival_high"]
    assert set(table.filter(pl.col("checkpoints") == 2)["statistic"]) == {"s0"}
    # A perfect order in every sample says nothing of how sure it is.
    perfect = cell_of(np.broadcast_to(truth, (1, 2, 3, 8)) + 0.0)
    sure = noisy_tasks.repeats_table([noisy_tasks._repeats_of(perfect, truth, weights)], 10.0, 0.95)
    assert sure["decision_accuracy"].to_list() == [1, 1] and sure["decision_accuracy_low"].null_count() == 2
    assert set(sure["note"]) == {"no interval: every sample of corpora gives the same extreme value"}
    # Paired: the same samples of corpora on both sides.
    two, one = repeated[0].found[2, 1][1], repeated[0].found[1, 1][1]
    ends = percentile_interval(two - one, 0.95)
    row = table.filter(size="1M", seeds=2, checkpoints=1, statistic="s0").row(0, named=True)
    assert (row["gain_low"], row["gain_high"]) == pytest.approx((ends[0][0], ends[1][0]))


def test_a_study_with_a_truth(caplog):
    checkpoints, proxies, targets = study_of()
    target = Target(size="9M", metric="accuracy")
    given = checkpoints, list(TASKS), OPTIONS, BUDGETS
    tables = noisy_tasks.signal_tables(*given, proxies=proxies, targets=targets, target=target)
    signal = tables["signal_to_noise"]
    # The last steps of both sizes, and the budget that is none of these; the target's own metric.
    assert signal.select("size", "step", "kind").unique().sort("size", "step", "kind").rows() == [
        *(("1M", step, kind) for step in (10, 20) for kind in ("baseline", "proxy")),
        *(("2M", 20, kind) for kind in ("baseline", "proxy")),
        ("9M", 40, "truth"),
    ]
    assert signal.filter(size="1M", step=10)["checkpoint_noise"].is_null().all()
    assert signal.filter(step=20)["snr_checkpoints"].is_not_null().all()
    assert signal.filter(kind="truth")["decision_accuracy"].is_null().all()
    # Less is better of cross-entropy: the scores are signed, as everywhere.
    assert (signal.filter(statistic="cross_entropy")["mean"] < 0).all()
    assert (signal.filter(statistic="cross_entropy")["relative_range"] > 0).all()
    assert tables["task_choice"].select("size", "step").unique().sort("size").rows() == [("1M", 10), ("2M", 20)]
    assert set(tables["repeats"]["seeds"]) == {1, 2} and set(tables["repeats"]["checkpoints"]) == {1, 2}
    best = tables["repeats"].filter(size="2M", seeds=2, checkpoints=1, statistic="cross_entropy")
    assert best["compute_fraction"].item() == pytest.approx(2 * 6 * 2 * 20 / (6 * 9 * 40))
    one_seed = pl.col("seed") == 0
    alone = dict(proxies=proxies, targets=targets, target=target)
    caplog.clear()
    assert noisy_tasks.signal_tables(checkpoints.filter(one_seed), *given[1:], **alone)["task_choice"].is_empty()
    told = [r.getMessage() for r in caplog.records if "task_choice" in r.getMessage()]
    assert told == ["task_choice has no row of 1M at step 10, 2M at step 20: one seed: no noise is known"]
    with pytest.raises(InputError, match="the truth holds no accuracy of a target checkpoint"):
        noisy_tasks.signal_tables(*given, proxies=proxies, targets=targets.clear(), target=target)


def test_a_study_without_a_truth_and_with_one_seed(caplog):
    checkpoints, proxies, _ = study_of(seeds=1)
    small = checkpoints.filter(role="proxy")
    tables = noisy_tasks.signal_tables(small, list(TASKS), OPTIONS, BUDGETS, proxies=proxies)
    signal = tables.pop("signal_to_noise")
    assert not tables and signal.columns == snr.SIGNAL_COLUMNS
    assert signal["decision_accuracy"].is_null().all() and signal["seed_noise"].is_null().all()
    assert signal.filter(step=20)["snr_checkpoints"].is_not_null().all()
    told = [r.getMessage() for r in caplog.records if "seed_noise" in r.getMessage()]
    assert len(told) == 1 and "one seed of each corpus" in told[0]


def test_a_task_that_is_the_same_for_all_is_no_infinite_signal():
    """Exact match of models that solve nothing: without noise, and without signal too."""
    rng, truth = np.random.default_rng(0), np.arange(8.0)
    scores = np.zeros((1, 3, 3, 8))
    scores[:, :, 0] = truth + 0.1 * rng.normal(size=(1, 3, 8))
    assert not noisy_tasks.tasks_that_lower_snr(scores).any()
    scores[:, :, 1] = truth + 3 * rng.normal(size=(3, 8))
    assert noisy_tasks.tasks_that_lower_snr(scores).tolist() == [[False, True, False]]
