"""The six numbers of `reductions` kept apart by lanes: columns that one thread holds in registers are one lane.

A tile (rows, columns) is reduced to (rows, lanes) without a word between threads. Lanes meet once, at the end. Inside,
powers are of 2: "weighted" is the sum of y 2^y with y = z / ln 2.

In a knock-out tournament of a lane's columns each but one largest loses once. So sums over the losers are sums without
one largest entry, whatever is equal to it, and nothing needs to be counted or masked.
"""

import triton
import triton.language as tl

from proxycast.extraction.gpu_kernels.reductions import merge_parts

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NEGLIGIBLE = tl.constexpr(-1e4)  # for masked logits too: 2^y is 0, and so is y 2^y; with -infinity it would be NaN
ALL = tl.constexpr(tl.PropagateNan.ALL)  # or a maximum would lose a NaN


@triton.jit
def halves(x):
    """(rows, columns) -> its left and its right half."""
    ROWS: tl.constexpr = x.shape[0]
    HALF: tl.constexpr = x.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(x, (ROWS, 2, HALF)), (0, 2, 1)))


@triton.jit
def neighbours(x):
    """(rows, columns) -> its columns with even and with odd numbers."""
    ROWS: tl.constexpr = x.shape[0]
    HALF: tl.constexpr = x.shape[1] // 2
    return tl.split(tl.reshape(x, (ROWS, HALF, 2)))


@triton.jit
def spread(lanes, FAR: tl.constexpr, NEAR: tl.constexpr):
    """(rows, lanes) -> each lane's number in all its columns: `halves` and `neighbours` backwards."""
    ROWS: tl.constexpr = lanes.shape[0]
    LANES: tl.constexpr = lanes.shape[1]
    x = lanes
    for level in tl.static_range(FAR):
        x = tl.reshape(tl.permute(tl.join(x, x), (0, 2, 1)), (ROWS, LANES * 2 ** (level + 1)))
    for level in tl.static_range(NEAR):
        x = tl.reshape(tl.join(x, x), (ROWS, LANES * 2 ** (FAR + level + 1)))
    return x


@triton.jit
def sum_lanes(x, FAR: tl.constexpr, NEAR: tl.constexpr):
    """Sums over the columns of each lane, pair by pair: (rows, lanes)."""
    for level in tl.static_range(NEAR + FAR):
        left, right = neighbours(x) if level < NEAR else halves(x)
        x = left + right
    return x


@triton.jit
def largest_of_lanes(x, FAR: tl.constexpr, NEAR: tl.constexpr):
    """The largest over the columns of each lane: (rows, lanes)."""
    for level in tl.static_range(NEAR + FAR):
        left, right = neighbours(x) if level < NEAR else halves(x)
        x = tl.maximum(left, right, propagate_nan=ALL)
    return x


@triton.jit
def power(difference):
    """y and 2^y of differences to a larger logit."""
    y = tl.maximum(difference * LOG2E, NEGLIGIBLE, propagate_nan=ALL)
    return y, tl.exp2(y)


@triton.jit
def reduce_losers(losers, base, FAR: tl.constexpr, NEAR: tl.constexpr):
    """The largest of each lane's losers (rows, columns), and their sums; base: the lanes' largest (rows, lanes)."""
    y, e = power(losers - spread(base, FAR, NEAR))
    return largest_of_lanes(losers, FAR, NEAR), sum_lanes(e, FAR, NEAR), sum_lanes(y * e, FAR, NEAR)


@triton.jit
def reduce_lanes(logits, targets, FAR: tl.constexpr, NEAR: tl.constexpr):
    """A tile (rows, columns) to six numbers (rows, lanes); targets: each row's logit, (rows, 1).

    A lane has 2^NEAR neighbouring columns of each of 2^FAR parts of the tile.
    """
    ROWS: tl.constexpr = logits.shape[0]
    LANES: tl.constexpr = logits.shape[1] // 2 ** (FAR + NEAR)
    n_greater = sum_lanes((logits > targets).to(tl.float32), FAR, NEAR)
    n_equal = sum_lanes((logits == targets).to(tl.float32), FAR, NEAR)
    largest = largest_of_lanes(logits, FAR, NEAR)
    base = tl.where(largest == float("-inf"), 0.0, largest)
    second = tl.full((ROWS, LANES), float("-inf"), tl.float32)
    rest = tl.zeros((ROWS, LANES), tl.float32)
    weighted = tl.zeros((ROWS, LANES), tl.float32)
    players = logits
    for level in tl.static_range(NEAR + FAR):
        left, right = neighbours(players) if level < NEAR else halves(players)
        players = tl.maximum(left, right, propagate_nan=ALL)  # the compiler has these already
        losers = tl.minimum(left, right, propagate_nan=ALL)
        next_one, lost_rest, lost_weighted = reduce_losers(
            losers, base, FAR if level < NEAR else NEAR + FAR - 1 - level, NEAR - 1 - level if level < NEAR else 0
        )
        second = tl.maximum(second, next_one)
        rest += lost_rest
        weighted += lost_weighted
    return largest, second, rest, weighted, n_greater, n_equal


@triton.jit
def no_lanes(ROWS: tl.constexpr, LANES: tl.constexpr):
    """What `reduce_lanes` would give for no logits."""
    masked, none = tl.full((ROWS, LANES), float("-inf"), tl.float32), tl.zeros((ROWS, LANES), tl.float32)
    return masked, masked, none, none, none, none


@triton.jit
def merge_lanes(largest, second, rest, weighted, new_largest, new_second, new_rest, new_weighted):
    """Two tiles' lanes as one tile's: the sums of the tile that lost are moved to the other's largest logit."""
    kept = largest >= new_largest
    top = tl.where(kept, largest, new_largest)
    loser = tl.where(kept, new_largest, largest)
    y, e = power(loser - tl.where(top == float("-inf"), 0.0, top))
    lost_rest = tl.where(kept, new_rest, rest) + tl.where(loser == float("-inf"), 0.0, 1.0)
    lost_weighted = tl.where(kept, new_weighted, weighted)
    second = tl.maximum(loser, tl.maximum(second, new_second))
    weighted = tl.where(kept, weighted, new_weighted) + (lost_weighted + y * lost_rest) * e
    return top, second, tl.where(kept, rest, new_rest) + lost_rest * e, weighted


@triton.jit
def join_lanes(largest, second, rest, weighted, n_greater, n_equal):
    """Lanes (rows, LANES) of each row as one: (rows,) each, "weighted" in natural units."""
    largest, second, rest, weighted = merge_parts(
        tl.trans(largest), tl.trans(second), tl.trans(rest), tl.trans(weighted * LN2)
    )
    return largest, second, rest, weighted, tl.sum(n_greater, 1), tl.sum(n_equal, 1)
