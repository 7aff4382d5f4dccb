"""The texts that a figure draws, and those that overlap: what the tests of all figures ask."""

import numpy as np
import pytest
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Affine2D, BboxTransformTo
from proxycast.report.label_placement import boxes_overlap


def texts(figure):
    """The texts that are drawn (matplotlib also holds tick labels that it never draws) and their boxes in pixels."""
    drawn = []

    def draw(self, renderer, *arguments, **keywords):
        if self.get_visible() and self.get_text().strip():
            drawn.append((self, Text.get_window_extent(self, renderer).extents))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", draw)
        figure.draw_without_rendering()  # only the places of the texts are asked for, no pixel
    return [text for text, _ in drawn], np.array([box for _, box in drawn])


def outline(text, renderer):
    """The rectangle that a text fills, slanted if the text is, less a third of a point on each side."""
    slanted = text.get_rotation() % 90 != 0
    angle, turned = text.get_rotation(), Affine2D()
    if slanted:  # the heat map's headings: rotated about their anchor
        turned.rotate_deg_around(*text.get_transform().transform(text.get_position()), angle)
        text.set_rotation(0)
    box = Text.get_window_extent(text, renderer).padded(-renderer.dpi / 72 / 3)
    if slanted:
        text.set_rotation(angle)
    return Path.unit_rectangle().transformed(BboxTransformTo(box) + turned)


def overlapping(figure):
    """Pairs of texts that overlap, and texts that the edge of the figure cuts."""
    visible, boxes = texts(figure)
    renderer = figure.canvas.get_renderer()
    pairs = [(visible[i], visible[j]) for i, j in np.argwhere(np.triu(boxes_overlap(boxes, boxes), 1))]
    touching = [pair for pair in pairs if outline(pair[0], renderer).intersects_path(outline(pair[1], renderer))]
    inside = (boxes[:, :2] > -1).all(axis=1) & (boxes[:, 2:] < figure.bbox.max + 1).all(axis=1)
    cut = [text.get_text() for text, whole in zip(visible, inside) if not whole]
    return [(one.get_text(), other.get_text()) for one, other in touching] + cut
