"""Predictions that are larger than what is measured can move."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvfluence.problem.problem import Problem


@dataclass(eq=False)
class Reach:
    """How many predictions are larger than the largest value that any label would give a query's
    present outputs, and the worst of them: there the linear step went past where it holds."""

    of_query: Tensor | None  # [Q], None where the measurement has no such value
    unit: str
    count: int = 0
    worst: tuple[float, float, int, int] = (0.0, 0.0, 0, 0)  # prediction, reach, query, example

    @staticmethod
    def of(problem: Problem) -> Reach:
        """By a forward pass over the queries."""
        outputs = problem.outputs(problem.queries, "queries")
        targets, labels = problem.queries.targets, problem.train.targets
        found = problem.measurement.reach(outputs, targets, labels)
        return Reach(found, problem.measurement.unit)

    def look(self, values_qn: Tensor, first: int, at: int) -> None:
        """At the predictions of queries from `first` on for examples from `at` on."""
        if self.of_query is None:
            return
        reach_q1 = self.of_query[first : first + len(values_qn), None].to(values_qn)
        sizes_qn = values_qn.abs()
        if not bool((sizes_qn.amax(1, keepdim=True) > reach_q1).any()):
            return
        self.count += int((sizes_qn > reach_q1).sum())
        q, n = divmod(int((sizes_qn / reach_q1).argmax()), values_qn.shape[1])
        seen = (float(values_qn[q, n]), float(reach_q1[q, 0]), first + q, at + n)
        self.worst = max(self.worst, seen, key=lambda s: abs(s[0]) / s[1] if s[1] else 0.0)

    def notes(self) -> tuple[str, ...]:
        """What a result must say."""
        if not self.count:
            return ()
        value, reach, query, example = self.worst
        return (
            f"{self.count:,} predictions are larger than what any label would give at the query's "
            f"outputs: leaving out example {example} is to change query {query} by {value:.3g} "
            f"{self.unit}, and its largest value is {reach:.3g}. The linear step is too long: "
            "use a larger damping",
        )
