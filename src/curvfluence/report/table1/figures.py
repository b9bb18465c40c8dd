"""What the cells show: LDS by rung along each axis, what each step loses, errors of inverses."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from matplotlib.axes import Axes as Frame
from matplotlib.figure import Figure as Canvas

from curvfluence.fidelity import Interval
from curvfluence.report.parts.axes import Point, Rows, beside, legend, legend_height, log
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.style import INK, Look, looks, series
from curvfluence.report.parts.table import Table
from curvfluence.report.table1.cells import BELOW, CHAIN, LADDER, Axis, axes, middle, short_label
from curvfluence.study.claims.table1_run import CellResult, Table1
from curvfluence.study.words import NONE, interval, number, short

STEPS = (
    ("GGN ≫ block GGN", "GGN → block"),
    ("block GGN ≫ EK-FAC", "block → EK-FAC"),
    ("EK-FAC ≫ K-FAC", "EK-FAC → K-FAC"),
)
SAMPLED = (
    ("EK-FAC ≫ K-FAC", "exact factors"),
    ("EK-FAC ≫ K-FAC, 5-sample factors", "5 samples"),
    ("EK-FAC ≫ K-FAC, 1-sample factors", "1 sample"),
    ("EK-FAC ≫ K-FAC, empirical factors", "empirical"),
    ("EK-FAC ≫ K-FAC, 1-sample factors and exact eigenvalues", "1 sample, exact eigenvalues"),
)


def lds(table: Table1) -> Figure:
    """LDS by rung over training length, depth, width and the fraction kept."""
    frames = axes(table)
    names = [n for n in (*LADDER, *BELOW) if any(c.rung(n) for a in frames for c in a.cells)]
    look = looks(names)
    rows = tuple(
        (f"{axis.name} {value} ({axis.fixed})", *(_cell(cell, name) for name in names))
        for axis in frames
        for value, cell in zip(axis.values, axis.cells, strict=True)
    )

    def draw(canvas: Canvas) -> None:
        columns = 2
        grid = canvas.subplots(ceil(len(frames) / columns), columns, sharey=True, squeeze=False)
        for place, frame in enumerate(grid.flat):
            if place < len(frames):
                _frame(frame, frames[place], names, look)
            else:
                frame.set_axis_off()
        for row in grid:
            row[0].set_ylabel("LDS")
        legend(canvas, [(name, look[name]) for name in names])

    return Figure(
        name="lds",
        title="LDS by rung",
        reading="Each frame changes one thing and leaves the rest.",
        data=Table("LDS by rung", ("Cell", *names), rows),
        draw=draw,
        height=0.4 + 1.7 * ceil(len(frames) / 2) + legend_height(names),
        marks="bars: 95% crossed bootstrap intervals",
    )


def _cell(cell: CellResult, name: str) -> str:
    rung = cell.rung(name)
    return NONE if rung is None else f"{number(rung.lds)} ({interval(rung.interval)})"


def _frame(frame: Frame, axis: Axis, names: Sequence[str], look: dict[str, Look]) -> None:
    frame.grid(visible=False, axis="x")
    for name, shift in zip(names, beside(len(names)), strict=True):
        found = [(x + shift, cell.rung(name)) for x, cell in enumerate(axis.cells)]
        points = [(x, rung) for x, rung in found if rung is not None]
        colour = look[name].colour
        frame.plot([x for x, _ in points], [r.lds for _, r in points], color=colour, lw=0.5)
        lows, highs = [r.interval.low for _, r in points], [r.interval.high for _, r in points]
        frame.vlines([x for x, _ in points], lows, highs, color=colour, lw=0.9, zorder=3)
        frame.plot(
            [x for x, _ in points],
            [rung.lds for _, rung in points],
            look[name].marker,
            color=colour,
            markeredgecolor=INK,
            markeredgewidth=0.3,
            ms=2.8,
            zorder=4,
        )
    frame.set_xticks(range(len(axis.values)), axis.values)
    frame.tick_params(labelbottom=True)
    frame.set_xlabel(axis.name)
    frame.set_title(axis.fixed, fontsize=6.5, loc="left", pad=3)


def _rows(
    table: Table1, wanted: Sequence[tuple[str, str]], name: str, title: str, reading: str
) -> Figure:
    """The number of each wanted claim in every cell that keeps half, as rows of intervals."""
    shown = middle(table)
    look = series(len(wanted))
    shifts = beside(len(wanted))
    points: list[list[Point]] = []
    rows: list[tuple[str, ...]] = []
    for cell in shown:
        found = {row.claim: row for row in cell.claims}
        here: list[Point] = []
        texts: list[str] = []
        for k, (statement, _) in enumerate(wanted):
            row = found.get(statement)
            if row is None or row.measured is None or row.interval is None:
                texts.append(NONE)
                continue
            low, high = row.interval
            assert low is not None
            assert high is not None
            bar = Interval(low, high)
            here.append(Point(row.measured, bar, look[k], not bar.resolved, shifts[k]))
            texts.append(f"{number(row.measured, signed=True)} ({interval(bar, signed=True)})")
        points.append(here)
        rows.append((short_label(cell), *texts))
    labels = [label for _, label in wanted]
    plot = Rows([short_label(c) for c in shown], points, "LDS lost by the step", lines=[(0.0, "")])

    def draw(canvas: Canvas) -> None:
        plot.fill(canvas.subplots())
        legend(canvas, list(zip(labels, look, strict=True)))

    return Figure(
        name=name,
        title=title,
        reading=reading,
        data=Table(title, ("Cell", *labels), tuple(rows)),
        draw=draw,
        height=0.6 + (0.13 + 0.07 * len(wanted)) * len(shown) + legend_height(labels),
        marks="bars: paired 95% intervals; hollow: the bar holds 0",
    )


def steps(table: Table1) -> Figure:
    """What each step down the chain loses in each cell."""
    return _rows(
        table,
        STEPS,
        "steps",
        "LDS lost by each step",
        "Right of 0 the better curvature gives the better scores.",
    )


def sampled(table: Table1) -> Figure:
    """EK-FAC less K-FAC by how the factors are had."""
    return _rows(
        table,
        SAMPLED,
        "fisher",
        "EK-FAC less K-FAC, by Fisher type",
        "The same step on the same truth, with factors of another kind.",
    )


def errors(table: Table1) -> Figure | None:
    """The paper's error of the inverse, by rung and cell."""
    shown = [cell for cell in middle(table) if any(r.error_mean for r in cell.rungs)]
    names = [n for n in LADDER if any((r := c.rung(n)) and r.error_mean for c in shown)]
    if not shown or not names:
        return None
    look = looks(names)
    values = [[(r := cell.rung(n)) and r.error_mean for n in names] for cell in shown]
    medians = [[(r := cell.rung(n)) and r.error_median for n in names] for cell in shown]
    rows = tuple(
        (
            short_label(cell),
            *(
                NONE if m is None else f"{short(m)} ({NONE if d is None else short(d)})"
                for m, d in zip(mean, median, strict=True)
            ),
        )
        for cell, mean, median in zip(shown, values, medians, strict=True)
    )
    points = [
        [
            Point(v, None, look[n], shift=shift)
            for n, v, shift in zip(names, row, beside(len(names)), strict=True)
            if v
        ]
        for row in values
    ]
    plot = Rows([short_label(c) for c in shown], points, "mean of ‖H Ĥ⁺v − v‖²/‖v‖²")

    def draw(canvas: Canvas) -> None:
        frame = canvas.subplots()
        plot.fill(frame)
        log(frame, "x")
        legend(canvas, [(name, look[name]) for name in names])

    return Figure(
        name="errors",
        title="The paper’s error of the inverse (mean, and median in brackets)",
        reading=f"Rungs of the chain are {', '.join(CHAIN)}; 0 would invert H, 1 is no inverse.",
        data=Table("Error of the inverse", ("Cell", *names), rows),
        draw=draw,
        height=0.6 + 0.24 * len(shown) + legend_height(names),
    )
