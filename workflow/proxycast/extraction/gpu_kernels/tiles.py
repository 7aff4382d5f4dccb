"""Which kernel, and which tile of it, a GPU takes: tables, not timed at run time, so that last bits repeat.

To add a GPU, or to try a kernel on one: `python tests/benchmarks/fused_head.py --tiles` times all that are here beside
the floor. What is fastest there goes into `DESCRIPTOR_TILES` (by compute capability and number of rows) or `TILES` (by
shared memory). `tests/extraction/test_kernel_tiles.py` compiles each for its GPU, without one, and refuses registers
that spill to memory. A kernel by descriptors is proven at its first use (`proof`): a wrong entry costs speed alone.
"""

import math
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """What one program multiplies at a time: (rows, depth) of hidden states with (columns, depth) of weights."""

    rows: int
    columns: int  # at least `rows`: see `target_logits_kernel`
    depth: int
    warps: int
    stages: int  # tiles of operands on their way from memory while one is multiplied
    descriptors: bool = False  # `descriptor_kernel`, not `fused_kernel`
    programs: int = 1  # of `descriptor_kernel` that a processor holds at a time: one reduces while another multiplies

    def shared_bytes(self, itemsize: int) -> int:
        return self.stages * (self.rows + self.columns) * self.depth * itemsize


GROUP = 16  # blocks of rows that pass over the vocabulary side by side, so that weights are read from L2, not memory

# The first that fits the shared memory of the GPU is taken: H100, H200, B200 (227 KB); A100 (163 KB); the rest (99 KB).
TILES = (Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 8, 4), Tile(128, 128, 32, 8, 4))
TILE_FLOAT32 = Tile(64, 64, 32, 4, 2)  # no tensor cores: a larger tile would not fit the registers

OWN_TARGETS = Tile(64, 16, 128, 4, 4)  # of `own_targets_kernel`

# Compute capability -> up to so many rows, this tile. By estimate, not measured: few rows are bound by the reading of
# the weights, which small tiles do not slow; for many rows a smaller tile reads operands from the cache too often.
DESCRIPTOR_TILES: dict[tuple[int, int], tuple[tuple[float, Tile], ...]] = {
    (9, 0): (
        (64, Tile(64, 128, 64, 4, 4, descriptors=True, programs=2)),
        (math.inf, Tile(128, 256, 64, 8, 4, descriptors=True)),
    ),
}
# Others that compile for compute capability 9.0 without a spill, for benchmarks.
OTHER_DESCRIPTOR_TILES = (
    Tile(128, 256, 64, 8, 3, descriptors=True),
    Tile(128, 128, 64, 4, 3, descriptors=True, programs=2),
)


def pointer_tile(dtype: torch.dtype, device: torch.device) -> Tile:
    """The tile of the kernel by pointers, which is known to be right."""
    if dtype == torch.float32:
        return TILE_FLOAT32
    if device.type != "cuda":
        return TILES[0]
    limit = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    # Sums over a row pass through shared memory too: leave room.
    return next((tile for tile in TILES if tile.shared_bytes(dtype.itemsize) + 8192 <= limit), TILES[-1])


def descriptor_tile(rows: int, capability: tuple[int, int]) -> Tile | None:
    """The tile of the kernel by descriptors, if this kind of GPU has one."""
    return next((tile for most, tile in DESCRIPTOR_TILES.get(capability, ()) if rows <= most), None)


def describable(*tensors: torch.Tensor) -> bool:
    """Whether the GPU's copy engine can fetch from these: 16 bits a number, addresses and rows at multiples of 16."""
    return all(
        tensor.itemsize == 2
        and tensor.stride(1) == 1
        and tensor.data_ptr() % 16 == 0
        and tensor.stride(0) * tensor.itemsize % 16 == 0
        for tensor in tensors
    )


def descriptor_constants(tile: Tile, adjusted: bool) -> dict[str, int | bool]:
    """Constants of `descriptor_kernel`. A quarter of a tile is reduced at a time, to four lanes a row."""
    far = (tile.columns // 4).bit_length() - 1 - 3
    return dict(ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, GROUP=GROUP, FAR=far, ADJUSTED=adjusted)
