"""A sweep: a grid of studies of one problem, in parallel processes, as one tidy table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from curvfluence._version import __version__
from curvfluence.errors import InputError
from curvfluence.store import folder as store
from curvfluence.study.cells import run_cells
from curvfluence.study.problems import load
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.run import prepared
from curvfluence.study.spec import DTYPES, StudySpec
from curvfluence.study.variant import Variant

STUDY_AXES = ("seed", "alpha")  # settings of a study that a grid may range over, beside Variant's
INDEX, CELLS = "sweep.json", "cells"
Cell = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """`cells` have the settings of each study on the grid and its results, in the grid's order."""

    cells: tuple[tuple[Cell, dict[str, Any]], ...]
    path: Path


def grid(base: StudySpec, axes: Mapping[str, Sequence[Any]]) -> tuple[tuple[Cell, StudySpec], ...]:
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
    found: list[tuple[Cell, StudySpec]] = []
    for values in product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        own = {name: cell[name] for name in STUDY_AXES if name in cell}
        changes = {name: value for name, value in cell.items() if name not in own}
        try:
            spec = replace(base, **own, variant=replace(base.variant, **changes))
            spec.variant.apply(problem).recipe.build(0)
        except InputError as error:
            raise InputError(f"the grid has an impossible cell, {cell}: {error}") from None
        found.append((cell, spec))
    return tuple(found)


def run_sweep(
    base: StudySpec,
    axes: Mapping[str, Sequence[Any]],
    out: Path,
    *,
    jobs: int | None = None,
    watch: Watcher = silent,
) -> Sweep:
    """Run every cell in `out/cells/`, `jobs` at a time with one thread each; cells that are
    finished already are read back, so an interrupted sweep goes on where it stopped. Cells that
    differ in alpha alone share their influence models and their ladder (`run_cells`).

    Writes `out/table.parquet` (a row for each cell and rung) and `out/steps.parquet` (a row for
    each cell, Fisher type and step of the decomposition), and last `out/sweep.json`, which lists
    the axes and the folder of each cell. Needs the extra `sweep` (pyarrow).
    """
    _require_pyarrow()
    cells = grid(base, axes)
    folders = [cell_folder(out, spec) for _, spec in cells]
    (out / INDEX).unlink(missing_ok=True)  # an earlier grid is not this one
    results = run_cells([spec for _, spec in cells], folders, jobs=jobs, watch=watch)
    sweep = Sweep(tuple((c, r) for (c, _), r in zip(cells, results, strict=True)), out)
    _write(rung_rows(sweep), out / "table.parquet")
    _write(step_rows(sweep), out / "steps.parquet")
    write_index(sweep, axes, [folder.name for folder in folders])
    return sweep


def write_index(sweep: Sweep, axes: Mapping[str, Sequence[Any]], names: Sequence[str]) -> None:
    """`sweep.json`: the axes, and the settings and folder of each cell; `names` are those of the
    folders in `cells/`. A folder without it holds an unfinished sweep."""
    cells = [
        {"settings": cell, "folder": f"{CELLS}/{name}"}
        for (cell, _), name in zip(sweep.cells, names, strict=True)
    ]
    listed = {name: list(values) for name, values in axes.items()}
    index = {"curvfluence": __version__, "axes": listed, "cells": cells}
    store.write_json(sweep.path / INDEX, index)


def cell_folder(out: Path, spec: StudySpec) -> Path:
    """Where the study of a cell is kept: named by its settings."""
    return out / CELLS / store.hash_json(spec.as_json())


def rung_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """A row for each cell, rung and hybrid."""
    rows: list[dict[str, Any]] = []
    for cell, results in sweep.cells:
        for kind in ("rungs", "hybrids"):
            for rung in results[kind]:
                low, high = rung["interval"]
                calibration = rung["calibration"] or {}
                rows.append(
                    {
                        **cell,
                        "rung": rung["name"],
                        "kind": kind.removesuffix("s"),
                        "fisher": rung["fisher"],
                        "lds": rung["lds"],
                        "lds_low": low,
                        "lds_high": high,
                        "lds_independent": rung["lds_independent"],
                        "lds_ensemble": rung["lds_ensemble"],
                        "damping_first": rung["dampings"][0],
                        "damping_second": rung["dampings"][1],
                        "damping_on_edge": rung["damping_on_edge"],
                        "slope": calibration.get("slope"),
                        "fit_seconds": rung["fit_seconds"],
                        "score_seconds": rung["score_seconds"],
                        "training_loss": _mean(results["truth"]["influence_model_loss"]),
                        "parameters": sum(line["count"] for line in rung["coverage"]),
                    }
                )
    return rows


def step_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """A row for each cell, Fisher type and step of its decomposition."""
    return [
        {
            **cell,
            "fisher": part["fisher"],
            "from": step["from"],
            "to": step["to"],
            "distance_squared": step["distance_squared"],
            "share": step["share"],
            "norm_share": step["norm_share"],
            "lds_lost": step["lds_lost"],
            "lds_lost_low": step["interval"][0],
            "lds_lost_high": step["interval"][1],
            "lds_share": step["lds_share"],
        }
        for cell, results in sweep.cells
        for part in results["decompositions"]
        for step in part["steps"]
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise InputError(
            "a sweep writes Parquet, which needs pyarrow: pip install 'curvfluence[sweep]'"
        ) from None


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
