"""One measurement in a process of its own: `compare.py` starts this; it prints one line of JSON.

    python benchmarks/measure.py ours '{"workload": "W1", ...}' [--fit-only]

One thread. The library is imported, and then asked: that first answer is *cold*, with whatever it
loads late and memory that nobody touched before, and so is the peak, resident memory above what was
held before the fit. Then it is asked again, of a model and examples of its own: *warm* is the
quickest of up to five answers, or of two seconds of them. A first answer of more than 20 seconds
stands for both. Seconds are CPU seconds.
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

RUNS, SHORT, LONG = 5, 2.0, 20.0
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured:
    """Times of one run, or the message with which the library declined (`refused`)."""

    fit_seconds: float | None
    pairwise_seconds: float | None
    cold_fit_seconds: float | None
    cold_pairwise_seconds: float | None
    peak_bytes: int | None
    error: float | None  # relative Frobenius error against the float64 reference
    own_error: float | None  # the same against the reference of the library's own Fisher
    refused: str | None
    version: str
    torch: str
    sgemm: float  # operations a CPU second, in this process after the work
    blas: str  # whose sgemm that was


def measure(library: str, task: Task, *, pairwise: bool) -> Measured:
    trained = load(task.workload)
    module: ModuleType | None = None
    cold = warm = Taken(None, None, None, None)
    error, own_error, refused = None, None, None
    try:
        module = import_module(library)
        cold, warm = take(module, partial(ask, task, trained), pairwise=pairwise)
        if warm.scores is not None:
            error = _error(warm.scores, task, trained, task.fisher)
            own = getattr(module, "OWN_FISHER", "")
            own_error = _error(warm.scores, task, trained, own)
    except Exception as failure:
        traceback.print_exc()
        refused = f"{type(failure).__name__}: {failure}".splitlines()[0][:300]
    rate, blas = sgemm(task.workload)
    return Measured(
        warm.fit_seconds,
        warm.pairwise_seconds,
        cold.fit_seconds,
        cold.pairwise_seconds,
        cold.peak_bytes,
        error,
        own_error,
        refused,
        version(getattr(module, "DISTRIBUTION", library.rpartition(".")[2])),
        torch.__version__,
        rate,
        blas,
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


def take(
    library: ModuleType, fresh: Callable[[], Question], *, pairwise: bool
) -> tuple[Taken, Taken]:
    """(the first run, the quickest of those after it): up to RUNS, or SHORT seconds in all; the
    first again where it took LONG."""
    cold = _once(library, fresh(), pairwise=pairwise)
    if cold.seconds > LONG:
        return cold, cold
    runs: list[Taken] = []
    while len(runs) < RUNS and (not runs or sum(one.seconds for one in runs) < SHORT):
        runs.append(_once(library, fresh(), pairwise=pairwise))
    return cold, min(runs, key=lambda one: one.seconds)


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
