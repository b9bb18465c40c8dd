"""One measurement in a process of its own: `compare.py` starts this; it prints one line of JSON.

    python benchmarks/measure.py ours '{"workload": "W1", ...}' [--fit-only]

One thread. The library first answers the same question about a few examples, so that imports are
not timed. Then 1.25 GiB are written to and freed: a virtual machine's host may give memory page by
page as it is first used, several times as slowly as the system does, and whoever comes first would
pay. Seconds are CPU seconds, of the quickest of a few runs where one is short; the peak is resident
memory above what was held before the fit.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch
from floor import sgemm
from question import Question, Task, ask
from reference import cached
from torch import Tensor
from workloads import Trained, load

RUNS, SHORT = 5, 2.0
TOUCHED = 5 * 2**28  # bytes
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured:
    """Times of one run, or the message with which the library declined (`refused`)."""

    fit_seconds: float | None
    pairwise_seconds: float | None
    peak_bytes: int | None
    error: float | None  # relative Frobenius error against the float64 reference
    own_error: float | None  # the same against the reference of the library's own Fisher
    refused: str | None
    version: str
    torch: str
    sgemm: float  # operations a CPU second, the best of this process before and after the work


def measure(library: str, task: Task, *, pairwise: bool) -> Measured:
    trained = load(task.workload)
    rate = sgemm(task.workload, repeats=2)
    module: ModuleType | None = None
    taken, error, own_error, refused = Taken(None, None, None, None), None, None, None
    try:
        module = import_module(library)
        few = ask(task, trained).few(32, 4)
        module.pairwise(few, module.fit(few))
        torch.zeros(TOUCHED, dtype=torch.uint8).fill_(1)
        taken = take(module, partial(ask, task, trained), pairwise=pairwise)
        if taken.scores is not None:
            error = _error(taken.scores, task, trained, task.fisher)
            own = getattr(module, "OWN_FISHER", "")
            own_error = _error(taken.scores, task, trained, own)
    except Exception as failure:
        traceback.print_exc()
        refused = f"{type(failure).__name__}: {failure}".splitlines()[0][:300]
    rate = max(rate, sgemm(task.workload, repeats=2))
    return Measured(
        taken.fit_seconds,
        taken.pairwise_seconds,
        taken.peak_bytes,
        error,
        own_error,
        refused,
        version(getattr(module, "DISTRIBUTION", library.rpartition(".")[2])),
        torch.__version__,
        rate,
    )


@dataclass(frozen=True)
class Taken:
    """What one run took, and its scores [Q, N] if it was to make them."""

    fit_seconds: float | None
    pairwise_seconds: float | None
    peak_bytes: int | None
    scores: Tensor | None

    @property
    def seconds(self) -> float:
        return (self.fit_seconds or 0.0) + (self.pairwise_seconds or 0.0)


def take(library: ModuleType, fresh: Callable[[], Question], *, pairwise: bool) -> Taken:
    """One run; a short one again, up to RUNS times or SHORT seconds in all, for the quickest."""
    runs: list[Taken] = []
    while len(runs) < RUNS and sum(one.seconds for one in runs) < SHORT:
        runs.append(_once(library, fresh(), pairwise=pairwise))
    return min(runs, key=lambda one: one.seconds)


def _once(library: ModuleType, question: Question, *, pairwise: bool) -> Taken:
    before = _restart_peak()
    start = time.process_time()
    fitted = library.fit(question)
    fit_seconds = time.process_time() - start
    scores = pairwise_seconds = None
    if pairwise:
        start = time.process_time()
        scores = library.pairwise(question, fitted)
        pairwise_seconds = time.process_time() - start
    peak = None if before is None else _status("VmHWM") - before
    return Taken(fit_seconds, pairwise_seconds, peak, scores)


def _error(scores: Tensor, task: Task, trained: Trained, fisher: str) -> float | None:
    wanted = cached(ask(task, trained), trained, fisher)
    if wanted is None:
        return None
    return float((scores.double() - wanted).norm() / wanted.norm())


def _restart_peak() -> int | None:
    """Reset the peak to the present; what is resident now, or None where that cannot be done."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept would hide what comes next
        CLEAR.write_text("5")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {field}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", help="ours, or peers.NAME")
    parser.add_argument("task", help="the fields of a Task, as JSON")
    parser.add_argument("--fit-only", action="store_true")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    task = Task(**json.loads(options.task))
    found = measure(options.library, task, pairwise=not options.fit_only)
    sys.stdout.write("\n" + json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
