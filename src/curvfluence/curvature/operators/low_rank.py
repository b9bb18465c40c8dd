"""Solved queries of a layer as products of thin matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.jacobian.terms import Formed, SharedOuter, Term
from curvfluence.runtime import budget
from curvfluence.runtime.eigen_solver import svd


@dataclass(frozen=True, eq=False)
class LowRank:
    """x_q ≈ L_q R_qᵀ with L [Q, o, r], R [Q, i, r], one rank r for all queries.

    Where T positions share a weight, x_q against a row is Σ_t (s_t L)·(a_t R): N T r (o + i)
    operations a query instead of N T o i, and Q r (o + i) numbers instead of Q o i.
    """

    left: Tensor
    right: Tensor
    error: float  # the largest ‖x_q − L_q R_qᵀ‖/‖x_q‖

    @staticmethod
    def of(x_qoi: Tensor, tolerance: float) -> LowRank:
        """The smallest rank at which every query's relative error (Frobenius) is at most
        `tolerance`: a truncated singular value decomposition."""
        if not 0 < tolerance < 1:
            raise InputError(f"compress must lie between 0 and 1; seen {tolerance}")
        u, sigma_qk, vh = svd(x_qoi)
        total_q1 = sigma_qk.square().sum(1, keepdim=True)
        kept_qk = sigma_qk.square().cumsum(1)
        lost_qk = (1 - kept_qk / total_q1.clamp_min(torch.finfo(x_qoi.dtype).tiny)).clamp_min(0)
        lost_qk = torch.where(total_q1 > 0, lost_qk, 0.0).sqrt()
        fits_k = (lost_qk <= tolerance).all(0)
        rank = int(fits_k.nonzero()[0]) + 1 if bool(fits_k.any()) else sigma_qk.shape[1]
        left = u[:, :, :rank] * sigma_qk[:, None, :rank]
        right = vh[:, :rank].mT.contiguous()
        size = x_qoi.flatten(1).norm(dim=1).clamp_min(torch.finfo(x_qoi.dtype).tiny)
        gap = (x_qoi - left @ right.mT).flatten(1).norm(dim=1)
        return LowRank(left, right, float((gap / size).max()))

    @property
    def rank(self) -> int:
        return self.left.shape[2]

    @property
    def nbytes(self) -> int:
        return self.left.nbytes + self.right.nbytes

    def inner(self, term: Term) -> Tensor:
        """⟨L_q R_qᵀ, row_nc⟩, [Q, N, C]; against rows that are formed, x is too."""
        if isinstance(term, Formed):
            return term.inner(self.left @ self.right.mT)
        assert isinstance(term, SharedOuter)
        q, _, r = self.left.shape
        left = self.left.transpose(0, 1).flatten(1)  # [o, Q r]
        right = self.right.transpose(0, 1).flatten(1)
        t = term.a.shape[1]
        step = max(1, budget.LOW_RANK // max(1, term.c * t * q * r))
        parts: list[Tensor] = []
        for start in range(0, term.n, step):
            part = term[start : start + step]
            assert isinstance(part, SharedOuter)
            product = (part.s @ left) * (part.a @ right)[:, None]  # [n, C, T, Q r]
            parts.append(product.sum(2).view(part.n, part.c, q, r).sum(3))
        return torch.cat(parts).movedim(2, 0)
