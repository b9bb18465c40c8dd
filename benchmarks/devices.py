"""The same questions on every device that torch has here: seconds, memory and error.

    python benchmarks/devices.py [W1 W2 W3 W4]

EK-FAC of each workload with training labels, from nothing to all pairwise scores, in float32 by
torch's own number of threads; the exact GGN by conjugate gradients for 32 queries of W2. Seconds
are the median of three runs, each of a problem of its own; the first time a device does anything is
left out. `error` is that of all scores against float64 on the same device.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from workloads import WORKLOADS, Trained, load

import curvfluence as cf

RUNS = 3


@dataclass(frozen=True)
class Found:
    fit: float
    scores: float
    peak: int | None  # bytes that tensors took on the device, where it counts them
    values: Tensor


def problem_of(trained: Trained, device: str, dtype: torch.dtype, queries: int) -> cf.Problem:
    data = trained.data
    loss = cf.CrossEntropy()
    single = cf.Problem(
        trained.model().to(device),
        cf.Positions(loss, reduction="sum") if data.targets.ndim > 1 else loss,
        (data.inputs, data.targets),
        (data.query_inputs[:queries], data.query_targets[:queries]),
    )
    return single.to(dtype)


def asked(problem: cf.Problem, rung: cf.Rung, damping: float) -> Found:
    cuda = problem.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    curvature = cf.fit(problem, rung)
    if cuda:
        torch.cuda.synchronize()
    fitted = time.perf_counter()
    values = cf.influence(problem, curvature, damping=cf.Absolute(damping)).values
    end = time.perf_counter()  # scores are on the CPU, so a device has done all of it
    peak = torch.cuda.max_memory_allocated() if cuda else None
    return Found(fitted - start, end - fitted, peak, values)


def line(name: str, rung: cf.Rung, label: str, device: str, queries: int, runs: int) -> str:
    trained, damping = load(name), WORKLOADS[name].damping
    found: list[Found] = []
    for _ in range(runs + 1):  # the first run loads what a device needs
        problem = problem_of(trained, device, torch.float32, queries)
        found.append(asked(problem, rung, damping))
    exact = asked(problem_of(trained, device, torch.float64, queries), rung, damping).values
    error = float((found[-1].values.double() - exact).norm() / exact.norm())
    fit = statistics.median(run.fit for run in found[1:])
    scores = statistics.median(run.scores for run in found[1:])
    peak = found[-1].peak
    memory = "" if peak is None else f"{peak / 2**20:,.0f} MiB"
    n, q = len(trained.data.inputs), len(found[-1].values)
    return (
        f"| {name} {label}, {n:,} × {q} | {device} | {fit:.3f} | {scores:.3f} | {memory} | "
        f"{error:.1e} |"
    )


def main(names: list[str]) -> None:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    label = torch.cuda.get_device_name() if "cuda" in devices else "no CUDA device"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {label}\n")
    print(
        "| | device | fit, s | scores, s | peak on the device | error |\n|---|---|---|---|---|---|"
    )
    for name in names:
        for device in devices:
            rung = cf.EKFAC(cf.Empirical())
            print(line(name, rung, "EK-FAC", device, 100, RUNS), flush=True)
    if "W2" in names:
        for device in devices[-1:]:
            form = cf.inversion.ConjugateGradients(tolerance=1e-3, preconditioner=cf.EKFAC())
            rung = cf.GGN(form)
            print(line("W2", rung, "GGN by conjugate gradients", device, 32, 1), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(WORKLOADS))
