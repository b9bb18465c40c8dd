"""Named parameters <-> flat vectors of length P, in the order of `model.named_parameters()`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportPrivateImportUsage]

from curvfluence.errors import InputError

_CALLING = threading.RLock()


def slots(model: nn.Module) -> dict[str, str]:
    """Every place that holds a parameter or buffer, and the name its tensor has in θ.

    One place for a module that is used twice, two for a tensor that two modules share.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    first = {id(tensor): name for name, tensor in named}
    return {
        f"{prefix}.{local}" if prefix else local: first[id(tensor)]
        for prefix, module in model.named_modules()
        for own in (module.named_parameters, module.named_buffers)
        for local, tensor in own(recurse=False, remove_duplicate=False)
    }


def call(
    model: nn.Module, names: Mapping[str, str], values: Mapping[str, Tensor], inputs: Tensor
) -> Tensor:
    """The model's output with `values` (by name in θ) at its `slots`.

    The tying is done here and `tie_weights` is off: told of both names of a module that is used
    twice, `functional_call` would leave its own tensors behind in it (seen in torch 2.13). One
    call at a time: two threads would leave each other's tensors in the model.
    """
    placed = {slot: values[name] for slot, name in names.items()}
    with _CALLING:
        return functional_call(model, placed, (inputs,), tie_weights=False)


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
            raise InputError("the model has no parameter with requires_grad=True")
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
            name: vector[..., self.slices[name]].reshape(*lead, *shape)
            for name, shape in zip(self.names, self.shapes, strict=True)
        }

    def per_parameter(self, value: float | Mapping[str, float], what: str) -> dict[str, float]:
        """One non-negative number for each named parameter; a mapping's missing names get 0."""
        if not isinstance(value, Mapping):
            if not isinstance(value, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InputError(f"{what} must be a number, or numbers by name; seen {value!r}")
            value = dict.fromkeys(self.names, float(value))
        unknown = sorted(set(value) - set(self.names))
        if unknown:
            raise InputError(
                f"{what} names {unknown}, which are no trainable parameters; the model has "
                f"{list(self.names)}"
            )
        full = {name: float(value.get(name, 0.0)) for name in self.names}
        for name, number in full.items():
            if not 0 <= number < float("inf"):
                raise InputError(f"{what} of {name} must be finite and >= 0; seen {number}")
        return full
