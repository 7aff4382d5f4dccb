"""rBridge against its algorithm in plain Python, byte by byte; and where tokens, bytes and tails can go wrong."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.options import InputError
from proxycast.proxy_formulas import RBRIDGE, rbridge, solution_rbridge

SCHEMA = {"task": pl.String, "solution": pl.String, "position": pl.Int32, "bytes": pl.Int32, "logprob": pl.Float32}


def table(*texts: tuple, checkpoint: str | None = None) -> pl.LazyFrame:
    """Rows of texts given as (task, solution, position of the first token, [(bytes, logprob) of each token])."""
    rows = [
        (task, solution, first + i, size, logprob)
        for task, solution, first, tokens in texts
        for i, (size, logprob) in enumerate(tokens)
    ]
    found = pl.LazyFrame(rows, schema=SCHEMA, orient="row")
    return found if checkpoint is None else found.select(checkpoint=pl.lit(checkpoint), **{n: n for n in SCHEMA})


def by_bytes(scored: list[tuple[int, float]], expert: list[tuple[int, float]]) -> float:
    """Algorithm 1 with a list that has one probability for each byte of the text."""
    of_byte = [math.exp(logprob) for size, logprob in expert for _ in range(size)]
    place, weights = len(of_byte) - sum(size for size, _ in scored), []
    for size, _ in scored:
        letters = of_byte[place : place + size] or of_byte[max(place - 1, 0) : max(place, 1)]
        weights.append(sum(letters) / len(letters))
        place += size
    least, most = min(weights), max(weights)
    scaled = [(w - least) / (most - least) if most - least > 1e-9 else 1.0 for w in weights]
    return sum(-logprob * w for (_, logprob), w in zip(scored, scaled)) / len(scored)


def test_a_case_by_hand():
    # The text "abcdef": the expert reads "abc", "de", "f", the candidate "ab", "cd", "ef".
    expert = [(3, math.log(0.9)), (2, math.log(0.5)), (1, math.log(0.1))]
    candidate = [(2, -1.0), (2, -2.0), (2, -4.0)]
    # Weights 0.9, (0.9 + 0.5) / 2 = 0.7 and (0.5 + 0.1) / 2 = 0.3; scaled 1, 2/3 and 0.
    found = rbridge(table(("t", "s", 7, candidate), checkpoint="c"), table(("t", "s", 3, expert))).collect()
    (row,) = found.rows(named=True)
    assert row.pop("value") == pytest.approx((1.0 * 1 + 2.0 * 2 / 3 + 4.0 * 0) / 3, rel=1e-6)
    assert row == {
        "checkpoint": "c",
        "task": "t",
        "statistic": RBRIDGE,
        "weighting": "none",
        "standard_error": None,
        "solutions": 1,
        "tokens": 3,
    }


def test_a_tail_is_counted_from_the_end_of_the_text():
    expert = [(3, math.log(0.9)), (2, math.log(0.5)), (1, math.log(0.1))]
    tail = [(1, -2.0), (2, -4.0)]  # "d" and "ef": weights 0.5 and 0.3
    found = solution_rbridge(table(("t", "s", 99, tail), checkpoint="c"), table(("t", "s", 3, expert))).collect()
    assert found["value"].item() == pytest.approx(2.0 / 2, rel=1e-6)
    assert found["tokens"].item() == 2


texts = st.lists(st.tuples(st.integers(0, 4), st.floats(-6, 0, width=32)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, st.integers(0, 2**32 - 1)), min_size=1, max_size=3))
def test_agrees_with_the_algorithm_byte_by_byte(cases):
    scored, experts, expected = [], [], {}
    for number, (tokens, seed) in enumerate(cases):
        rng = np.random.default_rng(seed)
        expert = [(int(rng.integers(0, 5)), float(np.float32(-rng.exponential()))) for _ in range(rng.integers(1, 9))]
        expert.append((sum(size for size, _ in tokens) + 1, -0.25))  # at least the candidate's bytes
        rng.shuffle(expert)
        expert = [(int(size), float(logprob)) for size, logprob in expert]
        task, solution = f"t{number // 2}", f"s{number}"
        scored.append((task, solution, int(rng.integers(0, 99)), tokens))
        experts.append((task, solution, int(rng.integers(0, 99)), expert))
        expected[solution] = by_bytes(tokens, expert)
    shuffled = table(*scored, checkpoint="c").collect().sample(fraction=1, shuffle=True, seed=0).lazy()
    others = table(*experts).collect().sample(fraction=1, shuffle=True, seed=1).lazy()
    found = solution_rbridge(shuffled, others).collect()
    assert dict(found.select("solution", "value").iter_rows()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_checkpoints_with_other_tokenizers_meet_the_same_expert():
    expert = table(("t", "s", 0, [(2, math.log(0.2)), (4, math.log(0.8))]))
    one = table(("t", "s", 5, [(2, -1.0), (4, -3.0)]), checkpoint="one")
    other = table(("t", "s", 5, [(1, -1.0), (5, -4.0)]), checkpoint="other")
    found = rbridge(pl.concat([one, other]), expert).collect()
    # Weights 0.2 and 0.8; of "other" 0.2 and (0.2 + 4 0.8) / 5 = 0.68: scaled 0 and 1 both.
    values = {"one": 3.0 / 2, "other": 4.0 / 2}
    assert dict(found.select("checkpoint", "value").iter_rows()) == pytest.approx(values, rel=1e-6)


def test_a_token_without_bytes_at_the_start_has_the_weight_of_the_first_byte():
    expert = table(("t", "s", 0, [(2, math.log(0.2)), (4, math.log(0.8))]))
    tokens = table(("t", "s", 5, [(0, -5.0), (2, -1.0), (4, -3.0)]), checkpoint="c")
    assert rbridge(tokens, expert).collect()["value"].item() == pytest.approx(3.0 / 3, rel=1e-6)


def test_equal_weights_give_the_mean():
    expert = table(("t", "s", 0, [(1, math.log(0.3))] * 40))
    tokens = [(2, -1.0), (3, -2.0), (1, -6.0)]
    found = rbridge(table(("t", "s", 0, tokens), checkpoint="c"), expert).collect()
    assert found["value"].item() == pytest.approx(3.0, rel=1e-6)


def test_solutions_without_an_expert_have_no_row_and_others_are_averaged():
    expert = [(2, math.log(0.2)), (2, math.log(0.8))]
    experts = table(("t", "a", 0, expert), ("t", "b", 0, expert), ("unread", "a", 0, expert))
    tokens = [("t", "a", [(2, -1.0), (2, -2.0)]), ("t", "b", [(2, -1.0), (2, -6.0)]), ("t", "given", [(9, -9.0)])]
    tokens.append(("other", "a", [(2, -1.0)]))
    stats = table(*((task, solution, 0, text) for task, solution, text in tokens), checkpoint="c")
    (row,) = rbridge(stats, experts).collect().rows(named=True)
    assert (row["task"], row["solutions"], row["tokens"]) == ("t", 2, 4)
    assert row["value"] == pytest.approx((1.0 + 3.0) / 2)
    assert row["standard_error"] == pytest.approx(np.std([1.0, 3.0], ddof=1) / math.sqrt(2))


def test_probabilities_of_a_shorter_text_are_refused():
    experts = table(("t", "s", 0, [(2, -1.0), (1, -1.0)]))
    rbridge(table(("t", "s", 0, [(3, -1.0)]), checkpoint="c"), experts)
    with pytest.raises(InputError, match="task t, solution s: they cover 3 bytes, but checkpoint c scored 4"):
        rbridge(table(("t", "s", 0, [(1, -1.0), (3, -1.0)]), checkpoint="c"), experts)
