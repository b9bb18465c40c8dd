"""Arrays on disk: numbers of the size that the file states, or one error."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from curvfluence.errors import InputError

REMEDY = "run the study again with --rerun"


def read_array(path: Path, *, finite: bool) -> NDArray[Any] | None:
    """The array in a .npy file, or None where there is no such file.

    The header is believed only where the file is as long as it says, and nothing pickled is read.
    Errors: `InputError` for what is no such file, for anything but booleans, integers and floats,
    and with `finite` for a NaN or infinity.
    """
    try:
        if not path.is_file():
            return None
        shape, kind, start = _header(path)
        if kind.kind not in "biuf":
            raise ValueError(f"it holds {kind}, no numbers")
        if path.stat().st_size != start + prod(shape) * kind.itemsize:
            raise ValueError(f"it is not as long as an array of shape {shape}")
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, TypeError, EOFError, OSError, SyntaxError) as error:
        raise InputError(f"{path} is no readable array ({error}): {REMEDY}") from None
    if finite and kind.kind == "f" and not bool(np.isfinite(array).all()):
        raise InputError(f"{path} holds a NaN or infinity: {REMEDY}")
    return array


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """(shape, dtype, where the numbers begin)."""
    with path.open("rb") as file:
        major, _ = npy.read_magic(file)
        read = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
        shape, _, kind = read(file)
        return shape, kind, file.tell()
