"""The retrainings of a study without its ladder: what anybody's scores can be judged on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import joblib

from curvfluence.errors import CurvfluenceError, CurvfluenceWarning, InputError
from curvfluence.runtime.child import end_with_parent
from curvfluence.runtime.log import logger
from curvfluence.runtime.threads import limited
from curvfluence.store.hashes import hash_json
from curvfluence.store.lock import held
from curvfluence.store.records import as_json
from curvfluence.study.asked import asked
from curvfluence.study.engines import Engine, attempt, attempts
from curvfluence.study.problems import StudyProblem, load
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.retrain import (
    Slice,
    batches_of,
    draw_subsets,
    make_truth,
    models_of,
    retrain_slice,
    source_of,
    train_models,
)
from curvfluence.study.spec import StudySpec
from curvfluence.truth.bank import Bank, Batch

LOG = logger(__name__)
ROUNDS = 3  # in which nothing was made, until it is given up


def make_bank(
    specs: Sequence[StudySpec],
    path: Path,
    *,
    problem: StudyProblem | None = None,
    threads: int | None = None,
    wait: bool = False,
    engine: Engine | None = None,
    watch: Watcher = silent,
) -> Bank:
    """Train the influence models of `specs` and retrain on their subsets, into the bank at `path`;
    what it holds already is not trained again. Another `make_bank` of it is refused meanwhile, or
    with `wait` waited for; studies, slices and judgements may add to it. The specs may differ in
    their subsets and seeds, not in the problem and its training. With an `engine` its workers
    train, see `fill`.

    Errors: `InputError` before any work where they do, or where `path` holds anything else.
    """
    bank, problems = _bank_of(specs, path, problem)
    with held(path, wait=wait, alone=False), limited(threads):
        if engine is not None:
            fill(specs, path, engine, problem=problem, watch=watch)
        bank.claim()
        for spec, at in zip(specs, problems, strict=True):
            models = train_models(spec, at, bank, watch)
            make_truth(spec, at, models, bank, watch)
    return bank


def make_slice(
    specs: Sequence[StudySpec],
    path: Path,
    which: Slice,
    *,
    problem: StudyProblem | None = None,
    threads: int | None = None,
    watch: Watcher = silent,
) -> tuple[int, int]:
    """A part of the same: every count-th batch of retrainings; with the first slice the influence
    models too. Slices may be made at the same time, on any machines that share the folder, each
    again whenever it was lost; `make_bank` then finds all of it there. (How many were trained, how
    many were there.)

    Errors: as `make_bank`.
    """
    bank, problems = _bank_of(specs, path, problem)
    new = old = 0
    with limited(threads):
        bank.claim()
        for spec, at in zip(specs, problems, strict=True):
            if which.number == 1:
                train_models(spec, at, bank, watch)
            made, there = retrain_slice(spec, at, bank, watch, which)
            new, old = new + made, old + there
    return new, old


def fill(
    specs: Sequence[StudySpec],
    path: Path,
    engine: Engine,
    *,
    problem: StudyProblem | None = None,
    anew: bool = False,
    watch: Watcher = silent,
) -> None:
    """Everything that the bank at `path` lacks of these studies, by an engine's workers: one task
    for the influence models, one for each batch of retrainings (an initialisation, an order, fifty
    subsets), each with one thread.

    A task knows its study by name, makes what the bank has not, and keeps it: to do one twice does
    no harm, and one that is lost with its worker is given out again, until nothing is lacking. The
    numbers are those of one process, to the bit. Workers load `spec.problem` themselves. With
    `anew` what is there is made again.

    Errors: what a task runs into; `InputError` after three rounds in a row that made nothing.
    """
    bank, problems = _bank_of(specs, path, problem)
    bank.claim()
    with attempts(path) as counted:
        _fill(specs, problems, bank, engine, counted, anew=anew, watch=watch)


def _fill(
    specs: Sequence[StudySpec],
    problems: Sequence[StudyProblem],
    bank: Bank,
    engine: Engine,
    counted: Path,
    *,
    anew: bool,
    watch: Watcher,
) -> None:
    """`fill` while attempts at tasks are counted in a folder."""
    place = str(bank.path.resolve())
    sized = [(spec, batches_of(spec, at)) for spec, at in zip(specs, problems, strict=True)]
    tasks = [
        Task(_absolute(spec), place, part.batch, k, len(parts), len(part.runs), anew, counted)
        for spec, parts in sized
        for k, part in enumerate(parts)
        if anew or not bank.has(part.batch)
    ]
    models = [
        Task(_absolute(spec), place, batch, None, 0, spec.models, anew, counted)
        for spec, batch in zip(specs, map(models_of, specs, problems), strict=True)
        if anew or not bank.has(batch)
    ]
    left = [*models, *tasks]
    total, barren = sum(task.runs for task in left), 0
    with watch(f"train by {engine.name}", total) as done:
        while left:
            before = len(left)
            lost = _round(left, engine, lambda runs: done(total - runs))
            if not anew:  # what was made and not told of
                left = [task for task in left if not bank.has(task.batch)]
            if not left:
                return
            barren = barren + 1 if len(left) == before else 0
            LOG.warning("%s of %s tasks were lost (%s): given out again", len(left), before, lost)
            if barren == ROUNDS:
                raise InputError(
                    f"{engine.name} lost its workers {ROUNDS} times before any finished a batch "
                    f"({lost}): what is finished is kept, and the same command goes on; fewer "
                    "workers take less memory"
                ) from lost


@dataclass(frozen=True)
class Task:
    """A batch of so many `runs`: retrainings, by their place among a study's `count`, or with None
    the influence models."""

    spec: StudySpec
    bank: str
    batch: Batch
    place: int | None
    count: int
    runs: int
    anew: bool
    attempts: Path


def _round(left: list[Task], engine: Engine, told: Callable[[int], None]) -> Exception | None:
    """Give out the tasks and take those that are done off the list; what ended the round. `told`
    hears how many runs are left."""
    options: dict[str, Any] = {"batch_size": 1, "pre_dispatch": "all"}
    if engine.name != "ray":  # which gives all of them at the end
        options["return_as"] = "generator_unordered"
    try:
        with engine.running():
            work = joblib.Parallel(**options)(joblib.delayed(_done)(task) for task in tuple(left))
            for task in cast("Iterator[Task]", work):
                left.remove(task)
                told(sum(one.runs for one in left))
    except CurvfluenceError:
        raise
    except Exception as lost:  # an engine's own: each has its kinds
        return lost
    return None


def _done(task: Task) -> Task:
    """In a worker: make what a task is of, where the bank has it not."""
    end_with_parent()
    attempt(task.attempts, hash_json({"batch": as_json(task.batch)}))
    problem = _loaded(task.spec.problem)
    with warnings.catch_warnings(), limited(1):
        warnings.simplefilter("ignore", CurvfluenceWarning)  # who asked says them
        found, (at,) = _bank_of([task.spec], Path(task.bank), problem)
        bank = replace(found, anew=task.anew)
        if task.place is None:
            train_models(task.spec, at, bank, silent)
        else:
            which = Slice(task.place + 1, task.count)
            retrain_slice(task.spec, at, bank, silent, which)
    return task


@lru_cache(maxsize=2)
def _loaded(name: str) -> StudyProblem:
    """A worker's own, for all of its tasks."""
    return load(name)


def _absolute(spec: StudySpec) -> StudySpec:
    """A worker's folder may be another."""
    if not spec.problem.endswith(".py"):
        return spec
    return replace(spec, problem=str(Path(spec.problem).resolve()))


def _bank_of(
    specs: Sequence[StudySpec], path: Path, problem: StudyProblem | None
) -> tuple[Bank, list[StudyProblem]]:
    """The bank that all specs ask for, and the problem of each."""
    if not specs:
        raise InputError("a bank needs the spec of a study, one or more")
    loaded = load(specs[0].problem) if problem is None else problem
    problems = [asked(spec, loaded) for spec in specs]
    bank = Bank(path, source_of(problems[0], specs[0]))
    for spec, at in zip(specs, problems, strict=True):
        draw_subsets(spec, at)
        if source_of(at, spec).key != bank.source.key:
            raise InputError(
                f"one bank holds the retrainings of one recipe on one data set; {spec.problem} "
                f"with {spec.variant} is another than {specs[0].problem} with {specs[0].variant}"
            )
    bank.require_free()
    return bank, problems
