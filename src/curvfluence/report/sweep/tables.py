"""The tables of a sweep: LDS of every study and rung, and how often each step is resolved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

from curvfluence.report.parts.table import Table, tabulate
from curvfluence.report.sweep.grid import Grid, named, t_interval, worded
from curvfluence.study.results import Results, Step
from curvfluence.study.sweep import Sweep
from curvfluence.study.words import NONE, number, percent, setting

BEST, TIED = "★", "≈"
_MAIN = ("GGN", "BlockGGN", "EKFAC", "KFAC")


def overview(sweep: Sweep) -> Table:
    """A row a study: LDS of the main rungs, and the eigenvalue step's share by Fisher type."""
    grid = Grid(sweep)
    parts = grid.first.decompositions
    rows: list[tuple[str, ...]] = []
    for study in sweep.studies:
        results = study.results
        lds = {rung.name: rung.lds for rung in results.rungs}
        steps = (results.eigenvalue_step(part.fisher) for part in parts)
        rows.append(
            (
                *map(setting, study.cell.values()),
                *(number(lds.get(name)) for name in _MAIN),
                *(NONE if step is None else percent(step.share) for step in steps),
            )
        )
    shares = (f"EK→K share, {part.fisher}" for part in parts)
    return Table("Studies", (*map(worded, grid.given), *_MAIN, *shares), tuple(rows))


@dataclass(frozen=True)
class Heat:
    """One LDS: as text, as a fraction of the table's range, and whether it is the row's highest
    (★) or not resolved from it (≈)."""

    text: str
    level: float
    mark: str = ""


@dataclass(frozen=True)
class HeatTable:
    """A row for each study: its settings, and its LDS on every rung."""

    axes: tuple[str, ...]
    rungs: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[Heat, ...]], ...]


def heat(grid: Grid) -> HeatTable:
    """LDS of every study and rung, sampled ones too, hybrids not."""
    names = tuple(dict.fromkeys([*grid.ladder, *(rung.name for rung in grid.first.rungs)]))
    every = [rung.lds for results in grid.results for rung in results.rungs]
    low, reach = min(every), (max(every) - min(every)) or 1.0

    def cell(results: Results, name: str) -> Heat:
        rung, best = results.rung(name), results.best
        if rung is None:
            return Heat(NONE, 0.0)
        gap = results.difference(best.name, name)
        tied = gap is not None and not gap.interval.resolved
        sign = BEST if rung is best else TIED if tied else ""
        return Heat(number(rung.lds), (rung.lds - low) / reach, sign)

    rows = tuple(
        (
            tuple(setting(value) for value in study.cell.values()),
            tuple(cell(study.results, name) for name in names),
        )
        for study in grid.studies
    )
    return HeatTable(tuple(map(worded, grid.given)), names, rows)


@dataclass(frozen=True)
class StepCount:
    """How often the upper rung of a step is ahead: in studies by their own paired intervals, and
    in settings by a t-interval over seeds where there are two or more."""

    step: Step
    studies: int
    ahead: int
    resolved_ahead: int
    resolved_behind: int
    settings: int = 0
    seeds_ahead: int = 0
    seeds_resolved_ahead: int = 0
    seeds_resolved_behind: int = 0

    @property
    def unresolved(self) -> int:
        return self.studies - self.resolved_ahead - self.resolved_behind


def step_counts(grid: Grid) -> tuple[StepCount, ...]:
    """One for each step down the ladder."""
    return tuple(_count(grid, step) for step in grid.first.steps)


def _count(grid: Grid, step: Step) -> StepCount:
    maybe = (results.step(*step.pair) for results in grid.results)
    steps = [one for one in maybe if one is not None]
    count = StepCount(
        step=step,
        studies=len(steps),
        ahead=sum(one.lds_lost > 0 for one in steps),
        resolved_ahead=sum(one.interval.low > 0 for one in steps),
        resolved_behind=sum(one.interval.high < 0 for one in steps),
    )
    if grid.seeds < 2:
        return count
    over = [
        [s.lds_lost for study in setting if (s := study.results.step(*step.pair)) is not None]
        for setting in grid.settings
    ]
    over = [values for values in over if len(values) > 1]
    intervals = [t_interval(values) for values in over]
    return replace(
        count,
        settings=len(over),
        seeds_ahead=sum(fmean(values) > 0 for values in over),
        seeds_resolved_ahead=sum(bar.low > 0 for bar in intervals),
        seeds_resolved_behind=sum(bar.high < 0 for bar in intervals),
    )


def step_count_table(counts: tuple[StepCount, ...], seeds: int) -> Table:
    """How the ladder's order holds, step by step."""
    columns: dict[str, Callable[[StepCount], str]] = {
        "Step": lambda c: c.step.name,
        "upper ahead": lambda c: f"{c.ahead} of {c.studies}",
        "resolved ahead": lambda c: str(c.resolved_ahead),
        "resolved behind": lambda c: str(c.resolved_behind),
        "not resolved": lambda c: str(c.unresolved),
    }
    caption = "In how many studies the upper rung of a step has the higher LDS, by paired intervals"
    if seeds > 1:
        columns |= {
            "mean ahead": lambda c: f"{c.seeds_ahead} of {c.settings}",
            "resolved ahead, seeds": lambda c: str(c.seeds_resolved_ahead),
            "resolved behind, seeds": lambda c: str(c.seeds_resolved_behind),
        }
        caption += f"; and in how many settings its mean over {seeds} seeds has, by t-intervals"
    return tabulate(caption, columns, counts, open=True)


def notes(grid: Grid) -> Table:
    """What the studies noted, of the truth and of each rung."""
    rows: list[tuple[str, str, str]] = []
    for study in grid.studies:
        of, results = named(study.cell) or "the study", study.results
        rows += [(of, "truth", note) for note in results.truth.notes]
        rows += [(of, rung.full_name, note) for rung in results.rungs for note in rung.notes]
    caption = f"Notes of the studies ({len(rows)})"
    return Table(caption, ("Study", "of", "note"), tuple(rows), words=("of", "note"))
