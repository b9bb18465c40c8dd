"""What conjugate gradients are asked for, and what is told of a solution that falls short."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from curvfluence.curvature.operators import iterative as module
from curvfluence.curvature.operators.iterative import IterativeOperator

C = torch.linspace(1, 50, 40, dtype=torch.float64)
DAMPING, DECAY = 0.5, torch.full((40,), 0.25, dtype=torch.float64)


class Product:
    """diag(C), of as many parameters."""

    kind = "GGN"
    problem = SimpleNamespace(parameters=SimpleNamespace(count=40))

    def __call__(self, x_qp: Tensor) -> Tensor:
        return C.to(x_qp) * x_qp


def operator(products: int, tolerance: float = 1e-3) -> Any:
    product: Any = Product()
    mean: Any = None
    return IterativeOperator(product, None, mean, products, 0, tolerance)


def right_hand_sides(dtype: torch.dtype) -> Tensor:
    """Of very different sizes, and one of nothing."""
    torch.manual_seed(0)
    v = torch.randn(4, 40, dtype=torch.float64) * torch.tensor([1e-30, 1.0, 1e20, 0.0])[:, None]
    return v.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("products", [3, 40])
def test_solutions_and_what_they_fall_short_by(
    dtype: torch.dtype, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """‖r‖ ≤ tolerance ‖b‖ is asked for of each, whatever its size, and ‖r‖/‖b‖ told, 0 of nothing;
    both in float64."""
    asked: dict[str, Any] = {}
    told: list[Tensor] = []
    solver = module.block_conjugate_gradients

    def watched(damped: Any, b_qp: Tensor, **options: Any) -> Any:
        asked.update(options, b_qp=b_qp)
        return solver(damped, b_qp, **options | {"kept": None})

    @contextmanager
    def work(name: str) -> Generator[str]:
        yield name

    def tell_short(_self: object, residual_q: Tensor) -> None:
        told.append(residual_q)

    monkeypatch.setattr(module, "block_conjugate_gradients", watched)
    monkeypatch.setattr(IterativeOperator, "tell_short", tell_short)
    monkeypatch.setattr(module, "journal", SimpleNamespace(work=work))
    v = right_hand_sides(dtype)
    x = operator(products).solve(v, DECAY.to(dtype), DAMPING)
    largest = torch.where(v.any(1), v.abs().amax(1), 1)
    b_qp = v / largest[:, None]
    torch.testing.assert_close(asked["b_qp"], b_qp, rtol=0, atol=0)
    size_q = b_qp.double().norm(dim=1)
    assert asked["enough_q"].dtype == torch.float64
    torch.testing.assert_close(asked["enough_q"], 1e-3 * size_q, rtol=1e-12, atol=0)
    assert asked["kept"] == "conjugate gradients"
    left = (v.double() - (C + DECAY + DAMPING) * x.double()).norm(dim=1)
    wanted = left / torch.where(size_q > 0, v.double().norm(dim=1), 1)
    (short,) = told
    assert short.dtype == torch.float64
    torch.testing.assert_close(short, wanted, rtol=1e-3, atol=1e-6)
    assert (short[:3] > 1e-3).tolist() == [products == 3] * 3
    assert not x[3].any()
