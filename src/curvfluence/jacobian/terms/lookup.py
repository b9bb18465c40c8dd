"""Rows of an embedding: every a is a unit vector."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvfluence.jacobian.terms.base import Change, Factored
from curvfluence.jacobian.terms.gram import gram
from curvfluence.jacobian.terms.products import Memo, combined, counted_positions, counting, mixed


@dataclass(frozen=True, eq=False)
class LookupOuter(Factored):
    """Rows Σ_t s_t ⊗ e_{id_t}, with e unit vectors of the vocabulary; o is the embedding's d."""

    ids: Tensor  # [N, T]
    s: Tensor  # [N, C, T, d]
    vocabulary: int
    biased: bool = False
    counted: Tensor | None = None  # [N, T], as in `SharedOuter`

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.s.shape[3], self.vocabulary

    def __getitem__(self, index: slice | Tensor) -> LookupOuter:
        counted = None if self.counted is None else self.counted[index]
        return replace(self, ids=self.ids[index], s=self.s[index], counted=counted)

    def mixed(self, index: Tensor, weights_rc: Tensor) -> LookupOuter:
        return replace(self[index], s=mixed(self.s, index, weights_rc))

    def dense(self) -> Tensor:
        n, c, _, d = self.s.shape
        rows = self.s.new_zeros(n, c, self.vocabulary, d)
        rows.scatter_add_(2, self.ids[:, None, :, None].expand_as(self.s), self.s)
        return rows.mT

    def summed(self) -> Tensor:
        return self.s.sum(2)

    def input_gram(self, weights: Tensor | None = None, memo: Memo | None = None) -> Tensor:
        mask = counting(self.counted, self.s)
        ids = self.ids.flatten() if mask is None else self.ids[mask]
        each = None
        if weights is not None:
            each_nt = weights[:, None].expand_as(self.ids)
            each = each_nt.flatten() if mask is None else each_nt[mask]
        return ids.bincount(each, minlength=self.vocabulary).to(self.s.dtype)

    def output_gram(self) -> Tensor:
        return gram(self.s.flatten(0, 2))

    def left_gram(self) -> Tensor:
        _, s_rcd = self._merged()
        return gram(s_rcd.flatten(0, 1))

    def right_gram(self) -> Tensor:
        key, s_rcd = self._merged()
        total = self.s.new_zeros(self.vocabulary)
        return total.index_add_(0, key % self.vocabulary, s_rcd.square().sum((1, 2)))

    def positions(self, weights: Tensor | None = None) -> float:
        return counted_positions(counting(self.counted, self.s), weights, *self.ids.shape)

    def reduced(self) -> LookupOuter:
        """Itself: an average of unit vectors would need a V × V factor."""
        return self

    def _merged(self) -> tuple[Tensor, Tensor]:
        """(id [r], Σ s [r, C, d]) of every (example, id) that occurs."""
        n, c, t, d = self.s.shape
        key = torch.arange(n, device=self.ids.device)[:, None] * self.vocabulary + self.ids
        unique, place = key.flatten().unique(return_inverse=True)
        total = self.s.new_zeros(len(unique), c, d)
        total.index_add_(0, place, self.s.transpose(1, 2).reshape(n * t, c, d))
        return unique, total

    def squares(
        self, out_basis: Tensor | None, in_basis: Tensor | None, memo: Memo | None = None
    ) -> Tensor:
        assert in_basis is None, "the input basis of a lookup is the identity"
        key, s_rcd = self._merged()
        if out_basis is not None:
            s_rcd = s_rcd @ out_basis
        total = self.s.new_zeros(self.vocabulary, s_rcd.shape[2])
        total.index_add_(0, key % self.vocabulary, s_rcd.square().sum(1))
        return total.T

    def inner(self, x_qoi: Tensor) -> Tensor:
        """Σ_t s_t · x_q[:, id_t], gathered a query at a time."""
        picked = (x_doi.T[self.ids] for x_doi in x_qoi)  # [N, T, d]
        return torch.stack([torch.einsum("ntd,nctd->nc", x_ntd, self.s) for x_ntd in picked])

    def adjoint(self, y_qnc: Tensor) -> Tensor:
        total = self.s.new_zeros(len(y_qnc), self.vocabulary, self.shape[0])
        n, c, t, d = self.s.shape
        flat = self.s.reshape(n, c, t * d)
        for row, y_nc in zip(total, y_qnc, strict=True):
            columns_rd = combined(y_nc[None], flat)[0].reshape(n * t, d)
            row.index_add_(0, self.ids.flatten(), columns_rd)
        return total.mT

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.ids, self.s

    def mapped(self, change: Change) -> LookupOuter:
        return replace(self, ids=change(self.ids), s=change(self.s))

    def rotated(self, out_basis: Tensor, in_basis: Tensor | None) -> LookupOuter:
        assert in_basis is None, "the input basis of a lookup is the identity"
        return replace(self, s=self.s @ out_basis)

    def norms(self) -> Tensor:
        return self.s[:, 0].norm(dim=2).sum(1)
