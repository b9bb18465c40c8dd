"""The negative eigenpairs of a symmetric matrix that is known by its products."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.runtime.eigen_solver import eigh
from curvfluence.runtime.in_common import InCommon

FIRST = 8  # pairs that are looked for at first
ROUND, ROUNDS = 40, 8  # iterations before it is looked at, and how often
WANTED = 1e-2  # of a pair's residual ‖A v − μ v‖, relative to what decides about it
ACCURATE = 0.1  # that will do


@dataclass(frozen=True, eq=False)
class NegativePairs:
    """μ [k] ascending, all below −`spared`; orthonormal vectors [k, n]; the largest residual
    ‖A v − μ v‖; how many `products` with a vector were made."""

    values: Tensor
    vectors: Tensor
    residual: float
    spared: float
    products: int

    def to(self, like: Tensor) -> NegativePairs:
        """In the dtype of `like`."""
        return replace(self, values=self.values.to(like), vectors=self.vectors.to(like))


def negative_pairs(
    product: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    spared: float,
    most: int,
) -> NegativePairs:
    """Every eigenpair of A with μ < −`spared`, A acting on rows like `like` [n].

    By LOBPCG (Knyazev 2001) on the lowest k pairs, with `precondition` ≈ (A + shift)⁻¹; k is
    doubled until the k-th lowest is above −`spared`, since the lowest are found first.

    Errors: `InputError` where there are more than `most` of a matrix that is not small, or where
    they do not converge.
    """
    from scipy.sparse.linalg import lobpcg

    n, counted = len(like), 0

    def by_columns(of: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
        def applied(x: np.ndarray) -> np.ndarray:
            rows = torch.from_numpy(np.ascontiguousarray(x.reshape(n, -1).T)).to(like)
            return of(rows).double().cpu().numpy().T.reshape(x.shape)

        return applied

    def counting(rows: Tensor) -> Tensor:
        nonlocal counted
        counted += len(rows)
        return product(rows)

    a, m = by_columns(counting), by_columns(precondition)
    count = min(FIRST, n)
    start = np.random.default_rng(0).standard_normal((n, count))
    rounds = 0
    while True:
        if 5 * count >= n:  # the block is no small part of the space: scipy wants a dense solve
            return _dense(product, like, spared)
        with _UNSAID():  # whether it converged is looked at below
            values, vectors = lobpcg(
                a, start, M=m, largest=False, tol=WANTED * spared, maxiter=ROUND
            )
        order = np.argsort(values)
        values, vectors = values[order], vectors[:, order]
        mu = torch.from_numpy(values).to(like)
        rows = torch.from_numpy(np.ascontiguousarray(vectors.T)).to(like)
        off, rounds = _residuals(counting, mu, rows), rounds + 1
        negative = int((mu < -spared).sum())
        if negative > most:  # values that are not accurate yet are too high
            raise InputError(
                f"more than {most} eigenvalues of H + diag(w) are below {-spared:.3g}: too many to "
                "turn over one by one. Use a larger damping, or Hessian() as a matrix"
            )
        found = bool((off[:negative] <= ACCURATE * spared).all())
        # The first above −spared says that there are no more: its eigenvalue must be above too.
        decided = negative < count and bool(off[negative] < mu[negative] + spared)
        if found and decided:
            worst = float(off[:negative].max()) if negative else 0.0
            return NegativePairs(mu[:negative], rows[:negative], worst, spared, counted)
        if negative == count:
            more = min(count, most + 1 - count)
            fresh = np.random.default_rng(count).standard_normal((n, more))
            start, count, rounds = np.concatenate([vectors, fresh], axis=1), count + more, 0
        elif rounds == ROUNDS:
            raise InputError(
                f"the lowest eigenpairs of H + diag(w) did not converge in {ROUND * ROUNDS} "
                f"iterations: ‖H v − μ v‖ is {float(off[: negative + 1].max()):.3g} where "
                f"{spared:.3g} decides. Use a larger damping, or Hessian() as a matrix"
            )
        else:
            start = vectors


@contextmanager
def _lobpcg_unsaid() -> Generator[None]:
    with warnings.catch_warnings():
        theirs = rf"{re.escape(__name__)}|scipy\.sparse\.linalg\._eigen\.lobpcg"
        warnings.filterwarnings("ignore", category=UserWarning, module=theirs)
        yield


_UNSAID = InCommon(_lobpcg_unsaid)


def _dense(product: Callable[[Tensor], Tensor], like: Tensor, spared: float) -> NegativePairs:
    """Of a small matrix."""
    matrix = product(torch.eye(len(like)).to(like)).double()
    values, vectors = eigh((matrix + matrix.T) / 2)
    negative = values < -spared
    mu, kept = values[negative].to(like), vectors.T[negative].to(like)
    off = _residuals(product, mu, kept)
    return NegativePairs(mu, kept, float(off.max()) if len(off) else 0.0, spared, len(like))


def _residuals(product: Callable[[Tensor], Tensor], mu: Tensor, vectors: Tensor) -> Tensor:
    """‖A v − μ v‖ of each."""
    if not len(mu):
        return mu
    return torch.linalg.vector_norm(product(vectors) - mu[:, None] * vectors, dim=1)
