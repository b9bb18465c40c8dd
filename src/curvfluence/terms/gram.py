"""Gram matrices."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from curvfluence.terms.products import rows_of

WIDE = 256


def gram(rows: Tensor) -> Tensor:
    """rowsᵀ rows, [k, k], without gradients.

    It is symmetric, so half of the operations suffice. BLAS has them as syrk, which torch does not
    offer and NumPy uses for the product of an array and its own transpose: on one thread 1.3 to 1.9
    times as fast. With several, NumPy's threads are others than torch's, and slower where rows are
    narrow; then, and on other devices, the lower blocks of wide ones are mirrored.
    """
    plain = rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.float64)
    if plain and torch.get_num_threads() == 1:
        return _by_numpy(rows)
    return _by_halves(rows)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _by_numpy(rows: Tensor) -> Tensor:
    array = rows.detach().numpy()
    with _blas().limit(limits=1, user_api="blas"):
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
