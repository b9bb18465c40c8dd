"""Small studies and scores, again and again: memory, files and processes as at the beginning."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import curvfluence as cf
from curvfluence.study import StudySpec, run_study
from tests.problems import make, mlp

WARM = 0.1  # of the time, before memory is first measured


def run(seconds: int, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    begun = time.monotonic()
    first: int | None = None
    files = children = 0
    k = 0
    while time.monotonic() - begun < seconds:
        _once(k)
        k += 1
        if first is None and time.monotonic() - begun > WARM * seconds:
            gc.collect()
            first, files, children = _rss(), _files(), _children()
    gc.collect()
    assert first is not None
    assert _files() <= files, "files are left open"
    assert _children() <= children, "processes are left behind"
    return {"soak_seconds": seconds, "soak_rounds": k, "soak_rss_growth_bytes": _rss() - first}


def _once(k: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        spec = StudySpec("wine", 4, models=1, orders=1, seed=k, bregman=False)
        run_study(spec, Path(name) / "x")
    problem = make(mlp(5, 4, 3), cf.CrossEntropy(), n=60, q=5)
    for rung in (cf.KFAC(), cf.EKFAC(), cf.GGN(), cf.Hessian()):
        cf.influence(problem, rung, damping=cf.Absolute(0.1)).certificate()


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _children() -> int:
    return sum(len(p.read_text().split()) for p in Path("/proc/self/task").glob("*/children"))


def _files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
