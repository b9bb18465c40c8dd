"""A private copy of a model's modules: what is called, so that nothing of the user's is touched."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from curvfluence.errors import InputError
from curvfluence.problem.forward import Forward
from curvfluence.problem.sharded import copied
from curvfluence.problem.tree import Batched
from curvfluence.runtime.calls import OneCode

COMPILED = "_orig_mod."  # what torch.compile puts into the names of a module that it wraps


class Structure:
    """A model's modules as they were when this was made, called with values for their tensors.

    Modes, hooks, attributes and patches are copied; parameters and buffers are not (the copy holds
    them without memory, on the meta device): values come with each call. The user's own modules
    are never called, swapped into or changed, not even for a moment; what a module stores when it
    runs (`self.hidden = ...`) is stored in the copy. A module that `torch.compile` wraps is taken
    out of it, and one that FSDP2 shards is copied as it was before.

    Cost: a deep copy of everything but tensors. Attributes that cannot be copied (a lock, an open
    file) are shared. Errors: `InputError` for modules that cannot be copied, and for a `forward`
    that was replaced by a function that holds the user's own modules.
    """

    def __init__(self, model: nn.Module, forward: Forward = Forward()) -> None:  # noqa: B008
        self.forward = forward
        self.modules = _copied(inside(model))
        self.slots = slots(self.modules)
        self.recomputes = False  # activations in its backward pass: found out by its first
        self._lock = threading.RLock()

    def __call__(self, values: Mapping[str, Tensor], inputs: Batched) -> Tensor:
        """The model's outputs with `values` (by name) at its `slots`, called by `forward`.

        One call at a time: two threads would leave each other's tensors in the modules.
        """
        with OneCode():
            return self.as_found(values, inputs)

    def as_found(self, values: Mapping[str, Tensor], inputs: Batched) -> Tensor:
        """The same by whichever code torch takes, which without gradients may be another.

        As `torch.func.functional_call` does it, less what that does anew at each call: finding the
        places of the tensors costs as much as a small model does.
        """
        with self._holding(values):
            return self.forward(self.modules, inputs)

    def holding(self, *values: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """For a backward pass of a call with `values`, later ones before earlier: within it the
        modules hold them again, where they compute activations anew (`recomputes`), and no other
        thread calls them."""
        if not self.recomputes:
            return nullcontext()
        merged: dict[str, Tensor] = {}
        for part in values:
            merged.update(part)
        return self._holding(merged)

    @contextmanager
    def _holding(self, values: Mapping[str, Tensor]) -> Generator[None]:
        with self._lock:
            before = [held[local] for held, local, _ in self._places]
            try:
                for held, local, name in self._places:
                    held[local] = values[name]
                yield
            finally:
                for (held, local, _), tensor in zip(self._places, before, strict=True):
                    held[local] = tensor

    @cached_property
    def _places(self) -> list[tuple[dict[str, Tensor | None], str, str]]:
        """(where a module holds a tensor, its name there, its name in θ) of every slot."""
        modules = dict(self.modules.named_modules(remove_duplicate=False))
        found: list[tuple[dict[str, Tensor | None], str, str]] = []
        for slot, name in self.slots.items():
            path, _, local = slot.rpartition(".")
            module = modules[path]
            parameters = cast("dict[str, Tensor | None]", module._parameters)  # pyright: ignore[reportPrivateUsage]
            buffers = module._buffers  # pyright: ignore[reportPrivateUsage]
            found.append((parameters if local in parameters else buffers, local, name))
        return found

    @contextmanager
    def training(self) -> Generator[None]:
        """Within it the copy is in training mode, and no other thread calls it."""
        with self._lock:
            modes = [(module, module.training) for module in self.modules.modules()]
            self.modules.train()
            try:
                yield
            finally:
                for module, mode in modes:
                    module.training = mode

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, without values."""
        return tensors(self.modules)

    def __getstate__(self) -> dict[str, Any]:
        left = ("_lock", "_places")
        return {name: value for name, value in vars(self).items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, by the name that it has where nothing is compiled."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name.replace(COMPILED, ""): tensor for name, tensor in named}


def slots(model: nn.Module) -> dict[str, str]:
    """Every place that holds a parameter or buffer, and the name its tensor has in θ.

    One place for a module that is used twice, two for a tensor that two modules share.
    """
    first = {id(tensor): name for name, tensor in tensors(model).items()}
    return {
        f"{prefix}.{local}" if prefix else local: first[id(tensor)]
        for prefix, module in model.named_modules()
        for own in (module.named_parameters, module.named_buffers)
        for local, tensor in own(recurse=False, remove_duplicate=False)
    }


def inside(model: nn.Module) -> nn.Module:
    """The module that `torch.compile` wraps, or the model itself."""
    wrapped = getattr(model, COMPILED[:-1], None)
    return wrapped if isinstance(wrapped, nn.Module) else model


def _copied(model: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {id(trainer): None for trainer in _trainers(model)}
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = _without_memory(tensor)
    for module in model.modules():
        wrapped = inside(module)
        for value in vars(wrapped).values():
            for tensor in _tensors(value):
                memo.setdefault(id(tensor), tensor.detach().clone())
    try:
        found = copied(model, dict(memo))
    except Exception:
        _share_uncopied(model, memo)
        try:
            found = copied(model, memo)
        except Exception as error:
            raise InputError(
                f"the model's modules cannot be copied ({type(error).__name__}: {error}), and the "
                "user's own are never called: keep what cannot be copied out of the modules"
            ) from error
    _unwrap(found)
    for module in found.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = (
                False  # how gradients are stored, which torch adds up but not multiplies
            )
    return found


def _trainers(model: nn.Module) -> Iterator[object]:
    """The trainers that Lightning modules hold on to: they lead to data sets and optimisers, and a
    module without one computes the same."""
    for module in model.modules():
        trainer = vars(module).get("_trainer")
        if trainer is not None and hasattr(module, "configure_optimizers"):
            yield trainer


def _without_memory(tensor: Tensor) -> Tensor:
    like = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")  # empty_like loads sympy
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(like, requires_grad=tensor.requires_grad)
    return like


def _tensors(value: object, depth: int = 2) -> Iterator[Tensor]:
    """The plain tensors in an attribute: what a module has computed cannot be deep-copied."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict) and depth:
        for each in cast("dict[Any, Any]", value).values():
            yield from _tensors(each, depth - 1)
    elif isinstance(value, list | tuple) and depth:
        for each in cast("list[Any]", value):
            yield from _tensors(each, depth - 1)


def _share_uncopied(model: nn.Module, memo: dict[int, Any]) -> None:
    """Put the attributes that cannot be copied into `memo` as themselves."""
    for module in model.modules():
        for key, value in vars(module).items():
            if key in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                deepcopy(value, {**memo, id(module): module})
            except Exception:
                memo[id(value)] = value


def _unwrap(model: nn.Module) -> None:
    """Take compiled modules out of what `torch.compile` put around them."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # pyright: ignore[reportPrivateUsage]
            if child is not None and inside(child) is not child:
                module._modules[name] = inside(child)  # pyright: ignore[reportPrivateUsage]
