"""What stands for the parameters that no layer rule covers."""

from __future__ import annotations

from dataclasses import dataclass

from curvfluence.curvature.coverage import CoverageLine
from curvfluence.curvature.estimate.accumulate import Sums
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.dense import Dense
from curvfluence.curvature.operators.diagonal import DiagonalOperator
from curvfluence.curvature.operators.operator import Operator
from curvfluence.curvature.places import Tensors, remaining_tensors
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.problem import Problem

EXACT_LIMIT = 2048  # parameters of a block up to which its exact block is the fallback


@dataclass(frozen=True)
class Native:
    """Which of the two forms is the rung's own definition; the other is a fallback. A block is
    exact up to `limit` parameters, its diagonal above."""

    exact: bool = False
    diagonal: bool = False
    limit: int = EXACT_LIMIT


@dataclass(frozen=True, eq=False)
class Fallback:
    """The blocks of parameters that no layer rule covers: by module, or by tensor."""

    problem: Problem
    layout: Layout
    groups: dict[str, Tensors]
    native: Native

    @staticmethod
    def of(problem: Problem, layout: Layout, native: Native, *, joint: bool) -> Fallback:
        groups = remaining_tensors(problem.parameters, layout, joint=joint)
        return Fallback(problem, layout, groups, native)

    def is_exact(self, places: Tensors) -> bool:
        return places.size <= self.native.limit

    def add(self, rows: Rows, sums: Sums) -> None:
        """Σ z zᵀ of each block, or Σ z² elementwise."""
        for name, places in self.groups.items():
            z_rn = places.dense(rows).flatten(0, 1)
            sums.add_(name, z_rn.T @ z_rn if self.is_exact(places) else z_rn.square().sum(0))

    def blocks(self, sums: Sums, rows: FisherPass) -> tuple[Block, ...]:
        """Of what the rows of a pass were added to."""
        made: list[Block] = []
        for line, places in zip(self.coverage(), self.groups.values(), strict=True):
            mean = sums.pop(line.block) / len(self.problem.train)
            operator: Operator = (
                Dense(mean, rows.rank) if mean.ndim == 2 else DiagonalOperator(mean)
            )
            made.append(
                Block(line.block, line.parameters, places, operator, line.rule, line.fallback)
            )
        return tuple(made)

    def coverage(self) -> tuple[CoverageLine, ...]:
        return tuple(self._line(name, places) for name, places in self.groups.items())

    def _line(self, name: str, places: Tensors) -> CoverageLine:
        exact = self.is_exact(places)
        rule = "exact block" if exact else "diagonal"
        fallback = not (self.native.exact if exact else self.native.diagonal)
        if fallback:
            rule = f"{rule} ({self.layout.others[places.names[0]]})"
        return CoverageLine(name, places.names, places.size, rule, fallback)

    def exact_elements(self) -> list[float]:
        """Parameters of each block that is kept exact."""
        return [float(p.size) for p in self.groups.values() if self.is_exact(p)]
