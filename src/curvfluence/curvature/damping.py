"""λ: absolute, relative to the curvature's own scale, or chosen against a truth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError


class Damping(ABC):
    """How much λI is added to C + diag(w), given the mean eigenvalue of each block of C."""

    @abstractmethod
    def resolve(self, mean_eigenvalues: Sequence[float]) -> tuple[float, ...]:
        """λ of each block."""


@dataclass(frozen=True)
class Absolute(Damping):
    """The same λ everywhere, in the units of C (loss per squared parameter)."""

    value: float

    def __post_init__(self) -> None:
        kinds.number(self.value, "Absolute damping")

    def resolve(self, mean_eigenvalues: Sequence[float]) -> tuple[float, ...]:
        return (self.value,) * len(mean_eigenvalues)


@dataclass(frozen=True)
class Relative(Damping):
    """λ = value × the mean eigenvalue of C (mean absolute for H), taken before w is added.

    Per block for block-diagonal rungs; one number for GGN and Hessian. Without units.
    """

    value: float

    def __post_init__(self) -> None:
        kinds.number(self.value, "Relative damping")

    def resolve(self, mean_eigenvalues: Sequence[float]) -> tuple[float, ...]:
        return tuple(self.value * mean for mean in mean_eigenvalues)


def require_damping(value: object) -> None:
    if not isinstance(value, Damping):
        raise InputError(
            f"damping must be an object such as Relative(0.1) or Absolute(1e-3); seen {value!r}"
        )


class Judge(Protocol):
    """A truth that can say how well predictions for its left-out groups match it."""

    @property
    def left_out(self) -> Tensor:
        """[m, N]: how much of each training example each group leaves out."""
        ...

    def judge(self, predicted_mq: Tensor) -> tuple[float, float]:
        """(score on the validation queries, score on the held-out queries); higher is better."""
        ...


@dataclass(frozen=True)
class BestOf(Damping):
    """Of `candidates`, the one whose group predictions match `truth` best on validation queries.

    The score that a result reports is the one on the held-out queries. Cost: one solve and one
    score matrix a candidate. Errors: `InputError` without a truth.
    """

    candidates: tuple[Damping, ...]
    truth: Judge | None = None

    def __post_init__(self) -> None:
        if not self.candidates:
            raise InputError("BestOf needs at least one candidate")
        if any(isinstance(candidate, BestOf) for candidate in self.candidates):
            raise InputError("BestOf cannot choose among BestOf")
        for candidate in self.candidates:
            if not isinstance(candidate, Damping):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InputError(
                    f"a candidate is a damping such as Absolute(1e-3); seen {candidate!r}"
                )
        if self.truth is not None and not callable(getattr(self.truth, "judge", None)):
            raise InputError(
                f"truth must be able to judge predictions, as cf.fidelity.SubsetTruth; seen "
                f"{self.truth!r}"
            )
        if self.truth is None:
            raise InputError(
                "BestOf without a truth: there is nothing to choose by. Give it retrained "
                "subsets (truth=...), or use Relative(0.1)"
            )

    def resolve(self, mean_eigenvalues: Sequence[float]) -> tuple[float, ...]:
        raise InputError("BestOf is resolved by influence(), which has queries to choose by")
