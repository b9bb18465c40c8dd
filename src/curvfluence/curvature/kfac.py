"""K-FAC: B ⊗ A per layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.base import Block
from curvfluence.curvature.kronecker import FactoredKronecker, KroneckerEigen, eigh
from curvfluence.curvature.layerwise import (
    LayerBlock,
    Remainder,
    accumulate,
    fisher_rows,
    layer_blocks,
)
from curvfluence.curvature.rung import FisherRung
from curvfluence.fisher import Fisher
from curvfluence.layers import Coverage, coverage
from curvfluence.problem import Problem


@dataclass(frozen=True)
class KFAC(FisherRung):
    """Per layer B ⊗ A with A = (1/N) Σ_n a aᵀ and B = (1/N) Σ_n Σ_c s sᵀ (Martens & Grosse 2015).

    Inverted exactly in the Kronecker eigenbasis, or with `factored_damping=True` by their π rule.
    Exact for one unshared datum, and for deep linear nets under MSE (Bernacchia et al. 2018).
    Cost: N (i² + C o²) and two eigendecompositions a layer.
    """

    factored_damping: bool = False

    def build_blocks(self, problem: Problem, fisher: Fisher) -> tuple[Block, ...]:
        covered = coverage(problem)
        blocks = layer_blocks(problem.parameters, covered, joint_bias=self.joint_bias)
        remainder = Remainder(problem, covered, joint=self.joint_bias)
        factors = kronecker_factors(problem, covered, fisher, blocks, remainder)
        made = [self._block(block, *factors[block.name]) for block in blocks]
        return (*made, *remainder.blocks())

    def _block(self, block: LayerBlock, a_ii: Tensor, b_oo: Tensor) -> Block:
        in_values, in_basis = eigh(a_ii)
        out_values, out_basis = eigh(b_oo)
        values = torch.outer(out_values, in_values)
        operator = (
            FactoredKronecker(out_basis, in_basis, values, out_values, in_values)
            if self.factored_damping
            else KroneckerEigen(out_basis, in_basis, values)
        )
        rule = "Kronecker, factored damping" if self.factored_damping else "Kronecker"
        return Block(block.name, block.parameters, block.index.flatten(), operator, rule)


def kronecker_factors(
    problem: Problem,
    covered: Coverage,
    fisher: Fisher,
    blocks: tuple[LayerBlock, ...],
    remainder: Remainder | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) of every block."""

    def update(block: LayerBlock, a_bi: Tensor, s_bco: Tensor) -> tuple[Tensor, ...]:
        s = s_bco.flatten(0, 1)
        return a_bi.T @ a_bi, s.T @ s

    sums = accumulate(fisher_rows(problem, covered, fisher), blocks, update, remainder)
    n = len(problem.train)
    return {name: (a / n, b / n) for name, (a, b) in sums.items()}
