"""How loose proven error bounds are: `python benchmarks/bounds.py [--workload W2 --examples 2000]`.

The net of `digits-large` (6,570 parameters, 1,617 examples, 100 queries), trained once, or one of
the comparison's workloads and some of its examples. Scores under a rung, and their bounds; beside
them the error that the bounds are of, against influence by the exact GGN in float64, as a matrix
or in the space of its rows. Loose is a bound over the error, in the median of all pairs.
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import partial

import torch
from selected_rows import workload
from workloads import WORKLOADS

import curvfluence as cf
from curvfluence.curvature.inversion import Matrix, SampleSpace, SelectedRows
from curvfluence.errors import CurvfluenceWarning
from curvfluence.study.problems.given import given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", default="digits-large")
    parser.add_argument("--workload", choices=sorted(WORKLOADS))
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rows", default="500,1000,2000")
    parser.add_argument("--dampings", default="1e-2,1e-3")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore", CurvfluenceWarning)
    if asked.workload is None:
        problem = given(asked.problem).problem
        problem = problem.asking(range(min(asked.queries, len(problem.queries))))
        oracle, iterated = cf.GGN(Matrix()), SelectedRows
    else:
        problem = workload(asked.workload, None, asked.queries, asked.examples)
        oracle = cf.GGN(SampleSpace(tolerance=1e-10))
        iterated = partial(SampleSpace, iterate=True)
    ways = {
        "K-FAC": cf.KFAC(),
        "EK-FAC": cf.EKFAC(),
        "GGN to 1e-2": cf.GGN(iterated(tolerance=1e-2)),
        "GGN to 1e-3": cf.GGN(iterated(tolerance=1e-3)),
    }
    print("| λ | scores | rows | share | score | error | bound | loose | below | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for damping in map(float, asked.dampings.split(",")):
        at = cf.Absolute(damping)
        wanted = cf.influence(problem.to(torch.float64), oracle, damping=at).values
        for name, rung in ways.items():
            scores = cf.influence(problem, rung, damping=at)
            error = (scores.values.double() - wanted).abs()
            for rows in map(int, asked.rows.split(",")):
                start = time.perf_counter()
                bounds = scores.error_bounds(rows)
                seconds = time.perf_counter() - start
                loose = bounds.values / error.clamp_min(1e-300)
                below = float((error <= bounds.values).double().mean())
                middle = [
                    float(v.median())
                    for v in (wanted.abs(), error, bounds.values, loose.flatten().sort().values)
                ]
                print(
                    f"| {damping:g} | {name} | {rows:,} | {bounds.share:.0%} | {middle[0]:.1e} | "
                    f"{middle[1]:.1e} | {middle[2]:.1e} | {middle[3]:.0f}× | {below:.3%} of "
                    f"{error.numel():,} | {seconds:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
