"""How close the fused head comes to what the GPU could do: its time, and the floor that arithmetic and memory set.

    python tests/benchmarks/fused_head.py [--tiles]

prints markdown tables. The floor is the larger of two times, both with rates measured here: the head's products at the
rate of a large bfloat16 matrix product, and one reading of weights and hidden states at the rate of a large copy. Each
row is measured with the kernels that are known to be right on a GPU, with those that are tried first, and with all
(`token_stats_triton.KERNELS`). `--tiles` times every kernel and tile: should one be faster on your GPU than the one
that `gpu_kernels/tiles.py` gives it, that table wants a change.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from extraction_rows import rates

VOCABULARIES, DEPTHS, ROWS = (49_152, 128_256, 152_064), (2048, 4096), (1024, 8192, 32_768)
KERNELS = ("known", "tried", "all")
LOGIT_ROWS = (16, 4096)
REPEATS = 15
OTHER_TILES = [  # by pointers
    *[(128, 256, 64, 8, stages) for stages in (3, 4)],
    *[(128, 128, 64, warps, stages) for warps in (4, 8) for stages in (3, 4, 5)],
    *[(64, 256, 64, 4, stages) for stages in (3, 4)],
]


def kernels() -> tuple[Callable, Callable]:
    """`fused` and `from_logits`; without a GPU, plain torch of the same arguments, to rehearse."""
    if torch.cuda.is_available():
        from proxycast.extraction.token_stats_triton import from_logits, fused

        return fused, from_logits
    from proxycast.extraction.token_stats import Head, token_stats, token_stats_from_hidden

    def fused(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor):
        return token_stats_from_hidden(hidden, Head(weight), targets, len(weight))

    return fused, token_stats


def seconds(work: Callable[[], object]) -> float:
    """Median over REPEATS, by the GPU's clock, after two runs to compile and to warm up."""
    work(), work()
    times = []
    for _ in range(REPEATS):
        if torch.cuda.is_available():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / 1e3)
        else:
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def peak_bytes(work: Callable[[], object]) -> int | None:
    """Most memory that `work` adds to what is there; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The log-probability alone, all logits in memory."""
    if hidden.is_cuda:
        logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    else:
        logits = hidden.float() @ weight.float().T
    return torch.log_softmax(logits, 1).gather(1, targets.unsqueeze(1))


def inputs(n: int, vocabulary: int, depth: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = torch.randn(n, depth, device=device).mul_(depth**-0.5).bfloat16()
    weight = torch.randn(vocabulary, depth, device=device).bfloat16()
    return hidden, weight, torch.randint(0, vocabulary, (n,), device=device)


@contextmanager
def allowed(kinds: str) -> Iterator[None]:
    """Only kernels of these kinds; without a GPU there are none."""
    if not torch.cuda.is_available():
        yield
        return
    from proxycast.extraction import token_stats_triton

    before, token_stats_triton.KERNELS = token_stats_triton.KERNELS, kinds
    try:
        yield
    finally:
        token_stats_triton.KERNELS = before


def measure_fused(n: int, vocabulary: int, depth: int, device: str, ceilings: tuple[float, float]) -> dict:
    """Time, floor (both seconds) and peak memory (bytes) of `fused`, and of `plain` beside it (None: out of memory)."""
    given, (fused, _), work = inputs(n, vocabulary, depth, device), kernels(), 2 * n * vocabulary * depth
    found = {
        "seconds": seconds(lambda: fused(*given)),
        "peak": peak_bytes(lambda: fused(*given)),
        "floor": floor(n, vocabulary, depth, *ceilings),
        "flops": work,
        "logit_bytes": 4 * n * vocabulary,
    }
    try:
        found |= {"plain_seconds": seconds(lambda: plain(*given)), "plain_peak": peak_bytes(lambda: plain(*given))}
    except torch.OutOfMemoryError:
        found |= {"plain_seconds": None, "plain_peak": None}
    torch.cuda.empty_cache()  # nothing, without a GPU
    return found


def measure_from_logits(n: int, vocabulary: int, dtype: torch.dtype, device: str, bandwidth: float) -> dict:
    """Time of `from_logits` and of one reading of the logits at the copy's rate, both in seconds."""
    logits = torch.randn(n, vocabulary, device=device).to(dtype)
    targets, (_, from_logits) = torch.randint(0, vocabulary, (n,), device=device), kernels()
    return {"seconds": seconds(lambda: from_logits(logits, targets)), "floor": logits.nbytes / bandwidth}


def every_tile(flops: float, bandwidth: float) -> None:
    """Each kernel and tile at few rows, some and many."""
    from proxycast.extraction.gpu_kernels.tiles import DESCRIPTOR_TILES, OTHER_DESCRIPTOR_TILES, Tile
    from proxycast.extraction.token_stats_triton import fused

    named = [tile for _, tile in DESCRIPTOR_TILES.get(torch.cuda.get_device_capability(), ())]
    vocabulary, depth, counts = 152_064, 4096, (64, 1024, 8192)
    heading = " | ".join(f"N {n} ms, share of floor" for n in counts)
    print(f"\n| kernel | rows | columns | depth | warps | stages | {heading} |")
    print("|---|---|---|---|---|---|" + "---|" * len(counts))
    for tile in [*named, *OTHER_DESCRIPTOR_TILES, *(Tile(*tile) for tile in OTHER_TILES)]:
        found = []
        for n in counts:
            given = inputs(n, vocabulary, depth, "cuda")
            try:
                time = seconds(lambda tile=tile, given=given: fused(*given, tile=tile))
                found.append(f"{time * 1e3:.2f}, {floor(n, vocabulary, depth, flops, bandwidth) / time:.0%}")
            except Exception as error:  # a tile that does not fit this GPU
                found.append(type(error).__name__)
        kernel = "descriptors" if tile.descriptors else "pointers"
        print(f"| {kernel} | {' | '.join(map(str, tile[:5]))} | {' | '.join(found)} |", flush=True)


def floor(n: int, vocabulary: int, depth: int, flops: float, bandwidth: float) -> float:
    """The least time, s: of the arithmetic, or of one reading of the operands."""
    return max(2 * n * vocabulary * depth / flops, 2 * (vocabulary + n) * depth / bandwidth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", action="store_true", help="time other tiles too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("fused_head.py: torch sees no GPU here, and there is nothing to measure without one")
    from proxycast.extraction.gpu_kernels import proof

    ceilings = rates("cuda", None)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: a bfloat16 product of 8192 x 8192 matrices runs")
    print(f"at {ceilings[0] / 1e12:.0f} TFLOP/s, a copy at {ceilings[1] / 1e12:.2f} TB/s (read and written).\n")
    print(
        "| V | d | N | kernels | fused ms | TFLOP/s | share of floor | peak MiB | mm + log_softmax ms | its peak MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for vocabulary, depth, n, kinds in itertools.product(VOCABULARIES, DEPTHS, ROWS, KERNELS):
        with allowed(kinds):
            found = measure_fused(n, vocabulary, depth, "cuda", ceilings)
        time_, other = found["seconds"], "out of memory | "
        if found["plain_seconds"]:
            other = f"{found['plain_seconds'] * 1e3:.2f} | {found['plain_peak'] >> 20}"
        print(
            f"| {vocabulary} | {depth} | {n} | {kinds} | {time_ * 1e3:.2f} | {found['flops'] / time_ / 1e12:.0f} "
            f"| {found['floor'] / time_:.0%} | {found['peak'] >> 20} | {other} |",
            flush=True,
        )

    print("\n| V | N | logits | kernels | from_logits ms | share of one reading at the copy's rate |")
    print("|---|---|---|---|---|---|")
    kinds_of_logits = torch.float32, torch.bfloat16
    for vocabulary, n, dtype, kinds in itertools.product(VOCABULARIES, LOGIT_ROWS, kinds_of_logits, KERNELS[:2]):
        with allowed(kinds):
            found = measure_from_logits(n, vocabulary, dtype, "cuda", ceilings[1])
        kind, share = str(dtype).removeprefix("torch."), found["floor"] / found["seconds"]
        print(f"| {vocabulary} | {n} | {kind} | {kinds} | {found['seconds'] * 1e3:.3f} | {share:.0%} |", flush=True)

    print("\n| kernel, tried at its first use | s |\n|---|---|")
    for kernel, took in proof.SECONDS.items():
        print(f"| {kernel} | {took:.2f} |")
    if arguments.tiles:
        every_tile(*ceilings)


if __name__ == "__main__":
    main()
