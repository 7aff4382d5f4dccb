"""Which points of a scatter have their names beside them, and where: names cover neither points nor names.

The page draws a plot as wide as it has room, always as high. Names are placed for the least width: in a wider plot the
points lie farther apart and the names are no longer, so nothing comes to meet.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from proxycast.report.label_placement import boxes_overlap

HEIGHT, NARROW, WIDE = 380, 270, 640  # pixels of a plot
PADDING = 14  # pixels between the outermost points and the frame
LETTER, LINE, DOT = 6.4, 13, 5  # pixels: a letter's width, a line's height, around a point
LONGEST = 150  # pixels; longer names are cut
# Where a name may stand: the end of it that is fixed, and that end's distance from the point, downwards.
SIDES = (("right", -8, 0), ("left", 8, 0), ("right", 5, -13), ("right", 5, 13), ("left", -5, -13), ("left", -5, 13))


class Beside(NamedTuple):
    """A name's place in the words of Vega, and the width of the plot from which on there is room for it."""

    width: int
    align: str
    dx: int
    dy: int


def placed_names(x: Sequence[float], y: Sequence[float], names: Sequence[str]) -> dict[str, Beside]:
    """Name -> its place; names without room are not in it. `x` and `y` are (n,), `y` upwards.

    The first point always has its name, even where it covers something.
    """
    found: dict[str, Beside] = {}
    for width in (NARROW, WIDE):
        points = np.column_stack([_pixels(x, width), HEIGHT - _pixels(y, HEIGHT)])
        dots = np.hstack([points - DOT, points + DOT])
        taken = [_box(points[n], name, found[name][1:]) for n, name in enumerate(names) if name in found]
        for n, name in enumerate(names):
            if name in found:
                continue
            sides = SIDES[:2] if found else SIDES  # in a corner of its point a name may seem to be another's
            boxes, others = [_box(points[n], name, side) for side in sides], np.delete(dots, n, axis=0)
            costs = [_covers(box, others, taken, width) for box in boxes]
            best = int(np.argmin(costs))
            if costs[best] == 0 or not found:
                found[name] = Beside(width, *SIDES[best])
                taken.append(boxes[best])
    return found


def _pixels(values: Sequence[float], length: float) -> np.ndarray:
    values = np.asarray(values, float)
    low, spread = values.min(), np.ptp(values)
    share = (values - low) / spread if spread else np.full(values.shape, 0.5)
    return PADDING + share * (length - 2 * PADDING)


def _box(point: np.ndarray, name: str, side: tuple[str, int, int]) -> np.ndarray:
    """Left, top, right, bottom of a name and of the gap to its point: another point in the gap parts in wide plots."""
    (end, dx, dy), length = side, min(LETTER * len(name), LONGEST)
    ends = [0, dx, dx - length if end == "right" else dx + length]
    return np.array([point[0] + min(ends), point[1] + dy - LINE / 2, point[0] + max(ends), point[1] + dy + LINE / 2])


def _covers(box: np.ndarray, dots: np.ndarray, taken: Sequence[np.ndarray], width: float) -> int:
    """How much a name covers: points and names; to leave the frame is worse than all of it."""
    met = np.vstack([dots, *taken])
    outside = bool(box[0] < 0 or box[2] > width)
    return int(boxes_overlap(box[None], met).sum()) + outside * (len(met) + 1)
