"""The measures of a sweep: LDS by rung, what each step loses, and the eigenvalue step's part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from curvfluence.report.figure import Figure
from curvfluence.report.style import looks, series
from curvfluence.report.sweep.grid import Grid, Line, Results
from curvfluence.report.sweep.lines import over
from curvfluence.report.sweep.measure import Measure

OWN_LDS = "each study’s own 95% bootstrap interval"
OWN_STEP = "each study’s own paired 95% bootstrap interval"


def lds(grid: Grid) -> tuple[Figure, ...]:
    """LDS of the ladder over every axis."""
    names = ladder(grid)
    look = looks(names)
    lines = tuple(
        Line(name, look[name], _rung(name, "lds"), _rung(name, "interval")) for name in names
    )
    told = tuple(name for name in ("GGN", "EKFAC", "KFAC") if name in names) or tuple(names[:3])
    return _over_axes(grid, Measure("lds", "LDS", "LDS", OWN_LDS, lines, told, bounds=(None, 1.02)))


def lost(grid: Grid) -> tuple[Figure, ...]:
    """LDS lost at each step down the ladder, over every axis."""
    pairs = steps(grid)
    look = looks([to for _, to in pairs])
    lines = tuple(
        Line(f"{a} → {b}", look[b], _step(a, b, "lds_lost"), _step(a, b, "interval"))
        for a, b in pairs
    )
    told = tuple(line.label for line in lines if line.label.split(" → ")[0] in ("GGN", "EKFAC"))
    told = told or tuple(line.label for line in lines[:2])
    measure = Measure(
        "lost", "LDS lost at each step", "LDS lost", OWN_STEP, lines, told, signed=True, mark=0.0
    )
    return _over_axes(grid, measure) if lines else ()


def eigenvalue_step(grid: Grid) -> tuple[Figure, ...]:
    """The eigenvalue step's share of ‖GGN − KFAC‖², of plain norms, and the LDS it loses: a line
    for each Fisher type."""
    fishers = fisher_types(grid)
    if not fishers:
        return ()
    look = dict(zip(fishers, series(len(fishers)), strict=True))
    models = grid.cells[0][1]["truth"]["models"]
    own = f"lowest to highest of {models} influence models"

    def lines(key: str, bar: Callable[[Any], Sequence[float] | None]) -> tuple[Line, ...]:
        return tuple(
            Line(f, look[f], _last(f, lambda step: step.get(key)), _last(f, bar)) for f in fishers
        )

    shares = tuple(
        Measure(
            name, title, label, own, lines(key, _range(f"{key}_models")), fishers,
            percent=True, bounds=(0.0, 1.0), mark=0.5,
        )
        for name, title, label, key in (
            ("share", "Eigenvalue step’s share", "share of ‖GGN − KFAC‖²", "share"),
            ("norm-share", "Eigenvalue step’s share of norms", "share of norms", "norm_share"),
        )
    )  # fmt: skip
    loses = Measure(
        "eigenvalue-lost", "LDS lost at the eigenvalue step", "LDS lost", OWN_STEP,
        lines("lds_lost", lambda step: step.get("interval")), fishers, signed=True, mark=0.0,
    )  # fmt: skip
    by_measure = [_over_axes(grid, measure) for measure in (*shares, loses)]
    return tuple(figure for figures in zip(*by_measure, strict=False) for figure in figures)


def ladder(grid: Grid) -> list[str]:
    """The rungs of the protocol from the top down, without those of further Fisher types."""
    names = [rung["name"] for rung in grid.cells[0][1]["rungs"]]
    return [name for name in names if "[" not in name]


def steps(grid: Grid) -> list[tuple[str, str]]:
    """Neighbours of the ladder from the top down."""
    return [(step["from"], step["to"]) for step in grid.cells[0][1]["steps"]]


def fisher_types(grid: Grid) -> tuple[str, ...]:
    """The Fisher types under which the studies split ‖GGN − KFAC‖²."""
    parts: list[dict[str, Any]] = grid.cells[0][1].get("decompositions") or []
    return tuple(part["fisher"] for part in parts if eigenvalue(grid.cells[0][1], part["fisher"]))


def eigenvalue(results: Results, fisher: str) -> dict[str, Any] | None:
    """The step from EK-FAC to K-FAC of one Fisher type, where the study has its share."""
    for part in results.get("decompositions") or []:
        shared = [step for step in part["steps"] if step.get("share") is not None]
        if part["fisher"] == fisher and shared:
            return shared[-1]
    return None


def _over_axes(grid: Grid, measure: Measure) -> tuple[Figure, ...]:
    axes = tuple(grid.axes) or (None,)
    drawn = (over(grid, axis, measure) for axis in axes)
    return tuple(figure for figure in drawn if figure is not None)


def _rung(name: str, key: str) -> Callable[[Results], Any]:
    def find(results: Results) -> Any:
        return next((rung[key] for rung in results["rungs"] if rung["name"] == name), None)

    return find


def _step(above: str, below: str, key: str) -> Callable[[Results], Any]:
    def find(results: Results) -> Any:
        for step in results["steps"]:
            if (step["from"], step["to"]) == (above, below):
                return step[key]
        return None

    return find


def _last(fisher: str, pick: Callable[[Any], Any]) -> Callable[[Results], Any]:
    def find(results: Results) -> Any:
        step = eigenvalue(results, fisher)
        return None if step is None else pick(step)

    return find


def _range(key: str) -> Callable[[Any], Sequence[float] | None]:
    """From the lowest to the highest of the models."""

    def find(step: Any) -> Sequence[float] | None:
        values = step.get(key)
        return None if not values or len(values) < 2 else (min(values), max(values))

    return find
