"""Exact GGN influence of W2's 1.86 million parameters, in sample space, with its certificate.

    python benchmarks/large.py [--examples 4500] [--queries 100] [--lambdas 1e-3 1e-4] [--threads 2]

Says for each λ: seconds of the fit and of the scores, the residual of every query by a product in
float64 that shares no code with the solve but the rows, what was dropped, and the peak memory; and
the time of self-influence under EK-FAC next to that of its fit.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch
from workloads import load

import curvfluence as cf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=4500)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--lambdas", type=float, nargs="+", default=[1e-3, 1e-4])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    trained = load("W2")
    data = trained.data
    n, q = given.examples, given.queries
    problem = cf.Problem(
        trained.model(),
        cf.CrossEntropy(),
        (data.inputs[:n], data.targets[:n]),
        (data.query_inputs[:q], data.query_targets[:q]),
    )
    outputs = problem.outputs(problem.train, "training set")
    loss = float(problem.loss.values(outputs, problem.train.targets).mean())
    say(parameters=problem.parameters.count, examples=n, queries=q, training_loss=loss)

    start = time.perf_counter()
    ekfac = cf.fit(problem, cf.EKFAC())
    fitted = time.perf_counter()
    cf.self_influence(problem, ekfac, damping=cf.Absolute(1e-3))
    own = time.perf_counter() - fitted
    say(
        ekfac_fit=fitted - start,
        self_influence=own,
        self_over_fit=own / (fitted - start),
    )

    start = time.perf_counter()
    ggn = cf.fit(problem, cf.GGN(cf.inversion.SampleSpace()))
    say(ggn_fit=time.perf_counter() - start, rule=ggn.coverage[0].rule)
    for value in given.lambdas:
        start = time.perf_counter()
        scores = cf.influence(problem, ggn, damping=cf.Absolute(value))
        seconds = time.perf_counter() - start
        say(damping=value, seconds=seconds, peak_gib=peak(), notes=scores.notes)
        start = time.perf_counter()
        certificate = scores.certificate("GGN", torch.float64)
        say(
            damping=value,
            certificate_seconds=time.perf_counter() - start,
            largest_residual=certificate.worst,
            median_residual=sorted(certificate.residuals)[q // 2],
            peak_gib=peak(),
        )


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
