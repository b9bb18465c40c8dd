"""A few examples' rows, on which stages are timed that go with the number of examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from curvfluence.forecast.rates import Pass, line, probed, timed
from curvfluence.jacobian.fisher import Fisher
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.passes import rows_in_chunks
from curvfluence.jacobian.rows import Rows, concatenate
from curvfluence.problem.problem import Problem


@dataclass(frozen=True, eq=False)
class Sample:
    """The rows of the first examples, `few` of them and all."""

    rows: Rows
    few: int

    @staticmethod
    def of(problem: Problem, layout: Layout, fisher: Fisher, examples: int) -> Sample:
        """Of so many examples, or fewer where their rows are large."""
        most = min(examples, probed(problem, layout, fisher.width(problem)))
        columns = fisher.pulling(problem, fisher.columns(), "a probe")
        part = problem.train[:most]
        rows_of = rows_in_chunks(problem, layout, part, columns, alone=False)
        return Sample(concatenate([rows for _, rows in rows_of]), max(1, most // 4))

    def line(
        self, run: Callable[[Rows], object], prepare: Callable[[Rows], Rows] = lambda rows: rows
    ) -> Pass:
        """Seconds of `run` on prepared rows: what it takes to start, and for each example."""
        some, most = prepare(self.rows[: self.few]), prepare(self.rows)
        device = most.dense.device
        short, long = timed(device, lambda: run(some)), timed(device, lambda: run(most))
        return line(self.few, short, len(most.dense), long)
