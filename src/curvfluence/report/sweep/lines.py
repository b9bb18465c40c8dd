"""Curves over one axis of a grid, in frames by the other axes, each point with its bar."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure as Canvas

from curvfluence.report.parts.axes import Point, rows, rows_height
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.style import INK, MUTED, slug
from curvfluence.report.parts.table import Table
from curvfluence.report.sweep.draw import Points, drawing, height, note
from curvfluence.report.sweep.grid import Estimate, Grid, Line, Panel, estimate, worded
from curvfluence.report.sweep.measure import Measure
from curvfluence.study.words import percent, short


def over(grid: Grid, axis: str | None, measure: Measure) -> Figure | None:
    """The figure of a measure over an axis; over rows where the grid has no axis but the seed.
    None where no study has the number."""
    if axis is None:
        return _in_rows(grid, measure)
    panels = grid.panels(axis)
    points = [_points(panel, measure.lines) for panel in panels]
    every = [e for panel in points for line in panel for e in line if e is not None]
    if not every:
        return None
    frame = _frame(every, measure)
    title = f"{measure.title} by {worded(axis)}"
    return Figure(
        name=f"{measure.name}-{slug(axis)}",
        title=title,
        reading=f"{_ends(grid, axis, measure)}{_left_out(every, frame)}",
        shape=(
            f"One curve for each of {len(measure.lines)} lines over {worded(axis)}, in "
            f"{len(panels)} frames; {grid.bars(axis, measure.own)}."
        ),
        data=Table(
            title,
            ("Setting", *(line.label for line in measure.lines)),
            tuple(
                (_setting(axis, at, panel), *(measure.cell(line[k]) for line in lines))
                for panel, lines in zip(panels, points, strict=True)
                for k, at in enumerate(grid.axes[axis])
            ),
        ),
        draw=drawing(grid, axis, measure, panels, points, frame),
        height=height(panels, measure),
    )


def _points(panel: Panel, lines: Sequence[Line]) -> Points:
    return [[estimate(group, line) for group in panel.groups] for line in lines]


def _setting(axis: str, value: float, panel: Panel) -> str:
    at = f"{worded(axis)} {short(value)}"
    return f"{at}, {panel.title}" if panel.title else at


def _ends(grid: Grid, axis: str, measure: Measure) -> str:
    """How the told lines go from the first value of the axis to the last."""
    first, last = grid.axes[axis][0], grid.axes[axis][-1]
    told: list[str] = []
    for line in measure.lines:
        a, b = (estimate(grid.at(axis, at), line) for at in (first, last))
        if line.label in measure.told and a is not None and b is not None:
            told.append(f"{line.label} from {measure.text(a.value)} to {measure.text(b.value)}")
    rest = ", mean over the rest" if grid.others(axis) else ""
    return f"From {worded(axis)} {short(first)} to {short(last)}{rest}: {'; '.join(told)}."


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
        low, margin_low = min(fixed_low, *values), 0.0
    else:
        margin_low = margin if low < 0 else 0.0
    high = max(fixed_high, *values) if fixed_high is not None else high + margin
    return low - margin_low, high


def _left_out(every: Sequence[Estimate], frame: tuple[float, float]) -> str:
    """Bars that go on beyond the frame, which the data has whole."""
    cut = sum(e.bar is not None and (e.bar.low < frame[0] or e.bar.high > frame[1]) for e in every)
    if not cut:
        return ""
    text = "1 bar goes" if cut == 1 else f"{cut} of {len(every)} bars go"
    return f" {text} on beyond the frame; the data below has them whole."


def _in_rows(grid: Grid, measure: Measure) -> Figure | None:
    """A row for each line, over all seeds."""
    estimates = ((line, estimate(grid.studies, line)) for line in measure.lines)
    shown = [(line, e) for line, e in estimates if e is not None]
    if not shown:
        return None
    frame = _frame([e for _, e in shown], measure)
    labels = [line.label for line, _ in shown]
    bars = grid.bars(None, measure.own)
    told = [f"{n.label} {measure.text(e.value)}" for n, e in shown if n.label in measure.told]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        points = [
            [Point(e.value, e.bar, line.look, hollow=measure.signed and e.open)]
            for line, e in shown
        ]
        rows(axes, labels, points)
        for row, (line, e) in enumerate(shown):
            for value in e.seeds:
                axes.plot([value], [row + 0.2], "o", color=line.look.colour, ms=1.8)
        if measure.mark is not None:
            axes.axvline(measure.mark, color=INK if not measure.mark else MUTED, lw=0.8, zorder=1)
        if measure.percent:
            axes.xaxis.set_major_formatter(lambda value, _: percent(value))
        axes.set_xlim(*frame)
        axes.set_xlabel(f"{measure.label}\n{note(measure, bars, 42)}")

    return Figure(
        name=measure.name,
        title=measure.title,
        reading="; ".join(told) + "." + _left_out([e for _, e in shown], frame),
        shape=f"A row for each line; {bars}.",
        data=Table(
            measure.title,
            ("", f"{measure.label} (bar)"),
            tuple((line.label, measure.cell(e)) for line, e in shown),
        ),
        draw=draw,
        height=rows_height(labels) + 0.2,
    )
