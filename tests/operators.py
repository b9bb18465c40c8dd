"""Operators of small fitted curvatures, and their dense matrices by their products alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.kronecker import (
    FactoredKronecker,
)
from curvfluence.curvature.operators.operator import (
    Operator,
)
from curvfluence.curvature.operators.symmetric import Symmetric
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients, training_gradients
from curvfluence.jacobian.rows import Rows
from tests.problems import chain_problem, make, mlp, seeded
from tests.zoo import zoo_problem

LAMBDA = 0.3
RUNGS: dict[str, cf.Rung] = {
    "EKFAC": cf.EKFAC(),
    "EKFAC apart": cf.EKFAC(joint_bias=False),
    "KFAC": cf.KFAC(),
    "factored": cf.KFAC(factored_damping=True, joint_bias=False),
    "Shampoo": cf.Shampoo(),
    "BlockGGN": cf.BlockGGN(),
    "Diagonal": cf.Diagonal(),
    "GGN": cf.GGN(form=cf.inversion.Matrix()),
    "Hessian": cf.Hessian(),
    "Hessian plain": cf.Hessian(cf.hessian.Plain()),
    "Hessian clip": cf.Hessian(cf.hessian.Clip()),
    "Hessian truncate": cf.Hessian(cf.hessian.Truncate(0.05)),
}
PROBLEMS = ("chain", "one decay", "embedding", "conv2d", "embedding bag weighted")


@cache
def problem_of(name: str) -> cf.Problem:
    if name == "chain":  # a bias with a decay of its own
        seeded()
        decay = {"0.weight": 0.02, "0.bias": 0.2, "2.weight": 0.01, "4.bias": 0.3}
        return make(mlp(5, 4, 6, 3), cf.CrossEntropy(), weight_decay=decay)
    return chain_problem() if name == "one decay" else zoo_problem(name, n=9)


@cache
def curvature_of(name: str, rung: str) -> cf.Curvature:
    return cf.fit(problem_of(name), RUNGS[rung])


@cache
def rows_of(name: str) -> tuple[Rows, Rows]:
    """∇m of the queries and ∇ℓ of the training examples."""
    problem = problem_of(name)
    layout = discover(problem)
    return query_gradients(problem, layout), training_gradients(problem, layout)


def cases() -> Iterator[tuple[str, str]]:
    for name in PROBLEMS:
        for rung in RUNGS:
            if not (rung.startswith("Hessian") and "bag" in name):  # no second derivative
                yield name, rung


def blocks(name: str, rung: str) -> Iterator[tuple[Block, Tensor]]:
    """Each block with its part of the weight decay."""
    curvature = curvature_of(name, rung)
    for block in curvature.blocks:
        yield block, block.places.take(curvature.decay)


def dense(operator: Operator) -> Tensor:
    """M, column by column, by its products alone."""
    return (operator @ torch.eye(operator.size, dtype=torch.float64)).T


def inverted(operator: Operator, decay: Tensor, damping: float) -> Tensor:
    """(M + diag(w) + λ)⁻¹, or what stands in its place, by definition."""
    size = torch.eye(operator.size, dtype=torch.float64)
    if isinstance(operator, Symmetric):
        values, vectors = torch.linalg.eigh(dense(operator) + torch.diag(decay))
        return vectors * operator.treatment.inverse(values, damping) @ vectors.T
    if not isinstance(operator, FactoredKronecker):
        return torch.linalg.inv(dense(operator) + torch.diag(decay) + damping * size)
    a = operator.in_basis
    first = torch.diag(operator.in_values) if a is None else a * operator.in_values @ a.T
    second = operator.out_basis * operator.out_values @ operator.out_basis.T
    pi = ((first.trace() / len(first)) / (second.trace() / len(second))).sqrt()
    root = (float(decay[0]) + damping) ** 0.5
    one = first + pi * root * torch.eye(len(first), dtype=torch.float64)
    two = second + root / pi * torch.eye(len(second), dtype=torch.float64)
    return torch.linalg.inv(torch.kron(two, one))


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
