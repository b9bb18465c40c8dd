"""Whether numbers are finite, by their sum."""

from __future__ import annotations

import pytest
import torch

from curvfluence.runtime.finite import all_finite

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("values", [[], [1.0, -2.0], [0.0], [3e38, 3e38, 3e38], [-3e38, -3e38]])
def test_finite(values: list[float]) -> None:
    """Also where the sum is not."""
    assert all_finite(torch.tensor(values))


@pytest.mark.parametrize("values", [[INF], [1.0, -INF], [INF, -INF], [NAN, 0.0], [3e38, 3e38, NAN]])
def test_not_finite(values: list[float]) -> None:
    """Also where infinities cancel."""
    assert not all_finite(torch.tensor(values))


def test_whole_numbers_and_half_precision() -> None:
    assert all_finite(torch.full((3,), 2**62))
    assert all_finite(torch.full((9,), 6e4, dtype=torch.float16))
    assert not all_finite(torch.full((9,), INF, dtype=torch.bfloat16))
