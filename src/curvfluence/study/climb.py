"""Every rung of the ladder on every influence model, over the whole damping grid."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from curvfluence.curvature import Covered, fit
from curvfluence.damping import Absolute, Damping
from curvfluence.fidelity import Sweep
from curvfluence.gradients import query_gradients, training_gradients
from curvfluence.layers import coverage
from curvfluence.problem import Problem
from curvfluence.study.memory import peak_memory
from curvfluence.study.problems import StudyProblem
from curvfluence.study.progress import Watcher
from curvfluence.study.retrain import Truth
from curvfluence.study.spec import LADDER, StudySpec


@dataclass(frozen=True, eq=False)
class Climbed:
    """One rung on all J models. `scores` [J, D, Q, N] are influences at every damping of `sweep`,
    whose predictions are their sums over what each subset leaves out.

    Seconds are medians over the models, each for one model and one damping; `peak_bytes` is the
    largest resident increase during fit and scores (None where the system cannot tell).
    """

    name: str
    full_name: str
    fisher: str | None
    scores: Tensor
    sweep: Sweep
    coverage: tuple[Covered, ...]
    notes: tuple[str, ...]
    fit_seconds: float
    score_seconds: float
    peak_bytes: int | None


def climb(
    spec: StudySpec, problem: StudyProblem, truth: Truth, watch: Watcher
) -> tuple[Climbed, ...]:
    """Fit and score each rung of `spec.ladder` at the checkpoints of `truth.models`."""
    problems = influence_problems(problem, truth)
    _warm_up(problems[0])
    climbed: list[Climbed] = []
    with watch("climb the ladder", len(spec.ladder) * len(problems)) as done:
        for name in spec.ladder:
            parts: list[_Part] = []
            for at in problems:
                parts.append(_one(name, at, spec.dampings))
                done(len(climbed) * len(problems) + len(parts))
            climbed.append(_gather(name, spec, parts, truth))
    return tuple(climbed)


def influence_problems(problem: StudyProblem, truth: Truth) -> list[Problem]:
    """The study's problem at each influence model's checkpoint."""
    recipe = problem.recipe
    model = recipe.build(truth.models.runs[0].init_seed, problem.train.inputs.dtype).eval()
    return [
        Problem(
            model,
            recipe.loss,
            problem.train,
            problem.queries,
            measurement=problem.measurement,
            weight_decay=recipe.weight_decay,
            decoupled_decay=recipe.optimizer.decoupled,
            weights=truth.models.weights(j),
        )
        for j in range(len(truth.models))
    ]


def _warm_up(problem: Problem) -> None:
    """Load the linear algebra libraries once, so that no rung's seconds hold it."""
    few = Problem(
        problem.model,
        problem.loss,
        problem.train[slice(0, 64)],
        problem.queries[slice(0, 8)],
        weights=problem.theta,
    )
    fit(few, LADDER["EKFAC"]()).solve(torch.zeros_like(few.decay)[None], Absolute(1.0))


@dataclass(frozen=True, eq=False)
class _Part:
    scores: Tensor  # [D, Q, N]
    full_name: str
    fisher: str | None
    coverage: tuple[Covered, ...]
    notes: tuple[str, ...]
    fit_seconds: float
    score_seconds: float
    peak_bytes: int | None


def _one(name: str, problem: Problem, dampings: tuple[float, ...]) -> _Part:
    with peak_memory() as peak:
        curvature = fit(problem, LADDER[name]())
        start = time.perf_counter()
        covered = coverage(problem)
        queries_qp = query_gradients(problem, covered).to_dense()[:, 0]
        gradients = training_gradients(problem, covered)
        middle = Absolute(dampings[len(dampings) // 2])
        gradients.inner(curvature.solve(queries_qp, middle))
        score_seconds = time.perf_counter() - start
    swept: tuple[Damping, ...] = tuple(map(Absolute, dampings))
    if curvature.fixed_damping is not None:
        swept = (curvature.fixed_damping,)
    n = len(problem.train)
    scores = [
        gradients.inner(solved)[..., 0] / n for solved in curvature.solve_many(queries_qp, swept)
    ]
    return _Part(
        scores=torch.stack(scores),
        full_name=curvature.name,
        fisher=curvature.fisher,
        coverage=curvature.coverage,
        notes=curvature.notes,
        fit_seconds=curvature.cost.fit_seconds,
        score_seconds=score_seconds,
        peak_bytes=peak.bytes,
    )


def _gather(name: str, spec: StudySpec, parts: list[_Part], truth: Truth) -> Climbed:
    scores = torch.stack([part.scores for part in parts])
    left_out = truth.subsets.left_out.to(scores)
    predicted_jdqm = scores @ left_out.T
    free = scores.shape[1] == len(spec.dampings)
    peaks = [part.peak_bytes for part in parts if part.peak_bytes is not None]
    notes = [f"model {j}: {note}" for j, part in enumerate(parts) for note in part.notes]
    return Climbed(
        name=name,
        full_name=parts[0].full_name,
        fisher=parts[0].fisher,
        scores=scores,
        sweep=Sweep(
            dampings=spec.dampings if free else (None,),
            predicted=np.ascontiguousarray(predicted_jdqm.double().permute(1, 0, 3, 2).numpy()),
        ),
        coverage=parts[0].coverage,
        notes=tuple(notes),
        fit_seconds=median(part.fit_seconds for part in parts),
        score_seconds=median(part.score_seconds for part in parts),
        peak_bytes=max(peaks) if peaks else None,
    )
