"""Which kernel and tile a GPU takes, how work is shared, and what the compiler makes of it for Hopper."""

import math
import os
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.extraction.gpu_kernels import tiles
from proxycast.extraction.gpu_kernels.shares import SHARE_OVERHEAD, full_share, per_program


def needs_compiler(test):
    interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="needs Triton's compiler")
    return pytest.mark.triton(interpreted(test))


def test_numbers_that_the_copy_engine_cannot_fetch_take_pointers():
    whole = torch.zeros(4, 24, dtype=torch.bfloat16)
    assert tiles.describable(whole, whole[:, :17], whole[:, 8:])
    for other in (whole[:, 1:], torch.zeros(4, 23, dtype=torch.bfloat16), whole.float(), whole.T):
        assert not tiles.describable(whole, other)


# How work is shared


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 700), st.integers(1, 300), st.sampled_from([0.0, 0.1, 1.0]))
def test_no_other_share_takes_less_time(rows, tiles, places, overhead):
    def time(length):
        return math.ceil(rows * math.ceil(tiles / length) / places) * (length + overhead)

    found = per_program(rows, tiles, places, overhead)
    assert time(found) <= min(time(length) for length in range(1, tiles + 1)) + 1e-9
    assert 0 < full_share(rows, tiles, places, found) <= 1


@pytest.mark.parametrize("rows", [1024, 8192, 16_384])
@pytest.mark.parametrize("vocabulary", [50_304, 128_256, 152_064])
def test_the_last_round_on_132_processors_is_nearly_full(rows, vocabulary):
    blocks, tiles = rows // 128, math.ceil(vocabulary / 256)
    assert full_share(blocks, tiles, 132, per_program(blocks, tiles, 132, SHARE_OVERHEAD)) > 0.94


# The compiler for Hopper, without a GPU


def hopper(kernel, arguments: dict[str, str], constants: dict, warps: int, stages: int, aligned=()):
    """PTX, bytes of shared memory, and bytes of registers that spill, for compute capability 9.0."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: arguments.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=warps, num_stages=stages))
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    return made.asm["ptx"], made.metadata.shared, spilled(tools / "cuobjdump", made.asm["cubin"])


def spilled(cuobjdump: Path, cubin: bytes) -> int:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1]) + int(re.search(r"LOCAL:(\d+)", usage)[1])


SIZES = dict(scale="fp32", depth="i32", n="i32", vocabulary="i32", targets="*i64", target_logits="*fp32")
FOR_HOPPER = [tile for _, tile in tiles.DESCRIPTOR_TILES[9, 0]]
VARIANTS = [(tile, False) for tile in (*FOR_HOPPER, *tiles.OTHER_DESCRIPTOR_TILES)] + [
    (tile, True) for tile in FOR_HOPPER
]


@needs_compiler
@pytest.mark.parametrize("tile, everything", VARIANTS)
def test_descriptors_compile_without_spills(tile, everything):
    """`everything`: with a bias, a scale and a soft cap."""
    operands = dict(hidden=f"tensordesc<bf16[{tile.rows}, {tile.depth}]>")
    operands |= dict(weight=f"tensordesc<bf16[{tile.columns}, {tile.depth}]>", parts="*fp32")
    operands |= dict(per_program="i32", programs="i32") | (dict(bias="*bf16", softcap="fp32") if everything else {})
    constants = tiles.descriptor_constants(tile, everything) | dict(UPCAST=False)
    constants |= {} if everything else dict(bias=None, softcap=None)
    from proxycast.extraction.gpu_kernels.descriptor_kernel import descriptor_kernel

    code, shared, spills = hopper(descriptor_kernel, SIZES | operands, constants, tile.warps, tile.stages)
    wanted = f"wgmma.mma_async.sync.aligned.m64n{tile.columns}k16.f32.bf16.bf16"
    assert set(re.findall(r"wgmma\.mma_async[\w.]*", code)) == {wanted}
    assert "cp.async.bulk.tensor.2d" in code and spills == 0
    assert tile.shared_bytes(2) <= shared <= (227 << 10) // tile.programs - 1024


@needs_compiler
def test_targets_of_their_own_compile_to_tensor_cores_of_hopper():
    pointers = dict(hidden="*bf16", weight="*bf16", hidden_stride="i32", weight_stride="i32")
    own = tiles.OWN_TARGETS
    constants = dict(bias=None, softcap=None, OWN=own.columns, DEPTH=own.depth, UPCAST=False)
    aligned = (*pointers, "depth", "targets", "target_logits")
    from proxycast.extraction.gpu_kernels.descriptor_kernel import own_targets_kernel

    code, _, spills = hopper(own_targets_kernel, SIZES | pointers, constants, own.warps, own.stages, aligned)
    assert f"wgmma.mma_async.sync.aligned.m64n{own.columns}k16.f32.bf16.bf16" in code and "cp.async" in code
    assert spills == 0


@needs_compiler
@pytest.mark.parametrize("dtype, near", [("*fp32", 2), ("*bf16", 3)])
def test_lanes_of_logits_stay_within_threads(dtype, near):
    arguments = dict(logits=dtype, targets="*i64", parts="*fp32", target_logits="*fp32")
    arguments |= dict(n="i32", vocabulary="i32", stride="i32", per_program="i32")
    constants = dict(BLOCK=8192, FAR=5 - near, NEAR=near)
    aligned = ("logits", "targets", "parts", "target_logits", "vocabulary", "stride")
    from proxycast.extraction.gpu_kernels.logits_kernel import logits_kernel

    code, shared, spills = hopper(logits_kernel, arguments, constants, 8, 3, aligned)
    assert spills == 0 and shared < 1024  # only the end of a program passes through shared memory
    assert "ld.global.v4.b32" in code  # 16 bytes at a time


class Launches:
    """A kernel that is compiled with the arguments of each launch, and not run."""

    def __init__(self, kernel, names: list[str]):
        self.kernel, self.names = kernel, names

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.kernel.warmup(*arguments, grid=grid, **options)
            self.names.append(self.kernel.fn.__name__)

        return launch


@needs_compiler
def test_each_launch_compiles_with_the_arguments_that_it_has(monkeypatch):
    """Of tensors on a CPU: what a launch on a GPU would be given."""
    from proxycast.extraction import token_stats_triton as kernels
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    hopper_driver = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device=0: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setattr(driver, "_active", hopper_driver)
    monkeypatch.setattr(kernels, "KERNELS", "all")
    monkeypatch.setattr(kernels, "_processors", lambda device: 132)
    monkeypatch.setattr(kernels, "_capability", lambda device: (9, 0))
    names: list[str] = []
    for name in ("descriptor_kernel", "own_targets_kernel", "fused_kernel", "target_logits_kernel"):
        monkeypatch.setattr(kernels, name, Launches(getattr(kernels, name), names))
    for name in ("logits_kernel", "row_kernel", "combine_kernel"):
        monkeypatch.setattr(kernels, name, Launches(getattr(kernels, name), names))
    hidden, weight, targets = torch.randn(20, 200).bfloat16(), torch.randn(5003, 200).bfloat16(), torch.zeros(20).long()
    for bias, scale, softcap in ((None, 1.0, None), (torch.zeros(5003), 0.5, 30.0)):
        kernels.fused(hidden, weight, targets, bias, scale, softcap)
    assert names == ["own_targets_kernel", "descriptor_kernel", "combine_kernel"] * 2
    names.clear()
    kernels.fused(hidden[:, 1:], weight[:, 1:], targets)  # not at multiples of 16 bytes
    kernels.from_logits(torch.randn(4, 5000), targets[:4])
    kernels._by_rows(torch.randn(4, 5003).bfloat16(), targets[:4], 2048)
    kernels.fused_parts(hidden, weight, targets, torch.zeros(20), used=5000)
    assert names == ["target_logits_kernel", "fused_kernel", "combine_kernel", "logits_kernel", "combine_kernel"] + [
        *("row_kernel", "combine_kernel"),
        *("descriptor_kernel", "combine_kernel"),
    ]


# A GPU


@pytest.mark.gpu
@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 60, 300, 1500])
def test_compiled_descriptors_are_proven_and_agree_with_float64(dtype, n, caplog):
    from proxycast.extraction import token_stats_triton as kernels
    from proxycast.extraction.gpu_kernels import proof
    from test_token_stats_triton import ON_TENSOR_CORES, check, float64_logits, inputs

    if torch.cuda.get_device_capability() not in tiles.DESCRIPTOR_TILES:
        pytest.skip("no tile by descriptors is named for this GPU")
    hidden, weight, targets = inputs(0, n, 50_304, 1024, dtype, 5.0, "cuda")
    bias = torch.randn(50_304, device="cuda").to(dtype)
    for arguments in ((None, 1.0, None), (bias, 0.5, None), (bias, 1.0, 30.0)):
        stats = kernels.fused(hidden, weight, targets, *arguments)
        check(stats, float64_logits(hidden, weight, *arguments), targets, **ON_TENSOR_CORES)
    assert "is not used" not in caplog.text and all(proof._right.values())
    print({kernel: round(took, 2) for kernel, took in proof.SECONDS.items()})
