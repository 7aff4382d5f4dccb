"""Parts of the expert solutions: both tails against loops, draws that are nested and the same for every writer."""

import polars as pl
import pytest
from conftest import byte_level_tokenizer, metaspace_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from proxycast.experiments.model_selection.subsets import memberships, subset_proxies
from proxycast.proxy_formulas import ProxyOptions, solution_proxies, tails, task_proxies
from proxycast.solutions.rows import Solution
from proxycast.solutions.tokenisation import tokenize
from test_proxy_formulas import random_token_stats

TOKENIZERS = [byte_level_tokenizer(), metaspace_tokenizer()]
SUBSET = ["writer", "number", "draw"]
texts = st.text(" cat2é€😀hmso", min_size=1, max_size=30).filter(str.strip)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@settings(max_examples=30, deadline=None)
@given(solution=texts, tokens=st.integers(1, 12), size=st.integers(1, 40))
def test_what_is_scored_is_what_either_tail_needs(tokenizer, solution, tokens, size):
    (whole,) = tokenize([("k", "cat: ", solution)], tokenizer, 999)
    (found,) = tokenize([("k", "cat: ", solution)], tokenizer, 999, tokens, tail_bytes=size)
    behind = [int(whole.token_bytes[n + 1 :].sum()) for n in range(len(whole.token_bytes))]
    wanted = [n for n in range(len(behind)) if len(behind) - n <= tokens or behind[n] < size]
    assert found.token_bytes.tolist() == whole.token_bytes[wanted].tolist()
    assert (found.stop, found.start) == (whole.stop, whole.start + wanted[0])


@pytest.mark.parametrize("tokens, size", [(1, 1), (2, 9), (3, 4), (99, 999)])
def test_tails_are_taken_apart_again(tokens, size):
    table = random_token_stats(0)
    shuffled = table.sample(fraction=1, shuffle=True, seed=1).lazy()
    wanted: dict[str, set] = {"tokens": set(), "bytes": set()}
    for key, rows in table.sort("position").group_by("checkpoint", "task", "solution"):
        sizes, positions = rows["bytes"].to_list(), rows["position"].to_list()
        for n, position in enumerate(positions):
            wanted["tokens"] |= {(*key, position)} if len(sizes) - n <= tokens else set()
            wanted["bytes"] |= {(*key, position)} if sum(sizes[n + 1 :]) < size else set()
    for name, found in tails(shuffled, tokens, size).items():
        assert set(found.select("checkpoint", "task", "solution", "position").collect().rows()) == wanted[name]


def test_without_a_size_in_bytes_there_is_one_tail_untouched():
    table = random_token_stats(0).lazy()
    assert tails(table, 1, None) == {"tokens": table}


def solutions(task: str, problems: int, *writers: str | None) -> list[Solution]:
    return [
        Solution(id=f"{task}{n}@{writer}", problem=f"{task}{n}", prompt="", solution="x", writer=writer)
        for writer in writers
        for n in range(problems)
    ]


def test_draws_are_nested_and_hold_the_same_problems_of_every_writer():
    given = {"a": solutions("a", 40, None, "W", "V"), "b": solutions("b", 12, None, "W")}
    table = memberships(given, (5, 10, 100), 3, seed=0)
    assert set(table["writer"]) == {"all", "given", "W"}  # V wrote for one task only
    sizes = {tuple(key): count for *key, count in table.group_by(*SUBSET, "task").len().iter_rows()}
    assert sizes["all", None, 0, "a"] == 120 and sizes["W", None, 0, "b"] == 12
    assert sizes["all", 5, 2, "a"] == 15 and sizes["W", 10, 0, "b"] == 10
    assert {(number, draw) for _, number, draw, _ in sizes} == {
        (None, 0),
        *((n, draw) for n in (5, 10) for draw in range(3)),
    }

    def drawn(writer, number, draw, task="a"):
        rows = table.filter(writer=writer, number=number, draw=draw, task=task)
        return set(rows["solution"].str.split("@").list.first())

    assert drawn("W", 5, 1) < drawn("W", 10, 1) and drawn("W", 5, 1) == drawn("given", 5, 1) == drawn("all", 5, 1)
    assert len({frozenset(drawn("W", 5, draw)) for draw in range(3)}) == 3
    assert_frame_equal(table, memberships(given, (5, 10, 100), 3, seed=0))
    assert not table.equals(memberships(given, (5, 10, 100), 3, seed=1))


def test_a_subset_has_the_proxies_that_its_solutions_alone_would_have():
    table = random_token_stats(3)
    names = sorted(set(table.select("task", "solution").rows()))
    members = pl.DataFrame(
        [("all", None, 0, *name) for name in names] + [("W", 1, 2, *name) for name in names[::2]],
        schema={"writer": pl.String, "number": pl.Int64, "draw": pl.Int64, "task": pl.String, "solution": pl.String},
        orient="row",
    )
    found = subset_proxies(table.lazy(), members, ProxyOptions())
    keys = ["checkpoint", "task", "statistic", "weighting"]
    for key, chosen in members.group_by(SUBSET):
        alone = table.join(chosen, on=["task", "solution"], how="semi")
        wanted = task_proxies(solution_proxies(alone.lazy(), ProxyOptions())).collect().sort(keys)
        own = found.filter(writer=key[0], draw=key[2]).drop(SUBSET).sort(keys)
        assert_frame_equal(own, wanted, check_column_order=False)
