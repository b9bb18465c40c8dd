"""Rows of rank one: no position is shared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvfluence.jacobian.terms.base import Change, Factored
from curvfluence.jacobian.terms.blas import matmul
from curvfluence.jacobian.terms.gram import gram
from curvfluence.jacobian.terms.products import Memo, combined, mixed, mm, raised, rooted, shared
from curvfluence.runtime import budget


@dataclass(frozen=True, eq=False)
class Outer(Factored):
    """Rows s ⊗ a: no position is shared, so a row has rank one."""

    data: Tensor  # a [N, i]; with `ones`, a column of ones is stored behind it
    s: Tensor  # [N, C, o]
    biased: bool = False
    ones: bool = False

    @property
    def a(self) -> Tensor:
        return self.data[:, :-1] if self.ones and not self.biased else self.data

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.s.shape[2], self.a.shape[1]

    def __getitem__(self, index: slice | Tensor) -> Outer:
        return replace(self, data=self.data[index], s=self.s[index])

    def mixed(self, index: Tensor, weights_rc: Tensor) -> Outer:
        return replace(self[index], s=mixed(self.s, index, weights_rc))

    def dense(self) -> Tensor:
        return self.s[..., None] * self.a[:, None, None, :]

    def summed(self) -> Tensor:
        return self.s

    def input_gram(self, weights: Tensor | None = None, memo: Memo | None = None) -> Tensor:
        if weights is not None:
            return gram(rooted(self.a, weights))
        return shared(memo, "gram", self.a, lambda: gram(self.a))

    def output_gram(self) -> Tensor:
        return gram(self.s.flatten(0, 1))

    def left_gram(self) -> Tensor:
        return gram((self.s * self.a.norm(dim=1)[:, None, None]).flatten(0, 1))

    def right_gram(self) -> Tensor:
        return gram(self.a * self.s.flatten(1).norm(dim=1, keepdim=True))

    def positions(self, weights: Tensor | None = None) -> float:
        return self.n if weights is None else float(weights.sum())

    def reduced(self) -> Outer:
        return self

    def squares(
        self, out_basis: Tensor | None, in_basis: Tensor | None, memo: Memo | None = None
    ) -> Tensor:
        """(Σ_c (s U_B)²)ᵀ ((a U_A)²): two GEMMs and no row (George et al. 2018 for rank one)."""
        s_nco, up_s = raised(self.s if out_basis is None else mm(self.s, out_basis))
        a_ni, up_a = raised(self.a if in_basis is None else mm(self.a, in_basis))
        return mm(s_nco.square().sum(1).T, a_ni.square()).mul_(2.0 ** (-2 * (up_s + up_a)))

    def inner(self, x_qoi: Tensor) -> Tensor:
        """GEMMs of 2 Q N o i operations, x a first and then s, slice by slice; or
        against rows, where there is one column and the layer's inputs are fewer than the queries.
        """
        q, o, i = x_qoi.shape
        if self.c == 1 and i <= q:
            return super().inner(x_qoi)
        several = max(1, budget.OPERAND * (1 if self.c == 1 else 8) // (o * i))
        step = max(64, budget.INNER // (min(q, several) * o))
        total = self.s.new_empty(q, self.n, self.c)
        for first in range(0, q, several):
            x_ri = x_qoi[first : first + several].reshape(-1, i)
            for start in range(0, self.n, step):
                a_ni, s_nco = self.a[start : start + step], self.s[start : start + step]
                xa_nqo = matmul(a_ni, x_ri.T).view(len(a_ni), -1, o)
                if self.c == 1:
                    found_nqc = xa_nqo.mul_(s_nco).sum(2, keepdim=True)
                else:
                    found_nqc = xa_nqo @ s_nco.mT
                total[first : first + several, start : start + step] = found_nqc.transpose(0, 1)
        return total

    def adjoint(self, y_qnc: Tensor) -> Tensor:
        columns_qno = combined(y_qnc, self.s)
        pulled = columns_qno.mT.flatten(0, 1) @ self.a  # [Q o, i]
        return pulled.unflatten(0, (len(y_qnc), -1))

    def squared_norms(self) -> Tensor:
        return self.a.square().sum(1)[:, None] * self.s.square().sum(2)

    def exact_norms(self) -> Tensor:
        """Sums alone are in float64."""
        a_n1 = torch.linalg.vector_norm(self.a, dim=1, keepdim=True, dtype=torch.float64)
        return a_n1 * torch.linalg.vector_norm(self.s, dim=2, dtype=torch.float64)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.data, self.s

    def mapped(self, change: Change) -> Outer:
        return replace(self, data=change(self.data), s=change(self.s))

    def rotated(self, out_basis: Tensor, in_basis: Tensor | None) -> Outer:
        a = self.a if in_basis is None else mm(self.a, in_basis)
        return Outer(a, mm(self.s, out_basis), self.biased)

    def weighted_squares(self, weights_oi: Tensor) -> Tensor:
        return ((self.a.square() @ weights_oi.T) * self.s[:, 0].square()).sum(1)

    def contracted(self, weights_oi: Tensor) -> Tensor:
        return (self.a @ weights_oi.T) * self.s[:, 0]

    def norms(self) -> Tensor:
        return self.a.norm(dim=1) * self.s[:, 0].norm(dim=1)
