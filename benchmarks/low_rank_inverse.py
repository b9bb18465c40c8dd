"""Pairwise EK-FAC scores of W2 by inverses at low rank beside the product in full: seconds, errors.

    python benchmarks/low_rank_inverse.py [--queries 100] [--damping 1e-3] [--rounds 3]
    python benchmarks/low_rank_inverse.py --queries 2000 --errors 1e-5 --rounds 1

One thread, gradients of the training set computed anew by every way. A round takes the ways in
turn; a ratio is taken within a round, then the median. More queries than W2 has are training
examples.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch
from workloads import load

import curvfluence as cf
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import forget_gradients

FULL = 0.0


def question(queries: int) -> cf.Problem:
    trained = load("W2")
    data = trained.data
    inputs = torch.cat([data.query_inputs, data.inputs])[:queries]
    targets = torch.cat([data.query_targets, data.targets])[:queries]
    return cf.Problem(
        trained.model(),
        cf.CrossEntropy(),
        (data.inputs, data.targets),
        (inputs, targets),
    )


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--damping", type=float, default=1e-3)
    parser.add_argument("--errors", type=float, nargs="+", default=[1e-5, 1e-4, 1e-3, 1e-2])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    problem = question(given.queries)
    start = time.perf_counter()
    curvature = cf.fit(problem, cf.EKFAC())
    print(f"fit {time.perf_counter() - start:.1f} s, peak {peak():.2f} GiB")
    seconds: dict[float, list[float]] = {error: [] for error in (*given.errors, FULL)}
    said: dict[float, str] = {}
    true = None
    for _ in range(given.rounds):
        made: dict[float, cf.Scores] = {}
        for error in seconds:  # the product in full last: its memory is the largest
            forget_gradients(problem, discover(problem))
            start = time.perf_counter()
            made[error] = cf.influence(
                problem, curvature, damping=cf.Absolute(given.damping), inverse_error=error
            )
            seconds[error].append(time.perf_counter() - start)
            said.setdefault(error, f"peak so far {peak():.2f} GiB")
        true = made[FULL].values.double() if true is None else true
        for error in given.errors:
            gap = made[error].values.double() - true
            each = gap.norm(dim=1) / true.norm(dim=1)
            whole = float(gap.norm() / true.norm())
            ranks = next((n for n in made[error].notes if "low rank" in n), "in full")
            said[error] = (
                f"{said[error].split(';')[0]}; error of a query at most {float(each.max()):.1e}, "
                f"of all scores {whole:.1e}; measured {made[error].inverse_error}; {ranks[:60]}"
            )
    for error, taken in seconds.items():
        pairs = zip(seconds[FULL], taken, strict=True)
        ratio = statistics.median(full / each for full, each in pairs)
        print(f"{error:g}: {statistics.median(taken):.2f} s, 1/{ratio:.1f}; {said[error]}")


if __name__ == "__main__":
    main()
