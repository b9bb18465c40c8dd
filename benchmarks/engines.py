"""Retraining by workers of Dask: how much two are faster than one, and what kills do.

    python benchmarks/engines.py [--problem digits-large] [--rounds 3] [--out scale.json]

The truth of a study by `make_bank` in a folder of its own each time, with one worker and with two,
in turn, from before the cluster is started until the last batch is kept: wall-clock seconds. (With
one worker joblib does the work in this process, beside the cluster.) Beside them, in the same
turns, one process without an engine and two that take a slice each (`make_slice`, as
`curvfluence bank make --slice 1/2`), started together, each from its imports on: what two cores
give where nobody hands out work. Then once more with two workers while one of them, whichever, is
killed ten times at random moments. Every array's bytes are compared with those of one process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil
import torch
from merged import merged

from curvfluence.banks import make_bank
from curvfluence.study import StudySpec
from curvfluence.study.engines import Engine

SLICE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from curvfluence.study import StudySpec
from curvfluence.study.make_bank import make_slice
from curvfluence.study.retrain import Slice
problem, subsets, models, place, which = sys.argv[1:]
spec = StudySpec(problem, int(subsets), models=int(models))
make_slice([spec], Path(place), Slice.of(which), threads=1)
"""


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


def sliced(spec: StudySpec) -> tuple[dict[str, str], float]:
    """By two processes, a slice each."""
    with tempfile.TemporaryDirectory() as name:
        bank = Path(name) / "bank"
        given = [spec.problem, str(spec.subsets), str(spec.models), str(bank)]
        start = time.perf_counter()
        both = [subprocess.Popen([sys.executable, "-c", SLICE, *given, f"{k}/2"]) for k in (1, 2)]
        if any(one.wait() for one in both):
            raise SystemExit("a slice failed")
        return numbers(bank), time.perf_counter() - start


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


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    """The median over rounds of how much faster another way is."""
    pairs = zip(seconds[one], seconds[other], strict=True)
    return round(median(a / b for a, b in pairs), 2)


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
    wanted: dict[str, str] = {}
    seconds: dict[str, list[float]] = {}
    same = True
    ways: dict[str, Callable[[], tuple[dict[str, str], float]]] = {
        "one process": lambda: made(spec, None),
        "two slices": lambda: sliced(spec),
        "dask, 1": lambda: made(spec, 1),
        "dask, 2": lambda: made(spec, 2),
    }
    for _ in range(asked.rounds):
        for way, run in ways.items():
            found, took = run()
            wanted = wanted or found
            same &= found == wanted
            seconds.setdefault(way, []).append(took)
            print(f"{way}: {took:.1f} s, {len(found)} arrays", flush=True)
    over, killed = threading.Event(), list[int]()
    thread = threading.Thread(target=kill, args=(asked.kills, over, killed))
    thread.start()
    try:
        found, took = made(spec, 2)
    finally:
        over.set()
        thread.join()
    result = {
        "dask_problem": asked.problem,
        "dask_seconds": {way: [round(s, 1) for s in row] for way, row in seconds.items()},
        "dask_two_workers_ratio": ratio(seconds, "dask, 1", "dask, 2"),
        "dask_two_workers_of_one_process": ratio(seconds, "one process", "dask, 2"),
        "two_slices_of_one_process": ratio(seconds, "one process", "two slices"),
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
