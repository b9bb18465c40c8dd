"""How curves over an axis of a grid are drawn, with the bar of each point and the legend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from curvfluence.report.parts.axes import legend_columns
from curvfluence.report.parts.style import INK, MUTED
from curvfluence.report.sweep.grid import Estimate, Grid, Line, Panel, worded
from curvfluence.report.sweep.measure import Measure
from curvfluence.study.words import percent, short

Points = list[list[Estimate | None]]  # by line, then by value of the axis


def drawing(
    grid: Grid,
    axis: str,
    measure: Measure,
    panels: Sequence[Panel],
    found: Sequence[Points],
    frame: tuple[float, float],
) -> Callable[[Canvas], None]:
    labels = [short(value) for value in grid.axes[axis]]
    columns = min(2, len(panels))
    lines = ceil(len(panels) / columns)

    def draw(canvas: Canvas) -> None:
        every = canvas.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
        for k, axes in enumerate(every):
            if k >= len(panels):
                axes.set_axis_off()
                continue
            _panel(axes, measure, found[k], len(labels))
            if panels[k].title:
                axes.set_title(fill(panels[k].title, 30), fontsize=7, loc="left", pad=3)
            if k + columns >= len(panels):
                axes.set_xlabel(worded(axis))
                axes.tick_params(labelbottom=True)
            axes.set_xticks(range(len(labels)), labels)
            axes.set_xlim(-0.5, len(labels) - 0.5)
            axes.set_ylim(*frame)
            if k % columns == 0:
                axes.set_ylabel(measure.label)
            if measure.percent:
                axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        _legend(canvas, measure, grid.bars(axis, measure.own))

    return draw


def _panel(axes: Axes, measure: Measure, points: Points, count: int) -> None:
    lines = measure.lines
    gap = min(0.13, 0.72 / len(lines))
    axes.grid(visible=False, axis="x")
    if measure.mark is not None:
        axes.axhline(measure.mark, color=INK if not measure.mark else MUTED, lw=0.8, zorder=1)
    for between in range(1, count):
        axes.axvline(between - 0.5, color=MUTED, lw=0.4, ls=(0, (1, 3)), zorder=0)
    for k, (line, found) in enumerate(zip(lines, points, strict=True)):
        shift = (k - (len(lines) - 1) / 2) * gap
        at = [(x + shift, e) for x, e in enumerate(found) if e is not None]
        _line(axes, line, at, signed=measure.signed)


def _line(axes: Axes, line: Line, at: list[tuple[float, Estimate]], *, signed: bool) -> None:
    """One curve: its bars, the values of single seeds as dots, its points."""
    colour = line.look.colour
    axes.plot([x for x, _ in at], [e.value for _, e in at], color=colour, lw=0.7, zorder=2)
    bars = [(x, *e.bar) for x, e in at if e.bar is not None]
    axes.vlines(
        [x for x, _, _ in bars], [b for _, b, _ in bars], [t for _, _, t in bars],
        color=colour, lw=1.3, zorder=3,
    )  # fmt: skip
    dots = [(x, value) for x, e in at for value in e.seeds]
    axes.plot([x for x, _ in dots], [v for _, v in dots], "o", color=colour, ms=1.5, zorder=3)
    for hollow in (False, True):
        these = [(x, e.value) for x, e in at if (signed and e.open) == hollow]
        axes.plot(
            [x for x, _ in these],
            [value for _, value in these],
            line.look.marker,
            color="none" if hollow else colour,
            markeredgecolor=colour if hollow else INK,
            markeredgewidth=0.9 if hollow else 0.4,
            ms=3.6,
            zorder=4,
        )


def _percent(value: float, _: object) -> str:
    return percent(value)


def note(measure: Measure, bars: str, width: int = 62) -> str:
    """What points and bars are, for a margin of `width` characters."""
    hollow = "; hollow: the bar holds 0" if measure.signed else ""
    return fill(f"{bars}{hollow}", width)


def _legend(canvas: Canvas, measure: Measure, bars: str) -> None:
    """The lines, and what the bars are."""
    handles = [
        Line2D(
            [], [], color=line.look.colour, marker=line.look.marker, ms=4, mec=INK, mew=0.4,
            lw=1.2, label=line.label,
        )
        for line in measure.lines
    ]  # fmt: skip
    columns = legend_columns([line.label for line in measure.lines])
    canvas.legend(
        handles=handles,
        loc="outside lower left",
        ncols=min(columns, len(handles)),
        title=note(measure, bars),
        title_fontsize=6.5,
        alignment="left",
        handlelength=1.5,
        columnspacing=1.1,
        handletextpad=0.5,
    )


def height(panels: Sequence[Panel], measure: Measure) -> float:
    labels = [line.label for line in measure.lines]
    legend = 0.3 + 0.15 * ceil(len(labels) / legend_columns(labels)) + 0.12
    each = 2.0 if len(panels) < 3 else 1.35
    return 0.45 + legend + each * ceil(len(panels) / min(2, len(panels)))
