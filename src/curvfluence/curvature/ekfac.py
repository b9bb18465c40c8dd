"""EK-FAC: K-FAC's eigenbasis with the diagonal of the layer's GGN block in it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvfluence.curvature.base import Block
from curvfluence.curvature.kfac import KroneckerRung, kronecker_factors
from curvfluence.curvature.kronecker import KroneckerEigen, basis_of
from curvfluence.curvature.layerwise import (
    LayerBlock,
    Remainder,
    accumulate,
    layer_blocks,
)
from curvfluence.curvature.passes import FisherPass
from curvfluence.fisher import Fisher
from curvfluence.problem import Problem
from curvfluence.terms import Term


@dataclass(frozen=True)
class EKFAC(KroneckerRung):
    """Λ_ij = (1/N) Σ_n Σ_c (Σ_t (U_Bᵀ s_t)_i (U_Aᵀ a_t)_j)², the diagonal of Uᵀ (GGN block) U.

    The best diagonal in that basis in Frobenius norm, so never further from the block than K-FAC
    (George et al. 2018). Where no position is shared a row is s ⊗ a, and Λ is
    (Σ_c (s U_B)²)ᵀ ((a U_A)²): no per-example matrix is formed. Where T positions are, an example's
    o × i matrix is formed for each column, a slice of examples at a time. Cost: K-FAC's, and
    N T (C o² + i²) + N C o i (T + 1, where shared) in a second pass over the data, which reads what
    the first one computed as far as that is at most `Problem.remember` bytes and computes the rest
    again.

    `values` is the Fisher type of Λ, by default that of the factors: with sampled factors and
    `values=Type2()` the basis is sampled and the eigenvalues are exact.
    """

    values: Fisher | None = None

    @property
    def passes(self) -> int:
        return 2 if self.values is None else 1

    def build_blocks(self, problem: Problem, rows: FisherPass) -> tuple[Block, ...]:
        covered = rows.covered
        blocks = layer_blocks(problem.parameters, covered, joint_bias=self.joint_bias)
        remainder = Remainder(problem, covered, joint=self.joint_bias)
        factors = kronecker_factors(problem, rows, self.sharing, blocks, remainder)
        bases: dict[str, tuple[Tensor | None, Tensor | None]] = {}
        for name in list(factors):
            a_ii, b_oo = factors.pop(name)
            bases[name] = basis_of(b_oo)[1], basis_of(a_ii)[1]

        def update(block: LayerBlock, term: Term, _: Tensor | None) -> tuple[Tensor, ...]:
            return (term.squares(*bases[block.name]),)

        of_values = rows if self.values is None else FisherPass(problem, self.values)
        sums = accumulate(of_values, blocks, update)
        made: list[Block] = []
        for block in blocks:
            out_basis, in_basis = bases[block.name]
            assert out_basis is not None
            values = sums[block.name][0] / len(problem.train)
            operator = KroneckerEigen(out_basis, in_basis, values)
            rule = self._rule("eigenvalue-corrected Kronecker", block)
            made.append(block.holding(operator, rule))
        return (*made, *remainder.blocks())
