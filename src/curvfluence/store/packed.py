"""Frozen dataclasses of numbers, texts and tensors as bytes and arrays, and back by their types."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curvfluence.errors import InputError

T = TypeVar("T")
Array = NDArray[Any]


def pack(value: object) -> tuple[bytes, list[Array]]:
    """(MessagePack in which tensors and arrays are numbers, the arrays that these number). Nothing
    is pickled; NaN and infinities, which JSON has not, stay what they are. Tensors come back on the
    CPU."""
    arrays: list[Array] = []

    def numbered(one: object) -> object:
        if isinstance(one, Tensor):
            one = one.detach().cpu().numpy()
        if isinstance(one, np.ndarray):
            arrays.append(cast(Array, one))
            return len(arrays) - 1
        for kind in (str, int, float):  # NumPy's own, and subclasses
            if isinstance(one, kind):
                return kind(one)
        raise TypeError(f"{type(one).__name__} is neither plain nor an array")

    return msgspec.msgpack.encode(value, enc_hook=numbered), arrays


def unpack(data: bytes, arrays: list[Array], kind: type[T]) -> T:
    """The value of that type. Errors: `InputError` for bytes of anything else."""

    def looked_up(wanted: Any, one: Any) -> Any:
        array = arrays[one]
        return torch.from_numpy(array) if wanted is Tensor else array

    try:
        return msgspec.msgpack.decode(data, type=kind, dec_hook=looked_up)
    except (msgspec.DecodeError, IndexError, TypeError) as error:
        raise InputError(f"it holds no {kind.__name__} ({error})") from None
