"""How close the fused head comes to what the GPU could do: its time, and the floor that arithmetic and memory set.

    python tests/benchmarks/fused_head.py [--tiles]

prints markdown tables: the fused head as it is chosen, beside the known-good kernels and plain torch; statistics of
logits that exist; and what the trials of kernels at their first use took (warnings name those that were refused).

The floor is the larger of two times, both with rates measured here: the head's products at the rate of a large bfloat16
matrix product, and one reading of weights and hidden states at the rate of a large copy.

`--tiles` times every kernel and tile at three numbers of rows: should one be faster on your GPU, the tables in
`proxycast/extraction/gpu_kernels/tiles.py` want a change.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable

import torch

VOCABULARIES, DEPTHS, ROWS = (50_304, 152_064), (2048, 4096), (16, 256, 1024, 8192, 16_384)
REPEATS = 15
OTHER_TILES = [  # by pointers
    *[(128, 256, 64, 8, stages) for stages in (3, 4)],
    *[(128, 128, 64, warps, stages) for warps in (4, 8) for stages in (3, 4, 5)],
    *[(64, 256, 64, 4, stages) for stages in (3, 4)],
]


def seconds(work: Callable[[], object]) -> float:
    """Median over REPEATS, by the GPU's clock, after two runs to compile and to warm up."""
    work(), work()
    times = []
    for _ in range(REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return statistics.median(times)


def peak_bytes(work: Callable[[], object]) -> int:
    """Most memory that `work` adds to what is there."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The log-probability alone, all logits in memory."""
    logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return torch.log_softmax(logits, 1).gather(1, targets.unsqueeze(1))


def ceilings() -> tuple[float, float]:
    """Multiplications and additions per second, and bytes per second."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * 8192**3 / seconds(lambda: torch.mm(a, b))
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return flops, 2 * len(source) / seconds(lambda: target.copy_(source))


def inputs(n: int, vocabulary: int, depth: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = torch.randn(n, depth, device="cuda").mul_(depth**-0.5).bfloat16()
    weight = torch.randn(vocabulary, depth, device="cuda").bfloat16()
    return hidden, weight, torch.randint(0, vocabulary, (n,), device="cuda")


def known_good(work: Callable[[], object]) -> float:
    """`seconds` by the kernels that are known to be right."""
    from proxycast.extraction import token_stats_triton

    token_stats_triton.KNOWN_GOOD_ONLY = True
    try:
        return seconds(work)
    finally:
        token_stats_triton.KNOWN_GOOD_ONLY = False


def heads(flops: float, bandwidth: float) -> None:
    """The table of the fused head."""
    from proxycast.extraction.token_stats_triton import fused, target_logits

    print("| V | d | N | fused ms | TFLOP/s | share of floor | of it, targets ms | known-good ms | peak MiB |", end="")
    print(" torch mm + log_softmax ms | its peak MiB |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for vocabulary, depth, n in itertools.product(VOCABULARIES, DEPTHS, ROWS):
        given = inputs(n, vocabulary, depth)
        time, peak = seconds(lambda given=given: fused(*given)), peak_bytes(lambda given=given: fused(*given))
        of_targets, before = (
            seconds(lambda given=given: target_logits(*given)),
            known_good(lambda given=given: fused(*given)),
        )
        work = 2 * n * vocabulary * depth
        try:
            other = f"{seconds(lambda given=given: plain(*given)) * 1e3:.2f}"
            other += f" | {peak_bytes(lambda given=given: plain(*given)) >> 20}"
        except torch.OutOfMemoryError:
            other = "out of memory | "
        torch.cuda.empty_cache()
        print(
            f"| {vocabulary} | {depth} | {n} | {time * 1e3:.3f} | {work / time / 1e12:.0f} "
            f"| {floor(n, vocabulary, depth, flops, bandwidth) / time:.0%} | {of_targets * 1e3:.3f} "
            f"| {before * 1e3:.3f} | {peak >> 20} | {other} |",
            flush=True,
        )


def logits_that_exist(bandwidth: float) -> None:
    from proxycast.extraction.token_stats_triton import from_logits

    print("\n| V | N | logits | from_logits ms | share of one reading at the copy's rate | known-good ms |")
    print("|---|---|---|---|---|---|")
    for vocabulary, n, dtype in itertools.product(VOCABULARIES, (16, 256, 4096), (torch.float32, torch.bfloat16)):
        logits = torch.randn(n, vocabulary, device="cuda").to(dtype)
        targets = torch.randint(0, vocabulary, (n,), device="cuda")
        time = seconds(lambda logits=logits, targets=targets: from_logits(logits, targets))
        before = known_good(lambda logits=logits, targets=targets: from_logits(logits, targets))
        share, kind = logits.nbytes / bandwidth / time, str(dtype).removeprefix("torch.")
        print(f"| {vocabulary} | {n} | {kind} | {time * 1e3:.3f} | {share:.0%} | {before * 1e3:.3f} |", flush=True)


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
            given = inputs(n, vocabulary, depth)
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
    parser.add_argument("--tiles", action="store_true", help="time every kernel and tile, too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("fused_head.py: torch sees no GPU here, and there is nothing to measure without one")
    from proxycast.extraction.gpu_kernels import proof

    flops, bandwidth = ceilings()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: a bfloat16 product of 8192 x 8192 matrices runs")
    print(f"at {flops / 1e12:.0f} TFLOP/s, a copy at {bandwidth / 1e12:.2f} TB/s (read and written).\n")
    heads(flops, bandwidth)
    logits_that_exist(bandwidth)
    print("\n| kernel, tried at its first use | s |\n|---|---|")
    for kernel, took in proof.SECONDS.items():
        print(f"| {kernel} | {took:.2f} |")
    if arguments.tiles:
        every_tile(flops, bandwidth)


if __name__ == "__main__":
    main()
