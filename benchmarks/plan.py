"""The forecast beside what happened: seconds and peak memory of `cf.plan` on W1 to W4.

    python benchmarks/plan.py [--only W1 W3]

One thread, wall-clock seconds; each line is a fit and the scores of all queries, in a process of
its own. A ratio is forecast over real. Memory below about 32 MiB comes out of what the process
holds already.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch
from memory import peak_of
from workloads import load

import curvfluence as cf

RUNGS: dict[str, cf.Rung] = {
    "Diagonal": cf.Diagonal(),
    "KFAC": cf.KFAC(),
    "EKFAC": cf.EKFAC(),
    "EKFAC empirical": cf.EKFAC(cf.Empirical()),
    "BlockGGN": cf.BlockGGN(),
    "GGN": cf.GGN(),
    "Hessian": cf.Hessian(),
}
ASKED = {
    "W1": tuple(RUNGS),
    "W2": ("Diagonal", "KFAC", "EKFAC"),
    "W3": ("Diagonal", "KFAC", "EKFAC", "EKFAC empirical", "BlockGGN"),
    "W4": ("KFAC", "EKFAC empirical"),
}


def problem_of(name: str) -> cf.Problem:
    trained = load(name)
    data = trained.data
    q = min(100, len(data.query_inputs))
    positions = data.targets.ndim > 1
    loss = cf.CrossEntropy()
    return cf.Problem(
        trained.model(),
        cf.Positions(loss, reduction="sum") if positions else loss,
        (data.inputs, data.targets),
        (data.query_inputs[:q], data.query_targets[:q]),
    )


def one(name: str, title: str) -> dict[str, float | str]:
    """Plan, then do what was planned."""
    torch.set_num_threads(1)
    rung = RUNGS[title]
    problem = problem_of(name)
    planned = cf.plan(problem, rung)
    damping = cf.Absolute(1e-2)
    found = peak_of(lambda: cf.influence(problem, cf.fit(problem, rung), damping=damping))
    return {
        "workload": name,
        "rung": title,
        "planned_seconds": planned.seconds,
        "seconds": found.seconds,
        "ratio": planned.seconds / found.seconds,
        "planned_bytes": planned.bytes,
        "peak_bytes": found.bytes,
        "bytes_ratio": planned.bytes / max(1, found.bytes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(ASKED))
    parser.add_argument("--one", nargs=2, metavar=("WORKLOAD", "RUNG"), help="one line of JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(*given.one)))
        return
    print("| | seconds: forecast | real | ratio | MiB: forecast | real | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in given.only:
        for title in ASKED[name]:
            done = subprocess.run(
                [sys.executable, __file__, "--one", name, title],
                capture_output=True,
                text=True,
                check=True,
            )
            row = json.loads(done.stdout.splitlines()[-1])
            mib = [f"{row[key] / 2**20:.0f}" for key in ("planned_bytes", "peak_bytes")]
            print(
                f"| {name} {title} | {row['planned_seconds']:.3g} | {row['seconds']:.3g} | "
                f"{row['ratio']:.2f} | {mib[0]} | {mib[1]} | {row['bytes_ratio']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
