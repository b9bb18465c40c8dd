"""EK-FAC: K-FAC's eigenbasis with the diagonal of the layer's GGN block in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from curvfluence.curvature.curvature import Block
from curvfluence.curvature.kfac import KroneckerRung, kronecker_factors
from curvfluence.curvature.layerwise import (
    LayerPart,
    Remainder,
    layer_blocks,
)
from curvfluence.curvature.operators.kronecker import InputBases, KroneckerEigen, basis_of
from curvfluence.jacobian.fisher import Fisher
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Memo, SharedOuter, Term
from curvfluence.problem.problem import Problem


@dataclass(frozen=True)
class EKFAC(KroneckerRung):
    """Λ_ij = (1/N) Σ_n Σ_c (Σ_t (U_Bᵀ s_t)_i (U_Aᵀ a_t)_j)², the diagonal of Uᵀ (GGN block) U.

    The best diagonal in that basis in Frobenius norm, so never further from the block than K-FAC
    (George et al. 2018). Where no position is shared a row is s ⊗ a, and Λ is
    (Σ_c (s U_B)²)ᵀ ((a U_A)²): no per-example matrix is formed. Where T positions are, an example's
    o × i matrix is formed for each column, a slice of examples at a time. Cost: K-FAC's, and
    N T (C o² + i²) + N C o i (T + 1, where shared) in a second pass over the data, which reads what
    the first one computed as far as that is at most `Problem.remember` bytes and computes the rest
    again. With the training labels the matrices so formed are the gradients in the eigenbasis, and
    are kept for scores in the place of a and s.

    `values` is the Fisher type of Λ, by default that of the factors: with sampled factors and
    `values=Type2()` the basis is sampled and the eigenvalues are exact.
    """

    values: Fisher | None = None

    @property
    def passes(self) -> int:
        return 2 if self.values is None else 1

    def build_blocks(self, problem: Problem, rows: FisherPass) -> tuple[Block, ...]:
        layout = rows.layout
        blocks = layer_blocks(problem.parameters, layout, joint_bias=self.joint_bias)
        remainder = Remainder(problem, layout, joint=self.joint_bias)
        factors = kronecker_factors(problem, rows, self.sharing, blocks, remainder)
        bases: dict[str, tuple[Tensor | None, Tensor | None]] = {}
        inputs = InputBases()
        for name in list(factors):
            a_ii, b_oo = factors.pop(name)
            bases[name] = basis_of(b_oo)[1], inputs.of(a_ii)[1]
        of_values = rows if self.values is None else FisherPass(problem, self.values)
        sums = _squares(of_values, blocks, bases)
        made: list[Block] = []
        for block in blocks:
            out_basis, in_basis = bases[block.name]
            assert out_basis is not None
            values = sums[block.name] / len(problem.train)
            operator = KroneckerEigen(out_basis, in_basis, values)
            rule = self._rule("eigenvalue-corrected Kronecker", block)
            made.append(block.holding(operator, rule))
        return (*made, *remainder.blocks())


def _squares(
    passed: FisherPass,
    blocks: tuple[LayerPart, ...],
    bases: dict[str, tuple[Tensor | None, Tensor | None]],
) -> dict[str, Tensor]:
    """Σ_n Σ_c (U_Bᵀ row U_A)² of every block. Where rows are the gradients and kept, those formed
    for it are kept in the place of their a and s: scores need no other."""
    sums: dict[str, Tensor] = {}
    for rows in passed:
        kept = passed.keeps(rows)
        formed = _add_squares(sums, rows, blocks, bases, form=kept)
        if kept:
            passed.swap(rows, formed)
        del formed  # not held while the next chunk is computed
    return sums


def _add_squares(
    sums: dict[str, Tensor],
    rows: Rows,
    blocks: tuple[LayerPart, ...],
    bases: dict[str, tuple[Tensor | None, Tensor | None]],
    *,
    form: bool,
) -> Rows:
    """Add a chunk's; the rows, with `form` those of shared layers as matrices in the basis."""
    memo: Memo = {}  # what is rotated of the inputs that the layer before had too
    inputs: int | None = None
    terms: list[Term] = list(rows.terms)
    for block in blocks:
        term, basis = block.factored(rows), bases[block.name]
        if inputs != (inputs := term.tensors[0].data_ptr()):
            memo.clear()
        if form and block.whole and isinstance(term, SharedOuter) and term.compact:
            formed = term.formed(*basis, memo)
            terms[block.position] = replace(formed, biased=False)
            new = formed.squares()
        else:
            new = term.squares(*basis, memo)
        sums[block.name] = sums[block.name].add_(new) if block.name in sums else new
    return replace(rows, terms=tuple(terms))
