"""Several processes on one machine: `make scale`, which writes scale.json.

    python benchmarks/scale.py [--rounds 3] [--workload W2]

Scores of every rung by 1, 2 and 4 processes, and how many of them are the same to the last bit; how
long a run goes on whose second process is killed; then fit and scores of EK-FAC on a workload of
the comparison, by one process without torch.distributed, by one with it, and by two, one thread
each, in turn: wall-clock seconds from before the fit until the scores are there, and the bytes of
tensors that all of them handed on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from merged import merged

ROOT = Path(__file__).resolve().parent.parent
COUNTS = (1, 2, 4)
WAYS = {"alone": 0, "one rank": 1, "two ranks": 2}


def launched(count: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable]
    if count:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun says so for several alone
    return subprocess.run(
        [*command, *words], cwd=ROOT, capture_output=True, text=True, check=False, env=one
    )


def identical(folder: Path) -> tuple[int, int]:
    """(how many tables of scores are the same for all counts, of how many)."""
    found: list[dict[str, Any]] = []
    for count in COUNTS:
        out = folder / f"{count}.pt"
        done = launched(count, "-m", "tests.ranked", "everything", str(out))
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found.append(torch.load(out, weights_only=False))
    names = [name for name, value in found[0].items() if isinstance(value, torch.Tensor)]
    same = [all(torch.equal(one[name], found[0][name]) for one in found) for name in names]
    return sum(same), len(names)


def killed(folder: Path) -> float:
    """Seconds until a run of two ends, of which one dies at its start."""
    start = time.monotonic()
    done = launched(2, "-m", "tests.ranked", "killed", str(folder / "nothing.pt"))
    if not done.returncode:
        raise SystemExit("a killed process was not noticed")
    return time.monotonic() - start


def timed(name: str, out: Path) -> None:
    """In each process: EK-FAC's fit and scores; the first writes seconds and bytes."""
    import torch.distributed as dist
    import workloads

    import curvfluence as cf
    from curvfluence.runtime import ranks

    torch.set_num_threads(1)
    known = workloads.load(name)
    data = known.data
    problem = cf.Problem(
        known.model(),
        cf.CrossEntropy(),
        (data.inputs, data.targets),
        (data.query_inputs, data.query_targets),
    )
    shared = dist.is_torchelastic_launched()
    if shared:
        dist.init_process_group("gloo")
        dist.barrier()
    with cf.together() if shared else nullcontext():
        start = time.perf_counter()
        scores = cf.influence(problem, cf.EKFAC(), damping=cf.Absolute(known.workload.damping))
        seconds = time.perf_counter() - start
    every: list[Any] = [ranks.sent()]
    if shared:
        every = [None] * dist.get_world_size()
        dist.all_gather_object(every, ranks.sent())
    if not shared or not dist.get_rank():
        out.write_text(json.dumps({"seconds": seconds, "bytes": sum(every)}))
        torch.save(scores.values, out.with_suffix(".pt"))
    if shared:
        dist.barrier()
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workload", default="W2")
    parser.add_argument("--timed", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.timed is not None:
        timed(asked.workload, asked.timed)
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        same, count = identical(folder)
        found |= {"ranks": list(COUNTS), "tables": count, "tables_identical": same}
        found["killed_rank_seconds"] = round(killed(folder), 1)
        print(found, flush=True)
        import workloads

        workloads.load(asked.workload)  # made where no clock runs
        rows: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(asked.rounds):
            for way, processes in WAYS.items():
                out = folder / f"{way.replace(' ', '-')}.json"
                words = ("benchmarks/scale.py", "--workload", asked.workload, "--timed", str(out))
                done = launched(processes, *words)
                if done.returncode:
                    raise SystemExit(done.stderr[-2000:])
                said = json.loads(out.read_text())
                rows[way].append(said["seconds"])
                found[f"bytes, {way}"] = said["bytes"]
                print(f"{way}: {said['seconds']:.2f} s, {said['bytes']:,} bytes", flush=True)
        tables = [torch.load(folder / f"{way.replace(' ', '-')}.pt") for way in WAYS]
        off = float((tables[1] - tables[0]).norm() / tables[0].norm())
        found |= {
            "workload": asked.workload,
            "seconds": {way: [round(s, 2) for s in seconds] for way, seconds in rows.items()},
            "two_ranks_ratio": _ratio(rows["alone"], rows["two ranks"]),
            "one_rank_ratio": _ratio(rows["alone"], rows["one rank"]),
            "same_bits": bool(torch.equal(tables[1], tables[2])),
            "off_from_alone": off,
        }
    merged(Path("scale.json"), found)
    print(json.dumps(found, indent=2))


def _ratio(one: list[float], other: list[float]) -> float:
    """Median over rounds."""
    return round(median(a / b for a, b in zip(one, other, strict=True)), 2)


if __name__ == "__main__":
    main()
