"""1/(Λ + w + λ) of a Kronecker block as a sum of few products, for scores of unshared layers.

In the eigenbasis a score of rows s ⊗ a is Σ_oi ŝ_q[o] â_q[i] ŝ_n[o] â_n[i] / (Λ + w + λ)_oi. With
1/(Λ + w + λ) ≈ Σ_r u_r v_rᵀ it is Σ_r ((ŝ_q ∘ u_r)·ŝ_n)((â_q ∘ v_r)·â_n): N Q r (o + i) operations
for the N Q o i of the product with solved queries, and no solution of o i numbers is held.

An error in a query's scores is one of ‖ΔI_q‖, to which a row brings what its size ‖s‖‖a‖ is times
what the rank leaves out. So small rows take fewer ranks: in a model that fits its data most
gradients are a hundredth or a thousandth of the few that scores are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from curvfluence.curvature.operators.correction import Correction
from curvfluence.curvature.operators.paired import outer_of
from curvfluence.curvature.operators.solution import Solution
from curvfluence.curvature.places import LayerPart
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Outer
from curvfluence.jacobian.terms.blas import matmul
from curvfluence.runtime import budget


@dataclass(frozen=True)
class Grades:
    """How many ranks rows take by their size ‖s‖‖a‖: up to `sizes[0]` as many as `ranks[0]`, and so
    on, and the last above all sizes. Both rise."""

    sizes: tuple[float, ...]
    ranks: tuple[int, ...]

    @staticmethod
    def of(typical: float, slacks: Sequence[float], ranks: Sequence[int]) -> Grades:
        """A row of the typical size over f takes the rank at which f times the error is allowed, so
        that it brings as much of it as a row of the typical size does, or less."""
        sizes, kept = list[float](), [ranks[0]]
        for slack, rank in zip(slacks[1:], ranks[1:], strict=True):
            if rank < kept[-1]:
                sizes.append(typical / slack)
                kept.append(rank)
        return Grades(tuple(reversed(sizes)), tuple(reversed(kept)))

    def parts(self, term: Outer, fewest: int = 1) -> Sequence[tuple[int, Tensor | slice]]:
        """(ranks, which rows take them), of those that some do; rows of a size that are not as
        many as `fewest` take those of the next larger ones. Sizes are taken in float64, where the
        squares of small numbers are no 0."""
        if not self.sizes or not term.n:
            return [(self.ranks[-1], slice(0, term.n))]
        size_n = term.exact_norms().norm(dim=1)
        grade_n = torch.bucketize(size_n, size_n.new_tensor(self.sizes))
        order, counts = grade_n.argsort(stable=True), grade_n.bincount(minlength=len(self.ranks))
        ends = counts.cumsum(0).tolist()
        found, first = list[tuple[int, Tensor | slice]](), 0
        for rank, end in zip(self.ranks, ends, strict=True):
            if end > first and (end - first >= fewest or end == term.n):
                found.append((rank, order[first:end]))
                first = end
        return found


@dataclass(frozen=True, eq=False)
class LowRankInverse:
    """u [o, r] and v [i, r] with Σ_r u_r v_rᵀ ≈ 1/(Λ + w₀ + λ) in the basis of a block, of which
    small rows take the first ones, and what is exact: the term of a bias's decay, and `solve` for
    whoever asks for a solution itself."""

    part: LayerPart
    out_basis: Tensor  # U_B
    in_basis: Tensor  # U_A
    u_or: Tensor
    v_ir: Tensor
    grades: Grades
    correction: Correction | None
    exact: bool  # no more than rounding away
    solve: Callable[[Rows], Tensor]
    held: bool = False  # whether queries stay merged from the first rows that they meet on
    fewest: int = 1  # rows that a GEMM is taken of by themselves

    @property
    def rank(self) -> int:
        return self.u_or.shape[1]

    @property
    def numbers(self) -> int:
        """That are held of each query."""
        rotated = self.u_or.shape[0] + self.v_ir.shape[0]
        return rotated + (self.merged if self.held else 0)

    @property
    def merged(self) -> int:
        """That a query has with all ranks merged into it."""
        return self.rank * (self.u_or.shape[0] + self.v_ir.shape[0])

    def of(self, rows: Rows) -> Solution:
        """The solutions of single-column rows, as what scores are made of."""
        return Merged(self, rows, outer_of(self.part, rows).rotated(self.out_basis, self.in_basis))


@dataclass(frozen=True, eq=False)
class Merged(Solution):
    """Queries in the eigenbasis, ŝ_q ⊗ â_q, which the inverse's ranks are merged into a few at a
    time; `rows` are the queries themselves."""

    inverse: LowRankInverse
    rows: Rows
    rotated: Outer

    def inner(self, rows: Rows) -> Tensor:
        """GEMMs of the merged queries, [r Q, o] and [r Q, i], with s and a of the rows. Whichever
        are fewer are rotated: rows into the eigenbasis, or merged queries out of it."""
        inverse, term = self.inverse, outer_of(self.inverse.part, rows)
        q = self.rotated.n
        there = inverse.correction is not None or q * inverse.rank > term.n
        graded = inverse.grades.parts(term, inverse.fewest)  # a rotation leaves sizes what they are
        if there:
            term = term.rotated(inverse.out_basis, inverse.in_basis)
        parts = [(few, at, term[at]) for few, at in graded]
        total = term.s.new_empty(q, term.n, term.c)
        for queries, s_rqo, a_rqi in self._held if inverse.held else self._merged():
            if not there:
                s_rqo = matmul(s_rqo, inverse.out_basis.T)
                a_rqi = matmul(a_rqi, inverse.in_basis.T)
            some = total[queries]
            for few, at, part in parts:
                some[:, at] = _products(s_rqo[:few], a_rqi[:few], part)
        if inverse.correction is not None:
            total -= inverse.correction.pairs(self.rotated, term)
        return total

    @cached_property
    def _held(self) -> tuple[tuple[slice, Tensor, Tensor], ...]:
        return tuple(self._merged())

    def _merged(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(some queries, their ŝ_q ∘ u_r [r, Q, o], their â_q ∘ v_r [r, Q, i])."""
        u_ro, v_ri = self.inverse.u_or.T.contiguous(), self.inverse.v_ir.T.contiguous()
        several = max(1, budget.FORMED // self.inverse.merged)
        for first in range(0, self.rotated.n, several):
            some = slice(first, first + several)
            s_qo, a_qi = self.rotated.s[some, 0], self.rotated.a[some]
            yield some, s_qo * u_ro[:, None], a_qi * v_ri[:, None]  # laid out as they are read

    def flat(self) -> Tensor:
        return self.inverse.solve(self.rows)


def _products(s_rqo: Tensor, a_rqi: Tensor, term: Outer) -> Tensor:
    """Σ_r (s_rq·s_nc)(a_rq·a_n), [Q, N, C]."""
    rank, q = s_rqo.shape[:2]
    s_ro, a_ri = s_rqo.flatten(0, 1), a_rqi.flatten(0, 1)
    total = term.s.new_empty(q, term.n, term.c)
    step = max(64, budget.MERGED // len(s_ro))
    for start in range(0, term.n, step):
        s_nco, a_ni = term.s[start : start + step], term.a[start : start + step]
        found_rnc = matmul(s_ro, s_nco.flatten(0, 1).T).view(-1, len(a_ni), term.c)
        found_rnc.mul_(matmul(a_ri, a_ni.T)[:, :, None])
        total[:, start : start + step] = found_rnc.view(rank, q, len(a_ni), term.c).sum(0)
    return total
