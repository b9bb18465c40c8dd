"""The sizes that costs are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil

from curvfluence.forecast.plan import Stage
from curvfluence.forecast.rates import Rates
from curvfluence.forecast.sample import Sample
from curvfluence.jacobian.fisher import Empirical, Fisher
from curvfluence.jacobian.layers import Layer, Layout
from curvfluence.jacobian.passes import CHUNK, pass_examples
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.problem import Problem


@dataclass(frozen=True)
class Sizes:
    problem: Problem
    layout: Layout
    rates: Rates
    queries: int
    samples: dict[Fisher, Sample] = field(default_factory=dict[Fisher, Sample])

    @property
    def n(self) -> int:
        return len(self.problem.train)

    @property
    def p(self) -> int:
        return self.problem.parameters.count

    @property
    def item(self) -> int:
        return self.problem.dtype.itemsize

    @property
    def rest(self) -> int:
        return sum(self.problem.theta[name].numel() for name in self.layout.others)

    def gradients(self, fisher: Fisher) -> bool:
        """Whether a pass under this Fisher leaves the gradients that scores read."""
        return isinstance(fisher, Empirical) and self.problem.train.weights is None

    def kept(self, fisher: Fisher) -> float:
        """Numbers of rows that a pass keeps for the next."""
        every = self.n * self.layout.elements(fisher.width(self.problem))
        return min(every, self.problem.remember // self.item)

    def missing(self, fisher: Fisher) -> float:
        """The share of the examples that a further pass computes again."""
        every = self.n * self.layout.elements(fisher.width(self.problem))
        return 1 - self.kept(fisher) / max(1, every)

    def stage(self, name: str, operations: float, numbers: float, seconds: float = 0.0) -> Stage:
        return Stage(
            name, operations, numbers * self.item, seconds + operations * self.rates.product
        )

    def timed(
        self,
        name: str,
        operations: float,
        numbers: float,
        fisher: Fisher,
        run: Callable[[Rows], object],
        *,
        times: float = 1.0,
        prepare: Callable[[Rows], Rows] = lambda rows: rows,
    ) -> Stage:
        """A stage that does `run` with the rows of all examples, timed on those of a few."""
        if fisher not in self.samples:
            self.samples[fisher] = Sample.of(self.problem, self.layout, fisher)
        columns = fisher.width(self.problem)
        seconds = times * self.samples[fisher].line(run, prepare).seconds(
            self.n, self._chunks(columns)
        )
        return Stage(name, operations, numbers * self.item, seconds)

    def passed(self, name: str, columns: int, passes: float = 1.0, *, kept: float = 0.0) -> Stage:
        """Passes over the training set with `columns` backward passes each."""
        chunks = self._chunks(columns)
        forward = self.rates.forward.seconds(self.n, chunks)
        seconds = forward + columns * self.rates.backward.seconds(self.n, chunks)
        used = sum(work(layer) for layer in self.layout.layers)
        operations = passes * self.n * 2 * used * (1 + columns)
        held = self.chunk(columns) + kept
        return Stage(name, operations, held * self.item, passes * seconds)

    def chunk(self, columns: int) -> float:
        """Numbers that a pass holds of one chunk: inputs and output gradients, and the graph;
        several columns are gathered and put together."""
        examples = min(self.n, self._examples(columns))
        return (2.0 if columns == 1 else 6.0) * examples * self.layout.elements(columns)

    def _chunks(self, columns: int) -> int:
        return ceil(self.n / self._examples(columns))

    def _examples(self, columns: int) -> int:
        return min(CHUNK, pass_examples(self.problem.device, self.layout.elements(columns)))


def work(layer: Layer) -> int:
    return layer.positions * layer.out_features * (1 if layer.lookup else layer.in_features)
