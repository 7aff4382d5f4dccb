"""The kernels that are known to be right on an H200, for any strides: the fused head by pointers, and rows of logits.

Faster ones are held against them; where one of those is wrong, these do its work.
"""

import triton
import triton.language as tl

from proxycast.extraction.gpu_kernels.reductions import adjust, merge, of_nothing, reduce_tile, store


@triton.jit
def multiply(
    hidden,
    weight,
    rows,  # (ROWS,) and columns (COLUMNS,): int64, n * d and V * d need not fit into 32 bits
    columns,
    depth,
    hidden_stride,
    weight_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WHOLE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """hidden[rows] @ weight[columns].T, (ROWS, COLUMNS) in float32."""
    inner = tl.arange(0, DEPTH)
    left = hidden + rows[:, None] * hidden_stride + inner[None, :]
    right = weight + columns[None, :] * weight_stride + inner[:, None]
    products = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, depth, DEPTH):
        if WHOLE:
            a = tl.load(left)
            b = tl.load(right)
        else:
            a = tl.load(left, mask=inner[None, :] < depth - start, other=0.0)
            b = tl.load(right, mask=inner[:, None] < depth - start, other=0.0)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        products = tl.dot(a, b, products, input_precision="ieee")
        left += DEPTH
        right += DEPTH
    return products


@triton.jit(do_not_specialize=["n"])
def target_logits_kernel(
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
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WHOLE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Each row's logit at its target, before any other: a tile is reduced by comparison with it.

    -infinity if the target is none of the columns: another slice of the vocabulary owns it.

    It must be the very number that the tile over the target's column gives. So it is an entry of a product of the same
    shape, summed in the same order: the columns are the rows' own targets, and the diagonal is kept.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * ROWS + tl.arange(0, COLUMNS)  # those past ROWS only make up the shape
    own_targets = tl.load(targets + tl.minimum(columns, n - 1)).to(tl.int64)
    own_targets = tl.maximum(tl.minimum(own_targets, vocabulary - 1), 0)
    safe_rows = tl.minimum(rows, n - 1).to(tl.int64)
    products = multiply(
        hidden, weight, safe_rows, own_targets, depth, hidden_stride, weight_stride, ROWS, COLUMNS, DEPTH, WHOLE, UPCAST
    )
    diagonal = tl.arange(0, ROWS)[:, None] == tl.arange(0, COLUMNS)[None, :]
    logits = tl.sum(tl.where(diagonal, products, 0.0), 1)  # (ROWS,), exact: the other terms are 0
    row_targets = tl.load(targets + tl.minimum(rows, n - 1))
    owned = (row_targets >= 0) & (row_targets < vocabulary)
    if bias is not None:
        logits += tl.load(bias + row_targets, mask=owned, other=0.0).to(tl.float32)
    logits = tl.where(owned, adjust(logits, scale, softcap), float("-inf"))
    tl.store(target_logits + rows, logits, mask=rows < n)


@triton.jit
def reduce_products(logits, columns, bias, row_targets, row_target_logits, vocabulary, scale, softcap):
    """The head's products (rows, columns), as logits, to the six numbers of `reduce_tile`."""
    if bias is not None:
        logits += tl.load(bias + tl.minimum(columns, vocabulary - 1)).to(tl.float32)[None, :]
    logits = adjust(logits, scale, softcap)
    # The target equals itself whatever the rounding; columns past the vocabulary have probability 0.
    logits = tl.where(columns[None, :] == row_targets[:, None], row_target_logits[:, None], logits)
    logits = tl.where(columns[None, :] < vocabulary, logits, float("-inf"))
    return reduce_tile(logits, row_target_logits)


@triton.jit(do_not_specialize=["n", "per_program"])
def fused_kernel(
    hidden,
    weight,
    bias,
    targets,
    target_logits,
    partials,
    scale,
    softcap,
    depth,
    n,
    vocabulary,
    hidden_stride,
    weight_stride,
    per_program,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    WHOLE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """A block of rows times `per_program` tiles of the vocabulary, reduced to `partials` (6, splits, n).

    Programs that run at the same time take GROUP blocks of rows and neighbouring parts of the vocabulary.
    """
    tiles = tl.cdiv(vocabulary, COLUMNS)
    splits = tl.cdiv(tiles, per_program)
    first_block = tl.program_id(0) // (GROUP * splits) * GROUP
    blocks = tl.minimum(tl.cdiv(n, ROWS) - first_block, GROUP)
    within = tl.program_id(0) % (GROUP * splits)
    split = within // blocks
    rows = (first_block + within % blocks) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    # Past the edges the last row and column are computed again and left out later: no address needs a mask.
    safe_rows = tl.minimum(rows, n - 1).to(tl.int64)
    row_targets = tl.load(targets + safe_rows)
    row_target_logits = tl.load(target_logits + safe_rows)

    largest, second, rest, weighted, n_greater, n_equal = of_nothing(ROWS)
    for tile in range(split * per_program, tl.minimum((split + 1) * per_program, tiles)):
        at = tl.minimum(tile * COLUMNS + tl.arange(0, COLUMNS), vocabulary - 1).to(tl.int64)
        products = multiply(
            hidden, weight, safe_rows, at, depth, hidden_stride, weight_stride, ROWS, COLUMNS, DEPTH, WHOLE, UPCAST
        )
        # By halves: the exponentials of a whole tile do not fit the registers beside its logits.
        left, right = tl.split(tl.permute(tl.reshape(products, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        for half in tl.static_range(2):
            columns = tile * COLUMNS + half * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
            new_largest, new_second, new_rest, new_weighted, greater, equal = reduce_products(
                left if half == 0 else right, columns, bias, row_targets, row_target_logits, vocabulary, scale, softcap
            )
            largest, second, rest, weighted = merge(
                largest, second, rest, weighted, new_largest, new_second, new_rest, new_weighted
            )
            n_greater += greater
            n_equal += equal
    store(partials, rows, inside, split, splits, n, largest, second, rest, weighted, n_greater, n_equal)


@triton.jit(do_not_specialize=["n", "per_program"])
def row_kernel(logits, targets, partials, n, vocabulary, stride, per_program, BLOCK: tl.constexpr):
    """`per_program` blocks of one row of logits, reduced to `partials` (6, splits, n)."""
    splits = tl.cdiv(tl.cdiv(vocabulary, BLOCK), per_program)
    split = tl.program_id(0) % splits
    row = (tl.program_id(0) // splits).to(tl.int64) + tl.arange(0, 1)  # (1,): reductions take tiles
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
