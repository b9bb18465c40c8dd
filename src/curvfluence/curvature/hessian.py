"""The exact Hessian of the data term."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvfluence.curvature.block_ggn import DENSE_LIMIT, require_dense
from curvfluence.curvature.curvature import Block, Curvature
from curvfluence.curvature.estimate.chain import chain_hessian, find_chain
from curvfluence.curvature.estimate.double_backward import REFUSALS, not_twice
from curvfluence.curvature.ggn import ggn_matrix
from curvfluence.curvature.inversion import ConjugateGradients
from curvfluence.curvature.operators.iterative import iterative
from curvfluence.curvature.operators.places import Whole
from curvfluence.curvature.operators.symmetric import (
    Abs,
    Clip,
    Plain,
    Symmetric,
    Treatment,
    Truncate,
)

from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.problem.problem import Problem


@dataclass(frozen=True)
class Hessian(Rung):
    """(1/N) Σ_n ∇²ℓ_n, inverted through the eigenvalues of H + diag(w) as `treatment` says.

    H = GGN + (1/N) Σ_n Σ_k (∂ℓ_n/∂f_k) ∇²f_k: the second part is the Hessian of δᵀf with δ = ∂ℓ/∂f
    held fixed, so a saturated loss loses nothing to cancellation. Chains of Linear layers take
    GEMMs; any other model takes vmapped Hessian-vector products, P of them. A `CustomLoss` that is
    not convex in f keeps its negative curvature here.
    With `form=ConjugateGradients()` and `Plain()` no matrix is formed; where H + diag(w) + λI is
    not positive definite that raises `SingularError`.
    Cost: 2 N P² and an eigendecomposition, about 10 P³; memory 4 P² numbers.
    """

    treatment: Treatment = Abs()  # noqa: RUF009 - a frozen value
    form: ConjugateGradients | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.treatment, Treatment):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"treatment must be Abs(), Plain(), Clip() or Truncate(τ); seen {self.treatment!r}"
            )
        if self.form is not None and not isinstance(self.treatment, Plain):
            raise InputError(
                f"conjugate gradients know no eigenvalues to treat by {self.treatment.name}: use "
                "Hessian(Plain(), form=ConjugateGradients())"
            )

    @property
    def name(self) -> str:
        return f"Hessian({self.treatment.name})"

    def elements(self, problem: Problem) -> float:
        if self.form is not None or problem.parameters.count > DENSE_LIMIT:
            return 0.0  # no matrix, or refused by name
        return 4.0 * problem.parameters.count**2

    def build(self, problem: Problem) -> Curvature:
        problem = problem.exact  # second derivatives of a rounded function are none
        if self.form is not None:
            return self._by_products(problem, self.form)
        count = problem.parameters.count
        require_dense(self.name, count, "the model")
        matrix, rule = hessian_matrix(problem)
        operator = Symmetric.of(matrix, problem.decay, self.treatment)
        every = Block("all", problem.parameters.names, Whole(problem.parameters), operator, rule)
        negative = operator.values < 0
        notes: tuple[str, ...] = ()
        if bool(negative.any()):
            text = (
                f"{int(negative.sum())} of {count} eigenvalues of H + diag(w) are negative, the "
                f"lowest {float(operator.values[0]):.3g}: {self.treatment.name}"
            )
            notes = (*notes, text)
        return Curvature(
            rung=self.name,
            parameters=problem.parameters,
            blocks=(every,),
            decay=problem.decay,
            notes=notes,
        )

    def _by_products(self, problem: Problem, form: ConjugateGradients) -> Curvature:
        operator, rule = iterative(problem, "Hessian", form)
        every = Block("all", problem.parameters.names, Whole(problem.parameters), operator, rule)
        return Curvature(
            rung=self.name, parameters=problem.parameters, blocks=(every,), decay=problem.decay
        )


def hessian_matrix(problem: Problem) -> tuple[Tensor, str]:
    """(H [P, P], by which path)."""
    layout = discover(problem)
    products = "exact, from Hessian-vector products"
    if not problem.loss.convex:
        # GGN alone would lack what a clipped S leaves out.
        return hessian_by_products(problem, whole=True), products
    chain = find_chain(problem, layout)
    if chain is not None:
        return chain_hessian(problem, layout, chain), "exact, analytic for a chain of Linear layers"
    ggn, _ = ggn_matrix(problem)
    return ggn.add_(hessian_by_products(problem, whole=False)), products


def hessian_by_products(
    problem: Problem, *, whole: bool, examples: int = 512, vectors: int = 64
) -> Tensor:
    """(1/N) Σ_n ∇²(δ_nᵀ f_n) with δ = ∂ℓ/∂f held fixed, [P, P]; with `whole`, the Hessian in full.

    The full one is that of δᵀf + ½ (f − f₀)ᵀ (∂²ℓ/∂f²) (f − f₀) at f₀ = f. Reverse mode over
    reverse mode, vmapped over unit vectors; attention takes its plain kernel, which can be
    differentiated twice. Errors: `InputError` for a model that cannot, or whose matrix is not
    symmetric.
    """
    models = list(_quadratic_models(problem, whole=whole, examples=examples))
    flat = problem.parameters.flatten(problem.theta)
    with sdpa_kernel(SDPBackend.MATH):
        total = _vmapped_products(models, flat, vectors)
        if total is None or not _is_symmetric(total):
            total = _looped_products(models, flat)  # for operations that vmap refuses or gets wrong
    if not _is_symmetric(total):
        raise InputError(
            f"the second derivatives of this model are not symmetric (by "
            f"{float((total - total.T).norm()):.3g} of {float(total.norm()):.3g}): an operation in "
            "it has a wrong double backward. GGN needs first derivatives only"
        )
    return (total + total.T) / 2


def _is_symmetric(matrix: Tensor) -> bool:
    tolerance = 1e3 * torch.finfo(matrix.dtype).eps * float(matrix.norm())
    return float((matrix - matrix.T).norm()) <= tolerance


def _quadratic_models(problem: Problem, *, whole: bool, examples: int) -> Iterator[_QuadraticModel]:
    n = len(problem.train)
    for _, part in problem.train.chunks(examples):
        loss = problem.loss_of(part)
        with torch.no_grad():
            at = problem.forward(part.inputs)
            delta = loss.gradient(at, part.targets) / n
            curve = loss.hessian(at, part.targets) / n if whole else None
        yield _QuadraticModel(problem, part.inputs, at, delta, curve)


@dataclass(frozen=True, eq=False)
class _QuadraticModel:
    """θ -> Σ_n δ_nᵀ f_n + ½ (f_n − f₀)ᵀ H_n (f_n − f₀) on a chunk of examples."""

    problem: Problem
    inputs: Tensor
    at: Tensor
    delta: Tensor
    curve: Tensor | None

    def __call__(self, theta: Tensor) -> Tensor:
        f = self.problem.forward(self.inputs, self.problem.parameters.unflatten(theta))
        linear = (f * self.delta).sum()
        if self.curve is None:
            return linear
        step = f - self.at
        return linear + (step[:, None, :] @ self.curve @ step[:, :, None]).sum() / 2


def _vmapped_products(models: list[_QuadraticModel], flat: Tensor, vectors: int) -> Tensor | None:
    """Rows of the Hessian by vmap over unit vectors; None where torch.func refuses the model."""
    total = flat.new_zeros(len(flat), len(flat))
    try:
        for model in models:
            pull = vjp(grad(model), flat)[1]
            for start in range(0, len(flat), vectors):
                basis = flat.new_zeros(min(vectors, len(flat) - start), len(flat))
                basis[:, start : start + len(basis)].fill_diagonal_(1.0)
                total[start : start + len(basis)] += vmap(pull)(basis)[0].detach()
    except (RuntimeError, NotImplementedError, ValueError):
        return None
    return total


def _looped_products(models: list[_QuadraticModel], flat: Tensor) -> Tensor:
    """Rows of the Hessian by plain autograd, one at a time."""
    total = flat.new_zeros(len(flat), len(flat))
    try:
        for model in models:
            theta = flat.detach().requires_grad_(True)
            with torch.enable_grad():
                (first,) = torch.autograd.grad(model(theta), theta, create_graph=True)
            if not first.requires_grad:
                continue
            for p in range(len(flat)):
                (row,) = torch.autograd.grad(first[p], theta, retain_graph=True)
                total[p] += row
    except REFUSALS as error:
        raise not_twice(models[0].problem, error) from error
    return total
