"""Curves over one axis of a grid, in frames by the other axes, each point with its bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from curvfluence.report.parts.axes import legend, legend_height
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.style import INK, MUTED, slug
from curvfluence.report.parts.table import Table
from curvfluence.report.sweep.grid import Estimate, Grid, Line, Panel, estimate, worded
from curvfluence.study.variant import Value
from curvfluence.study.words import NONE, interval, number, percent, setting

Estimates = Sequence[Sequence[Estimate | None]]  # by line, then by value of the axis


@dataclass(frozen=True, eq=False)
class Measure:
    """What a figure draws. `label` names the number, `own` the bar of a study on its own, `told`
    the lines that its sentence speaks of, `bounds` the ends of the scale where they are fixed,
    `mark` a value to draw a reference at."""

    name: str
    title: str
    label: str
    own: str
    lines: tuple[Line, ...]
    told: tuple[str, ...]
    percent: bool = False
    signed: bool = False
    bounds: tuple[float | None, float | None] = (None, None)
    mark: float | None = None

    def text(self, value: float) -> str:
        return percent(value) if self.percent else number(value, signed=self.signed)

    def cell(self, estimate: Estimate | None) -> str:
        """A value with its bar, for a table."""
        if estimate is None:
            return NONE
        if estimate.bar is None:
            return self.text(estimate.value)
        ends = " to ".join(map(percent, estimate.bar))
        bar = ends if self.percent else interval(estimate.bar, signed=self.signed)
        return f"{self.text(estimate.value)} ({bar})"


def over(grid: Grid, axis: str | None, measure: Measure) -> Figure | None:
    """The figure of a measure over an axis, or over none where the seeds alone differ. None where
    no study has the number."""
    panels, values = grid.panels(axis), grid.values(axis)
    shown = [[[estimate(g, line) for g in p.groups] for line in measure.lines] for p in panels]
    every = [e for panel in shown for line in panel for e in line if e is not None]
    if not every:
        return None
    frame = _frame(every, measure)
    columns = ("Setting", *(line.label for line in measure.lines))
    rows = (
        (_setting(axis, at, panel), *(measure.cell(line[k]) for line in lines))
        for panel, lines in zip(panels, shown, strict=True)
        for k, at in enumerate(values)
    )
    title = measure.title if axis is None else f"{measure.title} by {worded(axis)}"
    labels = ["" if at is None else setting(at) for at in values]
    drawing = Drawing(measure, panels, shown, frame, (axis or "", labels))
    bars = grid.bars(axis, measure.own)
    return Figure(
        name=measure.name if axis is None else f"{measure.name}-{slug(axis)}",
        title=title,
        reading=f"{_ends(grid, axis, measure)}{_left_out(every, frame)}",
        data=Table(title, columns, tuple(rows)),
        draw=lambda canvas: drawing(canvas, bars),
        height=_height(panels, measure),
        marks=bars,
    )


@dataclass(frozen=True, eq=False)
class Drawing:
    """Draws the frames of a measure: `estimates` of each panel, the scale, and the name of the axis
    with the labels of its values."""

    measure: Measure
    panels: Sequence[Panel]
    estimates: Sequence[Estimates]
    frame: tuple[float, float]
    axis: tuple[str, Sequence[str]]

    def __call__(self, canvas: Canvas, bars: str) -> None:
        count = len(self.panels)
        columns = min(2, count)
        shape = (ceil(count / columns), columns)
        frames = canvas.subplots(*shape, sharex=True, sharey=True, squeeze=False).flat
        for k, axes in enumerate(frames):
            if k >= count:
                axes.set_axis_off()
                continue
            _panel(axes, self.measure, self.panels[k], self.estimates[k], self.frame)
            axes.set_xticks(range(len(self.axis[1])), self.axis[1])
            if k + columns >= count:
                axes.set_xlabel(worded(self.axis[0]))
                axes.tick_params(labelbottom=True)
            if k % columns == 0:
                axes.set_ylabel(self.measure.label)
        hollow = "; hollow: the bar holds 0" if self.measure.signed else ""
        entries = [(line.label, line.look) for line in self.measure.lines]
        legend(canvas, entries, title=fill(f"{bars}{hollow}", 62))


def _setting(axis: str | None, value: Value | None, panel: Panel) -> str:
    at = "all studies" if axis is None else f"{worded(axis)} {setting(value)}"
    return f"{at}, {panel.title}" if panel.title else at


def _ends(grid: Grid, axis: str | None, measure: Measure) -> str:
    """How the told lines go from the first value of the axis to the last."""
    lines = [line for line in measure.lines if line.label in measure.told]
    told: list[str] = []
    if axis is None:
        means = ((line, estimate(grid.studies, line)) for line in lines)
        told = [f"{line.label} {measure.text(e.value)}" for line, e in means if e is not None]
        return f"{'; '.join(told)}."
    first, last = grid.axes[axis][0], grid.axes[axis][-1]
    for line in lines:
        a, b = (estimate(grid.at(axis, at), line) for at in (first, last))
        if a is not None and b is not None:
            told.append(f"{line.label} from {measure.text(a.value)} to {measure.text(b.value)}")
    rest = ", mean over the rest" if grid.others(axis) else ""
    return f"From {worded(axis)} {setting(first)} to {setting(last)}{rest}: {'; '.join(told)}."


def _frame(every: Sequence[Estimate], measure: Measure) -> tuple[float, float]:
    """The scale: all values, and of the bars no more than as much again to either side."""
    values = [v for e in every for v in (e.value, *e.seeds)]
    bars = [v for e in every for v in e.bar or ()]
    reach = max(max(values) - min(values), 0.02)
    low = max(min([*values, *bars]), min(values) - reach)
    high = min(max([*values, *bars]), max(values) + reach)
    low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.04 * (high - low)
    fixed_low, fixed_high = measure.bounds
    if fixed_low is not None:
        low = min(fixed_low, *values)
    elif low < 0:
        low -= margin
    return low, max(fixed_high, *values) if fixed_high is not None else high + margin


def _left_out(every: Sequence[Estimate], frame: tuple[float, float]) -> str:
    """Bars that go on beyond the frame, which the data has whole."""
    cut = sum(e.bar is not None and (e.bar.low < frame[0] or e.bar.high > frame[1]) for e in every)
    if not cut:
        return ""
    text = "1 bar goes" if cut == 1 else f"{cut} of {len(every)} bars go"
    return f" {text} on beyond the frame; the data below has them whole."


def _panel(
    axes: Axes, measure: Measure, panel: Panel, lines: Estimates, frame: tuple[float, float]
) -> None:
    count = len(panel.groups)
    gap = min(0.13, 0.72 / len(lines))
    axes.grid(visible=False, axis="x")
    if measure.mark is not None:
        axes.axhline(measure.mark, color=INK if not measure.mark else MUTED, lw=0.8, zorder=1)
    for between in range(1, count):
        axes.axvline(between - 0.5, color=MUTED, lw=0.4, ls=(0, (1, 3)), zorder=0)
    for k, (line, points) in enumerate(zip(measure.lines, lines, strict=True)):
        shift = (k - (len(lines) - 1) / 2) * gap
        at = [(x + shift, e) for x, e in enumerate(points) if e is not None]
        _line(axes, line, at, signed=measure.signed)
    if panel.title:
        axes.set_title(fill(panel.title, 30), fontsize=7, loc="left", pad=3)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(*frame)
    if measure.percent:
        axes.yaxis.set_major_formatter(lambda value, _: percent(value))


def _line(axes: Axes, line: Line, at: list[tuple[float, Estimate]], *, signed: bool) -> None:
    """One curve: its bars, the values of single seeds as dots, its points."""
    colour = line.look.colour
    axes.plot([x for x, _ in at], [e.value for _, e in at], color=colour, lw=0.7, zorder=2)
    bars = [(x, e.bar) for x, e in at if e.bar is not None]
    lows, highs = [bar.low for _, bar in bars], [bar.high for _, bar in bars]
    axes.vlines([x for x, _ in bars], lows, highs, color=colour, lw=1.3, zorder=3)
    seeds = [(x, value) for x, e in at for value in e.seeds]
    axes.plot([x for x, _ in seeds], [v for _, v in seeds], "o", color=colour, ms=1.5, zorder=3)
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


def _height(panels: Sequence[Panel], measure: Measure) -> float:
    below = 0.3 + legend_height([line.label for line in measure.lines])
    each = 2.0 if len(panels) < 3 else 1.35
    return 0.45 + below + each * ceil(len(panels) / min(2, len(panels)))
