"""Rows that are held as matrices, in a basis."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from curvfluence.jacobian.terms.base import Change, Term
from curvfluence.jacobian.terms.products import Memo, sum_of


@dataclass(frozen=True, eq=False)
class Formed(Term):
    """Rows U_B M U_Aᵀ of a single column, held as M; a basis is orthogonal, None the identity.

    EK-FAC forms M for its eigenvalues, and scores in the same basis need nothing else. With `ones`
    the last input is the bias, which the rows have where `biased`.
    """

    held_nio: Tensor  # Mᵀ
    out_basis: Tensor | None = None  # U_B [o, o]
    in_basis: Tensor | None = None  # U_A [i, i]
    biased: bool = False
    ones: bool = False

    @property
    def n(self) -> int:
        return len(self.held_nio)

    @property
    def c(self) -> int:
        return 1

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.held_nio.shape[2], self.held_nio.shape[1] - self._cut

    @property
    def _cut(self) -> bool:
        """Whether a bias is held that the rows leave out."""
        return self.ones and not self.biased

    def within(self, out_basis: Tensor | None, in_basis: Tensor | None) -> bool:
        """Whether M is U_Bᵀ row U_A in this basis."""
        same = _same(self.out_basis, out_basis) and _same(self.in_basis, in_basis)
        return same and not self._cut

    def __getitem__(self, index: slice | Tensor) -> Formed:
        return replace(self, held_nio=self.held_nio[index])

    def _plain(self) -> Tensor:
        """The rows in the layer's own coordinates, [N, i, o]; a view of M where it has them."""
        rows_nio = self.held_nio
        if self.in_basis is not None:
            rows_nio = self.in_basis @ rows_nio
        if self.out_basis is not None:
            rows_nio = rows_nio @ self.out_basis.T
        return rows_nio[:, :-1] if self._cut else rows_nio

    def dense(self) -> Tensor:
        return self._plain().mT[:, None].clone(memory_format=torch.contiguous_format)

    def summed(self) -> Tensor:
        assert self.ones, "of a layer with a bias"
        m_nio = self.held_nio
        last_no = m_nio[:, -1] if self.in_basis is None else self.in_basis[-1] @ m_nio
        return (last_no if self.out_basis is None else last_no @ self.out_basis.T)[:, None]

    def squares(
        self, out_basis: Tensor | None, in_basis: Tensor | None, memo: Memo | None = None
    ) -> Tensor:
        within = self.rotated(out_basis, in_basis)
        parts = within.slices(within.held_nio[0].numel())
        return sum_of(cast(Formed, part).held_nio.square().sum(0) for part in parts).mT

    def inner(self, x_qoi: Tensor) -> Tensor:
        """With x in the basis, or the rows out of it, whichever are fewer."""
        if (self.out_basis is None and self.in_basis is None) or len(x_qoi) <= self.n:
            x_qoi = torch.nn.functional.pad(x_qoi, (0, 1)) if self._cut else x_qoi
            x_qoi = x_qoi if self.out_basis is None else self.out_basis.T @ x_qoi
            x_qoi = x_qoi if self.in_basis is None else x_qoi @ self.in_basis
            return _products(self.held_nio, x_qoi)
        o, i = self.shape
        parts = [_products(cast(Formed, part)._plain(), x_qoi) for part in self.slices(o * i)]
        return torch.cat(parts, dim=1)

    def adjoint(self, y_qnc: Tensor) -> Tensor:
        m_qio = (y_qnc[:, :, 0] @ self.held_nio.flatten(1)).unflatten(1, self.held_nio.shape[1:])
        return replace(self, held_nio=m_qio)._plain().mT

    def rotated(self, out_basis: Tensor | None, in_basis: Tensor | None) -> Formed:
        if self.within(out_basis, in_basis):
            return Formed(self.held_nio, biased=self.biased)
        if self._cut:
            whole = Formed(self._plain(), biased=self.biased)
            return whole.rotated(out_basis, in_basis)
        right = _between(self.out_basis, out_basis)
        left = _between(self.in_basis, in_basis)
        rows_nio = self.held_nio if left is None else left.T @ self.held_nio
        return Formed(rows_nio if right is None else rows_nio @ right, biased=self.biased)

    def weighted_squares(self, weights_oi: Tensor) -> Tensor:
        if self.out_basis is not None or self.in_basis is not None or self._cut:
            return super().weighted_squares(weights_oi)
        weights_w = weights_oi.mT.flatten()
        parts = [cast(Formed, part).held_nio for part in self.slices(weights_w.numel())]
        return torch.cat([held_nio.square().flatten(1) @ weights_w for held_nio in parts])

    def squared_norms(self) -> Tensor:
        if self._cut:
            return super().squared_norms()
        parts = [cast(Formed, part).held_nio for part in self.slices(self.held_nio[0].numel())]
        return torch.cat([held_nio.square().sum((1, 2)) for held_nio in parts])[:, None]

    def norms(self) -> Tensor:
        return self.held_nio.flatten(1).norm(dim=1)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.held_nio,)

    def mapped(self, change: Change) -> Formed:
        return replace(self, held_nio=change(self.held_nio))

    def to(self, dtype: torch.dtype) -> Formed:
        bases = (self.out_basis, self.in_basis)
        out_basis, in_basis = (None if u is None else u.to(dtype) for u in bases)
        changed = self.mapped(lambda held: held.to(dtype))
        return replace(changed, out_basis=out_basis, in_basis=in_basis)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _between(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """U_oldᵀ U_new."""
    if old is None or new is None:
        return new if old is None else old.T
    return old.T @ new


def _products(rows_nio: Tensor, x_qoi: Tensor) -> Tensor:
    """⟨x_q, row_n⟩, [Q, N, 1]; no copy of x where it was laid out as i × o."""
    x_qw = x_qoi.mT.reshape(len(x_qoi), -1)
    return (rows_nio.flatten(1) @ x_qw.T).T[..., None]
