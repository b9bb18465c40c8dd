"""What is no array of real, finite numbers of the stated shape, and how it is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from curvfluence.errors import InputError, NonFiniteError
from curvfluence.fidelity.arrays import finite, shaped


@pytest.mark.parametrize("values", [[[1, 2], [3, 4]], np.float32([[1, 2], [3, 4]]), True, 3])
def test_numbers(values: Any) -> None:
    found = finite("x", values)
    assert found.dtype == np.float64
    assert np.array_equal(found, np.asarray(values))


def test_what_is_none() -> None:
    with pytest.raises(InputError, match="x must be real numbers; seen complex"):
        finite("x", np.ones(2) * 1j)
    for values in ("a", [[1], [2, 3]], [None, object()]):
        with pytest.raises(InputError, match="x must be an array of numbers of one shape"):
            finite("x", values)


@pytest.mark.parametrize("count", [1, 5, 6])
def test_what_is_not_finite(count: int) -> None:
    values = np.zeros((4, 3))
    places = [(0, 1), (1, 0), (2, 2), (3, 0), (3, 1), (3, 2)][:count]
    for k, place in enumerate(places):
        values[place] = (np.nan, np.inf, -np.inf)[k % 3]
    with pytest.raises(NonFiniteError) as seen:
        finite("x", values)
    said = str(seen.value)
    assert said.startswith(f"x (4, 3) holds {count} values that are NaN or infinite, at indices")
    assert all((str(place) in said) == (k < 5) for k, place in enumerate(places))
    assert ("and others" in said) == (count == 6)


def test_shapes() -> None:
    values = finite("x", np.zeros((4, 3)))
    for shape in ((4, 3), (None, 3), (4, None), (None, None)):
        assert shaped("x", values, shape, "[m, Q]") is values
    for shape, said in (
        ((4, 2), "[4, 2]"), ((None, 4), "[any, 4]"), ((3, None), "[3, any]"), ((4,), "[4]"),
        ((4, 3, None), "[4, 3, any]"),
    ):  # fmt: skip
        with pytest.raises(InputError) as seen:
            shaped("x", values, shape, "[m, Q]")
        assert str(seen.value).startswith(f"x has shape (4, 3), expected [m, Q] = {said};")
