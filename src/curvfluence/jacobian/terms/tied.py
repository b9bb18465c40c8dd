"""Rows of a weight that is looked up in and multiplied by: an embedding tied to an output layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from curvfluence.jacobian.terms.base import Change, Factored, Pair
from curvfluence.jacobian.terms.gram import gram
from curvfluence.jacobian.terms.lookup import LookupOuter
from curvfluence.jacobian.terms.products import Memo, mm
from curvfluence.jacobian.terms.shared import SharedOuter


@dataclass(frozen=True, eq=False)
class TiedOuter(Factored):
    """Rows Σ_t s_t ⊗ e_{id_t} + (Σ_t p_t ⊗ a_t)ᵀ, d × V: of an embedding's calls and, as `head`
    [V, d], of a Linear's. The d are its outputs and V its inputs, as of any lookup."""

    lookup: LookupOuter
    head: SharedOuter
    biased: bool = False

    @property
    def s(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.lookup.s

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.lookup.shape

    def __getitem__(self, index: slice | Tensor) -> TiedOuter:
        return replace(self, lookup=self.lookup[index], head=self.head[index])

    def mixed(self, index: Tensor, weights_rc: Tensor) -> TiedOuter:
        head = self.head.mixed(index, weights_rc)
        return replace(self, lookup=self.lookup.mixed(index, weights_rc), head=head)

    def dense(self) -> Tensor:
        return self.lookup.dense().add_(self.head.dense().mT)

    def summed(self) -> Tensor:
        raise NotImplementedError("a tied weight has no bias among its rows")

    def pairs(self, weights: Tensor | None, memo: Memo | None) -> tuple[Pair, ...]:
        """Those of the embedding, and those of the Linear: its a a, d × d, and of its p, one for
        each of V, the squares alone."""
        squares = self.head.s.square().sum((0, 1, 2))
        of_head = Pair(squares, self.head.input_gram(weights), self.head.positions(weights))
        return *self.lookup.pairs(weights, memo), of_head

    def input_gram(self, weights: Tensor | None = None, memo: Memo | None = None) -> Tensor:
        raise NotImplementedError("each use of a tied weight has factors of its own: see pairs")

    def output_gram(self) -> Tensor:
        raise NotImplementedError("each use of a tied weight has factors of its own: see pairs")

    def positions(self, weights: Tensor | None = None) -> float:
        return self.lookup.positions(weights) + self.head.positions(weights)

    def reduced(self) -> TiedOuter:
        """Itself, as of any lookup."""
        return self

    def left_gram(self) -> Tensor:
        return sum(
            (gram(rows.transpose(2, 3).flatten(0, 2)) for rows in self._formed()),
            start=self.s.new_zeros(self.shape[0], self.shape[0]),
        )

    def right_gram(self) -> Tensor:
        start = self.s.new_zeros(self.shape[1])
        return sum((rows.square_().sum((0, 1, 2)) for rows in self._formed()), start=start)

    def squares(
        self, out_basis: Tensor | None, in_basis: Tensor | None, memo: Memo | None = None
    ) -> Tensor:
        """The sum over uses stands inside the square, so rows are formed, a slice at a time."""
        turned = self if out_basis is None else self.rotated(out_basis, in_basis)
        start = self.s.new_zeros(*turned.shape)
        return sum((rows.square_().sum((0, 1)) for rows in turned._formed()), start=start)

    def _formed(self) -> Iterator[Tensor]:
        """[n, C, d, V], a slice of examples at a time."""
        return (part.dense() for part in self.slices(self.shape[0] * self.shape[1]))

    def inner(self, x_qoi: Tensor) -> Tensor:
        return self.lookup.inner(x_qoi).add_(self.head.inner(x_qoi.mT))

    def adjoint(self, y_qnc: Tensor) -> Tensor:
        return self.lookup.adjoint(y_qnc) + self.head.adjoint(y_qnc).mT

    def rotated(self, out_basis: Tensor, in_basis: Tensor | None) -> TiedOuter:
        turned = replace(self.head, data=mm(self.head.a, out_basis), ones=False)
        return replace(self, lookup=self.lookup.rotated(out_basis, in_basis), head=turned)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return *self.lookup.tensors, *self.head.tensors

    def mapped(self, change: Change) -> TiedOuter:
        return replace(self, lookup=self.lookup.mapped(change), head=self.head.mapped(change))

    def norms(self) -> Tensor:
        return self.lookup.norms() + self.head.norms()
