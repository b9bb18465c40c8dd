"""What every measure of fidelity asks of its arrays: float64, of the stated shape, finite."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from curvfluence.errors import InputError, NonFiniteError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

_NAMED = 5


def finite(name: str, values: Any) -> Floats:
    """`values` in float64; NonFiniteError names the first few indices that are NaN or infinite."""
    try:
        if np.iscomplexobj(values):
            raise InputError(f"{name} must be real numbers; seen complex ones")
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array of numbers of one shape: {error}") from error
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        shown = ", ".join(str(tuple(int(i) for i in index)) for index in bad[:_NAMED])
        raise NonFiniteError(
            f"{name} {array.shape} holds {len(bad)} values that are NaN or infinite, at indices "
            f"{shown}{' and others' if len(bad) > _NAMED else ''}; drop the subsets or queries "
            "that hold them, or find the retraining or solve that diverged"
        )
    return array


def shaped(name: str, array: Floats, shape: tuple[int | None, ...], axes: str) -> Floats:
    """`array`, if its shape is `shape` (None: any size); `axes` says in words what was expected."""
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if want is None else str(want) for want in shape)
        raise InputError(
            f"{name} has shape {array.shape}, expected {axes} = [{sizes}]; "
            "check the order of the axes and that both sides come from the same run"
        )
    return array
