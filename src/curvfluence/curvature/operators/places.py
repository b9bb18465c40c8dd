"""Where a block lies in flat vectors of all parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.problem.parameters import Parameters


class Places(ABC):
    """An ordered choice of n of the P parameters, taken and put by strided copies."""

    @property
    @abstractmethod
    def size(self) -> int:
        """n."""

    @property
    @abstractmethod
    def index(self) -> Tensor:
        """The place of each entry in the flat vector, [n]."""

    @abstractmethod
    def take(self, v: Tensor) -> Tensor:
        """[..., P] -> [..., n]."""

    @abstractmethod
    def put(self, out: Tensor, x: Tensor) -> None:
        """Write x [..., n] to its places in out [..., P]."""


@dataclass(frozen=True)
class Whole(Places):
    """Every parameter, in order."""

    parameters: Parameters

    @property
    def size(self) -> int:
        return self.parameters.count

    @property
    def index(self) -> Tensor:
        return torch.arange(self.size)

    def take(self, v: Tensor) -> Tensor:
        return v

    def put(self, out: Tensor, x: Tensor) -> None:
        out.copy_(x)


@dataclass(frozen=True)
class Several(Places):
    """Whole tensors, one after the other."""

    parameters: Parameters
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        return sum(place.stop - place.start for place in self._slices)

    @property
    def _slices(self) -> list[slice]:
        return [self.parameters.slices[name] for name in self.names]

    @property
    def index(self) -> Tensor:
        return self.take(torch.arange(self.parameters.count))

    def take(self, v: Tensor) -> Tensor:
        return torch.cat([v[..., place] for place in self._slices], dim=-1)

    def put(self, out: Tensor, x: Tensor) -> None:
        sizes = [place.stop - place.start for place in self._slices]
        for place, part in zip(self._slices, x.split(sizes, dim=-1), strict=True):
            out[..., place] = part
