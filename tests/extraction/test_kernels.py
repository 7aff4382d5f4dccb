"""Slices of a vocabulary, sixes put together, kernels by descriptors, and what happens where one is wrong.

As test_token_stats_triton.py, it is run by test_token_stats.py in Triton's interpreter.
"""

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")]  # NaN in NumPy
pytest.importorskip("triton", reason="Triton is not installed: the GPU kernels stay untested here")

from proxycast.extraction import token_stats_triton as kernels  # noqa: E402
from proxycast.extraction.gpu_kernels import proof, tiles  # noqa: E402
from proxycast.extraction.schema import TokenStats  # noqa: E402
from proxycast.extraction.token_stats_triton import (  # noqa: E402
    from_logits,
    fused,
    fused_parts,
    statistics_of,
    target_logits,
)
from test_token_stats_triton import (  # noqa: E402
    DTYPES,
    SMALL,
    check,
    float64_logits,
    inputs,
    interpreted,
)

FETCHED = SMALL._replace(descriptors=True)  # by descriptors

# Slices of a vocabulary


def shared(hidden, weight, targets, edges, padding, *adjustments, bias=None, tile=SMALL) -> TokenStats:
    """`fused` by slices of the vocabulary between `edges`, each with rows of NaN behind it as padding."""
    slices = []
    for start, stop in zip([0, *edges], [*edges, len(weight)]):
        part = torch.cat([weight[start:stop], torch.full((padding, weight.shape[1]), torch.nan, dtype=weight.dtype)])
        own_bias = None if bias is None else torch.cat([bias[start:stop], torch.full((padding,), torch.nan)])
        slices.append((targets - start, part, own_bias, dict(used=stop - start, tile=tile)))
    of_targets = [
        target_logits(hidden, part, own, own_bias, *adjustments, **more) for own, part, own_bias, more in slices
    ]
    logits = torch.stack(of_targets).amax(0)
    parts = [
        fused_parts(hidden, part, own, logits, own_bias, *adjustments, **more) for own, part, own_bias, more in slices
    ]
    assert all(part.shape == (6, len(hidden)) and part.dtype == torch.float32 for part in parts)
    return statistics_of(torch.stack(parts).transpose(0, 1), logits)


@interpreted
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 34),
    vocabulary=st.integers(2, 90),
    cuts=st.lists(st.floats(0, 1), max_size=3),
    depth=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    padding=st.integers(1, 40),
    fetched=st.booleans(),
)
@example(0, 3, 64, [0.5], 16, torch.bfloat16, 1, True)
@example(0, 3, 64, [0.5, 0.5], 16, torch.bfloat16, 33, True)  # an empty slice, of padding alone
def test_slices_of_the_vocabulary_give_what_the_whole_gives(seed, n, vocabulary, cuts, depth, dtype, padding, fetched):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randint(-1, 2, (n, 8 * depth), generator=generator).to(dtype)  # whole numbers: ties across slices
    weight = torch.randint(-1, 2, (vocabulary, 8 * depth), generator=generator).to(dtype)
    targets = torch.randint(0, vocabulary, (n,), generator=generator)
    edges = sorted(int(cut * vocabulary) for cut in cuts)
    tile = FETCHED if fetched and dtype != torch.float32 else SMALL
    stats = shared(hidden, weight, targets, edges, padding, tile=tile)
    check(stats, float64_logits(hidden, weight), targets, exact_counts=True)


@interpreted
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_slices_with_a_bias_and_real_numbers(softcap):
    hidden, weight, targets = inputs(7, 21, 150, 40, torch.bfloat16, 4.0)
    bias = torch.randn(150, generator=torch.Generator().manual_seed(7))
    logits = float64_logits(hidden, weight, bias, 0.5, softcap)
    stats = shared(hidden, weight, targets, [32, 90], 5, 0.5, softcap, bias=bias)
    check(stats, logits, targets, absolute=2e-5)
    whole = fused(hidden, weight, targets, bias, 0.5, softcap, tile=SMALL)
    for found, expected in zip(stats, whole):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@interpreted
@pytest.mark.parametrize("vocabulary", [5, 31, 32, 150])
def test_one_slice_is_the_whole_to_the_last_bit(vocabulary):
    hidden, weight, targets = inputs(1, 40, vocabulary, 33, torch.bfloat16, 4.0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(shared(hidden, weight, targets, [], 1), fused(hidden, weight, targets, tile=SMALL))
    )


@interpreted
def test_a_target_of_another_slice_has_no_logit_here():
    hidden, weight, targets = inputs(2, 20, 50, 16)
    whole = target_logits(hidden, weight, targets, tile=SMALL)
    owned = (targets >= 10) & (targets < 30)
    found = target_logits(hidden, weight[10:30], targets - 10, bias=torch.zeros(20), tile=SMALL)
    assert torch.equal(found, whole.where(owned, torch.tensor(-torch.inf)))
    assert target_logits(hidden[:0], weight, targets[:0]).shape == (0,)


@interpreted
def test_slices_without_rows_or_with_more_columns_than_there_are():
    hidden, weight, targets = inputs(2, 3, 50, 16)
    nothing = fused_parts(hidden[:0], weight, targets[:0], torch.empty(0))
    assert (
        nothing.shape == (6, 0) and [len(column) for column in statistics_of(nothing[:, None], targets[:0])] == [0] * 6
    )
    assert target_logits(hidden, weight, targets, used=0).tolist() == [-torch.inf] * 3
    for call in (
        lambda: fused_parts(hidden, weight, targets, targets, used=51),
        lambda: target_logits(hidden, weight, targets, used=51),
    ):
        with pytest.raises(ValueError, match="found 51 used columns of 50"):
            call()
    with pytest.raises(TypeError, match="both need one type"):
        fused_parts(hidden, weight.half(), targets, torch.zeros(3))


# Many sixes as one


def combined(parts: torch.Tensor, of_targets: torch.Tensor) -> list[torch.Tensor]:
    """`statistics_of` in float64, by torch, from the definitions of the six."""
    largest, second, rest, weighted, n_greater, n_equal = parts.double()  # (R, n) each
    top, at = largest.max(0)
    others = largest.scatter(0, at.unsqueeze(0), -torch.inf)
    shift = (largest - top).masked_fill_(largest == -torch.inf, 0.0)
    summed = rest + (others > -torch.inf)
    total_rest = (shift.exp() * summed).sum(0)
    total_weighted = (shift.exp() * (weighted + shift * summed)).sum(0)
    log_total = total_rest.log1p()
    next_one = torch.maximum(others.amax(0), second.amax(0))
    return [
        (of_targets.double() - top) - log_total,
        -log_total,
        (next_one - top) - log_total,
        log_total - total_weighted / (1 + total_rest),
        n_greater.sum(0).int(),
        n_equal.sum(0).int(),
    ]


def sixes(seed: int, count: int, n: int, masked: float, step: float) -> torch.Tensor:
    """Results of `count` parts such as a kernel makes; largest logits are multiples of `step`: some are equal."""
    generator = torch.Generator().manual_seed(seed)
    largest = (torch.randn(count, n, generator=generator) * 5 / step).round() * step
    second = largest - torch.rand(count, n, generator=generator).mul_(3)
    rest = (second - largest).exp() * (1 + torch.rand(count, n, generator=generator))
    weighted = -rest * torch.rand(count, n, generator=generator)
    counts = torch.randint(0, 1000, (2, count, n), generator=generator).float()
    parts = torch.stack([largest, second, rest, weighted, *counts])
    none = torch.rand(count, n, generator=generator) < masked
    none[generator.initial_seed() % count] = False  # each row has a logit
    parts[:2].masked_fill_(none, -torch.inf)
    parts[2:].masked_fill_(none, 0.0)
    return parts


@interpreted
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 70),
    n=st.integers(1, 70),
    masked=st.sampled_from([0.0, 0.5, 0.99]),
    step=st.sampled_from([1e-6, 1.0, 100.0]),
)
@example(0, 600, 3, 0.5, 1.0)  # more than are loaded at a time
@example(0, 33, 33, 0.5, 1.0)
def test_sixes_are_combined_as_their_definitions_say(seed, count, n, masked, step):
    parts = sixes(seed, count, n, masked, step)
    of_targets = parts[0].amax(0) - 1.5
    expected = combined(parts, of_targets)
    for found, number in zip(statistics_of(parts, of_targets), expected):
        assert found.dtype == (torch.int32 if number.dtype == torch.int32 else torch.float32)
        np.testing.assert_allclose(found, number, rtol=3e-6, atol=3e-6)


@interpreted
@pytest.mark.parametrize("exponent", range(-30, 6, 5))
def test_a_small_rest_keeps_its_precision(exponent):
    rest = torch.tensor([1.37 * 10.0**exponent])
    parts = torch.stack([torch.zeros(1), torch.zeros(1), rest, torch.zeros(1), torch.zeros(1), torch.ones(1)])
    stats = statistics_of(parts[:, None], torch.zeros(1))
    np.testing.assert_allclose(stats.logprob, -rest.double().log1p(), rtol=5e-7)


@interpreted
@pytest.mark.parametrize("number, value", [(0, torch.nan), (0, torch.inf), (2, torch.nan)])
def test_a_six_that_is_not_finite_shows(number, value):
    parts = sixes(3, 5, 4, 0.0, 1.0)
    parts[number, 2, 1] = value
    if number == 0 and value != value:
        parts[2, 2, 1] = value  # a NaN among logits is in the sum, whatever the maximum made of it
    stats = statistics_of(parts, parts[0, 0])
    assert (~(stats.logprob.isfinite() & stats.entropy.isfinite())).nonzero().flatten().tolist() == [1]


@interpreted
def test_a_row_of_masked_logits_alone_is_not_finite():
    parts = torch.zeros(6, 3, 2)
    parts[:2] = -torch.inf
    parts[0, 1, 0] = 1.0
    stats = statistics_of(parts, torch.tensor([1.0, -torch.inf]))
    assert stats.logprob.isfinite().tolist() == [True, False]


# By descriptors


@interpreted
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 50),
    vocabulary=st.integers(2, 140),
    depth=st.integers(1, 8),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    spread=st.sampled_from([0.0, 1.0, 8.0]),
    biased=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, 2.0]),
    softcap=st.sampled_from([None, 5.0, 30.0]),
    programs=st.integers(1, 9),
)
@example(0, 16, 32, 2, torch.bfloat16, 1.0, False, 1.0, None, 1)  # one whole tile
@example(0, 49, 129, 3, torch.bfloat16, 1.0, True, 0.25, 30.0, 2)  # one more of everything, several a program
def test_descriptors_agree_with_float64(seed, n, vocabulary, depth, dtype, spread, biased, scale, softcap, programs):
    hidden, weight, targets = inputs(seed, n, vocabulary, 8 * depth, dtype, spread)
    bias = torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)).to(dtype) if biased else None
    stats = fused(hidden, weight, targets, bias, scale, softcap, tile=FETCHED._replace(programs=programs))
    check(stats, float64_logits(hidden, weight, bias, scale, softcap), targets, absolute=2e-5)


@interpreted
@pytest.mark.parametrize("winner", [0, 20, 99])
@pytest.mark.parametrize("gap", [25.0, 40.0])
def test_descriptors_keep_the_precision_of_a_nearly_certain_prediction(winner, gap):
    weight = torch.zeros(100, 8, dtype=torch.bfloat16)
    weight[winner, 0] = 1.0
    weight[:, 1] = torch.linspace(0, 1, 100)  # the others differ
    hidden = torch.zeros(2, 8, dtype=torch.bfloat16)
    hidden[:, 0], hidden[1, 1] = gap, 1.0
    targets = torch.tensor([winner, winner])
    stats = fused(hidden, weight, targets, tile=FETCHED)
    check(stats, float64_logits(hidden, weight), targets, absolute=0, relative=2e-5)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_of_equal_weights_are_equal_in_every_tile_by_descriptors(dtype):
    hidden, weight, _ = inputs(3, 20, 131, 48, spread=5.0)
    hidden, weight = ((tensor * 8).round().div(8).to(dtype) for tensor in (hidden, weight))  # exact in any order
    copies = [0, 1, 7, 8, 15, 16, 24, 31, 32, 63, 64, 127, 128, 130]  # quarters of tiles, their edges, the last column
    weight[copies] = weight[5].clone()
    targets = torch.tensor((copies + [5, 9]) * 2)[:20]
    stats = fused(hidden, weight, targets, tile=FETCHED._replace(programs=3))
    assert (stats.n_equal[targets != 9] >= len(copies) + 1).all()
    check(stats, float64_logits(hidden, weight), targets, exact_counts=True)


@interpreted
def test_descriptors_of_rows_with_a_stride():
    hidden, weight, targets = inputs(4, 10, 40, 24, torch.bfloat16)
    wide_hidden, wide_weight = (torch.full((rows, 48), torch.nan, dtype=torch.bfloat16) for rows in (10, 40))
    wide_hidden[:, 8:32], wide_weight[:, :24] = hidden, weight
    stats = fused(wide_hidden[:, 8:32], wide_weight[:, :24], targets, tile=FETCHED)
    check(stats, float64_logits(hidden, weight), targets)


@interpreted
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_bad_numbers_show_by_descriptors(value):
    hidden, weight, targets = inputs(2, 20, 71, 24, torch.bfloat16)
    hidden[4] = value
    stats = fused(hidden, weight, targets, tile=FETCHED)
    assert (~(stats.logprob.isfinite() & stats.entropy.isfinite())).nonzero().flatten().tolist() == [4]


@interpreted
def test_a_bias_of_minus_infinity_masks_tokens_by_descriptors():
    hidden, weight, _ = inputs(2, 20, 71, 24, torch.bfloat16)
    bias = torch.zeros(71)
    bias[:40:2] = -torch.inf
    targets = torch.arange(20) * 2 + 1
    check(fused(hidden, weight, targets, bias, tile=FETCHED), float64_logits(hidden, weight, bias), targets)


@interpreted
@pytest.mark.parametrize("device_tile", [tile for _, tile in tiles.DESCRIPTOR_TILES[9, 0]])
def test_the_tiles_of_hopper(device_tile):
    hidden, weight, targets = inputs(0, device_tile.rows + 3, 2 * device_tile.columns + 5, 72, torch.bfloat16, 3.0)
    targets[:3] = torch.tensor([0, device_tile.columns, len(weight) - 1])
    check(fused(hidden, weight, targets, tile=device_tile), float64_logits(hidden, weight), targets)


@interpreted
def test_targets_of_their_own_have_the_same_logits():
    hidden, weight, targets = inputs(0, 50, 90, 200, torch.float16, 4.0)
    bias = torch.randn(90)
    arguments = (hidden, weight, targets - 7, bias, 0.5, 30.0, 80)
    np.testing.assert_allclose(
        kernels._own_targets(*arguments), kernels._targets(*arguments, SMALL), rtol=1e-5, atol=1e-5
    )


# What is not proven is not used


@pytest.fixture
def unproven(monkeypatch):
    """As on a GPU on which nothing was tried yet, of a kind that small tiles are for."""
    for name in ("_right", "SECONDS"):
        monkeypatch.setattr(proof, name, {})
    monkeypatch.setattr(kernels, "KERNELS", "all")
    monkeypatch.setattr(kernels, "_proven", lambda *trial: kernels.KERNELS != "known" and proof.proven(*trial))
    head_case = proof.head_case  # sums are exact: those of NumPy, unlike a tensor core's, depend on the column's place
    monkeypatch.setattr(proof, "head_case", lambda rows, vocabulary, depth, _: head_case(rows, vocabulary, depth, True))
    monkeypatch.setattr(kernels, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels, "pointer_tile", lambda dtype, device: SMALL)
    monkeypatch.setitem(tiles.DESCRIPTOR_TILES, (9, 0), ((math.inf, FETCHED),))


@interpreted
@pytest.mark.parametrize("allowed, by", [("known", set()), ("tried", {"combine"}), ("all", {"combine", "head"})])
def test_a_kernel_that_could_hang_is_asked_for(unproven, monkeypatch, allowed, by):
    """By default the fused head by descriptors is not even tried."""
    monkeypatch.setattr(kernels, "KERNELS", allowed)
    hidden, weight, _, targets = proof.head_case(5, 100, 64, True)
    found = kernels.fused(hidden.bfloat16(), weight.bfloat16(), targets)
    assert not proof.difference(found, proof.expected(hidden @ weight.T, targets), torch.ones(5, dtype=bool))
    tried = {"combine" if kernel == "combine" else "head" for (kernel, *_) in proof.SECONDS if kernel[0] != "targets"}
    assert tried == by and kernels.ALLOWED == ("known", "tried", "all")


@interpreted
def test_kernels_are_tried_once_and_then_used(unproven, monkeypatch):
    used = []
    by_descriptors = kernels._by_descriptors
    monkeypatch.setattr(kernels, "_by_descriptors", lambda *given: used.append(given) or by_descriptors(*given))
    hidden, weight, targets = inputs(1, 5, 40, 24, torch.bfloat16, 4.0)
    for _ in range(2):
        check(fused(hidden, weight, targets), float64_logits(hidden, weight), targets)
    assert len(used) == 4 + 2  # two cases with few programs and with many; two uses
    kinds = {kernel if isinstance(kernel, str) else kernel[0] for kernel, *_ in proof.SECONDS}
    assert kinds == {"combine", "targets", FETCHED} and all(proof._right.values())


BREAKS = {
    "_by_descriptors": lambda work: lambda *given: work(*given) * 1.001,
    "_own_targets": lambda work: lambda *given: work(*given) + 1e-6,
    "_combine_at_once": lambda work: lambda parts, of_targets: work(parts + 0.01, of_targets),
}


@interpreted
@pytest.mark.parametrize("broken", [*BREAKS, "raises"])
def test_a_broken_kernel_is_refused_with_a_warning(unproven, monkeypatch, caplog, broken):
    def fails(*given):
        raise RuntimeError("PassManager::run failed")

    name = "_by_descriptors" if broken == "raises" else broken
    monkeypatch.setattr(kernels, name, fails if broken == "raises" else BREAKS[broken](getattr(kernels, name)))
    hidden, weight, targets = inputs(1, 5, 40, 24, torch.bfloat16, 4.0)
    for _ in range(2):
        check(fused(hidden, weight, targets), float64_logits(hidden, weight), targets)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "is not used" in warnings[0]
    assert ("PassManager::run failed" in warnings[0]) == (broken == "raises")


@interpreted
def test_a_broken_kernel_of_logits_is_refused(unproven, monkeypatch, caplog):
    by_lanes = kernels._by_lanes
    monkeypatch.setattr(
        kernels,
        "_by_lanes",
        lambda logits, targets, block: by_lanes(logits + 1e-3, targets, block)._replace(n_equal=targets.int()),
    )
    logits, targets = torch.randn(3, 170) * 4, torch.tensor([0, 90, 169])
    check(from_logits(logits, targets, 32), logits.double(), targets, exact_counts=True)
    assert "is not used" in caplog.text
