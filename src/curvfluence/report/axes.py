"""Drawing that several figures share: rows of intervals, labels that do not collide, log ticks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import fill, wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from curvfluence.report.style import INK, MUTED, Look
from curvfluence.study.words import short

ROW = 20  # characters of a row's name before it breaks


def rows_height(labels: Sequence[str]) -> float:
    """Inches that `rows` need, with the axis and a legend below."""
    lines = max(len(wrap(label, ROW)) for label in labels)
    return 0.75 + len(labels) * max(0.26, 0.13 * lines + 0.04)


@dataclass(frozen=True)
class Point:
    """A value with its interval on one row. A hollow point is one that is not resolved."""

    value: float
    interval: Sequence[float] | None
    look: Look
    hollow: bool = False
    shift: float = 0.0


def rows(axes: Axes, labels: Sequence[str], points: Sequence[Sequence[Point]]) -> None:
    """Rows from the top down, each with its points and their 95% intervals."""
    for row, these in enumerate(points):
        for point in these:
            y = row + point.shift
            if point.interval is not None:
                axes.plot(point.interval, [y, y], color=point.look.colour, lw=1.6, zorder=3)
            mark(axes, point.value, y, point.look, hollow=point.hollow)
    axes.set_yticks(range(len(labels)), [fill(label, ROW) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def mark(axes: Axes, x: float, y: float, look: Look, *, hollow: bool = False) -> None:
    """One marker, edged in ink so that light colours keep their shape on white."""
    axes.plot(
        [x],
        [y],
        look.marker,
        color="none" if hollow else look.colour,
        markeredgecolor=look.colour if hollow else INK,
        markeredgewidth=1.1 if hollow else 0.5,
        ms=4.6,
        zorder=4,
    )


def reference(axes: Axes, x: float, text: str) -> None:
    """A dashed vertical line, named above the axes."""
    axes.axvline(x, color=MUTED, lw=0.9, ls=(0, (4, 2)), zorder=1)
    axes.annotate(
        text,
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=6.5,
        color=MUTED,
    )


def log(axes: Axes, *which: str) -> None:
    """Logarithmic axes with plain ticks: 0.01, 1, 10⁵."""
    for name in which:
        (axes.set_xscale if name == "x" else axes.set_yscale)("log")
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_major_formatter(FuncFormatter(tick))
        axis.set_minor_locator(NullLocator())


def short_range(axes: Axes) -> None:
    """Ticks at 1, 2 and 5 where a logarithmic x axis spans no two decades."""
    low, high = axes.get_xlim()
    if high < 100 * low:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))


def tick(value: float, _: object) -> str:
    """A tick's label."""
    return short(value)


def end_labels(axes: Axes, ends: Sequence[tuple[float, str, Look]]) -> None:
    """Name each curve at the right edge, at the height of its end, moved apart where they meet."""
    texts: list[Text] = []
    for y, label, _ in ends:
        texts.append(
            axes.annotate(
                label,
                (1, y),
                xycoords=("axes fraction", "data"),
                xytext=(13, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
        )
    canvas = _canvas(axes)
    canvas.draw_without_rendering()
    scale = canvas.dpi / 72
    natural = [float(axes.transData.transform((1, max(y, 1e-300)))[1]) for y, _, _ in ends]
    bottom, top = float(axes.bbox.y0), float(axes.bbox.y1)
    placed = spread(natural, 8.2 * scale, bottom, top)
    for text, (y, _, look), was, now in zip(texts, ends, natural, placed, strict=True):
        shift = (now - was) / scale
        text.set_position((13, shift))
        axes.annotate(
            "",
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(11, shift),
            textcoords="offset points",
            arrowprops={
                "arrowstyle": "-",
                "color": look.colour,
                "lw": 1.2,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )


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


Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Named:
    """A point of a scatter with a vertical interval, and its name."""

    x: float
    y: float
    interval: Sequence[float]
    name: str


def point_labels(axes: Axes, points: Sequence[Named], lines: Sequence[Line]) -> None:
    """Name points beside or above them, each where it hides least of points, names and lines."""
    canvas = _canvas(axes)
    texts = [
        axes.annotate(p.name, (p.x, p.y), xytext=(6, 0), textcoords="offset points", fontsize=6.5)
        for p in points
    ]
    canvas.draw_without_rendering()
    renderer = _agg(canvas).get_renderer()
    scale = canvas.dpi / 72
    bars = [[(p.x, p.interval[0]), (p.x, p.interval[1])] for p in points]
    taken = [_around(a, b, 1) for line in (*lines, *bars) for a, b in pairwise(_pixels(axes, line))]
    at = _pixels(axes, [(p.x, p.y) for p in points])
    taken += [_around(here, here, 5) for here in at]
    for text, bar, (x, y) in zip(texts, bars, at, strict=True):
        size = text.get_window_extent(renderer)
        (_, low), (_, high) = _pixels(axes, bar)
        tried = _beside(size.width, size.height, x, (low, y, high), 6 * scale)
        costs = [
            rank + sum(_shared(box, other) for other in taken) + 50 * _outside(box, axes.bbox)
            for rank, box in enumerate(tried)
        ]
        best = tried[int(np.argmin(costs))]
        text.set_position(((best.x0 - x) / scale, (best.y0 - y) / scale))
        taken.append(best)


def _pixels(axes: Axes, line: Line) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in axes.transData.transform(line)]


def _beside(
    width: float, height: float, x: float, bar: tuple[float, float, float], gap: float
) -> list[Bbox]:
    """Where a name may stand, the best first: right, left, above and below of marker and bar."""
    low, y, high = bar
    right, left = x + gap, x - gap - width
    levels = (y - height / 2, y + gap / 2, y - gap / 2 - height)
    corners = [(right, levels[0]), (left, levels[0])]
    corners += [(x - width / 2, high + gap / 3), (x - width / 2, low - gap / 3 - height)]
    corners += [(side, level) for level in levels[1:] for side in (right, left)]
    corners += [
        (x - width * share, level)
        for level in (high + gap / 3, low - gap / 3 - height)
        for share in (0.2, 0.8)
    ]
    return [Bbox.from_bounds(a, b, width, height) for a, b in corners]


def _around(a: tuple[float, float], b: tuple[float, float], by: float) -> Bbox:
    (x0, x1), (y0, y1) = sorted((a[0], b[0])), sorted((a[1], b[1]))
    return Bbox.from_extents(x0 - by, y0 - by, x1 + by, y1 + by)


def _shared(a: Bbox, b: Bbox) -> float:
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else float(both.width * both.height)


def _outside(a: Bbox, frame: Bbox) -> float:
    return max(0.0, a.x1 - frame.x1) + max(0.0, frame.x0 - a.x0) + max(0.0, a.y1 - frame.y1)


def _canvas(axes: Axes) -> Canvas:
    canvas = axes.get_figure(root=True)
    assert canvas is not None
    return canvas


def _agg(canvas: Canvas) -> FigureCanvasAgg:
    agg = canvas.canvas
    assert isinstance(agg, FigureCanvasAgg)
    return agg
