"""A short name for what a result depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass

from torch import Tensor


def fingerprint(*values: object) -> str:
    """16 hexadecimal digits of SHA-256 over all of the values."""
    digest = hashlib.sha256()
    for value in values:
        _digest(value, digest.update)
    return digest.hexdigest()[:16]


def _digest(value: object, update: Callable[[bytes], None]) -> None:
    """All of a value: tensors by content, shape and dtype, dataclasses by their fields."""
    if isinstance(value, Tensor):
        update(f"{tuple(value.shape)}{value.dtype}".encode())
        update(value.detach().cpu().contiguous().numpy().tobytes())
    elif is_dataclass(value):
        update(type(value).__qualname__.encode())
        for each in fields(value):
            update(each.name.encode())
            _digest(getattr(value, each.name), update)
    else:
        update(repr(value).encode())
