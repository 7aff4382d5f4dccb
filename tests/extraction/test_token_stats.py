"""Statistics of logits against a plain loop in float64, written from the definitions."""

import math
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from proxycast.extraction import token_stats as module
from proxycast.extraction.schema import TokenStats
from proxycast.extraction.token_stats import Head, Slice, token_stats, token_stats_from_hidden, token_stats_of_slice


def brute_force(logits: torch.Tensor, targets: torch.Tensor) -> list[tuple[float, ...]]:
    rows = []
    for row, target in zip(logits.float().double().tolist(), targets.tolist()):
        largest = max(row)
        log_sum = math.log(math.fsum(math.exp(x - largest) for x in row)) + largest
        log_probabilities = sorted((x - log_sum for x in row), reverse=True)
        entropy = -math.fsum(math.exp(lp) * lp for lp in log_probabilities if lp > -math.inf)
        greater, equal = sum(x > row[target] for x in row), sum(x == row[target] for x in row)
        rows.append((row[target] - log_sum, log_probabilities[0], log_probabilities[1], entropy, greater, equal))
    return rows


def check(stats, logits, targets, absolute=1e-6):
    expected = np.array(brute_force(logits, targets))
    for column, name in enumerate(stats._fields):
        found = getattr(stats, name)
        assert found.dtype == (torch.int32 if name.startswith("n_") else torch.float32)
        np.testing.assert_allclose(found.double().numpy(), expected[:, column], rtol=1e-5, atol=absolute, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 7), st.integers(2, 700), st.sampled_from([0.0, 0.1, 3.0, 30.0]))
@example(0, 3, 128, 3.0)  # the last vocabulary without blocks
@example(0, 3, 129, 3.0)  # blocks, with a last one of a single entry
@example(0, 3, 192, 3.0)  # whole blocks
def test_agrees_with_a_loop_in_float64(seed, rows, vocabulary, spread):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * spread
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    check(token_stats(logits, targets), logits, targets)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 300))
def test_ties_are_counted_and_the_second_is_the_first_when_tied(seed, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-2, 3, (5, vocabulary), generator=generator).float()
    targets = torch.randint(0, vocabulary, (5,), generator=generator)
    check(token_stats(logits, targets), logits, targets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_is_reduced_in_float32(dtype):
    logits = (torch.randn(4, 300) * 5).to(dtype)
    targets = torch.tensor([0, 1, 150, 299])
    check(token_stats(logits, targets), logits, targets)


def test_many_rows_go_through_in_chunks():
    logits, targets = torch.randn(50, 40_000) * 3, torch.arange(50) * 700  # several chunks of scratch
    check(token_stats(logits, targets), logits, targets)


def test_a_nearly_certain_prediction_keeps_its_relative_precision():
    logits = torch.zeros(1, 200)
    logits[0, 70] = 25.0
    stats = token_stats(logits, torch.tensor([70]))
    rest = 199 * math.exp(-25)
    assert stats.logprob.item() == pytest.approx(-math.log1p(rest), rel=1e-5, abs=0)
    assert stats.entropy.item() == pytest.approx(math.log1p(rest) + 25 * rest / (1 + rest), rel=1e-5, abs=0)


@pytest.mark.parametrize("vocabulary", [10, 300])
def test_masked_entries_have_probability_zero(vocabulary):
    logits = torch.randn(3, vocabulary)
    logits[:, ::3] = -torch.inf
    targets = torch.tensor([1, 2, 4])
    check(token_stats(logits, targets), logits, targets)


def bad_rows(stats: TokenStats) -> list[int]:
    return (~(stats.logprob.isfinite() & stats.entropy.isfinite())).nonzero().flatten().tolist()


@pytest.mark.parametrize("vocabulary", [10, 300])
@pytest.mark.parametrize("value, column", [(torch.nan, 5), (torch.inf, 5), (-torch.inf, 3), (torch.nan, 3)])
def test_bad_logits_show_in_their_row(vocabulary, value, column):
    logits = torch.randn(4, vocabulary)
    logits[2, column] = value
    targets = torch.full((4,), 3)
    assert bad_rows(token_stats(logits, targets)) == [2]
    assert bad_rows(token_stats_from_hidden(logits, lambda rows: rows, targets, vocabulary, chunk_bytes=1)) == [2]


def test_a_row_without_a_finite_logit_is_bad():
    assert bad_rows(token_stats(torch.full((1, 130), -torch.inf), torch.tensor([3]))) == [0]


def test_no_rows():
    assert [len(column) for column in token_stats(torch.empty(0, 300), torch.empty(0, dtype=torch.int64))] == [0] * 6


@pytest.mark.parametrize("scale, softcap", [(1.0, None), (0.25, None), (1.0, 5.0), (2.0, 5.0)])
def test_the_head_in_chunks_is_the_head(scale, softcap):
    hidden, weight, bias = torch.randn(37, 16), torch.randn(150, 16), torch.randn(150)
    targets = torch.randint(0, 150, (37,))
    logits = (hidden.double() @ weight.double().T + bias.double()) * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    stats = token_stats_from_hidden(hidden, Head(weight, bias, scale, softcap), targets, 150, chunk_bytes=10 * 150 * 4)
    expected = np.array(brute_force(logits, targets))
    for column in range(4):
        np.testing.assert_allclose(stats[column].numpy(), expected[:, column], rtol=1e-4, atol=1e-5)


def test_the_head_never_sees_more_than_a_chunk():
    seen = []

    def head(hidden):
        seen.append(len(hidden))
        return hidden

    token_stats_from_hidden(torch.randn(25, 100), head, torch.zeros(25, dtype=torch.int64), 100, chunk_bytes=4000)
    assert seen == [10, 10, 5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_head_of_16_bit_weights_is_a_float32_head_without_a_whole_copy(monkeypatch, dtype):
    weight, hidden, bias = torch.randn(150, 16).to(dtype), torch.randn(5, 16).to(dtype), torch.randn(150).to(dtype)
    monkeypatch.setattr(module, "CAST_BYTES", 7 * 16 * 4)  # parts of seven tokens
    logits = Head(weight, bias, 2.0, 30.0)(hidden)
    expected = Head(weight.float(), bias.float(), 2.0, 30.0)(hidden)
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_no_triton_is_said_once_and_torch_does_the_work(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "proxycast.extraction.token_stats_triton", raising=False)
    monkeypatch.delattr("proxycast.extraction.token_stats_triton", raising=False)
    module._import_kernels.cache_clear()
    try:
        assert module._import_kernels() is None and module._import_kernels() is None
        assert caplog.text.count("no Triton") == 1
    finally:
        module._import_kernels.cache_clear()


@pytest.mark.triton
@pytest.mark.parametrize("file, least", [("test_token_stats_triton.py", 50), ("test_kernels.py", 35)])
def test_the_kernels_of_a_gpu_in_tritons_interpreter(file, least):
    """Where no GPU is; in a process of its own, since the interpreter must be chosen before Triton is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", file],
        cwd=Path(__file__).parent,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed and int(passed[1]) >= least, done.stdout + done.stderr


def shared_among(workers: int, run):
    """`run(worker, total, gather)` for each worker in a thread of its own, whose exchanges wait for the others."""
    barrier, given = threading.Barrier(workers), [None] * workers

    def exchange(worker: int, value: torch.Tensor) -> list[torch.Tensor]:
        given[worker] = value
        barrier.wait(10)
        found = list(given)
        barrier.wait(10)
        return found

    def of(worker: int):
        return run(
            worker,
            lambda values: torch.stack(exchange(worker, values)).sum(0),
            lambda parts: torch.stack(exchange(worker, parts), dim=1),
        )

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(of, range(workers)))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.integers(0, 90), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) >= 2),
    st.integers(0, 9),
    st.sampled_from(["any", "ties", "masked", "far"]),
)
@example(0, [1, 1], 3, "any")
@example(0, [0, 2, 0], 3, "ties")
@example(0, [200, 5, 300], 7, "far")
def test_workers_that_share_the_vocabulary_find_the_statistics_of_the_whole(seed, sizes, rows, kind):
    """Worker by worker, the head's rows are its slice; with 1,600 bytes a chunk, some rows at a time."""
    generator, vocabulary = torch.Generator().manual_seed(seed), sum(sizes)
    weight, hidden = torch.randn(vocabulary, 6, generator=generator), torch.randn(rows, 6, generator=generator)
    if kind == "ties":  # whole numbers, whose products and sums are exact
        weight, hidden = weight.round(), hidden.round()
    bias = torch.randn(vocabulary, generator=generator).round()
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    if kind == "masked":  # a whole slice, and every other token
        bias[: sizes[0]] = bias[::2] = -torch.inf
        bias[targets] = 0.0
    if kind == "far":
        bias[sizes[0] :] -= 200.0
    starts = np.cumsum([0, *sizes])

    def run(worker, total, gather):
        own = slice(starts[worker], starts[worker + 1])
        part = Slice(Head(weight[own], bias[own]), int(starts[worker]), total, gather)
        return token_stats_of_slice(hidden, part, targets, vocabulary, chunk_bytes=1600)

    found = shared_among(len(sizes), run)
    logits = Head(weight, bias)(hidden)
    for stats in found:
        assert all(torch.equal(a, b) for a, b in zip(stats, found[0]))  # each worker knows the same
        if rows:
            slack = 0 if kind == "ties" else 1  # a tie by rounding, between products of other shapes
            expected = np.array(brute_force(logits, targets))
            for column, name in enumerate(stats._fields[:4]):
                np.testing.assert_allclose(
                    getattr(stats, name).numpy(), expected[:, column], rtol=1e-5, atol=2e-6, err_msg=name
                )
            assert np.abs(stats.n_greater.numpy() - expected[:, 4]).max() <= slack
            assert np.abs(stats.n_equal.numpy() - expected[:, 5]).max() <= slack
    assert all(len(column) == rows for column in found[0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [1, 8])
def test_a_bad_logit_shows_whichever_worker_has_it(value, column):
    bias = torch.zeros(10)
    bias[column] = value
    hidden, weight = torch.zeros(2, 3), torch.zeros(10, 3)

    def run(worker, total, gather):
        own = slice(5 * worker, 5 * worker + 5)
        part = Slice(Head(weight[own], bias[own]), 5 * worker, total, gather)
        return token_stats_of_slice(hidden, part, torch.tensor([2, 7]), 10)

    for stats in shared_among(2, run):
        assert bad_rows(stats) == [0, 1]


def test_workers_exchange_a_targets_logit_and_six_numbers_a_token():
    exchanged = []

    def seen(tensor: torch.Tensor, gather=False) -> torch.Tensor:
        exchanged.append(tuple(tensor.shape))
        return tensor[:, None] if gather else tensor

    part = Slice(Head(torch.randn(300, 4)), 0, seen, lambda parts: seen(parts, gather=True))
    token_stats_of_slice(torch.randn(10, 4), part, torch.arange(10), 300, chunk_bytes=4 * 300 * 6)
    assert exchanged == [(6,), (6, 6), (4,), (6, 4)]
