"""Which columns of output space the rows of a pass are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from curvfluence.problem.losses import Loss
from curvfluence.problem.tree import Batched

MakeColumns: TypeAlias = Callable[[Loss, Tensor, Batched], Tensor]  # (loss, output, target)


@dataclass(frozen=True)
class Columns:
    """`make(loss, output, target)` gives s [B, K, C] with C = `width`; a row is Jᵀs.

    A gradient is the row of the one column ∂ℓ/∂f; the factor Z of the GGN has the rows of S. `what`
    is what an error calls the pass.
    """

    make: MakeColumns
    width: int
    what: str


def of_gradient(what: str) -> Columns:
    """∂ℓ/∂f: the rows are ∇ℓ."""

    def gradient(loss: Loss, output: Tensor, target: Batched) -> Tensor:
        return loss.gradient(output, target)[:, :, None]

    return Columns(gradient, 1, what)
