"""The same code on every device that is present, against float64 on the CPU."""

from __future__ import annotations

import pytest
import torch

import curvfluence as cf
from tests.zoo import zoo_problem

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
RUNGS = {
    "Diagonal": cf.Diagonal(),
    # EK-FAC under Reduce() is left out: where Ā lacks rank its basis is any, and Λ depends on it
    "KFAC": cf.KFAC(sharing=cf.Reduce()),
    "EKFAC": cf.EKFAC(),
    "BlockGGN": cf.BlockGGN(),
    "GGN": cf.GGN(cf.Matrix()),
    "GGN in sample space": cf.GGN(cf.SampleSpace()),
    "GGN by conjugate gradients": cf.GGN(cf.ConjugateGradients(tolerance=1e-6)),
    "Hessian": cf.Hessian(),
}


def on(problem: cf.Problem, device: str, dtype: torch.dtype) -> cf.Problem:
    """The problem with its model and data on a device."""
    model = problem.model.to(device, dtype)
    train = problem.train.to(torch.device(device), dtype)
    queries = problem.queries.to(torch.device(device), dtype)
    return cf.Problem(
        model,
        problem.loss,
        (train.inputs, train.targets),
        (queries.inputs, queries.targets),
        weight_decay=problem.weight_decay,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["mlp", "cnn with groups", "embedding", "multi-head attention"])
@pytest.mark.parametrize("rung", RUNGS)
def test_float32_on_every_device(device: str, name: str, rung: str) -> None:
    damping = cf.Absolute(0.05)
    exact = cf.influence(zoo_problem(name), RUNGS[rung], damping=damping).values
    problem = on(zoo_problem(name), device, torch.float32)
    scores = cf.influence(problem, RUNGS[rung], damping=damping)
    found = scores.values.cpu().double()
    assert float((found - exact).norm()) <= 1e-3 * float(exact.norm())
    assert scores.values.shape == exact.shape


@pytest.mark.parametrize("device", DEVICES)
def test_scores_of_other_kinds(device: str) -> None:
    wanted = cf.self_influence(zoo_problem("mlp"), cf.EKFAC(), damping=cf.Absolute(0.05))
    problem = on(zoo_problem("mlp"), device, torch.float32)
    found = cf.self_influence(problem, cf.EKFAC(), damping=cf.Absolute(0.05))
    assert torch.allclose(found.cpu().double(), wanted, rtol=1e-3)
    groups = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    cf.group_influence(problem, cf.EKFAC(), groups, damping=cf.Absolute(0.05))
