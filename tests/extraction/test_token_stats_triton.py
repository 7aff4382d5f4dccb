"""The Triton kernels against float64, written from the definitions.

Without a GPU they run in Triton's interpreter, which must be chosen before Triton is imported: test_token_stats.py runs
this file in a process of its own. What needs a GPU is marked `gpu`.
"""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")]  # NaN in NumPy
pytest.importorskip("triton", reason="Triton is not installed: the GPU kernels stay untested here")

import triton  # noqa: E402
from proxycast.extraction import token_stats_triton as kernels  # noqa: E402
from proxycast.extraction.gpu_kernels.pointer_kernels import fused_kernel, target_logits_kernel  # noqa: E402
from proxycast.extraction.schema import TokenStats  # noqa: E402
from proxycast.extraction.token_stats import Head, token_stats, token_stats_from_hidden  # noqa: E402
from proxycast.extraction.token_stats_triton import TILE_FLOAT32, TILES, Tile, from_logits, fused  # noqa: E402


def interpreted(test):
    reason = "run with TRITON_INTERPRET=1, as test_token_stats.py does"
    return pytest.mark.interpreter(pytest.mark.skipif(not kernels.INTERPRETED, reason=reason)(test))


compiled = pytest.mark.skipif(kernels.INTERPRETED, reason="needs the compiler, not the interpreter")
SMALL = Tile(16, 32, 16, 4, 2)  # the smallest that Triton multiplies: many tiles of few numbers
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def reference(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Columns of TokenStats from float64 logits (n, V), on their device."""
    top, at = logits.max(1, keepdim=True)
    others = logits.scatter(1, at, -torch.inf)  # without the largest, or its rounding drowns the others
    z, second = others - top, others.amax(1)
    e = z.exp()
    weighted = (e * z).masked_fill_(e == 0, 0.0).sum(1)
    rest, top, target = e.sum(1), top.squeeze(1), logits.gather(1, targets[:, None])
    log_total = rest.log1p()
    return {
        "logprob": target.squeeze(1) - top - log_total,
        "max_logprob": -log_total,
        "second_logprob": second - top - log_total,
        "entropy": log_total - weighted / (1 + rest),
        "n_greater": (logits > target).sum(1),
        "n_equal": (logits == target).sum(1),
    }


def float64_logits(hidden, weight, bias=None, scale=1.0, softcap=None) -> torch.Tensor:
    logits = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    logits = logits * scale
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def check(stats, logits, targets, absolute=1e-5, relative=1e-5, exact_counts=False, margin=1e-4):
    """Counts are exact where the logits are; else a logit within `margin` of the target's may be on either side."""
    assert logits.dtype == torch.float64
    expected = {name: column.cpu().numpy() for name, column in reference(logits, targets).items()}
    for name, found in zip(TokenStats._fields[:4], stats):
        assert found.dtype == torch.float32 and found.shape == targets.shape
        np.testing.assert_allclose(found.cpu(), expected[name], rtol=relative, atol=absolute, err_msg=name)
    n_greater, n_equal = (column.cpu().numpy() for column in stats[4:])
    assert n_greater.dtype == n_equal.dtype == np.int32
    if exact_counts:
        np.testing.assert_array_equal(n_greater, expected["n_greater"])
        np.testing.assert_array_equal(n_equal, expected["n_equal"])
    else:
        target = logits.gather(1, targets[:, None])
        above, from_here = ((logits > target + sign * margin).sum(1).cpu().numpy() for sign in (1, -1))
        assert (n_equal >= 1).all()
        assert (n_greater >= above).all()
        assert (n_greater + n_equal <= from_here).all()


def inputs(seed, n, vocabulary, depth, dtype=torch.float32, spread=1.0, device="cpu"):
    generator = torch.Generator(device).manual_seed(seed)
    hidden = torch.randn(n, depth, generator=generator, device=device) * spread / math.sqrt(depth)
    weight = torch.randn(vocabulary, depth, generator=generator, device=device)
    targets = torch.randint(0, vocabulary, (n,), generator=generator, device=device)
    return hidden.to(dtype), weight.to(dtype), targets


# From hidden states


@interpreted
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 34),
    vocabulary=st.integers(2, 80),
    depth=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([0.0, 1.0, 8.0]),
    biased=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, 2.0]),
    softcap=st.sampled_from([None, 5.0, 30.0]),
)
@example(0, 16, 32, 16, torch.bfloat16, 1.0, False, 1.0, None)  # one whole tile
@example(0, 17, 33, 17, torch.bfloat16, 1.0, True, 1.0, None)  # one more of everything
@example(0, 1, 2, 1, torch.float32, 1.0, False, 1.0, None)
def test_fused_agrees_with_float64(seed, n, vocabulary, depth, dtype, spread, biased, scale, softcap):
    hidden, weight, targets = inputs(seed, n, vocabulary, depth, dtype, spread)
    bias = torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)).to(dtype) if biased else None
    stats = fused(hidden, weight, targets, bias, scale, softcap, tile=SMALL)
    check(stats, float64_logits(hidden, weight, bias, scale, softcap), targets, absolute=2e-5)


@interpreted
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 16),
    vocabulary=st.integers(2, 80),
    depth=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
)
def test_whole_numbers_give_exact_counts(seed, n, vocabulary, depth, dtype):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randint(-1, 2, (n, depth), generator=generator).to(dtype)
    weight = torch.randint(-1, 2, (vocabulary, depth), generator=generator).to(dtype)
    targets = torch.randint(0, vocabulary, (n,), generator=generator)
    check(fused(hidden, weight, targets, tile=SMALL), float64_logits(hidden, weight), targets, exact_counts=True)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_of_equal_weights_are_equal_in_every_tile(dtype):
    hidden, weight, _ = inputs(3, 20, 131, 50, spread=5.0)
    # Eighths, whose sums are exact in any order: a library's, unlike a tensor core's, depends on the column's place.
    hidden, weight = ((tensor * 8).round().div(8).to(dtype) for tensor in (hidden, weight))
    copies = [0, 1, 15, 16, 31, 32, 63, 64, 127, 128, 130]  # both halves of tiles, their edges, the last column
    weight[copies] = weight[5].clone()
    targets = torch.tensor((copies + [5, 7]) * 2)[:20]
    stats = fused(hidden, weight, targets, tile=SMALL)
    assert (stats.n_equal[targets != 7] >= len(copies) + 1).all()
    check(stats, float64_logits(hidden, weight), targets, exact_counts=True)


@interpreted
@pytest.mark.parametrize("tile", [*TILES, TILE_FLOAT32])
def test_the_tiles_of_a_gpu(tile):
    hidden, weight, targets = inputs(0, tile.rows + 3, 2 * tile.columns + 5, tile.depth + 16, torch.bfloat16, 3.0)
    half = tile.columns // 2
    edges = [0, half - 1, half, tile.columns - 1, tile.columns, tile.columns + half, len(weight) - 1]
    targets[: len(edges)] = torch.tensor(edges)
    targets[-1] = len(weight) - 1
    stats = fused(hidden, weight, targets, tile=tile)
    check(stats, float64_logits(hidden, weight), targets)
    plain = token_stats(Head(weight)(hidden), targets)
    for found, expected in zip(stats[:4], plain):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=5e-6)


@interpreted
@pytest.mark.parametrize("rounds, group", [(0.1, 3), (1, 1), (10**9, 2)])
def test_how_work_is_shared_changes_nothing(monkeypatch, rounds, group):
    """`rounds`: four tiles per program; some; one."""
    monkeypatch.setattr(kernels, "ROUNDS_PER_PROCESSOR", rounds)
    monkeypatch.setattr(kernels, "GROUP", group)
    monkeypatch.setattr(kernels, "_processors", lambda device: 5)
    hidden, weight, targets = inputs(1, 60, 150, 16, spread=4.0)
    check(fused(hidden, weight, targets, tile=SMALL), float64_logits(hidden, weight), targets)


@interpreted
@pytest.mark.parametrize("winner", [0, 20, 99])
@pytest.mark.parametrize("gap", [25.0, 40.0])
def test_fused_keeps_the_precision_of_a_nearly_certain_prediction(winner, gap):
    weight = torch.zeros(100, 2)
    weight[winner, 0] = 1.0
    weight[:, 1] = torch.linspace(0, 1, 100)  # the others differ
    hidden = torch.tensor([[gap, 0.0], [gap, 1.0]])
    targets = torch.tensor([winner, winner])
    stats = fused(hidden, weight, targets, tile=SMALL)
    check(stats, float64_logits(hidden, weight), targets, absolute=0, relative=2e-5)


@interpreted
def test_a_soft_cap_makes_no_ties_of_small_logits():
    weight = torch.arange(64.0)[:, None] * 1e-6
    stats = fused(torch.ones(3, 1), weight, torch.tensor([0, 1, 40]), softcap=30.0, tile=SMALL)
    assert stats.n_equal.tolist() == [1, 1, 1]
    assert stats.n_greater.tolist() == [63, 62, 23]


@interpreted
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [0, 40, 70])
def test_bad_weights_show_in_every_row_and_bad_hidden_states_in_their_own(value, column):
    hidden, weight, targets = inputs(2, 20, 71, 20)
    weight[column, 3] = value
    stats = fused(hidden.abs(), weight, targets, tile=SMALL)
    assert not (stats.logprob.isfinite() & stats.entropy.isfinite()).any()
    hidden, weight, targets = inputs(2, 20, 71, 20)
    hidden[4] = value
    stats = fused(hidden, weight, targets, tile=SMALL)
    assert (~(stats.logprob.isfinite() & stats.entropy.isfinite())).nonzero().flatten().tolist() == [4]


@interpreted
def test_rows_with_a_stride_and_no_rows():
    hidden, weight, targets = inputs(4, 10, 40, 24)
    wide_hidden, wide_weight = torch.full((10, 50), torch.nan), torch.full((40, 31), torch.nan)
    wide_hidden[:, 7:31], wide_weight[:, :24] = hidden, weight
    stats = fused(wide_hidden[:, 7:31], wide_weight[:, :24], targets, tile=SMALL)
    check(stats, float64_logits(hidden, weight), targets)
    transposed = fused(hidden.T.contiguous().T, weight.T.contiguous().T, targets, tile=SMALL)
    assert all(torch.equal(a, b) for a, b in zip(transposed, stats))
    for empty in (fused(hidden[:0], weight, targets[:0]), from_logits(torch.empty(0, 9), targets[:0])):
        assert [len(column) for column in empty] == [0] * 6
        assert [column.dtype for column in empty] == [torch.float32] * 4 + [torch.int32] * 2
    with pytest.raises(TypeError, match="found hidden states in torch.float32 and weights in torch.bfloat16"):
        fused(hidden, weight.bfloat16(), targets)


# From logits


@interpreted
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 3),
    vocabulary=st.integers(2, 300),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    whole=st.booleans(),
    masked=st.sampled_from([0.0, 0.3, 0.99]),
    block=st.sampled_from([64, 8192]),
)
@example(0, 3, 128, torch.float32, 3.0, False, 0.0, 64)
@example(0, 3, 129, torch.float32, 3.0, False, 0.0, 64)
@example(0, 1, 300, torch.float32, 3.0, False, 0.99, 16)  # whole blocks of masked tokens
def test_from_logits_agrees_with_float64(seed, n, vocabulary, dtype, spread, whole, masked, block):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, vocabulary, generator=generator) * spread
    logits = (logits.round() if whole else logits).to(dtype)
    targets = torch.randint(0, vocabulary, (n,), generator=generator)
    hidden_tokens = torch.rand(n, vocabulary, generator=generator) < masked
    logits.masked_fill_(hidden_tokens.scatter_(1, targets[:, None], False), -torch.inf)
    check(from_logits(logits, targets, block), logits.double(), targets, exact_counts=True)


@interpreted
@pytest.mark.parametrize("processors", [1, 2, 1000])  # one program per row, two, one per block
def test_a_row_that_programs_share(monkeypatch, processors):
    monkeypatch.setattr(kernels, "_processors", lambda device: processors)
    logits, targets = torch.randn(3, 170) * 4, torch.tensor([0, 90, 169])
    check(from_logits(logits, targets, 32), logits.double(), targets, exact_counts=True)


@interpreted
def test_logits_with_strides():
    logits, targets = torch.randn(3, 170) * 4, torch.tensor([0, 90, 169])
    wide = torch.full((3, 200), torch.nan)
    wide[:, 11:181] = logits
    for same in (wide[:, 11:181], logits.T.contiguous().T):
        assert all(torch.equal(a, b) for a, b in zip(from_logits(same, targets), from_logits(logits, targets)))


@interpreted
@pytest.mark.parametrize("gap", [25.0, 40.0, 80.0])
def test_from_logits_keeps_the_precision_of_a_nearly_certain_prediction(gap):
    logits = torch.randn(3, 200)
    logits[torch.arange(3), torch.tensor([0, 70, 199])] = gap
    check(from_logits(logits, torch.tensor([0, 70, 199]), 64), logits.double(), torch.tensor([0, 70, 199]), 0, 2e-5)


@interpreted
@pytest.mark.parametrize("block", [64, 512])
@pytest.mark.parametrize("value, column", [(torch.nan, 5), (torch.inf, 5), (-torch.inf, 3), (torch.nan, 3)])
@pytest.mark.parametrize("others", ["random", "masked"])
def test_bad_logits_are_not_finite(block, value, column, others):
    logits = torch.randn(3, 300)
    if others == "masked":
        logits[2] = -torch.inf
        logits[2, 250] = 1.0
        logits[2, 3] = 1.0
    logits[2, column] = value
    stats = from_logits(logits, torch.full((3,), 3), block)
    assert (~(stats.logprob.isfinite() & stats.entropy.isfinite())).nonzero().flatten().tolist() == [2]


# The one public place


@interpreted
@pytest.mark.parametrize("dtype, route", [(torch.bfloat16, "fused"), (torch.float32, "from_logits")])
def test_a_head_of_16_bit_weights_is_fused_and_any_other_makes_logits(monkeypatch, dtype, route):
    taken = []

    class Recording:
        def __getattr__(self, name):
            taken.append(name)
            return getattr(kernels, name)

    hidden, weight, targets = inputs(5, 20, 70, 24, dtype, 4.0)
    bias = torch.randn(70)
    head = Head(weight, bias, 0.5, 30.0)
    monkeypatch.setattr("proxycast.extraction.token_stats._kernels", lambda device: Recording())
    stats = token_stats_from_hidden(hidden, head, targets, 70, chunk_bytes=11 * 70 * 4)
    check(stats, float64_logits(hidden, weight, bias, 0.5, 30.0), targets)
    assert set(taken) == {route}
    hidden[13] = torch.nan
    bad = token_stats_from_hidden(hidden, head, targets, 70, chunk_bytes=11 * 70 * 4).logprob.isfinite().logical_not()
    assert bad.nonzero().flatten().tolist() == [13]


# The compiler, without a GPU


def ptx(kernel, tile: Tile, arguments: dict[str, str], constants: dict) -> tuple[str, int]:
    """PTX for compute capability 9.0 (H100, H200) and bytes of shared memory."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    aligned = [name for name, kind in arguments.items() if kind[0] == "*" or name.endswith(("depth", "stride"))]
    source = ASTSource(
        fn=kernel,
        signature={name: arguments.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = dict(num_warps=tile.warps, num_stages=tile.stages)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return made.asm["ptx"], made.metadata.shared


@compiled
def test_both_kernels_compile_to_the_same_tensor_core_instruction():
    tile = TILES[0]
    pointers = dict(hidden="*bf16", weight="*bf16", targets="*i64", target_logits="*fp32")
    sizes = dict(scale="fp32", depth="i32", n="i32", vocabulary="i32", hidden_stride="i32", weight_stride="i32")
    constants = dict(bias=None, softcap=None, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth)
    constants |= dict(WHOLE=True, UPCAST=False)
    of_targets = ptx(target_logits_kernel, tile, pointers | sizes, constants)
    more = dict(partials="*fp32", per_program="i32")
    of_tiles = ptx(fused_kernel, tile, pointers | sizes | more, constants | dict(GROUP=kernels.GROUP))
    for code, shared in (of_targets, of_tiles):
        assert set(re.findall(r"wgmma\.mma_async[\w.]*", code)) == {
            "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16"
        }
        assert "cp.async" in code and tile.shared_bytes(2) <= shared <= 227 << 10


# A GPU

# Tensor cores cut off the bits that do not fit where they sum, as an estimate 1e-5 of a logit after 256 sums of 16
# products; any library's product of bfloat16 matrices has the same error.
ON_TENSOR_CORES = dict(absolute=5e-4, margin=1e-3)


def gpu(test):
    return pytest.mark.gpu(compiled(test))


ADJUSTED = {"plain": (False, 1.0, None), "biased": (True, 0.5, None), "capped": (True, 1.0, 30.0)}
SHAPES = {"whole": (1, 1000, 64), "uneven": (300, 5003, 200), "odd": (129, 50304, 1023)}  # n, vocabulary, depth
# Each needs kernels of its own, which take seconds to compile. Models have bfloat16: all for it, and for the others
# each shape and each adjustment once.
COMPILED = [
    *((torch.bfloat16, shape, adjusted) for shape in SHAPES for adjusted in ADJUSTED),
    *((dtype, *pair) for dtype in (torch.float32, torch.float16) for pair in zip(SHAPES, ADJUSTED)),
]


@gpu
@pytest.mark.parametrize("dtype, shape, adjusted", COMPILED)
def test_compiled_fused_agrees_with_float64(dtype, shape, adjusted):
    n, vocabulary, depth = SHAPES[shape]
    biased, scale, softcap = ADJUSTED[adjusted]
    hidden, weight, targets = inputs(0, n, vocabulary, depth, dtype, 5.0, "cuda")
    bias = torch.randn(vocabulary, device="cuda").to(dtype) if biased else None
    logits = float64_logits(hidden, weight, bias, scale, softcap)
    check(fused(hidden, weight, targets, bias, scale, softcap), logits, targets, **ON_TENSOR_CORES)


@gpu
def test_a_large_vocabulary_is_exact_and_its_logits_never_exist():
    n, vocabulary, depth = 512, 152_064, 4096
    hidden, weight, targets = inputs(0, n, vocabulary, depth, torch.bfloat16, 5.0, "cuda")
    fused(hidden, weight, targets)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    stats = fused(hidden, weight, targets)
    assert torch.cuda.max_memory_allocated() - before < n * vocabulary * 4 / 4
    check(stats, float64_logits(hidden, weight), targets, **ON_TENSOR_CORES)


@gpu
def test_compiled_tokens_of_equal_weights_are_equal():
    """The target's logit is the tile's own, to the last bit."""
    hidden, weight, targets = inputs(0, 1000, 50_304, 2048, torch.bfloat16, 5.0, "cuda")
    copies = torch.randint(0, len(weight), (200,), generator=torch.Generator().manual_seed(0)).unique().cuda()
    weight[copies] = weight[copies[0]].clone()
    targets = copies[torch.arange(1000, device="cuda") % len(copies)]
    assert (fused(hidden, weight, targets).n_equal == len(copies)).all()


@gpu
def test_more_than_two_billion_numbers():
    free = torch.cuda.mem_get_info()[0]
    if free < 16 << 30:
        pytest.skip(f"needs 16 GiB of GPU memory, found {free >> 30}")
    vocabulary, depth = 600_000, 4096  # V d > 2^31
    weight = torch.zeros(vocabulary, depth, dtype=torch.bfloat16, device="cuda")
    weight[-1], hidden = 1.0, torch.full((2, depth), 2.0**-8, dtype=torch.bfloat16, device="cuda")
    stats = fused(hidden, weight, torch.tensor([vocabulary - 1, 0], device="cuda"))
    assert stats.n_greater.tolist() == [0, 1] and stats.n_equal.tolist() == [1, vocabulary - 1]
    certain = -math.log1p((vocabulary - 1) * math.exp(-16))
    np.testing.assert_allclose(stats.logprob.cpu(), [certain, certain - 16], rtol=1e-4)
    del weight
    rows, vocabulary = 15_000, 152_064  # n V > 2^31
    logits = torch.zeros(rows, vocabulary, dtype=torch.bfloat16, device="cuda")
    logits[-1, -1] = 20.0
    stats = from_logits(logits, torch.full((rows,), vocabulary - 1, device="cuda"))
    assert stats.n_equal[-1].item() == 1 and (stats.n_equal[:-1] == vocabulary).all()


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_from_logits_agrees_with_float64(dtype):
    for n, vocabulary in ((1, 152_064), (700, 5003), (33, 2)):
        logits = (torch.randn(n, vocabulary, device="cuda") * 5).to(dtype)
        targets = torch.randint(0, vocabulary, (n,), device="cuda")
        masked = (torch.rand(n, vocabulary, device="cuda") < 0.3).scatter_(1, targets[:, None], False)
        logits.masked_fill_(masked, -torch.inf)
        check(from_logits(logits, targets), logits.double(), targets, 1e-5, 1e-5, exact_counts=True)
        logits[0, 1] = torch.nan
        assert not from_logits(logits, targets).logprob[0].isfinite()


@gpu
@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_waits_for_the_gpu_and_plain_torch_gives_the_same(monkeypatch, with_kernels, dtype):
    hidden, weight, targets = inputs(0, 200, 5003, 256, dtype, 5.0, "cuda")
    head = Head(weight, torch.randn(5003, device="cuda"), 0.5, 30.0)
    if not with_kernels:
        monkeypatch.setattr("proxycast.extraction.token_stats._kernels", lambda device: None)
    token_stats_from_hidden(hidden, head, targets, 5003)
    torch.cuda.set_sync_debug_mode("error")
    try:
        stats = token_stats_from_hidden(hidden, head, targets, 5003)
        token_stats(head(hidden), targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    check(stats, float64_logits(hidden, weight, head.bias, 0.5, 30.0), targets, **ON_TENSOR_CORES)
