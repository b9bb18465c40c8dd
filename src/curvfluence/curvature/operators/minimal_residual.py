"""Preconditioned MINRES for many right-hand sides at once; the matrix need not be definite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvfluence.curvature.operators.block_conjugate_gradients import BlockSolution

SINGULAR = 10.0  # eps: a pivot below so much of the largest one is what rounding left of 0


def minimal_residual(
    product: Callable[[Tensor], Tensor],
    b_qn: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor],
    enough_q: Tensor,
    max_products: int,
    patience: tuple[int, Tensor] | None = None,
) -> BlockSolution:
    """A x = b for each row of b [Q, n], with A symmetric and `precondition` M⁻¹ positive definite.

    The residual is least in the norm of M⁻¹ over the Krylov space of M⁻¹A (Paige & Saunders 1975;
    Elman, Silvester & Wathen 2014, algorithm 4.1), so it falls whatever the signs of A's
    eigenvalues; one near 0 takes long and leaves a residual. A row whose residual's norm is
    `enough_q` or less leaves, and so does one whose Krylov space A takes to one that is smaller,
    as far as rounding tells (b has a part where A has nothing). With `patience` (k, norms [Q]) it
    stops after k products where a residual is still above its norm. Cost: a product and a
    preconditioning of the rows left an iteration; memory 9 Q n numbers.
    """
    x, residual = torch.zeros_like(b_qn), b_qn.clone()
    left = (_norms(residual) > enough_q).nonzero().flatten()
    if not len(left) or max_products < 1:
        return BlockSolution(x, residual, 0, 0)
    v, before = b_qn[left], torch.zeros_like(b_qn[left])
    z = precondition(v)
    gamma = _dot(z, v).clamp_min(0).sqrt()
    eta, gamma_before = gamma.clone(), torch.ones_like(gamma)
    c0, c1 = torch.ones_like(gamma), torch.ones_like(gamma)
    s0, s1 = torch.zeros_like(gamma), torch.zeros_like(gamma)
    w0, w1, aw0, aw1 = (torch.zeros_like(v) for _ in range(4))
    largest, rounded = torch.zeros_like(gamma), SINGULAR * torch.finfo(v.dtype).eps
    products = vectors = 0
    while products < max_products:
        z = z / _col(gamma, v)
        az = product(z)
        products, vectors = products + 1, vectors + len(z)
        delta = _dot(az, z)
        after = az - _col(delta / gamma, v) * v - _col(gamma / gamma_before, v) * before
        z_after = precondition(after)
        gamma_after = _dot(z_after, after).clamp_min(0).sqrt()
        a0 = c1 * delta - c0 * s1 * gamma
        a1 = (a0.square() + gamma_after.square()).sqrt()
        largest = torch.maximum(largest, a1)
        lost = ~(a1 > rounded * largest)  # along a step of that size there would be only noise
        a1 = torch.where(lost, 1, a1)
        a2, a3 = s1 * delta + c0 * c1 * gamma, s0 * gamma
        c2, s2 = torch.where(lost, 0, a0 / a1), gamma_after / a1
        w2 = (z - _col(a3, v) * w0 - _col(a2, v) * w1) / _col(a1, v)
        aw2 = (az - _col(a3, v) * aw0 - _col(a2, v) * aw1) / _col(a1, v)
        step = _col(c2 * eta, v)
        x[left] += step * w2
        residual[left] -= step * aw2
        eta = -s2 * eta
        # A Krylov space that is all used up has nothing further for a row.
        on = (_norms(residual[left]) > enough_q[left]) & (gamma_after > 0) & ~lost
        if not bool(on.any()):
            break
        if patience is not None and products == patience[0] and _above(residual, patience[1]):
            return BlockSolution(x, residual, products, vectors, slow=True)
        left = left[on]
        v, before, z = after[on], v[on], z_after[on]
        gamma, gamma_before = gamma_after[on], gamma[on]
        c0, c1, s0, s1, eta = c1[on], c2[on], s1[on], s2[on], eta[on]
        largest = largest[on]
        w0, w1, aw0, aw1 = w1[on], w2[on], aw1[on], aw2[on]
    return BlockSolution(x, residual, products, vectors)


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


def _above(rows: Tensor, norms_q: Tensor) -> bool:
    return bool((_norms(rows) > norms_q).any())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Of each row, in float64."""
    return (a.double() * b.double()).sum(1)


def _col(values_q: Tensor, like: Tensor) -> Tensor:
    return values_q.to(like.dtype)[:, None]
