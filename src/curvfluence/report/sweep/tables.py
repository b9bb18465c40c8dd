"""The tables of a sweep: LDS of every study and rung, and how often each step is resolved."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from curvfluence.report.sweep.figures import ladder, steps
from curvfluence.report.sweep.grid import Grid, Results, named, t_interval, worded
from curvfluence.report.table import Table
from curvfluence.study.words import NONE, number, short

BEST, TIED = "★", "≈"


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
    first = [rung["name"] for rung in grid.cells[0][1]["rungs"]]
    names = tuple(dict.fromkeys([*ladder(grid), *first]))
    every = [rung["lds"] for _, results in grid.cells for rung in results["rungs"]]
    low, high = min(every), max(every)
    rows: list[tuple[tuple[str, ...], tuple[Heat, ...]]] = []
    for cell, results in grid.cells:
        found = {rung["name"]: rung["lds"] for rung in results["rungs"]}
        best = max(found, key=lambda name: found[name])
        cells = tuple(
            Heat(NONE, 0.0)
            if name not in found
            else Heat(
                number(found[name]),
                (found[name] - low) / ((high - low) or 1.0),
                BEST if name == best else TIED if _tied(results, best, name) else "",
            )
            for name in names
        )
        rows.append((tuple(short(value) for value in cell.values()), cells))
    return HeatTable(tuple(map(worded, grid.given)), names, tuple(rows))


def _tied(results: Results, a: str, b: str) -> bool:
    """Whether the paired interval of two rungs holds 0."""
    for found in results.get("differences", []):
        if {found["a"], found["b"]} == {a, b}:
            return bool(found["interval"][0] <= 0 <= found["interval"][1])
    return False


@dataclass(frozen=True)
class Ordered:
    """How often the upper rung of a step is ahead: in studies by their own paired intervals, and
    in settings by a t-interval over seeds where there are two or more."""

    step: tuple[str, str]
    studies: int
    ahead: int
    resolved_ahead: int
    resolved_behind: int
    settings: int = 0
    seeds_ahead: int = 0
    seeds_resolved_ahead: int = 0
    seeds_resolved_behind: int = 0


def ordered(grid: Grid) -> tuple[Ordered, ...]:
    """One for each step down the ladder."""
    return tuple(_ordered(grid, pair) for pair in steps(grid))


def _ordered(grid: Grid, pair: tuple[str, str]) -> Ordered:
    own = [s for _, results in grid.cells if (s := _find(results, pair)) is not None]
    lost = [step["lds_lost"] for step in own]
    counts = Ordered(
        step=pair,
        studies=len(own),
        ahead=sum(value > 0 for value in lost),
        resolved_ahead=sum(step["interval"][0] > 0 for step in own),
        resolved_behind=sum(step["interval"][1] < 0 for step in own),
    )
    if grid.seeds < 2:
        return counts
    over = [
        [s["lds_lost"] for _, results in setting if (s := _find(results, pair)) is not None]
        for setting in grid.settings
    ]
    over = [values for values in over if len(values) > 1]
    intervals = [t_interval(values) for values in over]
    return Ordered(
        pair, counts.studies, counts.ahead, counts.resolved_ahead, counts.resolved_behind,
        settings=len(over),
        seeds_ahead=sum(fmean(values) > 0 for values in over),
        seeds_resolved_ahead=sum(low > 0 for low, _ in intervals),
        seeds_resolved_behind=sum(high < 0 for _, high in intervals),
    )  # fmt: skip


def _find(results: Results, pair: tuple[str, str]) -> dict[str, Any] | None:
    return next((s for s in results["steps"] if (s["from"], s["to"]) == pair), None)


def order_table(found: tuple[Ordered, ...], seeds: int) -> Table:
    """How the ladder's order holds, step by step."""
    columns = ["Step", "upper ahead", "resolved ahead", "resolved behind", "not resolved"]
    if seeds > 1:
        columns += ["mean ahead", "resolved ahead, seeds", "resolved behind, seeds"]
    rows = tuple(
        (
            " → ".join(one.step),
            f"{one.ahead} of {one.studies}",
            str(one.resolved_ahead),
            str(one.resolved_behind),
            str(one.studies - one.resolved_ahead - one.resolved_behind),
            *(
                (
                    f"{one.seeds_ahead} of {one.settings}",
                    str(one.seeds_resolved_ahead),
                    str(one.seeds_resolved_behind),
                )
                if seeds > 1
                else ()
            ),
        )
        for one in found
    )
    caption = "In how many studies the upper rung of a step has the higher LDS, by paired intervals"
    if seeds > 1:
        caption += f"; and in how many settings its mean over {seeds} seeds has, by t-intervals"
    return Table(caption, tuple(columns), rows, open=True)


def notes(grid: Grid) -> Table:
    """What the studies noted, of the truth and of each rung."""
    rows: list[tuple[str, str, str]] = []
    for cell, results in grid.cells:
        of = named(cell) or "the study"
        rows += [(of, "truth", note) for note in results["truth"].get("notes", [])]
        rows += [
            (of, r["full_name"], note) for r in results["rungs"] for note in r.get("notes", [])
        ]
    return Table("Notes of the studies", ("Study", "of", "note"), tuple(rows), text=(1, 2))
