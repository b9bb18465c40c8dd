"""What a figure of a sweep shows: a number of each study, for each of its lines."""

from __future__ import annotations

from dataclasses import dataclass

from curvfluence.report.sweep.grid import Estimate, Line
from curvfluence.study.words import NONE, interval, number, percent


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

    def cell(self, found: Estimate | None) -> str:
        """A value with its bar, for a table."""
        if found is None:
            return NONE
        if found.bar is None:
            return self.text(found.value)
        bar = (
            " to ".join(map(percent, found.bar))
            if self.percent
            else interval(found.bar, signed=self.signed)
        )
        return f"{self.text(found.value)} ({bar})"
