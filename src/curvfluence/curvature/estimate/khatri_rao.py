"""Dense blocks between two layers: Σ_n X_n ⊗ (ã_m ã_lᵀ)_n by one Khatri-Rao GEMM.

The (m, l) block of a sum of rows s ⊗ a, taken over columns first (X_n = Σ_c s^m s^lᵀ), is

    M[(p, q), (r, s)] = Σ_n X_n[p, r] ã^m_n[q] ã^l_n[s]

so N P_m P_l multiplications serve all columns at once, C times fewer than the rows' own Gram. On
the diagonal (m = l) both X and ã ãᵀ are symmetric: a quarter of that suffices.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

from curvfluence.curvature.estimate.accumulate import Sums
from curvfluence.jacobian.terms import Outer
from curvfluence.runtime import budget


class PairSum:
    """T = Σ_n X_n[p, r] ã^m_n[q] ã^l_n[s], one of the sums of a pass under the name of `pair`, of
    two parts of these shapes (o, ĩ)."""

    def __init__(
        self, pair: tuple[Hashable, Hashable], left: tuple[int, int], right: tuple[int, int]
    ) -> None:
        self._pair = pair
        self._symmetric = pair[0] == pair[1]
        self._sizes = (*left, *right)

    def add(self, sums: Sums, x_bpr: Tensor, left_bq: Tensor, right_bs: Tensor) -> None:
        """Add the terms of a chunk; of a layer with itself X = Xᵀ and left is right."""
        p, q, _, s = self._sizes
        if not self._symmetric:
            x = x_bpr.flatten(1)
            for at in _slices(len(x), q * s):
                a = (left_bq[at, :, None] * right_bs[at, None, :]).flatten(1)
                sums.add_product_(self._pair, x[at].T, a)
            return
        rows, columns = torch.triu_indices(p, p)
        x = x_bpr[:, rows, columns]
        rows, columns = torch.triu_indices(q, q)
        for at in _slices(len(x), len(rows)):
            a = left_bq[at, rows].mul_(left_bq[at, columns])
            sums.add_product_(self._pair, x[at].T, a)

    def add_outer(self, sums: Sums, left: Outer, right: Outer) -> None:
        """Add the terms of rows s ⊗ a of both parts: X_n = Σ_c s^m s^lᵀ."""
        p, _, r, _ = self._sizes
        for at in _slices(left.n, p * r):
            (s_m, a_m), (s_l, a_l) = (left.s[at], left.a[at]), (right.s[at], right.a[at])
            self.add(sums, s_m.mT @ s_l, a_m, a_l)

    def add_cross(self, sums: Sums, g_bp: Tensor, e_bqr: Tensor, right_bs: Tensor) -> None:
        """Add Σ_n g[p] E[q, r] ã^l[s]; q counts the inputs of m without the bias."""
        p, s = g_bp.shape[1], right_bs.shape[1]
        for at in _slices(len(g_bp), p * s):
            left = (g_bp[at, :, None] * right_bs[at, None, :]).flatten(1)  # [B, p s]
            terms_psqr = (left.T @ e_bqr[at].flatten(1)).reshape(p, s, *e_bqr.shape[1:])
            self._cross_add(sums, terms_psqr.permute(0, 2, 3, 1))

    def add_diagonal(self, sums: Sums, g_bp: Tensor, slope_bq: Tensor, right_bs: Tensor) -> None:
        """`add_cross` with E = diag(slope): q = r, one row fewer in the product."""
        p, s, q = g_bp.shape[1], right_bs.shape[1], slope_bq.shape[1]
        for at in _slices(len(g_bp), p * s):
            left = (g_bp[at, :, None] * right_bs[at, None, :]).flatten(1)
            terms_psq = (left.T @ slope_bq[at]).reshape(p, s, q)
            self._cross_add(sums, torch.diag_embed(terms_psq).permute(0, 2, 3, 1))

    def _cross_add(self, sums: Sums, terms_pqrs: Tensor) -> None:
        p, q, r, s = self._sizes
        width = terms_pqrs.shape[1]  # q, less the bias where m has one
        sums[self._pair].view(p, r, q, s)[:, :, :width, :] += terms_pqrs.transpose(1, 2)

    def block(self, sums: Sums) -> Tensor:
        """[p, q, r, s]; the sum is let go of."""
        total = sums.pop(self._pair)
        p, q, r, s = self._sizes
        if not self._symmetric:
            return total.reshape(p, r, q, s).transpose(1, 2)
        full = total[_triangle(p)][:, _triangle(q)]
        return full.reshape(p, p, q, q).transpose(1, 2)


def _slices(count: int, width: int) -> Iterator[slice]:
    """Examples, so many at a time that products of `width` numbers each stay within a budget."""
    step = max(1, budget.PAIRS // width)
    return (slice(start, start + step) for start in range(0, count, step))


def pair_sums(shapes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], PairSum]:
    """A sum for every pair (m, k) of parts of these shapes with k <= m."""
    return {
        (m, k): PairSum((m, k), shapes[m], shapes[k])
        for m in range(len(shapes))
        for k in range(m + 1)
    }


def _triangle(size: int) -> Tensor:
    """Place of (i, j) in the packed upper triangle, [size²]."""
    rows, columns = torch.triu_indices(size, size)
    place = torch.empty(size, size, dtype=torch.long)
    number = torch.arange(len(rows))
    place[rows, columns] = number
    place[columns, rows] = number
    return place.flatten()
