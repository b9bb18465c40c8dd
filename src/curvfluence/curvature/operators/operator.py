"""The one interface of a block's curvature: a symmetric matrix, its products and its inverse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from curvfluence.curvature.operators.low_rank_inverse import LowRankInverse
from curvfluence.curvature.operators.low_rank_search import Sample, Search
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue
from curvfluence.curvature.operators.solution import InParameters, Solution
from curvfluence.curvature.places import Places
from curvfluence.jacobian.rows import Rows
from curvfluence.runtime.said import say


@dataclass(frozen=True)
class Against:
    """What solved rows will meet: so many training examples, of which the rows of some are
    `cached`, in whatever form."""

    examples: int
    cached: tuple[Rows, ...] = ()


class Operator(ABC):
    """A symmetric n × n matrix M, the curvature of one block.

    It says of itself whether it is `definite` (M ⪰ 0: its spectrum may be given to another basis),
    and what relative residual its inverse was asked for (`tolerance`; None where it is direct).
    """

    size: int
    definite: ClassVar[bool] = True
    tolerance: float | None = None

    @abstractmethod
    def __matmul__(self, v: Tensor) -> Tensor:
        """M v for v [..., n] (M acts on the last axis)."""

    @abstractmethod
    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        """(M + diag(decay) + damping I)⁻¹ v for v [..., n]."""

    def inverted(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        """The matrix that `solve` inverts, times v: (M + diag(decay) + damping I) v."""
        return self @ v + (decay + damping) * v

    @abstractmethod
    def to_dense(self) -> Tensor:
        """M, [n, n]."""

    @abstractmethod
    def eigenvalues(self) -> Tensor:
        """Eigenvalues of M, [n], in no particular order."""

    @abstractmethod
    def eigenbasis(self) -> Diagonalised:
        """M with its eigenvectors at hand: itself where it has them."""

    def diagonalised(self) -> Operator:
        """The same matrix and the same inverse, with eigenvectors at hand for whoever asks for
        both more than once."""
        return self.eigenbasis()

    @abstractmethod
    def mean_eigenvalue(self) -> MeanEigenvalue:
        """Mean |eigenvalue| of M over those that can be told from 0: the unit of `Relative`."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that the operator holds."""

    def note(self, damping: float) -> str | None:
        """What a result at this damping must say of the inverse."""
        return None

    def tell_short(self, relative_q: Tensor) -> None:
        """Say where an iteration stopped short, for results that state no residuals."""
        worst = float(relative_q.max()) if len(relative_q) else 0.0
        if self.tolerance is not None and not worst <= 2 * self.tolerance:
            say(
                f"an inverse by iteration stopped at a relative residual of {worst:.2g}, "
                f"{self.tolerance:g} was wanted: allow more iterations or products, use a larger "
                "damping, or problem.to(torch.float64)"
            )

    def within(self, tolerance: float) -> Operator:
        """The same matrix with an inverse by iteration to another relative residual; itself where
        the inverse is direct."""
        return self

    def solve_many(self, v: Tensor, decay: Tensor, dampings: Iterable[float]) -> Iterable[Tensor]:
        """`solve` at each damping in turn; operators that can share work override it."""
        for damping in dampings:
            yield self.solve(v, decay, damping)

    def solve_rows(
        self, places: Places, rows: Rows, decay: Tensor, damping: float, against: Against
    ) -> Solution:
        """`solve` for the block's part of single-column rows, in whichever coordinates are cheaper
        for what the solution will meet; here the parameters' own."""
        x_qn = self.solve(places.dense(rows)[:, 0], decay, damping)
        return InParameters(places, x_qn)

    def low_rank_inverse(
        self, places: Places, queries: Rows, decay: Tensor, damping: float, sample: Sample
    ) -> LowRankInverse | Search | None:
        """The inverse as few products, or a search for them, where scores of these queries are
        cheaper by that."""
        return None

    def quadratic(self, places: Places, rows: Rows, decay: Tensor, damping: float) -> Tensor:
        """rᵀ (M + diag(decay) + damping I)⁻¹ r of the block's part of single-column rows, [N]."""
        r_nn = places.dense(rows)[:, 0]
        return (r_nn * self.solve(r_nn, decay, damping)).sum(1)

    def squared_norm(self) -> float:
        """‖M‖² in Frobenius norm, summed in float64."""
        return squared(self.to_dense())

    def diagonal_entries(self) -> Tensor:
        """diag(M), [n]."""
        return self.to_dense().diagonal()

    def squared_distance(self, other: Operator) -> float:
        """‖M − M'‖² in Frobenius norm, summed in float64."""
        for one, its in ((other, self), (self, other)):
            found = one.squared_distance_of(its)
            if found is not None:
                return found
        return squared(self.to_dense(), other.to_dense())

    def squared_distance_of(self, other: Operator) -> float | None:
        """The same where this operator's form spares a dense matrix of the other; else None."""
        return None


class Diagonalised(Operator):
    """M = U diag(Λ) Uᵀ with both at hand."""

    def eigenbasis(self) -> Diagonalised:
        return self

    def diagonalised(self) -> Operator:
        return self

    @abstractmethod
    def with_eigenvalues(self, values: Tensor) -> Diagonalised:
        """The same U with other eigenvalues, [n], in the order of `eigenvalues()`."""

    @abstractmethod
    def diagonal_of(self, matrix: Tensor) -> Tensor:
        """diag(Uᵀ matrix U), [n], in the order of `eigenvalues()`."""

    @abstractmethod
    def coordinates(self, v: Tensor) -> Tensor:
        """Uᵀ v of each row, [..., n], in the order of `eigenvalues()`."""

    @abstractmethod
    def eigenvectors(self, which: Tensor) -> Tensor:
        """Columns of U by number, [n, k]."""

    def leading(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` largest eigenvalues, descending, and their eigenvectors, [n, count]."""
        values, order = self.eigenvalues().sort(descending=True)
        return values[:count], self.eigenvectors(order[:count])


def squared(a: Tensor, b: Tensor | None = None, rows: int = 512) -> float:
    """‖a − b‖² in float64, a slice of rows at a time."""
    others = [None] * -(-len(a) // rows) if b is None else b.split(rows)
    total = 0.0
    for x, y in zip(a.split(rows), others, strict=True):
        gap = x.double() if y is None else x.double() - y.double()
        total += float(gap.square().sum())
    return total
