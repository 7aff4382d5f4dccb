"""The six statistics on a GPU in one pass over the vocabulary, from logits or from hidden states and the weights.

`fused` makes a tile of logits in registers, reduces it there and forgets it: the (n, V) logits never reach memory.
Products of two bfloat16 or float16 numbers are exact in float32 and are summed in float32. So tensor cores compute what
a float32 head would, up to the order and last bit of sums, without a float32 copy of the weights.

Several programs share the vocabulary of a row, so that few rows keep a whole GPU busy; `_combine` puts their results
together. Nothing waits for the GPU. A row with NaN or +infinity gets a logprob or an entropy that is not finite.

With TRITON_INTERPRET=1 the kernels run on a CPU, slowly, for tests.
"""

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from proxycast.extraction.schema import TokenStats

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Tile(NamedTuple):
    """What one program multiplies at a time: (rows, depth) of hidden states with (columns, depth) of weights."""

    rows: int
    columns: int  # at least `rows`: see `_target_logits_kernel`
    depth: int
    warps: int
    stages: int  # tiles of operands on their way from memory while one is multiplied

    def shared_bytes(self, itemsize: int) -> int:
        return self.stages * (self.rows + self.columns) * self.depth * itemsize


# Fixed, not timed on the first call: the same GPU gives the same last bits every time. The first that fits the shared
# memory of the GPU is taken: H100, H200, B200 (227 KB); A100 (163 KB); the rest (99 KB).
TILES = (Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 8, 4), Tile(128, 128, 32, 8, 4))
TILE_FLOAT32 = Tile(64, 64, 32, 4, 2)  # no tensor cores: a larger tile would not fit the registers
GROUP = 16  # blocks of rows that pass over the vocabulary side by side, so that weights are read from L2, not memory
ROUNDS_PER_PROCESSOR = 32  # at least, of programs that share the vocabulary: the last round is then a small part
TILES_PER_PROGRAM = 4  # at most: 24 bytes of partial results per row and 1024 columns
LOGITS_BLOCK = 8192  # logits of one row that are reduced at a time
ROWS_PER_PROCESSOR = 8  # with fewer rows than this, several programs share a row of logits
PARTIALS = 6  # largest, second, rest, weighted, n_greater, n_equal: see `_reduce_tile`


def fused(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    tile: Tile | None = None,
) -> TokenStats:
    """Statistics of the logits softcap(scale * (hidden @ weight.T + bias)) at `targets` (n,), without the logits.

    hidden: (n, d); weight: (V, d) of the same dtype; bias: (V,). Extra memory: at most 24 bytes times n V / 256.
    """
    (n, depth), vocabulary, device = hidden.shape, len(weight), hidden.device
    if hidden.dtype != weight.dtype:
        raise TypeError(f"found hidden states in {hidden.dtype} and weights in {weight.dtype}; both need one type")
    if n == 0:
        return _empty(device)
    hidden, weight = (tensor if tensor.stride(1) == 1 else tensor.contiguous() for tensor in (hidden, weight))
    tile = tile or _tile(weight.dtype, device)
    row_blocks, tiles = triton.cdiv(n, tile.rows), triton.cdiv(vocabulary, tile.columns)
    per_program = min(max(row_blocks * tiles // (ROUNDS_PER_PROCESSOR * _processors(device)), 1), TILES_PER_PROGRAM)
    splits = triton.cdiv(tiles, per_program)
    partials = torch.empty(PARTIALS, splits, n, dtype=torch.float32, device=device)
    target_logits = torch.empty(n, dtype=torch.float32, device=device)
    head = dict(scale=float(scale), softcap=None if softcap is None else float(softcap), depth=depth)
    sizes = dict(
        n=n,
        hidden_stride=hidden.stride(0),
        weight_stride=weight.stride(0),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        WHOLE=depth % tile.depth == 0,
        # The interpreter multiplies the bit patterns of bfloat16 as integers; in float32 the products are the same.
        UPCAST=INTERPRETED and weight.dtype == torch.bfloat16,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    with _on(device):
        _target_logits_kernel[(row_blocks,)](hidden, weight, bias, targets, target_logits, **head, **sizes)
        _fused_kernel[(row_blocks * splits,)](
            *(hidden, weight, bias, targets, target_logits, partials),
            **(dict(vocabulary=vocabulary, per_program=per_program, GROUP=GROUP) | head | sizes),
        )
    return _combine(partials, target_logits)


def from_logits(logits: torch.Tensor, targets: torch.Tensor, block: int = LOGITS_BLOCK) -> TokenStats:
    """Statistics of logits (n, V) at `targets` (n,), each logit read once. Extra memory: 24 bytes a row or a few MB.

    -infinity (a masked token, probability 0) is fine except at the target.
    """
    (n, vocabulary), device = logits.shape, logits.device
    if n == 0:
        return _empty(device)
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    block = min(block, triton.next_power_of_2(vocabulary))
    tiles = triton.cdiv(vocabulary, block)
    per_program = triton.cdiv(tiles, min(triton.cdiv(ROWS_PER_PROCESSOR * _processors(device), n), tiles))
    splits = triton.cdiv(tiles, per_program)
    partials = torch.empty(PARTIALS, splits, n, dtype=torch.float32, device=device)
    with _on(device):
        _logits_kernel[(n * splits,)](
            *(logits, targets, partials),
            **dict(n=n, vocabulary=vocabulary, stride=logits.stride(0), per_program=per_program),
            BLOCK=block,
            num_warps=8 if block >= 4096 else 4,
        )
    return _combine(partials, logits.gather(1, targets.unsqueeze(1)).squeeze(1).float())


def _tile(dtype: torch.dtype, device: torch.device) -> Tile:
    if dtype == torch.float32:
        return TILE_FLOAT32
    if device.type != "cuda":
        return TILES[0]
    limit = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    # Sums over a row pass through shared memory too: leave room.
    return next((tile for tile in TILES if tile.shared_bytes(dtype.itemsize) + 8192 <= limit), TILES[-1])


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _on(device: torch.device) -> torch.cuda.device:
    """Triton launches on the current GPU, which need not be the tensors' one."""
    return torch.cuda.device(device if device.type == "cuda" else -1)  # -1 changes nothing


def _empty(device: torch.device) -> TokenStats:
    return TokenStats(
        *(torch.empty(0, dtype=torch.float32, device=device) for _ in range(4)),
        *(torch.empty(0, dtype=torch.int32, device=device) for _ in range(2)),
    )


def _combine(partials: torch.Tensor, target_logits: torch.Tensor) -> TokenStats:
    """Partial results (6, splits, n) to statistics: each part's sums are moved from its own largest logit to the row's.

    With m the row's largest logit, z = logit - m and s the sum of exp(z) without the largest entry, as in
    `token_stats._reduce`: ln p = z - ln(1 + s) and H = ln(1 + s) - sum(z exp z) / (1 + s).
    """
    largest, second, rest, weighted, n_greater, n_equal = partials  # (splits, n) each
    top, at = largest.max(0)  # (n,)
    others = largest.scatter(0, at.unsqueeze(0), -torch.inf)  # the largest of the parts that do not hold the row's
    # Parts with only masked logits have sums of 0, which -infinity - top would turn into NaN.
    shift = (largest - top).masked_fill_(largest == -torch.inf, 0.0)
    summed = rest + (others > -torch.inf)  # a part's own largest entry is one of the rest, in all parts but one
    weights = shift.exp()
    total_rest = (weights * summed).sum(0)
    total_weighted = (weights * (weighted + shift * summed)).sum(0)
    log_total = torch.log1p(total_rest)
    return TokenStats(
        logprob=(target_logits - top) - log_total,
        max_logprob=-log_total,
        second_logprob=(torch.maximum(others.amax(0), second.amax(0)) - top) - log_total,
        entropy=log_total - total_weighted / (1 + total_rest),
        n_greater=n_greater.sum(0).int(),  # counts below 2^24 are exact in float32
        n_equal=n_equal.sum(0).int(),
    )


@triton.jit
def _reduce_tile(logits, targets):
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
def _of_nothing(ROWS: tl.constexpr):
    """What `_reduce_tile` would give for no logits: (ROWS,) each."""
    masked, none = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    return masked, masked, none, none, none, none


@triton.jit
def _merge(largest, second, rest, weighted, new_largest, new_second, new_rest, new_weighted):
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
def _store(partials, rows, inside, split, splits, n, largest, second, rest, weighted, n_greater, n_equal):
    """Into `partials` (6, splits, n)."""
    at = partials + tl.cast(split, tl.int64) * n + rows
    step = tl.cast(splits, tl.int64) * n
    tl.store(at, largest, mask=inside)
    tl.store(at + step, second, mask=inside)
    tl.store(at + 2 * step, rest, mask=inside)
    tl.store(at + 3 * step, weighted, mask=inside)
    tl.store(at + 4 * step, n_greater, mask=inside)
    tl.store(at + 5 * step, n_equal, mask=inside)


@triton.jit
def _products(
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


@triton.jit
def _adjust(logits, scale, softcap):
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


@triton.jit(do_not_specialize=["n"])
def _target_logits_kernel(
    hidden,
    weight,
    bias,
    targets,
    target_logits,
    scale,
    softcap,
    depth,
    n,
    hidden_stride,
    weight_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WHOLE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Each row's logit at its target, before any other: a tile is reduced by comparison with it.

    It must be the very number that the tile over the target's column gives. So it is an entry of a product of the same
    shape, summed in the same order: the columns are the rows' own targets, and the diagonal is kept.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * ROWS + tl.arange(0, COLUMNS)  # those past ROWS only make up the shape
    own_targets = tl.load(targets + tl.minimum(columns, n - 1)).to(tl.int64)
    safe_rows = tl.minimum(rows, n - 1).to(tl.int64)
    products = _products(
        hidden, weight, safe_rows, own_targets, depth, hidden_stride, weight_stride, ROWS, COLUMNS, DEPTH, WHOLE, UPCAST
    )
    diagonal = tl.arange(0, ROWS)[:, None] == tl.arange(0, COLUMNS)[None, :]
    logits = tl.sum(tl.where(diagonal, products, 0.0), 1)  # (ROWS,), exact: the other terms are 0
    if bias is not None:
        logits += tl.load(bias + tl.load(targets + tl.minimum(rows, n - 1))).to(tl.float32)
    tl.store(target_logits + rows, _adjust(logits, scale, softcap), mask=rows < n)


@triton.jit
def _reduce_products(logits, columns, bias, row_targets, row_target_logits, vocabulary, scale, softcap):
    """The head's products (rows, columns), as logits, to the six numbers of `_reduce_tile`."""
    if bias is not None:
        logits += tl.load(bias + tl.minimum(columns, vocabulary - 1)).to(tl.float32)[None, :]
    logits = _adjust(logits, scale, softcap)
    # The target equals itself whatever the rounding; columns past the vocabulary have probability 0.
    logits = tl.where(columns[None, :] == row_targets[:, None], row_target_logits[:, None], logits)
    logits = tl.where(columns[None, :] < vocabulary, logits, float("-inf"))
    return _reduce_tile(logits, row_target_logits)


@triton.jit(do_not_specialize=["n", "per_program"])
def _fused_kernel(
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

    largest, second, rest, weighted, n_greater, n_equal = _of_nothing(ROWS)
    for tile in range(split * per_program, tl.minimum((split + 1) * per_program, tiles)):
        at = tl.minimum(tile * COLUMNS + tl.arange(0, COLUMNS), vocabulary - 1).to(tl.int64)
        products = _products(
            hidden, weight, safe_rows, at, depth, hidden_stride, weight_stride, ROWS, COLUMNS, DEPTH, WHOLE, UPCAST
        )
        # By halves: the exponentials of a whole tile do not fit the registers beside its logits.
        left, right = tl.split(tl.permute(tl.reshape(products, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        for half in tl.static_range(2):
            columns = tile * COLUMNS + half * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
            new_largest, new_second, new_rest, new_weighted, greater, equal = _reduce_products(
                left if half == 0 else right, columns, bias, row_targets, row_target_logits, vocabulary, scale, softcap
            )
            largest, second, rest, weighted = _merge(
                largest, second, rest, weighted, new_largest, new_second, new_rest, new_weighted
            )
            n_greater += greater
            n_equal += equal
    _store(partials, rows, inside, split, splits, n, largest, second, rest, weighted, n_greater, n_equal)


@triton.jit(do_not_specialize=["n", "per_program"])
def _logits_kernel(logits, targets, partials, n, vocabulary, stride, per_program, BLOCK: tl.constexpr):
    """`per_program` blocks of one row of logits, reduced to `partials` (6, splits, n)."""
    splits = tl.cdiv(tl.cdiv(vocabulary, BLOCK), per_program)
    split = tl.program_id(0) % splits
    row = (tl.program_id(0) // splits).to(tl.int64) + tl.arange(0, 1)  # (1,): the functions above take tiles
    target = tl.load(logits + row * stride + tl.load(targets + row)).to(tl.float32)
    largest, second, rest, weighted, n_greater, n_equal = _of_nothing(1)
    start = split * per_program * BLOCK
    for first in range(start, tl.minimum(start + per_program * BLOCK, vocabulary), BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = (columns < vocabulary)[None, :]
        tile = tl.load(logits + row[:, None] * stride + columns[None, :], mask=inside, other=float("-inf"))
        new_largest, new_second, new_rest, new_weighted, greater, equal = _reduce_tile(tile.to(tl.float32), target)
        largest, second, rest, weighted = _merge(
            largest, second, rest, weighted, new_largest, new_second, new_rest, new_weighted
        )
        n_greater += greater
        n_equal += equal
    _store(partials, row, row < n, split, splits, n, largest, second, rest, weighted, n_greater, n_equal)
