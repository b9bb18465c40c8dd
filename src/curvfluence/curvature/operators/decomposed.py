"""Eigendecompositions of symmetric matrices, by a slower way where the fast one gives up."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from curvfluence.errors import SingularError
from curvfluence.jacobian.terms import blas
from curvfluence.runtime import journal
from curvfluence.runtime.said import say

FAILED: type[Exception] = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]
KEPT = 256  # rows of a matrix of which the decomposition takes long enough to be kept
MARGIN = 8  # random vectors beyond the rank
POWERS = 3  # of the matrix, in whose range its leading eigenvectors are looked for
THIN = 0.4  # of n: above it a decomposition of the whole is as quick
scipy_eigh: Any = scipy.linalg.eigh  # pyright: ignore[reportUnknownMemberType]


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(eigenvalues, ascending, eigenvectors as columns) in the dtype of the matrix.

    Divide and conquer as torch has it, or NumPy where that is quicker (`blas.is_quicker`); where
    it does not converge the same in float64, and then LAPACK's QR iteration (syev), slower and
    sturdier, in float64 on the CPU. The result says so.
    Errors: `SingularError` where none of them converges.
    """
    if len(matrix) < KEPT:
        return _eigh(matrix)

    def rows() -> tuple[Tensor, Tensor]:
        values, vectors = _eigh(matrix)
        return values, vectors.mT.contiguous()  # as a file has them: one layout, made or read

    values, vectors = journal.whole("eigendecomposition", rows)
    return values.to(matrix), vectors.to(matrix).mT


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    try:
        return _by_numpy(matrix) if blas.is_quicker(matrix) else torch.linalg.eigh(matrix)
    except FAILED as error:
        values, vectors = _again(matrix, error)
        return values.to(matrix), vectors.to(matrix)


def _by_numpy(matrix: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values, vectors = np.linalg.eigh(matrix.numpy())
    except np.linalg.LinAlgError as error:
        raise FAILED(str(error)) from error
    return torch.from_numpy(values), torch.from_numpy(vectors)


def eigh_of_rank(matrix: Tensor, most: int, rounding: float) -> tuple[Tensor, Tensor]:
    """`eigh` of a positive semi-definite matrix [n, n] of which at most so many eigenvalues should
    not be 0: those by a basis of its range, the others as 0 with any orthonormal completion.

    The range is that of the matrix times random vectors, a few more than it has dimensions (Halko,
    Martinsson and Tropp 2011, §4.1). What is not in it is positive semi-definite too, so the trace
    tells how much that is: where it is more than `rounding` of the whole, `eigh` does the whole.
    Cost: about 8 n² `most` operations in products and reflections, where `eigh` takes 9 n³ and
    slower ones.
    """
    n = len(matrix)
    count = min(n, most + MARGIN)
    if n < KEPT or count > n * THIN:
        return eigh(matrix)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(n, count, generator=generator, dtype=torch.float64).to(matrix)
    basis = torch.linalg.qr(matrix @ drawn).Q
    values, inner = eigh(basis.mT @ matrix @ basis)
    trace = float(matrix.diagonal().sum())
    if not abs(trace - float(values.sum())) <= rounding * trace:
        return eigh(matrix)
    whole = torch.linalg.qr(basis, mode="complete").Q  # its first columns span what `basis` does
    vectors = torch.cat([whole[:, count:], basis @ inner], dim=1)
    zeros = values.new_zeros(n - count)
    order = torch.cat([zeros, values]).argsort()  # what is not 0 may come out below it by rounding
    return torch.cat([zeros, values])[order], vectors[:, order]


def leading_eigh(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(the `count` largest eigenvalues, ascending, their eigenvectors as columns) of a positive
    semi-definite matrix [n, n]: of few, the Ritz pairs in the range of the matrix's third power
    times random vectors, a few more than that (Halko, Martinsson and Tropp 2011, §4.5). They are
    orthonormal and no larger than the eigenvalues; those next to others as large may be mixed.
    Cost: about 8 n² `count` operations in products and as much in reflections, where `eigh` takes
    9 n³ and slower ones.
    """
    n, width = len(matrix), count + MARGIN
    if n < KEPT or width > n * THIN:
        values, vectors = eigh(matrix)
        return values[-count:], vectors[:, -count:]
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(n, width, generator=generator, dtype=torch.float64).to(matrix)
    for _ in range(POWERS):
        basis = torch.linalg.qr(matrix @ basis).Q
    values, inner = eigh(basis.mT @ matrix @ basis)
    return values[-count:], (basis @ inner)[:, -count:]


def share(n: int, most: int) -> float:
    """Of the time of `eigh` of n × n, that `eigh_of_rank` takes, about."""
    count = min(n, most + MARGIN)
    return 1.0 if n < KEPT or count > n * THIN else 1.3 * count / n


def eigvalsh(matrix: Tensor) -> Tensor:
    """The eigenvalues alone, ascending; as `eigh` otherwise."""
    try:
        return torch.linalg.eigvalsh(matrix)
    except FAILED as error:
        return _again(matrix, error)[0].to(matrix)


def _again(matrix: Tensor, error: Exception) -> tuple[Tensor, Tensor]:
    size, kind = len(matrix), str(matrix.dtype).removeprefix("torch.")
    failed = f"an eigendecomposition of {size} × {size} did not converge in {kind}"
    if matrix.dtype != torch.float64:
        try:
            found = torch.linalg.eigh(matrix.double())
        except FAILED:
            pass
        else:
            say(f"{failed}: it was done in float64")
            return found
    try:
        values, vectors = scipy_eigh(matrix.double().cpu().numpy(), driver="ev")
    except scipy.linalg.LinAlgError:
        raise SingularError(
            f"{failed}, nor by QR iteration in float64: scale the inputs or the loss, or use a "
            "rung without this matrix"
        ) from error
    say(f"{failed}: it was done by QR iteration in float64")
    return torch.from_numpy(values), torch.from_numpy(vectors)
