"""The one interface: a curvature is small operators on disjoint blocks of the parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from curvfluence.curvature.damping import Absolute, Damping
from curvfluence.curvature.operators.places import Places, Whole
from curvfluence.errors import InputError, SingularError
from curvfluence.problem.parameters import Parameters

FALLBACK_SHARE = 0.05  # of P, above which the result's name says that fallbacks were used


class Operator(ABC):
    """A symmetric n × n matrix M, the curvature of one block."""

    size: int

    @abstractmethod
    def __matmul__(self, v: Tensor) -> Tensor:
        """M v for v [..., n] (M acts on the last axis)."""

    @abstractmethod
    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        """(M + diag(decay) + damping I)⁻¹ v for v [..., n]."""

    @abstractmethod
    def to_dense(self) -> Tensor:
        """M, [n, n]."""

    @abstractmethod
    def eigenvalues(self) -> Tensor:
        """Eigenvalues of M, [n], in no particular order."""

    @abstractmethod
    def mean_eigenvalue(self) -> float:
        """Mean |eigenvalue| of M: the unit of `Relative` damping. trace/n where M ⪰ 0."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that the operator holds."""

    def note(self, damping: float) -> str | None:
        """What a result at this damping must say of the inverse."""
        return None

    def solve_many(self, v: Tensor, decay: Tensor, dampings: Iterable[float]) -> Iterable[Tensor]:
        """`solve` at each damping in turn; operators that can share work override it."""
        for damping in dampings:
            yield self.solve(v, decay, damping)


def require_positive(smallest: float, largest: float, *, n: int, eps: float, what: str) -> None:
    """Raise `SingularError` where the smallest eigenvalue cannot be told from zero."""
    if not smallest > max(0.0, n * eps * abs(largest)):  # also where it is NaN
        raise SingularError(
            f"{what} cannot be inverted: its smallest eigenvalue (or pivot) is {smallest:.3g} next "
            f"to {largest:.3g}. Use a larger damping, Relative(0.1) for a start"
        )


@dataclass(frozen=True, eq=False)
class Block:
    """An operator on the parameters at `places` of the flat vector; `rule` says what it is."""

    name: str
    parameters: tuple[str, ...]
    places: Places
    operator: Operator
    rule: str
    fallback: bool = False

    @property
    def size(self) -> int:
        return self.places.size

    @property
    def index(self) -> Tensor:
        """The place of each entry in the flat vector, [n]."""
        return self.places.index


@dataclass(frozen=True)
class CoverageLine:
    """One line of the coverage: which parameters, how many numbers, by what rule."""

    block: str
    parameters: tuple[str, ...]
    count: int
    rule: str
    fallback: bool


@dataclass(frozen=True)
class Cost:
    """What fitting took and what the fitted value holds."""

    fit_seconds: float
    nbytes: int


@dataclass(frozen=True, eq=False)
class Curvature:
    """C of one rung: an immutable value.

    `matvec`, `to_dense` and `eigenvalues` speak of C, the mean curvature of the data term;
    `solve(v, damping)` applies (C + diag(w) + λI)⁻¹ with `decay` = w [P]. Vectors are flat, in the
    order of `parameters`. `fixed_damping` is set where the rung's definition fixes λ (Identity).
    """

    rung: str
    parameters: Parameters
    blocks: tuple[Block, ...]
    decay: Tensor
    fisher: str | None = None
    fixed_damping: Absolute | None = None
    notes: tuple[str, ...] = ()
    fitted_on: str = ""  # `Problem.fingerprint`
    cost: Cost = field(default_factory=lambda: Cost(0.0, 0))

    @cached_property
    def coverage(self) -> tuple[CoverageLine, ...]:
        return tuple(
            CoverageLine(b.name, b.parameters, b.size, b.rule, b.fallback) for b in self.blocks
        )

    @cached_property
    def fallback_share(self) -> float:
        """The share of P that a fallback covers."""
        return sum(c.count for c in self.coverage if c.fallback) / self.parameters.count

    @property
    def name(self) -> str:
        """The rung, and that fallbacks were used where they hold more than 5% of P."""
        if self.fallback_share <= FALLBACK_SHARE:
            return self.rung
        return f"{self.rung} + fallbacks for {self.fallback_share:.0%}"

    def matvec(self, v: Tensor) -> Tensor:
        """C v for v [..., P]."""
        self._require_length(v)
        out = torch.zeros_like(v)
        for block in self.blocks:
            block.places.put(out, block.operator @ block.places.take(v))
        return out

    def lambdas(self, damping: Damping) -> tuple[float, ...]:
        """λ of each block."""
        if self.fixed_damping is not None:
            damping = self.fixed_damping
        means = [block.operator.mean_eigenvalue() for block in self.blocks]
        found = damping.resolve(means)
        for block, mean, value in zip(self.blocks, means, found, strict=True):
            if mean == 0 and value == 0 and bool((block.places.take(self.decay) == 0).any()):
                raise SingularError(
                    f"{self.rung}, block {block.name}: it has no curvature (do its units reach the "
                    "output?) and no weight decay, so a relative damping is 0 there. Use an "
                    "Absolute damping"
                )
        return found

    def notes_at(self, damping: Damping) -> tuple[str, ...]:
        """What a result at this damping must say: of the fit, and of the inverse."""
        found = (
            block.operator.note(value)
            for block, value in zip(self.blocks, self.lambdas(damping), strict=True)
        )
        return (*self.notes, *(note for note in found if note is not None))

    def _require_length(self, v: Tensor) -> None:
        if v.shape[-1] != self.parameters.count:
            raise InputError(
                f"the vectors have length {v.shape[-1]}, the model {self.parameters.count} "
                "trainable parameters"
            )

    def solve(self, v: Tensor, damping: Damping) -> Tensor:
        """(C + diag(w) + λI)⁻¹ v for v [..., P]. Errors: `SingularError` names the block."""
        return next(iter(self.solve_many(v, (damping,))))

    def solve_many(self, v: Tensor, dampings: Iterable[Damping]) -> Iterable[Tensor]:
        """`solve` at each damping in turn, sharing what the operators can share."""
        self._require_length(v)
        lambdas = [self.lambdas(damping) for damping in dampings]
        solutions = [
            iter(
                block.operator.solve_many(
                    block.places.take(v),
                    block.places.take(self.decay),
                    [row[k] for row in lambdas],
                )
            )
            for k, block in enumerate(self.blocks)
        ]
        for _ in lambdas:
            out = torch.empty_like(v)
            for block, solution in zip(self.blocks, solutions, strict=True):
                try:
                    block.places.put(out, next(solution))
                except SingularError as error:
                    raise SingularError(f"{self.rung}, block {block.name}: {error}") from None
            yield out

    def to_dense(self) -> Tensor:
        """C, [P, P]."""
        first = self.blocks[0]
        if isinstance(first.places, Whole):
            return first.operator.to_dense()  # one block in order: no copy through P² indices
        dense = self.decay.new_zeros(self.parameters.count, self.parameters.count)
        for block in self.blocks:
            index = block.index
            dense[index[:, None], index] = block.operator.to_dense()
        return dense

    def eigenvalues(self) -> Tensor:
        """Eigenvalues of C, [P], ascending."""
        return torch.cat([block.operator.eigenvalues() for block in self.blocks]).sort().values

    def with_cost(self, fit_seconds: float) -> Curvature:
        held = sum(block.operator.nbytes for block in self.blocks)
        return replace(self, cost=Cost(fit_seconds, held))
