"""Eigendecompositions that are kept, and those of low rank."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from curvfluence.jacobian.terms import blas
from curvfluence.runtime import eigen_solver, journal

KEPT = 256  # rows of a matrix of which the decomposition takes long enough to be kept
MARGIN = 8  # random vectors beyond the rank
POWERS = 3  # of the matrix, in whose range its leading eigenvectors are looked for
BEYOND_FLOAT64 = 2.0**-57  # of a unit vector, which float64 cannot tell: its ε is 2⁻⁵²
THIN = 0.4  # of n: above it a decomposition of the whole is as quick


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`quickest` of one matrix, a work that is kept where it is large."""
    if len(matrix) < KEPT:
        return quickest(matrix)

    def rows() -> tuple[Tensor, Tensor]:
        values, vectors = quickest(matrix)
        return values, vectors.mT.contiguous()  # as a file has them: one layout, made or read

    values, vectors = journal.whole("eigendecomposition", rows)
    return values.to(matrix), vectors.to(matrix).mT


def quickest(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`eigen_solver.eigh` of one matrix, or NumPy's where that is quicker (`blas.is_quicker`) and
    converges."""
    if blas.is_quicker(matrix):
        blas.taken(9 * len(matrix) ** 3)
        try:
            values, vectors = np.linalg.eigh(matrix.numpy())
        except np.linalg.LinAlgError:
            return eigen_solver.eigh(matrix)
        return torch.from_numpy(values), torch.from_numpy(vectors)
    return eigen_solver.eigh(matrix)


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


def narrowed(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """Unit vectors, laid out row by row, in the dtype of whoever multiplies by them. In float32
    entries that are rounding of the float64 in which they were found are 0: coordinates of 1e-20,
    of inputs that hardly any example has, make products too small for a normal number, a few of
    which in a GEMM make a processor several times slower."""
    if dtype != torch.float64:
        vectors = torch.where(vectors.abs() < BEYOND_FLOAT64, 0.0, vectors)
    return vectors.to(dtype).contiguous()


def settled(values: Tensor, vectors: Tensor, apart: float) -> Tensor:
    """Eigenvectors [n, n] of ascending eigenvalues that depend on the matrix alone. Those of
    eigenvalues no further than `apart` from the next are any basis of their space, which rounding
    chooses: here it is some fixed vectors' projections on that space, made orthonormal. Cost:
    6 n k² operations for k of them, where eigh takes 9 n³."""
    n, found = len(values), vectors.clone()
    new = (values.diff() > apart).nonzero().flatten() + 1
    for start, end in pairwise([0, *new.tolist(), n]):
        if end - start > 1:
            generator = torch.Generator().manual_seed(0)
            fixed = torch.randn(end - start, n, generator=generator, dtype=torch.float64)
            space = vectors[:, start:end]
            found[:, start:end] = space @ torch.linalg.qr((fixed.to(space) @ space).mT).Q
    return found


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


def leading_elements(n: int, count: int) -> float:
    """Numbers that `leading_eigh` takes beside the matrix."""
    width = count + MARGIN
    return 4.0 * n**2 if n < KEPT or width > n * THIN else 5.0 * n * width


def share(n: int, most: int) -> float:
    """Of the time of `eigh` of n × n, that `eigh_of_rank` takes, about."""
    count = min(n, most + MARGIN)
    return 1.0 if n < KEPT or count > n * THIN else 1.3 * count / n
