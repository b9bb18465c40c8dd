"""Preconditioned conjugate gradients for many right-hand sides at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.errors import SingularError


@dataclass(frozen=True, eq=False)
class Solution:
    """`x` [Q, n]; `residuals` [Q] are ‖A x − b‖/‖b‖ by the recurrence; `iterations` were taken."""

    x: Tensor
    residuals: Tensor
    iterations: int


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b_qn: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
    max_iterations: int,
) -> Solution:
    """A x = b for each row of b [Q, n], with A positive definite and `precondition` ≈ A⁻¹.

    Every row has its own step lengths; a row that is below `tolerance` leaves the batch, so later
    products cost less. Cost: one product and one preconditioning of the rows left an iteration;
    memory 5 Q n numbers (Saad 2003, algorithm 9.1).

    Errors: `SingularError` where a direction has no positive curvature.
    """
    x = torch.zeros_like(b_qn)
    scale = b_qn.abs().amax(dim=1, keepdim=True)  # squares of small numbers would be 0
    scale = torch.where(scale > 0, scale, 1)
    residual = b_qn / scale
    size = residual.norm(dim=1).clamp_min(torch.finfo(b_qn.dtype).tiny)
    left = (b_qn != 0).any(dim=1).nonzero().flatten()
    z = precondition(residual[left])
    direction = z.clone()
    rho = (residual[left] * z).sum(1)
    iterations = 0
    while len(left) and iterations < max_iterations:
        curved = product(direction)
        bend = (direction * curved).sum(1)
        if not bool((bend > 0).all()):
            worst = int(bend.argmin())
            raise SingularError(
                f"conjugate gradients met a direction of curvature {float(bend[worst]):.3g} (row "
                f"{int(left[worst])}, iteration {iterations + 1}): the damped matrix is not "
                "positive definite. Use a larger damping"
            )
        step = (rho / bend)[:, None]
        x[left] += step * direction
        residual[left] -= step * curved
        iterations += 1
        open_rows = residual[left].norm(dim=1) > tolerance * size[left]
        left, direction, rho = left[open_rows], direction[open_rows], rho[open_rows]
        if not len(left):
            break
        z = precondition(residual[left])
        new = (residual[left] * z).sum(1)
        direction = z + (new / rho)[:, None] * direction
        rho = new
    return Solution(x * scale, residual.norm(dim=1) / size, iterations)
