"""Retraining by workers of Dask: how much two are faster than one, and what kills do.

    python benchmarks/engines.py [--problem digits-large] [--rounds 3] [--out scale.json]

The truth of a study by `make_bank` in a folder of its own each time, with one worker and with two,
in turn, from before the cluster is started until the last batch is kept: wall-clock seconds. (With
one worker joblib does the work in this process, beside the cluster.) Then
once more with two while one of them, whichever, is killed ten times at random moments. Every
array's bytes are compared with those of one process without an engine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import psutil
import torch
from merged import merged

from curvfluence.banks import make_bank
from curvfluence.study import StudySpec
from curvfluence.study.engines import Engine


def numbers(bank: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((bank / "entries").glob("*.npy"))
    }


def made(spec: StudySpec, workers: int | None) -> tuple[dict[str, str], float]:
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        engine = None if workers is None else Engine("dask", workers)
        make_bank([spec], Path(name) / "bank", threads=1, engine=engine)
        return numbers(Path(name) / "bank"), time.perf_counter() - start


def kill(times: int, over: threading.Event, killed: list[int]) -> None:
    """One of this process's workers at a time, at random moments."""
    generator = random.Random(0)
    while len(killed) < times and not over.wait(generator.uniform(1.0, 4.0)):
        own = psutil.Process().children(recursive=True)
        # named by what they are where setproctitle is installed
        titles = ("spawn_main", "dask worker")
        workers = [p.pid for p in own if any(t in " ".join(p.cmdline()) for t in titles)]
        if workers:
            os.kill(killed_one := generator.choice(workers), signal.SIGKILL)
            killed.append(killed_one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", default="digits-large")
    parser.add_argument("--subsets", type=int, default=200)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    spec = StudySpec(asked.problem, asked.subsets, models=asked.models)
    wanted, plain = made(spec, None)
    print(f"one process: {plain:.1f} s, {len(wanted)} arrays", flush=True)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    same = True
    for _ in range(asked.rounds):
        for count, row in seconds.items():
            found, took = made(spec, count)
            same &= found == wanted
            row.append(took)
            print(f"dask, {count} workers: {took:.1f} s", flush=True)
    over, killed = threading.Event(), list[int]()
    thread = threading.Thread(target=kill, args=(asked.kills, over, killed))
    thread.start()
    found, took = made(spec, 2)
    over.set()
    thread.join()
    ratio = median(a / b for a, b in zip(seconds[1], seconds[2], strict=True))
    result = {
        "dask_problem": asked.problem,
        "dask_seconds": {f"{n}": [round(s, 1) for s in row] for n, row in seconds.items()},
        "dask_two_workers_ratio": round(ratio, 2),
        "dask_identical": same,
        "dask_kills": len(killed),
        "dask_kills_identical": found == wanted,
        "dask_kills_seconds": round(took, 1),
    }
    print(result)
    if asked.out is not None:
        merged(asked.out, result)


if __name__ == "__main__":
    main()
