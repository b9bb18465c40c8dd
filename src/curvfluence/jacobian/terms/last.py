"""Rows of the last layer, whose s are the columns of S themselves: none of them is formed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from curvfluence.jacobian.terms.base import Change, Factored
from curvfluence.jacobian.terms.gram import gram
from curvfluence.jacobian.terms.outer import Outer
from curvfluence.jacobian.terms.products import Memo, mm, raised
from curvfluence.problem.losses.output_hessian import OutputHessian
from curvfluence.runtime.eigen_solver import eigh


@dataclass(frozen=True, eq=False)
class LastOuter(Factored):
    """Rows s ⊗ a with Σ_c s sᵀ = H_n = ∂²ℓ_n/∂f², [K, K]: what sums over the columns need of S is H
    alone, which a loss of many outputs has in closed form (`OutputHessian`).

    Sums over examples and columns cost N K², where K − 1 columns would take N K³. Whatever needs
    the columns themselves takes those of the symmetric root of H, at that cost.
    """

    data: Tensor  # a [N, i]; with `ones`, a column of ones is stored behind it
    hessian: OutputHessian
    biased: bool = False
    ones: bool = False

    @property
    def a(self) -> Tensor:
        return self.data[:, :-1] if self.ones and not self.biased else self.data

    @property
    def n(self) -> int:
        return len(self.data)

    @property
    def c(self) -> int:
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.hessian.tensors[0].shape[1], self.a.shape[1]

    @cached_property
    def s(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The columns of the symmetric root of H, [N, K, K]."""
        values_nk, vectors_nkk = eigh(self.hessian.whole().double())
        roots_nk = values_nk.clamp_min(0).sqrt()  # H is definite but for rounding
        return ((vectors_nkk * roots_nk[:, None]) @ vectors_nkk.mT).to(self.data)

    @property
    def _columns(self) -> Outer:
        return Outer(self.data, self.s, self.biased, self.ones)

    def __getitem__(self, index: slice | Tensor) -> LastOuter:
        return replace(self, data=self.data[index], hessian=self.hessian[index])

    def mixed(self, index: Tensor, weights_rc: Tensor) -> Outer:
        return self._columns.mixed(index, weights_rc)

    def dense(self) -> Tensor:
        return self._columns.dense()

    def summed(self) -> Tensor:
        return self.s

    def input_gram(self, weights: Tensor | None = None, memo: Memo | None = None) -> Tensor:
        none = self.a.new_empty(self.n, 0, 0)
        return Outer(self.data, none, self.biased, self.ones).input_gram(weights, memo)

    def output_gram(self) -> Tensor:
        return self.hessian.summed()

    def left_gram(self) -> Tensor:
        return self.hessian.scaled(self.a.square().sum(1)).summed()

    def right_gram(self) -> Tensor:
        return gram(self.a * self.hessian.traces().sqrt()[:, None])

    def positions(self, weights: Tensor | None = None) -> float:
        return self.n if weights is None else float(weights.sum())

    def reduced(self) -> LastOuter:
        return self

    def squares(
        self, out_basis: Tensor | None, in_basis: Tensor | None, memo: Memo | None = None
    ) -> Tensor:
        """diag(U_Bᵀ H_n U_B)ᵀ ((a U_A)²), summed over n."""
        found = self.hessian.diagonal() if out_basis is None else self.hessian.quadratic(out_basis)
        out_no, up_out = raised(found)
        a_ni, up_a = raised(self.a if in_basis is None else mm(self.a, in_basis))
        return mm(out_no.T, a_ni.square()).mul_(2.0 ** (-up_out - 2 * up_a))

    def inner(self, x_qoi: Tensor) -> Tensor:
        return self._columns.inner(x_qoi)

    def sketched(self, x_oi: Tensor) -> Tensor:
        """‖⟨x, row_n⟩‖ over the columns, [N, 1], which does not hang on a choice of them."""
        out_no = self.a @ x_oi.T
        return self.hessian.quadratic_each(out_no).clamp_min(0).sqrt()[:, None]

    def column_norms(self) -> Tensor:
        return self.norms()[:, None]

    def norms(self) -> Tensor:
        return self.a.norm(dim=1) * self.hessian.traces().sqrt()

    def squared_norms(self) -> Tensor:
        return self._columns.squared_norms()

    def rotated(self, out_basis: Tensor, in_basis: Tensor | None) -> Outer:
        return self._columns.rotated(out_basis, in_basis)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.data, *self.hessian.tensors

    def mapped(self, change: Change) -> LastOuter:
        return replace(self, data=change(self.data), hessian=self.hessian.mapped(change))
