"""A problem and what retraining its model without random halves of the data gave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.fidelity import SubsetTruth
from curvfluence.problem.problem import Problem
from curvfluence.runtime.threads import limited
from curvfluence.study.asked import asked
from curvfluence.study.climb import influence_problems
from curvfluence.study.make_bank import make_bank
from curvfluence.study.problems import StudyProblem
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.retrain import make_truth, train_models
from curvfluence.study.spec import StudySpec


@dataclass(frozen=True, eq=False)
class Retrained:
    """The problem at the influence model, and the truth of its initialisation."""

    problem: Problem
    truth: SubsetTruth
    notes: tuple[str, ...]  # of the truth


def retrained(
    study: StudyProblem,
    subsets: int,
    folder: Path,
    *,
    seed: int = 0,
    threads: int | None = None,
    wait: bool = False,
    watch: Watcher = silent,
) -> Retrained:
    """Train one influence model of a study and retrain it on `subsets` random halves of its data,
    into the bank in `folder`, from which it is read where it was done before. With `wait` another
    command that fills it is waited for. Errors: `InputError` for fewer than 3 subsets."""
    if kinds.count(subsets, "retrain") < 3:
        raise InputError(f"ranking needs 3 retrainings or more; seen {subsets}")
    spec = StudySpec(study.name, subsets, seed=seed, models=1, orders=1)
    bank = make_bank([spec], folder, problem=study, threads=threads, wait=wait, watch=watch)
    ready = asked(spec, study)
    with limited(threads):
        models = train_models(spec, ready, bank, watch)
        truth = make_truth(spec, ready, models, bank, watch)
    (problem,) = influence_problems(ready, models.trained)
    judge = SubsetTruth(truth.subsets.left_out, truth.values[0].mean(0), seed)
    return Retrained(problem, judge, truth.notes)
