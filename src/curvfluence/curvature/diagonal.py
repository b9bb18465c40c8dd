"""The diagonal of the GGN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curvfluence.curvature.estimate.accumulate import Sums, accumulate
from curvfluence.curvature.fallback import Native
from curvfluence.curvature.fisher_rung import FisherRung, each_part
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.diagonal import DiagonalOperator
from curvfluence.curvature.places import LayerPart
from curvfluence.curvature.workload import Workload, row_operations
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Memo
from curvfluence.runtime.stage import Stage


@dataclass(frozen=True)
class Diagonal(FisherRung):
    """diag of GGN: (1/N) Σ_n Σ_c (Σ_t s aᵀ)² elementwise, one GEMM where no position is shared.
    Exact for every parameter."""

    by_layer: ClassVar[bool] = True
    native: ClassVar[Native] = Native(diagonal=True, limit=0)

    def rule(self, part: LayerPart) -> str:
        return "diagonal"

    def build_blocks(self, rows: FisherPass, values: FisherPass) -> tuple[Block, ...]:
        parts, fallback = self.parts(rows.problem), self.fallback(rows.problem)
        sums = accumulate(rows, each_part(parts, _add_squares, fallback))
        n = len(rows.problem.train)
        made = [
            self.block(part, DiagonalOperator(sums.pop(part.name).flatten() / n)) for part in parts
        ]
        return (*made, *fallback.blocks(sums, rows))

    def stages(self, work: Workload) -> list[Stage]:
        problem, fisher = work.problem, self.fisher_of(work.problem)
        columns = fisher.width(problem)
        update = each_part(self.parts(problem), _add_squares, self.fallback(problem))
        return [
            work.passed("pass over the data", columns),
            work.timed(
                "sums of squares",
                row_operations(problem, work.layout, columns),
                problem.parameters.count,
                fisher,
                lambda rows: update(rows, Sums()),
            ),
        ]


def _add_squares(part: LayerPart, rows: Rows, sums: Sums, memo: Memo) -> None:
    """Σ_n Σ_c row² elementwise, [o, i]."""
    sums.add_(part.name, part.factored(rows).squares(None, None, memo))
