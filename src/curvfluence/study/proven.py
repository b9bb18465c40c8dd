"""What is proven of each rung's scores: bounds on their errors against the exact GGN's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.damping import Absolute
from curvfluence.curvature.hessian import Hessian
from curvfluence.curvature.rung import Rung, fit
from curvfluence.problem.problem import Problem
from curvfluence.runtime import journal
from curvfluence.score.bounds import error_bounds
from curvfluence.store.steps import Steps
from curvfluence.study.at_model import RungScores
from curvfluence.study.compare import LadderFidelity
from curvfluence.study.progress import Watcher
from curvfluence.study.results import ProvenError
from curvfluence.study.spec import StudySpec


@dataclass(frozen=True)
class Proven:
    """By the name of each rung that approximates the GGN, at the first model; or, of a study that
    has none, why."""

    errors: Mapping[str, ProvenError]
    seconds: float  # those of killed commands among them
    missing: str | None = None


@dataclass(frozen=True)
class Bounded:
    """What is proven of one rung, and the seconds of it, those of killed commands among them."""

    error: ProvenError
    seconds: float


def prove(
    spec: StudySpec,
    problem: Problem,
    rungs: tuple[RungScores, ...],
    fidelity: LadderFidelity,
    steps: Steps,
    watch: Watcher,
) -> Proven:
    """Bounds on the scores of every rung at the first model, `problem`, each half of the queries at
    the damping that it was given. Cost: a fit and `error_bounds` for each rung and damping."""
    if not spec.bounds:
        return Proven({}, 0.0, "they were not asked for")
    own = spec.plan.rungs(spec.seeds("Fisher", spec.models)[0])
    judged = [row for row in rungs if _approximates(own, row)]
    if not judged:
        return Proven({}, 0.0, "none of the rungs stands for the GGN")
    proven: dict[str, ProvenError] = {}
    seconds = 0.0
    with watch("bound the errors", len(judged)) as done:
        for row in judged:
            name = {"bounds of": row.name, "alpha": spec.alpha}  # which decides the dampings
            found = steps.find(name, Bounded)
            if found is None:
                works = steps.within(name)
                with journal.kept_in(works):
                    error = _of_rung(own[row.name], problem, row, fidelity)
                    found = Bounded(error, journal.seconds())
                steps.keep(name, found)
                works.clear()
            proven[row.name] = found.error
            seconds += found.seconds
            done(len(proven))
    return Proven(proven, seconds)


def _approximates(own: Mapping[str, Rung], row: RungScores) -> bool:
    """Whether a rung stands for the GGN: hybrids are never fitted for their own sake, the Hessian
    is another matrix, and the identity is none."""
    return not row.hybrid and not isinstance(own[row.name], Hessian) and row.dampings[0] is not None


def _of_rung(
    rung: Rung, problem: Problem, row: RungScores, fidelity: LadderFidelity
) -> ProvenError:
    halves = torch.from_numpy(fidelity.halves)
    (chosen,) = (one.matched.dampings for one in fidelity.rungs if one.name == row.name)
    curvature = fit(problem, rung)
    by_damping = {
        at: error_bounds(problem, curvature, Absolute(at), row.scores[0, row.dampings.index(at)])
        for at in dict.fromkeys(chosen)
        if at is not None
    }
    first, second = (by_damping[at] for at in chosen if at is not None)
    scores = [row.scores[0, row.dampings.index(at)] for at in chosen]
    bound_qn = torch.where(halves[:, None], first.values, second.values)
    proven_qn = torch.where(halves[:, None], first.signs(scores[0]), second.signs(scores[1]))
    return ProvenError(
        largest=_finite(bound_qn.max()),
        median=_finite(bound_qn.median()),
        signs=float(proven_qn.double().mean()),
        rows=min(first.rows, second.rows),
        trace=min(first.share, second.share),
    )


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None
