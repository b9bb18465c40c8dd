"""Exact products with the GGN and the Hessian that form no matrix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvfluence.curvature.estimate.double_backward import REFUSALS, not_twice
from curvfluence.errors import InputError
from curvfluence.jacobian.fisher import TYPE2_LIMIT, Type2
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.data import Examples
from curvfluence.problem.losses import Loss
from curvfluence.problem.problem import Problem
from curvfluence.runtime import precision

Kind = Literal["GGN", "Hessian"]


class Product:
    """v -> A v for A the GGN or the Hessian of the data term, v [Q, P].

    The GGN of a loss with at most 64 columns goes through its factor Z: (1/N) Zᵀ (Z v), two
    products of 2 Q N P operations (C times that where positions are shared), whose rows are held
    while they are at most 2²⁷ numbers and made anew otherwise. Every other takes Jv by double
    backward, ∂²ℓ/∂f² in output space and a backward pass, for each v: about the cost of four
    passes over the data. `examples` a chunk.
    """

    def __init__(self, problem: Problem, kind: Kind = "GGN", *, examples: int = 256) -> None:
        # By double backward v would pass through autocast and the product be linear no more.
        self.problem = problem.exact
        self.kind: Kind = kind
        self._examples = examples
        columns = problem.loss.columns(problem.n_outputs)
        by_rows = kind == "GGN" and columns <= TYPE2_LIMIT
        self._rows = FisherPass(problem, Type2(), again=True) if by_rows else None

    @precision.full()
    def __call__(self, v_qp: Tensor) -> Tensor:
        n = len(self.problem.train)
        if self._rows is not None:
            return sum_of_pulled(self._rows, v_qp) / n
        total = torch.zeros_like(v_qp)
        with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
            for _, part in self.problem.train.chunks(self._examples):
                chunk = _Linearised.of(self.problem, part, self.kind)
                for k, v in enumerate(v_qp):
                    total[k] += chunk.product(v)
        return total / n


def sum_of_pulled(rows_of: Iterable[Rows], v_qp: Tensor) -> Tensor:
    """Zᵀ Z v, a chunk of rows at a time."""
    total = torch.zeros_like(v_qp)
    for rows in rows_of:
        total += rows.adjoint(rows.inner(v_qp))
    return total


@dataclass(frozen=True, eq=False)
class _Linearised:
    """The model on a chunk with the graphs of f and of u -> Jᵀ u."""

    problem: Problem
    kind: Kind
    loss: Loss  # of these examples
    targets: Tensor
    theta: list[Tensor]
    output: Tensor
    dummy: Tensor  # u, at 0
    pulled: tuple[Tensor, ...]  # Jᵀ u with its graph in u
    slopes: tuple[Tensor, ...]  # Σ_n Jᵀ ∂ℓ/∂f with its graph in θ, for the Hessian

    @staticmethod
    def of(problem: Problem, part: Examples, kind: Kind) -> _Linearised:
        loss, y = problem.loss_of(part), part.targets
        theta = {n: v.detach().requires_grad_(True) for n, v in problem.theta.items()}
        values = list(theta.values())
        with torch.enable_grad():
            output = problem.forward(part.inputs, theta)
            if not output.requires_grad:
                raise InputError("the output does not depend on any trainable parameter")
            dummy = torch.zeros_like(output, requires_grad=True)
            slopes: tuple[Tensor, ...] = ()
            try:
                pulled = _filled(output, values, dummy)
                if kind == "Hessian":
                    slopes = _filled(output, values, loss.gradient(output.detach(), y))
            except REFUSALS as error:
                raise not_twice(problem, error) from error
        return _Linearised(problem, kind, loss, y, values, output, dummy, pulled, slopes)

    def product(self, v: Tensor) -> Tensor:
        """Σ_n of the chunk, unscaled, [P]."""
        parts = list(self.problem.parameters.unflatten(v).values())
        loss, at = self.loss, self.output.detach()
        try:
            (jv,) = torch.autograd.grad(self.pulled, self.dummy, parts, retain_graph=True)
        except REFUSALS as error:
            raise not_twice(self.problem, error) from error
        times = loss.factored_product if self.kind == "GGN" else loss.hessian_product
        found = torch.autograd.grad(
            self.output,
            self.theta,
            times(at, self.targets, jv),
            retain_graph=True,
            allow_unused=True,
        )
        total = self._flat(found)
        curved = [(s, p) for s, p in zip(self.slopes, parts, strict=False) if s.requires_grad]
        if curved:
            bent = torch.autograd.grad(
                [s for s, _ in curved],
                self.theta,
                [p for _, p in curved],
                retain_graph=True,
                allow_unused=True,
            )
            total = total + self._flat(bent)
        return total

    def _flat(self, found: tuple[Tensor | None, ...]) -> Tensor:
        parts = [
            (torch.zeros_like(v) if g is None else g).flatten()
            for g, v in zip(found, self.theta, strict=True)
        ]
        return torch.cat(parts)


def _filled(output: Tensor, theta: list[Tensor], u: Tensor) -> tuple[Tensor, ...]:
    """Jᵀ u with its graph; a parameter that the output ignores gets zeros."""
    found = cast(
        "tuple[Tensor | None, ...]",
        torch.autograd.grad(output, theta, u, create_graph=True, allow_unused=True),
    )
    return tuple(torch.zeros_like(v) if g is None else g for g, v in zip(found, theta, strict=True))
