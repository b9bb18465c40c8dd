"""The command: study every cell of the paper's own experiment, and judge its claims in each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import msgspec
from joblib import Parallel, delayed
from msgspec import Meta

from curvfluence.errors import InputError
from curvfluence.fidelity import Interval
from curvfluence.runtime.child import end_with_parent
from curvfluence.store.files import require_inside
from curvfluence.store.folder import keeping, require_no_study
from curvfluence.store.hashes import hash_code
from curvfluence.store.lock import held
from curvfluence.store.records import Record, read, write
from curvfluence.study.cells import processes, run_cells, workers
from curvfluence.study.claims.claim import OPEN
from curvfluence.study.claims.rows import claim_row
from curvfluence.study.claims.table1 import Cell, Part, cells
from curvfluence.study.claims.table1_claims import CellClaim, table1_claims
from curvfluence.study.environment import environment
from curvfluence.study.make_bank import make_bank
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.results import ClaimRow, Environment
from curvfluence.study.results.rung import Dampings
from curvfluence.study.results.settings import AtLeastOne, Count, Seconds
from curvfluence.study.spec import StudySpec
from curvfluence.study.study import Study, read_study

TABLE1 = "table1.json"
EXACT = "-first-model"  # what follows the folder of a cell in that of its first model alone


class CellRung(Record, frozen=True):
    """A rung in a cell: its LDS, and the paper's error of its inverse over training gradients, a
    mean over models of mean and of median, None where there is none. `models` counts the influence
    models of the LDS, `error_models` those of the errors."""

    name: str
    lds: float
    interval: Interval
    models: AtLeastOne
    dampings: Dampings
    on_edge: bool
    holes: Count
    error_mean: float | None = None
    error_median: float | None = None
    error_models: Count = 0


class CellResult(Record, frozen=True):
    """One cell: what was trained, how closely it was looked at, and what came out."""

    label: str
    depth: AtLeastOne
    width: AtLeastOne
    bias: bool
    epochs: AtLeastOne
    alpha: float
    parameters: AtLeastOne
    models: AtLeastOne
    subsets: AtLeastOne
    folder: str
    first_model: str | None
    bank: str
    training_loss: float
    retrained_loss: float
    best_lds: float | None
    rungs: Annotated[tuple[CellRung, ...], Meta(min_length=1)]
    claims: tuple[ClaimRow, ...]

    def __post_init__(self) -> None:
        for folder in (self.folder, self.first_model or self.folder, self.bank):
            require_inside(folder)

    def rung(self, name: str) -> CellRung | None:
        """The rung of that name."""
        return next((rung for rung in self.rungs if rung.name == name), None)


class PartAsked(Record, frozen=True):
    """Which cells a run was asked for: those of one depth, width and training length, each of any
    where None."""

    depth: AtLeastOne | None = None
    width: AtLeastOne | None = None
    epochs: AtLeastOne | None = None


class Table1(Record, frozen=True):
    """`table1.json`: its cells. `quick` marks a run whose verdicts are provisional; `parts` name
    the runs that it was put together from, none for a run of every cell."""

    version_at = ("environment", "curvfluence")
    remedy = "run the same claims again"

    environment: Environment
    problem: str
    quick: bool
    seed: Count
    seconds: Seconds  # of the command that wrote it, no killed one before it
    cells: Annotated[tuple[CellResult, ...], Meta(min_length=1)]
    parts: tuple[PartAsked, ...] = ()

    @property
    def statements(self) -> tuple[str, ...]:
        """The claims, in their order."""
        return tuple(dict.fromkeys(row.claim for cell in self.cells for row in cell.claims))


@dataclass(frozen=True)
class Table1Run:
    """The table and the folder that it is kept in."""

    table: Table1
    path: Path


def run_table1(
    problem: str,
    out: Path,
    *,
    quick: bool = False,
    seed: int = 0,
    part: Part | None = None,
    jobs: int | None = None,
    wait: bool = False,
    watch: Watcher = silent,
) -> Table1Run:
    """Retrain for every cell of protocol `table1`, climb its ladder, and judge each claim there;
    with `part`, for the cells of that part alone.

    First all retrainings, a bank for each training in `out/banks/`, then the studies in
    `out/cells/`, `jobs` at a time with one thread each. What is there already is read back: batches
    of retrainings by what they depend on, studies made by this very code. Writes
    `out/table1.json`.

    Errors: `InputError` before any work, for a problem that has no nets of a depth and a width, and
    for a part without a cell.
    """
    start = time.perf_counter()
    every = cells(problem, quick=quick, seed=seed, part=part)
    require_no_study(out)
    with held(out, wait=wait):
        found = _cells(every, out, jobs, watch)
        asks = part or Part()
        parts = (PartAsked(asks.depth, asks.width, asks.epochs),) if asks.given else ()
        seconds = time.perf_counter() - start
        code = environment({"code": hash_code()})
        table = Table1(code, problem, quick, seed, seconds, found, parts)
        done = Table1Run(table, out)
        with keeping(out, done):
            write(out / TABLE1, table)
    return done


def _cells(
    every: Sequence[Cell], out: Path, jobs: int | None, watch: Watcher
) -> tuple[CellResult, ...]:
    _retrain(every, out, jobs, watch)
    folders = {cell.spec: out / "cells" / cell.folder for cell in every}
    folders |= {c.exact: out / "cells" / f"{c.folder}{EXACT}" for c in every if c.exact}
    banks = {spec: out / str(c.bank) for c in every for spec in (c.spec, c.exact) if spec}
    size = {spec: c.parameters for c in every for spec in (c.spec, c.exact) if spec}
    order = sorted(folders, key=lambda spec: -(size[spec] ** 3) * spec.models)  # the dearest first
    run_cells(
        order, [folders[s] for s in order], jobs=jobs, banks=[banks[s] for s in order], watch=watch
    )
    return tuple(_result(cell, folders, out) for cell in every)


def read_table1(path: Path) -> Table1Run:
    """The table in a folder, or in a file that was copied from one. Errors: `InputError` where
    there is none, or where it does not fit."""
    file = path if path.suffix == ".json" else path / TABLE1
    table = read(file, Table1)
    if table is None:
        raise InputError(f"{path} holds no table of the paper's cells: there is no {file.name}")
    return Table1Run(table, file.parent)


def is_table1(path: Path) -> bool:
    """Whether that is a folder with a table of the paper's cells, or a file of one."""
    return path.suffix == ".json" or (path / TABLE1).is_file()


def joined(tables: Sequence[Table1]) -> Table1:
    """One table of parts that were run apart, its cells in the protocol's order. `seconds` are
    those of all runs; the environment is the first one's.

    Errors: `InputError` where they are of different problems, seeds, extents or versions, or where
    two hold the same cell.
    """
    first = tables[0]
    for other in tables[1:]:
        for what in ("problem", "quick", "seed"):
            if getattr(other, what) != getattr(first, what):
                seen = f"{getattr(first, what)!r} and {getattr(other, what)!r}"
                raise InputError(f"parts of one table agree in {what}; seen {seen}")
        if _made_by(other) != _made_by(first):
            seen = f"{_made_by(first)} and {_made_by(other)}"
            raise InputError(f"parts of one table are made by the same code; seen {seen}")
    every = [cell for table in tables for cell in table.cells]
    twice = [label for label, n in Counter(cell.label for cell in every).items() if n > 1]
    if twice:
        raise InputError(f"two parts hold the same cell: {twice[0]}")
    place = {c.label: k for k, c in enumerate(cells(first.problem, quick=first.quick))}
    every.sort(key=lambda cell: place.get(cell.label, len(place)))
    parts = () if len(every) >= len(place) else tuple(p for table in tables for p in table.parts)
    seconds = sum(table.seconds for table in tables)
    return msgspec.structs.replace(first, cells=tuple(every), parts=parts, seconds=seconds)


def _made_by(table: Table1) -> dict[str, str]:
    """All that changes numbers: versions, and the hash of the project's code."""
    by = table.environment
    versions = {"torch": by.torch, "numpy": by.numpy, "scipy": by.scipy}
    return {"curvfluence": by.curvfluence, **versions, **by.hashes}


def _retrain(every: Sequence[Cell], out: Path, jobs: int | None, watch: Watcher) -> None:
    """The banks of all trainings, in parallel processes with one thread each."""
    specs: dict[Path, list[StudySpec]] = {}
    for cell in every:
        asks = [cell.spec, *([cell.exact] if cell.exact else [])]
        specs.setdefault(out / str(cell.bank), []).extend(asks)
    tasks = (delayed(_bank)(one, path) for path, one in specs.items())
    with workers(), watch("retrainings", len(specs)) as done:
        made = Parallel(n_jobs=processes(jobs, len(specs)), return_as="generator")(tasks)
        for k, _ in enumerate(made):
            done(k + 1)


def _bank(specs: Sequence[StudySpec], path: Path) -> None:
    end_with_parent()
    make_bank(specs, path, threads=1)


def _result(cell: Cell, folders: dict[StudySpec, Path], out: Path) -> CellResult:
    study = read_study(folders[cell.spec])
    exact = study if cell.exact is None else read_study(folders[cell.exact])
    truth, net = study.results.truth, cell.net
    names = dict.fromkeys(r.name for s in (exact, study) for r in s.results.every_rung)
    return CellResult(
        label=cell.label,
        depth=net.depth,
        width=net.width,
        bias=net.bias,
        epochs=cell.epochs,
        alpha=cell.spec.alpha,
        parameters=cell.parameters,
        models=truth.models,
        subsets=truth.subsets,
        folder=str(study.path.relative_to(out)),
        first_model=None if cell.exact is None else str(exact.path.relative_to(out)),
        bank=str(cell.bank),
        training_loss=fmean(truth.influence_model_loss),
        retrained_loss=truth.retrained_loss,
        best_lds=truth.best_lds.independent,
        rungs=tuple(_rung(name, study, exact) for name in names),
        claims=tuple(_row(claim, exact if claim.exact else study) for claim in table1_claims()),
    )


def _rung(name: str, study: Study, exact: Study) -> CellRung:
    """Its LDS at all models where they have it, else at the first; its errors at those that do."""
    every, first = study.results.rung(name), exact.results.rung(name)
    rung = every or first
    assert rung is not None
    source = study if every is not None else exact
    inverse = None if first is None else first.inverse
    return CellRung(
        name=name,
        lds=rung.lds,
        interval=rung.interval,
        models=source.results.truth.models,
        dampings=rung.dampings,
        on_edge=rung.damping_on_edge,
        holes=len(rung.holes),
        error_mean=None if inverse is None else inverse.train.cut.mean_over_models,
        error_median=None if inverse is None else inverse.train.cut.median_over_models,
        error_models=0 if inverse is None else len(inverse.train.cut.mean),
    )


def _row(claim: CellClaim, study: Study) -> ClaimRow:
    """A claim of the cell; what it cannot be told from is its detail."""
    try:
        return claim_row(claim, study)
    except InputError as error:
        text = f"not measured: {error}"
        return ClaimRow(claim.text, study.results.protocol, None, None, OPEN, text)
