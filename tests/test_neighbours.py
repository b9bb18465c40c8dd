"""Neighbours of training examples against the dense cosines, whatever comes at a time."""

from __future__ import annotations

import pytest
import torch

import curvfluence as cf
from curvfluence.runtime import budget
from curvfluence.score import neighbours as module
from curvfluence.score.neighbours import neighbours
from tests import oracles
from tests.problems import chain_problem

DAMPING = cf.Absolute(0.1)
EXACT = cf.GGN(cf.inversion.Matrix())


def cosines(problem: cf.Problem) -> torch.Tensor:
    """g_eᵀ A g_n / √(g_eᵀ A g_e · g_nᵀ A g_n), and 0 of an example with itself."""
    g = oracles.example_gradients(problem)
    damped = oracles.dense_ggn(problem) + torch.diag(problem.decay + DAMPING.value)
    kernel = g @ torch.linalg.solve(damped, g.T)
    norm = kernel.diagonal().sqrt()
    return (kernel / norm / norm[:, None]).fill_diagonal_(0)


@pytest.mark.parametrize("examples", [1, 3, 5, 4096])
@pytest.mark.parametrize("block", [2, 1024])
@pytest.mark.parametrize("k", [1, 4, 11])
def test_the_largest_in_size(
    examples: int, block: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the example itself, also where fewer examples than neighbours come at a time."""
    monkeypatch.setattr(budget, "EXAMPLES", examples)
    monkeypatch.setattr(module, "BLOCK", block)
    problem = chain_problem()
    asked = torch.tensor([3, 11, 0, 7, 2])
    found = neighbours(problem, EXACT, asked, damping=DAMPING, k=k)
    wanted = cosines(problem)[asked]
    best = wanted.abs().topk(k, 1).indices
    assert torch.equal(found.examples, asked)
    assert torch.equal(found.indices, best)
    torch.testing.assert_close(found.cosines, wanted.gather(1, best), rtol=1e-8, atol=1e-11)
