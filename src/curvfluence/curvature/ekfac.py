"""EK-FAC: K-FAC's eigenbasis with the diagonal of the layer's GGN block in it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvfluence.curvature.base import Block
from curvfluence.curvature.kfac import kronecker_factors
from curvfluence.curvature.kronecker import KroneckerEigen, eigh
from curvfluence.curvature.layerwise import (
    LayerBlock,
    Remainder,
    accumulate,
    fisher_rows,
    layer_blocks,
)
from curvfluence.curvature.rung import FisherRung
from curvfluence.fisher import Fisher
from curvfluence.layers import coverage
from curvfluence.problem import Problem


@dataclass(frozen=True)
class EKFAC(FisherRung):
    """Λ_ij = (1/N) Σ_n Σ_c ((U_Bᵀ s)_i (U_Aᵀ a)_j)², the diagonal of Uᵀ (GGN block) U.

    The best diagonal in that basis in Frobenius norm, so never further from the block than K-FAC
    (George et al. 2018). A row is s ⊗ a, so Λ is (Σ_c (s U_B)²)ᵀ ((a U_A)²): no per-example
    matrix is formed. Cost: K-FAC's, and N (C o² + i² + o i) for a second pass over the data.

    `values` is the Fisher type of Λ, by default that of the factors: with sampled factors and
    `values=Type2()` the basis is sampled and the eigenvalues are exact.
    """

    values: Fisher | None = None

    def build_blocks(self, problem: Problem, fisher: Fisher) -> tuple[Block, ...]:
        covered = coverage(problem)
        blocks = layer_blocks(problem.parameters, covered, joint_bias=self.joint_bias)
        remainder = Remainder(problem, covered, joint=self.joint_bias)
        factors = kronecker_factors(problem, covered, fisher, blocks, remainder)
        bases = {name: (eigh(a)[1], eigh(b)[1]) for name, (a, b) in factors.items()}

        def update(block: LayerBlock, a_bi: Tensor, s_bco: Tensor) -> tuple[Tensor, ...]:
            in_basis, out_basis = bases[block.name]
            return ((s_bco @ out_basis).square().sum(1).T @ (a_bi @ in_basis).square(),)

        # The second pass draws the same labels: a Fisher's columns restart with its seed.
        of_values = fisher if self.values is None else self.values
        sums = accumulate(fisher_rows(problem, covered, of_values), blocks, update)
        made: list[Block] = []
        for block in blocks:
            in_basis, out_basis = bases[block.name]
            values = sums[block.name][0] / len(problem.train)
            made.append(
                Block(
                    block.name,
                    block.parameters,
                    block.index.flatten(),
                    KroneckerEigen(out_basis, in_basis, values),
                    "eigenvalue-corrected Kronecker",
                )
            )
        return (*made, *remainder.blocks())
