"""The fused head by tensor descriptors, with as many programs as run at a time: for Hopper, not measured yet.

The GPU's copy engine (TMA) fetches the operands of the next tile while one is reduced. Each program takes shares of the
work in turn; a share is a block of rows with `per_program` tiles of the vocabulary, reduced by lanes.
"""

import triton
import triton.language as tl

from proxycast.extraction.gpu_kernels.lane_reductions import halves, join_lanes, merge_lanes, no_lanes, reduce_lanes
from proxycast.extraction.gpu_kernels.reductions import adjust, store


@triton.jit
def place(number, n, splits, per_program, programs, ROWS: tl.constexpr, GROUP: tl.constexpr):
    """Block of rows and split of a program's tile, counted from 0, and whether it is the last of its share.

    Programs that run at the same time take GROUP blocks of rows and neighbouring parts of the vocabulary.
    """
    share = tl.program_id(0) + number // per_program * programs
    first_block = share // (GROUP * splits) * GROUP
    blocks = tl.minimum(tl.cdiv(n, ROWS) - first_block, GROUP)
    within = share % (GROUP * splits)
    return first_block + within % blocks, within // blocks, number % per_program == per_program - 1


@triton.jit
def merge_products(
    products,  # (rows, columns)
    first,  # column of the tile
    row_targets,
    row_target_logits,
    bias,
    scale,
    softcap,
    vocabulary,
    largest,  # and below, lanes of the tiles before: (rows, 4)
    second,
    rest,
    weighted,
    n_greater,
    n_equal,
    ADJUSTED: tl.constexpr,
    FAR: tl.constexpr,
):
    """The head's products, as logits, merged into the lanes of each row. By quarters, or registers would spill."""
    COLUMNS: tl.constexpr = products.shape[1]
    hit = (row_targets >= first) & (row_targets < first + COLUMNS)
    corrected = (tl.max(hit.to(tl.int32), 0) > 0) | (first + COLUMNS > vocabulary)
    left, right = halves(products)
    for quarter in tl.static_range(4):
        one, other = halves(left if quarter < 2 else right)
        logits = one if quarter % 2 == 0 else other
        columns = first + quarter * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4)
        if bias is not None:
            logits += tl.load(bias + tl.minimum(columns, vocabulary - 1)).to(tl.float32)[None, :]
        if ADJUSTED:
            logits = adjust(logits, scale, softcap)
        if corrected:
            # The target equals itself whatever the rounding; columns past the vocabulary have probability 0.
            logits = tl.where(columns[None, :] == row_targets[:, None], row_target_logits[:, None], logits)
            logits = tl.where(columns[None, :] < vocabulary, logits, float("-inf"))
        new_largest, new_second, new_rest, new_weighted, greater, equal = reduce_lanes(
            logits, row_target_logits[:, None], FAR, 1
        )
        largest, second, rest, weighted = merge_lanes(
            largest, second, rest, weighted, new_largest, new_second, new_rest, new_weighted
        )
        n_greater += greater
        n_equal += equal
    return largest, second, rest, weighted, n_greater, n_equal


# Of all sizes one kernel: the one that was proven is the one that is used.
@triton.jit(do_not_specialize=["depth", "n", "vocabulary", "per_program", "programs"])
def descriptor_kernel(
    hidden,  # descriptor of (n, depth) with blocks (ROWS, DEPTH)
    weight,  # descriptor of (vocabulary, depth) with blocks (COLUMNS, DEPTH)
    bias,
    targets,
    target_logits,
    parts,  # (6, splits, n)
    scale,
    softcap,
    depth,
    n,
    vocabulary,
    per_program,
    programs,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    ADJUSTED: tl.constexpr,
    FAR: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Shares of rows and tiles, each reduced to `parts`: programs that run at the same time take neighbouring ones."""
    splits = tl.cdiv(tl.cdiv(vocabulary, COLUMNS), per_program)
    own = (tl.cdiv(n, ROWS) * splits - tl.program_id(0) + programs - 1) // programs  # shares of this program
    deep = tl.cdiv(depth, DEPTH)
    largest, second, rest, weighted, n_greater, n_equal = no_lanes(ROWS, 4)
    products = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    first_row, first_column = 0, 0
    k, fetched, reduced = -1, -1, -1  # tiles whose operands are fetched run ahead of those that are reduced
    for _ in tl.range(0, own * per_program * deep, disable_licm=True):
        k = tl.where(k == deep - 1, 0, k + 1)
        if k == 0:
            fetched += 1
            block, split, last = place(fetched, n, splits, per_program, programs, ROWS, GROUP)
            first_row = block * ROWS
            first_column = (split * per_program + fetched % per_program) * COLUMNS
        a = hidden.load([first_row, k * DEPTH])
        b = weight.load([first_column, k * DEPTH])
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        products = tl.dot(a, b.T, products, input_precision="ieee")
        if k == deep - 1:
            reduced += 1
            own_block, own_split, last = place(reduced, n, splits, per_program, programs, ROWS, GROUP)
            rows = own_block * ROWS + tl.arange(0, ROWS)
            first = (own_split * per_program + reduced % per_program) * COLUMNS
            inside = rows < n
            largest, second, rest, weighted, n_greater, n_equal = merge_products(
                *(products, first, tl.load(targets + rows, mask=inside, other=-1).to(tl.int32)),
                *(tl.load(target_logits + rows, mask=inside, other=0.0), bias, scale, softcap, vocabulary),
                *(largest, second, rest, weighted, n_greater, n_equal, ADJUSTED, FAR),
            )
            products = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
            if last:
                six = join_lanes(largest, second, rest, weighted, n_greater, n_equal)
                store(parts, rows, inside, own_split, splits, n, *six)
                largest, second, rest, weighted, n_greater, n_equal = no_lanes(ROWS, 4)


@triton.jit(do_not_specialize=["n", "vocabulary"])
def own_targets_kernel(
    hidden,
    weight,
    bias,
    targets,
    target_logits,
    scale,
    softcap,
    depth,
    n,
    vocabulary,
    hidden_stride,
    weight_stride,
    OWN: tl.constexpr,
    DEPTH: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`target_logits_kernel` by many programs of OWN rows, which read nothing but those and their targets' weights.

    The product is (64, OWN), the least that Hopper's tensor cores multiply. That it gives the very numbers of a wider
    tile is not documented but proven at the first use.
    """
    near = tl.arange(0, 64)
    rows = tl.program_id(0) * OWN + near
    inside = (near < OWN) & (rows < n)
    columns = tl.program_id(0) * OWN + tl.arange(0, OWN)
    own_targets = tl.load(targets + columns, mask=columns < n, other=-1).to(tl.int64)
    owned = (own_targets >= 0) & (own_targets < vocabulary)
    inner = tl.arange(0, DEPTH)
    left = hidden + rows.to(tl.int64)[:, None] * hidden_stride + inner[None, :]
    right = weight + own_targets[None, :] * weight_stride + inner[:, None]
    products = tl.zeros((64, OWN), dtype=tl.float32)
    for start in range(0, depth, DEPTH):
        a = tl.load(left, mask=inside[:, None] & (inner < depth - start)[None, :], other=0.0)
        b = tl.load(right, mask=owned[None, :] & (inner < depth - start)[:, None], other=0.0)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        products = tl.dot(a, b, products, input_precision="ieee")
        left += DEPTH
        right += DEPTH
    logits = tl.sum(tl.where(near[:, None] == tl.arange(0, OWN)[None, :], products, 0.0), 0)  # (OWN,), the diagonal
    if bias is not None:
        logits += tl.load(bias + own_targets, mask=owned, other=0.0).to(tl.float32)
    logits = tl.where(owned, adjust(logits, scale, softcap), float("-inf"))
    tl.store(target_logits + columns, logits, mask=columns < n)
