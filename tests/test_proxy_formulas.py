import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from proxycast.options import InputError
from proxycast.proxy_formulas import (
    STATISTICS,
    WEIGHTINGS,
    ProxyOptions,
    baseline_statistics,
    solution_proxies,
    solution_ratios,
    task_proxies,
)

KEYS = ["checkpoint", "task", "solution", "statistic", "weighting"]
INTEGERS = {name: pl.Int32 for name in ("position", "token", "bytes", "n_greater", "n_equal", "vocabulary")}
FLOATS = {name: pl.Float32 for name in ("logprob", "max_logprob", "second_logprob", "entropy")}
SCHEMA = {"checkpoint": pl.String, "task": pl.String, "solution": pl.String, **INTEGERS, **FLOATS}


def random_token_stats(
    seed: int, checkpoints: int = 2, tasks: int = 2, solutions: int = 3, length: int = 7
) -> pl.DataFrame:
    """Statistics of real distributions over 11 tokens, with ties; the same tokens for each checkpoint."""
    rng = np.random.default_rng(seed)
    rows = []
    texts = {(t, s): rng.integers(0, 5, rng.integers(1, length + 1)) for t in range(tasks) for s in range(solutions)}
    for c in range(checkpoints):
        for (t, s), tokens in texts.items():
            for position, token in enumerate(tokens):
                p = rng.choice([0.5, 1.0, 2.0, 4.0], size=11)
                p /= p.sum()
                rows.append(
                    {
                        "checkpoint": f"c{c}",
                        "task": f"t{t}",
                        "solution": f"s{s}",
                        "position": position + 3,
                        "token": token,
                        "bytes": rng.integers(0, 4) + (position == 0),
                        "n_greater": (p > p[token]).sum(),
                        "n_equal": (p == p[token]).sum(),
                        "vocabulary": 11,
                        "logprob": math.log(p[token]),
                        "max_logprob": math.log(p.max()),
                        "second_logprob": math.log(np.sort(p)[-2]),
                        "entropy": -(p * np.log(p)).sum(),
                    }
                )
    return pl.DataFrame(rows, schema=SCHEMA)


def row(**changes: object) -> dict:
    plain = {"checkpoint": "c", "task": "t", "solution": "s", "position": 0, "token": 1, "bytes": 1, "n_greater": 2}
    logs = {"logprob": -1.0, "max_logprob": -0.5, "second_logprob": -1.2, "entropy": 1.0}
    return {**plain, "n_equal": 1, "vocabulary": 8, **logs, **changes}


def token_stats(*rows: dict) -> pl.LazyFrame:
    return pl.DataFrame(list(rows), schema=SCHEMA).lazy()


def by_hand(table: pl.DataFrame, options: ProxyOptions) -> dict[tuple, float]:
    """The method's formulas in plain Python, token by token."""
    rows = table.to_dicts()
    values = {}
    for key in {(r["checkpoint"], r["task"], r["solution"]) for r in rows}:
        of_checkpoint = [r for r in rows if r["checkpoint"] == key[0]]
        of_task = [r for r in of_checkpoint if r["task"] == key[1]]
        of_solution = [r for r in of_task if r["solution"] == key[2]]
        counted = Counter(r["token"] for r in (of_task if options.token_frequency_scope == "task" else of_checkpoint))
        nlls = [-r["logprob"] for r in (of_task if options.gaussian_scope == "task" else of_solution)]
        mu = sum(nlls) / len(nlls)
        variance = sum((x - mu) ** 2 for x in nlls) / len(nlls)
        statistics, weights = [], []
        for r in of_solution:
            p, p_max, nll, h = math.exp(r["logprob"]), math.exp(r["max_logprob"]), -r["logprob"], r["entropy"]
            greater, equal = r["n_greater"], r["n_equal"]
            rank = {"mean": 1 + greater + (equal - 1) / 2, "best": 1 + greater, "worst": greater + equal}[
                options.rank_ties
            ]
            f = counted[r["token"]] / sum(counted.values())
            statistics.append(
                {
                    "cross_entropy": nll,
                    **{f"top{k}_accuracy": 1.0 if rank <= k else 0.0 for k in (1, 2, 3, 5)},
                    "normalized_entropy": h / math.log(r["vocabulary"]),
                    "expert_rank": rank,
                    "reciprocal_rank": 1 / rank,
                    "margin": p_max - p,
                    "wrong_confidence": p_max if greater > 0 else 0.0,
                }
            )
            weights.append(
                {
                    "uniform": 1.0,
                    "expert_probability": p,
                    "expert_disagreement": 1 - p,
                    "entropy": h,
                    "inverse_entropy": 1 / (options.inverse_entropy_offset + h),
                    "token_frequency": f,
                    "inverse_token_frequency": 1 / f,
                    "gaussian_nll": math.exp(-((nll - mu) ** 2) / (2 * variance)) if variance > 0 else 1.0,
                }
            )
        for s in statistics[0]:
            for w in weights[0]:
                total = sum(weight[w] for weight in weights)
                products = sum(weight[w] * statistic[s] for weight, statistic in zip(weights, statistics, strict=True))
                values[*key, s, w] = products / total
    return values


def as_dict(proxies: pl.DataFrame) -> dict[tuple, float]:
    return {tuple(r[:5]): r[5] for r in proxies.select(*KEYS, "value").iter_rows()}


def test_ten_statistics_and_eight_weightings():
    assert len(STATISTICS) == 10 and len(WEIGHTINGS) == 8
    lower_is_better = {"cross_entropy", "normalized_entropy", "expert_rank", "margin", "wrong_confidence"}
    assert {name for name, statistic in STATISTICS.items() if statistic.sign == -1} == lower_is_better
    independent = {"uniform", "token_frequency", "inverse_token_frequency"}
    assert {name for name, weighting in WEIGHTINGS.items() if not weighting.depends_on_candidate} == independent


options_strategy = st.builds(
    ProxyOptions,
    rank_ties=st.sampled_from(["mean", "best", "worst"]),
    inverse_entropy_offset=st.floats(0.01, 10),
    token_frequency_scope=st.sampled_from(["task", "study"]),
    gaussian_scope=st.sampled_from(["task", "solution"]),
)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), options=options_strategy)
def test_all_proxies_equal_the_formulas_in_plain_python(seed, options):
    table = random_token_stats(seed)
    expected = by_hand(table, options)
    found = as_dict(solution_proxies(table.lazy(), options).collect())
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_streaming_engine_gives_the_same_table():
    lazy = solution_proxies(random_token_stats(0).lazy(), ProxyOptions())
    assert_frame_equal(lazy.collect(), lazy.collect(engine="streaming"))


def test_row_order_does_not_matter():
    table = random_token_stats(3)
    shuffled = table.sample(fraction=1, shuffle=True, seed=1)
    assert_frame_equal(*(solution_proxies(t.lazy(), ProxyOptions()).collect() for t in (table, shuffled)))


def test_frequencies_are_counted_within_one_checkpoint():
    """Other checkpoints in the table, of another tokenizer perhaps, must not change a checkpoint's proxies."""
    table = random_token_stats(5)
    alone = solution_proxies(table.filter(pl.col("checkpoint") == "c0").lazy(), ProxyOptions()).collect()
    both = solution_proxies(table.lazy(), ProxyOptions()).collect().filter(pl.col("checkpoint") == "c0")
    assert_frame_equal(alone, both)


@given(
    statistic=st.sampled_from(sorted(STATISTICS)),
    weighting=st.sampled_from(sorted(WEIGHTINGS)),
    seed=st.integers(0, 999),
)
@settings(max_examples=30, deadline=None)
def test_a_weighted_mean_lies_between_its_extremes(statistic, weighting, seed):
    table = random_token_stats(seed, checkpoints=1, tasks=1)
    # One token per solution: every proxy is then the statistic itself.
    single = table.with_columns(solution=pl.format("{}-{}", "solution", "position"))
    wanted = (pl.col("statistic") == statistic) & (pl.col("weighting") == weighting)
    tokens = solution_proxies(single.lazy(), ProxyOptions()).filter(wanted).collect()
    tokens = tokens.with_columns(pl.col("solution").str.split("-").list.first())
    extremes = tokens.group_by("solution").agg(low=pl.col("value").min(), high=pl.col("value").max())
    means = solution_proxies(table.lazy(), ProxyOptions()).filter(wanted).collect().join(extremes, on="solution")
    assert means.select((pl.col("value").is_between(pl.col("low") - 1e-9, pl.col("high") + 1e-9)).all()).item()


def test_weights_that_sum_to_zero_give_the_uniform_mean():
    certain = {"logprob": 0.0, "max_logprob": 0.0, "entropy": 0.0, "n_greater": 0}
    # Ranks 1 and 2 (ties): a statistic that differs between the tokens, which no weight tells apart.
    table = token_stats(row(**certain), row(**certain, position=1, n_equal=3))
    values = as_dict(solution_proxies(table, ProxyOptions()).collect())
    for weighting in ("expert_disagreement", "entropy"):
        assert values["c", "t", "s", "expert_rank", weighting] == 1.5
    assert np.isfinite(list(values.values())).all()


def test_gaussian_weight_is_one_where_every_nll_is_the_same():
    table = token_stats(row(logprob=-0.1), row(logprob=-0.1, position=1, n_greater=5))
    values = as_dict(solution_proxies(table, ProxyOptions()).collect())
    assert (
        values["c", "t", "s", "expert_rank", "gaussian_nll"] == values["c", "t", "s", "expert_rank", "uniform"] == 4.5
    )


def test_a_tie_for_the_maximum_is_no_wrong_confidence():
    tied = token_stats(row(n_greater=0, n_equal=2, logprob=-0.5))
    values = as_dict(solution_proxies(tied, ProxyOptions()).collect())
    assert values["c", "t", "s", "wrong_confidence", "uniform"] == values["c", "t", "s", "margin", "uniform"] == 0
    assert values["c", "t", "s", "top1_accuracy", "uniform"] == 0  # its mean rank is 1.5
    best = as_dict(solution_proxies(tied, ProxyOptions(rank_ties="best")).collect())
    assert best["c", "t", "s", "top1_accuracy", "uniform"] == 1


@pytest.mark.parametrize("column", ["logprob", "max_logprob", "second_logprob", "entropy"])
@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf, None])
@pytest.mark.parametrize("function", [lambda t: solution_proxies(t, ProxyOptions()), baseline_statistics])
def test_a_value_that_is_not_finite_names_checkpoint_task_solution_and_position(column, value, function):
    bad = row(checkpoint="run-step9", task="algebra", solution="q17", position=42, **{column: value})
    with pytest.raises(InputError, match=rf"run-step9, task algebra, solution q17, position 42: {column} = "):
        function(token_stats(row(), bad))


@pytest.mark.parametrize("change", [{"n_equal": 0}, {"n_greater": -1}, {"vocabulary": 1}, {"bytes": -1}])
def test_an_impossible_count_is_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        solution_proxies(token_stats(row(**change)), ProxyOptions())


def test_task_proxies_are_means_with_standard_errors():
    solutions = solution_proxies(random_token_stats(8, solutions=6).lazy(), ProxyOptions())
    tasks = task_proxies(solutions).collect()
    assert len(tasks) == 2 * 2 * 80
    for found in tasks.sample(40, seed=0).iter_rows(named=True):
        same = [pl.col(name) == found[name] for name in ("checkpoint", "task", "statistic", "weighting")]
        one = solutions.filter(*same).collect()
        assert found["value"] == pytest.approx(one["value"].mean())
        assert found["standard_error"] == pytest.approx(one["value"].std(ddof=1) / np.sqrt(len(one)), abs=1e-12)
        assert (found["solutions"], found["tokens"]) == (6, one["tokens"].sum())


def test_a_single_solution_has_no_standard_error():
    one = token_stats(row(), row(position=1))
    proxies = task_proxies(solution_proxies(one, ProxyOptions())).collect()
    assert proxies["standard_error"].null_count() == 80
    assert baseline_statistics(one).collect()["standard_error"].null_count() == 2


def test_baselines_are_ratios_of_sums():
    table = token_stats(
        row(logprob=-1.0, bytes=3), row(logprob=-2.0, bytes=0, position=1), row(logprob=-6.0, bytes=1, solution="s2")
    )
    found = {r["statistic"]: r for r in baseline_statistics(table).collect().to_dicts()}
    assert found["expert_cross_entropy"]["value"] == pytest.approx(9 / 3)
    assert found["bits_per_byte"]["value"] == pytest.approx(9 / math.log(2) / 4)
    assert found["bits_per_byte"]["weighting"] == "none"
    assert (found["bits_per_byte"]["solutions"], found["bits_per_byte"]["tokens"]) == (2, 3)


def test_solution_ratios_are_the_sums_behind_the_baselines():
    table = random_token_stats(3)
    sums = {}
    for token in table.iter_rows(named=True):
        key = token["checkpoint"], token["task"], token["solution"]
        nll = -float(token["logprob"])
        for name, y, x in (("expert_cross_entropy", nll, 1), ("bits_per_byte", nll / math.log(2), token["bytes"])):
            before = sums.get((*key, name), (0.0, 0.0, 0))
            sums[*key, name] = before[0] + y, before[1] + x, before[2] + 1
    found = solution_ratios(table.lazy()).collect()
    assert set(found["weighting"]) == {"none"} and len(found) == len(sums)
    for row in found.iter_rows(named=True):
        expected = sums[row["checkpoint"], row["task"], row["solution"], row["statistic"]]
        assert (row["value"], row["denominator"], row["tokens"]) == pytest.approx(expected)
    of_tasks = baseline_statistics(table.lazy()).collect()
    key = ["checkpoint", "task", "statistic"]
    ratios = found.group_by(key).agg(pl.col("value").sum() / pl.col("denominator").sum())
    assert_frame_equal(ratios, of_tasks.select(*key, "value"), check_row_order=False)


def test_baseline_standard_errors_agree_with_the_jackknife():
    table = random_token_stats(11, checkpoints=1, tasks=1, solutions=400, length=30)
    found = {r["statistic"]: r["standard_error"] for r in baseline_statistics(table.lazy()).collect().to_dicts()}
    sums = table.group_by("solution").agg(
        nll=-pl.col("logprob").cast(pl.Float64).sum(), tokens=pl.len(), bytes=pl.col("bytes").sum()
    )
    y, n = sums["nll"].to_numpy(), len(sums)
    for name, x, unit in (("expert_cross_entropy", "tokens", 1), ("bits_per_byte", "bytes", math.log(2))):
        x = sums[x].to_numpy() * unit
        without_one = (y.sum() - y) / (x.sum() - x)
        jackknife = math.sqrt((n - 1) / n * ((without_one - without_one.mean()) ** 2).sum())
        assert found[name] == pytest.approx(jackknife, rel=0.01)


def test_a_task_without_bytes_has_no_bits_per_byte():
    with pytest.raises(InputError, match="checkpoint c, task t.* 0 bytes"):
        baseline_statistics(token_stats(row(bytes=0)))
