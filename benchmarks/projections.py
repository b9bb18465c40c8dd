"""What an index should project gradients on: landmarks, the curvature's eigenbasis, or at random.

    python benchmarks/projections.py

Gradients of bundled problems in float64, times the root of the inverse EK-FAC, so that scores are
plain inner products. For each projection and dimension: the share of the exact ten highest and ten
lowest scores of all queries that is among the first 200 by projected ones, and the error of those
scores in norm. Landmarks are chosen as `cf.index` chooses them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.indexing.landmarks import randomly_pivoted
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients, training_gradients
from curvfluence.study.problems.given import given

EXACT, AMONG = 10, 200
Projection = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def whitened(problem: cf.Problem) -> tuple[Tensor, Tensor]:
    """g of queries and of training examples in the eigenbasis of A = EK-FAC + W + λ, over √A."""
    layout, curvature = discover(problem), cf.fit(problem, cf.EKFAC())
    both = [
        rows.to_dense()[:, 0]
        for rows in (query_gradients(problem, layout), training_gradients(problem, layout))
    ]
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for block, value in curvature.damped(cf.Relative(0.1)):
        basis = block.operator.eigenbasis()
        decay = block.places.take(curvature.decay)
        root = (basis.eigenvalues() + decay + value).sqrt()
        for out, g in zip(parts, both, strict=True):
            out.append(basis.coordinates(block.places.take(g)) / root)
    return torch.cat(parts[0], 1).double(), torch.cat(parts[1], 1).double()


def by_landmarks(q: Tensor, n: Tensor, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    norms = n.square().sum(1)
    picked, phi = randomly_pivoted(norms, lambda at: n @ n[at].T, count, generator)
    factor = phi[picked].tril()
    return torch.linalg.solve_triangular(factor, n[picked] @ q.T, upper=False).T, phi


def by_eigenvectors(q: Tensor, n: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The coordinates with the largest expected share of a squared score."""
    at = (q.square().mean(0) * n.square().mean(0)).topk(min(count, n.shape[1])).indices
    return q[:, at], n[:, at]


def at_random(q: Tensor, n: Tensor, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    r = torch.randn(n.shape[1], count, generator=generator, dtype=n.dtype) / count**0.5
    return q @ r, n @ r


WAYS: dict[str, Projection] = {
    "landmarks": by_landmarks, "eigenvectors": by_eigenvectors, "random": at_random,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", action="append")
    parser.add_argument("--dimension", type=int, action="append")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| problem | projection | dimension | ten highest | ten lowest | error |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in asked.problem or ["digits", "digits-large", "digits-noisy", "mnist5k"]:
        q, n = whitened(given(name).problem)
        exact = q @ n.T
        for way, project in WAYS.items():
            for count in asked.dimension or [64, 256]:
                left, right = project(q, n, count)
                near = left @ right.T
                high, low = (
                    torch.isin(
                        *(
                            torch.arange(len(q))[:, None] * len(n)
                            + scores.topk(k, largest=end).indices
                            for scores, k in ((exact, EXACT), (near, AMONG))
                        )
                    )
                    .double()
                    .mean()
                    for end in (True, False)
                )
                error = (near - exact).norm() / exact.norm()
                print(
                    f"| {name} | {way} | {count} | {high:.1%} | {low:.1%} | {error:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
