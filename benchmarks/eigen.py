"""Decompositions of factors: in float32 and refined once, and in the range of those of low rank.

    python benchmarks/eigen.py [--sizes 1025 2048] [--thin 4608,512] [--threads 1] [--rounds 3]

A refinement (Ogita and Aishima 2018) takes at least four products of n × n in float64: XᵀX, AX,
XᵀAX and the correction. In the place of a float64 decomposition float32 and a refinement pay only
where the sum of the two is less. The second table is of n × n sums of so many outer products.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median

import torch

from curvfluence.curvature.operators.decomposed import eigh_of_rank
from curvfluence.curvature.operators.kronecker import ROUNDING
from curvfluence.forecast.rates import timed

ROUNDED = ROUNDING * torch.finfo(torch.float32).eps  # of the trace, as for a factor in float32
seconds = partial(timed, torch.device("cpu"), runs=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[785, 1025, 2048])
    parser.add_argument("--thin", nargs="+", default=["2304,512", "4608,512", "4608,1500"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("| n | float64 | float32 | four products in float64 | float32 and refined, of float64 |")
    print("| --- | --- | --- | --- | --- |")
    for n in given.sizes:
        x = torch.randn(4500, n) * torch.logspace(0, -3, n)
        single = x.T @ x / len(x)
        exact = single.double()
        ratios: list[float] = []
        found: list[tuple[float, float, float]] = []
        for _ in range(given.rounds):
            double = seconds(lambda m=exact: torch.linalg.eigh(m))
            simple = seconds(lambda m=single: torch.linalg.eigh(m))
            products = 4 * seconds(lambda m=exact: m @ m)
            found.append((double, simple, products))
            ratios.append((simple + products) / double)
        each = " | ".join(f"{median(column):.2f}" for column in zip(*found, strict=True))
        print(f"| {n:,} | {each} | {median(ratios):.2f} |", flush=True)
    print("\n| n | rank | float64 | in the range | of it |")
    print("| --- | --- | --- | --- | --- |")
    for size in given.thin:
        n, rank = map(int, size.split(","))
        x = torch.randn(rank, n)
        exact = (x.T @ x / rank).double()
        whole, thin, ratios = list[float](), list[float](), list[float]()
        for _ in range(given.rounds):
            whole.append(seconds(lambda m=exact: torch.linalg.eigh(m)))
            thin.append(seconds(lambda m=exact, r=rank: eigh_of_rank(m, r, ROUNDED)))
            ratios.append(thin[-1] / whole[-1])
        of_it = f"{median(whole):.2f} | {median(thin):.2f} | {median(ratios):.2f}"
        print(f"| {n:,} | {rank:,} | {of_it} |", flush=True)


if __name__ == "__main__":
    main()
