"""Products that the terms share."""

from __future__ import annotations

import torch
from torch import Tensor


def combined(y_qnc: Tensor, s_nco: Tensor) -> Tensor:
    """Σ_c y_qnc s_nco, [Q, N, o]."""
    if s_nco.shape[1] == 1:
        return y_qnc * s_nco[None, :, 0]
    return torch.einsum("qnc,nco->qno", y_qnc, s_nco)


def gram(rows: Tensor) -> Tensor:
    """rowsᵀ rows, [k, k]; for wide rows the lower blocks are mirrored, not computed."""
    k = rows.shape[1]
    if k < 256 or len(rows) < 256:
        return rows.T @ rows
    half = k // 2
    left, right = rows[:, :half], rows[:, half:]
    out = rows.new_empty(k, k)
    out[:half, :half] = gram(left)
    out[half:, half:] = gram(right)
    torch.mm(left.T, right, out=out[:half, half:])
    out[half:, :half] = out[:half, half:].T
    return out


def with_ones(a: Tensor) -> Tensor:
    """a with a column of ones behind the last axis."""
    return torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)
