"""Hybrids: the eigenvalues of one rung in the eigenbasis of another.

They tell eigenvalue mismatch from eigenvector mismatch. EK-FAC is itself one:
`Project(BlockGGN(), KFAC())`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Block, Curvature, Operator
from curvfluence.curvature.operators.eigen import Scaled, diagonal_in, diagonalised, with_values
from curvfluence.curvature.operators.symmetric import Symmetric
from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError
from curvfluence.problem.problem import Problem


@dataclass(frozen=True)
class _Hybrid(Rung):
    matrix: Rung
    basis: Rung

    def build(self, problem: Problem) -> Curvature:
        matrix, basis = self.matrix.build(problem), self.basis.build(problem)
        require_definite(matrix, basis)
        notes = tuple(dict.fromkeys((*matrix.notes, *basis.notes)))
        return replace(
            self.combine(matrix, basis),
            rung=self.name,
            fisher=matrix.fisher,
            notes=notes,
            decay=problem.decay,  # a basis from Identity brings neither its λ nor its w
            fixed_damping=None,
        )

    @abstractmethod
    def combine(self, matrix: Curvature, basis: Curvature) -> Curvature:
        """The hybrid of two fitted curvatures."""


@dataclass(frozen=True)
class Project(_Hybrid):
    """U diag(Uᵀ M U) Uᵀ: the best M has in the eigenbasis U of `basis`, in Frobenius norm."""

    @property
    def name(self) -> str:
        return f"{self.matrix.name} in the basis of {self.basis.name}"

    def combine(self, matrix: Curvature, basis: Curvature) -> Curvature:
        def project(block: Block) -> Operator:
            at = diagonalised(block.operator)
            return with_values(at, diagonal_in(at, submatrix(matrix, block.index)))

        return rebuilt(basis, project, "projected")


@dataclass(frozen=True)
class Sorted(_Hybrid):
    """The spectrum of `matrix` in the eigenbasis of `basis`, paired by rank.

    Within each block where both have the same blocks, over all parameters otherwise.
    """

    @property
    def name(self) -> str:
        return f"eigenvalues of {self.matrix.name} on {self.basis.name}"

    def combine(self, matrix: Curvature, basis: Curvature) -> Curvature:
        if same_blocks(matrix, basis):
            spectra = {
                id(block): source.operator.eigenvalues()
                for block, source in zip(basis.blocks, matrix.blocks, strict=True)
            }

            def sort(block: Block) -> Operator:
                at = diagonalised(block.operator)
                return with_values(at, paired(spectra[id(block)], at.eigenvalues()))

            return rebuilt(basis, sort, "sorted")
        forms = [diagonalised(block.operator) for block in basis.blocks]
        every = torch.cat([form.eigenvalues() for form in forms])
        values = paired(matrix.eigenvalues(), every).split([form.size for form in forms])
        chosen = {
            id(b): with_values(f, v) for b, f, v in zip(basis.blocks, forms, values, strict=True)
        }
        return rebuilt(basis, lambda block: chosen[id(block)], "sorted")


@dataclass(frozen=True)
class TraceMatched(Rung):
    """c M, with c the ratio of the trace of `to` to that of M: only the scale is corrected.

    One c for each block where both have the same blocks, one for all otherwise.
    """

    matrix: Rung
    to: Rung

    @property
    def name(self) -> str:
        return f"{self.matrix.name} with the trace of {self.to.name}"

    def build(self, problem: Problem) -> Curvature:
        matrix, to = self.matrix.build(problem), self.to.build(problem)
        require_definite(matrix, to)
        notes = tuple(dict.fromkeys((*matrix.notes, *to.notes)))
        return replace(self.combine(matrix, to), rung=self.name, fisher=matrix.fisher, notes=notes)

    def combine(self, matrix: Curvature, to: Curvature) -> Curvature:
        """The hybrid of two fitted curvatures."""
        if same_blocks(matrix, to):
            scales = [_ratio([a], [b]) for a, b in zip(to.blocks, matrix.blocks, strict=True)]
        else:
            scales = [_ratio(to.blocks, matrix.blocks)] * len(matrix.blocks)
        by_block = {id(b): scale for b, scale in zip(matrix.blocks, scales, strict=True)}
        return rebuilt(matrix, lambda b: Scaled(b.operator, by_block[id(b)]), "trace-matched")


def require_definite(*curvatures: Curvature) -> None:
    """Refuse an indefinite matrix: a hybrid lacks the treatment that makes its inverse."""
    for curvature in curvatures:
        if any(isinstance(block.operator, Symmetric) for block in curvature.blocks):
            raise InputError(f"hybrids take positive semi-definite rungs; seen {curvature.rung}")


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


def rebuilt(curvature: Curvature, operator_of: Callable[[Block], Operator], rule: str) -> Curvature:
    """The same blocks with other operators."""
    blocks = tuple(
        replace(block, operator=operator_of(block), rule=f"{block.rule}, {rule}")
        for block in curvature.blocks
    )
    return replace(curvature, blocks=blocks)
