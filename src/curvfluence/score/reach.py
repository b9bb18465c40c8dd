"""Predictions that are larger than what is measured can move."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import inf

import torch
from torch import Tensor

from curvfluence.problem.problem import Problem
from curvfluence.runtime import ranks

Seen = tuple[float, float, int, int]  # prediction, reach, query, example


@dataclass(eq=False)
class Reach:
    """How many predictions are larger than the largest value that any label would give a query's
    present outputs, and the worst of them: there the linear step went past where it holds.

    The queries' outputs are made once a prediction is larger than any such value at the least.
    """

    problem: Problem
    count: int = 0
    worst: Seen = (0.0, 0.0, 0, 0)

    @cached_property
    def least(self) -> float:
        """What the largest value is at least, whatever the outputs."""
        return self.problem.measurement.least_reach(self.problem.n_outputs)

    @cached_property
    def of_query(self) -> Tensor | None:
        """[Q], None where the measurement has no such value."""
        labels = self.problem.train.extremes
        if labels is None:
            return None
        queries = self.problem.each_output(self.problem.queries, "queries")
        measurement = self.problem.measurement
        found = [measurement.reach(output, part.targets, labels) for part, output in queries]
        known = [reach for reach in found if reach is not None]
        return torch.cat(known) if len(known) == len(found) else None

    def look(self, values_qn: Tensor, first: int, at: int) -> None:
        """At the predictions of queries from `first` on for examples from `at` on."""
        low, high = (float(end) for end in values_qn.aminmax())
        if max(-low, high) <= self.least or self.of_query is None:
            return
        reach_q1 = self.of_query[first : first + len(values_qn), None].to(values_qn)
        low_q, high_q = values_qn.aminmax(dim=1)
        if not bool((torch.maximum(-low_q, high_q) > reach_q1[:, 0]).any()):
            return
        sizes_qn = values_qn.abs()
        self.count += int((sizes_qn > reach_q1).sum())
        times_qn = torch.where(sizes_qn > 0, sizes_qn / reach_q1, 0.0)  # where no reach is 0 / 0
        q, n = divmod(int(times_qn.argmax()), values_qn.shape[1])
        seen = (float(values_qn[q, n]), float(reach_q1[q, 0]), first + q, at + n)
        self.worst = max(self.worst, seen, key=_excess)

    def gather(self) -> None:
        """What all processes found."""
        team = ranks.here()
        if team is None:
            return
        found = team.merged({team.rank: (self.count, self.worst)})
        self.count = sum(count for count, _ in found.values())
        self.worst = max((worst for _, worst in found.values()), key=_excess)

    def notes(self) -> tuple[str, ...]:
        """What a result must say."""
        if not self.count:
            return ()
        value, reach, query, example = self.worst
        measurement = self.problem.measurement
        return (
            f"{self.count:,} predictions are larger than the {measurement.name} can move: leaving "
            f"out example {example} is to change query {query} by {value:.3g} {measurement.unit}, "
            f"and {measurement.bound} is {reach:.3g}. The linear step is too long: use a larger "
            "damping",
        )


def _excess(seen: Seen) -> float:
    """How many times its reach a prediction is."""
    value, reach = abs(seen[0]), seen[1]
    if reach == 0:
        return inf if value else 0.0
    return value / reach
