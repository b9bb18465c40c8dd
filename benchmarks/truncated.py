"""EK-FAC and K-FAC with fewer eigenvectors held: memory, seconds of the fit, and other scores.

    python benchmarks/truncated.py [--workload W6] [--examples 64] [--queries 4]
        [--held 64 128 256 512] [--damping 1.0 0.1]

Against the same rung with all eigenvectors: of every query ‖difference of scores‖ / ‖scores‖, the
largest of them, and the least Spearman correlation. In float32, one sampled label.
"""

from __future__ import annotations

import argparse
import time

import torch
from workloads import WORKLOADS, load

import curvfluence as cf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="W6")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--held", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--damping", type=float, nargs="+", default=[1.0, 0.1])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    trained = load(given.workload)
    data, n, q = trained.data, given.examples, given.queries
    loss = cf.CrossEntropy()
    problem = cf.Problem(
        trained.model(),
        cf.Positions(loss, reduction="sum") if data.targets.ndim > 1 else loss,
        (data.inputs[:n], data.targets[:n]),
        (data.query_inputs[:q], data.query_targets[:q]),
    )
    print(f"{trained.workload.title}; {n} examples, {q} queries")
    print("| rung | held | MB | fit, s | λ | largest relative difference | least Spearman |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for rung in (cf.EKFAC, cf.KFAC):
        exact: dict[float, torch.Tensor] = {}
        for held in (None, *sorted(given.held, reverse=True)):
            start = time.process_time()
            curvature = cf.fit(problem, rung(cf.MonteCarlo(1), eigenvectors=held))
            seconds = time.process_time() - start
            size = curvature.cost.nbytes / 1e6
            for damping in given.damping:
                found = cf.influence(problem, curvature, damping=cf.Absolute(damping)).values
                wanted = exact.setdefault(damping, found)
                gap = float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max())
                least = float(_spearman(found, wanted).min())
                print(
                    f"| {rung.__name__} | {held or 'all'} | {size:,.0f} | {seconds:.1f} | "
                    f"{damping:g} | {gap:.2g} | {least:.4f} |",
                    flush=True,
                )


def _spearman(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of each row; scores have no ties."""
    ranks = [x.argsort(1).argsort(1).double() for x in (a, b)]
    x, y = (r - r.mean(1, keepdim=True) for r in ranks)
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))


if __name__ == "__main__":
    main()
