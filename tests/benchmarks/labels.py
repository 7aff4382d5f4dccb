"""Our labels against those of adjustText (pip install adjustText), over scatter plots of 25 corpora drawn at random.

    python tests/benchmarks/labels.py

Prints for each: pairs of labels that overlap, markers that a label covers, labels beyond the frame, seconds.
"""

import time

import matplotlib
import numpy as np
from adjustText import adjust_text
from matplotlib import pyplot
from matplotlib.text import Text
from proxycast.report.label_placement import boxes_overlap, place_labels

PLOTS, CORPORA, FONT = 20, 25, 6.5


def by_adjust_text(axes, x, y, names) -> list[Text]:
    texts = [axes.text(*place, fontsize=FONT) for place in zip(x, y, names)]
    adjust_text(texts, x=x, y=y, ax=axes, iter_lim=500, arrowprops={"arrowstyle": "-", "lw": 0.5})
    return texts


def ours(axes, x, y, names) -> list[Text]:
    return place_labels(axes, x, y, names, fontsize=FONT)


def faults(texts, axes, x, y) -> np.ndarray:
    renderer = axes.figure.canvas.get_renderer()
    boxes = np.array([Text.get_window_extent(text, renderer).extents for text in texts])
    points = axes.transData.transform(np.column_stack([x, y]))
    overlaps = np.triu(boxes_overlap(boxes, boxes), 1).sum()
    covered = boxes_overlap(boxes, np.hstack([points - 2, points + 2])).sum()
    beyond = (boxes[:, :2] < axes.bbox.min).any(axis=1) | (boxes[:, 2:] > axes.bbox.max).any(axis=1)
    return np.array([overlaps, covered, beyond.sum()])


def main() -> None:
    matplotlib.use("agg")
    for place in (ours, by_adjust_text):
        found, seconds = np.zeros(3, int), 0.0
        for seed in range(PLOTS):
            rng = np.random.default_rng(seed)
            x = rng.normal(size=CORPORA)
            y = 0.8 * x + 0.3 * rng.normal(size=CORPORA)
            names = [f"corpus_{n}_{'x' * rng.integers(0, 12)}" for n in range(CORPORA)]
            figure, axes = pyplot.subplots(figsize=(5, 4.5), layout="constrained")
            axes.scatter(x, y, s=9)
            figure.draw_without_rendering()
            started = time.perf_counter()
            texts = place(axes, x, y, names)
            seconds += time.perf_counter() - started
            figure.draw_without_rendering()
            found += faults(texts, axes, x, y)
            pyplot.close(figure)
        print(f"{place.__name__:15} {found[0]} overlaps, {found[1]} covered, {found[2]} beyond, {seconds:.1f} s")


if __name__ == "__main__":
    main()
