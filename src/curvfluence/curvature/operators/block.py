"""An operator where it belongs among the parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from curvfluence.curvature.operators.operator import Operator
from curvfluence.curvature.places import Places


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

    def holding(self, operator: Operator, change: str) -> Block:
        """The same block with another operator, and what was done to its matrix."""
        return replace(self, operator=operator, rule=f"{self.rule}, {change}")
