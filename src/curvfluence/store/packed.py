"""Plain values and frozen dataclasses with tensors in them as bytes and arrays, and back."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import msgspec
import numpy as np
import torch
from msgspec.msgpack import Ext
from numpy.typing import NDArray
from torch import Tensor

from curvfluence.errors import InputError

T = TypeVar("T")
Array = NDArray[Any]
TENSOR, ARRAY, BFLOAT16 = 1, 2, 3  # what stands in the place of an array: its number


def pack(value: object) -> tuple[bytes, list[Array]]:
    """(MessagePack in which tensors and arrays are numbers, the arrays that these number). Nothing
    is pickled; NaN and infinities, which JSON has not, stay what they are. Tensors come back on the
    CPU."""
    arrays: list[Array] = []

    def numbered(one: object) -> object:
        kind = ARRAY
        if isinstance(one, Tensor):
            at, kind = one.detach().cpu(), TENSOR
            if at.dtype is torch.bfloat16:  # which NumPy has not
                at, kind = at.view(torch.int16), BFLOAT16
            one = at.numpy()
        if isinstance(one, np.ndarray):
            arrays.append(cast(Array, one))
            return Ext(kind, (len(arrays) - 1).to_bytes(4, "big"))
        for plain in (str, int, float):  # NumPy's own, and subclasses
            if isinstance(one, plain):
                return plain(one)
        raise TypeError(f"{type(one).__name__} is neither plain nor an array")

    return msgspec.msgpack.encode(value, enc_hook=numbered), arrays


def unpack(data: bytes, arrays: list[Array], kind: type[T]) -> T:
    """The value of that type. Errors: `InputError` for bytes of anything else."""

    def looked_up(code: int, number: memoryview) -> object:
        array = arrays[int.from_bytes(number, "big")]
        if code == ARRAY:
            return array
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if code == BFLOAT16 else tensor

    try:
        return msgspec.msgpack.decode(data, type=kind, ext_hook=looked_up)
    except (msgspec.DecodeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"it holds no {kind.__name__} ({error})") from None
