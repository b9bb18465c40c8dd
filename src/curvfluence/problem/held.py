"""What a problem's derivatives depend on beside its examples, as it is held in memory now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor

from curvfluence.problem.losses import Loss
from curvfluence.problem.tree import Batched
from curvfluence.runtime import generators
from curvfluence.runtime.checksum import checksum


@dataclass(frozen=True, eq=False)
class Held:
    """Weights and buffers by their values; a loss by the tensors that it names and, since a user's
    function may hold others, by what it makes of fixed outputs with the labels of a few examples.
    """

    theta: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    loss: Loss
    targets: Batched  # of a few examples
    n_outputs: int

    @property
    def checksum(self) -> int:
        """Another number where any of it was written to since, also through `.data` or NumPy.
        Cost: reading the weights once, and the loss of a few examples."""
        return checksum(*self.theta.values(), *self.state.values(), *_tensors(self.loss), self.said)

    @property
    def said(self) -> Tensor | None:
        """ℓ of fixed outputs, [n]; None where the loss has nothing but its fields."""
        if self.loss.closed:
            return None
        like = next(iter(self.theta.values()))
        generator = torch.Generator().manual_seed(0)
        outputs = torch.randn(len(self.targets), self.n_outputs, generator=generator).to(like)
        with torch.no_grad(), generators.preserved():
            return self.loss.values(outputs, self.targets)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from _tensors(getattr(value, each.name))
