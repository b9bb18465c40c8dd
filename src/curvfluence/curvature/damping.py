"""λ: absolute, relative to the curvature's own scale, or chosen against a truth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue
from curvfluence.errors import InputError

NAMED = 4  # blocks that a note names


class Damped(Protocol):
    """What is damped: a curvature, block by block."""

    @property
    def blocks(self) -> Sequence[Named]:
        """Its blocks."""
        ...

    @property
    def mean_eigenvalues(self) -> Sequence[MeanEigenvalue]:
        """Of each block."""
        ...


class Named(Protocol):
    """A block."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def size(self) -> int:
        """Its number of parameters."""
        ...


class Damping(ABC):
    """How much λI is added to C + diag(w)."""

    @abstractmethod
    def resolve(self, curvature: Damped) -> tuple[float, ...]:
        """λ of each block."""

    def note(self, curvature: Damped) -> str | None:
        """What a result must say of λ."""
        return None

    def __str__(self) -> str:
        """As a user writes it."""
        values = (f"{getattr(self, field.name)!r}" for field in fields(self))  # pyright: ignore[reportArgumentType]
        return f"{type(self).__name__}({', '.join(values)})"


@dataclass(frozen=True)
class Absolute(Damping):
    """The same λ everywhere, in the units of C (loss per squared parameter)."""

    value: float

    def __post_init__(self) -> None:
        kinds.number(self.value, "Absolute damping")

    def resolve(self, curvature: Damped) -> tuple[float, ...]:
        return (self.value,) * len(curvature.blocks)


@dataclass(frozen=True)
class Relative(Damping):
    """λ = value × the mean eigenvalue of C (mean absolute for H), taken before w is added.

    Per block for block-diagonal rungs; one number for GGN and Hessian. Without units. The mean is
    over the eigenvalues above n ε max (n those of the block, ε of float64); of exact blocks, whose
    eigenvalues are not at hand, over as many as can be other than 0: rows that are not 0, and no
    more than the data make. Where some are left out a note gives the count.
    """

    value: float

    def __post_init__(self) -> None:
        kinds.number(self.value, "Relative damping")

    def resolve(self, curvature: Damped) -> tuple[float, ...]:
        return tuple(self.value * mean.value for mean in curvature.mean_eigenvalues)

    def note(self, curvature: Damped) -> str | None:
        pairs = list(zip(curvature.blocks, curvature.mean_eigenvalues, strict=True))
        short = [(b, mean.count) for b, mean in pairs if mean.count < b.size]
        if not short:
            return None
        listed = [f"{count:,} of {b.size:,} in block {b.name}" for b, count in short[:NAMED]]
        more = [f"fewer than all in {len(short) - NAMED} more"] if len(short) > NAMED else []
        every = ["all in the others"] if len(short) < len(pairs) else []
        return (
            "the relative damping is of the mean over the eigenvalues that are not 0: "
            + ", ".join([*listed, *more, *every])
        )


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
        if not isinstance(self.candidates, tuple | list) or not self.candidates:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"BestOf needs a tuple of dampings, one or more; seen {self.candidates!r}"
            )
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

    def resolve(self, curvature: Damped) -> tuple[float, ...]:
        raise InputError("BestOf is resolved by influence(), which has queries to choose by")
