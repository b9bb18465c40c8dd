"""What a rung makes the stages of its forecast of: a problem's sizes and a machine's rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher import Fisher
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.problem import Problem
from curvfluence.runtime.stage import Stage


class Workload(Protocol):
    """The fit of one rung and scores of `queries` on one problem; `forecast` measures the rates.

    A stage is stated by its operations, by the `elements` (numbers of memory) that it holds at its
    peak, and by what sets its pace.
    """

    @property
    def problem(self) -> Problem: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def queries(self) -> int: ...

    def products(
        self, name: str, operations: float, elements: float, *, fresh: float = 0.0
    ) -> Stage:
        """Matrix products, into so many numbers of `fresh` memory."""
        ...

    def eigendecompositions(
        self, name: str, cubes: float, elements: float, *, exact: bool
    ) -> Stage:
        """Of matrices with Σ n³ = `cubes`; `exact` in float64 whatever the problem's dtype."""
        ...

    def cholesky(self, name: str, factor: float, solve: float, elements: float) -> Stage:
        """Factors of `factor` operations in `elements` numbers, and solves by them."""
        ...

    def passed(self, name: str, columns: int, passes: float = 1.0, *, cached: float = 0.0) -> Stage:
        """Passes over the training set with so many backward passes each."""
        ...

    def double_backward(self, name: str, vectors: float, products: Stage) -> Stage:
        """`products` with Hessian-vector products of so many vectors before them."""
        ...

    def timed(
        self,
        name: str,
        operations: float,
        elements: float,
        fisher: Fisher,
        run: Callable[[Rows], object],
    ) -> Stage:
        """`run` with the rows of all examples, timed on those of a few."""
        ...

    def cached(self, fisher: Fisher) -> float:
        """Numbers of rows that a pass leaves for the next."""
        ...

    def missing(self, fisher: Fisher) -> float:
        """The share of the examples that a further pass computes again."""
        ...


def row_operations(problem: Problem, layout: Layout, columns: int) -> float:
    """Of sums of products of rows: one GEMM where no position is shared, else the rows' own."""
    n = len(problem.train)
    total = 2.0 * n * columns * sum(problem.theta[name].numel() for name in layout.others)
    for layer in layout.layers:
        total += 2.0 * n * layer.width * (columns * layer.positions if layer.shared else 1)
    return total


def operations(problem: Problem) -> float:
    """Of a pass over the training set and the scores of all queries, about."""
    return row_operations(problem, discover(problem), 1) * (3 + len(problem.queries))
