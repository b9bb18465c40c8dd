"""The same matrices and scores as curvlinops: type-2, joint bias, on a Digits net in float32."""

from __future__ import annotations

import pytest
import torch
from curvlinops import (
    EKFACLinearOperator,
    FisherType,
    GGNLinearOperator,
    HessianLinearOperator,
    KFACLinearOperator,
)
from torch import Tensor, nn

import curvfluence as cf
from tests.digits import digits, fit_net
from tests.problems import mlp

PAIRS = {
    "KFAC": (cf.KFAC(), KFACLinearOperator),
    "EKFAC": (cf.EKFAC(), EKFACLinearOperator),
    "GGN": (cf.GGN(), GGNLinearOperator),
    "Hessian": (cf.Hessian(cf.Plain()), HessianLinearOperator),
}


@pytest.fixture(scope="module")
def problem() -> cf.Problem:
    x, y, xq, yq = digits(600, 40)
    torch.manual_seed(0)
    model = mlp(64, 16, 16, 10)
    fit_net(model, x.float(), y, steps=60, decay=3e-3)
    return cf.Problem(model, cf.CrossEntropy(), (x.float(), y), (xq.float(), yq), weight_decay=3e-3)


@pytest.mark.parametrize("name", PAIRS)
def test_curvlinops(problem: cf.Problem, name: str) -> None:
    rung, operator = PAIRS[name]
    options = {}
    if name in ("KFAC", "EKFAC"):
        options = {"fisher_type": FisherType.TYPE2, "separate_weight_and_bias": False}
    peer = operator(
        problem.model,
        nn.CrossEntropyLoss(),
        list(problem.model.parameters()),
        [(problem.train.inputs, problem.train.targets)],
        check_deterministic=False,
        **options,
    )
    dense = peer @ torch.eye(problem.parameters.count)
    ours = cf.fit(problem, rung)
    assert relative(ours.to_dense(), dense) <= 1e-4
    damping = cf.Absolute(0.05)
    scores = cf.influence(problem, rung, damping=damping).values
    damped = dense.double() + (0.05 + 3e-3) * torch.eye(len(dense)).double()
    wanted = query_gradients(problem) @ torch.linalg.solve(damped, training_gradients(problem).T)
    assert relative(scores, wanted / 600) <= 1e-4


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def gradients(problem: cf.Problem, x: Tensor, y: Tensor) -> Tensor:
    rows = []
    for one_x, one_y in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(problem.model(one_x[None]), one_y[None])
        found = torch.autograd.grad(loss, list(problem.model.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows).double()


def training_gradients(problem: cf.Problem) -> Tensor:
    return gradients(problem, problem.train.inputs, problem.train.targets)


def query_gradients(problem: cf.Problem) -> Tensor:
    return gradients(problem, problem.queries.inputs, problem.queries.targets)
