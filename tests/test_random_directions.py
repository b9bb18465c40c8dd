"""The random directions that an example's row is compared along."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from curvfluence.jacobian.agreement import PERIOD, drawn


def row(count: int, dtype: torch.dtype = torch.float32) -> Any:
    """What is looked at of rows."""
    return SimpleNamespace(
        parameters=SimpleNamespace(count=count), dense=torch.empty(0, dtype=dtype)
    )


@pytest.mark.parametrize("count", [1, 7, PERIOD - 1, PERIOD, PERIOD + 1, 3 * PERIOD + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_that_come_again(count: int, dtype: torch.dtype) -> None:
    """Normal ones of the example's own seed, as many as there are parameters."""
    found = drawn(row(count, dtype), 4)
    assert (found.shape, found.dtype) == ((1, count), dtype)
    few = torch.randn(1, min(count, PERIOD), generator=torch.Generator().manual_seed(4))
    assert torch.equal(found[:, : few.shape[1]], few.to(dtype))
    at = torch.arange(count) % PERIOD
    assert torch.equal(found[0], found[0, :PERIOD][at])
    assert not torch.equal(found, drawn(row(count, dtype), 5))


def test_the_period_is_a_prime() -> None:
    assert all(PERIOD % k for k in range(2, 257))
    assert PERIOD < 257**2
