"""Bounds on errors of scores at their edges: the most columns, batches of queries, a damping below
rounding, a score of exactly its bound."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import curvfluence as cf
from curvfluence.curvature.inversion import Matrix
from curvfluence.runtime import budget
from curvfluence.score.bounds import ErrorBounds
from tests.problems import chain_problem, make, mlp, seeded

DAMPING = cf.Absolute(0.05)


def test_a_sign_is_proven_above_the_bound_alone() -> None:
    bounds = ErrorBounds("EKFAC", torch.tensor([[0.5, 0.5, 0.5]]).double(), "nats", 3, 0.9)
    found = bounds.signs(torch.tensor([[0.5, -0.75, 0.25]]))
    assert found.tolist() == [[False, True, False]]


def test_the_most_columns() -> None:
    """64, of 65 classes."""
    seeded()
    problem = make(mlp(5, 65), cf.CrossEntropy(), outputs=65, n=6, q=2)
    exact = cf.influence(problem, cf.GGN(Matrix()), damping=DAMPING).values
    scores = cf.influence(problem, cf.KFAC(), damping=DAMPING)
    assert bool(((scores.values - exact).abs() <= scores.error_bounds().values).all())


def test_queries_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = cf.influence(chain_problem(), cf.KFAC(), damping=DAMPING)
    wanted = scores.error_bounds(5).values
    monkeypatch.setattr(budget, "RIGHT_HAND_SIDES", 1)
    assert torch.allclose(scores.error_bounds(5).values, wanted, rtol=1e-9)


def test_below_rounding_nothing_is_bound() -> None:
    """Where λ is so small that the rows' own rounding may be all of A, every bound is infinite:
    none is NaN, though the rows span every example's gradient and leave nothing of it."""
    seeded()
    problem = make(nn.Linear(5, 1), cf.MSE(), outputs=1, weight_decay=0.0, n=4)
    for damping, below in ((0.05, False), (1e-17, True)):
        scores = cf.influence(problem, cf.Diagonal(), damping=cf.Absolute(damping))
        found = scores.error_bounds().values
        assert bool((found.isinf() if below else found.isfinite()).all())
