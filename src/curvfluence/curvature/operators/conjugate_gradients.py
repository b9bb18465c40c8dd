"""Preconditioned conjugate gradients for many right-hand sides at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.errors import SingularError
from curvfluence.runtime import journal


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
    with journal.work("conjugate gradients") as ours:
        scale = b_qn.abs().amax(dim=1, keepdim=True)  # squares of small numbers would be 0
        scale = torch.where(scale > 0, scale, 1)
        size = (b_qn / scale).norm(dim=1).clamp_min(torch.finfo(b_qn.dtype).tiny)
        found = None if ours is None else ours.find(_State)
        at = _State.first(b_qn / scale, precondition) if found is None else found.to(b_qn.device)
        begun = at.iterations
        while len(at.left) and at.iterations < max_iterations:
            at.step(product, precondition, tolerance * size)
            if ours is not None:
                ours.keep_if_due(at)
        if ours is not None and at.iterations > begun:
            ours.keep_if_long(at)
    return Solution(at.x * scale, at.residual.norm(dim=1) / size, at.iterations)


@dataclass(eq=False)
class _State:
    """Where the iteration is: `left` numbers the rows that go on, of which alone `direction` and
    `rho` are."""

    x: Tensor
    residual: Tensor
    left: Tensor
    direction: Tensor
    rho: Tensor
    iterations: int

    @staticmethod
    def first(b_qn: Tensor, precondition: Callable[[Tensor], Tensor]) -> _State:
        left = (b_qn != 0).any(dim=1).nonzero().flatten()
        z = precondition(b_qn[left])
        rho = (b_qn[left] * z).sum(1)
        return _State(torch.zeros_like(b_qn), b_qn, left, z.clone(), rho, 0)

    def to(self, device: torch.device) -> _State:
        return _State(
            self.x.to(device),
            self.residual.to(device),
            self.left.to(device),
            self.direction.to(device),
            self.rho.to(device),
            self.iterations,
        )

    def step(
        self,
        product: Callable[[Tensor], Tensor],
        precondition: Callable[[Tensor], Tensor],
        enough: Tensor,
    ) -> None:
        """One iteration of the rows left; `enough` [Q] is the norm of a residual that may go."""
        curved = product(self.direction)
        bend = (self.direction * curved).sum(1)
        if not bool((bend > 0).all()):
            worst = int(bend.argmin())
            raise SingularError(
                f"conjugate gradients met a direction of curvature {float(bend[worst]):.3g} (row "
                f"{int(self.left[worst])}, iteration {self.iterations + 1}): the damped matrix is "
                "not positive definite. Use a larger damping"
            )
        step = (self.rho / bend)[:, None]
        self.x[self.left] += step * self.direction
        self.residual[self.left] -= step * curved
        self.iterations += 1
        still = self.residual[self.left].norm(dim=1) > enough[self.left]
        self.left, self.direction, rho = self.left[still], self.direction[still], self.rho[still]
        z = precondition(self.residual[self.left]) if len(self.left) else self.direction
        self.rho = (self.residual[self.left] * z).sum(1)
        self.direction = z + (self.rho / rho)[:, None] * self.direction
