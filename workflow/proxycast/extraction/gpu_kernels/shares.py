"""How work is divided among the processors of a GPU: arithmetic alone, so that last bits repeat."""

import functools
import math

SHARE_OVERHEAD = 0.1  # what a share of `descriptor_kernel` costs beside its tiles, in tiles (an estimate)


@functools.lru_cache(4096)
def per_program(rows: int, tiles: int, places: int, overhead: float, most: int | None = None) -> int:
    """Tiles of the vocabulary that one program reduces, so that the last round of programs is nearly full.

    rows: rows or blocks of rows, each of which takes `tiles`; places: programs that run at a time; overhead: what a
    program costs beside its tiles, in tiles; most: upper limit. Time is rounds times the length of a program; of equal
    times, the one with the longest programs, which leave the fewest results.
    """

    def time(length: int) -> float:
        return math.ceil(rows * math.ceil(tiles / length) / places) * (length + overhead)

    # Lengths that share the tiles among the same number of programs differ by the waste alone: the shortest is taken.
    lengths = sorted({math.ceil(tiles / splits) for splits in range(1, tiles + 1)}, reverse=True)
    return min((length for length in lengths if most is None or length <= most), key=time)


def full_share(rows: int, tiles: int, places: int, length: int) -> float:
    """Share of the processors' time that `per_program(...)` = length leaves busy with tiles that there are."""
    return rows * tiles / (math.ceil(rows * math.ceil(tiles / length) / places) * places * length)
