"""A matrix known by its products alone, inverted by preconditioned conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from curvfluence.curvature.dense_limit import require_dense
from curvfluence.curvature.estimate.products import CurvatureProduct
from curvfluence.curvature.operators.conjugate_gradients import conjugate_gradients
from curvfluence.curvature.operators.eigen import Eigen
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue
from curvfluence.curvature.operators.operator import Operator
from curvfluence.errors import InputError

# (r [Q, n], λ) -> about (M + diag(w) + λI)⁻¹ r
Preconditioner = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, eq=False)
class IterativeOperator(Operator):
    """C by exact products. Cost: one product of all open right-hand sides an iteration."""

    product: CurvatureProduct
    precondition: Preconditioner | None
    mean: MeanEigenvalue
    max_iterations: int
    held: int  # bytes of the preconditioner
    tolerance: float = field()  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.product.problem.parameters.count

    @property
    def nbytes(self) -> int:
        return self.held

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.product(v.reshape(-1, self.size)).view_as(v)

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        def damped(x_qp: Tensor) -> Tensor:
            return self.product(x_qp) + (decay + damping) * x_qp

        def precondition(r_qp: Tensor) -> Tensor:
            return r_qp if self.precondition is None else self.precondition(r_qp, damping)

        solution = conjugate_gradients(
            damped,
            v.reshape(-1, self.size),
            precondition=precondition,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )
        self.tell_short(solution.residuals)
        return solution.x.view_as(v)

    def within(self, tolerance: float) -> IterativeOperator:
        return replace(self, tolerance=tolerance)

    def to_dense(self) -> Tensor:
        require_dense(self.product.kind, self.size, "the model")
        eye = torch.eye(self.size).to(self.product.problem.decay)
        return torch.cat([self.product(part) for part in eye.split(256)])

    def eigenvalues(self) -> Tensor:
        raise InputError(
            f"{self.product.kind} by conjugate gradients has no eigenvalues at hand: use the form "
            "Matrix() or SampleSpace()"
        )

    def eigenbasis(self) -> Eigen:
        return Eigen.of(self.to_dense())

    def mean_eigenvalue(self) -> MeanEigenvalue:
        return self.mean
