"""A sweep by its axes: which studies meet at a point of a figure, and what their bar is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from statistics import fmean

from curvfluence.fidelity import Interval
from curvfluence.report.parts.style import Look
from curvfluence.study.claims.estimate import TAIL, OverModels
from curvfluence.study.results import Results
from curvfluence.study.sweep import Cell, Sweep, SweptStudy
from curvfluence.study.variant import Value
from curvfluence.study.words import listed, setting

SEED = "seed"
FACETS = 6  # frames that one figure takes; with more, the other axes are averaged over

Axes = dict[str, list[Value]]


@dataclass(frozen=True)
class Line:
    """One curve: a number of a study, and the bar that a study on its own has for it."""

    label: str
    look: Look
    value: Callable[[Results], float | None]
    own: Callable[[Results], Interval | None]


@dataclass(frozen=True)
class Estimate:
    """The value of several studies with its bar; `seeds` holds the value of each seed where there
    are two or more."""

    value: float
    bar: Interval | None
    seeds: tuple[float, ...] = ()

    @property
    def open(self) -> bool:
        """Whether the bar holds 0."""
        return self.bar is not None and not self.bar.resolved


@dataclass(frozen=True, eq=False)
class Panel:
    """One frame of a figure: the studies at each value of its axis."""

    title: str
    groups: tuple[tuple[SweptStudy, ...], ...]


@dataclass(frozen=True, eq=False)
class Grid:
    """The studies of a sweep, and the axes on which they differ."""

    sweep: Sweep

    @property
    def studies(self) -> tuple[SweptStudy, ...]:
        return self.sweep.studies

    @property
    def results(self) -> tuple[Results, ...]:
        return tuple(study.results for study in self.studies)

    @property
    def first(self) -> Results:
        """The results whose rungs, steps and settings stand for all."""
        return self.studies[0].results

    @property
    def ladder(self) -> list[str]:
        """The rungs from the top down, without those of further Fisher types."""
        return [rung.name for rung in self.first.ladder]

    @property
    def fishers(self) -> tuple[str, ...]:
        """The Fisher types under which the studies split ‖GGN − KFAC‖²."""
        return tuple(part.fisher for part in self.first.decompositions if part.chain)

    @cached_property
    def given(self) -> Axes:
        """Every axis of the grid with its values, also those of one value."""
        names = list(self.studies[0].cell)
        return {name: sorted({study.cell[name] for study in self.studies}) for name in names}

    @cached_property
    def axes(self) -> Axes:
        """The axes to draw over: those of two values or more, without the seed, depth first."""
        names = [n for n, values in self.given.items() if len(values) > 1 and n != SEED]
        return {name: self.given[name] for name in sorted(names, key=lambda n: n != "depth")}

    @cached_property
    def seeds(self) -> int:
        """How many seeds each setting was studied with."""
        return len(self.given.get(SEED, [0]))

    @property
    def settings(self) -> tuple[tuple[SweptStudy, ...], ...]:
        """The studies that differ in their seed alone, together."""
        return tuple(
            self._where(dict(zip(self.axes, values, strict=True)))
            for values in product(*self.axes.values())
        )

    def others(self, axis: str) -> Axes:
        """The other axes to draw over."""
        return {name: values for name, values in self.axes.items() if name != axis}

    def combinations(self, axis: str) -> int:
        """How many combinations the other axes have."""
        return prod(len(values) for values in self.others(axis).values())

    def averaged(self, axis: str) -> bool:
        """Whether a figure over this axis averages over the others: they are too many to tell
        apart in frames of their own."""
        return self.combinations(axis) > FACETS

    def values(self, axis: str | None) -> list[Value | None]:
        """The values of an axis; of none, one that stands for all studies."""
        return [None] if axis is None else list(self.axes[axis])

    def panels(self, axis: str | None) -> tuple[Panel, ...]:
        """A frame for each combination of the other axes, or one over all of them."""
        if axis is None:
            return (Panel("", (self.studies,)),)
        others = {} if self.averaged(axis) else self.others(axis)
        cells = (dict(zip(others, values, strict=True)) for values in product(*others.values()))
        return tuple(
            Panel(named(fixed), tuple(self._where({**fixed, axis: at}) for at in self.axes[axis]))
            for fixed in cells
        )

    def at(self, axis: str, value: Value) -> tuple[SweptStudy, ...]:
        """Every study with that value of the axis."""
        return self._where({axis: value})

    def _where(self, fixed: Cell) -> tuple[SweptStudy, ...]:
        return tuple(s for s in self.studies if all(s.cell[k] == v for k, v in fixed.items()))

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


def estimate(studies: Sequence[SweptStudy], line: Line) -> Estimate | None:
    """The mean over the studies, and its bar; None where a study lacks the number.

    With two seeds or more: the mean of each seed's mean, and a t-interval over the seeds. One study
    alone: its own bar. Several studies of one seed: from the lowest to the highest of them.
    """
    by_seed: dict[Value | None, list[float]] = {}
    for study in studies:
        value = line.value(study.results)
        if value is None:
            return None
        by_seed.setdefault(study.cell.get(SEED), []).append(value)
    if not by_seed:
        return None
    seeds = [fmean(values) for values in by_seed.values()]
    if len(seeds) > 1:
        return Estimate(fmean(seeds), t_interval(seeds), tuple(seeds))
    if len(studies) == 1:
        return Estimate(seeds[0], line.own(studies[0].results))
    every = next(iter(by_seed.values()))
    return Estimate(seeds[0], Interval(min(every), max(every)))


def t_interval(values: Sequence[float]) -> Interval:
    """The 95% interval of the mean, mean ± t · s / √n with n − 1 degrees of freedom."""
    mean = OverModels(values)
    return Interval(mean.low(TAIL), mean.high(TAIL))


def worded(axis: str) -> str:
    return axis.replace("_", " ")


def named(cell: Cell) -> str:
    """depth 2, weight decay 0.003."""
    return ", ".join(f"{worded(name)} {setting(value)}" for name, value in cell.items())
