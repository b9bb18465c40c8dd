"""Products that the terms share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from math import frexp, inf
from typing import TypeAlias

import torch
from torch import Tensor

from curvfluence.jacobian.terms.blas import matmul

Memo: TypeAlias = dict[object, tuple[Tensor, Tensor]]  # what was made, and of what


def shared(memo: Memo | None, key: object, of: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives, made once for all tensors that are the same memory as `of`, which is held
    so that no other comes to lie there; nobody may write to it."""
    if memo is None:
        return make()
    whole = key, of.data_ptr(), of.shape, of.stride()
    if whole not in memo:
        memo[whole] = make(), of
    return memo[whole][0]


def sum_of(values: Iterable[Tensor]) -> Tensor:
    """Σ of at least one tensor, with no more than two held at a time."""
    return reduce(torch.add, values)


def combined(y_qnc: Tensor, s_nco: Tensor) -> Tensor:
    """Σ_c y_qnc s_nco, [Q, N, o]."""
    if s_nco.shape[1] == 1:
        return y_qnc * s_nco[None, :, 0]
    return torch.einsum("qnc,nco->qno", y_qnc, s_nco)


ALIGNED = 16  # numbers; a GEMM writes rows that begin on 64 bytes up to two thirds faster
NARROW = 64  # numbers in a row up to which that does not matter


def rows_of(like: Tensor, n: int, k: int) -> Tensor:
    """An empty [n, k] whose rows begin on 64 bytes."""
    return like.new_empty(n, k + -k % ALIGNED)[:, :k]


def mm(x: Tensor, y: Tensor) -> Tensor:
    """x y for x [..., j] and y [j, k], without gradients; the result's rows are aligned and may
    have gaps between them."""
    flat = x.reshape(-1, x.shape[-1])
    plain = y.shape[1] % ALIGNED == 0 or y.shape[1] <= NARROW
    out = None if plain else rows_of(flat, len(flat), y.shape[1])
    return matmul(flat, y, out).unflatten(0, x.shape[:-1])


RAISED = 24  # the power of 2 below which the largest number comes to lie, for its square's sake
FURTHEST = 30  # powers of 2 at most; twice two of them taken back leave float32 room


def raised(x: Tensor) -> tuple[Tensor, int]:
    """(x 2^k, k), in float32 on the CPU: exact, and products of squares of what is raised are
    normal numbers. Of inputs that hardly any example has, coordinates are 1e-17; their squares
    times those of a fitted example's gradient are subnormal, and a few such products in a GEMM make
    a processor several times slower."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or not x.numel():
        return x, 0
    largest = float(torch.linalg.vector_norm(x, torch.inf))
    if not 0 < largest < inf:
        return x, 0
    up = min(FURTHEST, max(-FURTHEST, RAISED - frexp(largest)[1]))
    return x * 2.0**up, up


def rooted(rows: Tensor, weights: Tensor) -> Tensor:
    """√v_n row_n, for v [N] and rows [N, ...]."""
    return rows * weights.to(rows).sqrt().view(-1, *[1] * (rows.ndim - 1))


ROUNDING = 100  # eps of an example's largest gradient, below which one is taken to be 0


def counting(counted: Tensor | None, s_ncto: Tensor) -> Tensor | None:
    """Positions that count or have a gradient, [N, T]; None where all do.

    One that is 0 comes out of some kernels as 0, and of others as rounding. (The rounding of an
    autocast pass is larger, and counts.)
    """
    if counted is None or bool(counted.all()):
        return None
    size_nt = torch.linalg.vector_norm(s_ncto, torch.inf, dim=(1, 3))
    rounding_n1 = ROUNDING * torch.finfo(s_ncto.dtype).eps * size_nt.amax(1, keepdim=True)
    return counted | ~(size_nt <= rounding_n1)


def counted_positions(mask: Tensor | None, weights: Tensor | None, n: int, t: int) -> float:
    """How many of N × T positions count, by `mask` [N, T] and as often as v [N] says."""
    if weights is None:
        return n * t if mask is None else int(mask.sum())
    each = t if mask is None else mask.sum(1)
    return float((weights * each).sum())


def with_ones(a: Tensor) -> Tensor:
    """a with a column of ones behind the last axis."""
    return torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)


def mixed(s: Tensor, index: Tensor, weights_rc: Tensor) -> Tensor:
    """Σ_c weights_rc s[index_r, c], [R, 1, ...], of s [N, C, ...]."""
    return torch.einsum("rc,rc...->r...", weights_rc.to(s), s[index])[:, None]
