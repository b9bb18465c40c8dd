"""An indefinite matrix through its eigenvalues, and what to do with the negative ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.operators.decomposed import eigh
from curvfluence.curvature.operators.eigen import Eigen
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue, of_spectrum
from curvfluence.curvature.operators.operator import Operator
from curvfluence.errors import InputError, SingularError
from curvfluence.runtime.eigen_solver import eigvalsh


class Treatment(ABC):
    """How an eigenvalue μ of H + diag(w) is inverted at damping λ."""

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @abstractmethod
    def inverse(self, mu: Tensor, damping: float) -> Tensor:
        """The eigenvalues of the inverse."""

    def note(self, mu: Tensor, damping: float) -> str | None:
        """What a result at this damping must say."""
        return None


def _reciprocal(values: Tensor, what: str) -> Tensor:
    # eigenvalues of a symmetric matrix come with an error of a few eps ‖H + diag(w)‖
    floor = 10 * torch.finfo(values.dtype).eps * float(values.abs().max())
    close = int((values.abs() <= floor).sum())
    if close:
        raise SingularError(
            f"{what} has {close} values that cannot be told from 0 (below {floor:.3g}). Use a "
            "larger damping, Relative(0.1) for a start"
        )
    return 1 / values


@dataclass(frozen=True)
class Abs(Treatment):
    """1/(|μ| + λ): negative curvature counts as curvature. The default."""

    def inverse(self, mu: Tensor, damping: float) -> Tensor:
        return _reciprocal(mu.abs() + damping, "|μ| + λ")


@dataclass(frozen=True)
class Plain(Treatment):
    """1/(μ + λ): the formula as it stands; has poles where a negative μ meets −λ."""

    def inverse(self, mu: Tensor, damping: float) -> Tensor:
        return _reciprocal(mu + damping, "μ + λ")


@dataclass(frozen=True)
class Clip(Treatment):
    """1/(max(μ, 0) + λ)."""

    def inverse(self, mu: Tensor, damping: float) -> Tensor:
        return _reciprocal(mu.clamp_min(0) + damping, "max(μ, 0) + λ")


@dataclass(frozen=True)
class Truncate(Treatment):
    """1/(μ + λ), and 0 where μ + λ <= τ."""

    threshold: float

    def __post_init__(self) -> None:
        if not kinds.number(self.threshold, "threshold") > 0:
            raise InputError(f"truncate needs a threshold > 0; seen {self.threshold}")

    @property
    def name(self) -> str:
        return f"truncate({self.threshold:g})"

    def inverse(self, mu: Tensor, damping: float) -> Tensor:
        total = mu + damping
        kept = total > self.threshold
        if not bool(kept.any()):
            raise SingularError(
                f"{self.name} leaves nothing: the largest μ + λ is {float(total.max()):.3g}. Use a "
                "smaller threshold"
            )
        return torch.where(kept, 1 / total, 0.0)

    def note(self, mu: Tensor, damping: float) -> str | None:
        lost = int((mu + damping <= self.threshold).sum())
        return f"{lost} of {len(mu)} directions set to 0: {self.name}" if lost else None


@dataclass(frozen=True, eq=False)
class Symmetric(Operator):
    """An indefinite M with the eigendecomposition of M + diag(w); solves share it at every λ."""

    definite: ClassVar[bool] = False

    matrix: Tensor
    decay: Tensor
    values: Tensor  # μ, ascending
    vectors: Tensor
    treatment: Treatment

    @staticmethod
    def of(matrix: Tensor, decay: Tensor, treatment: Treatment) -> Symmetric:
        shifted = matrix.clone()
        shifted.diagonal().add_(decay)
        values, vectors = eigh(shifted)
        return Symmetric(matrix, decay, values, vectors, treatment)

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.matrix)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.matrix, self.decay, self.vectors, self.values))

    def __matmul__(self, v: Tensor) -> Tensor:
        return v @ self.matrix

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        return next(iter(self.solve_many(v, decay, (damping,))))

    def solve_many(self, v: Tensor, decay: Tensor, dampings: Iterable[float]) -> Iterable[Tensor]:
        if not torch.equal(decay, self.decay):
            raise InputError("the Hessian was decomposed with another weight decay: fit it again")
        rotated = v @ self.vectors
        for damping in dampings:
            yield (rotated * self.treatment.inverse(self.values, damping)) @ self.vectors.T

    def note(self, damping: float) -> str | None:
        return self.treatment.note(self.values, damping)

    def to_dense(self) -> Tensor:
        return self.matrix

    @property
    def uniform(self) -> bool:
        """Whether w shifts every eigenvalue alike: M then has the vectors of M + diag(w)."""
        return bool((self.decay == self.decay[0]).all())

    def eigenvalues(self) -> Tensor:
        """Of M itself; free where the decay is uniform, else a decomposition of its own."""
        if self.uniform:
            return self.values - self.decay[0]
        return eigvalsh(self.matrix)

    def eigenbasis(self) -> Eigen:
        return Eigen(self.vectors, self.eigenvalues()) if self.uniform else Eigen.of(self.matrix)

    def diagonalised(self) -> Symmetric:
        return self

    def mean_eigenvalue(self) -> MeanEigenvalue:
        return of_spectrum(self.eigenvalues())
