"""The bottom rung: the gradient dot product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from curvfluence.curvature.coverage import CoverageLine, over_everything
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Absolute
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.diagonal import DiagonalOperator
from curvfluence.curvature.places import Whole
from curvfluence.curvature.rung import Rung
from curvfluence.curvature.workload import Workload
from curvfluence.problem.problem import Problem
from curvfluence.runtime.stage import Stage


@dataclass(frozen=True)
class Identity(Rung):
    """C = 0, w ignored, λ = 1: I[q, n] = g_qᵀ g_n / N. Its scores have no units."""

    def build(self, problem: Problem) -> Curvature:
        zero = torch.zeros_like(problem.decay)
        every = Block(
            "all",
            problem.parameters.names,
            Whole(problem.parameters),
            DiagonalOperator(zero),
            "identity",
        )
        return Curvature(
            rung=self.name,
            parameters=problem.parameters,
            blocks=(every,),
            decay=zero,
            fixed_damping=Absolute(1.0),
        )

    def separable(self, problem: Problem) -> bool:
        return True

    def coverage(self, problem: Problem) -> tuple[CoverageLine, ...]:
        return over_everything(problem, "identity")

    def stages(self, work: Workload) -> list[Stage]:
        return []
