"""The interface of a loss: value, gradient and factor of each example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from math import sqrt
from typing import Any, TypeAlias

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.problem.losses.output_hessian import OutputHessian

Part: TypeAlias = "tuple[Any, Tensor | None]"  # targets, and weights where there are some


class Loss(ABC):
    """A loss ℓ(f, y) per example, with its first and second derivatives in f.

    `output` is [N, K]; `target` is whatever `check` accepts. Nothing is reduced over N.
    """

    unit: str = "loss"
    lower_is_better: bool = True
    convex: bool = True  # whether ∂²ℓ/∂f² is S Sᵀ in full: nothing negative was set to 0
    clip_negative: bool = False  # whether S leaves out what is negative, by request
    closed: bool = True  # whether its fields are all that it depends on
    trees: bool = False  # whether targets may be a container of tensors
    full_rank: bool = True  # whether S has as many columns as its rank, for outputs in general

    @property
    def speaks(self) -> bool:
        """Whether `notes` may have anything to say."""
        return type(self).notes is not Loss.notes

    def bound(self, shape: tuple[int, ...], parts: Iterable[Part]) -> Loss:
        """The loss for a model whose output for one example has `shape`, trained on examples that
        `parts` has in order, (targets, weights [n] or None) of some at a time.

        Only a loss over positions depends on either."""
        return self

    @property
    def is_bound(self) -> bool:
        """Whether the loss knows all that its values depend on."""
        return True

    def bound_as(self, other: Loss) -> Loss:
        """This loss with what `bound` told `other`."""
        return self

    def rows(self, output: Tensor, n: int) -> Tensor:
        """What the model returned for n examples, as one row of outputs an example [n, K].

        Errors: `InputError` where it is not [n] or [n, K]."""
        if output.ndim == 1 and len(output) == n:
            return output[:, None]
        if output.ndim != 2 or len(output) != n:
            raise InputError(
                f"the model must return one row of outputs an example, [B, K]; for {n} examples it "
                f"returned shape {tuple(output.shape)}. For outputs with positions, [B, T, K], use "
                "Positions(loss)"
            )
        return output

    def counted(self, target: Any) -> Tensor | None:
        """Which positions of the outputs count, [N, T]; None for a loss without positions."""
        return None

    def counted_inside(self, target: Any) -> Tensor | None:
        """Which positions of the model's own layers count: where their outputs do."""
        return self.counted(target)

    def of_rows(self, output: Tensor, target: Any) -> tuple[Loss, Tensor, Tensor]:
        """The loss of one row of outputs, and those rows with their targets: for a loss over
        positions that of a position, else the loss itself."""
        return self, output, target

    @property
    def positions(self) -> int | None:
        """T, for a loss that is a sum over positions of the outputs."""
        return None

    @abstractmethod
    def check(self, n_outputs: int, target: Any) -> None:
        """Raise `InputError` where `target` does not fit a model with `n_outputs` outputs."""

    @abstractmethod
    def values(self, output: Tensor, target: Any) -> Tensor:
        """ℓ per example, [N]; differentiable, and composed of functions that vmap understands."""

    @abstractmethod
    def gradient(self, output: Tensor, target: Any) -> Tensor:
        """∂ℓ/∂f per example, [N, K]."""

    def label_column(self, output: Tensor, target: Any) -> Tensor:
        """s with s sᵀ what the example adds to the empirical Fisher, [N, K, 1]: ∂ℓ/∂f."""
        return self.gradient(output, target)[:, :, None]

    @abstractmethod
    def factor(self, output: Tensor, target: Any) -> Tensor:
        """S per example, [N, K, C], with S Sᵀ = ∂²ℓ/∂f²."""

    def hessian(self, output: Tensor, target: Any) -> Tensor:
        """∂²ℓ/∂f² per example, [N, K, K], negative eigenvalues included."""
        s_nkc = self.factor(output, target)
        return s_nkc @ s_nkc.mT

    def factored_product(self, output: Tensor, target: Any, v: Tensor) -> Tensor:
        """S Sᵀ v per example, [N, K]: what `factor` stands for, without its C columns where that
        can be."""
        s_nkc = self.factor(output, target)
        return (s_nkc @ (s_nkc.mT @ v[:, :, None]))[:, :, 0]

    @property
    def structured(self) -> bool:
        """Whether `output_hessian` is there, of the S that `factor` gives."""
        names = ("factor", "output_hessian")
        owner = next(one for one in type(self).__mro__ if any(name in vars(one) for name in names))
        return owner is not Loss and "output_hessian" in vars(owner)

    def output_hessian(self, output: Tensor, target: Any) -> OutputHessian:
        """S Sᵀ per example in closed form, where a loss has one: for many outputs."""
        raise InputError(f"the Hessian of {type(self).__name__} in its outputs has no closed form")

    def hessian_product(self, output: Tensor, target: Any, v: Tensor) -> Tensor:
        """∂²ℓ/∂f² v per example, [N, K], negative eigenvalues included."""
        if self.convex:
            return self.factored_product(output, target, v)
        return (self.hessian(output, target) @ v[:, :, None])[:, :, 0]

    @abstractmethod
    def coordinates(self, output: Tensor, target: Any) -> Tensor:
        """t per example, [N, C], with S t = ∂ℓ/∂f."""

    @abstractmethod
    def columns(self, n_outputs: int) -> int:
        """C, the number of columns of S for a model with `n_outputs` outputs."""

    def rank(self, output: Tensor, target: Any) -> int:
        """What the rank of S of an example is at most, as far as a few outputs [N, K] show."""
        return self.columns(output.shape[-1])

    def sample(
        self, output: Tensor, target: Any, *, draws: int, generator: torch.Generator
    ) -> Tensor:
        """Random columns s, [N, K, draws], scaled so that E[Σ s sᵀ] = S Sᵀ.

        By default S ε with ε standard normal; a loss with labels draws labels instead.
        """
        s_nkc = self.factor(output, target)
        eps = torch.randn(
            (s_nkc.shape[0], s_nkc.shape[2], draws), generator=generator, dtype=s_nkc.dtype
        ).to(s_nkc.device)
        return s_nkc @ eps / sqrt(draws)

    def surprise(self, output: Tensor, target: Any) -> Tensor | None:
        """1 − p_max per example and independent label; None where the loss has no labels."""
        return None

    def worst(self, output: Tensor, target: Any, labels: Any) -> Tensor | None:
        """The largest ℓ that any label would give these outputs, [N]; among `labels` (those of the
        training set) where they have no bound. None where that is not known."""
        return None

    def least_worst(self, n_outputs: int) -> float:
        """What `worst` is at least, whatever the outputs."""
        return 0.0

    def notes(self, output: Tensor, target: Any) -> tuple[str, ...]:
        """What a result that uses S must say about it."""
        return ()


class Wrapping(Loss):
    """A loss made of another, whose unit and kind it has."""

    loss: Loss

    @property
    def unit(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss.unit

    @property
    def lower_is_better(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss.lower_is_better

    @property
    def convex(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss.convex

    @property
    def clip_negative(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss.clip_negative

    @property
    def trees(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss.trees

    @property
    def structured(self) -> bool:
        return False

    @property
    def closed(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss.closed

    @property
    def full_rank(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss.full_rank

    @property
    def speaks(self) -> bool:
        return self.loss.speaks
