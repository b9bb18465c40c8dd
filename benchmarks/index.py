"""An index over a million made examples: the build, the first stage, and what it misses.

    python benchmarks/index.py

scikit-learn's digits, each many times over with its pixels shifted by noise of its own, and an
MLP 64-128-64-10 trained on a part of them. Beside the index: what one scoring pass over all of them
costs for as many queries as the index has columns, and for one query alone. Seconds are of one run
in one process; the first query is cold, others are the median of twenty.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from merged import merged
from torch import nn

import curvfluence as cf


def made(examples: int, queries: int) -> cf.Problem:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    bunch = load_digits()
    pixels = torch.from_numpy(bunch.data).float() / 16
    labels = torch.from_numpy(bunch.target)
    at = torch.randint(len(pixels), (examples + queries,))
    x = (pixels[at] + 0.15 * torch.randn(len(at), 64)).clamp_(0, 1)
    y = labels[at]
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    few = min(examples, 50_000)
    for _ in range(8):
        for part in torch.randperm(few).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    train, asked = (x[:examples], y[:examples]), (x[examples:], y[examples:])
    return cf.Problem(model, cf.CrossEntropy(), train, asked, weight_decay=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--float16", action="store_true")
    parser.add_argument("--rung", default="EKFAC")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    problem = made(asked.examples, 256)
    count = problem.parameters.count
    print(f"{asked.examples:,} examples, {count:,} parameters, {asked.threads} threads")
    rung = {"EKFAC": cf.EKFAC, "KFAC": cf.KFAC}[asked.rung]()
    curvature, fit = timed(lambda: cf.fit(problem, rung))
    print(f"fit {fit:.1f} s", flush=True)
    with tempfile.TemporaryDirectory() as name:
        dtype = torch.float16 if asked.float16 else torch.float32
        index, build = timed(
            lambda: cf.index(
                problem, curvature, out=Path(name) / "i", dimension=asked.dimension, dtype=dtype
            )
        )
        size = sum(one.phi.bytes for one in index.record.shards)
        print(f"index {build:.1f} s, {size / 2**20:,.0f} MiB of {dtype}", flush=True)
        recall = index.record.recall
        print(recall)
        print("errors by dimension:", ", ".join(f"{d}: {e:.3f}" for d, e in index.record.errors))
        sampled = 0 if recall is None else recall.queries
        columns = index.record.dimension + sampled  # which an index scores as queries
        several = problem.asking([k % len(problem.queries) for k in range(columns)])
        scores, scoring = timed(lambda: cf.influence(several, curvature).values)
        print(f"a scoring pass of {columns} queries {scoring:.1f} s", flush=True)
        del scores
        alone = [timed(lambda k=k: cf.influence(problem.asking([k]), curvature))[1] for k in (0, 1)]
        print(f"a scoring pass of one query {alone[1]:.2f} s, cold {alone[0]:.2f}", flush=True)
        print("cold: ", said(index.query([0]).took))
        warm = [index.query([k]).took for k in range(1, 21)]
        stages = {
            part: median(getattr(one, part) for one in warm)
            for part in ("encoding", "searching", "scoring")
        }
        print("warm: ", ", ".join(f"{part} {1e3 * s:.1f} ms" for part, s in stages.items()))
        print("64 queries at once: ", said(index.query(list(range(64))).took))
        if asked.out is not None and recall is not None:
            merged(
                asked.out,
                {
                    "index_examples": asked.examples,
                    "index_dimension": index.record.dimension,
                    "index_build_seconds": round(build, 1),
                    "index_scoring_pass_seconds": round(scoring, 1),
                    "index_bytes": size,
                    "index_first_stage_ms": round(
                        1e3 * (stages["encoding"] + stages["searching"]), 1
                    ),
                    "index_second_stage_ms": round(1e3 * stages["scoring"], 1),
                    "index_one_query_against_all_ms": round(1e3 * alone[1]),
                    "index_recall": [round(recall.helpful, 3), round(recall.harmful, 3)],
                },
            )


def said(took: object) -> str:
    names = ("encoding", "searching", "scoring")
    return ", ".join(f"{name} {1e3 * getattr(took, name):.1f} ms" for name in names)


def timed(work):
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


if __name__ == "__main__":
    main()
