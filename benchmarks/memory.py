"""Peak memory where N grows: W4 at 512 and 5,120 sequences, and scores written to a file.

    OMP_NUM_THREADS=1 python benchmarks/memory.py [--one PART]

First W4 and W6 (a transformer of 12.9 million parameters) as the comparison with other libraries
asks them: with what is kept of gradients by default, with that in memory and in no file, with
nothing kept, and within a stated memory. Then W4 is the fit of EK-FAC (empirical) and the
self-influence of every sequence; ten times as many sequences are the same ones ten times. Long
sequences are fitted as they are, and with blocks under torch.utils.checkpoint. The scores are 1,000
queries by 100,000 examples of a small net, 400 MB in float32, written to a file and never held.
Each is a process of its own; the peak is of the process's own memory (RssAnon, read every 2 ms:
pages of the file are the system's to drop) above what was held before the fit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from workloads import ByteModel, load

import curvfluence as cf
from curvfluence.runtime import budget


@dataclass(frozen=True)
class Peak:
    seconds: float
    bytes: int


def peak_of(work: Callable[[], object]) -> Peak:
    """Wall-clock seconds of `work`, and the most that the process held above what it did before."""
    before, most, done = _anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        work()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return Peak(seconds, max(0, most - before))


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this needs Linux, whose /proc says RssAnon")


def compared(
    remember: int | None, *, workload: str = "W4", memory: str | None = None, files: bool = True
) -> dict[str, float]:
    """As the comparison with other libraries asks it: fit and pairwise scores of all queries;
    without `files` what is kept between passes is held in memory."""
    budget.CACHED = budget.CACHED if files else sys.maxsize
    trained = load(workload)
    data = trained.data
    problem = cf.Problem(
        trained.model(),
        cf.Positions(cf.CrossEntropy(), reduction="sum"),
        (data.inputs, data.targets),
        (data.query_inputs, data.query_targets),
        remember=remember,
    )

    def work() -> None:
        damping = cf.Absolute(trained.workload.damping)
        cf.influence(problem, cf.EKFAC(cf.Empirical()), damping=damping, memory=memory)

    return _measured(work, examples=len(data.inputs))


def sequences(times: int) -> dict[str, float]:
    trained = load("W4")
    data = trained.data
    x, y = data.inputs.repeat(times, 1), data.targets.repeat(times, 1)
    problem = cf.Problem(
        trained.model(),
        cf.Positions(cf.CrossEntropy(), reduction="sum"),
        (x, y),
        (data.query_inputs[:1], data.query_targets[:1]),
    )

    def work() -> None:
        curvature = cf.fit(problem, cf.EKFAC(cf.Empirical()))
        cf.self_influence(problem, curvature, damping=cf.Absolute(0.1))

    return _measured(work, examples=len(x))


class Again(nn.Module):
    """A block whose activations are computed again in the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=False)


def long(*, again: bool, positions: int = 4096) -> dict[str, float]:
    """Eight sequences of many positions through eight blocks of width 128: EK-FAC's fit."""
    torch.manual_seed(0)
    model = ByteModel(length=positions, width=128, depth=8)
    if again:
        model.blocks = nn.Sequential(*map(Again, model.blocks))
    x = torch.randint(256, (8, positions))
    loss = cf.Positions(cf.CrossEntropy(), reduction="sum")
    problem = cf.Problem(model, loss, (x, x.roll(-1, 1)), (x[:1], x[:1].roll(-1, 1)), remember=0)
    return _measured(lambda: cf.fit(problem, cf.EKFAC(cf.Empirical())), positions=positions)


def streamed(examples: int = 100_000, queries: int = 1_000) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples + queries, 64, generator=generator)
    y = torch.randint(0, 10, (examples + queries,), generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
    problem = cf.Problem(
        model,
        cf.CrossEntropy(),
        (x[:examples], y[:examples]),
        (x[examples:], y[examples:]),
    )
    curvature = cf.fit(problem, cf.EKFAC(cf.Empirical()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.npy"

        def work() -> None:
            cf.influence(problem, curvature, damping=cf.Absolute(0.1), out=path)

        return _measured(work, scores_bytes=4.0 * examples * queries)


def _measured(work: Callable[[], object], **more: float) -> dict[str, float]:
    found = peak_of(work)
    return {**more, "seconds": found.seconds, "peak_bytes": float(found.bytes)}


PARTS = {
    "W4, 32 queries": lambda: compared(None),
    "W4, 32 queries, in memory": lambda: compared(None, files=False),
    "W4, 32 queries, remember=0": lambda: compared(0),
    "W6, 16 queries": lambda: compared(None, workload="W6"),
    "W6, 16 queries, in memory": lambda: compared(None, workload="W6", files=False),
    "W6, 16 queries, remember=0": lambda: compared(0, workload="W6"),
    "W6, 16 queries, memory=256MiB": lambda: compared(None, workload="W6", memory="256MiB"),
    "W4, 512 sequences": lambda: sequences(1),
    "W4, 5,120 sequences": lambda: sequences(10),
    "4,096 positions": lambda: long(again=False),
    "4,096 positions, blocks computed again": lambda: long(again=True),
    "100,000 × 1,000 to a file": streamed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", choices=list(PARTS), help="one line of JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(PARTS[given.one]()))
        return
    for title in PARTS:
        done = subprocess.run(
            [sys.executable, __file__, "--one", title], capture_output=True, text=True, check=True
        )
        row = json.loads(done.stdout.splitlines()[-1])
        print(f"{title}: {row['peak_bytes'] / 2**20:.0f} MiB, {row['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
