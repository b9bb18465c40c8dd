"""A loss whose every example counts by a weight of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvfluence.problem.losses.base import Loss, Wrapping
from curvfluence.problem.losses.output_hessian import OutputHessian


@dataclass(frozen=True, eq=False)
class ScaledLoss(Wrapping):
    """v_n ℓ_n for a given batch of examples, v [N] ≥ 0.

    Gradient and Hessian are v times ℓ's, S and the columns of every Fisher type √v times, and t
    with S t = ∇ℓ too: an example of weight 2 is one that is there twice.
    """

    loss: Loss
    weights: Tensor

    @staticmethod
    def of(loss: Loss, weights: Tensor | None) -> Loss:
        """`loss` itself where there are no weights."""
        return loss if weights is None else ScaledLoss(loss, weights)

    @property
    def is_bound(self) -> bool:
        return self.loss.is_bound

    def rows(self, output: Tensor, n: int) -> Tensor:
        return self.loss.rows(output, n)

    def of_rows(self, output: Tensor, target: Any) -> tuple[Loss, Tensor, Tensor]:
        return self.loss.of_rows(output, target)

    def check(self, n_outputs: int, target: Any) -> None:
        self.loss.check(n_outputs, target)

    def columns(self, n_outputs: int) -> int:
        return self.loss.columns(n_outputs)

    def rank(self, output: Tensor, target: Any) -> int:
        return self.loss.rank(output, target)

    def _times(self, rows: Tensor, power: float = 1.0) -> Tensor:
        """v^power rows, over the first axis."""
        scale = self.weights.to(rows) if power == 1 else self.weights.to(rows).pow(power)
        return rows * scale.view(-1, *[1] * (rows.ndim - 1))

    def values(self, output: Tensor, target: Any) -> Tensor:
        return self._times(self.loss.values(output, target))

    def gradient(self, output: Tensor, target: Any) -> Tensor:
        return self._times(self.loss.gradient(output, target))

    def label_column(self, output: Tensor, target: Any) -> Tensor:
        return self._times(self.loss.label_column(output, target), 0.5)

    def factor(self, output: Tensor, target: Any) -> Tensor:
        return self._times(self.loss.factor(output, target), 0.5)

    def hessian(self, output: Tensor, target: Any) -> Tensor:
        return self._times(self.loss.hessian(output, target))

    @property
    def structured(self) -> bool:
        return self.loss.structured

    def output_hessian(self, output: Tensor, target: Any) -> OutputHessian:
        return self.loss.output_hessian(output, target).scaled(self.weights)

    def factored_product(self, output: Tensor, target: Any, v: Tensor) -> Tensor:
        return self._times(self.loss.factored_product(output, target, v))

    def hessian_product(self, output: Tensor, target: Any, v: Tensor) -> Tensor:
        return self._times(self.loss.hessian_product(output, target, v))

    def coordinates(self, output: Tensor, target: Any) -> Tensor:
        return self._times(self.loss.coordinates(output, target), 0.5)

    def sample(
        self, output: Tensor, target: Any, *, draws: int, generator: torch.Generator
    ) -> Tensor:
        drawn = self.loss.sample(output, target, draws=draws, generator=generator)
        return self._times(drawn, 0.5)

    def surprise(self, output: Tensor, target: Any) -> Tensor | None:
        """Of the examples that count; 0 of the others."""
        found = self.loss.surprise(output, target)
        return None if found is None else found * (self.weights > 0).to(found)

    def notes(self, output: Tensor, target: Any) -> tuple[str, ...]:
        counts = self.weights > 0
        return self.loss.notes(output[counts], target[counts])
