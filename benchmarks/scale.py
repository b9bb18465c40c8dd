"""Several processes on one machine: `make scale`, which writes scale.json.

    python benchmarks/scale.py [--rounds 3] [--workload W2]

Scores of every rung by 1, 2 and 4 processes, and how many of them are the same to the last bit; a
model that FSDP2 shards over two beside the whole one; how long a run goes on whose second process
is killed; then fit and scores of EK-FAC on a workload of the comparison, and an index of made
examples, by one process without torch.distributed, by one with it, and by two, one thread each, in
turn: wall-clock seconds from before the fit until the scores or the index are there, and the bytes
of tensors that all of them handed on, those of the fit beside their formula. Last what each process
holds: EK-FAC of eight equal layers by 1, 2 and 4 processes, each of which is granted that part of
the memory, by its resident memory at the peak less that before.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from merged import merged

ROOT = Path(__file__).resolve().parent.parent
COUNTS = (1, 2, 4)
INDEXED = 300_000  # made examples that are indexed
WIDTH = 768  # of the eight layers whose memory is measured
WAYS = {"alone": 0, "one rank": 1, "two ranks": 2}


def launched(count: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable]
    if count:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun says so for several alone
    one.pop("PYTHONDONTWRITEBYTECODE", None)  # modules are compiled once, as where one installs
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


def sharded(folder: Path) -> bool:
    """Whether scores of a model that FSDP2 shards over two processes are the whole model's, to the
    bit, on every net of the tests."""
    out = folder / "sharded.pt"
    done = launched(2, "-m", "tests.ranked", "sharded", str(out))
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return all(one["same"] for one in torch.load(out, weights_only=False).values())


def scored(name: str, said: dict[str, Any]) -> Callable[[], torch.Tensor]:
    """EK-FAC and its scores. What a fit of K processes hands on: K times its sums, the factors with
    a float64 count of positions a layer and then the eigenvalues, and once the bases with their own
    eigenvalues."""
    import workloads

    import curvfluence as cf
    from curvfluence.runtime import ranks

    known = workloads.load(name)
    data = known.data
    problem = cf.Problem(
        known.model(),
        cf.CrossEntropy(),
        (data.inputs, data.targets),
        (data.query_inputs, data.query_targets),
    )
    at = cf.Absolute(known.workload.damping)
    sides = [(w.shape[1] + 1, w.shape[0]) for w in problem.theta.values() if w.ndim == 2]
    factors, values = sum(i**2 + o**2 for i, o in sides), sum(i * o for i, o in sides)
    summed, bases = 4 * (factors + values) + 8 * len(sides), 4 * (factors + sum(map(sum, sides)))

    def run() -> torch.Tensor:
        curvature = cf.fit(problem, cf.EKFAC())
        team = ranks.here()
        said["of the fit"] = ranks.sent()
        several = team is not None and team.count > 1
        said["by the formula"] = team.count * summed + bases if team is not None and several else 0
        return cf.influence(problem, curvature, damping=at).values

    return run


def within_a_part() -> Callable[[], torch.Tensor]:
    """EK-FAC of eight layers of one width, in the part of the memory that a process is granted."""
    import curvfluence as cf

    torch.manual_seed(0)
    layers = [torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh()) for _ in range(8)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 10))
    x, y = torch.randn(272, WIDTH), torch.randint(10, (272,))
    problem = cf.Problem(
        model, cf.CrossEntropy(), (x[:256], y[:256]), (x[256:], y[256:]), remember=0
    )
    rung = cf.EKFAC(cf.Empirical())
    held = 4 * (rung.elements(problem) + 16 * problem.parameters.count)
    room = int(1.15 * held / int(os.environ.get("WORLD_SIZE", "1")))
    at = cf.Absolute(1e-3)  # gradients vanish in so deep a net, and with them a relative λ
    return lambda: cf.influence(problem, rung, damping=at, memory=room).values


def resident() -> int:
    """Bytes of this process that lie in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def indexed(folder: Path) -> Callable[[], torch.Tensor]:
    """An index of made examples, from the fit on."""
    from index import made

    import curvfluence as cf

    problem = made(INDEXED, 64)
    return lambda: torch.cat(cf.index(problem, cf.EKFAC(), out=folder).shards.phi)


def timed(name: str, out: Path) -> None:
    """In each process: the work of that name; the first writes seconds and bytes."""
    import torch.distributed as dist

    import curvfluence as cf
    from curvfluence.runtime import ranks

    torch.set_num_threads(1)
    said: dict[str, Any] = {}
    if name == "index":
        work = indexed(out.with_suffix(".index"))
    else:
        work = within_a_part() if name == "memory" else scored(name, said)
    shared = dist.is_torchelastic_launched()
    if shared:
        dist.init_process_group("gloo")
        dist.barrier()
    before = resident()
    with cf.together() if shared else nullcontext():
        start = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    own = (ranks.sent(), said.get("of the fit", 0), peak)
    every: list[Any] = [own]
    if shared:
        every = [None] * dist.get_world_size()
        dist.all_gather_object(every, own)
    if not shared or not dist.get_rank():
        sent, fit, peaks = zip(*every, strict=True)
        told = {"bytes": sum(sent), "of the fit": sum(fit), "peaks": peaks}
        out.write_text(json.dumps({**said, **told, "seconds": seconds}))
        torch.save(found, out.with_suffix(".pt"))
    if shared:
        dist.barrier()
        dist.destroy_process_group()


def compared(work: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds and bytes of a work by every way, in turn, and whether bits are the same."""
    found: dict[str, Any] = {}
    rows: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way, processes in WAYS.items():
            out = folder / f"{work}-{number}-{way.replace(' ', '-')}.json"
            words = ("benchmarks/scale.py", "--workload", work, "--timed", str(out))
            done = launched(processes, *words)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            said = json.loads(out.read_text())
            rows[way].append(said["seconds"])
            found[f"bytes, {way}"] = said["bytes"]
            if "by the formula" in said:
                held = (said["of the fit"], said["by the formula"])
                found[f"bytes of the fit, and by the formula, {way}"] = held
            print(f"{work}, {way}: {said['seconds']:.2f} s, {said['bytes']:,} bytes", flush=True)
    last = [folder / f"{work}-{rounds - 1}-{way.replace(' ', '-')}.pt" for way in WAYS]
    tables = [torch.load(file) for file in last]
    return found | {
        "seconds": {way: [round(s, 2) for s in seconds] for way, seconds in rows.items()},
        "two_ranks_ratio": _ratio(rows["alone"], rows["two ranks"]),
        "one_rank_ratio": _ratio(rows["alone"], rows["one rank"]),
        "same_bits": bool(torch.equal(tables[1], tables[2])),
        "off_from_alone": float((tables[1] - tables[0]).norm() / tables[0].norm()),
    }


def held_by_each(folder: Path) -> dict[str, Any]:
    """MiB that each process takes at its peak beside what it had before the work, and whether the
    scores are those of one."""
    peaks: dict[str, list[int]] = {}
    tables: list[torch.Tensor] = []
    for count in COUNTS:
        out = folder / f"memory-{count}.json"
        done = launched(count, "benchmarks/scale.py", "--workload", "memory", "--timed", str(out))
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        peaks[str(count)] = [round(peak / 2**20) for peak in json.loads(out.read_text())["peaks"]]
        tables.append(torch.load(out.with_suffix(".pt")))
    off = [float((table - tables[0]).norm() / tables[0].norm()) for table in tables[1:]]
    return {"peak_mib_of_each": peaks, "off_from_one": off}


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
        found["fsdp2_same_bits"] = sharded(folder)
        found["killed_rank_seconds"] = round(killed(folder), 1)
        found["memory"] = held_by_each(folder)
        print(found, flush=True)
        import workloads

        workloads.load(asked.workload)  # made where no clock runs
        found |= {"workload": asked.workload} | compared(asked.workload, asked.rounds, folder)
        index = compared("index", asked.rounds, folder)
        found["index"] = {"examples": INDEXED} | index
    merged(Path("scale.json"), found)
    print(json.dumps(found, indent=2))


def _ratio(one: list[float], other: list[float]) -> float:
    """Median over rounds."""
    return round(median(a / b for a, b in zip(one, other, strict=True)), 2)


if __name__ == "__main__":
    main()
