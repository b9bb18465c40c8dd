"""What kind of value an argument is: one boundary, with one form of refusal."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping
from math import inf, isfinite
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvfluence.errors import InputError

MOST = 2**63 - 1  # what torch and NumPy hold of whole numbers
_MEMORY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kKMGT]i?B|B|)")


def flag(value: object, what: str) -> bool:
    """True or False, and nothing that merely counts as one."""
    if not isinstance(value, bool):
        raise InputError(f"{what} must be True or False; seen {value!r}")
    return value


def function(value: object, what: str) -> None:
    if not callable(value):
        raise InputError(f"{what} must be callable; seen {value!r}")


def text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{what} must be a string; seen {value!r}")
    return value


def count(value: object, what: str, least: int = 1) -> int:
    """A whole number that is at least `least`, and no more than torch and NumPy hold."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError(f"{what} must be a whole number >= {least}; seen {reprlib.repr(value)}")
    if int(value) > MOST:
        raise InputError(f"{what} must be below 2**63; seen {reprlib.repr(value)}")
    return int(value)


def number(value: object, what: str, least: float = 0.0, below: float = inf) -> float:
    """A finite number in [least, below)."""
    if isinstance(value, bool) or not isinstance(value, Real) or not _finite(value):
        raise InputError(f"{what} must be a finite number; seen {reprlib.repr(value)}")
    if not least <= float(value) < below:
        limit = f" and < {below:g}" if below < inf else ""
        raise InputError(f"{what} must be finite and >= {least:g}{limit}; seen {value!r}")
    return float(value)


def _finite(value: Real) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def memory(value: object, what: str) -> int:
    """Bytes: a whole number of them, or a text with a unit, "8GiB" or "500 MB"."""
    if isinstance(value, str):
        found = _MEMORY.fullmatch(value.strip())
        if found is None:
            raise InputError(f'{what} must be bytes, or a text such as "8GiB"; seen {value!r}')
        power = "bkmgt".index(found[2][:1].lower() or "b")
        base = 1024 if "i" in found[2].lower() else 1000
        value = int(min(float(found[1]) * base**power, 2.0**62))
    return count(value, f"{what} (bytes)")


def counts(values: object, what: str, least: int = 0) -> list[int]:
    """Whole numbers, in a list, a tensor or an array."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{what} must be whole numbers, in a list; seen {values!r}")
    if isinstance(values, Tensor):
        values = tensor(values, what).flatten().tolist()
    several: list[Any] = list(values)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return [count(value, what, least) for value in several]


def listed(values: object, what: str) -> list[Any]:
    """Several values one after another, such as a list; a text is none."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InputError(f"{what} must be a list; seen {type(values).__name__}")
    try:
        return list(values)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    except (TypeError, RuntimeError) as error:  # a tensor of no axis, or without values
        raise InputError(f"{what} must be a list; seen {type(values).__name__}: {error}") from error


def path(value: object, what: str) -> Path | None:
    if value is not None and not isinstance(value, str | PathLike):
        raise InputError(f"{what} must be a path; seen {value!r}")
    if value is not None and "\0" in str(value):
        raise InputError(f"{what} must be a path; seen one with a NUL, {value!r}")
    return None if value is None else Path(value)  # pyright: ignore[reportUnknownArgumentType]


def place(value: object, what: str) -> Path:
    """`path` that must be given."""
    found = path(value, what)
    if found is None:
        raise InputError(f"{what} must be a path; seen None")
    return found


def dtype(value: object, what: str) -> torch.dtype:
    if not isinstance(value, torch.dtype):
        raise InputError(f"{what} must be a dtype such as torch.float64; seen {value!r}")
    return value


class _View:
    """The memory of an array that may not be written to, for torch, which warns of such a one and
    can say no more. Nobody writes: what a model is run on are copies."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array  # keeps its memory, or the file that it lies in
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def tensor(value: object, what: str) -> Tensor:
    """A dense tensor with values: of a tensor, a NumPy array or numbers in lists."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        raise InputError(f"{what} has masked entries, which have no values: fill or drop them")
    if isinstance(value, Tensor) and value.is_nested:
        raise InputError(f"{what} is a nested tensor: pad it to one shape")
    try:
        if isinstance(value, np.ndarray) and any(step < 0 for step in value.strides):
            value = np.ascontiguousarray(value)  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(value, np.ndarray) and not value.flags.writeable:
            value = np.asarray(_View(value))  # pyright: ignore[reportUnknownArgumentType]
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
