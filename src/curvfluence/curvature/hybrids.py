"""Hybrids: the eigenvalues of one rung in the eigenbasis of another.

They tell eigenvalue mismatch from eigenvector mismatch. EK-FAC is itself one:
`Project(BlockGGN(), KFAC())`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from curvfluence.curvature.coverage import CoverageLine
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.eigen import Scaled
from curvfluence.curvature.operators.operator import Operator
from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError
from curvfluence.problem.problem import Problem

__all__ = ["Hybrid", "Project", "Sorted", "TraceMatched"]


@dataclass(frozen=True)
class Hybrid(Rung):
    """The matrix of one rung, changed by another's."""

    matrix: Rung

    @property
    @abstractmethod
    def other(self) -> Rung:
        """The rung that changes it."""

    @abstractmethod
    def combine(self, matrix: Curvature, other: Curvature) -> Curvature:
        """The hybrid of two fitted curvatures."""

    def __post_init__(self) -> None:
        for each in fields(self):
            rung = getattr(self, each.name)
            if not isinstance(rung, Rung):
                raise InputError(f"{each.name} must be a rung, such as KFAC(); seen {rung!r}")

    def elements(self, problem: Problem) -> float:
        """Of both."""
        return self.matrix.elements(problem) + self.other.elements(problem)

    def separable(self, problem: Problem) -> bool:
        """Where what is done to a block hangs on no other: both have the same blocks."""
        rungs = self.matrix, self.other
        matrix, other = ([line.parameters for line in r.coverage(problem)] for r in rungs)
        return matrix == other and all(rung.separable(problem) for rung in rungs)

    def refusal(self, problem: Problem) -> str | None:
        return self.matrix.refusal(problem) or self.other.refusal(problem)

    def build(self, problem: Problem) -> Curvature:
        matrix, other = self.matrix.build(problem), self.other.build(problem)
        require_definite(matrix, other)
        return replace(
            self.combine(matrix, other),
            rung=self.name,
            fisher=matrix.fisher,
            notes=tuple(dict.fromkeys((*matrix.notes, *other.notes))),
            decay=problem.decay,  # a basis from Identity brings neither its λ nor its w
            fixed_damping=None,
        )


@dataclass(frozen=True)
class _OnBasis(Hybrid):
    basis: Rung

    change: ClassVar[str]  # what is done to a block, as coverage says it

    @property
    def other(self) -> Rung:
        return self.basis

    def coverage(self, problem: Problem) -> tuple[CoverageLine, ...]:
        return _changed(self.basis.coverage(problem), self.change)


@dataclass(frozen=True)
class Project(_OnBasis):
    """U diag(Uᵀ M U) Uᵀ: the best M has in the eigenbasis U of `basis`, in Frobenius norm."""

    change: ClassVar[str] = "projected"

    @property
    def name(self) -> str:
        return f"{self.matrix.name} in the basis of {self.basis.name}"

    def separable(self, problem: Problem) -> bool:
        """A block of the basis needs the matrix within it alone."""
        return self.basis.separable(problem)

    def combine(self, matrix: Curvature, other: Curvature) -> Curvature:
        def project(block: Block) -> Operator:
            basis = block.operator.eigenbasis()
            return basis.with_eigenvalues(basis.diagonal_of(submatrix(matrix, block.index)))

        return rebuilt(other, project, self.change)


@dataclass(frozen=True)
class Sorted(_OnBasis):
    """The spectrum of `matrix` in the eigenbasis of `basis`, paired by rank.

    Within each block where both have the same blocks, over all parameters otherwise.
    """

    change: ClassVar[str] = "sorted"

    @property
    def name(self) -> str:
        return f"eigenvalues of {self.matrix.name} on {self.basis.name}"

    def combine(self, matrix: Curvature, other: Curvature) -> Curvature:
        bases = [block.operator.eigenbasis() for block in other.blocks]
        values = [basis.eigenvalues() for basis in bases]
        if same_blocks(matrix, other):
            spectra = [block.operator.eigenvalues() for block in matrix.blocks]
            given = [paired(a, b) for a, b in zip(spectra, values, strict=True)]
        else:
            every = paired(matrix.eigenvalues(), torch.cat(values))
            given = list(every.split([basis.size for basis in bases]))
        sorted_ = {
            block.name: basis.with_eigenvalues(own)
            for block, basis, own in zip(other.blocks, bases, given, strict=True)
        }
        return rebuilt(other, lambda block: sorted_[block.name], self.change)


@dataclass(frozen=True)
class TraceMatched(Hybrid):
    """c M, with c the ratio of the trace of `to` to that of M: only the scale is corrected.

    One c for each block where both have the same blocks, one for all otherwise.
    """

    to: Rung

    @property
    def other(self) -> Rung:
        return self.to

    @property
    def name(self) -> str:
        return f"{self.matrix.name} with the trace of {self.to.name}"

    def coverage(self, problem: Problem) -> tuple[CoverageLine, ...]:
        return _changed(self.matrix.coverage(problem), "trace-matched")

    def combine(self, matrix: Curvature, other: Curvature) -> Curvature:
        if same_blocks(matrix, other):
            pairs = zip(other.blocks, matrix.blocks, strict=True)
            scales = [_ratio([above], [below]) for above, below in pairs]
        else:
            scales = [_ratio(other.blocks, matrix.blocks)] * len(matrix.blocks)
        by_block = {block.name: c for block, c in zip(matrix.blocks, scales, strict=True)}
        return rebuilt(matrix, lambda b: Scaled(b.operator, by_block[b.name]), "trace-matched")


def require_definite(*curvatures: Curvature) -> None:
    """Refuse an indefinite matrix: a hybrid lacks the treatment that makes its inverse."""
    for curvature in curvatures:
        if not curvature.definite:
            raise InputError(f"hybrids take positive semi-definite rungs; seen {curvature.rung}")


def _changed(lines: tuple[CoverageLine, ...], change: str) -> tuple[CoverageLine, ...]:
    return tuple(replace(line, rule=f"{line.rule}, {change}") for line in lines)


def _ratio(above: Sequence[Block], below: Sequence[Block]) -> float:
    numerator, denominator = _trace(above), _trace(below)
    if not (numerator > 0 and denominator > 0):
        raise InputError(
            f"traces of {numerator:.3g} and {denominator:.3g} have no ratio to match: block "
            f"{below[0].name}"
        )
    return numerator / denominator


def _trace(blocks: Sequence[Block]) -> float:
    return sum(float(block.operator.eigenvalues().double().sum()) for block in blocks)


def same_blocks(a: Curvature, b: Curvature) -> bool:
    """Whether both have the same blocks in the same order, parameter by parameter."""
    return len(a.blocks) == len(b.blocks) and all(
        torch.equal(x.index, y.index) for x, y in zip(a.blocks, b.blocks, strict=True)
    )


def submatrix(curvature: Curvature, index: Tensor) -> Tensor:
    """The entries of C between the parameters at `index`, dense."""
    for block in curvature.blocks:
        if torch.equal(block.index, index):
            return block.operator.to_dense()
    return curvature.to_dense()[index[:, None], index]


def paired(values: Tensor, order_of: Tensor) -> Tensor:
    """`values` rearranged so that their ranks are those of `order_of`."""
    out = torch.empty_like(values)
    out[order_of.argsort()] = values.sort().values
    return out


def rebuilt(
    curvature: Curvature, operator_of: Callable[[Block], Operator], change: str
) -> Curvature:
    """The same blocks with other operators."""
    blocks = tuple(block.holding(operator_of(block), change) for block in curvature.blocks)
    return replace(curvature, blocks=blocks)
