"""What a person sees of one example, by what a function that shows it returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from curvfluence.errors import InputError

LETTERS = 4000  # of a text that is shown


@dataclass(frozen=True, eq=False)
class Picture:
    """uint8 [h, w], or [h, w, 3]."""

    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Text:
    """A text; one that is longer than can be shown is cut, and ends so."""

    text: str


@dataclass(frozen=True)
class Words:
    """A text in tokens, which can be coloured one by one."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Features:
    """Values by name: numbers, or words. A whole number is an `int`: a code or a count, of which
    nobody knows whether half of it means anything."""

    values: tuple[tuple[str, float | str], ...]


Seen: TypeAlias = "Picture | Text | Words | Features"

EXPECTED = (
    "`show` must return a text, a list of tokens, a mapping of features, or an image (a PIL image, "
    "or an array [h, w], [h, w, 3] or [3, h, w], of uint8 or of floats between 0 and 1)"
)


def seen_as(value: object) -> Seen:
    """The kind of what a user's function returned.

    Errors: `InputError` for anything that is no text, list of tokens, mapping or image.
    """
    if isinstance(value, Picture | Text | Words | Features):
        return value
    if isinstance(value, str):
        return Text(value if len(value) <= LETTERS else f"{value[:LETTERS]} …")
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value).items()
        return Features(tuple((str(name), _feature(one)) for name, one in pairs))
    if isinstance(value, Image.Image):
        return Picture(np.asarray(value.convert("L" if value.mode in ("1", "L") else "RGB")))
    if isinstance(value, Tensor):
        return _picture(value.detach().cpu().numpy())
    if isinstance(value, np.ndarray):
        return _picture(cast("NDArray[Any]", value))
    if isinstance(value, list | tuple):
        words = cast("Sequence[object]", value)
        if all(isinstance(word, str) for word in words):
            return Words(tuple(map(str, words)))
    raise InputError(f"{EXPECTED}; it returned {type(value).__name__}: {str(value)[:80]}")


def _feature(value: object) -> float | str:
    """An `int` stays one, a `float` too; all else in words."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = cast("Any", value).item() if value.size == 1 or _one(value) else str(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return value


def _one(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _picture(array: NDArray[Any]) -> Picture:
    shape = array.shape
    if array.ndim == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3):
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    plain = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not plain or 0 in shape:
        raise InputError(f"{EXPECTED}; it returned an array of shape {shape}")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < -1e-6 or array.max() > 1 + 1e-6:
            raise InputError(
                f"{EXPECTED}; it returned floats between {array.min():.3g} and {array.max():.3g}"
            )
        array = np.round(array.clip(0, 1) * 255)
    elif array.dtype == bool:
        array = array * 255
    return Picture(np.ascontiguousarray(array.astype(np.uint8)))
