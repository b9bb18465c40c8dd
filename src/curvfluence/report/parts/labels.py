"""Names of curves at their ends, moved apart where they meet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from curvfluence.report.parts.style import Look
from curvfluence.study.words import clipped

_GAP = 8.2  # points from one name to the next


def end_labels(axes: Axes, ends: Sequence[tuple[float, str, Look]]) -> None:
    """Name each curve at the right edge, at the height of its end, moved apart where they meet."""
    texts = [
        axes.annotate(
            clipped(label, 24),
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(13, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
        )
        for y, label, _ in ends
    ]
    canvas = axes.get_figure(root=True)
    assert canvas is not None
    lay_out(canvas)
    scale = canvas.dpi / 72
    natural = [float(axes.transData.transform((1, max(y, 1e-300)))[1]) for y, _, _ in ends]
    placed = spread(natural, _GAP * scale, float(axes.bbox.y0), float(axes.bbox.y1))
    for text, (y, _, look), was, now in zip(texts, ends, natural, placed, strict=True):
        shift = (now - was) / scale
        text.set_position((13, shift))
        line = {"arrowstyle": "-", "color": look.colour, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            "",
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(11, shift),
            textcoords="offset points",
            arrowprops=line,
        )


def lay_out(canvas: Canvas) -> None:
    """Give everything its place. Cheaper than to draw without rendering, to the same end."""
    engine = canvas.get_layout_engine()
    if engine is not None:
        engine.execute(canvas)


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Values moved as little as it takes to lie `gap` apart, within the bounds where they fit."""
    order = np.argsort(values, kind="stable")
    moved = np.asarray(values, dtype=float)[order]
    offsets = gap * np.arange(len(moved))
    # Isotonic regression of (value − offset), by pooling neighbours that are out of order.
    blocks: list[list[float]] = []
    for value in moved - offsets:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    flat = np.concatenate([np.full(int(n), value) for value, n in blocks]) if blocks else moved
    room = high - (offsets[-1] if len(offsets) else 0.0)
    flat = np.clip(flat, min(low, room), max(low, room))
    placed = np.empty(len(moved))
    placed[order] = flat + offsets
    return [float(value) for value in placed]
