"""The command: run the studies of every problem and protocol, and fill the table of claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from curvfluence.errors import InputError
from curvfluence.report import write_report
from curvfluence.store import folder as store
from curvfluence.study.cells import run_cells
from curvfluence.study.claims.plan import PROTOCOL_NAMES, Plan, Settings, plan
from curvfluence.study.claims.rows import Row, rows
from curvfluence.study.environment import environment
from curvfluence.study.finished import Finished, read_study
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.spec import StudySpec
from curvfluence.study.sweep import cell_folder

TABLE = "claims.json"


@dataclass(frozen=True, eq=False)
class Claimed:
    """The rows of each problem, under both protocols, and what they rest on."""

    settings: Settings
    plans: tuple[Plan, ...]
    rows: Mapping[str, tuple[Row, ...]]
    environment: Mapping[str, Any]
    path: Path

    def as_json(self) -> dict[str, Any]:
        return {
            "environment": dict(self.environment),
            "settings": asdict(self.settings),
            "problems": {
                name: {
                    "claims": [row.as_json() for row in found],
                    "studies": [
                        {
                            "protocol": one.protocol,
                            "folder": str(folder(self.path, one, spec).relative_to(self.path)),
                            "subsets": spec.subsets,
                            "variant": spec.variant.as_json(),
                        }
                        for one in self.plans
                        if one.problem == name
                        for spec in one.work
                    ],
                }
                for name, found in self.rows.items()
            },
        }


def run_claims(
    problems: Sequence[str],
    out: Path,
    settings: Settings | None = None,
    *,
    jobs: int | None = None,
    watch: Watcher = silent,
) -> Claimed:
    """Study each problem under both protocols, with variants along each axis, and judge the claims.

    Studies run `jobs` at a time with one thread each, the dearest first; finished ones are read
    back. Writes `out/claims.json`; the base studies stand in `out/<problem>-<protocol>/`, with the
    problem's rows in their results and report, the variants in `out/cells/`.

    Errors: `InputError` before anything runs, where settings make no study or `out` holds others.
    """
    settings = Settings() if settings is None else settings
    if not problems or len(set(problems)) < len(problems):
        raise InputError(f"name each problem once; seen {', '.join(problems) or 'none'}")
    plans = tuple(plan(name, p, settings) for name in problems for p in PROTOCOL_NAMES)
    work = {spec: (cost, one) for one in plans for spec, cost in one.work.items()}
    order = sorted(work, key=lambda spec: -work[spec][0])
    places = {spec: folder(out, work[spec][1], spec) for spec in order}
    run_cells(order, list(places.values()), jobs=jobs, watch=watch)

    @cache
    def study(spec: StudySpec) -> Finished:
        return read_study(places[spec])

    found: dict[str, list[Row]] = {}
    for one in plans:
        found.setdefault(one.problem, []).extend(rows(one, study, settings.axes))
    with watch("write the reports", len(plans)) as done:
        for k, one in enumerate(plans):
            _insert(places[one.base], found[one.problem])
            done(k + 1)
    claimed = Claimed(
        settings, plans, {name: tuple(own) for name, own in found.items()}, environment({}), out
    )
    store.write_json(out / TABLE, claimed.as_json())
    return claimed


def folder(out: Path, one: Plan, spec: StudySpec) -> Path:
    """Where a study of a plan is kept: a base study by name, a variant by its settings."""
    return out / f"{one.problem}-{one.protocol}" if spec == one.base else cell_folder(out, spec)


def _insert(path: Path, found: Sequence[Row]) -> None:
    """Put the rows into the results of a base study, and write its report."""
    results = dict(read_study(path).results)
    claims = [row.as_json() for row in found]
    if results.get("claims") == claims and (path / "report.html").is_file():
        return
    store.write_json(path / store.RESULTS, {**results, "claims": claims})
    written = write_report(path)
    timed = {**results, "claims": claims, "report_seconds": written.seconds}
    store.write_json(path / store.RESULTS, timed)
