"""The measures of a sweep: LDS by rung, what each step loses, and the eigenvalue step's part."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from curvfluence.fidelity import Interval
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.style import looks, series
from curvfluence.report.sweep.grid import Grid, Line
from curvfluence.report.sweep.lines import Measure, over
from curvfluence.study.results import DecompositionStep, Results, RungResult, Step

T = TypeVar("T")
OWN_LDS = "each study’s own 95% bootstrap interval"
OWN_STEP = "each study’s own paired 95% bootstrap interval"


def lds(grid: Grid) -> tuple[Figure, ...]:
    """LDS of the ladder over every axis."""
    names = grid.ladder
    look = looks(names)
    lines = tuple(
        Line(n, look[n], _rung(n, lambda rung: rung.lds), _rung(n, lambda rung: rung.interval))
        for n in names
    )
    told = tuple(name for name in ("GGN", "EKFAC", "KFAC") if name in names) or tuple(names[:3])
    return _over_axes(grid, Measure("lds", "LDS", "LDS", OWN_LDS, lines, told, bounds=(None, 1.02)))


def lost(grid: Grid) -> tuple[Figure, ...]:
    """LDS lost at each step down the ladder, over every axis."""
    steps = grid.first.steps
    look = looks([step.below for step in steps])
    lines = tuple(
        Line(
            step.name,
            look[step.below],
            _step(step.pair, lambda taken: taken.lds_lost),
            _step(step.pair, lambda taken: taken.interval),
        )
        for step in steps
    )
    told = tuple(step.name for step in steps if step.above in ("GGN", "EKFAC"))
    told = told or tuple(line.label for line in lines[:2])
    measure = Measure(
        "lost", "LDS lost at each step", "LDS lost", OWN_STEP, lines, told, signed=True, mark=0.0
    )
    return _over_axes(grid, measure) if lines else ()


def eigenvalue_step(grid: Grid) -> tuple[Figure, ...]:
    """The eigenvalue step's share of ‖GGN − KFAC‖², of plain norms, and the LDS it loses: a line
    for each Fisher type."""
    if not grid.fishers:
        return ()
    own = f"lowest to highest of {grid.first.truth.models} influence models"
    share = Measure(
        "share", "Eigenvalue step’s share", "share of ‖GGN − KFAC‖²", own,
        _lines(grid, lambda s: s.share, lambda s: _range(s.share_models)), grid.fishers,
        percent=True, bounds=(0.0, 1.0), mark=0.5,
    )  # fmt: skip
    norm_share = Measure(
        "norm-share", "Eigenvalue step’s share of norms", "share of norms", own,
        _lines(grid, lambda s: s.norm_share, lambda s: _range(s.norm_share_models)), grid.fishers,
        percent=True, bounds=(0.0, 1.0), mark=0.5,
    )  # fmt: skip
    loses = Measure(
        "eigenvalue-lost", "LDS lost at the eigenvalue step", "LDS lost", OWN_STEP,
        _lines(grid, lambda s: s.lds_lost, lambda s: s.interval), grid.fishers,
        signed=True, mark=0.0,
    )  # fmt: skip
    return _over_axes(grid, share, norm_share, loses)


def _over_axes(grid: Grid, *measures: Measure) -> tuple[Figure, ...]:
    axes = tuple(grid.axes) or (None,)
    drawn = (over(grid, axis, measure) for axis in axes for measure in measures)
    return tuple(figure for figure in drawn if figure is not None)


def _lines(
    grid: Grid,
    value: Callable[[DecompositionStep], float | None],
    own: Callable[[DecompositionStep], Interval | None],
) -> tuple[Line, ...]:
    """The eigenvalue step under each Fisher type."""
    look = dict(zip(grid.fishers, series(len(grid.fishers)), strict=True))

    def of(fisher: str, pick: Callable[[DecompositionStep], T]) -> Callable[[Results], T | None]:
        return lambda results: _maybe(results.eigenvalue_step(fisher), pick)

    return tuple(Line(f, look[f], of(f, value), of(f, own)) for f in grid.fishers)


def _rung(name: str, pick: Callable[[RungResult], T]) -> Callable[[Results], T | None]:
    return lambda results: _maybe(results.rung(name), pick)


def _step(pair: tuple[str, str], pick: Callable[[Step], T]) -> Callable[[Results], T | None]:
    return lambda results: _maybe(results.step(*pair), pick)


R = TypeVar("R")


def _maybe(record: R | None, pick: Callable[[R], T]) -> T | None:
    return None if record is None else pick(record)


def _range(values: tuple[float | None, ...] | None) -> Interval | None:
    """From the lowest to the highest of the models."""
    known = [value for value in values or () if value is not None]
    return None if len(known) < 2 else Interval(min(known), max(known))
