"""Many studies in parallel processes, sharing what they have in common."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from curvfluence import kinds
from curvfluence.errors import CurvfluenceWarning, InputError
from curvfluence.runtime.child import end_with_parent
from curvfluence.study.engines import Engine, attempt, attempts
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.results import Results
from curvfluence.study.run import run_together
from curvfluence.study.spec import StudySpec


@dataclass(frozen=True)
class _Batch:
    """Studies that one process does together."""

    specs: tuple[StudySpec, ...]
    folders: tuple[Path, ...]
    bank: Path | None
    attempts: Path | None = None


def run_cells(
    specs: Sequence[StudySpec],
    folders: Sequence[Path],
    *,
    jobs: int | None = None,
    banks: Sequence[Path] | None = None,
    engine: Engine | None = None,
    watch: Watcher = silent,
) -> list[Results]:
    """The results of every study, `jobs` at a time (as many as cores) with one thread each.

    Studies that differ in alpha alone share their influence models and their ladder, as far as
    that leaves no process idle. What a folder holds already is read back, so an interrupted run
    goes on where it stopped. An `engine` says where they run, by default in processes of this
    machine. Retrainings are kept with each study, or in `banks`, one for each
    spec; studies that differ in alpha alone share one. The numbers are those of each study by
    itself.
    """
    jobs = processes(jobs, len(specs))
    work = batches(specs, jobs)
    results: dict[int, Results] = {}
    with ExitStack() as stack:
        stack.enter_context(workers())
        options: dict[str, Any] = {"n_jobs": jobs, "return_as": "generator"}
        counted = None
        if engine is not None:
            options = {} if engine.name == "ray" else {"return_as": "generator"}
            folders[0].parent.mkdir(parents=True, exist_ok=True)
            counted = stack.enter_context(attempts(folders[0].parent))
            stack.enter_context(engine.running())
        tasks = (
            delayed(_run)(
                _Batch(
                    tuple(specs[i] for i in k),
                    tuple(folders[i] for i in k),
                    None if banks is None else banks[k[0]],
                    counted,
                )
            )
            for k in work
        )
        done = stack.enter_context(watch("studies", len(specs)))
        parts = Parallel(**options)(tasks)
        for places, batch in zip(work, cast("Iterator[list[Results]]", parts), strict=True):
            results.update(zip(places, batch, strict=True))
            done(len(results))
    return [results[k] for k in range(len(specs))]


@contextmanager
def workers() -> Generator[None]:
    """Say of a worker process that was ended what it means. Errors: `InputError`."""
    try:
        yield
    except TerminatedWorkerError as error:
        raise InputError(
            "a worker process was ended, by the system for want of memory or by somebody: what is "
            "finished is kept, and the same command goes on; --jobs 1 takes the least memory"
        ) from error


def processes(jobs: int | None, tasks: int) -> int:
    """How many processes do so many tasks: `jobs`, by default as many as cores."""
    if jobs is not None:
        kinds.count(jobs, "jobs")
    return min(jobs or os.cpu_count() or 1, tasks)


def batches(specs: Sequence[StudySpec], jobs: int) -> list[tuple[int, ...]]:
    """Which studies go together: places of specs that differ in alpha alone, in parts where there
    would be fewer batches than processes."""
    alike: dict[StudySpec, list[int]] = {}
    for place, spec in enumerate(specs):
        alike.setdefault(replace(spec, alpha=0.5), []).append(place)
    parts = -(-jobs // len(alike))
    return [
        tuple(places[start::parts])
        for places in alike.values()
        for start in range(min(parts, len(places)))
    ]


def _run(batch: _Batch) -> list[Results]:
    end_with_parent()
    if batch.attempts is not None:
        attempt(batch.attempts, batch.folders[0].name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvfluenceWarning)  # results name all of them
        studies = run_together(batch.specs, batch.folders, threads=1, bank=batch.bank)
        return [study.results for study in studies]
