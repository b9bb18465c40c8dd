"""What kind of value an argument is: one boundary, with one form of refusal."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvfluence.errors import InputError


def flag(value: object, what: str) -> bool:
    """True or False, and nothing that merely counts as one."""
    if not isinstance(value, bool):
        raise InputError(f"{what} must be True or False; seen {value!r}")
    return value


def count(value: object, what: str, least: int = 1) -> int:
    """A whole number that is at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError(f"{what} must be a whole number >= {least}; seen {value!r}")
    return int(value)


def number(value: object, what: str, least: float = 0.0, below: float = inf) -> float:
    """A finite number in [least, below)."""
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
        raise InputError(f"{what} must be a finite number; seen {value!r}")
    if not least <= float(value) < below:
        limit = f" and < {below:g}" if below < inf else ""
        raise InputError(f"{what} must be finite and >= {least:g}{limit}; seen {value!r}")
    return float(value)


def dtype(value: object, what: str) -> torch.dtype:
    if not isinstance(value, torch.dtype):
        raise InputError(f"{what} must be a dtype such as torch.float64; seen {value!r}")
    return value


def tensor(value: object, what: str) -> Tensor:
    """A dense tensor with values: of a tensor, a NumPy array or numbers in lists."""
    try:
        if isinstance(value, np.ndarray) and any(step < 0 for step in value.strides):
            value = np.ascontiguousarray(value)  # pyright: ignore[reportUnknownArgumentType]
        found = torch.as_tensor(value)  # pyright: ignore[reportUnknownMemberType]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{what} must be a tensor or an array of numbers of one shape; seen "
            f"{type(value).__name__}, of which torch says: {error}"
        ) from error
    if found.layout != torch.strided:
        raise InputError(f"{what} must be dense; seen a {found.layout} tensor: use .to_dense()")
    if found.is_meta:
        raise InputError(f"{what} is on the meta device and has no values")
    return found


def tensors(value: object, what: str) -> dict[str, Tensor]:
    """A mapping from names to tensors, such as `model.state_dict()`."""
    if not isinstance(value, Mapping):
        raise InputError(
            f"{what} must be a mapping from names to tensors, such as model.state_dict(); seen "
            f"{type(value).__name__}"
        )
    named: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
    return {str(name): tensor(each, f"{what}[{name!r}]") for name, each in named.items()}
