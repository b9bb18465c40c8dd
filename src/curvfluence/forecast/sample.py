"""A few examples' rows, on which stages are timed that go with the number of examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from curvfluence.fisher import Fisher
from curvfluence.forecast.rates import Pass, line, probed, timed
from curvfluence.gradients import rows_in_chunks
from curvfluence.layers import Coverage
from curvfluence.problem import Problem
from curvfluence.rows import Rows, concatenate


@dataclass(frozen=True, eq=False)
class Sample:
    """The rows of the first examples, `few` of them and all."""

    rows: Rows
    few: int

    @staticmethod
    def of(problem: Problem, covered: Coverage, fisher: Fisher) -> Sample:
        width = fisher.width(problem)
        few, most = probed(problem, covered, width)
        found = rows_in_chunks(
            problem, covered, problem.train[:most], fisher.columns(), what="a probe", width=width
        )
        return Sample(concatenate([rows for _, rows in found]), few)

    def line(
        self, run: Callable[[Rows], object], prepare: Callable[[Rows], Rows] = lambda rows: rows
    ) -> Pass:
        """Seconds of `run` on prepared rows: what it takes to start, and for each example."""
        some, most = prepare(self.rows[: self.few]), prepare(self.rows)
        device = most.dense.device
        short, long = timed(device, lambda: run(some)), timed(device, lambda: run(most))
        return line(self.few, short, len(most.dense), long)
