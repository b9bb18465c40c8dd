"""Pairwise EK-FAC scores of W2 by inverses at low rank beside the product in full: seconds, errors.

    python benchmarks/low_rank_inverse.py [--queries 100] [--damping 1e-3] [--rounds 3]
    python benchmarks/low_rank_inverse.py --queries 2000 --errors 1e-5 --rounds 1
    python benchmarks/low_rank_inverse.py --beside CHECKOUT

One thread, gradients of the training set computed anew by every way. A round takes the ways in
turn; a ratio is taken within a round, then the median. More queries than W2 has are training
examples. With `--beside` a round also has the product in full of another checkout, of 100 queries
in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

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


def product_in_full(checkout: Path) -> float:
    """Seconds of it by the Curvfluence of another checkout."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("product_in_full.py"))],
        env={**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--damping", type=float, default=1e-3)
    parser.add_argument("--errors", type=float, nargs="+", default=[1e-5, 1e-4, 1e-3, 1e-2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", type=Path, help="another checkout, such as of an older commit")
    given = parser.parse_args()
    torch.set_num_threads(1)
    problem = question(given.queries)
    start = time.perf_counter()
    curvature = cf.fit(problem, cf.EKFAC())
    print(f"fit {time.perf_counter() - start:.1f} s, peak {peak():.2f} GiB")
    seconds: dict[float, list[float]] = {error: [] for error in (*given.errors, FULL)}
    said: dict[float, str] = {}
    true, beside = None, list[float]()
    for _ in range(given.rounds):
        if given.beside is not None:
            beside.append(product_in_full(given.beside))
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
        if beside:
            ratio = statistics.median(one / each for one, each in zip(beside, taken, strict=True))
            print(f"  1/{ratio:.1f} of {given.beside}, {min(beside):.1f} to {max(beside):.1f} s")


if __name__ == "__main__":
    main()
