"""Curvfluence beside kronfluence, curvlinops, dattri and pyDVL on W1 to W7.

    python benchmarks/compare.py [--only W1 W3] [--examples 256] [--rounds 3]
        [--libraries ours curvlinops] [--rungs GGN] [--fresh]
    python benchmarks/compare.py --tables [--kinds]     # no timing: only the page, and other layers

Every measurement is a process of its own with one thread. In a round each job of a group runs once,
in one order and then in the other, so that what else the machine does falls on all alike. Medians
go to benchmarks/results.json and tables to docs/benchmarks.md. Peers' figures are kept by version
in the build folder and used again; `--fresh` measures them anew, for ratios of one run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jobs import EXACT, GROUPS, OURS, PEERS, TOLERANCE, Job
from kinds import KINDS
from question import ask
from record import Record, Round, middle, read, same_question, write
from reference import cached
from tables import COVERAGE, write_page
from workloads import BUILD, load

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LONGEST = 900.0  # seconds after which a measurement is given up
CACHE = BUILD / "peers"
NAMES = {OURS: "curvfluence", "peers.pydvl": "pyDVL"}


@dataclass(frozen=True)
class Attempt:
    """What one process said (the fields of `Measured`), and when."""

    said: dict[str, Any]
    day: str
    kept: bool  # from an earlier run of the comparison

    @property
    def refused(self) -> str | None:
        return self.said["refused"]

    def round(self) -> Round:
        said = self.said
        return Round(
            said["fit_seconds"],
            said["pairwise_seconds"],
            said["sgemm"],
            said["cold_fit_seconds"],
            said["cold_pairwise_seconds"],
            said["blas"],
        )


def command(job: Job) -> list[str]:
    """What runs a job, from the repository's root."""
    python = ".venv/bin/python" if job.library == OURS else _python(job.library)
    task = json.dumps(asdict(job.task))
    fit_only = ["--fit-only"] if job.fit_only else []
    return [python, "benchmarks/measure.py", job.library, task, *fit_only]


def _python(peer: str) -> str:
    """The interpreter of a peer's own environment, from the repository's root."""
    return f"build/{peer.replace('.', '/')}/bin/python"


def start(library: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Python with one thread, in the library's environment, until it ends or takes too long."""
    python = sys.executable if library == OURS else str(ROOT / _python(library))
    paths = str(ROOT / "src") if library == OURS else ""
    return subprocess.run(
        [python, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )


def run(job: Job) -> Attempt:
    """One measurement in a fresh process."""
    day = time.strftime("%Y-%m-%d")
    try:
        done = start(job.library, command(job)[1:])
    except subprocess.TimeoutExpired:
        return Attempt(_nothing(f"not done after {LONGEST:.0f} seconds"), day, False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines or not lines[-1].startswith("{"):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Attempt(_nothing(f"exit status {done.returncode}: {last[:300]}"), day, False)
    return Attempt(json.loads(lines[-1]), day, False)


def _nothing(why: str) -> dict[str, Any]:
    times = ("fit_seconds", "pairwise_seconds", "cold_fit_seconds", "cold_pairwise_seconds")
    empty = dict.fromkeys((*times, "peak_bytes", "error", "own_error"))
    return {**empty, "refused": why, "version": "", "torch": "", "sgemm": 0.0, "blas": ""}


def cache_path(job: Job) -> Path:
    """By what a peer's figures depend on: its code here, the pins, the weights, the machine."""
    digest = hashlib.sha256(repr(job).encode())
    peer = HERE / f"{job.library.replace('.', '/')}.py"
    for path in (peer, peer.with_suffix(".txt"), HERE / "measure.py", HERE / "workloads.py"):
        digest.update(path.read_bytes())
    digest.update(load(job.task.workload).fingerprint().encode() + cpu().encode())
    return CACHE / f"{digest.hexdigest()[:24]}.json"


def kept(job: Job) -> list[Attempt]:
    if job.library == OURS or not (path := cache_path(job)).exists():
        return []
    return [Attempt(row["said"], row["day"], True) for row in json.loads(path.read_text())]


def keep(job: Job, attempts: list[Attempt]) -> None:
    if job.library != OURS:
        CACHE.mkdir(parents=True, exist_ok=True)
        rows = [{"said": a.said, "day": a.day} for a in attempts]
        cache_path(job).write_text(json.dumps(rows))


def compare(jobs: list[Job], *, rounds: int, fresh: bool) -> list[Record]:
    """All jobs of a group by turns; a job that declined once is not asked again."""
    found = {job: [] if fresh else kept(job) for job in jobs}
    pending = [job for job in jobs if not found[job]]
    for task in dict.fromkeys(job.task for job in pending if not job.fit_only):
        trained = load(task.workload)
        cached(ask(task, trained), trained, task.fisher)  # made here, where no clock runs
    for r in range(rounds):
        for job in pending if r % 2 == 0 else pending[::-1]:
            if r >= job.rounds or (found[job] and found[job][-1].refused):
                continue
            attempt = run(job)
            found[job].append(attempt)
            keep(job, found[job])
            said = attempt.said
            print(
                f"{job.label:32s} {job.library:18s} "
                + (
                    attempt.refused
                    or f"fit {said['fit_seconds']:.3f} s, pairwise {said['pairwise_seconds']} s, "
                    f"error {said['error']}"
                ),
                flush=True,
            )
    return [record(job, attempts) for job, attempts in found.items()]


def kinds() -> dict[str, dict[str, str]]:
    """What each library does with each other kind of layer."""
    found: dict[str, dict[str, str]] = {}
    for library in (OURS, *(f"peers.{name}" for name in PEERS)):
        for kind in KINDS:
            lines = start(library, ["benchmarks/kinds.py", library, kind]).stdout.splitlines()
            name = NAMES.get(library, library.rpartition(".")[2])
            found.setdefault(kind, {})[name] = json.loads(lines[-1]) if lines else "crashes"
    return found


def record(job: Job, attempts: list[Attempt]) -> Record:
    task = job.task
    ran = [attempt for attempt in attempts if not attempt.refused]
    rounds = tuple(attempt.round() for attempt in ran)
    last = attempts[-1]
    if not ran:
        note = last.refused or ""
    elif job.fit_only:
        note = "fit only: its pairwise scores take minutes here"
    elif task.rung == EXACT:
        note = f"residuals of {TOLERANCE:g} at most"
    else:
        note = ""
    if last.kept:
        note = "; ".join(filter(None, (note, f"kept from {last.day}")))
    pairwise = middle([one.pairwise_seconds for one in rounds])
    return Record(
        workload=task.workload,
        rung=task.rung,
        fisher=task.fisher,
        bias=task.bias,
        examples=task.examples,
        queries=task.queries,
        library=NAMES.get(job.library, job.library.rpartition(".")[2]),
        fit_seconds=middle([one.fit_seconds for one in rounds]),
        pairwise_seconds=pairwise,
        total_seconds=None if pairwise is None else middle([one.total_seconds for one in rounds]),
        peak_bytes=max((a.said["peak_bytes"] or 0 for a in ran), default=0) or None,
        error=last.said["error"],
        note=note,
        own_error=last.said["own_error"],
        ran=bool(ran),
        parameters=task.parameters,
        damping=task.damping,
        rounds=rounds,
        version=last.said["version"],
        torch=last.said["torch"],
        cpu=cpu(),
        measured=last.day,
        command=f"OMP_NUM_THREADS=1 {' '.join(_quoted(part) for part in command(job))}",
        kept=last.kept,
    )


def _quoted(part: str) -> str:
    return f"'{part}'" if part.startswith("{") or "(" in part else part


def cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    fields = dict(line.split("\t", 1) for line in lines if "\t" in line)
    named = {name.strip(): value.strip(": \t") for name, value in fields.items()}
    parts = [named.get("model name", "unknown")]
    parts += [f"{key} {named[key]}" for key in ("cpu family", "model") if key in named]
    return ", ".join(parts)


def merged(old: list[Record], new: list[Record], jobs: list[Job]) -> list[Record]:
    """New records in place of old ones of the same job; those that no job asks for are dropped."""

    def find(job: Job) -> Record | None:
        name = NAMES.get(job.library, job.library.rpartition(".")[2])
        for one in (*new, *old):
            if one.library == name and same_question(one, job):
                return one
        return None

    return [one for job in jobs if (one := find(job)) is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="workloads, such as W1")
    parser.add_argument("--libraries", nargs="*", default=[OURS, *PEERS])
    parser.add_argument("--rungs", nargs="*", default=[], help="only those, such as GGN")
    parser.add_argument("--examples", type=int, help="only jobs on so many training examples")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="measure the peers again")
    parser.add_argument("--tables", action="store_true", help="only write the page again")
    parser.add_argument("--kinds", action="store_true", help="also what becomes of other layers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    every = [job for group in GROUPS for job in group.jobs()]
    for group in () if options.tables else GROUPS:
        jobs = [
            job for job in group.jobs() if job.library.removeprefix("peers.") in options.libraries
        ]
        if options.only and group.workload not in options.only:
            continue
        if options.rungs:
            jobs = [job for job in jobs if job.task.rung in options.rungs]
        if options.examples is not None:
            jobs = [job for job in jobs if job.task.examples == options.examples]
        new = compare(jobs, rounds=options.rounds, fresh=options.fresh)
        write(merged(read(), new, every))
    if options.kinds or not (options.tables or options.only):
        COVERAGE.write_text(json.dumps(kinds(), indent=1) + "\n")
    write_page(read())


if __name__ == "__main__":
    main()
