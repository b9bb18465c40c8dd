"""What the work costs at least: operations by formula, and the rate of this machine's sgemm.

    python benchmarks/floor.py W2        # operations, and GFLOP/s of one thread

A fraction of peak is operations / (seconds × rate), with the rate measured beside the seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from question import Task
from workloads import WORKLOADS


@dataclass(frozen=True)
class Layer:
    """A layer's o × i with its bias column, T positions, and whether anything trains below it."""

    out: int
    inp: int
    positions: int
    bottom: bool = False


LAYERS = {
    "W1": (Layer(64, 65, 1, True), Layer(32, 65, 1), Layer(10, 33, 1)),
    "W2": (Layer(1024, 785, 1, True), Layer(1024, 1025, 1), Layer(10, 1025, 1)),
    "W3": (Layer(16, 10, 196, True), Layer(32, 145, 49), Layer(32, 289, 16), Layer(10, 513, 1)),
    "W4": (
        *(Layer(128, 129, 128),) * 8,
        *(Layer(512, 129, 128), Layer(128, 513, 128)) * 2,
        Layer(256, 128, 128),
    ),
    "W5": (
        Layer(64, 147, 1024, True),
        *(Layer(64, 576, 256),) * 4,
        *(Layer(128, 576, 64), *(Layer(128, 1152, 64),) * 3, Layer(128, 64, 64)),
        *(Layer(256, 1152, 16), *(Layer(256, 2304, 16),) * 3, Layer(256, 128, 16)),
        *(Layer(512, 2304, 4), *(Layer(512, 4608, 4),) * 3, Layer(512, 256, 4)),
        Layer(10, 513, 1),
    ),
    "W6": (
        *(Layer(512, 513, 128),) * 16,
        *(Layer(2048, 513, 128), Layer(512, 2049, 128)) * 4,
        Layer(256, 512, 128),
    ),
    "W7": (
        *(Layer(384, 385, 64),) * 24,
        *(Layer(1536, 385, 64), Layer(384, 1537, 64)) * 6,
        Layer(8, 385, 1),
    ),
}
CLASSES = {"W1": 10, "W2": 10, "W3": 10, "W4": 256, "W5": 10, "W6": 256, "W7": 8}
ASKED = {"W1": (1617, 180), "W2": (4500, 100), "W3": (4500, 100), "W4": (512, 32)}
ASKED |= dict.fromkeys(("W5",), (128, 8)) | dict.fromkeys(("W6", "W7"), (64, 8))
# sgemm shapes (m, k, n): a large square, and the workload's own largest products.
SHAPES = {
    "W1": ((64, 14553, 64), (180, 4160, 1617), (1617, 64, 64)),
    "W2": ((2048, 2048, 2048), (1024, 8192, 1024), (20480, 1025, 512)),
    "W3": ((2048, 2048, 2048), (289, 65536, 289), (3200, 289, 512)),
    "W4": ((2048, 2048, 2048), (512, 65536, 128), (4096, 129, 4096)),
    "W5": ((2048, 2048, 2048), (576, 32768, 64)),
    "W6": ((2048, 2048, 2048), (2048, 8192, 512)),
    "W7": ((2048, 2048, 2048), (1536, 4096, 384)),
}


def columns(task: Task) -> int:
    """Columns an example that a Fisher needs: K − 1 for type-2, else one."""
    return CLASSES[task.workload] - 1 if task.fisher == "type2" else 1


def fit_operations(task: Task) -> float:
    """Floating-point operations of a K-FAC or EK-FAC fit, one pass over the data.

    forward 2 N T o i, backward of the columns 2 N T C o i (not into the data), factors by symmetry
    N T i² and N T C o², decompositions 9 n³, and for EK-FAC the rotations 2 N T i², 2 N T C o² and
    Λ: 2 N o i where a layer has one position, 2 N C (T + 1) o i where it has more.
    """
    n, c = task.examples, columns(task)
    total = 0.0
    for layer in LAYERS[task.workload]:
        o, i, t = layer.out, layer.inp, layer.positions
        total += 2 * n * t * o * i * (1 if layer.bottom else 1 + c)
        total += n * t * (i * i + c * o * o) + 9 * (o**3 + i**3)
        if task.rung == "EKFAC":
            total += 2 * n * t * (i * i + c * o * o)
            total += 2 * n * o * i if t == 1 else 2 * n * c * (t + 1) * o * i
    return total


def pairwise_operations(task: Task) -> float:
    """2 Q N P for the product of gradients, and what brings rows to the eigenbasis.

    A layer's scores are those of rotated rows: 2 (N + Q) T (o² + i²), with 2 (N + Q) T o i more to
    form the gradients of a layer with several positions. Nothing of the size of a solve is needed.
    """
    n, q = task.examples, task.queries
    total = 0.0
    for layer in LAYERS[task.workload]:
        o, i, t = layer.out, layer.inp, layer.positions
        total += 2.0 * q * n * o * i + 2.0 * (n + q) * t * (o * o + i * i)
        total += 2.0 * (n + q) * t * o * i if t > 1 else 0.0
    return total


def sgemm(workload: str, repeats: int = 3) -> tuple[float, str]:
    """(the best rate over the workload's shapes, in operations a CPU second; whose it is): of
    torch's BLAS and of NumPy's."""
    best = {"torch": 0.0, "NumPy": 0.0}
    for m, k, n in SHAPES[workload]:
        a, b = torch.randn(m, k), torch.randn(k, n)
        calls = max(1, round(5e9 / (2.0 * m * k * n)))
        of: dict[str, Callable[[], object]] = {
            "torch": partial(torch.mm, a, b),
            "NumPy": partial(np.matmul, a.numpy(), b.numpy()),
        }
        for whose, product in of.items():
            product()
            for _ in range(repeats):
                start = time.process_time()
                for _ in range(calls):
                    product()
                rate = 2.0 * m * k * n * calls / (time.process_time() - start)
                best[whose] = max(best[whose], rate)
    whose = max(best, key=lambda name: best[name])
    said = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in best.items())
    return best[whose], f"{said} GFLOP/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    torch.set_num_threads(1)
    for name in parser.parse_args().workloads:
        n, q = ASKED[name]
        rate, said = sgemm(name)
        print(f"{name}: sgemm of {said} on one thread")
        for fisher in ("empirical", "type2"):
            task = Task(name, "EKFAC", fisher, n, q, WORKLOADS[name].damping)
            fit, scores = fit_operations(task), pairwise_operations(task)
            print(
                f"  EK-FAC {fisher}, {n} × {q}: fit {fit:.2e} operations, at least "
                f"{fit / rate:.2f} s; pairwise {scores:.2e}, {scores / rate:.2f} s"
            )


if __name__ == "__main__":
    main()
