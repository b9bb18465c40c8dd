"""A sweep by its axes: which studies meet at a point of a figure, and what their bar is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod, sqrt
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from curvfluence.report.style import Look
from curvfluence.study.sweep import Cell, Sweep
from curvfluence.study.words import listed, short

SEED = "seed"
FACETS = 6  # frames that one figure takes; with more, the other axes are averaged over

Results = dict[str, Any]
Studied = tuple[Cell, Results]
Pair = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve: a number of a study, and the bar that a study on its own has for it."""

    label: str
    look: Look
    value: Callable[[Results], float | None]
    own: Callable[[Results], Sequence[float] | None]


@dataclass(frozen=True)
class Estimate:
    """The value of several studies with its bar; `seeds` holds the value of each seed where there
    are two or more."""

    value: float
    bar: Pair | None
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Panel:
    """One frame of a figure: the studies at each value of its axis."""

    title: str
    groups: tuple[tuple[Studied, ...], ...]


@dataclass(frozen=True, eq=False)
class Grid:
    """The studies of a sweep, and the axes on which they differ."""

    sweep: Sweep

    @property
    def cells(self) -> tuple[Studied, ...]:
        return self.sweep.cells

    @cached_property
    def given(self) -> dict[str, list[Any]]:
        """Every axis of the grid with its values, also those of one value."""
        names = list(self.cells[0][0])
        return {name: sorted({cell[name] for cell, _ in self.cells}) for name in names}

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """The axes to draw over: those of two values or more, without the seed, depth first."""
        names = [n for n, values in self.given.items() if len(values) > 1 and n != SEED]
        return {name: self.given[name] for name in sorted(names, key=lambda n: n != "depth")}

    @cached_property
    def seeds(self) -> int:
        """How many seeds each setting was studied with."""
        return len(self.given.get(SEED, [None]))

    @property
    def settings(self) -> tuple[tuple[Studied, ...], ...]:
        """The studies that differ in their seed alone, together."""
        return tuple(
            self._where(dict(zip(self.axes, values, strict=True)))
            for values in product(*self.axes.values())
        )

    def others(self, axis: str) -> dict[str, list[Any]]:
        """The other axes to draw over."""
        return {name: values for name, values in self.axes.items() if name != axis}

    def combinations(self, axis: str) -> int:
        """How many combinations the other axes have."""
        return prod(len(values) for values in self.others(axis).values())

    def averaged(self, axis: str) -> bool:
        """Whether a figure over this axis averages over the others: they are too many to tell
        apart in frames of their own."""
        return self.combinations(axis) > FACETS

    def panels(self, axis: str) -> tuple[Panel, ...]:
        """A frame for each combination of the other axes, or one over all of them."""
        others = {} if self.averaged(axis) else self.others(axis)
        found: list[Panel] = []
        for values in product(*others.values()):
            fixed = dict(zip(others, values, strict=True))
            groups = tuple(self._where({**fixed, axis: at}) for at in self.axes[axis])
            found.append(Panel(named(fixed), groups))
        return tuple(found)

    def at(self, axis: str, value: object) -> tuple[Studied, ...]:
        """Every study with that value of the axis."""
        return self._where({axis: value})

    def _where(self, fixed: dict[str, Any]) -> tuple[Studied, ...]:
        return tuple(c for c in self.cells if all(c[0][k] == v for k, v in fixed.items()))

    def bars(self, axis: str | None, own: str) -> str:
        """What the points and bars of a figure over `axis` are, in words; `own` is what a study
        has on its own."""
        many = axis is not None and self.averaged(axis)
        over = ""
        if many and axis is not None:
            names = listed([worded(name) for name in self.others(axis)])
            over = f"mean over {self.combinations(axis)} settings of {names}"
        if self.seeds > 1:
            text = f"95% t-interval over {self.seeds} seeds, small dots: each seed"
            return f"{over}; bars: {text}" if many else f"bars: {text}"
        return f"{over}; bars: their lowest to highest" if many else f"bars: {own}"


def estimate(cells: Sequence[Studied], line: Line) -> Estimate | None:
    """The mean over the studies, and its bar; None where a study lacks the number.

    With two seeds or more: the mean of each seed's mean, and a t-interval over the seeds. One study
    alone: its own bar. Several studies of one seed: from the lowest to the highest of them.
    """
    found: dict[Any, list[float]] = {}
    for cell, results in cells:
        value = line.value(results)
        if value is None:
            return None
        found.setdefault(cell.get(SEED), []).append(value)
    if not found:
        return None
    seeds = [fmean(values) for values in found.values()]
    value = fmean(seeds)
    if len(seeds) > 1:
        return Estimate(value, t_interval(seeds), tuple(seeds))
    if len(cells) == 1:
        own = line.own(cells[0][1])
        return Estimate(value, None if own is None else (own[0], own[1]))
    every = next(iter(found.values()))
    return Estimate(value, (min(every), max(every)))


def t_interval(values: Sequence[float], level: float = 0.95) -> Pair:
    """mean ± t · s / √n, with n − 1 degrees of freedom. Takes two values or more."""
    half = t_factor(len(values), level) * stdev(values) / sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def t_factor(count: int, level: float = 0.95) -> float:
    """How many standard errors a t-interval over `count` values reaches to each side."""
    return float(stats.t.ppf((1 + level) / 2, count - 1))


def worded(axis: str) -> str:
    return axis.replace("_", " ")


def named(cell: Cell) -> str:
    """depth 2, weight decay 0.003."""
    return ", ".join(f"{worded(name)} {short(value)}" for name, value in cell.items())
