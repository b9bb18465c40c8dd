"""The exact Hessian of the data term as a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap  # pyright: ignore[reportPrivateImportUsage]

from curvfluence.curvature.estimate.accumulate import Sums, accumulate
from curvfluence.curvature.estimate.chain import chain_hessian, find_chain
from curvfluence.curvature.estimate.double_backward import REFUSALS, refused
from curvfluence.curvature.estimate.ggn import ggn_matrix
from curvfluence.curvature.estimate.second_differences import require_second_derivative
from curvfluence.errors import InputError, counted_from
from curvfluence.jacobian.discovery import discover
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import Batched
from curvfluence.runtime import attention
from curvfluence.runtime.autograd import pulled_back

ANALYTIC = "exact, analytic for a chain of Linear layers"
BY_PRODUCTS = "exact, from Hessian-vector products"


def path(problem: Problem) -> str:
    """By which path the matrix would be had."""
    chain = problem.loss.convex and find_chain(problem, discover(problem)) is not None
    return ANALYTIC if chain else BY_PRODUCTS


def hessian_matrix(problem: Problem) -> tuple[Tensor, str]:
    """(H [P, P], by which path)."""
    layout = discover(problem)
    if not problem.loss.convex:
        # GGN alone would lack what a clipped S leaves out.
        return hessian_by_products(problem, whole=True), BY_PRODUCTS
    chain = find_chain(problem, layout)
    if chain is not None:
        return chain_hessian(problem, layout, chain), ANALYTIC
    ggn, _ = ggn_matrix(problem)
    return ggn.add_(hessian_by_products(problem, whole=False)), BY_PRODUCTS


def hessian_by_products(
    problem: Problem, *, whole: bool, examples: int = 512, vectors: int = 64
) -> Tensor:
    """(1/N) Σ_n ∇²(δ_nᵀ f_n) with δ = ∂ℓ/∂f held fixed, [P, P]; with `whole`, the Hessian in full.

    The full one is that of δᵀf + ½ (f − f₀)ᵀ (∂²ℓ/∂f²) (f − f₀) at f₀ = f. Reverse mode over
    reverse mode, vmapped over unit vectors; attention takes its plain kernel, which can be
    differentiated twice. Errors: `InputError` for a model that cannot, or whose matrix is not
    symmetric.
    """
    require_second_derivative(problem)
    models = list(_quadratic_models(problem, whole=whole, examples=examples))
    flat = problem.parameters.flatten(problem.theta)
    with attention.plain():
        total = _vmapped_products(models, flat, vectors)
        if total is None or not _is_symmetric(total, problem):
            total = _looped_products(models, flat)  # for operations that vmap refuses or gets wrong
    if not _is_symmetric(total, problem):
        raise InputError(
            f"the second derivatives of this model are not symmetric (by "
            f"{float((total - total.T).norm()):.3g} of {float(total.norm()):.3g}): an operation in "
            "it has a wrong double backward. GGN needs first derivatives only"
        )
    return (total + total.T) / 2


def _is_symmetric(matrix: Tensor, problem: Problem) -> bool:
    eps = max(torch.finfo(dtype).eps for dtype in (matrix.dtype, problem.arithmetic))
    tolerance = 1e3 * eps * float(matrix.norm())
    return float((matrix - matrix.T).norm()) <= tolerance


def _quadratic_models(problem: Problem, *, whole: bool, examples: int) -> Iterator[_QuadraticModel]:
    n = len(problem.train)
    for start, part in problem.train.chunks(examples):
        loss = problem.loss_of(part)
        with torch.no_grad(), counted_from(start):
            at = problem.forward(part.inputs)
            delta = loss.gradient(at, part.targets) / n
            curve = loss.hessian(at, part.targets) / n if whole else None
        yield _QuadraticModel(problem, part.inputs, at, delta, curve)


@dataclass(frozen=True, eq=False)
class _QuadraticModel:
    """θ -> Σ_n δ_nᵀ f_n + ½ (f_n − f₀)ᵀ H_n (f_n − f₀) on a chunk of examples."""

    problem: Problem
    inputs: Batched
    at: Tensor
    delta: Tensor
    curve: Tensor | None

    def __call__(self, theta: Tensor) -> Tensor:
        return self.of(self.problem.parameters.unflatten(theta))

    def of(self, theta: Mapping[str, Tensor]) -> Tensor:
        f = self.problem.forward(self.inputs, theta)
        linear = (f * self.delta).sum()
        if self.curve is None:
            return linear
        step = f - self.at
        return linear + (step[:, None, :] @ self.curve @ step[:, :, None]).sum() / 2


def _vmapped_products(models: list[_QuadraticModel], flat: Tensor, vectors: int) -> Tensor | None:
    """Rows of the Hessian by vmap over unit vectors; None where torch.func refuses the model."""

    strips = range(0, len(flat), vectors)

    def add_strips(model: _QuadraticModel, sums: Sums) -> None:
        pull = vjp(grad(model), flat)[1]
        for start in strips:
            basis = flat.new_zeros(min(vectors, len(flat) - start), len(flat))
            basis[:, start : start + len(basis)].fill_diagonal_(1.0)
            sums.add_(start, vmap(pull)(basis)[0].detach())

    try:
        sums = accumulate(models, add_strips)
    except (RuntimeError, NotImplementedError, ValueError):
        return None
    return torch.cat([sums.pop(start) for start in strips])


def _looped_products(models: list[_QuadraticModel], flat: Tensor) -> Tensor:
    """Rows of the Hessian by plain autograd, one at a time."""

    def add_rows(model: _QuadraticModel, sums: Sums) -> None:
        theta = flat.detach().requires_grad_(True)
        rows = flat.new_zeros(len(flat), len(flat))
        with torch.enable_grad():
            parts = model.problem.parameters.unflatten(theta)
            total = model.of(parts)
        one = torch.ones_like(total)
        with model.problem.holding(parts):
            (first,) = pulled_back(total, [theta], one, create_graph=True)
            slopes = () if first is None or not first.requires_grad else first.unbind()
            for p, slope in enumerate(slopes):
                (row,) = pulled_back(slope, [theta], one)
                rows[p] = 0.0 if row is None else row  # where outputs are linear in θ
        sums.add_("rows", rows)

    try:
        return accumulate(models, add_rows).pop("rows")
    except REFUSALS as error:
        raise refused(models[0].problem, error) from error
