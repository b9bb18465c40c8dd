"""What a product with the exact GGN buys on a language model: residuals after each of them.

    python benchmarks/language_model.py [--workload W4] [--queries 2] [--damping 0.1]
        [--tolerance 0.01] [--most 250] [--plain | --rows R] [--last] [--threads 1]

Block conjugate gradients over all queries, preconditioned by EK-FAC, by nothing (`--plain`) or by
an exact inverse on R rows (`--rows`), with directions conjugate to all before them, or to the last
ones alone (`--last`): ‖(GGN + diag(w) + λ) x − g‖/‖g‖ of every query, after so many products and
CPU seconds. The last line is by a product of its own. EK-FAC's fit and scores stand above it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from workloads import WORKLOADS, load

import curvfluence as cf
from curvfluence.curvature.estimate.products import CurvatureProduct
from curvfluence.curvature.operators.block_conjugate_gradients import block_conjugate_gradients
from curvfluence.curvature.operators.sample_space import SampleSpaceOperator
from curvfluence.curvature.operators.selected_rows import of_largest
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients

HELD = 2**30  # numbers of directions: of 560 products with two queries of W4


def preconditioner(problem: cf.Problem, shift: Tensor, count: int) -> Callable[[Tensor], Tensor]:
    """An exact inverse on the largest of the few rows that are looked at of each sequence."""
    start = time.process_time()
    selection = of_largest(problem)(shift, count)
    held = SampleSpaceOperator(selection.rows, len(problem.train), rank=count)
    factor = held.factor(shift)
    print(f"{selection.said}: {time.process_time() - start:.0f} s", flush=True)
    return lambda residual: held.direct(residual, shift, factor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="W4")
    parser.add_argument("--queries", type=int, default=2)
    parser.add_argument("--damping", type=float, default=0.1)
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("--most", type=int, default=250)
    by = parser.add_mutually_exclusive_group()
    by.add_argument("--plain", action="store_true")
    by.add_argument("--rows", type=int)
    parser.add_argument("--last", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    trained = load(given.workload)
    data, q = trained.data, given.queries
    problem = cf.Problem(
        trained.model(),
        cf.Positions(cf.CrossEntropy(), reduction="sum"),
        (data.inputs, data.targets),
        (data.query_inputs[:q], data.query_targets[:q]),
    )
    at = cf.Absolute(given.damping)
    print(
        f"{trained.workload.title}; {problem.parameters.count:,} parameters, λ = {given.damping:g}"
    )
    start = time.process_time()
    curvature = cf.fit(problem, cf.EKFAC())
    cf.influence(problem, curvature, damping=at)
    print(f"EK-FAC, fit and scores: {time.process_time() - start:.1f} s", flush=True)
    product, shift = CurvatureProduct(problem), curvature.shift(at)
    g_qp = query_gradients(problem, discover(problem)).to_dense()[:, 0]
    sizes, made = g_qp.norm(dim=1), 0
    start = time.process_time()
    by_rows = None if given.rows is None else preconditioner(problem, shift, given.rows)

    def applied(x: Tensor) -> Tensor:
        nonlocal made
        made += 1
        return product(x).addcmul_(shift, x)

    def said(residual: Tensor) -> None:
        each = ", ".join(f"{r:.2g}" for r in (residual.norm(dim=1) / sizes).tolist())
        print(f"{made} products, {time.process_time() - start:.0f} s: {each}", flush=True)

    def precondition(residual: Tensor) -> Tensor:
        said(residual)
        if by_rows is not None:
            return by_rows(residual)
        return residual if given.plain else curvature.solve(residual, at)

    found = block_conjugate_gradients(
        applied,
        g_qp,
        precondition=precondition,
        enough_q=given.tolerance * sizes.double(),
        max_products=given.most,
        held=0 if given.last else HELD,
    )
    said(g_qp - applied(found.x))


if __name__ == "__main__":
    main()
