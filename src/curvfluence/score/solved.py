"""Influences from solved queries, block by block, in whichever coordinates are cheaper."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Block, Curvature
from curvfluence.curvature.damping import Damping
from curvfluence.curvature.layerwise import LayerPart
from curvfluence.curvature.operators.kronecker import KroneckerEigen
from curvfluence.curvature.operators.low_rank import LowRank
from curvfluence.curvature.operators.places import Several
from curvfluence.errors import SingularError
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Formed, SharedOuter, sum_of


class Part(ABC):
    """The share of one block in x_qᵀ row."""

    name: str

    @abstractmethod
    def values(self, rows: Rows) -> Tensor:
        """⟨x_q, row_nc⟩, [Q, n, C]."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that the solved queries hold."""


@dataclass(frozen=True, eq=False)
class Rotated(Part):
    """In the block's Kronecker eigenbasis: x̂ [Q, o, i], and rows are rotated as a and s."""

    name: str
    block: LayerPart
    operator: KroneckerEigen
    x_qoi: Tensor

    def values(self, rows: Rows) -> Tensor:
        return self.operator.rotated(self.block.term(rows)).inner(self.x_qoi)

    @property
    def nbytes(self) -> int:
        return self.x_qoi.nbytes


@dataclass(frozen=True, eq=False)
class Plain(Part):
    """In the layer's own coordinates: x [Q, o, i]."""

    name: str
    block: LayerPart
    x_qoi: Tensor

    def values(self, rows: Rows) -> Tensor:
        return self.block.term(rows).inner(self.x_qoi)

    @property
    def nbytes(self) -> int:
        return self.x_qoi.nbytes


@dataclass(frozen=True, eq=False)
class Compressed(Part):
    """x ≈ L Rᵀ of a layer with shared positions; see `LowRank`."""

    name: str
    block: LayerPart
    x: LowRank

    def values(self, rows: Rows) -> Tensor:
        return self.x.inner(self.block.term(rows))

    @property
    def nbytes(self) -> int:
        return self.x.nbytes


@dataclass(frozen=True, eq=False)
class Remaining(Part):
    """Parameters of no layer, whose rows are dense."""

    name: str
    names: tuple[str, ...]
    x_qr: Tensor

    def values(self, rows: Rows) -> Tensor:
        by_name = dict(zip(rows.rest, rows.rest_parts(), strict=True))
        z_ncr = torch.cat([by_name[name] for name in self.names], dim=2)
        n, c, _ = z_ncr.shape
        return (self.x_qr @ z_ncr.flatten(0, 1).T).unflatten(1, (n, c))

    @property
    def nbytes(self) -> int:
        return self.x_qr.nbytes


@dataclass(frozen=True, eq=False)
class Everything(Part):
    """A block that holds all parameters."""

    name: str
    x_qp: Tensor

    def values(self, rows: Rows) -> Tensor:
        return rows.inner(self.x_qp)

    @property
    def nbytes(self) -> int:
        return self.x_qp.nbytes


@dataclass(frozen=True, eq=False)
class Solved:
    """(C + diag(w) + λI)⁻¹ g_q of every query, held block by block."""

    parts: tuple[Part, ...]

    def values(self, *several: Rows) -> Tensor:
        """⟨x_q, row_nc⟩ of successive examples, [Q, n, C]; a block after the other, so that its
        solutions stay in a cache."""
        return sum_of(_of_all(part, several) for part in self.parts)

    def by_block(self, *several: Rows) -> dict[str, Tensor]:
        """The same, each block's share by itself; they add up to `values`."""
        return {part.name: _of_all(part, several) for part in self.parts}

    @property
    def compression_error(self) -> float:
        """The largest ‖x − L Rᵀ‖/‖x‖ of a query in a compressed block; 0 where there is none."""
        found = [part.x.error for part in self.parts if isinstance(part, Compressed)]
        return max(found, default=0.0)


def _of_all(part: Part, several: Sequence[Rows]) -> Tensor:
    found = [part.values(rows) for rows in several]
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def solve_queries(
    curvature: Curvature,
    queries: Rows,
    damping: Damping,
    *,
    examples: int,
    kept: Sequence[Rows] = (),
    compress: float | None = None,
) -> Solved:
    """Solve for the queries' gradients, to be scored against so many training examples, of which
    the rows of some are `kept`.

    In a Kronecker eigenbasis a query's row is rotated as its a and s, never as a matrix. What is
    solved there and the training rows meet in one of two places, whichever is fewer operations: in
    the layer's coordinates, to which the solutions and the M rows that a fit left in the eigenbasis
    are rotated back, (Q + M) o i (o + i), or in the eigenbasis, (N − M) T (o² + i²).
    """
    lambdas = curvature.lambdas(damping)
    parts: list[Part] = []
    dense: Tensor | None = None
    for block, value in zip(curvature.blocks, lambdas, strict=True):
        places, operator = block.places, block.operator
        decay = places.take(curvature.decay)
        try:
            if isinstance(places, LayerPart) and type(operator) is KroneckerEigen:
                there = _count_within(places, operator, kept)
                left = examples - there
                part = _kronecker(places, operator, queries, decay, value, left, there)
            else:
                if dense is None:
                    dense = queries.to_dense()[:, 0]
                x = operator.solve(places.take(dense), decay, value)
                part = _part(block, x)
        except SingularError as error:
            raise SingularError(f"{curvature.rung}, block {block.name}: {error}") from None
        if compress is not None and isinstance(part, Plain | Rotated):
            part = _compressed(part, queries, compress)
        parts.append(part)
    return Solved(tuple(parts))


def _count_within(places: LayerPart, operator: KroneckerEigen, kept: Sequence[Rows]) -> int:
    """How many examples have a row that is formed in the operator's basis."""
    terms = (places.term(rows) for rows in kept if not rows.factored)
    bases = operator.out_basis, operator.in_basis
    return sum(term.n for term in terms if isinstance(term, Formed) and term.within(*bases))


def _kronecker(
    places: LayerPart,
    operator: KroneckerEigen,
    queries: Rows,
    decay: Tensor,
    damping: float,
    left: int,
    there: int,
) -> Part:
    """Against `left` rows of a and s, and `there` in the eigenbasis."""
    term, bases = places.term(queries), (operator.out_basis, operator.in_basis)
    formed = term.formed(*bases) if isinstance(term, SharedOuter) else term.rotated(*bases)
    rotated = formed.held_nio.mT if isinstance(formed, Formed) else formed.dense()[:, 0]
    x_qoi = operator.solve_rotated(rotated, decay, damping)
    (o, i), inner = places.shape, operator.in_basis is not None
    back = (len(x_qoi) + there) * o * i * (o + i * inner)
    forth = left * places.layer.positions * (o * o + i * i * inner)
    if back <= forth:
        back_qoi = operator.rotate_back(x_qoi).unflatten(-1, (o, i))
        return Plain(places.name, places, _laid_out(back_qoi, places))
    return Rotated(places.name, places, operator, _laid_out(x_qoi, places))


def _laid_out(x_qoi: Tensor, places: LayerPart) -> Tensor:
    """With o the last axis in memory where positions are shared: as the products form rows."""
    return x_qoi.mT.contiguous().mT if places.layer.shared else x_qoi


def _part(block: Block, x: Tensor) -> Part:
    places = block.places
    if isinstance(places, LayerPart):
        return Plain(block.name, places, x.unflatten(-1, places.shape))
    if isinstance(places, Several):
        return Remaining(block.name, places.names, x)
    return Everything(block.name, x)


def _compressed(part: Plain | Rotated, queries: Rows, tolerance: float) -> Part:
    """Low rank where positions are shared and that is smaller; the part as it is otherwise."""
    if not isinstance(part.block.term(queries[:1]), SharedOuter):
        return part
    x = part.x_qoi
    if isinstance(part, Rotated):
        x = part.operator.rotate_back(x).unflatten(-1, part.block.shape)
    found = LowRank.of(x, tolerance)
    return Compressed(part.name, part.block, found) if found.nbytes < x.nbytes else part


def quadratic_forms(curvature: Curvature, rows: Rows, damping: Damping) -> Tensor:
    """gᵀ (C + diag(w) + λI)⁻¹ g of single-column rows, [n]."""
    total = rows.dense.new_zeros(len(rows))
    dense: Tensor | None = None
    for block, value in zip(curvature.blocks, curvature.lambdas(damping), strict=True):
        places, operator = block.places, block.operator
        decay = places.take(curvature.decay)
        try:
            if isinstance(places, LayerPart) and type(operator) is KroneckerEigen:
                rotated = operator.rotated(places.term(rows))
                total += operator.quadratic(rotated, decay, value)
                continue
            if dense is None:
                dense = rows.to_dense()[:, 0]
            own = places.take(dense)
            total += (own * operator.solve(own, decay, value)).sum(1)
        except SingularError as error:
            raise SingularError(f"{curvature.rung}, block {block.name}: {error}") from None
    return total
