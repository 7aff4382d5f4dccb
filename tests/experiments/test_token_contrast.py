"""The token view: contributions sum to differences of proxies, and texts are the solutions'."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget, Proxy
from proxycast.experiments.checkpoint_means import checkpoint_means
from proxycast.experiments.token_contrast.compared import (
    Comparison,
    _evenly,
    comparison_of,
    first_proxy,
    manifests_below,
    stat_files,
)
from proxycast.experiments.token_contrast.contributions import Reading, contributions, largest
from proxycast.experiments.token_contrast.token_tables import (
    CONTRAST_SCHEMA,
    VIEW_SCHEMA,
    chosen_solutions,
    token_tables,
    view_table,
)
from proxycast.experiments.token_contrast.token_texts import REPLACEMENT, text_after, text_before, token_text
from proxycast.options import InputError
from proxycast.proxy_formulas import ProxyOptions, solution_proxies, tails, task_proxies, token_shares
from proxycast.solutions.rows import Solution
from proxycast.tables import read_table
from token_study import TOP5, pairs_of_bytes, solutions_of, token_stats, value, write_ranking, write_study

PROXIES = ["top5_accuracy/token_frequency", "expert_rank/inverse_token_frequency", "margin/expert_disagreement"]
PROXIES += ["cross_entropy/gaussian_nll", "bits_per_byte", "expert_cross_entropy"]
BUDGET = Budget(name="b", size="small", step=20)
MANY = 10**6


def opened(results, proxy=TOP5, tail_tokens=MANY, tail_bytes=None, names=(), number=1, tail="tokens", **rankings):
    files = stat_files(manifests_below(results))
    if not rankings:
        rankings = {"corpora": write_ranking(results)}
    comparison = comparison_of(
        *(read_table(results / "checkpoints.parquet"), files, [proxy], SelectionOptions(last_checkpoints=number)),
        budgets=[BUDGET],
        names=names,
        **rankings,
    )
    reading = Reading(files, ProxyOptions(), tail_tokens, tail_bytes)
    return Comparison(comparison.candidates, comparison.proxy, tail), reading


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_study(folder)
    return folder


@pytest.mark.parametrize("name", PROXIES)
def test_the_contributions_of_all_tokens_sum_to_the_difference_of_the_proxy(results, name):
    proxy = Proxy.model_validate(name)
    comparison, reading = opened(results, proxy, names=["bad", "good"])
    found = contributions(comparison, reading, ["sums", "words"], MANY)
    wanted = {
        corpus: sum(value(results, f"{corpus}-small-seed{seed}-step20", proxy) for seed in (0, 1)) / 2
        for corpus in ("good", "bad")
    }
    assert found.total == pytest.approx(wanted["bad"] - wanted["good"], rel=1e-9)
    assert found.tokens["contribution"].sum() == pytest.approx(found.total, rel=1e-9)
    of_solutions = found.tokens.group_by("task", "solution").agg(pl.col("contribution").sum())
    joined = of_solutions.join(found.solutions, on=["task", "solution"], suffix=" of solution")
    assert len(joined) == len(found.solutions) == 6
    assert joined["contribution"].to_list() == pytest.approx(joined["contribution of solution"].to_list(), rel=1e-9)
    sizes = found.tokens["contribution"].abs().to_list()
    assert all(one >= other - 1e-12 for one, other in pairwise(sizes))


@pytest.mark.parametrize("tail", ["tokens", "bytes"])
def test_the_tails_are_those_of_the_proxies(results, tail):
    def cut(stats):
        return tails(stats, 4, 9)[tail]

    comparison, reading = opened(results, tail_tokens=4, tail_bytes=9, tail=tail)
    found = contributions(comparison, reading, ["sums", "words"], MANY)
    first, last = (np.mean([value(results, name, TOP5, cut) for name in one.weights]) for one in comparison.candidates)
    assert found.total == pytest.approx(first - last, rel=1e-9)
    assert found.tokens["behind"].max() <= 9


def test_the_last_checkpoints_are_averaged_as_in_the_ranking(results):
    comparison, reading = opened(results, number=2, names=["good", "bad"])
    found = contributions(comparison, reading, ["sums", "words"], MANY)
    checkpoints = read_table(results / "checkpoints.parquet")
    single = checkpoints.with_columns(value=pl.Series([value(results, c, TOP5) for c in checkpoints["checkpoint"]]))
    means = checkpoint_means(single.lazy().select("checkpoint", "value"), checkpoints, 2).collect()
    means = means.join(checkpoints.filter(step=20), on="checkpoint").group_by("corpus").agg(pl.col("value").mean())
    of = dict(means.iter_rows())
    assert found.total == pytest.approx(of["good"] - of["bad"], rel=1e-9)


def test_frequencies_of_the_whole_study_are_counted_in_all_tasks(results):
    comparison, reading = opened(results, names=["good", "bad"])
    options = ProxyOptions(token_frequency_scope="study")
    found = contributions(comparison, Reading(reading.files, options, MANY, None), ["sums", "words"], MANY)
    wanted = []
    for one in comparison.candidates:
        for checkpoint in one.weights:
            stats = pl.scan_parquet(reading.files[checkpoint]).filter(pl.col("task") != "generic_text")
            table = task_proxies(solution_proxies(stats, options)).collect()
            wanted.append(table.filter(**TOP5.model_dump())["value"].mean())
    assert found.total == pytest.approx((wanted[0] + wanted[1] - wanted[2] - wanted[3]) / 2, rel=1e-9)


def test_a_solution_whose_weights_are_all_zero_counts_uniformly():
    stats = token_stats("c", {"t": solutions_of("t")}, np.random.default_rng(1))
    stats = stats.with_columns(logprob=pl.lit(0.0, pl.Float32), max_logprob=pl.lit(0.0, pl.Float32)).lazy()
    shares = token_shares(stats, ProxyOptions(), "expert_rank", "expert_disagreement")
    table = task_proxies(solution_proxies(stats, ProxyOptions())).collect()
    [wanted] = table.filter(statistic="expert_rank", weighting="expert_disagreement")["value"]
    assert shares["weight"].sum() == 0 and shares["share"].sum() == pytest.approx(wanted)


def test_the_tables_hold_what_the_proxies_hold_and_their_texts_join_to_the_solutions(results):
    solutions = {task: solutions_of(task) for task in ("sums", "words")}
    comparison, reading = opened(results)
    tables = token_tables(comparison, reading, solutions)
    view, contrast = tables["token_view"], tables["token_contrast"]
    assert dict(view.schema) == VIEW_SCHEMA and dict(contrast.schema) == CONTRAST_SCHEMA
    texts = {s.id: s for of_task in solutions.values() for s in of_task}
    for (name, _), rows in view.group_by("solution", "checkpoint"):
        assert "".join(rows.sort("position")["text"]) == texts[name].solution
        assert rows["before"][0] == texts[name].prompt
    assert view.group_by("task").agg(pl.col("solution").n_unique())["solution"].to_list() == [2, 2]
    assert set(view["step"]) == {10, 20} and view.filter("is_end")["step"].unique().to_list() == [20]
    for row in contrast.iter_rows(named=True):
        whole = texts[row["solution"]].prompt + texts[row["solution"]].solution
        assert row["before"] + row["text"] + row["after"] in whole
    assert contrast["contribution"].sum() == pytest.approx(contrast["difference"][0])
    stats = pl.read_parquet(reading.files[comparison.candidates[0].end])
    one = view.filter(checkpoint=comparison.candidates[0].end).join(stats, on=["task", "solution", "position"])
    assert len(one) == len(view.filter(checkpoint=comparison.candidates[0].end))
    assert one["cross_entropy"].to_list() == pytest.approx((-one["logprob"]).to_list())
    assert one["rank"].to_list() == (1 + one["n_greater"]).to_list()
    again = token_tables(comparison, reading, solutions)
    assert all(again[name].equals(table) for name, table in tables.items())


def test_only_the_last_tokens_of_a_solution_are_shown(results):
    comparison, reading = opened(results)
    chosen = pl.DataFrame({"task": ["sums"], "solution": ["sums-2"]})
    [solution] = [s for s in solutions_of("sums") if s.id == "sums-2"]
    view = view_table(comparison, reading, chosen, {"sums": {solution.id: solution}}, most_tokens=5)
    rows = view.filter(checkpoint=comparison.candidates[0].end)
    assert "".join(rows["text"]) == solution.solution[-5:]
    assert rows["before"][0] == solution.prompt + solution.solution[:-5]


def test_other_tokenizers_are_compared_by_solution_alone(tmp_path):
    solutions = write_study(tmp_path, tokenizers={"bad": pairs_of_bytes})
    comparison, reading = opened(tmp_path, names=["good", "bad"])
    tables = token_tables(comparison, reading, solutions)
    contrast = tables["token_contrast"]
    assert contrast["position"].null_count() == len(contrast) == 6
    wanted = [sum(value(tmp_path, f"{c}-small-seed{s}-step20", TOP5) for s in (0, 1)) / 2 for c in ("good", "bad")]
    assert contrast["contribution"].sum() == pytest.approx(wanted[0] - wanted[1], rel=1e-9)
    lengths = tables["token_view"].filter(step=20, place=1).group_by("candidate").len()["len"].to_list()
    assert lengths[0] != lengths[1]  # each with its own tokens
    assert REPLACEMENT in "".join(tables["token_view"].filter(candidate="bad")["text"])  # "ü" is split


def test_one_candidate_is_shown_alone_and_its_contributions_sum_to_its_value(tmp_path):
    solutions = write_study(tmp_path, corpora=["good"], seeds=[0])
    comparison, reading = opened(tmp_path)
    tables = token_tables(comparison, reading, solutions)
    assert [one.name for one in comparison.candidates] == ["good"]
    contrast = tables["token_contrast"]
    assert contrast["second"].null_count() == contrast["second_rank"].null_count() == len(contrast) > 0
    assert contrast["difference"][0] == pytest.approx(value(tmp_path, "good-small-seed0-step20", TOP5))
    assert tables["token_view"]["candidate"].unique().to_list() == ["good"]


def test_models_are_compared_by_the_order_and_tail_of_their_ranking(tmp_path):
    write_study(tmp_path, seeds=[0], steps=[20], role="candidate")
    ranking = pl.DataFrame(
        {
            "task": ["all", "all", "all", "sums"],
            "method": ["top5_accuracy/token_frequency"] * 4,
            "tail": ["bytes"] * 4,
            "model": ["fair", "good", "bad", "bad"],
            "checkpoint": [f"{m}-small-seed0-step20" for m in ("fair", "good", "bad", "bad")],
            "place": [2.0, 3.0, 1.0, 3.0],
        }
    )
    files = stat_files(manifests_below(tmp_path))
    checkpoints = read_table(tmp_path / "checkpoints.parquet")
    found = comparison_of(checkpoints, files, [TOP5], SelectionOptions(), models=ranking)
    assert [one.name for one in found.candidates] == ["bad", "good"] and found.tail == "bytes"
    assert found.candidates[0].weights == {"bad-small-seed0-step20": 1.0}
    del files["bad-small-seed0-step20"]  # a model that others have measured
    found = comparison_of(checkpoints, files, [TOP5], SelectionOptions(), models=ranking)
    assert [one.name for one in found.candidates] == ["fair", "good"]


def test_a_forecast_compares_the_ends_of_its_longest_run(tmp_path):
    write_study(tmp_path, corpora=["run"], seeds=[0], steps=range(1, 21))
    files = stat_files(manifests_below(tmp_path))
    checkpoints = read_table(tmp_path / "checkpoints.parquet")
    last, first = comparison_of(checkpoints, files, [TOP5], SelectionOptions()).candidates
    assert (last.end, first.end) == ("run-small-seed0-step20", "run-small-seed0-step1")
    assert list(last.steps) == [20] and len(first.steps) == 8 and {1, 20} <= set(first.steps)
    [only] = comparison_of(checkpoints.filter(step=20), files, [TOP5], SelectionOptions()).candidates
    assert only.end == "run-small-seed0-step20"
    with pytest.raises(InputError, match="no checkpoint has token statistics here"):
        comparison_of(checkpoints, [], [TOP5], SelectionOptions())


def test_unknown_candidates_and_missing_statistics_are_told(results):
    with pytest.raises(InputError, match="no corpus 'goood' here; did you mean 'good'"):
        opened(results, names=["goood", "bad"])
    comparison, reading = opened(results)
    with pytest.raises(InputError, match="no token statistics of checkpoint good-small-seed0-step20"):
        contributions(opened(results, names=["good", "bad"])[0], Reading({}, ProxyOptions(), 9, None), ["sums"], 9)


@given(st.sets(st.integers(0, 1000), min_size=1, max_size=40), st.data())
def test_shown_steps_are_few_spread_and_hold_the_end(steps, data):
    at = data.draw(st.sampled_from(sorted(steps)))
    of_run = pl.DataFrame({"step": sorted(steps), "checkpoint": [f"c{step}" for step in sorted(steps)]})
    found = _evenly(of_run, at, 8)
    assert at in found and len(found) == min(8, len(steps)) and list(found) == sorted(found)
    assert all(found[step] == f"c{step}" for step in found)


@given(st.text(min_size=1, max_size=30), st.data())
def test_texts_of_tokens_that_keep_characters_whole_join_to_the_text(text, data):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    solution = Solution.model_construct(id="a", prompt="P", solution=text)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text)), max_size=len(text))) | {len(text)})
    pieces = [text[a:b] for a, b in pairwise([0, *cuts])]
    behind, found = len(text.encode()), []
    for piece in pieces:
        behind -= len(piece.encode())
        found.append(token_text(solution, behind, len(piece.encode())))
        assert text_before(solution, behind, 10**6) + text_after(solution, behind, 10**6) == "P" + text
    assert found == pieces


def test_a_split_character_is_marked_and_another_text_too():
    solution = Solution(id="a", prompt="P", solution="aü")
    assert [token_text(solution, 1, 2), token_text(solution, 0, 1)] == ["a" + REPLACEMENT, REPLACEMENT]
    assert token_text(solution, 0, 0) == ""
    assert token_text(solution, 2, 9) == REPLACEMENT


def test_every_task_is_shown_before_a_second_solution_of_any():
    rows = [("a", "a1"), ("a", "a2"), ("b", "b1"), ("a", "a3"), ("c", "c1")]
    of_solutions, tokens = (pl.DataFrame(found, ["task", "solution"], orient="row") for found in (rows, [rows[3]] * 2))
    assert chosen_solutions(of_solutions, tokens, 2, 9)["solution"].to_list() == ["a1", "b1", "c1", "a3"]
    assert chosen_solutions(of_solutions, tokens.clear(), 2, 9)["solution"].to_list() == ["a1", "b1", "c1", "a2"]
    assert chosen_solutions(of_solutions, tokens, 2, 2)["solution"].to_list() == ["a1", "b1"]


def test_without_a_proxy_of_tokens_the_default_decides():
    assert (
        first_proxy([Proxy.model_validate("rbridge"), Proxy.model_validate("bits_per_byte")]).statistic
        == "bits_per_byte"
    )
    assert first_proxy([Proxy.model_validate("rbridge")]) == TOP5


def test_the_largest_of_either_sign_are_kept_though_one_sign_is_smaller_throughout():
    values = [0.5, -0.01, 0.4, 0.3, 0.0, -0.03, -0.02, 0.3]
    table = pl.DataFrame({"task": "t", "solution": list("abcdefgh"), "contribution": values})
    assert largest(table, 2)["solution"].to_list() == ["a", "c", "f", "g"]
    assert largest(table, None)["contribution"].to_list() == [0.5, 0.4, 0.3, 0.3, -0.03, -0.02, -0.01, 0.0]
