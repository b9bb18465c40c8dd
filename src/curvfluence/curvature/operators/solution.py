"""Solved rows of one block, in the coordinates in which they will meet others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.operators.low_rank import LowRank
from curvfluence.curvature.places import LayerPart, Places
from curvfluence.jacobian.rows import Rows


class Solution(ABC):
    """x_q = (M + diag(w) + λI)⁻¹ r_q of one block for Q rows."""

    error: float = 0.0  # the largest ‖x − x̃‖/‖x‖ where x̃ is held in the place of x
    residuals: tuple[float, ...] | None = None

    @abstractmethod
    def inner(self, rows: Rows) -> Tensor:
        """⟨x_q, the block's part of row_nc⟩, [Q, N, C]."""

    @abstractmethod
    def flat(self) -> Tensor:
        """x, [Q, n], in the parameters' coordinates."""

    def compressed(self, tolerance: float) -> Solution:
        """At low rank, each x within that relative error, where positions are shared and that is
        smaller; itself otherwise."""
        return self


@dataclass(frozen=True, eq=False)
class InParameters(Solution):
    """In the parameters' own coordinates: x [Q, n]; with ‖(M + diag(w) + λI) x − r‖/‖r‖ of each
    where the solve measured them."""

    places: Places
    x_qn: Tensor
    residuals: tuple[float, ...] | None = None

    def inner(self, rows: Rows) -> Tensor:
        return self.places.inner(rows, self.x_qn)

    def flat(self) -> Tensor:
        return self.x_qn

    def compressed(self, tolerance: float) -> Solution:
        if not isinstance(self.places, LayerPart):
            return self
        x_qoi = self.x_qn.unflatten(-1, self.places.shape)
        return compressed(self, self.places, x_qoi, tolerance)


@dataclass(frozen=True, eq=False)
class InLayer(Solution):
    """As a layer's matrices: x [Q, o, i], laid out as the products with rows want it."""

    part: LayerPart
    x_qoi: Tensor

    @staticmethod
    def laid_out(part: LayerPart, x_qoi: Tensor) -> InLayer:
        return InLayer(part, joined(part, [x_qoi], len(x_qoi)))

    def inner(self, rows: Rows) -> Tensor:
        return self.part.term(rows).inner(self.x_qoi)

    def flat(self) -> Tensor:
        return self.x_qoi.flatten(1)

    def compressed(self, tolerance: float) -> Solution:
        return compressed(self, self.part, self.x_qoi, tolerance)


@dataclass(frozen=True, eq=False)
class AtLowRank(Solution):
    """x ≈ L Rᵀ of a layer with shared positions; see `LowRank`."""

    part: LayerPart
    x: LowRank

    @property
    def error(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.x.error

    def inner(self, rows: Rows) -> Tensor:
        return self.x.inner(self.part.term(rows))

    def flat(self) -> Tensor:
        return (self.x.left @ self.x.right.mT).flatten(1)


def joined(part: LayerPart, slices: Iterable[Tensor], count: int) -> Tensor:
    """x [Q, o, i] of so many queries, which come some after others; with o the last axis in memory
    where positions are shared: as the products form rows."""
    shared = part.layer.shared
    whole, start = torch.empty(0), 0
    for x_qoi in slices:
        if len(x_qoi) == count:
            return x_qoi.mT.contiguous().mT if shared else x_qoi
        if not start:
            o, i = part.shape
            whole = x_qoi.new_empty(count, i, o).mT if shared else x_qoi.new_empty(count, o, i)
        whole[start : start + len(x_qoi)] = x_qoi
        start += len(x_qoi)
    return whole


def compressed(as_it_is: Solution, part: LayerPart, x_qoi: Tensor, tolerance: float) -> Solution:
    """x at low rank, or `as_it_is` where that is no smaller."""
    if not part.shared:
        return as_it_is
    x = LowRank.of(x_qoi, tolerance)
    return AtLowRank(part, x) if x.nbytes < x_qoi.nbytes else as_it_is
