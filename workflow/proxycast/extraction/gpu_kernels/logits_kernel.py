"""Logits that exist, reduced in one reading."""

import triton
import triton.language as tl

from proxycast.extraction.gpu_kernels.reductions import merge, of_nothing, reduce_tile, store


@triton.jit(do_not_specialize=["n", "per_program"])
def logits_kernel(logits, targets, partials, n, vocabulary, stride, per_program, BLOCK: tl.constexpr):
    """`per_program` blocks of one row of logits, reduced to `partials` (6, splits, n)."""
    splits = tl.cdiv(tl.cdiv(vocabulary, BLOCK), per_program)
    split = tl.program_id(0) % splits
    row = (tl.program_id(0) // splits).to(tl.int64) + tl.arange(0, 1)  # (1,): the functions above take tiles
    target = tl.load(logits + row * stride + tl.load(targets + row)).to(tl.float32)
    largest, second, rest, weighted, n_greater, n_equal = of_nothing(1)
    start = split * per_program * BLOCK
    for first in range(start, tl.minimum(start + per_program * BLOCK, vocabulary), BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = (columns < vocabulary)[None, :]
        tile = tl.load(logits + row[:, None] * stride + columns[None, :], mask=inside, other=float("-inf"))
        new_largest, new_second, new_rest, new_weighted, greater, equal = reduce_tile(tile.to(tl.float32), target)
        largest, second, rest, weighted = merge(
            largest, second, rest, weighted, new_largest, new_second, new_rest, new_weighted
        )
        n_greater += greater
        n_equal += equal
    store(partials, row, row < n, split, splits, n, largest, second, rest, weighted, n_greater, n_equal)
