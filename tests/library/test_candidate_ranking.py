"""Rankings of candidates against task values, closed forms and brute force."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.bootstrap import bootstrap_weights, stream
from proxycast.experiments.candidate_order import SOLUTIONS
from proxycast.library.candidate_ranking import ALL_TASKS, OTHER_TOKENIZERS, rank
from proxycast.library.proxy_values import RECOMMENDED, parsed_name
from proxycast.options import InputError
from proxycast.proxy_formulas import SIGNS, ProxyOptions, baseline_statistics, solution_proxies, task_proxies
from scipy.stats import norm, spearmanr, zscore
from test_proxy_formulas import random_token_stats

FAST = SelectionOptions(bootstrap_replicates=200)


def candidates(seed: int = 0, count: int = 3, **shape: int) -> dict[str, pl.DataFrame]:
    """Candidate -> token statistics of the same tokens, whose bytes are those of their text."""
    table = random_token_stats(seed, count, **shape).with_columns(bytes=1 + pl.col("token"))
    return {name: part.with_columns(checkpoint=pl.lit("x")) for (name,), part in table.group_by("checkpoint")}


def of(table: pl.DataFrame, proxy: str, task: str = ALL_TASKS) -> pl.DataFrame:
    statistic, weighting = parsed_name(proxy)
    return table.filter(task=task, statistic=statistic, weighting=weighting)


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_values_are_those_of_the_tasks(seed):
    """Of a proxy the mean over solutions, of bits per byte the ratio of sums: each as the tables of a study have it."""
    models = candidates(seed)
    found = rank(models, [*RECOMMENDED, "expert_cross_entropy"], selection=SelectionOptions(bootstrap_replicates=100))
    values = {proxy: {} for proxy in (*RECOMMENDED, "expert_cross_entropy")}  # proxy -> candidate -> of each task
    for name, tokens in models.items():
        expected = pl.concat(
            [
                task_proxies(solution_proxies(tokens.lazy(), ProxyOptions())).collect(),
                baseline_statistics(tokens.lazy()).collect(),
            ]
        )
        for proxy in values:
            statistic, weighting = parsed_name(proxy)
            by_task = expected.filter(statistic=statistic, weighting=weighting)
            for task, value in by_task.select("task", "value").iter_rows():
                row = of(found.ranking, proxy, task).row(by_predicate=pl.col("candidate") == name, named=True)
                assert row["value"] == pytest.approx(value, abs=1e-9)
            values[proxy][name] = by_task.sort("task")["value"].to_list()
    for proxy, of_candidates in values.items():  # over all tasks: standardised in each, signed
        sign = SIGNS[parsed_name(proxy)[0]]
        expected = sign * np.nan_to_num(zscore(np.array(list(of_candidates.values())), axis=0)).mean(
            1
        )  # 0 where all tie
        for name, value in zip(of_candidates, expected):
            row = of(found.ranking, proxy).row(by_predicate=pl.col("candidate") == name, named=True)
            assert row["value"] == pytest.approx(value, abs=1e-9)


def test_places_follow_the_sign():
    found = rank(candidates(), selection=FAST).ranking
    for proxy, better in (("top5_accuracy/token_frequency", True), ("bits_per_byte", False)):
        table = of(found, proxy)
        assert table["place"].is_sorted()
        assert table["value"].is_sorted(descending=True)  # standardised: higher is better
        assert of(found, proxy, found["task"].unique().sort()[1])["value"].is_sorted(descending=better)
        assert (table["value_low"] <= table["value"]).all() and (table["value"] <= table["value_high"]).all()


def test_the_interval_of_bits_per_byte_is_that_of_the_delta_method():
    models = candidates(1, 2, tasks=1, solutions=300)
    row = of(rank(models, ["bits_per_byte"], selection=SelectionOptions(confidence=0.9)).ranking, "bits_per_byte")
    for name, low, high in row.select("candidate", "value_low", "value_high").iter_rows():
        error = (
            baseline_statistics(models[name].lazy()).filter(statistic="bits_per_byte").collect()["standard_error"][0]
        )
        assert high - low == pytest.approx(2 * norm.ppf(0.95) * error, rel=0.06)


def test_bits_per_byte_of_a_sample_is_the_ratio_of_its_sums():
    """By brute force, over the draws that the workflow makes."""
    models = candidates(10, 2, tasks=1, solutions=5)
    row = of(rank(models, ["bits_per_byte"], selection=FAST).ranking, "bits_per_byte")
    draws = bootstrap_weights(5, FAST.bootstrap_replicates, stream(FAST.seed, SOLUTIONS))
    for name, low, high in row.select("candidate", "value_low", "value_high").iter_rows():
        sums = models[name].group_by("solution").agg(-pl.col("logprob").cast(pl.Float64).sum(), pl.col("bytes").sum())
        nll, size = (sums.sort("solution")[column].to_numpy() for column in ("logprob", "bytes"))
        ratios = draws @ nll / (draws @ size) / np.log(2)
        ends = np.quantile(ratios, [(1 - FAST.confidence) / 2, (1 + FAST.confidence) / 2])
        assert (low, high) == pytest.approx(tuple(ends), rel=1e-9)


def test_agreement_is_the_rank_correlation_of_the_values():
    found = rank(candidates(2, 6), selection=FAST)
    scores = {}
    for proxy in RECOMMENDED:
        scores[proxy] = of(found.ranking, proxy).sort("candidate")["value"].to_numpy()
    names = {parsed_name(proxy)[0]: proxy for proxy in RECOMMENDED}
    assert len(found.agreement) == 3
    for row in found.agreement.iter_rows(named=True):
        one, other = scores[names[row["statistic"]]], scores[names[row["other_statistic"]]]
        assert row["spearman"] == pytest.approx(spearmanr(one, other).statistic)


def test_one_task_is_told_once_and_one_candidate_has_no_pairs():
    found = rank(candidates(3, 1, tasks=1), selection=FAST)
    assert found.ranking["task"].unique().to_list() == [ALL_TASKS] and len(found.ranking) == 3
    assert found.pairs.is_empty() and found.ranking["place"].unique().to_list() == [1]


def test_seeds_of_a_candidate_are_averaged_and_resampled():
    models = candidates(4, 4, tasks=1)
    a, b, c, d = models.values()
    found = of(rank({"ab": [a, b], "cd": [c, d]}, selection=FAST).ranking, "bits_per_byte")
    alone = of(rank(models, selection=FAST).ranking, "bits_per_byte")
    means = dict(alone.select("candidate", "value").iter_rows())
    one, other, *_ = models
    [value] = found.filter(candidate="ab")["value"]
    assert value == pytest.approx((means[one] + means[other]) / 2)
    twice = of(rank({"a": [a, a], "c": [c, c]}, selection=FAST).ranking, "bits_per_byte")
    assert twice.filter(candidate="a")["value"][0] == pytest.approx(means[one])


def other_tokenizer(tokens: pl.DataFrame, extra: int) -> pl.DataFrame:
    """The same text in other tokens, and a tail that reaches `extra` bytes further back."""
    first = pl.col("position") == pl.col("position").min().over("task", "solution")
    before = tokens.filter(first).with_columns(position=pl.col("position") - 1, bytes=pl.lit(extra, pl.Int32))
    return pl.concat([before, tokens]).with_columns(token=pl.col("token") + 100)


def test_other_tokenizers_are_compared_on_the_bytes_that_all_have_read():
    """What only one candidate has read does not count; proxies that count tokens carry a note, bits per byte none."""
    a, b = candidates(5, 2).values()
    found = rank({"a": a, "b": other_tokenizer(b, extra=9)}, selection=FAST).ranking
    same = rank({"a": a, "b": b}, selection=FAST).ranking
    assert found["tail"].unique().to_list() == ["bytes"] and same["tail"].unique().to_list() == ["tokens"]
    assert found["statistic"][0] == "bits_per_byte"
    notes = dict(found.select("statistic", "note").iter_rows())
    assert notes.pop("bits_per_byte") == "" and set(notes.values()) == {OTHER_TOKENIZERS}
    columns = ["candidate", "task", "value", "place"]
    key = ["task", "candidate"]
    one, other = (table.filter(statistic="bits_per_byte").select(columns).sort(key) for table in (found, same))
    assert np.allclose(one["value"], other["value"]) and one["place"].equals(other["place"])


def test_a_longer_prompt_is_no_other_tokenizer():
    a, b = candidates(5, 2).values()
    found = rank({"a": a, "b": b.with_columns(pl.col("position") + 7)}, selection=FAST).ranking
    assert found["tail"].unique().to_list() == ["tokens"] and found["note"].unique().to_list() == [""]


def test_values_per_solution_rank_as_their_tokens_do():
    models = candidates(6, 3)
    values = pl.concat(
        [
            solution_proxies(tokens.with_columns(checkpoint=pl.lit(name)).lazy(), ProxyOptions()).collect()
            for name, tokens in models.items()
        ]
    )
    named = RECOMMENDED[:2]
    one, other = rank(values, named, selection=FAST), rank(models, named, selection=FAST)
    key = ["task", "statistic", "candidate"]
    kept = [*key, "value", "value_low", "value_high", "place"]
    assert one.ranking.select(kept).sort(key).equals(other.ranking.select(kept).sort(key))


def test_an_unknown_proxy_is_told_with_the_closest_name():
    with pytest.raises(InputError, match="'top5_acuracy/uniform'; did you mean 'top5_accuracy/uniform'"):
        rank(candidates(), ["top5_acuracy/uniform"])


def test_what_is_missing_is_named():
    a, b, _ = candidates(7, tasks=1).values()
    with pytest.raises(InputError, match="candidate b, seed 0, solution s1 is missing"):
        rank({"a": a, "b": b.filter(pl.col("solution") != "s1")}, selection=FAST)
    with pytest.raises(InputError, match="a task is named 'all'"):
        rank({"a": a.with_columns(task=pl.lit("all"))})
    with pytest.raises(InputError, match="found no candidate"):
        rank({})
    with pytest.raises(InputError, match="column statistic: missing"):
        rank(pl.DataFrame({"checkpoint": ["a"], "task": ["t"], "solution": ["s"]}))
    with pytest.raises(InputError, match="proxy bits_per_byte: no candidate has a value of it"):
        rank(solution_proxies(a.lazy(), ProxyOptions()).collect(), ["bits_per_byte"])
    with pytest.raises(InputError, match="candidate b: found no table; give the token statistics of at least one seed"):
        rank({"a": a, "b": []})
    with pytest.raises(InputError, match="candidate b: found no column bytes"):
        rank({"a": a, "b": b.drop("bytes")})
    with pytest.raises(InputError, match="candidate a, task t0: the scored tokens cover 0 bytes, so no bits_per_byte"):
        rank({name: tokens.with_columns(bytes=pl.lit(0, pl.Int32)) for name, tokens in (("a", a), ("b", b))})
    with pytest.raises(InputError, match="proxies: found none"):
        rank({"a": a}, [])


def test_a_table_of_several_checkpoints_is_no_candidate():
    a, b, _ = candidates(8, tasks=1).values()
    both = pl.concat([a.with_columns(checkpoint=pl.lit("p")), b.with_columns(checkpoint=pl.lit("q"))])
    with pytest.raises(InputError, match="candidate a: found the token statistics of 2 checkpoints: p, q; give those"):
        rank({"a": both, "b": b})
    with pytest.raises(InputError, match="candidate a: found the token statistics of 0 checkpoints; give those"):
        rank({"a": a.clear(), "b": b})


def test_a_proxy_that_is_named_twice_ranks_once():
    models = candidates(9, tasks=1)
    assert len(rank(models, ["bits_per_byte", "bits_per_byte"], selection=FAST).ranking) == len(models)
