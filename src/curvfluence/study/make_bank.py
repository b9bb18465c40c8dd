"""The retrainings of a study without its ladder: what anybody's scores can be judged on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from curvfluence.errors import InputError
from curvfluence.runtime.threads import limited
from curvfluence.store.lock import held
from curvfluence.study.asked import asked
from curvfluence.study.problems import StudyProblem, load
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.retrain import (
    Slice,
    draw_subsets,
    make_truth,
    retrain_slice,
    source_of,
    train_models,
)
from curvfluence.study.spec import StudySpec
from curvfluence.truth.bank import Bank


def make_bank(
    specs: Sequence[StudySpec],
    path: Path,
    *,
    problem: StudyProblem | None = None,
    threads: int | None = None,
    wait: bool = False,
    watch: Watcher = silent,
) -> Bank:
    """Train the influence models of `specs` and retrain on their subsets, into the bank at `path`;
    what it holds already is not trained again. The specs may differ in their subsets and seeds, not
    in the problem and its training.

    Errors: `InputError` before any work where they do, or where `path` holds anything else.
    """
    bank, problems = _bank_of(specs, path, problem)
    with held(path, wait=wait), limited(threads):
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
    bank, problems = _bank_of(specs, path, problem, shared=True)
    new = old = 0
    with limited(threads):
        bank.claim()
        for spec, at in zip(specs, problems, strict=True):
            if which.number == 1:
                train_models(spec, at, bank, watch)
            made, there = retrain_slice(spec, at, bank, watch, which)
            new, old = new + made, old + there
    return new, old


def _bank_of(
    specs: Sequence[StudySpec], path: Path, problem: StudyProblem | None, *, shared: bool = False
) -> tuple[Bank, list[StudyProblem]]:
    """The bank that all specs ask for, and the problem of each."""
    if not specs:
        raise InputError("a bank needs the spec of a study, one or more")
    loaded = load(specs[0].problem) if problem is None else problem
    problems = [asked(spec, loaded) for spec in specs]
    bank = Bank(path, source_of(problems[0], specs[0]), shared=shared)
    for spec, at in zip(specs, problems, strict=True):
        draw_subsets(spec, at)
        if source_of(at, spec).key != bank.source.key:
            raise InputError(
                f"one bank holds the retrainings of one recipe on one data set; {spec.problem} "
                f"with {spec.variant} is another than {specs[0].problem} with {specs[0].variant}"
            )
    bank.require_free()
    return bank, problems
