"""The cells of a grid, each with the study that it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import TypeAlias

from curvfluence.errors import InputError
from curvfluence.store.hashes import hash_json
from curvfluence.store.records import as_json
from curvfluence.study.asked import prepared
from curvfluence.study.problems import load
from curvfluence.study.spec import DTYPES, StudySpec
from curvfluence.study.variant import Value, Variant

STUDY_AXES = ("seed", "alpha")  # settings of a study that a grid may range over, beside Variant's
CELLS = "cells"
Cell: TypeAlias = dict[str, Value]  # the value of each axis


def grid(
    base: StudySpec, axes: Mapping[str, Sequence[Value]]
) -> tuple[tuple[Cell, StudySpec], ...]:
    """Every combination of the axes as (cell, spec). Fisher types and dampings are no axes: each
    study holds all of them, on one truth.

    Errors, before anything runs: `InputError` for an unknown or empty axis, or an impossible cell.
    """
    known = (*(field.name for field in fields(Variant)), *STUDY_AXES)
    for name, values in axes.items():
        if name not in known:
            raise InputError(f"there is no axis {name!r}; there are {', '.join(known)}")
        if not values or len(set(values)) < len(values):
            raise InputError(f"axis {name} needs different values; seen {list(values)}")
    problem = prepared(load(base.problem), base.plan, DTYPES[base.dtype])
    cells: list[tuple[Cell, StudySpec]] = []
    for values in product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        try:
            spec = at_cell(base, cell)
            spec.variant.apply(problem).recipe.build(0)
        except InputError as error:
            raise InputError(f"the grid has an impossible cell, {cell}: {error}") from None
        cells.append((cell, spec))
    return tuple(cells)


def at_cell(base: StudySpec, cell: Mapping[str, Value]) -> StudySpec:
    """The study with the cell's settings. Errors: `InputError` for values that make no study."""
    of_study = {name: cell[name] for name in STUDY_AXES if name in cell}
    changes = {name: value for name, value in cell.items() if name not in of_study}
    settings: dict[str, object] = {**of_study, "variant": replace(base.variant, **changes)}  # pyright: ignore[reportArgumentType]
    return replace(base, **settings)  # pyright: ignore[reportArgumentType]


def cell_folder(out: Path, spec: StudySpec) -> Path:
    """Where the study of a cell is kept: named by its settings."""
    return out / CELLS / hash_json(as_json(spec.settings))
