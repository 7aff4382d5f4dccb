"""The six statistics on a GPU in one pass over the vocabulary, from logits or from hidden states and the weights.

`fused` makes a tile of logits in registers, reduces it there and forgets it: the (n, V) logits never reach memory.
Products of two bfloat16 or float16 numbers are exact in float32 and are summed in float32. So tensor cores compute what
a float32 head would, up to the order and last bit of sums, without a float32 copy of the weights.

Several programs share the vocabulary of a row, so that few rows keep a whole GPU busy; `_combine` puts their results
together. GPUs can share it in the same way: `target_logits` and `fused_parts` of each one's slice of the weights, the
largest of the former and all of the latter exchanged, then `statistics_of`. `fused` is that with one slice.

Nothing waits for the GPU, but the trial of a kernel at its first use (`gpu_kernels.proof`). A row with NaN or
+infinity gets a logprob or an entropy that is not finite.

With TRITON_INTERPRET=1 the kernels run on a CPU, slowly, for tests.
"""

import os
from collections.abc import Callable, Hashable

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from proxycast.extraction.gpu_kernels import proof
from proxycast.extraction.gpu_kernels.descriptor_kernel import descriptor_kernel, own_targets_kernel
from proxycast.extraction.gpu_kernels.logits_kernel import logits_kernel
from proxycast.extraction.gpu_kernels.pointer_kernels import fused_kernel, row_kernel, target_logits_kernel
from proxycast.extraction.gpu_kernels.reductions import combine_kernel
from proxycast.extraction.gpu_kernels.shares import SHARE_OVERHEAD, per_program
from proxycast.extraction.gpu_kernels.tiles import (  # noqa: F401  some are for those who name a tile
    GROUP,
    OWN_TARGETS,
    TILE_FLOAT32,
    TILES,
    Tile,
    describable,
    descriptor_constants,
    descriptor_tile,
    pointer_tile,
)
from proxycast.extraction.schema import TokenStats
from proxycast.options import InputError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Which kernels a GPU takes. known: those that have run on one and were right. tried: others, too, after a trial
# (`proof`). all: also the fused head by descriptors, which has run on no GPU yet. Should it hang or end the GPU's
# context, no trial could catch that: it must be asked for.
ALLOWED = ("known", "tried", "all")
KERNELS = os.environ.get("PROXYCAST_GPU_KERNELS", "tried")
if KERNELS not in ALLOWED:
    raise InputError(f"PROXYCAST_GPU_KERNELS: found {KERNELS!r}; it must be one of {', '.join(ALLOWED)}")

ROUNDS_PER_PROCESSOR = 32  # at least, of programs that share the vocabulary: the last round is then a small part
TILES_PER_PROGRAM = 4  # at most: 24 bytes of partial results per row and 1024 columns
LOGITS_BLOCK = 8192  # logits of one row that are reduced at a time
ROWS_PER_PROCESSOR = 8  # with fewer rows than this, several programs of `row_kernel` share a row of logits
FEW_LOGITS_BLOCK = 2048  # where blocks of that size would leave processors without work
LOGITS_PROGRAMS = 4  # of `logits_kernel` that run on a processor at a time: it has 64 to 75 registers
LOGITS_OVERHEAD = 1.0  # what such a program costs beside its blocks, in blocks (an estimate)
PARTIALS = 6  # largest, second, rest, weighted, n_greater, n_equal: see `gpu_kernels.reductions`
COMBINED_ROWS = 32  # rows whose parts one program puts together


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

    hidden: (n, d); weight: (V, d) of the same dtype; bias: (V,). Extra memory: at most 24 bytes times n V / 128.
    Raises TypeError if the dtypes differ.
    """
    if len(hidden) == 0:
        _same_type(hidden, weight)
        return _empty(hidden.device)
    of_targets = target_logits(hidden, weight, targets, bias, scale, softcap, tile)
    parts = _split_parts(hidden, weight, targets, of_targets, bias, scale, softcap, tile, len(weight))
    return statistics_of(parts, of_targets)


def target_logits(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    tile: Tile | None = None,
    used: int | None = None,
) -> torch.Tensor:
    """Logits softcap(scale * (hidden @ weight.T + bias)) at `targets` (n,) alone: (n,), float32.

    weight (V, d) may be a slice of the vocabulary, and targets are ids relative to it: one outside [0, used) has the
    logit -infinity here. So the largest over all slices is the target's own, whichever slice owns it. used, and errors:
    as in `fused_parts`.
    """
    used = _used(weight, used)
    _same_type(hidden, weight)
    n, device = len(hidden), hidden.device
    if n == 0 or used == 0:
        return torch.full((n,), -torch.inf, dtype=torch.float32, device=device)
    hidden, weight = _rows_of_neighbours(hidden, weight)
    tile = tile or _chosen(hidden, weight, bias, scale, softcap)
    arguments = (hidden, weight, targets, bias, scale, softcap, used)
    if tile.descriptors and _proven(
        ("targets", tile, weight.dtype),
        device,
        lambda: proof.of_targets(tile, weight.dtype, device, _own_targets, _targets),
    ):
        return _own_targets(*arguments)
    return _targets(*arguments, tile)


def fused_parts(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    target_logits: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    tile: Tile | None = None,
    used: int | None = None,
) -> torch.Tensor:
    """What a slice of the vocabulary, weight (V, d), adds to each row's statistics: (6, n), float32.

    Largest logit, second largest, sums of e^z and of z e^z without one largest entry (z = logit - largest), numbers of
    logits above the target's and equal to it. targets: (n,), relative to the slice, also those that it does not own;
    target_logits: (n,), float32, from whichever slice owns them. used: number of columns that are tokens (default: all;
    0 is allowed); those behind are padding. Raises ValueError for another number, TypeError if the dtypes differ.
    """
    used = _used(weight, used)
    parts = _split_parts(hidden, weight, targets, target_logits, bias, scale, softcap, tile, used)
    return parts[:, 0] if parts.shape[1] == 1 else _combine(parts, None)


def statistics_of(parts: torch.Tensor, target_logits: torch.Tensor) -> TokenStats:
    """Statistics of rows whose vocabulary R slices share: parts (6, R, n) of `fused_parts`, target_logits (n,).

    Strides are free: parts whose rows are no neighbours in memory are copied. target_logits must be contiguous.
    """
    if parts.shape[2] == 0:
        return _empty(parts.device)
    return _combine(parts, target_logits)


def from_logits(logits: torch.Tensor, targets: torch.Tensor, block: int = LOGITS_BLOCK) -> TokenStats:
    """Statistics of logits (n, V) at `targets` (n,), each logit read once. Extra memory: 28 bytes a row or a few MB.

    -infinity (a masked token, probability 0) is fine except at the target.
    """
    (n, vocabulary), device = logits.shape, logits.device
    if n == 0:
        return _empty(device)
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    block = min(block, triton.next_power_of_2(vocabulary))
    if n * triton.cdiv(vocabulary, block) < LOGITS_PROGRAMS * _processors(device):
        block = min(block, FEW_LOGITS_BLOCK)
    if not _proven(
        ("lanes", logits.dtype, block), device, lambda: proof.of_logits(logits.dtype, device, _by_lanes, block)
    ):
        return _by_rows(logits, targets, block)
    return _by_lanes(logits, targets, block)


def _by_lanes(logits: torch.Tensor, targets: torch.Tensor, block: int) -> TokenStats:
    (n, vocabulary), device = logits.shape, logits.device
    warps = 8 if block >= 4096 else 4
    tiles = triton.cdiv(vocabulary, block)
    length = per_program(n, tiles, LOGITS_PROGRAMS * _processors(device), LOGITS_OVERHEAD)
    near = min({4: 2, 2: 3}.get(logits.itemsize, 1), block.bit_length() - 1)
    parts = torch.empty(PARTIALS, triton.cdiv(tiles, length), n, dtype=torch.float32, device=device)
    of_targets = torch.empty(n, dtype=torch.float32, device=device)
    with _on(device):
        logits_kernel[(n * parts.shape[1],)](
            *(logits, targets, parts, of_targets),
            **dict(n=n, vocabulary=vocabulary, stride=logits.stride(0), per_program=length),
            BLOCK=block,
            # One lane a thread: a thread loads 16 bytes at a time.
            FAR=max(block.bit_length() - 1 - near - (warps * 32).bit_length() + 1, 0),
            NEAR=near,
            num_warps=warps,
        )
    return _combine(parts, of_targets)


def _by_rows(logits: torch.Tensor, targets: torch.Tensor, block: int) -> TokenStats:
    """`_by_lanes` by the known-good kernel."""
    (n, vocabulary), device = logits.shape, logits.device
    tiles = triton.cdiv(vocabulary, block)
    length = triton.cdiv(tiles, min(triton.cdiv(ROWS_PER_PROCESSOR * _processors(device), n), tiles))
    parts = torch.empty(PARTIALS, triton.cdiv(tiles, length), n, dtype=torch.float32, device=device)
    with _on(device):
        row_kernel[(n * parts.shape[1],)](
            *(logits, targets, parts),
            **dict(n=n, vocabulary=vocabulary, stride=logits.stride(0), per_program=length),
            BLOCK=block,
            num_warps=8 if block >= 4096 else 4,
        )
    return _combine(parts, logits.gather(1, targets.unsqueeze(1)).squeeze(1).float())


def _proven(kernel: Hashable, device: torch.device, difference: Callable[[], str]) -> bool:
    """Whether a kernel that is not known to be right is used: after its trial. Tests do that in the interpreter."""
    if device.type != "cuda":
        return True
    return KERNELS != "known" and proof.proven(kernel, device, difference)


def _chosen(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: float, softcap: float | None
) -> Tile:
    """The tile, and with it the kernel, for these sizes on this GPU."""
    device, dtype = hidden.device, weight.dtype
    if KERNELS == "all" and describable(hidden, weight):
        tile = descriptor_tile(len(hidden), _capability(device))
        bias_type = None if bias is None else bias.dtype
        kernel = (tile, dtype, bias_type, scale != 1.0, softcap is not None)
        if tile is not None and _proven(kernel, device, lambda: _head_difference(*kernel, device)):
            return tile
    return pointer_tile(dtype, device)


def _head_difference(
    tile: Tile,
    dtype: torch.dtype,
    bias_type: torch.dtype | None,
    scaled: bool,
    capped: bool,
    device: torch.device,
    many: int | None = None,
) -> str:
    """What `descriptor_kernel` gets wrong, or an empty text: with a few programs that take much, and with `many`."""

    def run(hidden, weight, targets, bias, scale, softcap, used):
        of_targets = target_logits(hidden, weight, targets, bias, scale, softcap, tile, used)
        for places in (3, many or tile.programs * _processors(device)):
            arguments = (hidden, weight, targets, of_targets, bias, scale, softcap, tile, used)
            yield statistics_of(_by_descriptors(*arguments, places), of_targets)

    return proof.of_head(tile, dtype, bias_type, 0.5 if scaled else 1.0, 1000.0 if capped else None, device, run)


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def _on(device: torch.device) -> torch.cuda.device:
    """Triton launches on the current GPU, which need not be the tensors' one."""
    return torch.cuda.device(device if device.type == "cuda" else -1)  # -1 changes nothing


def _empty(device: torch.device) -> TokenStats:
    return TokenStats(
        *(torch.empty(0, dtype=torch.float32, device=device) for _ in range(4)),
        *(torch.empty(0, dtype=torch.int32, device=device) for _ in range(2)),
    )


def _targets(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    used: int,
    tile: Tile,
) -> torch.Tensor:
    """`target_logits` by products of the tile's shape: known to be the tile's own numbers."""
    found = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    with _on(hidden.device):
        target_logits_kernel[(triton.cdiv(len(hidden), tile.rows),)](
            *(hidden, weight, bias, targets, found),
            **(_adjustments(scale, softcap) | dict(vocabulary=used) | _sizes(hidden, weight, tile)),
        )
    return found


def _own_targets(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    used: int,
) -> torch.Tensor:
    """`target_logits` by many small programs."""
    (n, depth), device = hidden.shape, hidden.device
    found = torch.empty(n, dtype=torch.float32, device=device)
    with _on(device):
        own_targets_kernel[(triton.cdiv(n, OWN_TARGETS.columns),)](
            *(hidden, weight, bias, targets, found),
            **_adjustments(scale, softcap),
            **dict(depth=depth, n=n, vocabulary=used),
            **dict(hidden_stride=hidden.stride(0), weight_stride=weight.stride(0)),
            OWN=OWN_TARGETS.columns,
            DEPTH=OWN_TARGETS.depth,
            UPCAST=INTERPRETED and weight.dtype == torch.bfloat16,
            num_warps=OWN_TARGETS.warps,
            num_stages=OWN_TARGETS.stages,
        )
    return found


def _split_parts(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    target_logits: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    tile: Tile | None,
    used: int,
) -> torch.Tensor:
    """`fused_parts` of each of the programs that share a row: (6, splits, n)."""
    _same_type(hidden, weight)
    n, device = len(hidden), hidden.device
    if n == 0 or used == 0:
        nothing = torch.zeros(PARTIALS, 1, n, dtype=torch.float32, device=device)
        nothing[:2] = -torch.inf
        return nothing
    hidden, weight = _rows_of_neighbours(hidden, weight)
    tile = tile or _chosen(hidden, weight, bias, scale, softcap)
    arguments = (hidden, weight, targets, target_logits, bias, scale, softcap, tile, used)
    if tile.descriptors:
        return _by_descriptors(*arguments, tile.programs * _processors(device))
    row_blocks, tiles = triton.cdiv(n, tile.rows), triton.cdiv(used, tile.columns)
    length = min(max(row_blocks * tiles // (ROUNDS_PER_PROCESSOR * _processors(device)), 1), TILES_PER_PROGRAM)
    splits = triton.cdiv(tiles, length)
    parts = torch.empty(PARTIALS, splits, n, dtype=torch.float32, device=device)
    more = dict(vocabulary=used, per_program=length, GROUP=GROUP)
    with _on(device):
        fused_kernel[(row_blocks * splits,)](
            *(hidden, weight, bias, targets, target_logits, parts),
            **(_adjustments(scale, softcap) | more | _sizes(hidden, weight, tile)),
        )
    return parts


def _by_descriptors(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    target_logits: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    tile: Tile,
    used: int,
    places: int,
) -> torch.Tensor:
    """`_split_parts` by `descriptor_kernel`, with at most `places` programs."""
    (n, depth), device = hidden.shape, hidden.device
    row_blocks, tiles = triton.cdiv(n, tile.rows), triton.cdiv(used, tile.columns)
    length = per_program(row_blocks, tiles, places, SHARE_OVERHEAD)
    splits = triton.cdiv(tiles, length)
    programs = min(places, row_blocks * splits)
    parts = torch.empty(PARTIALS, splits, n, dtype=torch.float32, device=device)
    with _on(device):
        descriptor_kernel[(programs,)](
            TensorDescriptor(hidden, [n, depth], [hidden.stride(0), 1], [tile.rows, tile.depth]),
            TensorDescriptor(weight, [used, depth], [weight.stride(0), 1], [tile.columns, tile.depth]),
            *(bias, targets, target_logits, parts),
            **_adjustments(scale, softcap),
            **dict(depth=depth, n=n, vocabulary=used, per_program=length, programs=programs),
            **descriptor_constants(tile, scale != 1.0 or softcap is not None),
            UPCAST=INTERPRETED and weight.dtype == torch.bfloat16,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return parts


def _rows_of_neighbours(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor if tensor.stride(1) == 1 else tensor.contiguous() for tensor in tensors]


def _sizes(hidden: torch.Tensor, weight: torch.Tensor, tile: Tile) -> dict[str, int | bool]:
    """Arguments of the kernels by pointers."""
    n, depth = hidden.shape
    return dict(
        n=n,
        depth=depth,
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


def _adjustments(scale: float, softcap: float | None) -> dict[str, float | None]:
    return dict(scale=float(scale), softcap=None if softcap is None else float(softcap))


def _used(weight: torch.Tensor, used: int | None) -> int:
    if used is not None and not 0 <= used <= len(weight):
        raise ValueError(f"found {used} used columns of {len(weight)}")
    return len(weight) if used is None else used


def _same_type(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    if hidden.dtype != weight.dtype:
        raise TypeError(f"found hidden states in {hidden.dtype} and weights in {weight.dtype}; both need one type")


def _combine(parts: torch.Tensor, target_logits: torch.Tensor | None) -> torch.Tensor | TokenStats:
    """Parts (6, R, n) as one: (6, n), or statistics where the targets' logits (n,) are given."""
    if _proven("combine", parts.device, lambda: proof.of_combination(parts.device, _combine_at_once)):
        return _combine_at_once(parts, target_logits)
    return proof.combined(parts, target_logits)


def _combine_at_once(parts: torch.Tensor, target_logits: torch.Tensor | None) -> torch.Tensor | TokenStats:
    """By one launch."""
    (_, count, n), device = parts.shape, parts.device
    parts = parts if parts.stride(2) == 1 or n == 1 else parts.contiguous()
    floats = torch.empty(PARTIALS if target_logits is None else 4, n, dtype=torch.float32, device=device)
    counts = None if target_logits is None else torch.empty(2, n, dtype=torch.int32, device=device)
    few = n < COMBINED_ROWS * _processors(device)
    rows, at_once = (2, 512) if few and count > 64 else (COMBINED_ROWS, 32)
    with _on(device):
        combine_kernel[(triton.cdiv(n, rows),)](
            *(parts, target_logits, floats, counts, n, count, parts.stride(0), parts.stride(1)),
            **dict(FINAL=target_logits is not None, ROWS=rows, PARTS=at_once, num_warps=4),
        )
    return floats if counts is None else TokenStats(*floats, *counts)
