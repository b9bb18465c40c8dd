"""Named parameters <-> flat vectors of length P, in the order of `model.named_parameters()`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn

from curvfluence import kinds
from curvfluence.errors import InputError


@dataclass(frozen=True)
class Parameters:
    """The trainable parameters of a model: names, shapes and their place in a flat vector.

    A parameter counts once even where two modules share it (named as first met); parameters with
    `requires_grad=False` are frozen: they belong to the model, not to θ.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    frozen: tuple[str, ...] = ()

    @staticmethod
    def of(model: nn.Module) -> Parameters:
        named = list(model.named_parameters())
        trainable = [(name, tuple(p.shape)) for name, p in named if p.requires_grad]
        if not trainable:
            raise InputError(
                "the model has no parameter with requires_grad=True, and influence is through what "
                "was trained: set requires_grad_(True) on those parameters"
            )
        return Parameters(
            names=tuple(name for name, _ in trainable),
            shapes=tuple(shape for _, shape in trainable),
            frozen=tuple(name for name, p in named if not p.requires_grad),
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def count(self) -> int:
        """P."""
        return sum(self.sizes)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each parameter lies in a flat vector."""
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        return {
            name: slice(end - size, end)
            for name, size, end in zip(self.names, self.sizes, ends, strict=True)
        }

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """{name: [..., *shape]} -> [..., P]; the leading axes must be the same for all."""
        parts: list[Tensor] = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            value = values[name]
            lead = value.shape[: value.ndim - len(shape)]
            parts.append(value.reshape(*lead, prod(shape)))
        return torch.cat(parts, dim=-1)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """[..., P] -> {name: [..., *shape]}, as views."""
        lead = vector.shape[:-1]
        return {
            name: vector[..., self.slices[name]].reshape((*lead, *shape))
            for name, shape in zip(self.names, self.shapes, strict=True)
        }

    def per_parameter(self, value: float | Mapping[str, float], what: str) -> dict[str, float]:
        """One non-negative number for each named parameter; a mapping's missing names get 0."""
        if not isinstance(value, Mapping):
            value = dict.fromkeys(self.names, kinds.number(value, what))
        unknown = sorted(set(value) - set(self.names))
        if unknown:
            raise InputError(
                f"{what} names {unknown}, which are no trainable parameters; the model has "
                f"{list(self.names)}"
            )
        return {n: kinds.number(value.get(n, 0.0), f"{what} of {n}") for n in self.names}
