"""curvfluence: K-FAC and EK-FAC with joint bias, exact damping, float32, by the public API only.

`strict=True`, so that a layer without a rule declines instead of getting a fallback.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs import EXACT, TOLERANCE
from question import Question
from torch import Tensor

import curvfluence as cf
from curvfluence.problem.losses import Loss

DISTRIBUTION = "curvfluence"


@dataclass(frozen=True)
class Fitted:
    problem: cf.Problem
    curvature: cf.Curvature


def fit(question: Question) -> Fitted:
    problem = cf.Problem(
        question.model,
        _loss(question),
        (question.inputs, question.targets),
        (question.query_inputs, question.query_targets),
    )
    return Fitted(
        problem, cf.fit(problem, _rung(question), strict=question.task.parameters == "layers")
    )


def pairwise(question: Question, fitted: Fitted) -> Tensor:
    damping = cf.Absolute(question.task.damping)
    if question.task.rung == EXACT:
        found = cf.influence(fitted.problem, fitted.curvature, damping=damping, tolerance=TOLERANCE)
        if max(found.residuals or (0.0,)) > TOLERANCE:
            raise ArithmeticError(f"residuals of up to {max(found.residuals or ()):.1e}")
        return found.values
    return cf.influence(fitted.problem, fitted.curvature, damping=damping).values


def _rung(question: Question) -> cf.Rung:
    if question.task.rung == EXACT:
        return cf.GGN()
    rung = {"EKFAC": cf.EKFAC, "KFAC": cf.KFAC}[question.task.rung]
    fishers = {"type2": cf.Type2(), "empirical": cf.Empirical(), "mc(1)": cf.MonteCarlo(1)}
    return rung(fisher=fishers[question.task.fisher])


def _loss(question: Question) -> Loss:
    """Cross-entropy; summed over positions where an example has some."""
    if question.targets.ndim == 1:
        return cf.CrossEntropy()
    positions = getattr(cf, "Positions", None)
    if positions is None:
        raise NotImplementedError("no loss over positions yet: outputs of [B, T, K] are refused")
    return positions(cf.CrossEntropy(), reduction="sum")
