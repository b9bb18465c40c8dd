"""What of a residual is a ReLU's kink: W2's exact GGN in float32 against products in float64.

    python benchmarks/kinks.py [--damping 1e-4] [--threads 2]

A unit whose input is within rounding of 0 has another derivative in float64 than in float32, and
its example other rows: the GGN in float64 is then another matrix. Printed are the residual that the
solve states of its own rows, that of a float64 product, and that of a float64 product in which the
biases of such units are moved by 1e-6 to the side that float32 sees.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from selected_rows import workload
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.inversion import SampleSpace
from curvfluence.problem.problem import Problem

MOVED = 1e-6
HIDDEN = ("0", "2")  # layers that a ReLU follows


def inputs_of_relus(theta: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """z of each hidden layer, [N, width]."""
    found: dict[str, Tensor] = {}
    for name in HIDDEN:
        found[name] = F.linear(x, theta[f"{name}.weight"], theta[f"{name}.bias"])
        x = found[name].relu()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--damping", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    problem = workload("W2", None, 100)
    start = time.perf_counter()
    form = SampleSpace(iterate=True, tolerance=1e-3)
    scores = cf.influence(problem, cf.GGN(form), damping=cf.Absolute(asked.damping))
    print(f"{time.perf_counter() - start:.0f} s; {'; '.join(scores.notes)}")
    print(f"by a float64 product: {scores.certificate(dtype=torch.float64).worst:.2e}")

    assert isinstance(problem.train, cf.Examples)
    x = problem.train.inputs
    assert isinstance(x, Tensor)
    single = inputs_of_relus(dict(problem.theta), x)
    double = inputs_of_relus({k: v.double() for k, v in problem.theta.items()}, x.double())
    moves: list[tuple[str, int, float]] = []
    for name in HIDDEN:
        for n, unit in ((single[name] > 0) != (double[name] > 0)).nonzero().tolist():
            z, exact = float(single[name][n, unit]), float(double[name][n, unit])
            print(f"layer {name}, unit {unit}, example {n}: {z:.1e} in float32, {exact:.1e}")
            moves.append((f"{name}.bias", unit, MOVED if z > 0 else -MOVED))
    to = Problem.to

    def moved(self: Problem, dtype: torch.dtype) -> Problem:
        other = to(self, dtype)
        weights = {name: value.clone() for name, value in {**other.theta, **other.state}.items()}
        for name, unit, step in moves:
            weights[name][unit] += step
        return other.at(weights)

    Problem.to = moved  # pyright: ignore[reportAttributeAccessIssue]
    try:
        print(f"and on the same side: {scores.certificate(dtype=torch.float64).worst:.2e}")
    finally:
        Problem.to = to


if __name__ == "__main__":
    main()
