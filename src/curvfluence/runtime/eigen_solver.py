"""Decompositions of matrices, by a slower way where the fast one gives up."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import scipy.linalg
import torch
from torch import Tensor

from curvfluence.errors import SingularError
from curvfluence.runtime.finite import all_finite
from curvfluence.runtime.said import say

FAILED: type[Exception] = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]
scipy_svd: Any = scipy.linalg.svd  # pyright: ignore[reportUnknownMemberType]
scipy_eigh: Any = scipy.linalg.eigh  # pyright: ignore[reportUnknownMemberType]


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(eigenvalues, ascending, eigenvectors as columns) of one matrix or of each of a batch, in the
    dtype of the matrix.

    Divide and conquer as torch has it; where that does not converge the same in float64, and then
    LAPACK's QR iteration (syev), slower and sturdier, in float64 on the CPU. The result says so.
    Errors: `SingularError` where none of them converges, as of numbers that are not finite.
    """
    try:
        return torch.linalg.eigh(matrix)
    except FAILED as error:
        if matrix.ndim == 2:
            values, vectors = _again(matrix, error)
            return values.to(matrix), vectors.to(matrix)
    found = [eigh(one) for one in matrix.flatten(0, -3)]
    values, vectors = (torch.stack(part) for part in zip(*found, strict=True))
    return values.view(matrix.shape[:-1]), vectors.view(matrix.shape)


def eigvalsh(matrix: Tensor) -> Tensor:
    """The eigenvalues alone, ascending; as `eigh` otherwise."""
    try:
        return torch.linalg.eigvalsh(matrix)
    except FAILED as error:
        if matrix.ndim == 2:
            return _again(matrix, error)[0].to(matrix)
    found = torch.stack([eigvalsh(one) for one in matrix.flatten(0, -3)])
    return found.view(matrix.shape[:-1])


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U, σ, Vᵀ), thin, of one matrix or of each of a batch, in the dtype of the matrix: as `eigh`,
    with LAPACK's QR iteration (gesvd) at last."""
    try:
        return torch.linalg.svd(matrix, full_matrices=False)
    except FAILED as error:
        if matrix.ndim == 2:
            u, sigma, vh = _svd_again(matrix, error)
            return u.to(matrix), sigma.to(matrix), vh.to(matrix)
    found = [svd(one) for one in matrix.flatten(0, -3)]
    u, sigma, vh = (
        torch.stack(part).unflatten(0, matrix.shape[:-2]) for part in zip(*found, strict=True)
    )
    return u, sigma, vh


def pinv(matrix: Tensor, *, symmetric: bool = False) -> Tensor:
    """The pseudoinverse of one matrix or of each of a batch, without singular values below torch's
    own bound, max(m, n) ε σ₁; where torch finds none, by `svd`, and its errors."""
    try:
        return torch.linalg.pinv(matrix, hermitian=symmetric)
    except FAILED:
        u, sigma, vh = svd(matrix)
    least = max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps * sigma[..., :1]
    inverse = torch.where(sigma > least, 1 / sigma, 0.0)
    return (vh.mT * inverse[..., None, :]) @ u.mT


def _svd_again(matrix: Tensor, error: Exception) -> tuple[Tensor, ...]:
    fast = partial(torch.linalg.svd, full_matrices=False)
    last = partial(scipy_svd, full_matrices=False, lapack_driver="gesvd")
    return _sturdier("a singular value decomposition", matrix, error, fast, last)


def _again(matrix: Tensor, error: Exception) -> tuple[Tensor, ...]:
    last = partial(scipy_eigh, driver="ev")
    return _sturdier("an eigendecomposition", matrix, error, torch.linalg.eigh, last)


def _sturdier(
    what: str,
    matrix: Tensor,
    error: Exception,
    fast: Callable[[Tensor], tuple[Tensor, ...]],
    last: Callable[[Any], tuple[Any, ...]],
) -> tuple[Tensor, ...]:
    """By the same in float64, or QR iteration. Errors: `SingularError`, of that `error`."""
    rows, columns = matrix.shape
    kind = str(matrix.dtype).removeprefix("torch.")
    advice = "scale the inputs or the loss, or use a rung without this matrix"
    if not all_finite(matrix):
        raise SingularError(
            f"a matrix of {rows} × {columns} to decompose is not finite in {kind}: {advice}"
        ) from error
    failed = f"{what} of {rows} × {columns} did not converge in {kind}"
    if matrix.dtype != torch.float64:
        try:
            found = fast(matrix.double())
        except FAILED:
            pass
        else:
            say(f"{failed}: it was done in float64")
            return found
    try:
        exact = last(matrix.double().cpu().numpy())
    except scipy.linalg.LinAlgError:
        raise SingularError(f"{failed}, nor by QR iteration in float64: {advice}") from error
    say(f"{failed}: it was done by QR iteration in float64")
    return tuple(map(torch.from_numpy, exact))
