"""The diagonal of the GGN."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvfluence.curvature.base import Block
from curvfluence.curvature.layerwise import (
    LayerBlock,
    Remainder,
    accumulate,
    layer_blocks,
)
from curvfluence.curvature.operators import DiagonalOperator
from curvfluence.curvature.passes import FisherPass
from curvfluence.curvature.rung import FisherRung
from curvfluence.problem import Problem
from curvfluence.rows import Rows
from curvfluence.terms import Once


@dataclass(frozen=True)
class Diagonal(FisherRung):
    """diag of GGN: (1/N) Σ_n Σ_c (Σ_t s aᵀ)² elementwise, one GEMM where no position is shared.
    Exact for every parameter."""

    def build_blocks(self, problem: Problem, rows: FisherPass) -> tuple[Block, ...]:
        covered = rows.covered
        blocks = layer_blocks(problem.parameters, covered, joint_bias=self.joint_bias)
        remainder = Remainder(
            problem, covered, joint=self.joint_bias, native_diagonal=True, limit=0
        )

        def update(block: LayerBlock, rows: Rows, once: Once) -> tuple[Tensor, ...]:
            return (block.factored(rows).squares(None, None, once),)

        sums = accumulate(rows, blocks, update, remainder)
        n = len(problem.train)
        made = [
            block.holding(DiagonalOperator(sums[block.name][0].flatten() / n), "diagonal")
            for block in blocks
        ]
        return (*made, *remainder.blocks())
