"""Seconds of W2's pairwise scores by the product in full, of whichever Curvfluence is imported.

    PYTHONPATH=CHECKOUT/src python benchmarks/product_in_full.py

One thread, gradients of the training set computed anew: the second of two calls, since the first
meets code cold, and gradients are remembered from the second on.
"""

from __future__ import annotations

import inspect
import time
from typing import Any

import torch
from workloads import load

import curvfluence as cf


def main() -> None:
    torch.set_num_threads(1)
    data = (trained := load("W2")).data
    problem = cf.Problem(
        trained.model(),
        cf.CrossEntropy(),
        (data.inputs, data.targets),
        (data.query_inputs[:100], data.query_targets[:100]),
    )
    known = inspect.signature(cf.influence).parameters
    full: dict[str, Any] = {"inverse_error": 0.0} if "inverse_error" in known else {}
    curvature = cf.fit(problem, cf.EKFAC())
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        cf.influence(problem, curvature, damping=cf.Absolute(trained.workload.damping), **full)
        seconds = time.perf_counter() - start
    print(f"{seconds:.2f}")


if __name__ == "__main__":
    main()
