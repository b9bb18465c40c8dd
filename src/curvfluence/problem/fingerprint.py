"""A short name for what a result depends on, the same in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, TypeAlias

from torch import Tensor, nn

DEEPEST = 16  # values within values: an object that holds itself ends there

Update: TypeAlias = Callable[[bytes], None]


def fingerprint(*values: object) -> str:
    """16 hexadecimal digits of SHA-256 over all of the values.

    Tensors count by content, shape and dtype, dataclasses by their fields, modules by their
    structure and state, functions by their code, defaults and what they close over, and other
    objects without a text of their own by their attributes: nothing goes by an address, which
    another process has elsewhere. What a function reads of its module's globals is not seen.
    """
    digest = hashlib.sha256()
    for value in values:
        _digest(value, digest.update, 0)
    return digest.hexdigest()[:16]


def _digest(value: object, update: Update, depth: int) -> None:
    if depth > DEEPEST:
        return
    found: Any = value
    if isinstance(found, Tensor):
        update(f"{tuple(found.shape)}{found.dtype}".encode())
        if found.is_meta:  # of a structure without values
            return
        update(found.detach().cpu().contiguous().numpy().tobytes())
    elif isinstance(getattr(type(found), "fingerprint", None), property):
        update(found.fingerprint.encode())  # a problem, which knows its own
    elif is_dataclass(found) and not isinstance(found, type):
        update(type(found).__qualname__.encode())
        for each in fields(found):
            update(each.name.encode())
            _digest(getattr(found, each.name), update, depth + 1)
    elif isinstance(found, nn.Module):
        update(repr(found).encode())
        _digest(found.state_dict(), update, depth + 1)
    elif isinstance(found, FunctionType):
        update(found.__qualname__.encode())
        _code(found.__code__, update, depth)
        _digest((found.__defaults__, found.__kwdefaults__), update, depth + 1)
        _digest([_within(cell) for cell in found.__closure__ or ()], update, depth + 1)
    elif isinstance(found, MethodType):
        _digest((found.__func__, found.__self__), update, depth + 1)
    elif isinstance(found, partial):
        _digest((found.func, found.args, found.keywords), update, depth + 1)
    elif isinstance(found, Mapping):
        update(f"{type(found).__qualname__}{len(found)}".encode())
        for key, each in found.items():
            _digest(key, update, depth + 1)
            _digest(each, update, depth + 1)
    elif isinstance(found, list | tuple):
        update(f"{type(found).__qualname__}{len(found)}".encode())
        for each in found:
            _digest(each, update, depth + 1)
    elif isinstance(found, set | frozenset):
        each = sorted(fingerprint(one) for one in found)  # the order is another in each process
        update(f"{type(found).__qualname__}{each}".encode())
    elif isinstance(found, CodeType):
        _code(found, update, depth)
    elif isinstance(found, type):
        update(found.__qualname__.encode())
    elif type(found).__repr__ is object.__repr__ and hasattr(found, "__dict__"):
        update(type(found).__qualname__.encode())
        _digest(vars(found), update, depth + 1)
    else:
        update(repr(found).encode())


def _code(code: CodeType, update: Update, depth: int) -> None:
    """What a function does; not where it is written."""
    update(code.co_code)
    update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    for constant in code.co_consts:
        _digest(constant, update, depth + 1)


def _within(cell: CellType) -> object:
    """What a function closes over; nothing where its name is not set yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
