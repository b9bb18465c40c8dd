"""The interface of a loss: value, gradient and factor of each example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import sqrt

import torch
from torch import Tensor


class Loss(ABC):
    """A loss ℓ(f, y) per example, with its first and second derivatives in f.

    `output` is [N, K]; `target` is whatever `check` accepts. Nothing is reduced over N.
    """

    unit: str = "loss"
    lower_is_better: bool = True
    convex: bool = True  # whether ∂²ℓ/∂f² is S Sᵀ in full: nothing negative was set to 0

    @abstractmethod
    def check(self, n_outputs: int, target: Tensor) -> None:
        """Raise `InputError` where `target` does not fit a model with `n_outputs` outputs."""

    @abstractmethod
    def values(self, output: Tensor, target: Tensor) -> Tensor:
        """ℓ per example, [N]; differentiable, and composed of functions that vmap understands."""

    @abstractmethod
    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        """∂ℓ/∂f per example, [N, K]."""

    @abstractmethod
    def factor(self, output: Tensor, target: Tensor) -> Tensor:
        """S per example, [N, K, C], with S Sᵀ = ∂²ℓ/∂f²."""

    def hessian(self, output: Tensor, target: Tensor) -> Tensor:
        """∂²ℓ/∂f² per example, [N, K, K], negative eigenvalues included."""
        s_nkc = self.factor(output, target)
        return s_nkc @ s_nkc.mT

    @abstractmethod
    def coordinates(self, output: Tensor, target: Tensor) -> Tensor:
        """t per example, [N, C], with S t = ∂ℓ/∂f."""

    @abstractmethod
    def columns(self, n_outputs: int) -> int:
        """C, the number of columns of S for a model with `n_outputs` outputs."""

    def sample(
        self, output: Tensor, target: Tensor, *, draws: int, generator: torch.Generator
    ) -> Tensor:
        """Random columns s, [N, K, draws], scaled so that E[Σ s sᵀ] = S Sᵀ.

        By default S ε with ε standard normal; a loss with labels draws labels instead.
        """
        s_nkc = self.factor(output, target)
        eps = torch.randn(
            (s_nkc.shape[0], s_nkc.shape[2], draws), generator=generator, dtype=s_nkc.dtype
        ).to(s_nkc.device)
        return s_nkc @ eps / sqrt(draws)

    def surprise(self, output: Tensor) -> Tensor | None:
        """1 − p_max per example and independent label; None where the loss has no labels."""
        return None

    def notes(self, output: Tensor, target: Tensor) -> tuple[str, ...]:
        """What a result that uses S must say about it."""
        return ()
