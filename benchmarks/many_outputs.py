"""Seconds of exact factors of K = 1,000 classes: `python benchmarks/many_outputs.py`.

EK-FAC with `Type2()` of 64–h–1000 under cross-entropy, by layer (the last layer's Hessian in closed
form, min(h, K − 1) columns below it) and by all K − 1 columns of S, in turn in each round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

import curvfluence as cf
from curvfluence.curvature.rung import fit
from curvfluence.jacobian.fisher import Type2ByLayer

CLASSES = 1000


def problem_of(width: int, examples: int) -> cf.Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, CLASSES))
    x, y = torch.randn(examples, 64), torch.randint(0, CLASSES, (examples,))
    return cf.Problem(model, cf.CrossEntropy(), (x, y), (x[:5], y[:5]))


@contextmanager
def all_columns() -> Iterator[None]:
    fits = Type2ByLayer.fits
    Type2ByLayer.fits = staticmethod(lambda problem: False)
    try:
        yield
    finally:
        Type2ByLayer.fits = fits


def seconds(width: int, examples: int) -> float:
    problem = problem_of(width, examples)  # anew, so that nothing is known of it
    start = time.perf_counter()
    fit(problem, cf.EKFAC(fisher=cf.Type2()))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--widths", default="32,128,512,1024")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"EK-FAC, type2, K = {CLASSES:,}, {asked.examples} examples, {asked.threads} thread(s)")
    for width in map(int, asked.widths.split(",")):
        rows: list[tuple[float, float]] = []
        for _ in range(asked.rounds):
            mine = seconds(width, asked.examples)
            with all_columns():
                rows.append((mine, seconds(width, asked.examples)))
        rows.sort(key=lambda row: row[1] / row[0])
        mine, whole = rows[len(rows) // 2]
        ratios = [b / a for a, b in rows]
        print(
            f"  h = {width:>5}: by layer {mine:6.2f} s, all columns {whole:6.2f} s, "
            f"{whole / mine:5.1f}× ({ratios[0]:.1f} to {ratios[-1]:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
