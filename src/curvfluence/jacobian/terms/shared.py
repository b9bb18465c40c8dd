"""Rows of a weight that several positions share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from curvfluence.jacobian.terms.base import Change, Factored
from curvfluence.jacobian.terms.blas import matmul
from curvfluence.jacobian.terms.formed import Formed
from curvfluence.jacobian.terms.gram import gram
from curvfluence.jacobian.terms.outer import Outer
from curvfluence.jacobian.terms.products import (
    Memo,
    combined,
    counted_positions,
    counting,
    mixed,
    mm,
    rooted,
    shared,
    sum_of,
)

CANCELLED = 1e-6  # of the squared norms of terms, below which a sum of them has lost its digits
FORMED = 2  # times the numbers of a and s up to which formed rows are kept


def is_compact(o: int, i: int, t: int) -> bool:
    """Whether a single column's row of o × i is not much larger than the a and s of t positions."""
    return o * i <= FORMED * t * (o + i)


@dataclass(frozen=True, eq=False)
class SharedOuter(Factored):
    """Rows Σ_t s_t ⊗ a_t. `counted` [N, T] says which positions count in the factors of `expand`
    and `reduce` where a loss leaves some out; those with a gradient do in any case."""

    data: Tensor  # a [N, T, i]; with `ones`, a column of ones is stored behind it
    s: Tensor  # [N, C, T, o]
    biased: bool = False
    counted: Tensor | None = None
    ones: bool = False

    @property
    def a(self) -> Tensor:
        return self.data[:, :, :-1] if self.ones and not self.biased else self.data

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.s.shape[3], self.a.shape[2]

    def __getitem__(self, index: slice | Tensor) -> SharedOuter:
        counted = None if self.counted is None else self.counted[index]
        return replace(self, data=self.data[index], s=self.s[index], counted=counted)

    def mixed(self, index: Tensor, weights_rc: Tensor) -> SharedOuter:
        return replace(self[index], s=mixed(self.s, index, weights_rc))

    def dense(self) -> Tensor:
        return self.s.mT @ self.a[:, None]

    def squared_norms(self) -> Tensor:
        """Σ_t Σ_u (a_t·a_u)(s_t·s_u) where that is fewer operations and float64, but of the rows
        themselves where terms cancel and would leave their rounding behind."""
        (o, i), t = self.shape, self.a.shape[1]
        if self.s.dtype != torch.float64 or self.c * o * i <= t * (i + self.c * o):
            return super().squared_norms()
        found: list[Tensor] = []
        for part in self.slices((1 + self.c) * t * t):
            part = cast(SharedOuter, part)
            pairs_nctu = (part.a @ part.a.mT)[:, None] * (part.s @ part.s.mT)
            norms_nc = pairs_nctu.sum((2, 3))
            terms_nc = pairs_nctu.diagonal(dim1=2, dim2=3).sum(2)
            gone = (norms_nc < CANCELLED * terms_nc).any(1).nonzero()[:, 0]
            if len(gone):
                norms_nc[gone] = super(SharedOuter, part[gone]).squared_norms()
            found.append(norms_nc)
        return torch.cat(found)

    def summed(self) -> Tensor:
        return self.s.sum(2)

    def input_gram(self, weights: Tensor | None = None, memo: Memo | None = None) -> Tensor:
        mask = counting(self.counted, self.s)
        if mask is None and weights is None:
            return shared(memo, "gram", self.a, lambda: gram(self.a.flatten(0, 1)))
        a = self.a if weights is None else rooted(self.a, weights)
        return gram(a.flatten(0, 1) if mask is None else a[mask])

    def output_gram(self) -> Tensor:
        return gram(self.s.flatten(0, 2))

    def left_gram(self) -> Tensor:
        return sum_of(gram(rows.flatten(0, 2)) for rows in self._within(None, None, None))

    def right_gram(self) -> Tensor:
        parts = self._within(None, None, None)
        return sum_of(gram(rows.permute(0, 2, 3, 1).flatten(0, 2)) for rows in parts)

    def positions(self, weights: Tensor | None = None) -> float:
        return counted_positions(counting(self.counted, self.s), weights, self.n, self.a.shape[1])

    def reduced(self) -> Outer:
        mask = counting(self.counted, self.s)
        if mask is None:
            return Outer(self.a.mean(1), self.s.sum(2), self.biased)
        share = mask.to(self.a.dtype) / mask.sum(1, keepdim=True).clamp_min(1)
        return Outer((self.a * share[..., None]).sum(1), self.s.sum(2), self.biased)

    def squares(
        self, out_basis: Tensor | None, in_basis: Tensor | None, memo: Memo | None = None
    ) -> Tensor:
        """The sum over t stands inside the square, so rows are formed, a slice at a time."""
        o, i = self.shape
        o = o if out_basis is None else out_basis.shape[1]
        i = i if in_basis is None else in_basis.shape[1]
        total_io = self.s.new_zeros(i, o)
        for rows_nico in self._within(out_basis, in_basis, memo):
            total_io += rows_nico.square_().sum(0).sum(1)  # both at once is 5 to 10 times slower
        return total_io.mT

    @property
    def compact(self) -> bool:
        """Whether the rows, formed, are not much larger than a and s."""
        return self.c == 1 and is_compact(*self.shape, self.a.shape[1])

    @property
    def smaller_formed(self) -> bool:
        """Whether a row, formed, is fewer numbers than its a and s."""
        (o, i), t = self.shape, self.a.shape[1]
        return o * i <= t * (o + i)

    def formed(
        self, out_basis: Tensor | None, in_basis: Tensor | None, memo: Memo | None = None
    ) -> Formed:
        """The rows as matrices in a basis; of a single column."""
        held_nio: Tensor | None = None
        start, (o, i) = 0, self.shape
        for rows_nico in self._within(out_basis, in_basis, memo):
            rows_nio = rows_nico[:, :, 0]
            if len(rows_nio) == self.n:  # a single slice is not copied
                held_nio = rows_nio
                break
            held_nio = self.s.new_empty(self.n, i, o) if held_nio is None else held_nio
            held_nio[start : start + len(rows_nio)] = rows_nio
            start += len(rows_nio)
        held_nio = self.s.new_empty(self.n, i, o) if held_nio is None else held_nio
        return Formed(held_nio, out_basis, in_basis, self.biased, ones=self.biased)

    def _within(
        self, out_basis: Tensor | None, in_basis: Tensor | None, memo: Memo | None
    ) -> Iterator[Tensor]:
        """U_Bᵀ row U_A as [n, i, C, o], a slice of examples at a time.

        Each basis goes to T vectors or to the rows, whichever are fewer.
        """
        o, i = self.shape
        t = self.a.shape[1]
        a, s = self.a, self.s
        if in_basis is not None and t <= self.c * o:
            basis, in_basis = in_basis, None
            a = shared(memo, ("turned", id(basis)), a, lambda: mm(self.a, basis))
        if out_basis is not None and t <= i:
            s, out_basis = mm(s, out_basis), None
        turned = replace(self, data=a, s=s, ones=False)
        for part in turned.slices(o * i):
            rows = cast(SharedOuter, part)._turned()
            if in_basis is not None:
                rows = (in_basis.T @ rows.flatten(2)).unflatten(2, rows.shape[2:])
            if out_basis is not None:
                rows = rows @ out_basis
            yield rows

    def _turned(self) -> Tensor:
        """The rows as [n, i, C, o]: one product an example whatever C."""
        n, c, t, o = self.s.shape
        s_nto = self.s[:, 0] if c == 1 else self.s.transpose(1, 2).reshape(n, t, c * o)
        return matmul(self.a.mT, s_nto).unflatten(2, (c, o))

    def inner(self, x_qoi: Tensor) -> Tensor:
        """Rows first where that is fewer operations than X a at every position. With one column
        the rows stand on the left of the product: few queries on the right are a third faster."""
        q, (o, i) = len(x_qoi), self.shape
        t = self.a.shape[1]
        if self.c * (t + q) <= q * t:
            x_qw = x_qoi.mT.reshape(q, i * o)  # no copy where x was laid out as i × o
            found = [
                torch.einsum("qio,nico->qnc", x_qoi.mT, rows)
                if self.c > 1
                else (rows.flatten(1) @ x_qw.T).T[..., None]
                for part in self.slices(o * i)
                for rows in (cast(SharedOuter, part)._turned(),)
            ]
            return torch.cat(found, dim=1)
        parts: list[Tensor] = []
        for part in self.slices(q * t * o // max(1, self.c)):
            part = cast(SharedOuter, part)
            xa_qonT = x_qoi.reshape(q * o, i) @ part.a.flatten(0, 1).T
            parts.append(torch.einsum("qont,ncto->qnc", xa_qonT.view(q, o, part.n, t), part.s))
        return torch.cat(parts, dim=1)

    def adjoint(self, y_qnc: Tensor) -> Tensor:
        a_ri = self.a.flatten(0, 1)
        n, c, t, o = self.s.shape
        flat = self.s.reshape(n, c, t * o)
        each = (combined(y_nc[None], flat)[0].reshape(n * t, o) for y_nc in y_qnc)
        return torch.stack([columns_ro.T @ a_ri for columns_ro in each])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.data, self.s

    def mapped(self, change: Change) -> SharedOuter:
        return replace(self, data=change(self.data), s=change(self.s))

    def rotated(self, out_basis: Tensor, in_basis: Tensor | None) -> SharedOuter:
        a = self.a if in_basis is None else mm(self.a, in_basis)
        return replace(self, data=a, s=mm(self.s, out_basis), ones=False)

    def norms(self) -> Tensor:
        return (self.a.norm(dim=2) * self.s[:, 0].norm(dim=2)).sum(1)
