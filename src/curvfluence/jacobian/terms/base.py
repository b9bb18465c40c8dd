"""Per-example rows of one weight matrix, and the sums that rungs are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from curvfluence.jacobian.terms.products import Memo
from curvfluence.runtime import budget

Change: TypeAlias = Callable[[Tensor], Tensor]


class Term(ABC):
    """The rows [N, C, o, i] of one weight matrix; with `biased`, the last of i is the bias."""

    biased: bool
    shape: tuple[int, int]  # (o, i), the bias included

    @property
    @abstractmethod
    def n(self) -> int: ...

    @property
    @abstractmethod
    def c(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: slice | Tensor) -> Term:
        """Some of the examples."""

    @abstractmethod
    def dense(self) -> Tensor:
        """[N, C, o, i]."""

    @abstractmethod
    def summed(self) -> Tensor:
        """Σ_t s, [N, C, o]: the rows of a bias."""

    def inner(self, x_qoi: Tensor) -> Tensor:
        """⟨x_q, row_nc⟩, [Q, N, C], with rows formed a slice at a time."""
        x_qw = x_qoi.flatten(1)
        parts = [
            (x_qw @ part.dense().flatten(0, 1).flatten(1).T).reshape(len(x_qw), part.n, -1)
            for part in self.slices(x_qw.shape[1])
        ]
        return torch.cat(parts, dim=1)

    def adjoint(self, y_qnc: Tensor) -> Tensor:
        """Σ_n Σ_c y_qnc row_nc, [Q, o, i]: the adjoint of `inner`."""
        total = y_qnc.new_zeros(len(y_qnc), *self.shape)
        for start, part in self.numbered_slices(self.shape[0] * self.shape[1]):
            rows = part.dense().flatten(0, 1).flatten(1)
            y = y_qnc[:, start : start + part.n].flatten(1)
            total += (y @ rows).unflatten(1, self.shape)
        return total

    @abstractmethod
    def rotated(self, out_basis: Tensor, in_basis: Tensor | None) -> Term:
        """U_Bᵀ row U_A; None is the identity."""

    @abstractmethod
    def squares(
        self, out_basis: Tensor | None, in_basis: Tensor | None, memo: Memo | None = None
    ) -> Tensor:
        """Σ_n Σ_c (U_Bᵀ row U_A)² elementwise, [o, i]; None is the identity."""

    def weighted_squares(self, weights_oi: Tensor) -> Tensor:
        """Σ_oi weights_oi row_oi² of single-column rows, [N]."""
        width = self.shape[0] * self.shape[1]
        parts = self.slices(width)
        return torch.cat(
            [p.dense()[:, 0].square_().flatten(1) @ weights_oi.flatten() for p in parts]
        )

    def contracted(self, weights_oi: Tensor) -> Tensor:
        """Σ_i weights_oi row_oi of single-column rows, [N, o]."""
        width = self.shape[0] * self.shape[1]
        return torch.cat([(p.dense()[:, 0] * weights_oi).sum(2) for p in self.slices(width)])

    def numbered_slices(self, width: int) -> Iterator[tuple[int, Term]]:
        """(start, part) such that each part's rows of `width` numbers are about `budget.FORMED`."""
        step = max(1, budget.FORMED // max(1, self.c * width))
        for start in range(0, self.n, step):
            yield start, self[slice(start, start + step)]

    def slices(self, width: int) -> Iterator[Term]:
        return (part for _, part in self.numbered_slices(width))

    @abstractmethod
    def norms(self) -> Tensor:
        """An upper bound of ‖row‖ in the first column, [N]."""

    def squared_norms(self) -> Tensor:
        """‖row‖², [N, C]."""
        width = self.shape[0] * self.shape[1]
        return torch.cat([part.dense().square().sum((2, 3)) for part in self.slices(width)])

    def exact_norms(self) -> Tensor:
        """‖row‖, [N, C], in float64, where the squares of small numbers are no 0."""
        return self.to(torch.float64).squared_norms().sqrt()

    def sketched(self, x_oi: Tensor) -> Tensor:
        """⟨x, row_nc⟩, [N, C]: what tells rows apart."""
        return self.inner(x_oi[None])[0]

    def column_norms(self) -> Tensor:
        """‖row_nc‖, [N, C]: what the rounding of `sketched` goes with."""
        return self.squared_norms().sqrt()

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What it holds; calls on the same input share theirs."""

    @abstractmethod
    def mapped(self, change: Change) -> Term:
        """The same with each of `tensors` changed."""

    def to(self, dtype: torch.dtype) -> Term:
        """The same rows in another dtype."""
        return self.mapped(lambda held: held.to(dtype) if held.is_floating_point() else held)


class Pair(NamedTuple):
    """K-FAC's two sums of one kind of use, A on the side of the layer's inputs."""

    a: Tensor  # Σ_n Σ_t v_n a aᵀ, [i, i] ([i], its diagonal, of a lookup)
    b: Tensor  # Σ_n Σ_t Σ_c s sᵀ, [o, o]
    positions: float  # how many (n, t) count, each as v_n


class Factored(Term):
    """Rows that are held as a and s: what K-FAC's factors are sums of.

    `memo` holds what terms on the same inputs share while a chunk of examples is worked on.
    """

    s: Tensor

    @property
    def n(self) -> int:
        return len(self.s)

    @property
    def c(self) -> int:
        return self.s.shape[1]

    @abstractmethod
    def mixed(self, index: Tensor, weights_rc: Tensor) -> Factored:
        """Rows of a single column: row r is Σ_c weights_rc times column c of example index_r."""

    @abstractmethod
    def input_gram(self, weights: Tensor | None = None, memo: Memo | None = None) -> Tensor:
        """Σ_n Σ_t v_n a aᵀ, [i, i] ([i], its diagonal, for a lookup); v [N] is 1 where None."""

    @abstractmethod
    def output_gram(self) -> Tensor:
        """Σ_n Σ_t Σ_c s sᵀ, [o, o]."""

    @abstractmethod
    def positions(self, weights: Tensor | None = None) -> float:
        """How many (n, t) count, each as v_n."""

    def pairs(self, weights: Tensor | None, memo: Memo | None) -> tuple[Pair, ...]:
        """The sums of K-FAC's factors, of each kind of use by itself."""
        gram = self.input_gram(weights, memo)
        return (Pair(gram, self.output_gram(), self.positions(weights)),)

    @abstractmethod
    def left_gram(self) -> Tensor:
        """Σ_n Σ_c G Gᵀ, [o, o], with G the row as an o × i matrix."""

    @abstractmethod
    def right_gram(self) -> Tensor:
        """Σ_n Σ_c Gᵀ G, [i, i] ([i], its diagonal, for a lookup)."""

    @abstractmethod
    def reduced(self) -> Factored:
        """One position: a averaged and s summed over t."""
