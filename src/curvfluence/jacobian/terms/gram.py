"""Gram matrices."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from curvfluence.jacobian.terms import blas
from curvfluence.jacobian.terms.products import rows_of

WIDE = 256
NARROW = 64  # up to which torch's product is as fast


def gram(rows: Tensor) -> Tensor:
    """rowsᵀ rows, [k, k], without gradients.

    It is symmetric, so half of the operations suffice. BLAS has them as syrk, which torch does not
    offer and NumPy uses for the product of an array and its own transpose. NumPy's threads are
    others than torch's, so this is where both have one, as under OMP_NUM_THREADS=1; else, and on
    other devices, the lower blocks of wide rows are mirrored.
    """
    if rows.shape[1] > NARROW and blas.takes(rows.detach()):
        return _by_numpy(rows)
    return _by_halves(rows)


def operations(k: int) -> float:
    """Of a Gram matrix of width k, for each row."""
    if k > NARROW and blas.one_thread():
        return 1.0 * k * k
    return 2.0 * k * k if k < WIDE else 1.5 * k * k


def _by_numpy(rows: Tensor) -> Tensor:
    array = rows.detach().numpy()
    blas.taken(array.shape[0] * array.shape[1] ** 2)
    return torch.from_numpy(np.matmul(array.T, array))


def _by_halves(rows: Tensor) -> Tensor:
    k = rows.shape[1]
    if k < WIDE or len(rows) < WIDE:
        return rows.T @ rows
    half = k // 2
    left, right = rows[:, :half], rows[:, half:]
    out = rows_of(rows, k, k)
    out[:half, :half] = _by_halves(left)
    out[half:, half:] = _by_halves(right)
    torch.mm(left.T, right, out=out[:half, half:])
    out[half:, :half] = out[:half, half:].T
    return out
