"""A curvature known by its products alone, inverted by preconditioned conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Curvature, Operator
from curvfluence.curvature.damping import Absolute
from curvfluence.curvature.diagonal import Diagonal
from curvfluence.curvature.estimate.products import Kind, Product
from curvfluence.curvature.inversion import ConjugateGradients
from curvfluence.curvature.operators.conjugate_gradients import conjugate_gradients
from curvfluence.curvature.rung import fit
from curvfluence.errors import InputError
from curvfluence.problem.problem import Problem


@dataclass(frozen=True, eq=False)
class IterativeOperator(Operator):
    """C by exact products. Cost: one product of all open right-hand sides an iteration."""

    product: Product
    preconditioner: Curvature | None
    trace: float
    tolerance: float
    max_iterations: int

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.product.problem.parameters.count

    @property
    def nbytes(self) -> int:
        return 0 if self.preconditioner is None else self.preconditioner.cost.nbytes

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.product(v.reshape(-1, self.size)).view_as(v)

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        def damped(x_qp: Tensor) -> Tensor:
            return self.product(x_qp) + (decay + damping) * x_qp

        def precondition(r_qp: Tensor) -> Tensor:
            if self.preconditioner is None:
                return r_qp
            return self.preconditioner.solve(r_qp, Absolute(damping))

        found = conjugate_gradients(
            damped,
            v.reshape(-1, self.size),
            precondition=precondition,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )
        return found.x.view_as(v)

    def to_dense(self) -> Tensor:
        from curvfluence.curvature.block_ggn import require_dense

        require_dense(self.product.kind, self.size, "the model")
        eye = torch.eye(self.size).to(self.product.problem.decay)
        return torch.cat([self.product(part) for part in eye.split(256)])

    def eigenvalues(self) -> Tensor:
        raise InputError(
            f"{self.product.kind} by conjugate gradients has no eigenvalues at hand: use the form "
            "Matrix() or SampleSpace()"
        )

    def mean_eigenvalue(self) -> float:
        return self.trace / self.size


def iterative(
    problem: Problem, kind: Kind, form: ConjugateGradients
) -> tuple[IterativeOperator, str]:
    """(the GGN or the Hessian by its products, by which path). Its trace, the unit of a relative
    damping, is the GGN's by `Diagonal` (a sampled one where the loss has many columns)."""
    rung = form.preconditioner
    fitted = None if rung is None else fit(problem, rung)
    diagonal = fit(problem, Diagonal())
    trace = sum(block.operator.mean_eigenvalue() * block.size for block in diagonal.blocks)
    operator = IterativeOperator(
        Product(problem, kind), fitted, trace, form.tolerance, form.max_iterations
    )
    by = "none" if fitted is None else fitted.name
    return operator, f"exact products, conjugate gradients to {form.tolerance:g} (by {by})"
