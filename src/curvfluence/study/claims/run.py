"""The command: run the studies of every problem and protocol, and fill the table of claims."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from msgspec.structs import replace

from curvfluence.errors import InputError
from curvfluence.store.folder import RESULTS, keeping, require_no_study
from curvfluence.store.lock import held
from curvfluence.store.records import write
from curvfluence.study.cells import run_cells
from curvfluence.study.claims.plan import PROTOCOL_NAMES, Plan, Settings, plan
from curvfluence.study.claims.rows import rows
from curvfluence.study.claims.table import TABLE, ClaimedStudy, Claims, ClaimsTable, ProblemClaims
from curvfluence.study.environment import environment
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.results import ClaimRow
from curvfluence.study.spec import StudySpec
from curvfluence.study.study import Study, read_study
from curvfluence.study.sweep import cell_folder


def run_claims(
    problems: Sequence[str],
    out: Path,
    settings: Settings | None = None,
    *,
    jobs: int | None = None,
    wait: bool = False,
    watch: Watcher = silent,
) -> Claims:
    """Study each problem under both protocols, with variants along each axis, and judge the claims.

    Studies run `jobs` at a time with one thread each, the dearest first; finished ones are read
    back. Writes `out/claims.json`; the base studies stand in `out/<problem>-<protocol>/`, with the
    problem's rows in their results, the variants in `out/cells/`.

    Errors: `InputError` before anything runs, where settings make no study or `out` holds others.
    """
    settings = Settings() if settings is None else settings
    if not problems or len(set(problems)) < len(problems):
        raise InputError(f"name each problem once; seen {', '.join(problems) or 'none'}")
    plans = tuple(plan(name, p, settings) for name in problems for p in PROTOCOL_NAMES)
    work = {spec: (cost, one) for one in plans for spec, cost in one.work.items()}
    order = sorted(work, key=lambda spec: -work[spec][0])
    places = {spec: study_folder(out, work[spec][1], spec) for spec in order}
    require_no_study(out)
    with held(out, wait=wait):
        run_cells(order, list(places.values()), jobs=jobs, watch=watch)

        @cache
        def study(spec: StudySpec) -> Study:
            return read_study(places[spec])

        tables: dict[str, list[ClaimRow]] = {}
        for one in plans:
            tables.setdefault(one.problem, []).extend(rows(one, study, settings.axes))
        for one in plans:
            _insert(study(one.base), tuple(tables[one.problem]))
        judged = {name: _problem(out, name, plans, rows_of) for name, rows_of in tables.items()}
        table = ClaimsTable(environment({}), settings, judged)
        done = Claims(table, out)
        with keeping(out, done):
            write(out / TABLE, table)
    return done


def _problem(
    out: Path, name: str, plans: Sequence[Plan], table: Sequence[ClaimRow]
) -> ProblemClaims:
    """The rows of a problem, and the studies that they rest on."""
    pairs = ((one, spec) for one in plans if one.problem == name for spec in one.work)
    return ProblemClaims(tuple(table), tuple(_claimed(out, one, spec) for one, spec in pairs))


def _claimed(out: Path, one: Plan, spec: StudySpec) -> ClaimedStudy:
    folder = study_folder(out, one, spec).relative_to(out)
    return ClaimedStudy(one.protocol, str(folder), spec.subsets, spec.variant.changes)


def study_folder(out: Path, one: Plan, spec: StudySpec) -> Path:
    """Where a study of a plan is kept: a base study by name, a variant by its settings."""
    return out / f"{one.problem}-{one.protocol}" if spec == one.base else cell_folder(out, spec)


def _insert(study: Study, claims: tuple[ClaimRow, ...]) -> None:
    """Put the rows into the results of a base study, whose page then is out of date."""
    if study.results.claims != claims:
        fresh = replace(study.results, claims=claims, report_seconds=None).sealed()
        write(study.path / RESULTS, fresh)
