"""Solved queries of a layer that meet few rows: products of pairs, and no solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.operators.correction import Correction
from curvfluence.curvature.operators.solution import Solution
from curvfluence.curvature.places import LayerPart
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Outer
from curvfluence.jacobian.terms.blas import matmul
from curvfluence.runtime import budget

FEW_ROWS = 128  # to form a solution and to read it costs as much as a product with about so many


@dataclass(frozen=True, eq=False)
class Paired(Solution):
    """Queries in the eigenbasis, ŝ_q ⊗ â_q. With a row it is Σ_oi (ŝ_q ŝ_n)_o (â_q â_n)_i over
    Λ + w₀ + λ: of all pairs one GEMM, [Q N, i] by [i, o], and no solution [o, i] is formed."""

    part: LayerPart
    out_basis: Tensor  # U_B
    in_basis: Tensor  # U_A
    inverted_oi: Tensor  # 1/(Λ + w₀ + λ)
    correction: Correction | None
    queries: Outer  # in the eigenbasis
    solve: Callable[[], Tensor]

    def inner(self, rows: Rows) -> Tensor:
        term = outer_of(self.part, rows).rotated(self.out_basis, self.in_basis)
        total = term.s.new_empty(self.queries.n, term.n, term.c)
        for start in range(0, term.n, FEW_ROWS):
            self._add_pairs(term[start : start + FEW_ROWS], total[:, start : start + FEW_ROWS])
        if self.correction is not None:
            total -= self.correction.pairs(self.queries, term)
        return total

    def _add_pairs(self, term: Outer, total: Tensor) -> None:
        """Some queries at a time."""
        step = max(1, budget.MERGED // (term.n * sum(self.inverted_oi.shape)))
        for first in range(0, self.queries.n, step):
            some = slice(first, first + step)
            a_qni = self.queries.a[some, None] * term.a
            through_qno = matmul(a_qni.flatten(0, 1), self.inverted_oi.T)
            through_qno = through_qno.unflatten(0, a_qni.shape[:2]).mul_(self.queries.s[some, :1])
            total[some] = torch.einsum("qno,nco->qnc", through_qno, term.s)

    def flat(self) -> Tensor:
        return self.solve()


def outer_of(part: LayerPart, rows: Rows) -> Outer:
    """Of a layer no position of which is shared."""
    term = part.term(rows)
    assert isinstance(term, Outer)
    return term
