"""Dense GGN and Hessian of a 64-(64,32)-10 net (P = 6,570, N = 1,617) against vmapped products.

Prints seconds, ratios of one run, the share of the measured GEMM rate, and peak memory. The
comparison is torch.func's own way: vmap over unit vectors of a GGN- or Hessian-vector product
(jvp, output Hessian, vjp; or jvp of grad), in chunks of 64. `--all` runs every chunk; otherwise a
stated number of chunks is timed and scaled by their count, since all have the same shape.

    python benchmarks/curvature.py [--threads 1] [--all]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap

import curvfluence as cf
from curvfluence.curvature.estimate.ggn import ggn_matrix
from curvfluence.curvature.estimate.hessian import hessian_matrix
from curvfluence.study import load
from curvfluence.study.needs import needs

CHUNK = 64


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best(work: Callable[[], object], repeats: int = 3) -> float:
    return min(seconds(work) for _ in range(repeats))


class Products:
    """Vmapped curvature-vector products of the mean cross-entropy."""

    def __init__(self, problem: cf.Problem) -> None:
        self.problem = problem
        self.flat = problem.parameters.flatten(problem.theta)

    def output(self, theta: Tensor) -> Tensor:
        values = self.problem.parameters.unflatten(theta)
        return functional_call(self.problem.model, values, (self.problem.train.inputs,))

    def hessian(self, v: Tensor) -> Tensor:
        def loss(theta: Tensor) -> Tensor:
            return F.cross_entropy(self.output(theta), self.problem.train.targets)

        return jvp(grad(loss), (self.flat,), (v,))[1]

    def ggn(self, v: Tensor) -> Tensor:
        f, jv = jvp(self.output, (self.flat,), (v,))[:2]
        p = f.softmax(-1)
        hjv = p * jv - p * (p * jv).sum(-1, keepdim=True)
        return vjp(self.output, self.flat)[1](hjv / len(f))[0]

    def time(self, product: Callable[[Tensor], Tensor], *, every: bool) -> tuple[float, int, int]:
        """(seconds for all P columns, chunks timed, chunks in all)."""
        count = len(self.flat)
        chunks = -(-count // CHUNK)
        timed = chunks if every else 6
        basis = torch.zeros(CHUNK, count)
        basis[:, :CHUNK].fill_diagonal_(1.0)
        vmap(product)(basis)
        spent = seconds(lambda: [vmap(product)(basis) for _ in range(timed)])
        return spent / timed * chunks, timed, chunks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="run every chunk of the products")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    study = load("digits-large")
    model = study.recipe.build(0)
    problem = cf.Problem(
        model,
        study.recipe.loss,
        (study.train.inputs.float(), study.train.targets),
        (study.queries.inputs.float(), study.queries.targets),
    )
    count, n = problem.parameters.count, len(problem.train)
    size = 3000
    square = torch.randn(size, size)
    rate = 2 * size**3 / best(lambda: square @ square)
    print(
        f"P = {count}, N = {n}, float32, {options.threads} thread(s); GEMM {rate / 1e9:.0f} GFLOP/s"
    )
    products = Products(problem)
    rows: list[tuple[str, Callable[[cf.Problem], tuple[Tensor, str]], Callable[[Tensor], Tensor]]]
    rows = [("GGN", ggn_matrix, products.ggn), ("Hessian", hessian_matrix, products.hessian)]
    for name, ours, theirs in rows:
        ours(problem)
        spent = best(lambda ours=ours: ours(problem))
        matrix, path = ours(problem)
        peak = needs(lambda ours=ours: ours(problem)).peak_bytes
        other, timed, chunks = products.time(theirs, every=options.all)
        column = theirs(torch.nn.functional.one_hot(torch.tensor(7), count).float())
        error = float((matrix[7] - column).norm() / column.norm())
        floor = n * count**2 / rate  # N P² operations: half of N P² multiply-adds, by symmetry
        memory = "not measurable here" if peak is None else f"{peak / 2**30:.2f} GiB"
        print(
            f"{name:8s} {spent:6.2f} s, {path}: {floor / spent:.0%} of the GEMM rate at N P² "
            f"operations; peak {memory}\n"
            f"         {other:6.1f} s, vmapped products ({timed} of {chunks} chunks timed): "
            f"{other / spent:.1f}x; column 7 differs by {error:.1e}"
        )


if __name__ == "__main__":
    main()
