"""What decides a sign: EK-FAC less K-FAC at every value of every axis of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure as Canvas

from curvfluence.fidelity import Interval
from curvfluence.report.parts.axes import Point, Rows, beside, legend, legend_height
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.style import series
from curvfluence.report.parts.table import Table
from curvfluence.report.sweep.grid import Estimate, Grid, Line, estimate, worded
from curvfluence.study.protocols import EXACT_VALUES
from curvfluence.study.results import Results
from curvfluence.study.sweep import SweptStudy
from curvfluence.study.words import NONE, interval, number, setting


def effects(grid: Grid) -> Figure | None:
    """The mean of LDS(EK-FAC) − LDS(K-FAC) over all studies with one value of one axis, for the
    factors of each Fisher type, and over those whose λ was chosen inside the grid or at its end.

    None with fewer than two axes, of which there is nothing to say that the figures along them do
    not.
    """
    lines = _lines(grid)
    if len(grid.axes) < 2 or not lines:
        return None
    rows = [
        (f"{worded(axis)} {setting(value)}", [grid.at(axis, value)] * len(lines))
        for axis, values in grid.axes.items()
        for value in values
    ]
    rows += _by_edge(grid, lines)
    found = [
        [estimate(studies, line.line) for studies, line in zip(row, lines, strict=True)]
        for _, row in rows
    ]
    labels = [label for label, _ in rows]
    shifts = beside(len(lines))
    points = [
        [
            Point(one.value, one.bar, line.line.look, one.open, shift)
            for line, one, shift in zip(lines, row, shifts, strict=True)
            if one is not None
        ]
        for row in found
    ]
    plot = Rows(labels, points, "LDS of EK-FAC less that of K-FAC", lines=[(0.0, "")])

    def draw(canvas: Canvas) -> None:
        plot.fill(canvas.subplots())
        legend(canvas, [(line.line.label, line.line.look) for line in lines])

    seeds = grid.seeds
    bars = (
        f"95% t-intervals over {seeds} seeds" if seeds > 1 else "lowest to highest of the studies"
    )
    title = "What decides the sign of EK-FAC − K-FAC"
    return Figure(
        name="effects",
        title=title,
        reading=_reading(grid, lines[0].line),
        data=Table(
            title,
            ("Setting", *(line.line.label for line in lines)),
            tuple((label, *map(_text, row)) for label, row in zip(labels, found, strict=True)),
        ),
        draw=draw,
        height=0.5
        + (0.13 + 0.07 * len(lines)) * len(rows)
        + legend_height([x.line.label for x in lines]),
        marks=f"points: means over all other settings; bars: {bars}; hollow: the bar holds 0",
    )


@dataclass(frozen=True)
class _Pair:
    """LDS of the rung `above` less that of `below`, as a line of the figure."""

    line: Line
    above: str
    below: str

    def on_edge(self, results: Results) -> bool:
        """Whether the best λ of either lies at an end of the grid."""
        rungs = (results.rung(self.above), results.rung(self.below))
        return any(rung is not None and rung.damping_on_edge for rung in rungs)


def _by_edge(grid: Grid, lines: Sequence[_Pair]) -> list[tuple[str, list[tuple[SweptStudy, ...]]]]:
    """The studies by whether λ was chosen inside the grid: nobody's axis, but a reason all the
    same why one of two rungs may be ahead. None where all are alike."""
    sides = [
        (
            label,
            [tuple(s for s in grid.studies if pair.on_edge(s.results) is edge) for pair in lines],
        )
        for label, edge in (("best λ inside the grid", False), ("best λ at its end", True))
    ]
    return sides if all(any(row) for _, row in sides) else []


def _text(one: Estimate | None) -> str:
    if one is None:
        return NONE
    bar = "" if one.bar is None else f" ({interval(one.bar, signed=True)})"
    return f"{number(one.value, signed=True)}{bar}"


def _reading(grid: Grid, line: Line) -> str:
    """Which axis moves the difference most, and between what."""
    spans: list[tuple[float, str]] = []
    for axis, values in grid.axes.items():
        each = [(one.value, v) for v in values if (one := estimate(grid.at(axis, v), line))]
        if len(each) > 1:
            (low, at_low), (high, at_high) = min(each), max(each)
            text = (
                f"{worded(axis)}, from {number(low, signed=True)} at {setting(at_low)} to "
                f"{number(high, signed=True)} at {setting(at_high)}"
            )
            spans.append((high - low, text))
    return f"It moves most with {max(spans)[1]} ({line.label})." if spans else ""


def _lines(grid: Grid) -> tuple[_Pair, ...]:
    """The pair of each Fisher type: of exact factors, and of others with eigenvalues of their own
    and with exact ones."""
    names = {rung.name for rung in grid.first.rungs}
    fishers = dict.fromkeys(n.partition("[")[2].rstrip("]") for n in names if "KFAC[" in n)
    wanted = [("exact factors", "EKFAC", "KFAC")]
    for fisher in sorted(f for f in fishers if f):
        kfac = f"KFAC[{fisher}]"
        wanted.append((f"{fisher} factors", f"EKFAC[{fisher}]", kfac))
        wanted.append((f"{fisher} factors, exact eigenvalues", f"{EXACT_VALUES}[{fisher}]", kfac))
    known = [(label, a, b) for label, a, b in wanted if {a, b} <= names]
    look = series(len(known))
    return tuple(
        _Pair(Line(label, look[k], _gap(a, b), _bar(a, b)), a, b)
        for k, (label, a, b) in enumerate(known)
    )


def _gap(a: str, b: str) -> Callable[[Results], float | None]:
    def value(results: Results) -> float | None:
        pair = results.difference(a, b)
        return None if pair is None else pair.difference

    return value


def _bar(a: str, b: str) -> Callable[[Results], Interval | None]:
    def value(results: Results) -> Interval | None:
        pair = results.difference(a, b)
        return None if pair is None else pair.interval

    return value
