"""Drawing that several figures share: rows of intervals, markers, ticks of one form, legends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isclose, log10
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, LogLocator, NullLocator

from curvfluence.fidelity import Interval
from curvfluence.report.parts.style import INK, MUTED, Look
from curvfluence.study.words import clipped, raised, short

ROW = 20  # characters of a row's name before it breaks
_LONGEST = 44  # characters of a name in a legend


def named(label: str) -> str:
    """A row's name in at most three lines; the data of the figure has it whole."""
    return fill(clipped(label, 2 * ROW + 6), ROW)


@dataclass(frozen=True)
class Point:
    """A value with its interval on one row. A hollow point is one that is not resolved."""

    value: float
    interval: Interval | None
    look: Look
    hollow: bool = False
    shift: float = 0.0


def beside(count: int, widest: float = 0.24) -> list[float]:
    """How far from the middle of their row so many points stand, at most `widest` apart."""
    gap = min(widest, 0.7 / count)
    return [(k - (count - 1) / 2) * gap for k in range(count)]


@dataclass(frozen=True)
class Rows:
    """Rows from the top down, each with its points and their 95% intervals.

    `limits` are those of the scale, `lines` dashed vertical lines with what they are; `hollow` says
    what a filled and what a hollow point is.
    """

    labels: Sequence[str]
    points: Sequence[Sequence[Point]]
    scale: str
    limits: tuple[float, float] | None = None
    lines: Sequence[tuple[float, str]] = ()
    hollow: tuple[str, str] | None = None

    @property
    def height(self) -> float:
        """Inches that the rows need, with the axis and a legend below."""
        lines = max(named(label).count("\n") + 1 for label in self.labels)
        return 0.75 + len(self.labels) * max(0.26, 0.13 * lines + 0.04)

    def __call__(self, canvas: Canvas) -> None:
        self.fill(canvas.subplots())
        if self.hollow is not None:
            handles = [
                Line2D([], [], ls="", marker="o", ms=4.6, mfc=face, mec=INK, label=name)
                for face, name in zip((INK, "none"), self.hollow, strict=True)
            ]
            canvas.legend(handles=handles, loc="outside lower center", ncols=2, handletextpad=0.2)

    def fill(self, axes: Axes) -> None:
        """Draw into given axes, without a legend."""
        for row, these in enumerate(self.points):
            for point in these:
                y = row + point.shift
                if point.interval is not None:
                    axes.plot(point.interval, [y, y], color=point.look.colour, lw=1.6, zorder=3)
                mark(axes, point.value, y, point.look, hollow=point.hollow)
        axes.set_yticks(range(len(self.labels)), [named(label) for label in self.labels])
        axes.set_ylim(len(self.labels) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(self.scale)
        if self.limits is not None:
            axes.set_xlim(*self.limits)
        for x, text in self.lines:
            _reference(axes, x, text)


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


def _reference(axes: Axes, x: float, text: str) -> None:
    """A dashed vertical line named above the axes; one without a name is solid."""
    style = (0, (4, 2)) if text else "-"
    axes.axvline(x, color=MUTED if text else INK, lw=0.9, ls=style, zorder=1)
    axes.annotate(
        text, (x, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
        textcoords="offset points", ha="center", va="bottom", fontsize=6.5, color=MUTED,
    )  # fmt: skip


def log(axes: Axes, *which: str) -> None:
    """Logarithmic axes: ticks at powers of ten, at 1, 2 and 5 where they span no two decades."""
    for name in which:
        (axes.set_xscale if name == "x" else axes.set_yscale)("log")
        axis = axes.xaxis if name == "x" else axes.yaxis
        low, high = axis.get_data_interval()
        subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=6))
        axis.set_major_formatter(Ticks())
        axis.set_minor_locator(NullLocator())


class Ticks(Formatter):
    """All ticks of an axis in one form: decimals where each has a short one, else powers of ten."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return short(x)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        sizes = [abs(v) for v in values if v]
        powers = all(isclose(log10(v), round(log10(v)), abs_tol=1e-9) for v in sizes)
        if not powers or all(0.00099 < size < 99_999 for size in sizes):
            return [short(value) for value in values]
        return [_power(value) for value in values]


def _power(value: float) -> str:
    if not value:
        return "0"
    return f"{'−' if value < 0 else ''}10{raised(round(log10(abs(value))))}"


def legend(canvas: Canvas, entries: Sequence[tuple[str, Look]], title: str | None = None) -> None:
    """Markers in their colours, named below the axes in as many columns as the names leave."""
    handles = [
        Line2D(
            [], [], color=look.colour, marker=look.marker, ms=4.2, mec=INK, mew=0.45, lw=1.2,
            label=clipped(name, _LONGEST),
        )
        for name, look in entries
    ]  # fmt: skip
    canvas.legend(
        handles=handles,
        loc="outside lower left",
        ncols=min(_legend_columns([name for name, _ in entries]), len(handles)),
        title=title,
        title_fontsize=6.5,
        alignment="left",
        handlelength=1.5,
        columnspacing=1.1,
        handletextpad=0.5,
    )


def _legend_columns(labels: Sequence[str]) -> int:
    """How many labels stand side by side below 3.5 inches."""
    longest = max(len(clipped(label, _LONGEST)) for label in labels)
    return max(1, min(4, 60 // (longest + 6)))


def legend_height(labels: Sequence[str]) -> float:
    """Inches that a legend of these names needs."""
    return 0.15 * ceil(len(labels) / _legend_columns(labels)) + 0.1
