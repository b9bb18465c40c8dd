"""Studies side by side: LDS by rung, and the settings in which they differ."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure as Canvas
from rich.console import Console

from curvfluence.errors import InputError
from curvfluence.report.parts.axes import Point, Rows, beside, legend, legend_height
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.page import Page, Report, Section, Verdict, write_page
from curvfluence.report.parts.settings import differing
from curvfluence.report.parts.style import series
from curvfluence.report.parts.table import Table
from curvfluence.report.study.figures.ladder import LDS, lds_limits
from curvfluence.study.results import RungResult
from curvfluence.study.study import Study, read_study
from curvfluence.study.words import NONE, dampings, interval, number


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two studies or more, each with a label of its own."""

    studies: tuple[Study, ...]
    labels: tuple[str, ...]

    @property
    def rungs(self) -> list[tuple[str, list[RungResult | None]]]:
        """Every rung that any study has, from the top down, with what each study says of it."""
        by_name = [{r.full_name: r for r in study.results.rungs} for study in self.studies]
        names = dict.fromkeys(name for rungs in by_name for name in rungs)
        return [(name, [rungs.get(name) for rungs in by_name]) for name in names]

    @property
    def lds(self) -> Table:
        """LDS and interval of each rung, a column for each study."""
        best = (number(study.results.truth.best_lds.matched, 2) for study in self.studies)
        return Table(
            "LDS by rung, with 95% interval",
            ("Rung", *self.labels),
            (
                *((name, *map(_lds, rungs)) for name, rungs in self.rungs),
                ("best that noise allows", *best),
            ),
            open=True,
            words=self.labels,
        )

    @property
    def dampings(self) -> Table:
        """The damping that each rung was given."""
        lines = (
            (name, *(NONE if rung is None else dampings(rung.dampings) for rung in rungs))
            for name, rungs in self.rungs
        )
        return Table("The chosen λ", ("Rung", *self.labels), tuple(lines), True, self.labels)

    @property
    def settings(self) -> Table:
        """What the studies do not have in common."""
        return differing([study.results for study in self.studies], self.labels)

    @property
    def rest(self) -> tuple[Table, ...]:
        """The tables beside that of LDS."""
        return tuple(table for table in (self.settings, self.dampings) if table.rows)

    def show(self, console: Console) -> None:
        """The tables on a terminal."""
        for table in (self.lds, *self.rest):
            table.show(console)
            console.print()


def compare_studies(folders: Sequence[Path]) -> Comparison:
    """Read the studies in `folders`.

    Errors: `InputError` for fewer than two folders, the same folder twice, or a folder that holds
    no finished study of this version.
    """
    if len(folders) < 2:
        raise InputError(f"name two studies or more to compare; seen {len(folders)}")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("the same folder is named twice: name different studies")
    return Comparison(tuple(map(read_study, folders)), _labels(folders))


def write_comparison(comparison: Comparison, out: Path) -> Report:
    """One page like a report's. Errors: `InputError` where `out` is anybody else's file."""
    start = time.perf_counter()
    if out.suffix != ".html":
        raise InputError(f"--out names the page to write, which ends in .html; seen {out}")
    page = Page(
        template="page.html",
        title=f"{len(comparison.studies)} studies side by side",
        verdict=Verdict(_highest(comparison), _TERMS),
        picture=_figure(comparison),
        kind="Studies compared",
        subject=", ".join(comparison.labels),
        beside=(comparison.lds,),
        sections=(Section("settings", "Settings", _LEAD, tables=comparison.rest),),
    )
    return write_page(page, out, start=start)


_TERMS = (
    "LDS is the rank correlation, over random subsets of the training data, of the change that "
    "influence predicts and the change after real retraining: 1 is perfect, 0 is chance. A rung is "
    "one approximation of the curvature that influence needs; λ, its damping, is a constant added "
    "to it before it is inverted. Intervals belong to each study alone."
)
_LEAD = (
    "Studies with different data, networks or subsets have different truths: compare the order of "
    "the rungs, and each LDS with what noise allows there."
)


def _highest(comparison: Comparison) -> str:
    best = [study.results.best for study in comparison.studies]
    parts = (
        f"{rung.full_name} at {number(rung.lds, 2)} in {label}"
        for rung, label in zip(best, comparison.labels, strict=True)
    )
    return f"Highest LDS: {'; '.join(parts)}."


def _figure(comparison: Comparison) -> Figure:
    look, every = series(len(comparison.studies)), comparison.rungs
    count = len(look)
    shifts = beside(count)
    points = [
        [
            Point(rung.lds, rung.interval, look[k], shift=shifts[k])
            for k, rung in enumerate(rungs)
            if rung is not None
        ]
        for _, rungs in every
    ]
    shown = [rung for _, rungs in every for rung in rungs if rung is not None]
    plot = Rows([name for name, _ in every], points, LDS, lds_limits(shown))

    def draw(canvas: Canvas) -> None:
        plot(canvas)
        legend(canvas, list(zip(comparison.labels, look, strict=True)))

    reading = "One row for each rung, from the most exact curvature at the top down."
    height = 0.65 + (0.16 + 0.1 * count) * len(every) + legend_height(comparison.labels)
    return Figure("compare", "LDS by rung, side by side", reading, comparison.lds, draw, height)


def _labels(folders: Sequence[Path]) -> tuple[str, ...]:
    """The shortest ends of the paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(str(folder) for folder in folders)


def _lds(rung: RungResult | None) -> str:
    return NONE if rung is None else f"{number(rung.lds)} ({interval(rung.interval)})"
