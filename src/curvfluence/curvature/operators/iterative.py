"""A matrix known by its products alone, inverted by preconditioned block conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from curvfluence.curvature.dense_limit import require_dense
from curvfluence.curvature.estimate.products import CurvatureProduct
from curvfluence.curvature.operators.block_conjugate_gradients import block_conjugate_gradients
from curvfluence.curvature.operators.eigen import Eigen
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue
from curvfluence.curvature.operators.operator import Operator
from curvfluence.errors import InputError
from curvfluence.runtime import journal

# (r [Q, n], λ) -> about (M + diag(w) + λI)⁻¹ r
Preconditioner = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, eq=False)
class IterativeOperator(Operator):
    """C by exact products. Cost: one product of all open right-hand sides an iteration; memory 6
    numbers of each, and up to `budget.DIRECTIONS`."""

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

        flat = v.reshape(-1, self.size)
        scale = flat.abs().amax(1, keepdim=True)  # squares of small numbers would be 0
        scale = torch.where(scale > 0, scale, 1)
        b_qp = flat / scale
        size_q = torch.linalg.vector_norm(b_qp, dim=1, dtype=torch.float64)
        with journal.work("conjugate gradients") as ours:
            found = block_conjugate_gradients(
                damped,
                b_qp,
                precondition=precondition,
                enough_q=self.tolerance * size_q,
                max_products=self.max_iterations,
                kept=ours,
            )
        left_q = torch.linalg.vector_norm(found.residual, dim=1, dtype=torch.float64)
        self.tell_short(left_q / torch.where(size_q > 0, size_q, 1))
        return (found.x * scale).view_as(v)

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
