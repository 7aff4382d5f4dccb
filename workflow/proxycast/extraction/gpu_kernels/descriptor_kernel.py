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
    first_row = 0
    first_column = 0
    k = -1
    fetched = -1  # tiles so far: those whose operands are fetched run ahead of those that are reduced
    reduced = -1
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
            row_targets = tl.load(targets + rows, mask=inside, other=-1).to(tl.int32)
            row_target_logits = tl.load(target_logits + rows, mask=inside, other=0.0)
            hit = (row_targets >= first) & (row_targets < first + COLUMNS)
            corrected = tl.max(hit.to(tl.int32), 0) > 0
            corrected = corrected | (first + COLUMNS > vocabulary)
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
            products = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
            if last:
                a1, b1, c1, d1, e1, f1 = join_lanes(largest, second, rest, weighted, n_greater, n_equal)
                store(parts, rows, inside, own_split, splits, n, a1, b1, c1, d1, e1, f1)
                largest, second, rest, weighted, n_greater, n_equal = no_lanes(ROWS, 4)
