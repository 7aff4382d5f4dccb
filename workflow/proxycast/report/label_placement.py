"""Direct labels that never overlap: along one margin (`spread`) and around the points of a scatter plot.

Both work in display units. Neither moves a point: a label that cannot stand beside its point gets a leader line.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from scipy.optimize import isotonic_regression

RADII = (3, 6, 10, 15, 21, 28, 36, 45, 55, 66, 78, 91, 105, 120, 140, 165, 190)  # points, from the marker to the label
ANGLES = np.deg2rad(np.arange(0, 360, 15))
SWEEPS = 6
PADDING = 1.2  # points of air around every label
LEADER_FROM = 6  # points: nearer labels need no leader line

# What a label's place costs, in points of distance: to cover a label is never worth it, to cover an error bar
# sometimes.
OVERLAP, OUTSIDE, COVERED_MARKER, LEADER_CROSSING, COVERED_LINE = 1e6, 1e6, 400.0, 120.0, 20.0


def spread(centres: Sequence[float], heights: Sequence[float], low: float, high: float) -> np.ndarray:
    """The centres of intervals of the given heights, moved as little as possible (least squares) until none overlap.

    Without the heights, "no overlap" reads "the centres do not decrease": an isotonic regression of the centres after
    each has been lowered by what is stacked below it. The result stays within [low, high], unless the heights together
    exceed it.
    """
    centres, heights = np.asarray(centres, float), np.asarray(heights, float)
    if not len(centres):
        return centres
    order = np.argsort(centres, kind="stable")
    below = np.cumsum(heights[order]) - heights[order] / 2
    slack = isotonic_regression(centres[order] - below).x
    placed = np.empty_like(centres)
    placed[order] = np.clip(slack, low, max(low, high - heights.sum())) + below
    return placed


def place_labels(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    labels: Sequence[str],
    lines: Sequence[tuple[float, float, float, float]] = (),
    obstacles: Sequence[Text] = (),
    **text_properties: object,
) -> list[Annotation]:
    """Write one label beside each point (x, y) of `axes`, so that no two labels overlap and markers stay visible.

    The marker of an empty label is kept free too. `lines` are segments (x0, y0, x1, y1) in data units, such as error
    bars, that labels avoid where they can; `obstacles` are texts already there. Greedy, the most crowded point first,
    then a few sweeps in which each label may move again; deterministic. The axes must have their final place and
    limits: call `style.settled` before.
    """
    if not len(labels):
        return []
    renderer, point = axes.figure.canvas.get_renderer(), axes.figure.dpi / 72  # point: pixels of one typographic point
    anchors = axes.transData.transform(np.column_stack([x, y]))
    texts = [
        axes.annotate(label, (a, b), (0, 0), textcoords="offset points", ha="center", va="center", **text_properties)
        for a, b, label in zip(x, y, labels, strict=True)
    ]
    sizes = np.array([Text.get_window_extent(text, renderer).size for text in texts]) + 2 * PADDING * point
    segments = axes.transData.transform(np.asarray(lines, float).reshape(-1, 2)).reshape(-1, 4)
    blocked = np.array([text.get_window_extent(renderer).extents for text in obstacles]).reshape(-1, 4)
    candidates = [_candidates(a, size, point) for a, size in zip(anchors, sizes, strict=True)]
    own_costs = [
        _fixed_cost(*pair, anchor, anchors, segments, blocked, axes.bbox, point)
        for pair, anchor in zip(candidates, anchors, strict=True)
    ]
    chosen = _choose(candidates, own_costs, anchors)
    for text, anchor, box in zip(texts, anchors, chosen, strict=True):
        text.set_position((((box[:2] + box[2:]) / 2 - anchor) / point).tolist())
        reach = (np.clip(anchor, box[:2], box[2:]) - anchor) / point
        if text.get_text() and np.hypot(*reach) > LEADER_FROM:
            style = {"arrowstyle": "-", "color": "0.25", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2.5}
            axes.annotate("", text.xy, reach.tolist(), textcoords="offset points", arrowprops=style, zorder=2)
    return texts


def _candidates(anchor: np.ndarray, size: np.ndarray, point: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) around a point, left, bottom, right, top, and their distances (n) from it in points."""
    direction = np.column_stack([np.cos(ANGLES), np.sin(ANGLES)])
    radius = np.repeat(RADII, len(ANGLES))[:, None] * point
    centre = anchor + np.tile(direction, (len(RADII), 1)) * (radius + size / 2)
    return np.hstack([centre - size / 2, centre + size / 2]), radius[:, 0] / point


def _fixed_cost(boxes, distance, anchor, anchors, segments, blocked, frame: Bbox, point: float) -> np.ndarray:
    """The cost (n) of each candidate box that does not depend on the other labels."""
    near = np.clip(anchor, boxes[:, :2], boxes[:, 2:])
    markers = np.hstack([anchors - 2.5 * point, anchors + 2.5 * point])
    others = markers[(anchors != anchor).any(axis=1)]
    leaders = np.hstack([np.broadcast_to(anchor, near.shape), near])
    outside = (boxes[:, :2] < frame.min).any(axis=1) | (boxes[:, 2:] > frame.max).any(axis=1)
    return (
        distance
        + OUTSIDE * outside
        + OVERLAP * boxes_overlap(boxes, blocked).sum(axis=1)
        + COVERED_MARKER * boxes_overlap(boxes, markers).sum(axis=1)
        + COVERED_LINE * segments_hit_boxes(segments, boxes).sum(axis=0)
        + LEADER_CROSSING * segments_hit_boxes(leaders, others).sum(axis=1)
    )


def _choose(candidates, own_costs, anchors: np.ndarray) -> np.ndarray:
    """One box (4) for each label: greedy, the most crowded first, then sweeps until nothing moves."""
    count = len(candidates)
    separation = np.linalg.norm(anchors[:, None] - anchors[None], axis=-1)
    order = np.argsort(np.sort(separation, axis=1)[:, : min(5, count)].sum(axis=1), kind="stable")
    chosen, leaders, placed = np.zeros((count, 4)), np.zeros((count, 4)), np.zeros(count, bool)
    for _ in range(SWEEPS):
        before = chosen.copy()
        for i in order:
            placed[i] = False
            boxes, _ = candidates[i]
            near = np.clip(anchors[i], boxes[:, :2], boxes[:, 2:])
            mine = np.hstack([np.broadcast_to(anchors[i], near.shape), near])
            cost = (
                own_costs[i]
                + OVERLAP * boxes_overlap(boxes, chosen[placed]).sum(axis=1)
                + LEADER_CROSSING * segments_hit_boxes(leaders[placed], boxes).sum(axis=0)
                + LEADER_CROSSING * segments_hit_boxes(mine, chosen[placed]).sum(axis=1)
            )
            best = int(cost.argmin())
            chosen[i], leaders[i], placed[i] = boxes[best], mine[best], True
        if np.array_equal(before, chosen):
            break
    return chosen


def boxes_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether each box of `a` (m, 4) and each of `b` (n, 4) share area: (m, n). A box is left, bottom, right, top."""
    a, b = a[:, None], b[None]
    return ((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:])).all(axis=-1)


def segments_hit_boxes(segments: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether each segment (m, 4) passes through the inside of each box (n, 4): (m, n), by the slab method."""
    start, step = segments[:, None, :2], (segments[:, 2:] - segments[:, :2])[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        to_low, to_high = (boxes[None, :, :2] - start) / step, (boxes[None, :, 2:] - start) / step
    inside = (boxes[None, :, :2] < start) & (start < boxes[None, :, 2:])
    enter = np.where(step == 0, np.where(inside, -np.inf, np.inf), np.fmin(to_low, to_high)).max(axis=-1)
    leave = np.where(step == 0, np.where(inside, np.inf, -np.inf), np.fmax(to_low, to_high)).min(axis=-1)
    return np.maximum(enter, 0) < np.minimum(leave, 1)
