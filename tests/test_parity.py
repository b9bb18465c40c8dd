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
from curvfluence.curvature.estimate.factors import Sharing
from curvfluence.jacobian.fisher import Fisher
from curvfluence.problem.losses import Loss
from tests.digits import digits, fit_net
from tests.problems import mlp

pytestmark = pytest.mark.xdist_group("parity")  # its fixtures are made once

PAIRS = {
    "KFAC": (cf.KFAC(), KFACLinearOperator),
    "EKFAC": (cf.EKFAC(), EKFACLinearOperator),
    "GGN": (cf.GGN(), GGNLinearOperator),
    "Hessian": (cf.Hessian(cf.hessian.Plain()), HessianLinearOperator),
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


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class ClassesFirst(nn.Module):
    """Outputs [B, K, T], as torch's cross-entropy takes them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).movedim(-1, 1)


SHARED = {
    "positions": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), Pooled(), nn.Linear(3, 3)),
        (9, 5, 4),
    ),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
        ),
        (9, 1, 4, 4),
    ),
    "sequence": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)), (9, 5, 4)),
}


# Over outputs with positions curvlinops refuses EK-FAC, and sends one column through all positions
# at once: the same K-FAC under expand, where no position reaches another's output; under reduce it
# sums them up before squaring, which adds products of independent labels.
ASKED = [
    (name, rung, fisher, sharing)
    for name in SHARED
    for rung in ("KFAC", "EKFAC")
    for fisher in (cf.Type2(), cf.Empirical())
    for sharing in (cf.Expand(), cf.Reduce())
    if name != "sequence" or (rung, fisher.name, sharing.name) == ("KFAC", "type2", "expand")
]


@pytest.mark.parametrize(
    ("name", "rung", "fisher", "sharing"), ASKED, ids=lambda v: getattr(v, "name", v)
)
def test_shared_positions(name: str, rung: str, fisher: Fisher, sharing: Sharing) -> None:
    """K-FAC and EK-FAC over positions that share weights, in float64."""
    build, shape = SHARED[name]
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(*shape, dtype=torch.float64)
    positions = shape[1] if name == "sequence" else 1
    loss: Loss = cf.CrossEntropy()
    y = torch.randint(0, 3, (9,))
    peer_model = model
    if name == "sequence":
        loss = cf.Positions(loss, reduction="mean")
        y = torch.randint(0, 3, (9, positions))
        peer_model = ClassesFirst(model)
    problem = cf.Problem(model, loss, (x, y), (x[:2], y[:2]))
    ours = {"KFAC": cf.KFAC, "EKFAC": cf.EKFAC}[rung](fisher, sharing=sharing)
    found = cf.fit(problem, ours).to_dense()
    peer = PAIRS[rung][1](
        peer_model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x, y)],
        check_deterministic=False,
        fisher_type={"type2": FisherType.TYPE2, "empirical": FisherType.EMPIRICAL}[fisher.name],
        kfac_approx=sharing.name,
        num_per_example_loss_terms=positions,
        separate_weight_and_bias=False,
        num_data=9,
    )
    wanted = peer @ torch.eye(problem.parameters.count, dtype=torch.float64)
    assert relative(found, wanted) <= 1e-12


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
