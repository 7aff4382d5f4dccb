"""Proxies and baselines from a table of token statistics, against loops over its rows."""

import math

import numpy as np
import polars as pl
import pytest
from conftest import byte_level_tokenizer, tiny_model
from polars.testing import assert_frame_equal
from proxycast import InputError, log_values, proxies, score
from proxycast.library.proxy_values import RECOMMENDED
from proxycast.proxy_formulas import BASELINES, STATISTICS, WEIGHTINGS
from scored_models import SOLUTIONS


@pytest.fixture(scope="module")
def token_stats():
    return score(tiny_model(), byte_level_tokenizer(), SOLUTIONS, tail_tokens=20)


def by_hand(rows: pl.DataFrame) -> dict[str, float]:
    """cross_entropy/uniform of a task, its standard error, and bits per byte, one solution after the other."""
    means, nll, size = [], 0.0, 0
    for _, own in rows.group_by("solution"):
        losses = [-row["logprob"] for row in own.iter_rows(named=True)]
        means.append(sum(losses) / len(losses))
        nll, size = nll + sum(losses), size + own["bytes"].sum()
    return {
        "value": np.mean(means),
        "standard_error": np.std(means, ddof=1) / math.sqrt(len(means)),
        "bits": nll / math.log(2) / size,
    }


def test_values_of_tasks_and_of_solutions(token_stats):
    found = proxies(token_stats)
    assert len(found) == len(SOLUTIONS) * (len(STATISTICS) * len(WEIGHTINGS) + len(BASELINES))
    assert found["tail"].unique().to_list() == ["tokens"]
    of_solutions = proxies(token_stats, by="solution")
    assert len(of_solutions) == len(found) * len(SOLUTIONS["sums"])
    for task, rows in token_stats.group_by("task"):
        expected = by_hand(rows)
        [loss] = found.filter(task=task[0], statistic="cross_entropy", weighting="uniform").to_dicts()
        assert loss["value"] == pytest.approx(expected["value"], rel=1e-12)
        assert loss["standard_error"] == pytest.approx(expected["standard_error"], rel=1e-9)
        assert (loss["solutions"], loss["tokens"]) == (9, len(rows))
        [bits] = found.filter(task=task[0], statistic="bits_per_byte").to_dicts()
        assert bits["value"] == pytest.approx(expected["bits"], rel=1e-12)
        means = of_solutions.filter(task=task[0]).group_by("statistic", "weighting").agg(pl.col("value").mean())
        both = means.join(found.filter(task=task[0]), on=["statistic", "weighting"]).filter(
            pl.col("weighting") != "none"
        )
        np.testing.assert_allclose(both["value"], both["value_right"], rtol=1e-12)


def test_baselines_of_a_solution_are_those_of_a_task_with_that_solution_alone(token_stats):
    of_solutions = proxies(token_stats, by="solution").filter(weighting="none")
    for (task, solution), rows in token_stats.group_by("task", "solution"):
        alone = proxies(rows)
        assert alone["standard_error"].null_count() == len(alone)
        assert_frame_equal(
            of_solutions.filter(task=task, solution=solution).select("statistic", "value"),
            alone.filter(weighting="none").select("statistic", "value"),
            rel_tol=1e-14,  # polars adds in the order in which its threads end
        )


def test_a_solution_without_a_byte_of_its_own_has_no_bits_per_byte(token_stats):
    first = token_stats.head(1).with_columns(bytes=pl.lit(0, pl.Int32))
    found = proxies(first, by="solution").filter(weighting="none")
    values = dict(found.select("statistic", "value").iter_rows())
    assert values["bits_per_byte"] is None and values["expert_cross_entropy"] == -first["logprob"][0]


def test_two_tails(token_stats):
    both = score(tiny_model(), byte_level_tokenizer(), SOLUTIONS, tail_tokens=5, tail_bytes=20)
    found = proxies(both, tail_tokens=5, tail_bytes=20)
    tokens = dict(
        found.group_by("tail").agg(pl.col("tokens").filter(statistic="margin", weighting="uniform").sum()).rows()
    )
    assert tokens["tokens"] == 2 * 9 * 5 and tokens["bytes"] > tokens["tokens"]


def test_a_shorter_tail_is_cut_and_without_one_all_that_was_scored_counts(token_stats):
    key = ["task", "statistic", "weighting"]
    short = proxies(score(tiny_model(), byte_level_tokenizer(), SOLUTIONS, tail_tokens=5)).sort(key)
    assert_frame_equal(proxies(token_stats, tail_tokens=5).sort(key), short, rel_tol=1e-12)
    assert_frame_equal(proxies(token_stats, tail_tokens=20).sort(key), proxies(token_stats).sort(key), rel_tol=1e-12)
    both = score(tiny_model(), byte_level_tokenizer(), SOLUTIONS, tail_tokens=5, tail_bytes=20)
    found, expected = log_values(both, tail_tokens=5), log_values(token_stats, tail_tokens=5)
    assert found == pytest.approx(expected, rel=1e-12) and log_values(both) != pytest.approx(expected, rel=1e-6)


def test_what_a_training_logs(token_stats):
    found = log_values(token_stats)
    names = [name if "/" in name else f"{name}/none" for name in RECOMMENDED]
    assert sorted(found) == sorted(f"proxy/{task}/{name}" for task in SOLUTIONS for name in names)
    expected = proxies(token_stats).filter(task="cats", statistic="bits_per_byte")["value"][0]
    assert found["proxy/cats/bits_per_byte/none"] == pytest.approx(expected, rel=1e-14)
    assert {type(value) for value in found.values()} == {float}


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda table: proxies(table.drop("bytes")), "found no column bytes"),
        (lambda table: proxies(table, by="model"), "by: found 'model'"),
        (lambda table: proxies(table, rank_ties="most"), "proxies: rank_ties: Input should be"),
        (lambda table: proxies(table.with_columns(n_equal=0)), "n_equal = 0"),
        (lambda table: log_values(table, ["bits_per_bite"]), "found 'bits_per_bite'; did you mean 'bits_per_byte'"),
        (lambda table: log_values(table, ["top1_accuracy"]), "found 'top1_accuracy'"),
    ],
)
def test_what_is_refused(call, said, token_stats):
    with pytest.raises(InputError, match=said):
        call(token_stats)
