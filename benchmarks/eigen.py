"""Whether factors might be decomposed in float32 and refined once: seconds of the parts.

    python benchmarks/eigen.py [--sizes 1024 2048] [--threads 1] [--rounds 3]

A refinement (Ogita and Aishima 2018) takes at least four products of n × n in float64: XᵀX, AX,
XᵀAX and the correction. In the place of a float64 decomposition float32 and a refinement pay only
where the sum of the two is less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[785, 1025, 2048])
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
            double = _seconds(lambda m=exact: torch.linalg.eigh(m))
            simple = _seconds(lambda m=single: torch.linalg.eigh(m))
            products = 4 * _seconds(lambda m=exact: m @ m)
            found.append((double, simple, products))
            ratios.append((simple + products) / double)
        each = " | ".join(f"{median(column):.2f}" for column in zip(*found, strict=True))
        print(f"| {n:,} | {each} | {median(ratios):.2f} |", flush=True)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
