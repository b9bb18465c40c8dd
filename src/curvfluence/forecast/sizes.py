"""A problem's sizes and a machine's rates, of which stages are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil

from curvfluence.forecast.rates import Rates
from curvfluence.forecast.sample import Sample
from curvfluence.jacobian.fisher import Fisher
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.passes import pass_examples
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.problem import Problem
from curvfluence.runtime import budget, paged
from curvfluence.runtime.stage import Stage


@dataclass(frozen=True)
class Sizes:
    """A `curvature.workload.Workload` with the rates of this machine."""

    problem: Problem
    layout: Layout
    rates: Rates
    queries: int
    samples: dict[Fisher, Sample] = field(default_factory=dict[Fisher, Sample])

    @property
    def n(self) -> int:
        return len(self.problem.train)

    @property
    def item(self) -> int:
        return self.problem.dtype.itemsize

    def cached(self, fisher: Fisher) -> float:
        return self.in_memory(self._remembered(fisher))

    def in_memory(self, numbers: float) -> float:
        """How many of so many numbers of rows are cached in no file."""
        room = self.problem.remember
        if paged.possible(self.problem.device):
            room = min(room, budget.CACHED)
        return min(numbers, room / self.item)

    def missing(self, fisher: Fisher) -> float:
        return 1 - self._remembered(fisher) / max(1, self._rows(fisher))

    def _remembered(self, fisher: Fisher) -> float:
        """Numbers of rows that are cached, in memory and in files."""
        return min(self._rows(fisher), self.problem.remember // self.item)

    def _rows(self, fisher: Fisher) -> float:
        """Numbers of all examples' rows."""
        return self.n * fisher.pulling(self.problem, fisher.columns(), "").elements(self.layout)

    def products(
        self, name: str, operations: float, elements: float, *, fresh: float = 0.0
    ) -> Stage:
        seconds = operations * self.rates.product + fresh * self.rates.fresh
        return Stage(name, operations, elements * self.item, seconds)

    def eigendecompositions(
        self, name: str, cubes: float, elements: float, *, exact: bool
    ) -> Stage:
        rate = self.rates.eigen if exact else self.rates.symmetric
        return Stage(name, 9 * cubes, elements * self.item, cubes * rate)

    def cholesky(self, name: str, factor: float, solve: float, elements: float) -> Stage:
        rates = self.rates
        seconds = factor * rates.cholesky + solve * rates.product + 3 * elements * rates.fresh
        return Stage(name, factor + solve, 3.5 * elements * self.item, seconds)

    def double_backward(self, name: str, vectors: float, products: Stage) -> Stage:
        each = self.rates.forward.each + 2 * self.rates.backward.each
        return replace(products, name=name, seconds=products.seconds + vectors * self.n * each)

    def passed(self, name: str, columns: int, passes: float = 1.0, *, cached: float = 0.0) -> Stage:
        chunks = self.chunks(columns)
        forward = self.rates.forward.seconds(self.n, chunks)
        seconds = forward + columns * self.rates.backward.seconds(self.n, chunks)
        used = sum(layer.multiplications for layer in self.layout.layers)
        operations = passes * self.n * 2 * used * (1 + columns)
        held = self.chunk(columns) + cached
        return Stage(name, operations, held * self.item, passes * seconds)

    def timed(
        self,
        name: str,
        operations: float,
        elements: float,
        fisher: Fisher,
        run: Callable[[Rows], object],
    ) -> Stage:
        columns = fisher.width(self.problem)
        seconds = self.sample(fisher).line(run).seconds(self.n, self.chunks(columns))
        return Stage(name, operations, elements * self.item, seconds)

    def sample(self, fisher: Fisher) -> Sample:
        """The rows of a few examples."""
        if fisher not in self.samples:
            self.samples[fisher] = Sample.of(self.problem, self.layout, fisher, self.rates.examples)
        return self.samples[fisher]

    def chunk(self, columns: int) -> float:
        """Numbers that a pass holds of one chunk: inputs and output gradients, and the graph;
        several columns are gathered and put together."""
        examples = min(self.n, self._examples(columns))
        return (2.0 if columns == 1 else 6.0) * examples * self.layout.elements(columns)

    def chunks(self, columns: int) -> int:
        """How many a pass takes."""
        return ceil(self.n / self._examples(columns))

    def _examples(self, columns: int) -> int:
        each = self.layout.elements(columns)
        return min(budget.EXAMPLES, pass_examples(self.problem.device, each))
