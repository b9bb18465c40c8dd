"""Calls of a model: one code, whether or not there are gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Seen(TorchFunctionMode):
    """Every call of torch's public functions in this thread, looked at before and after."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        self.before((*args, *given.values()))
        made = func(*args, **given)
        self.after(made)
        return made

    def before(self, given: tuple[object, ...]) -> None:
        """At what a function is given."""

    def after(self, made: object) -> None:
        """At what it returned."""


class OneCode(Seen):
    """Within it torch takes the code of a module that has gradients also where there are none.

    `nn.TransformerEncoder` and `nn.MultiheadAttention` switch to fused code without gradients,
    which computes other values at padded positions. They do not where a function mode watches, and
    a mode, unlike `torch.backends.mha.set_fastpath_enabled`, is seen by this thread alone.
    """


class Watch(Seen):
    """`seen`: the names of those of the given tensors that are used within it, by themselves or in
    a list (as `torch.cat` takes them)."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._named = {id(tensor): name for name, tensor in named.items()}
        self.seen: list[str] = []

    def before(self, given: tuple[object, ...]) -> None:
        for value in given:
            several: Sequence[object] = value if isinstance(value, tuple | list) else (value,)  # pyright: ignore[reportUnknownVariableType]
            self.seen += [self._named[id(one)] for one in several if id(one) in self._named]


class Lowest(Seen):
    """`dtype`: the lowest floating precision of any tensor that is made within it."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype: torch.dtype | None = None

    def after(self, made: object) -> None:
        several: Sequence[object] = made if isinstance(made, tuple | list) else (made,)  # pyright: ignore[reportUnknownVariableType]
        kinds = [x.dtype for x in several if isinstance(x, Tensor) and x.is_floating_point()]
        known = [] if self.dtype is None else [self.dtype]
        self.dtype = max((*kinds, *known), key=lambda kind: torch.finfo(kind).eps, default=None)
