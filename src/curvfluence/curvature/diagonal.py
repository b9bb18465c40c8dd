"""The diagonal of the GGN."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvfluence.curvature.base import Block
from curvfluence.curvature.layerwise import (
    LayerBlock,
    Remainder,
    accumulate,
    fisher_rows,
    layer_blocks,
)
from curvfluence.curvature.operators import DiagonalOperator
from curvfluence.curvature.rung import FisherRung
from curvfluence.fisher import Fisher
from curvfluence.layers import coverage
from curvfluence.problem import Problem


@dataclass(frozen=True)
class Diagonal(FisherRung):
    """diag of GGN: for a layer (1/N) Σ_n (Σ_c s²) (a²)ᵀ, one GEMM. Exact for every parameter."""

    def build_blocks(self, problem: Problem, fisher: Fisher) -> tuple[Block, ...]:
        covered = coverage(problem)
        blocks = layer_blocks(problem.parameters, covered, joint_bias=self.joint_bias)
        remainder = Remainder(
            problem, covered, joint=self.joint_bias, native_diagonal=True, limit=0
        )

        def update(block: LayerBlock, a_bi: Tensor, s_bco: Tensor) -> tuple[Tensor, ...]:
            return (s_bco.square().sum(1).T @ a_bi.square(),)

        sums = accumulate(fisher_rows(problem, covered, fisher), blocks, update, remainder)
        n = len(problem.train)
        made = [
            Block(
                block.name,
                block.parameters,
                block.index.flatten(),
                DiagonalOperator(sums[block.name][0].flatten() / n),
                "diagonal",
            )
            for block in blocks
        ]
        return (*made, *remainder.blocks())
