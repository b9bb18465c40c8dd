"""A model on a few examples as its derivative: products with J from either side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curvfluence.curvature.estimate.double_backward import REFUSALS, refused
from curvfluence.errors import InputError, counted_from
from curvfluence.problem.data import Examples, require_finite
from curvfluence.problem.losses import Loss
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import Batched
from curvfluence.runtime.autograd import pulled_back

Kind = Literal["GGN", "Hessian"]


@dataclass(frozen=True, eq=False)
class Linearised:
    """The model on a chunk with the graphs of f and of u -> Jᵀ u."""

    problem: Problem
    kind: Kind
    loss: Loss  # of these examples
    targets: Batched
    start: int  # the number of the first of them
    theta: list[Tensor]
    output: Tensor
    dummy: Tensor  # u, at 0
    vjp: tuple[Tensor, ...]  # Jᵀ u with its graph in u
    slopes: tuple[Tensor, ...]  # Σ_n Jᵀ ∂ℓ/∂f with its graph in θ, for the Hessian

    @staticmethod
    def of(problem: Problem, start: int, part: Examples, kind: Kind) -> Linearised:
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
                with problem.holding(theta):
                    vjp = _with_graph(output, values, dummy)
                    if kind == "Hessian":
                        delta = loss.gradient(output.detach(), y)
                        require_finite(delta, "output gradient of training set", start)
                        slopes = _with_graph(output, values, delta)
            except torch.cuda.OutOfMemoryError:
                raise
            except REFUSALS as error:
                raise refused(problem, error) from error
        return Linearised(problem, kind, loss, y, start, values, output, dummy, vjp, slopes)

    def product(self, v: Tensor) -> Tensor:
        """Σ_n Jᵀ (∂²ℓ/∂f²) J v of the chunk, unscaled, [P]; for the Hessian with
        Σ_n Σ_k (∂ℓ/∂f_k) ∇²f_k v."""
        jv = self.along(v)
        curved = self.loss.factored_product if self.kind == "GGN" else self.loss.hessian_product
        with counted_from(self.start):
            ssjv = curved(self.output.detach(), self.targets, jv)
            require_finite(ssjv, "∂²ℓ/∂f² J v of training set", self.start)
        total = self.pulled(ssjv)
        return total + self._bent(v) if self.slopes else total

    def along(self, v: Tensor) -> Tensor:
        """J v, of the shape of the outputs: the derivative of vᵀ Jᵀ u in u. Cost: about two
        backward passes."""
        try:
            (jv,) = self._pulled(_dot(self.vjp, self._parts(v)), [self.dummy], v.new_ones(()))
            if jv is None:
                raise RuntimeError("its backward pass has no graph")
        except torch.cuda.OutOfMemoryError:
            raise
        except REFUSALS as error:
            raise refused(self.problem, error) from error
        return jv

    def pulled(self, u: Tensor) -> Tensor:
        """Jᵀ u of the chunk together, [P]. Cost: a backward pass."""
        return self._flat(self._pulled(self.output, self.theta, u))

    def _bent(self, v: Tensor) -> Tensor:
        """∇(vᵀ Σ_n Jᵀ δ_n) with δ held fixed."""
        curved = [(s, p) for s, p in zip(self.slopes, self._parts(v), strict=True)]
        curved = [(s, p) for s, p in curved if s.requires_grad]
        if not curved:
            return torch.zeros_like(v)
        slopes, parts = zip(*curved, strict=True)
        return self._flat(self._pulled(_dot(slopes, parts), self.theta, v.new_ones(())))

    def _pulled(
        self, output: Tensor, leaves: Sequence[Tensor], u: Tensor
    ) -> tuple[Tensor | None, ...]:
        with self.problem.holding(dict(zip(self.problem.theta, self.theta, strict=True))):
            return pulled_back(output, leaves, u)

    def _parts(self, v: Tensor) -> list[Tensor]:
        return list(self.problem.parameters.unflatten(v).values())

    def _flat(self, grads: tuple[Tensor | None, ...]) -> Tensor:
        parts = [
            (torch.zeros_like(v) if g is None else g).flatten()
            for g, v in zip(grads, self.theta, strict=True)
        ]
        return torch.cat(parts)


def _dot(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    with torch.enable_grad():
        return torch.stack([(x * y).sum() for x, y in zip(xs, ys, strict=True)]).sum()


def _with_graph(output: Tensor, theta: list[Tensor], u: Tensor) -> tuple[Tensor, ...]:
    """Jᵀ u with its graph; a parameter that the output ignores gets zeros."""
    grads = pulled_back(output, theta, u, create_graph=True)
    return tuple(torch.zeros_like(v) if g is None else g for g, v in zip(grads, theta, strict=True))
