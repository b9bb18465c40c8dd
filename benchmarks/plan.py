"""The forecast beside what happened: seconds and peak memory of `cf.plan` on W1 to W7.

    python benchmarks/plan.py [--only W1 W3]

One thread, wall-clock seconds. A line is two processes: one plans; the other does the same about a
few examples first, so that imports are not timed and what was freed is given back, then the fit and
the scores of all queries. A ratio is forecast over real; beside it what the forecast
took, cold but for the probe of the model, which the job finds done, and its share of the real
seconds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from dataclasses import asdict

import torch
from memory import peak_of
from workloads import WORKLOADS, load

import curvfluence as cf
from curvfluence.jacobian.discovery import discover

RUNGS: dict[str, cf.Rung] = {
    "Diagonal": cf.Diagonal(),
    "KFAC": cf.KFAC(),
    "EKFAC": cf.EKFAC(),
    "EKFAC empirical": cf.EKFAC(cf.Empirical()),
    "KFAC empirical": cf.KFAC(cf.Empirical()),
    "BlockGGN": cf.BlockGGN(),
    "GGN": cf.GGN(),
    "Hessian": cf.Hessian(),
}
ASKED = {
    "W1": tuple(RUNGS),
    "W2": ("Diagonal", "KFAC", "EKFAC"),
    "W3": ("Diagonal", "KFAC", "EKFAC", "EKFAC empirical", "BlockGGN"),
    "W4": ("KFAC", "EKFAC empirical"),
    "W5": ("EKFAC empirical",),
    "W6": ("KFAC empirical", "EKFAC empirical"),
    "W7": ("EKFAC empirical",),
}


def problem_of(name: str, examples: int | None = None, queries: int = 100) -> cf.Problem:
    trained = load(name)
    data = trained.data
    positions = data.targets.ndim > 1
    loss = cf.CrossEntropy()
    return cf.Problem(
        trained.model(),
        cf.Positions(loss, reduction="sum") if positions else loss,
        (data.inputs[:examples], data.targets[:examples]),
        (data.query_inputs[:queries], data.query_targets[:queries]),
    )


def planned(name: str, title: str) -> dict[str, float]:
    problem = problem_of(name)
    discover(problem)
    start = time.perf_counter()
    found = cf.plan(problem, RUNGS[title])
    took = time.perf_counter() - start
    return {"seconds": found.seconds, "bytes": found.bytes, "took": took}


def real(name: str, title: str) -> dict[str, float]:
    rung, damping = RUNGS[title], cf.Absolute(max(1e-2, WORKLOADS[name].damping))

    def scored(problem: cf.Problem) -> None:
        cf.influence(problem, cf.fit(problem, rung), damping=damping)

    scored(problem_of(name, 32, 4))
    problem = problem_of(name)
    ctypes.CDLL(None).malloc_trim(0)
    return asdict(peak_of(lambda: scored(problem)))


STEPS = {"planned": planned, "real": real}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(ASKED))
    parser.add_argument("--one", nargs=3, metavar=("STEP", "WORKLOAD", "RUNG"), help="one process")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        step, *question = given.one
        print(json.dumps(STEPS[step](*question)))
        return
    print("| | seconds: forecast | real | ratio | to forecast | MiB: forecast | real | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.only:
        for title in ASKED[name]:
            forecast, found = (_process(step, name, title) for step in STEPS)
            mib = [f"{one['bytes'] / 2**20:.0f}" for one in (forecast, found)]
            took = f"{forecast['took']:.2g} ({forecast['took'] / found['seconds']:.0%})"
            print(
                f"| {name} {title} | {forecast['seconds']:.3g} | {found['seconds']:.3g} | "
                f"{forecast['seconds'] / found['seconds']:.2f} | "
                f"{took} | {mib[0]} | {mib[1]} | "
                f"{forecast['bytes'] / max(1, found['bytes']):.2f} |",
                flush=True,
            )


def _process(*question: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--one", *question], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
