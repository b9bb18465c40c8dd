"""float32 against float64 on a well-fitted model, where p − y would cancel."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

import curvfluence as cf
from tests.digits import well_fitted

RUNGS = (cf.Identity(), cf.Diagonal(), cf.KFAC(), cf.EKFAC(), cf.BlockGGN(), cf.GGN(), cf.Hessian())


@pytest.mark.parametrize("damping", [1e-3, 1e-2, 1e-1])
@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_scores_in_float32(rung: cf.Rung, damping: float) -> None:
    """Relative Frobenius error <= 1e-3 and per-query Spearman >= .999 (the issue's bars)."""
    single, double, loss = well_fitted()
    assert loss < 1e-3
    low = cf.influence(single, rung, damping=cf.Absolute(damping)).values.double()
    high = cf.influence(double, rung, damping=cf.Absolute(damping)).values
    assert (low - high).norm() / high.norm() <= 1e-3
    worst = min(spearmanr(a, b).statistic for a, b in zip(low, high, strict=True))
    assert worst >= 0.999


def test_gradients_of_saturated_examples_keep_their_relative_precision() -> None:
    """p_y = 1 − 1e-12 rounds to 1 in float32; the residual must not round to 0."""
    loss = cf.CrossEntropy()
    f = torch.tensor([[28.0, 0.0, -1.0], [0.0, 60.0, 2.0]])
    y = torch.tensor([0, 1])
    found = loss.gradient(f, y).double()
    wanted = torch.autograd.functional.jacobian(lambda g: loss.values(g, y).sum(), f.double())
    # float64 autograd itself cancels at 1e-16 / 1e-12; the exact row is minus the others' sum
    exact = f.double().softmax(-1)
    exact[0, 0] = -(exact[0, 1] + exact[0, 2])
    exact[1, 1] = -(exact[1, 0] + exact[1, 2])
    assert torch.allclose(found, exact, rtol=1e-5, atol=0)
    assert torch.allclose(exact, wanted, rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("top", [0, 1, 2])
def test_factor_of_saturated_examples(top: int) -> None:
    """S Sᵀ entry by entry to relative precision, whichever class dominates."""
    loss = cf.CrossEntropy()
    f = torch.zeros(1, 3)
    f[0, top] = 24.0
    s = loss.factor(f, torch.tensor([0])).double()[0]
    p = f.double().softmax(-1)[0]
    wanted = torch.diag(p) - torch.outer(p, p)
    others = [k for k in range(3) if k != top]
    wanted[top, top] = p[top] * p[others].sum()  # p (1 − p) without cancellation
    assert torch.allclose(s @ s.T, wanted, rtol=1e-4, atol=0)
