"""Every cell of a grid studied, and the tidy tables of what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from curvfluence._version import __version__
from curvfluence.errors import InputError
from curvfluence.store.files import replace_file
from curvfluence.store.folder import keeping, require_no_study
from curvfluence.store.hashes import hash_json
from curvfluence.store.lock import held
from curvfluence.store.records import write
from curvfluence.study.cells import run_cells
from curvfluence.study.engines import Engine
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.results import DecompositionStep, RungResult
from curvfluence.study.spec import StudySpec
from curvfluence.study.sweep.grid import CELLS, cell_folder, grid
from curvfluence.study.sweep.index import INDEX, IndexedCell, Sweep, SweepIndex, SweptStudy
from curvfluence.study.variant import Value

BANKS = "banks"  # retrainings, a bank for each training


def run_sweep(
    base: StudySpec,
    axes: Mapping[str, Sequence[Value]],
    out: Path,
    *,
    jobs: int | None = None,
    wait: bool = False,
    engine: Engine | None = None,
    watch: Watcher = silent,
) -> Sweep:
    """Run every cell in `out/cells/`, `jobs` at a time with one thread each; cells that are
    finished already are read back, so an interrupted sweep goes on where it stopped. Cells that
    differ in alpha alone share their influence models and their ladder (`run_cells`); retrainings
    are kept in `out/banks/`, which cells that train alike share.

    Writes `out/table.parquet` (a row for each cell and rung) and `out/steps.parquet` (a row for
    each cell, Fisher type and step of the decomposition), and last `out/sweep.json`, which lists
    the axes and the folder of each cell. Needs the extra `sweep` (pyarrow).
    """
    _require_pyarrow()
    cells = grid(base, axes)
    root = out if engine is None else out.resolve()  # workers may stand in other folders
    folders = [cell_folder(root, spec) for _, spec in cells]
    specs = [spec for _, spec in cells]
    banks = [root / BANKS / trained_as(spec) for spec in specs]
    require_no_study(out)
    with held(out, wait=wait):
        (out / INDEX).unlink(missing_ok=True)  # an earlier grid is not this one
        results = run_cells(specs, folders, jobs=jobs, banks=banks, engine=engine, watch=watch)
        studies = (SweptStudy(c, r) for (c, _), r in zip(cells, results, strict=True))
        sweep = Sweep(tuple(studies), out)
        with keeping(out, sweep):
            _write(rung_rows(sweep), out / "table.parquet")
            _write(step_rows(sweep), out / "steps.parquet")
            write(out / INDEX, index_of(sweep, axes, [folder.name for folder in folders]))
    return sweep


def trained_as(spec: StudySpec) -> str:
    """Names what the models of a study are: cells that differ in seeds, subsets or the inverse
    alone share their retrainings."""
    variant = {k: v for k, v in spec.variant.changes.items() if k != "decay_in_inverse"}
    return hash_json(
        {
            "variant": variant,
            "protocol": spec.protocol,
            "dtype": spec.dtype,
            "queries": spec.queries,
        }
    )


def index_of(sweep: Sweep, axes: Mapping[str, Sequence[Value]], names: Sequence[str]) -> SweepIndex:
    """`names` are those of the studies' folders in `cells/`."""
    return SweepIndex(
        __version__,
        {name: tuple(values) for name, values in axes.items()},
        tuple(
            IndexedCell(study.cell, f"{CELLS}/{name}", study.results.digest)
            for study, name in zip(sweep.studies, names, strict=True)
        ),
    )


def rung_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """A row for each cell, rung and hybrid."""
    return [
        {**study.cell, **_rung_row(rung, kind, fmean(study.results.truth.influence_model_loss))}
        for study in sweep.studies
        for kind, rungs in (("rung", study.results.rungs), ("hybrid", study.results.hybrids))
        for rung in rungs
    ]


def _rung_row(rung: RungResult, kind: str, training_loss: float) -> dict[str, Any]:
    return {
        "rung": rung.name,
        "kind": kind,
        "fisher": rung.fisher,
        "lds": rung.lds,
        "lds_low": rung.interval.low,
        "lds_high": rung.interval.high,
        "lds_independent": rung.lds_independent,
        "lds_ensemble": rung.lds_ensemble,
        "damping_first": rung.dampings[0],
        "damping_second": rung.dampings[1],
        "damping_on_edge": rung.damping_on_edge,
        "slope": None if rung.calibration is None else rung.calibration.slope,
        "fit_seconds": rung.fit_seconds,
        "score_seconds": rung.score_seconds,
        "training_loss": training_loss,
        "parameters": rung.parameters,
    }


def step_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """A row for each cell, Fisher type and step of its decomposition."""
    return [
        {**study.cell, "fisher": part.fisher, **_step_row(step)}
        for study in sweep.studies
        for part in study.results.decompositions
        for step in part.steps
    ]


def _step_row(step: DecompositionStep) -> dict[str, Any]:
    return {
        "from": step.above,
        "to": step.below,
        "distance_squared": step.distance_squared,
        "share": step.share,
        "norm_share": step.norm_share,
        "lds_lost": step.lds_lost,
        "lds_lost_low": step.interval.low,
        "lds_lost_high": step.interval.high,
        "lds_share": step.lds_share,
    }


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
    table = pa.Table.from_pylist(rows)
    replace_file(path, lambda file: pq.write_table(table, file))
