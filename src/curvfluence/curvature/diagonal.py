"""The diagonal of the GGN."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvfluence.curvature.curvature import Block
from curvfluence.curvature.layerwise import (
    LayerPart,
    Remainder,
    accumulate,
    layer_blocks,
)
from curvfluence.curvature.operators.dense import DiagonalOperator
from curvfluence.curvature.rung import FisherRung
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Memo
from curvfluence.problem.problem import Problem


@dataclass(frozen=True)
class Diagonal(FisherRung):
    """diag of GGN: (1/N) Σ_n Σ_c (Σ_t s aᵀ)² elementwise, one GEMM where no position is shared.
    Exact for every parameter."""

    def build_blocks(self, problem: Problem, rows: FisherPass) -> tuple[Block, ...]:
        layout = rows.layout
        blocks = layer_blocks(problem.parameters, layout, joint_bias=self.joint_bias)
        remainder = Remainder(problem, layout, joint=self.joint_bias, native_diagonal=True, limit=0)

        def update(block: LayerPart, rows: Rows, memo: Memo) -> tuple[Tensor, ...]:
            return (block.factored(rows).squares(None, None, memo),)

        sums = accumulate(rows, blocks, update, remainder)
        n = len(problem.train)
        made = [
            block.holding(DiagonalOperator(sums[block.name][0].flatten() / n), "diagonal")
            for block in blocks
        ]
        return (*made, *remainder.blocks())
