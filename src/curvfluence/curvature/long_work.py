"""Whether works are kept on the way: by what rungs cost, not by a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curvfluence.curvature.rung import Rung
from curvfluence.curvature.workload import operations
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher import Fisher
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.problem import Problem
from curvfluence.runtime import journal
from curvfluence.runtime.stage import Stage

CUBES = 10  # operations of a dense eigendecomposition, over P³


def takes_long(problem: Problem, rungs: Sequence[Rung], models: int = 1) -> bool:
    """Whether fits and scores of all these rungs, at so many models such as this one, take some
    ten seconds: what takes long of them is then kept. Whether it is decides which gradients a pass
    may read from memory, and so last bits: it must hang on operations alone."""
    counted = max(1, len(rungs)) * operations(problem)
    counted += sum(_decompositions(problem, rung) for rung in rungs)
    return models * counted >= journal.LONG


def _decompositions(problem: Problem, rung: Rung) -> float:
    """Operations of the decompositions that a rung states; of a hybrid, which states none, 0."""
    work = _Decompositions(problem, discover(problem), len(problem.queries))
    try:
        return sum(stage.operations for stage in rung.stages(work))
    except InputError:
        return 0.0


@dataclass(frozen=True)
class _Decompositions:
    """A `Workload` in which decompositions alone count: passes and products of rows go by
    `operations`."""

    problem: Problem
    layout: Layout
    queries: int

    def products(
        self, name: str, operations: float, elements: float, *, fresh: float = 0.0
    ) -> Stage:
        return _free(name)

    def eigendecompositions(
        self, name: str, cubes: float, elements: float, *, exact: bool
    ) -> Stage:
        return Stage(name, CUBES * cubes, 0.0, 0.0)

    def cholesky(self, name: str, factor: float, solve: float, elements: float) -> Stage:
        # n³/3; over a grid of dampings an eigendecomposition stands in its place
        return Stage(name, CUBES * 3 * factor, 0.0, 0.0)

    def passed(self, name: str, columns: int, passes: float = 1.0, *, cached: float = 0.0) -> Stage:
        return _free(name)

    def double_backward(self, name: str, vectors: float, products: Stage) -> Stage:
        return _free(name)

    def timed(
        self,
        name: str,
        operations: float,
        elements: float,
        fisher: Fisher,
        run: Callable[[Rows], object],
    ) -> Stage:
        return _free(name)

    def cached(self, fisher: Fisher) -> float:
        return 0.0

    def missing(self, fisher: Fisher) -> float:
        return 0.0


def _free(name: str) -> Stage:
    return Stage(name, 0.0, 0.0, 0.0)
