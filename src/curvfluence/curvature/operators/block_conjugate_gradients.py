"""Preconditioned conjugate gradients whose right-hand sides share one space of directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from curvfluence.errors import SingularError
from curvfluence.runtime import budget
from curvfluence.runtime import device as machine
from curvfluence.runtime.eigen_solver import eigh
from curvfluence.runtime.journal import Work

DEPENDENT = 1e-10  # of the largest eigenvalue of a Gram matrix (float64): directions below go


@dataclass(frozen=True, eq=False)
class BlockSolution:
    """`x` [Q, n]; `residual` b − A x [Q, n] by the recurrence; how many `products` with a block of
    directions were made, of how many `vectors` together; whether it was `slow` and stopped."""

    x: Tensor
    residual: Tensor
    products: int
    vectors: int
    slow: bool = False


class BlockIteration(Protocol):
    """A x = b for each row of b [Q, n] by products, until a residual's norm is `enough_q`."""

    def __call__(
        self,
        product: Callable[[Tensor], Tensor],
        b_qn: Tensor,
        *,
        precondition: Callable[[Tensor], Tensor],
        enough_q: Tensor,
        max_products: int,
        patience: tuple[int, Tensor] | None = None,
    ) -> BlockSolution: ...


def block_conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b_qn: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor],
    enough_q: Tensor,
    max_products: int,
    patience: tuple[int, Tensor] | None = None,
    held: int | None = None,
    kept: Work | None = None,
) -> BlockSolution:
    """A x = b for each row of b [Q, n], with A positive definite and `precondition` ≈ A⁻¹.

    Every row's error is least over the directions of all rows together, so a block of k directions
    does for each of them what k single ones would (O'Leary 1980). Directions are made orthonormal
    before a product; dependent ones go (Dubrulle 2001). A row whose residual's norm is
    `enough_q` or less gives no further direction. With `patience` (k, norms [Q]) it stops after k
    products where a residual is still above its norm.

    In exact arithmetic a new direction is conjugate to all before it once it is to the last block.
    Rounding undoes that, in float64 too, and then residuals all but stand still; so it is made
    conjugate to the last blocks of up to `held` numbers, P and A P (`most_directions` unless said;
    the last one always). As a work that is `kept` it goes on where it was killed.

    Cost: a product and a preconditioning of the rows left an iteration, about 10 Q² n operations
    and 4 Q² n for each block that is held; memory 6 Q n numbers and those that are held.

    Errors: `SingularError` where a direction has no positive curvature.
    """
    room = (most_directions(b_qn.device, b_qn.dtype) if held is None else held) // 2
    found = None if kept is None else kept.find(_State)
    at = _State.first(b_qn) if found is None else found.to(b_qn.device)
    begun = at.products
    while at.products < max_products:
        norms_q = _norms(at.residual)
        left = (norms_q > enough_q).nonzero().flatten()
        if not len(left):
            break
        hoped_q = patience[1] if patience is not None and at.products == patience[0] else None
        if hoped_q is not None and bool((norms_q > hoped_q).any()):
            return at.solution(slow=True)
        if not at.step(left, product, precondition):
            break  # nothing new to go along
        at.forget(room)
        if kept is not None:
            kept.keep_if_due(at)
    if kept is not None and at.products > begun:
        kept.keep_if_long(at)
    return at.solution()


def most_directions(device: torch.device, dtype: torch.dtype) -> int:
    """Numbers of directions that are held, at most: a sixteenth of the memory."""
    return min(budget.DIRECTIONS, machine.memory(device) // 16 // dtype.itemsize)


@dataclass(eq=False)
class _State:
    """Where the iteration is, and the blocks of directions that are held: P, A P and the Cholesky
    factor of Pᵀ A P."""

    x: Tensor
    residual: Tensor
    products: int
    vectors: int
    before: list[tuple[Tensor, Tensor, Tensor]]

    @staticmethod
    def first(b_qn: Tensor) -> _State:
        return _State(torch.zeros_like(b_qn), b_qn.clone(), 0, 0, [])

    def to(self, device: torch.device) -> _State:
        before = [(p.to(device), ap.to(device), f.to(device)) for p, ap, f in self.before]
        x, residual = self.x.to(device), self.residual.to(device)
        return _State(x, residual, self.products, self.vectors, before)

    def step(
        self,
        left: Tensor,
        product: Callable[[Tensor], Tensor],
        precondition: Callable[[Tensor], Tensor],
    ) -> bool:
        """One iteration; `left` numbers the rows that give directions. Whether one did."""
        z = precondition(self.residual[left])
        for p, ap, factor in self.before:
            z = z - _solved(factor, z @ ap.T) @ p
        p = _orthonormal(z)
        if not len(p):
            return False
        ap = product(p)
        factor = _factor(p @ ap.T)
        step_qk = _solved(factor, self.residual @ p.T)
        self.x += step_qk @ p
        self.residual -= step_qk @ ap
        self.before.append((p, ap, factor))
        self.products, self.vectors = self.products + 1, self.vectors + len(p)
        return True

    def forget(self, room: int) -> None:
        """The first blocks, where all together have more than so many numbers in P."""
        while len(self.before) > 1 and sum(p.numel() for p, _, _ in self.before) > room:
            del self.before[0]

    def solution(self, *, slow: bool = False) -> BlockSolution:
        return BlockSolution(self.x, self.residual, self.products, self.vectors, slow)


def _norms(rows: Tensor) -> Tensor:
    """In float64: squares of small numbers would be 0."""
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


def _orthonormal(z_qn: Tensor) -> Tensor:
    """An orthonormal basis [k, n] of the rows; twice, since once leaves what rounding did."""
    largest = z_qn.abs().amax(dim=1)
    z = z_qn[largest > 0] / largest[largest > 0, None]
    if not len(z):
        return z
    z = z / _norms(z)[:, None].to(z.dtype)
    for _ in range(2):
        gram = (z @ z.T).double()
        values, vectors = eigh((gram + gram.T) / 2)
        kept = values > max(DEPENDENT, 10 * torch.finfo(z.dtype).eps) * values.amax()
        z = (vectors[:, kept] / values[kept].sqrt()).T.to(z.dtype) @ z
    return z


def _factor(curved_kk: Tensor) -> Tensor:
    """Cholesky factor of Pᵀ A P, in float64."""
    gram = curved_kk.double()
    factor, code = torch.linalg.cholesky_ex((gram + gram.T) / 2)
    if int(code):
        raise SingularError(
            "block conjugate gradients met a direction without positive curvature: the damped "
            "matrix is not positive definite in this precision. Use a larger damping, or "
            "problem.to(torch.float64)"
        )
    return factor


def _solved(factor_kk: Tensor, b_qk: Tensor) -> Tensor:
    """b (Pᵀ A P)⁻¹."""
    return torch.cholesky_solve(b_qk.double().T, factor_kk).T.to(b_qk.dtype)
