"""What a sweep says, in sentences made from its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from curvfluence.report.sweep.figures import eigenvalue, fisher_types, ladder
from curvfluence.report.sweep.grid import Grid, Studied, t_factor, worded
from curvfluence.report.sweep.tables import Ordered
from curvfluence.study.words import listed, number, percent, short

ENOUGH = 5  # seeds or influence models below which an interval is said to be rough
SHOWN = 4  # values of an axis that a sentence lists; with more, the first and the last


@dataclass(frozen=True)
class Said:
    """The finding, the sentences below it, and what to keep in mind."""

    headline: str
    sentences: tuple[str, ...]
    cautions: tuple[str, ...]


def said(grid: Grid, order: tuple[Ordered, ...]) -> Said:
    """Everything counted from the studies of the grid."""
    sentences = (
        _majority(grid), _shares(grid), _loses(grid), _order(grid, order), _top(grid), _moves(grid)
    )  # fmt: skip
    return Said(_headline(grid), tuple(s for s in sentences if s), _cautions(grid))


def _headline(grid: Grid) -> str:
    parts = [
        f"{_between(_values(grid.cells, fisher, 'share'))} under {fisher}"
        for fisher in fisher_types(grid)
    ]
    if parts:
        return f"Of ‖GGN − KFAC‖² the eigenvalue step, EKFAC → KFAC, holds {listed(parts)}."
    names = ladder(grid)
    means = {name: fmean(_lds(grid.cells, name)) for name in names}
    best = max(names, key=lambda name: means[name])
    return f"{best} has the highest mean LDS over the grid: {number(means[best], 2)}."


def _values(cells: Sequence[Studied], fisher: str, key: str) -> list[Any]:
    found = (eigenvalue(results, fisher) for _, results in cells)
    return [s[key] for s in found if s is not None and s.get(key) is not None]


def _lds(cells: Sequence[Studied], name: str) -> list[float]:
    return [r["lds"] for _, results in cells for r in results["rungs"] if r["name"] == name]


def _between(values: Sequence[float]) -> str:
    low, high = percent(min(values)), percent(max(values))
    return low if low == high else f"{low} to {high}"


def _majority(grid: Grid) -> str:
    parts: list[str] = []
    for fisher in fisher_types(grid):
        shares, norms = (_values(grid.cells, fisher, key) for key in ("share", "norm_share"))
        text = f"in {sum(v > 0.5 for v in shares)} of {len(shares)} studies under {fisher}"
        parts.append(f"{text} ({sum(v > 0.5 for v in norms)} by plain norms)")
    return f"That eigenvalue step is the majority of the distance {listed(parts)}." if parts else ""


def _shares(grid: Grid) -> str:
    fishers = fisher_types(grid)
    if not fishers or not grid.axes:
        return ""
    axis, values = next(iter(grid.axes.items()))
    shown = values if len(values) <= SHOWN else [values[0], values[-1]]
    parts: list[str] = []
    for at in shown:
        cells = grid.at(axis, at)
        every = [f"{_between(_values(cells, f, 'share'))} under {f}" for f in fishers]
        parts.append(f"at {short(at)}, {listed(every)}")
    return f"Its share by {worded(axis)}: {'; '.join(parts)}."


def _loses(grid: Grid) -> str:
    parts: list[str] = []
    for fisher in fisher_types(grid):
        lost = _values(grid.cells, fisher, "lds_lost")
        bars = _values(grid.cells, fisher, "interval")
        if not lost:
            continue
        more, less = sum(bar[0] > 0 for bar in bars), sum(bar[1] < 0 for bar in bars)
        parts.append(
            f"{number(min(lost), signed=True)} to {number(max(lost), signed=True)} under {fisher} "
            f"(a resolved loss in {more} of {len(bars)} studies, a resolved gain in {less})"
        )
    return f"The LDS lost at that step is {listed(parts)}." if parts else ""


def _order(grid: Grid, order: tuple[Ordered, ...]) -> str:
    if not order:
        return ""
    total, ahead = sum(one.studies for one in order), sum(one.ahead for one in order)
    up = sum(one.resolved_ahead for one in order)
    down = sum(one.resolved_behind for one in order)
    text = (
        f"Down the ladder the upper rung has the higher LDS in {ahead} of {total} cases "
        f"({len(order)} steps in each study); by the paired interval of each study {up} are "
        f"resolved in its favour, {down} against it, and {total - up - down} not resolved"
    )
    if grid.seeds < 2:
        return text + "."
    cases = sum(one.settings for one in order)
    up = sum(one.seeds_resolved_ahead for one in order)
    down = sum(one.seeds_resolved_behind for one in order)
    return (
        f"{text}. Over {grid.seeds} seeds, of {cases} cases {up} are resolved in its favour, "
        f"{down} against it, {cases - up - down} not resolved."
    )


def _top(grid: Grid) -> str:
    tops = Counter(max(r["rungs"], key=lambda rung: rung["lds"])["name"] for _, r in grid.cells)
    parts = [f"{name} in {count}" for name, count in tops.most_common()]
    studies = "the one study" if len(grid.cells) == 1 else f"{len(grid.cells)} studies"
    return f"The highest LDS of {studies}: {listed(parts)}."


def _moves(grid: Grid) -> str:
    """What moves LDS: the rung, or the settings."""
    names = ladder(grid)
    means = {name: fmean(_lds(grid.cells, name)) for name in names}
    low, high = min(names, key=lambda n: means[n]), max(names, key=lambda n: means[n])
    text = (
        f"Averaged over the grid, LDS runs from {number(means[low], 2)} ({low}) to "
        f"{number(means[high], 2)} ({high})"
    )
    parts: list[str] = []
    for axis, values in grid.axes.items():
        by = [fmean(_lds(grid.at(axis, at), high)) for at in values]
        parts.append(
            f"{number(min(by), 2)} to {number(max(by), 2)} between values of {worded(axis)}"
        )
    return f"{text}; that of {high} from {listed(parts)}." if parts else f"{text}."


def _cautions(grid: Grid) -> tuple[str, ...]:
    found: list[str] = []
    if grid.seeds < 2:
        found.append(
            "One seed: each interval is one study’s own and says nothing of other seeds, which "
            "also draw other subsets. Give --seed several values."
        )
    elif grid.seeds < ENOUGH:
        found.append(
            f"{grid.seeds} seeds: a t-interval over them reaches {t_factor(grid.seeds):.1f} "
            f"standard errors to each side. Read it as rough; take {ENOUGH} seeds or more."
        )
    truth = grid.cells[0][1]["truth"]
    if truth["models"] < ENOUGH:
        found.append(
            f"{truth['models']} influence models a study: its own interval says little of how "
            "other models would do."
        )
    if truth["subsets"] < 30:
        found.append(f"{truth['subsets']} subsets a study: an LDS of so few ranks is rough.")
    found += [
        f"The figures over {worded(axis)} average over {grid.combinations(axis)} settings of "
        f"{listed([worded(name) for name in grid.others(axis)])}, too many for frames of their own."
        for axis in grid.axes
        if grid.averaged(axis)
    ]
    rungs = [rung for _, results in grid.cells for rung in results["rungs"]]
    edges = Counter(rung["name"] for rung in rungs if rung.get("damping_on_edge"))
    if edges:
        parts = [f"{name} in {count}" for name, count in edges.items()]
        found.append(
            f"The best damping lies on the edge of its grid for {listed(parts)} of "
            f"{len(grid.cells)} studies."
        )
    undefined = sum(rung.get("undefined", 0) for rung in rungs)
    if undefined:
        found.append(
            f"{undefined} pairs of model and query, over all studies and rungs, have constant "
            "predictions or truth and count as LDS 0."
        )
    return tuple(found)
