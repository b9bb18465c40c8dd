"""Preconditioned conjugate gradients whose right-hand sides share one space of directions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from curvfluence.errors import SingularError
from curvfluence.runtime import budget
from curvfluence.runtime.eigen_solver import eigh

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
) -> BlockSolution:
    """A x = b for each row of b [Q, n], with A positive definite and `precondition` ≈ A⁻¹.

    Every row's error is least over the directions of all rows together, so a block of k directions
    does for each of them what k single ones would (O'Leary 1980). Directions are made orthonormal
    before a product; dependent ones go (Dubrulle 2001). A row whose residual's norm is
    `enough_q` or less gives no further direction. With `patience` (k, norms [Q]) it stops after k
    products where a residual is still above its norm.

    In exact arithmetic a new direction is conjugate to all before it once it is to the last block.
    Rounding undoes that, in float64 too, and then residuals all but stand still; so it is made
    conjugate to the last blocks of up to `held` numbers, P and A P (`budget.DIRECTIONS` unless
    said; the last one always).

    Cost: a product and a preconditioning of the rows left an iteration, about 10 Q² n operations
    and 4 Q² n for each block that is held; memory 6 Q n numbers and those that are held.

    Errors: `SingularError` where a direction has no positive curvature.
    """
    x, residual = torch.zeros_like(b_qn), b_qn.clone()
    products = vectors = 0
    room = (budget.DIRECTIONS if held is None else held) // 2
    before: deque[tuple[Tensor, Tensor, Tensor]] = deque()  # P, A P, and the factor of Pᵀ A P
    while products < max_products:
        norms_q = _norms(residual)
        left = (norms_q > enough_q).nonzero().flatten()
        if not len(left):
            break
        if patience is not None and products == patience[0] and bool((norms_q > patience[1]).any()):
            return BlockSolution(x, residual, products, vectors, slow=True)
        z = precondition(residual[left])
        for p, ap, factor in before:
            z -= _solved(factor, z @ ap.T) @ p
        p = _orthonormal(z)
        if not len(p):
            break  # nothing new to go along
        ap = product(p)
        factor = _factor(p @ ap.T)
        step_qk = _solved(factor, residual @ p.T)
        x += step_qk @ p
        residual -= step_qk @ ap
        before.append((p, ap, factor))
        while len(before) > 1 and sum(one[0].numel() for one in before) > room:
            before.popleft()
        products, vectors = products + 1, vectors + len(p)
    return BlockSolution(x, residual, products, vectors)


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
