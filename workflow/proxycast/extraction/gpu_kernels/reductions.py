"""Logits to six numbers a row, and several such sixes to one: what all kernels do with a tile.

The six ("parts") are: the largest logit, the second largest, sums of e^z ("rest") and of z e^z ("weighted") without one
largest entry, with z = logit - largest, and the numbers of logits above the target's and equal to it.
"""

import triton
import triton.language as tl


@triton.jit
def reduce_tile(logits, targets):
    """A tile of logits to six numbers a row: the largest two, sums of e^z without one largest and of z e^z, two counts.

    z = logit - largest; the counts are of logits above the target's and equal to it.
    """
    largest = tl.max(logits, 1)
    z = logits - tl.where(largest == float("-inf"), 0.0, largest)[:, None]
    e = tl.exp(z)
    at_top = logits == largest[:, None]
    n_top = tl.sum(at_top.to(tl.float32), 1)
    below = tl.max(tl.where(at_top, float("-inf"), logits), 1)
    # A NaN is never at the top: it stays in `rest`, whatever the maximum made of it.
    rest = tl.sum(tl.where(at_top, 0.0, e), 1) + tl.where(largest == float("-inf"), 0.0, n_top - 1.0)
    weighted = tl.sum(tl.where(at_top | (e == 0.0), 0.0, z * e), 1)  # 0 * -infinity of a masked logit is 0
    n_greater = tl.sum((logits > targets[:, None]).to(tl.float32), 1)
    n_equal = tl.sum((logits == targets[:, None]).to(tl.float32), 1)
    return largest, tl.where(n_top > 1.0, largest, below), rest, weighted, n_greater, n_equal


@triton.jit
def of_nothing(ROWS: tl.constexpr):
    """What `reduce_tile` would give for no logits: (ROWS,) each."""
    masked, none = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    return masked, masked, none, none, none, none


@triton.jit
def merge(largest, second, rest, weighted, new_largest, new_second, new_rest, new_weighted):
    """Two tiles' results as one tile's. The lesser of the two largest entries becomes one of the rest."""
    top = tl.maximum(largest, new_largest)
    loser = tl.minimum(largest, new_largest)
    base = tl.where(top == float("-inf"), 0.0, top)
    shift = tl.where(largest == float("-inf"), 0.0, largest - base)
    new_shift = tl.where(new_largest == float("-inf"), 0.0, new_largest - base)
    loser_e = tl.exp(loser - base)
    loser_weighted = tl.where(loser_e == 0.0, 0.0, (loser - base) * loser_e)
    e = tl.exp(shift)
    new_e = tl.exp(new_shift)
    second = tl.maximum(loser, tl.maximum(second, new_second))
    weighted = (weighted + shift * rest) * e + (new_weighted + new_shift * new_rest) * new_e + loser_weighted
    return top, second, rest * e + new_rest * new_e + loser_e, weighted


@triton.jit
def store(partials, rows, inside, split, splits, n, largest, second, rest, weighted, n_greater, n_equal):
    """Six numbers of each of `rows`, by one split of the vocabulary, into `partials` (6, splits, n)."""
    at = partials + tl.cast(split, tl.int64) * n + rows
    step = tl.cast(splits, tl.int64) * n
    tl.store(at, largest, mask=inside)
    tl.store(at + step, second, mask=inside)
    tl.store(at + 2 * step, rest, mask=inside)
    tl.store(at + 3 * step, weighted, mask=inside)
    tl.store(at + 4 * step, n_greater, mask=inside)
    tl.store(at + 5 * step, n_equal, mask=inside)


@triton.jit
def adjust(logits, scale, softcap):
    """`Head.adjust`. Near 0, tanh is a polynomial: 1 - 2 / (exp(2x) + 1) has no relative precision there."""
    logits = logits * scale
    if softcap is not None:
        x = logits * (1.0 / softcap)
        y = tl.abs(x)
        far = 1.0 - 2.0 / (tl.exp(2.0 * y) + 1.0)
        q = x * x
        p = -5.70498872745e-3 * q + 2.06390887954e-2
        p = p * q - 5.37397155531e-2
        p = p * q + 1.33314422036e-1
        p = p * q - 3.33332819422e-1
        near = x + x * q * p
        logits = tl.where(y < 0.625, near, tl.where(x < 0.0, -far, far)) * softcap
    return logits


@triton.jit
def merge_parts(largest, second, rest, weighted):
    """Many parts' results (parts, rows) as one's: sums are moved from each part's own largest logit to the row's.

    A part's own largest entry is one of the rest, in all parts but the one that holds the row's.
    """
    top = tl.max(largest, 0)
    base = tl.where(top == float("-inf"), 0.0, top)[None, :]
    # Parts with only masked logits have sums of 0, which -infinity - top would turn into NaN.
    shift = tl.where(largest == float("-inf"), 0.0, largest - base)
    index = tl.broadcast_to(tl.arange(0, largest.shape[0])[:, None], largest.shape)
    first = tl.min(tl.where(largest == top[None, :], index, largest.shape[0]), 0)
    others = tl.where(index == first[None, :], float("-inf"), largest)
    summed = rest + tl.where(others == float("-inf"), 0.0, 1.0)
    e = tl.exp(shift)
    second = tl.maximum(tl.max(others, 0), tl.max(second, 0))
    return top, second, tl.sum(e * summed, 0), tl.sum(e * (weighted + shift * summed), 0)


@triton.jit
def log1p(x):
    """ln(1 + x) for x >= 0, to the last bits also where 1 + x is 1: for small x, 2 artanh(x / (2 + x))."""
    s = x / (x + 2.0)
    q = s * s
    p = q * (1.0 / 9.0) + (1.0 / 7.0)
    p = p * q + (1.0 / 5.0)
    p = p * q + (1.0 / 3.0)
    return tl.where(x < 0.5, 2.0 * s + 2.0 * s * q * p, tl.log(1.0 + x))


@triton.jit(do_not_specialize=["n", "count", "number_step", "part_step"])
def combine_kernel(
    parts,  # (6, count, n)
    target_logits,
    floats,
    counts,
    n,
    count,
    number_step,  # from one of the six to the next, and from one part to the next
    part_step,
    FINAL: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """`count` parts of each row as one: six numbers into `floats` (6, n), or if FINAL the statistics of the row.

    The statistics are logprob, max_logprob, second_logprob, entropy into `floats` (4, n), n_greater, n_equal into
    `counts` (2, n). With m the row's largest logit, z = logit - m and s the sum of exp(z) without the largest entry, as
    in `token_stats._reduce`: ln p = z - ln(1 + s) and H = ln(1 + s) - sum(z exp z) / (1 + s).
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    largest, second, rest, weighted, n_greater, n_equal = of_nothing(ROWS)
    step = tl.cast(number_step, tl.int64)
    for first in range(0, count, PARTS):
        part = first + tl.arange(0, PARTS)
        mask = (part < count)[:, None] & inside[None, :]
        at = parts + part.to(tl.int64)[:, None] * part_step + rows[None, :]
        new_largest, new_second, new_rest, new_weighted = merge_parts(
            tl.load(at, mask=mask, other=float("-inf")),
            tl.load(at + step, mask=mask, other=float("-inf")),
            tl.load(at + 2 * step, mask=mask, other=0.0),
            tl.load(at + 3 * step, mask=mask, other=0.0),
        )
        largest, second, rest, weighted = merge(
            largest, second, rest, weighted, new_largest, new_second, new_rest, new_weighted
        )
        n_greater += tl.sum(tl.load(at + 4 * step, mask=mask, other=0.0), 0)
        n_equal += tl.sum(tl.load(at + 5 * step, mask=mask, other=0.0), 0)
    if FINAL:
        total = log1p(rest)
        target = tl.load(target_logits + rows, mask=inside, other=0.0)
        tl.store(floats + rows, (target - largest) - total, mask=inside)
        tl.store(floats + tl.cast(n, tl.int64) + rows, -total, mask=inside)
        tl.store(floats + 2 * tl.cast(n, tl.int64) + rows, (second - largest) - total, mask=inside)
        tl.store(floats + 3 * tl.cast(n, tl.int64) + rows, total - weighted / (1.0 + rest), mask=inside)
        tl.store(counts + rows, n_greater.to(tl.int32), mask=inside)  # counts below 2^24 are exact in float32
        tl.store(counts + tl.cast(n, tl.int64) + rows, n_equal.to(tl.int32), mask=inside)
    else:
        store(floats, rows, inside, 0, 1, n, largest, second, rest, weighted, n_greater, n_equal)
