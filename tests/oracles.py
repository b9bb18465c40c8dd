"""The slow, obvious versions: dense matrices by autograd, one example and one layer at a time."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvfluence import Problem
from curvfluence.curvature.operators.kronecker import KroneckerEigen


def outputs_at(problem: Problem, theta: Tensor, inputs: Tensor) -> Tensor:
    values = problem.parameters.unflatten(theta)
    # A copy: functional_call leaves tensors behind in a module that is used twice.
    everything = {**problem.state, **values}
    out = torch.func.functional_call(deepcopy(problem.model), everything, (inputs,))
    return out.reshape(len(inputs), -1)


def flat(problem: Problem) -> Tensor:
    return problem.parameters.flatten(problem.theta)


def loss_at(problem: Problem, theta: Tensor) -> Tensor:
    """The data term of J."""
    out = outputs_at(problem, theta, problem.train.inputs)
    return problem.loss.values(out, problem.train.targets).mean()


@cache
def dense_hessian(problem: Problem) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
        return hessian(lambda theta: loss_at(problem, theta), flat(problem))


@cache
def jacobians(problem: Problem, inputs: Tensor) -> Tensor:
    """[N, K, P]."""
    return jacobian(lambda theta: outputs_at(problem, theta, inputs), flat(problem))


@cache
def output_hessians(problem: Problem) -> Tensor:
    """∂²ℓ/∂f² by double backward, [N, K, K]."""
    out = outputs_at(problem, flat(problem), problem.train.inputs)
    return torch.stack(
        [
            hessian(lambda f, y=y: problem.loss.values(f[None], y[None])[0], row)
            for row, y in zip(out, problem.train.targets, strict=True)
        ]
    )


@cache
def dense_ggn(problem: Problem) -> Tensor:
    j = jacobians(problem, problem.train.inputs)
    return torch.einsum("nkp,nkl,nlq->pq", j, output_hessians(problem), j) / len(problem.train)


@cache
def example_gradients(problem: Problem) -> Tensor:
    """∇ℓ_n by autograd, [N, P]."""

    def values(theta: Tensor) -> Tensor:
        out = outputs_at(problem, theta, problem.train.inputs)
        return problem.loss.values(out, problem.train.targets)

    return jacobian(values, flat(problem))


@cache
def query_gradients(problem: Problem) -> Tensor:
    """∇m_q by autograd, [Q, P]."""

    def values(theta: Tensor) -> Tensor:
        out = outputs_at(problem, theta, problem.queries.inputs)
        return problem.measurement.values(out, problem.queries.targets)

    return jacobian(values, flat(problem))


@cache
def dense_empirical(problem: Problem) -> Tensor:
    g = example_gradients(problem)
    return g.T @ g / len(problem.train)


@cache
def layer_indices(problem: Problem) -> dict[str, tuple[nn.Linear, Tensor]]:
    """Of an nn.Sequential: each Linear and the flat places of [W | b], (o, ĩ)."""
    found = {}
    for name, module in problem.model.named_children():
        if isinstance(module, nn.Linear):
            places = torch.arange(problem.parameters.count)
            index = places[problem.parameters.slices[f"{name}.weight"]].reshape(module.weight.shape)
            if module.bias is not None:
                bias = places[problem.parameters.slices[f"{name}.bias"]]
                index = torch.cat([index, bias[:, None]], dim=1)
            found[name] = (module, index)
    return found


def layer_views(problem: Problem, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """(ã [ĩ], ∂f/∂z [K, o]) of one example, running an nn.Sequential module by module."""
    modules = list(problem.model.named_children())
    at = next(k for k, (other, _) in enumerate(modules) if other == name)
    h = x[None]
    for _, module in modules[:at]:
        h = module(h)
    layer = modules[at][1]
    assert isinstance(layer, nn.Linear)

    def suffix(z: Tensor) -> Tensor:
        for _, module in modules[at + 1 :]:
            z = module(z)
        return z[0]

    z = layer(h).detach()
    a = h[0].detach()
    if layer.bias is not None:
        a = torch.cat([a, a.new_ones(1)])
    return a, jacobian(suffix, z)[:, 0]


@cache
def kronecker_factors(problem: Problem, name: str) -> tuple[Tensor, Tensor]:
    """A = (1/N) Σ ã ãᵀ and B = (1/N) Σ (∂f/∂z)ᵀ (∂²ℓ/∂f²) ∂f/∂z, example by example."""
    a_sum, b_sum = 0.0, 0.0
    for x, h in zip(problem.train.inputs, output_hessians(problem), strict=True):
        a, jz = layer_views(problem, name, x)
        a_sum = a_sum + torch.outer(a, a)
        b_sum = b_sum + jz.T @ h @ jz
    n = len(problem.train)
    return a_sum / n, b_sum / n


def block_mask(problem: Problem, groups: list[Tensor]) -> Tensor:
    mask = torch.zeros(problem.parameters.count, problem.parameters.count, dtype=torch.bool)
    for index in groups:
        mask[index[:, None], index] = True
    return mask


def kronecker_basis(operator: KroneckerEigen) -> Tensor:
    inner = operator.in_basis
    if inner is None:
        inner = torch.eye(operator.values.shape[1], dtype=operator.values.dtype)
    return torch.kron(operator.out_basis.contiguous(), inner.contiguous())
