"""Logits that exist, reduced in one reading."""

import triton
import triton.language as tl

from proxycast.extraction.gpu_kernels.lane_reductions import join_lanes, merge_lanes, no_lanes, reduce_lanes
from proxycast.extraction.gpu_kernels.reductions import store


@triton.jit(do_not_specialize=["n", "per_program"])
def logits_kernel(
    logits,
    targets,
    parts,  # (6, splits, n)
    target_logits,
    n,
    vocabulary,
    stride,
    per_program,
    BLOCK: tl.constexpr,
    FAR: tl.constexpr,
    NEAR: tl.constexpr,
):
    """`per_program` blocks of one row of logits, reduced to its six numbers; also the row's logit at its target."""
    LANES: tl.constexpr = BLOCK // 2 ** (FAR + NEAR)
    splits = tl.cdiv(tl.cdiv(vocabulary, BLOCK), per_program)
    split = tl.program_id(0) % splits
    row = (tl.program_id(0) // splits).to(tl.int64) + tl.arange(0, 1)  # (1,): reductions take tiles
    target = tl.load(logits + row * stride + tl.load(targets + row)).to(tl.float32)
    tl.store(target_logits + row, target, mask=row < n)  # the same by all programs of the row
    largest, second, rest, weighted, n_greater, n_equal = no_lanes(1, LANES)
    start = split * per_program * BLOCK
    for first in range(start, tl.minimum(start + per_program * BLOCK, vocabulary), BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = (columns < vocabulary)[None, :]
        tile = tl.load(logits + row[:, None] * stride + columns[None, :], mask=inside, other=float("-inf"))
        new_largest, new_second, new_rest, new_weighted, greater, equal = reduce_lanes(
            tile.to(tl.float32), target[:, None], FAR, NEAR
        )
        largest, second, rest, weighted = merge_lanes(
            largest, second, rest, weighted, new_largest, new_second, new_rest, new_weighted
        )
        n_greater += greater
        n_equal += equal
    largest, second, rest, weighted, n_greater, n_equal = join_lanes(
        largest, second, rest, weighted, n_greater, n_equal
    )
    store(parts, row, row < n, split, splits, n, largest, second, rest, weighted, n_greater, n_equal)
