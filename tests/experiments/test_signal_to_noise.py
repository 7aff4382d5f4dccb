"""Signal to noise against closed forms, plain loops, and measurements that others published."""

import numpy as np
import polars as pl
import pytest
from conftest import PUBLISHED
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from proxycast.experiments import signal_to_noise as snr
from proxycast.experiments.bootstrap import bootstrap_weights
from proxycast.experiments.rank_statistics import decision_accuracy
from scipy.stats import spearmanr

VALUES = st.floats(-100, 100).map(lambda value: round(value, 3))
TASKS = ("dates", "sums", "words", "years")


def drawn_predictions(corpora=6, seeds=3, steps=(10, 20, 30), lacking=(), proxies=5, seed=0):
    """Scores as `corpus_scores.predictions` gives them; `lacking`: (statistic, step) without a row."""
    rng = np.random.default_rng(seed)
    names = [(f"s{n}", "uniform", "proxy") for n in range(proxies)] + [("loss", "none", "baseline")]
    names.append(("chance", "none", "baseline"))
    rows = [
        {"corpus": f"c{c}", "seed": k, "step": step, "task": task, "statistic": s, "weighting": w, "kind": kind}
        | {"size": "1M", "flops": 6.0 * step, "score": 0.0 if s == "chance" else 3 + 0.3 * c + rng.normal()}
        for c in range(corpora)
        for k in range(seeds)
        for step in steps
        for task in TASKS
        for s, w, kind in names
        if (s, step) not in lacking
    ]
    return pl.DataFrame(rows)


def only_cell(predictions, step=30, checkpoints=2):
    at = pl.DataFrame({"size": ["1M"], "step": [step]})
    (cell,) = snr.cells(predictions, at, checkpoints)
    return cell


def rows_of(cell, truth=None, replicates=200):
    weights = bootstrap_weights(len(cell.candidates), replicates, 0)
    samples = list(snr.cell_samples(cell, truth, weights))
    return pl.concat(snr.signal_rows(of_task, 0.95) for of_task in samples), samples, weights


def test_the_table_is_what_plain_loops_compute():
    predictions = drawn_predictions(lacking=[("s2", 20)])
    truth = np.random.default_rng(1).normal(size=(5, 6))
    table, *_ = rows_of(only_cell(predictions), truth)
    assert table.columns == snr.SIGNAL_COLUMNS and "chance" not in set(table["statistic"])
    for number, (task, statistic) in enumerate((("all", "s0"), ("sums", "s1"), ("words", "loss"))):
        row = table.filter(task=task, statistic=statistic).row(0, named=True)
        rows = predictions.filter(statistic=statistic)
        rows = rows.filter(task=task) if task != "all" else rows
        values = {
            (c, k, step): rows.filter(corpus=f"c{c}", seed=k, step=step)["score"].mean()
            for c in range(6)
            for k in range(3)
            for step in (20, 30)
        }
        of_seeds = [[values[c, k, 30] for c in range(6)] for k in range(3)]
        spread = np.sqrt(np.mean([np.var(one, ddof=1) for one in of_seeds]))
        reach = np.mean([(max(one) - min(one)) / np.mean(one) for one in of_seeds])
        by_corpus = [[values[c, k, 30] for k in range(3)] for c in range(6)]
        seed_noise = np.sqrt(np.mean([np.var(one, ddof=1) for one in by_corpus]))
        relative = np.sqrt(np.mean([np.var(one, ddof=1) / np.mean(one) ** 2 for one in by_corpus]))
        by_run = [[values[c, k, 20], values[c, k, 30]] for c in range(6) for k in range(3)]
        run_noise = np.sqrt(np.mean([np.var(one) for one in by_run]))
        expected = {"dispersion": spread, "relative_range": reach, "seed_noise": seed_noise}
        expected |= {"checkpoint_noise": run_noise, "snr_seeds": spread / seed_noise}
        expected |= {"snr_checkpoints": spread / run_noise, "range_snr_seeds": reach / relative}
        place = 0 if task == "all" else 1 + TASKS.index(task)
        expected["decision_accuracy"] = np.mean([decision_accuracy(one, truth[place]) for one in of_seeds])
        assert {name: row[name] for name in expected} == pytest.approx(expected), (number, task)
        assert row["snr_seeds_low"] < row["snr_seeds"] < row["snr_seeds_high"] and row["note"] == ""
    lacking = table.filter(statistic="s2")
    assert lacking["checkpoint_noise"].is_null().all() and lacking["snr_checkpoints_low"].is_null().all()
    assert lacking["snr_seeds"].is_not_null().all()
    assert set(lacking["note"]) == {"no noise between checkpoints: fewer than 2 up to this step"}


def test_the_interval_is_that_of_corpora_that_are_drawn_again():
    cell = only_cell(drawn_predictions())
    _, samples, weights = rows_of(cell, replicates=5)
    scores = cell.scores[:, :, 0]
    for b, counts in enumerate(weights.astype(int)):
        again = np.repeat(scores, counts, axis=-1)
        ratio = np.sqrt(again.var(-1, ddof=1).mean(1) / again.var(1, ddof=1).mean(-1))
        assert samples[0].snr["seeds"][1][:, b] == pytest.approx(ratio)


def test_one_seed_one_checkpoint_or_no_noise_leave_columns_empty(caplog):
    one, *_ = rows_of(only_cell(drawn_predictions(seeds=1, steps=(30,))))
    assert (
        one[["seed_noise", "checkpoint_noise", "snr_seeds", "snr_checkpoints", "range_snr_seeds"]].null_count().row(0)
        == (len(one),) * 5
    )
    assert one["dispersion"].is_not_null().all() and one["decision_accuracy"].is_null().all()
    assert set(one["note"]) == {
        "no noise between checkpoints: fewer than 2 up to this step; no noise between seeds: one seed"
    }
    snr.tell_unknown_noise(one, 2)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and "seed_noise is empty for statistics of 1M at step 30: one seed" in told[0]
    assert "fewer than 2 checkpoints (selection.noise_checkpoints)" in told[1]
    same = drawn_predictions().with_columns(score=pl.col("corpus").str.tail(1).cast(pl.Float64) + 0.1)
    alike, *_ = rows_of(only_cell(same))
    assert alike["snr_seeds"].is_null().all() and alike["seed_noise"].max() == pytest.approx(0, abs=1e-12)
    assert all("no noise between seeds: every value is the same" in note for note in alike["note"])
    few, *_ = rows_of(only_cell(drawn_predictions(corpora=3)))
    assert few["snr_seeds"].is_not_null().all() and few["snr_seeds_low"].is_null().all()
    assert set(few["note"]) == {"no interval: too few corpora (3)"}


def test_noise_alone_has_a_ratio_of_one_and_a_range_of_3_9_for_25_candidates():
    noise = 50 + np.random.default_rng(0).normal(size=(400, 3, 25))  # 400 statistics
    seeds = snr.noise_of(np.moveaxis(noise, 1, 2), 1)
    signal = snr.signal_of(noise)
    assert np.sqrt((signal.dispersion**2).mean() / (seeds.deviation**2).mean()) == pytest.approx(1, abs=0.02)
    # The expected range of 25 standard normal values (Tippett, 1925, table X) is 3.931.
    ranges = signal.relative_range.mean(1) / np.sqrt((seeds.relative**2).mean())
    assert ranges.mean() == pytest.approx(3.931, abs=0.06)


def test_noise_over_all_corpora_and_checkpoints_hides_the_signal():
    """The trap of Signal and Noise's ratios below 1B: with it, more signal is not more."""
    rng = np.random.default_rng(0)
    found = []
    for signal in (0.1, 1, 10):
        runs = 100 + signal * rng.normal(size=(25, 1)) + rng.normal(size=(25, 5))
        reach = snr.signal_of(runs.mean(1)).relative_range
        pooled = runs.std() / runs.mean()
        found.append(
            (reach / pooled, snr.ratio(snr.signal_of(runs[:, -1]).dispersion, snr.noise_of(runs, 1).deviation))
        )
    assert all(1 < with_trap < 6 for with_trap, _ in found)
    assert found[2][0] / found[1][0] < 2 and found[2][1] / found[1][1] > 4


@given(arrays(float, (4, 3), elements=VALUES), st.floats(0.5, 20), VALUES)
def test_units(values, factor, shift):
    signal, noise = snr.signal_of(values[:, 0]), snr.noise_of(values, 0)
    scaled = snr.signal_of(-factor * values[:, 0] + shift), snr.noise_of(-factor * values + shift, 0)
    assert scaled[0].dispersion == pytest.approx(factor * signal.dispersion, abs=1e-8)
    assert scaled[1].deviation == pytest.approx(factor * noise.deviation, abs=1e-8)
    one_sign = (values[:, 0] > 0).all() or (values[:, 0] < 0).all()
    assert np.isfinite(signal.relative_range) == one_sign
    if one_sign:
        without_unit = snr.signal_of(-factor * values[:, 0]).relative_range
        assert without_unit == pytest.approx(signal.relative_range)


@given(arrays(float, (7, 3), elements=VALUES), arrays(float, (7, 3), elements=VALUES))
def test_rank_correlations_are_scipys(a, b):
    found = snr.rank_correlations(a, b)
    for n in range(3):
        constant = np.ptp(a[:, n]) == 0 or np.ptp(b[:, n]) == 0
        expected = np.nan if constant else spearmanr(a[:, n], b[:, n])[0]
        assert found[n] == pytest.approx(expected, nan_ok=True)


def test_whether_the_ratio_foretells_decision_accuracy():
    cell = only_cell(drawn_predictions(proxies=20))
    truth = np.arange(6.0) + np.zeros((5, 1))
    table, samples, _ = rows_of(cell, truth)
    rows = snr.foresight_table([samples[0]], snr.foresight_in_cell(samples[1:], 0.95), 0.95)
    assert dict(rows.schema) == snr.FORESIGHT_SCHEMA
    assert rows.filter(over="statistics", noise="seeds")["task"].to_list() == ["all", *TASKS]
    for row in rows.filter(over="statistics").iter_rows(named=True):
        of_task = table.filter(task=row["task"])
        values = of_task[f"snr_{row['noise']}"], of_task["decision_accuracy"].round(12)  # ties are ties
        assert row["spearman"] == pytest.approx(spearmanr(*values)[0])
        assert row["spearman_low"] <= row["spearman_high"] and row["count"] == 21
        picked = of_task.row(int(values[0].arg_max()), named=True)
        assert row["picked_statistic"] == picked["statistic"]
        assert row["picked_decision_accuracy"] == pytest.approx(picked["decision_accuracy"])
        assert row["mean_decision_accuracy"] == pytest.approx(values[1].mean())
    over = rows.filter(over="tasks", noise="seeds").row(0, named=True)
    each = [
        spearmanr(of["snr_seeds"], of["decision_accuracy"].round(12))[0]
        for _, of in table.filter(pl.col("task") != "all").group_by("statistic")
        if of["decision_accuracy"].round(12).n_unique() > 1
    ]
    assert over["spearman"] == pytest.approx(np.mean(each)) and over["task"] is None


# Known answers


def published(name):
    return pl.read_csv(PUBLISHED / name)


@pytest.mark.published
def test_noise_of_the_last_ten_checkpoints_of_olmo_ladder():
    curve, known = published("olmo_ladder_1B-10xC.csv").sort("_step"), published("olmo_ladder_1B-10xC_noise.csv")
    for row in known.iter_rows(named=True):
        noise = snr.noise_of(curve[row["column"]].drop_nulls().to_numpy()[None, -10:], 0)
        assert noise.deviation == pytest.approx(row["sd_last_10_checkpoints"], abs=1e-9)
        assert noise.relative == pytest.approx(row["relative_sd"], abs=1e-9)


@pytest.mark.published
def test_signal_to_noise_of_olmo_ladders_runs():
    runs, known = published("ladder_two_step_input.csv").filter(role="train"), published("ladder_snr.csv")
    ends = runs.sort("run", "tokens").group_by("run").last()
    last = runs.filter(run="1B-10xC").sort("tokens").tail(10)
    assert len(ends) == 16
    for row in known.iter_rows(named=True):
        column = f"{row['task']}_{row['statistic']}"
        signal, noise = snr.signal_of(ends[column].to_numpy()), snr.noise_of(last[column].to_numpy()[None], 0)
        assert signal.relative_range == pytest.approx(row["signal"], abs=1e-6)
        assert noise.relative == pytest.approx(row["noise"], abs=1e-6)
        assert snr.ratio(signal.relative_range, noise.relative) == pytest.approx(row["snr"], abs=1e-5)


@pytest.mark.published
def test_what_signal_and_noise_published():
    """Its ratios below 1B are those of noise alone, and foretell less than those at 1B, which have noise of a run."""
    table = published("signal_and_noise_table.csv")
    small = table.select(f"snr_{size}" for size in ("150M", "300M", "750M")).to_numpy()
    assert small.min() > 2.8 and small.max() < 6 and np.median(small) == pytest.approx(3.9, abs=0.2)
    assert table["snr_1B"].min() < 3 and table["snr_1B"].max() > 100
    rho = {
        size: float(
            snr.rank_correlations(*(table[name].to_numpy()[:, None] for name in (size, "decision_accuracy_150M")))[0]
        )
        for size in ("snr_150M", "snr_1B")
    }
    assert rho["snr_1B"] > 0.3 + rho["snr_150M"]
    # The two kinds of noise are not the same thing.
    noise = published("signal_and_noise_seed_noise_1b.csv")
    ratios = noise["rel_sd_over_10_init_seeds"] / noise["rel_sd_last_30_checkpoints"]
    assert ratios.min() < 0.4 and ratios.max() > 2
