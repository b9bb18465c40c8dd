"""The block-diagonal GGN: one dense block a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from curvfluence.curvature.dense_limit import DENSE_LIMIT, require_dense, too_large
from curvfluence.curvature.estimate.accumulate import Sums, accumulate
from curvfluence.curvature.estimate.khatri_rao import PairSum
from curvfluence.curvature.fallback import Native
from curvfluence.curvature.fisher_rung import FisherRung, each_part
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.dense import Dense
from curvfluence.curvature.places import LayerPart
from curvfluence.curvature.workload import Workload
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Memo, Outer
from curvfluence.problem.problem import Problem
from curvfluence.runtime.stage import Stage


@dataclass(frozen=True)
class BlockGGN(FisherRung):
    """The GGN with everything between two blocks set to 0 (weight and bias in one block).

    Cost: N P_l²/2 multiplications (N C P_l² where positions are shared) and P_l² numbers a block, a
    Cholesky factor a damping.
    Errors: `InputError` for a layer block of more than 30,000 parameters.
    """

    native: ClassVar[Native] = Native(exact=True)

    def rule(self, part: LayerPart) -> str:
        return "exact block"

    def rank(self, problem: Problem) -> int | None:
        return self.fisher_of(problem).rank(problem)

    def elements(self, problem: Problem) -> float:
        sizes = [float(part.size) for part in self.parts(problem) if not too_large(part.size)]
        return sum(size**2 for size in sizes) + max(sizes, default=0.0) ** 2

    def refusal(self, problem: Problem) -> str | None:
        for part in self.parts(problem):
            if too_large(part.size):
                return f"block {part.name} of {part.size:,} parameters is more than {DENSE_LIMIT:,}"
        return None

    def build_blocks(self, rows: FisherPass, values: FisherPass) -> tuple[Block, ...]:
        parts, fallback = self.parts(rows.problem), self.fallback(rows.problem)
        for part in parts:
            require_dense(self.name, part.size, f"block {part.name}")
        grams = {part.name: GramSum(part) for part in parts}

        def add(part: LayerPart, rows: Rows, sums: Sums, memo: Memo) -> None:
            grams[part.name].add(sums, rows)

        sums = accumulate(rows, each_part(parts, add, fallback))
        n, rank = len(rows.problem.train), rows.rank
        made = [self.block(part, Dense(grams[part.name].matrix(sums) / n, rank)) for part in parts]
        return (*made, *fallback.blocks(sums, rows))

    def stages(self, work: Workload) -> list[Stage]:
        n, c = len(work.problem.train), self.fisher_of(work.problem).width(work.problem)
        operations = factor = solve = held = 0.0
        for part in self.parts(work.problem):
            size = float(part.size)
            operations += n * size**2 * (2 * c if part.layer.shared else 0.5)
            factor += size**3 / 3
            solve += 2 * work.queries * size**2
            held += size**2
        for size in self.fallback(work.problem).exact_elements():
            operations += 2 * n * c * size**2
            held += size**2
        return [
            work.passed("pass over the data", c),
            work.products("Gram matrices", operations, 3.5 * held, fresh=4 * held),
            work.cholesky("Cholesky factors", factor, solve, held),
        ]


class GramSum:
    """Σ_n Σ_c row rowᵀ of one part, [o ĩ, o ĩ]: by pairs where rows are s ⊗ a, else by rows."""

    def __init__(self, part: LayerPart) -> None:
        self._part = part
        at = part.position, part.with_weight
        self._pair = PairSum((at, at), part.shape, part.shape)

    def add(self, sums: Sums, rows: Rows) -> None:
        term = self._part.factored(rows)
        if isinstance(term, Outer):
            self._pair.add_outer(sums, term, term)
            return
        size = self._part.size
        for piece in term.slices(size):
            z_rw = piece.dense().reshape(-1, size)
            sums.add_product_(self._part.name, z_rw.T, z_rw)

    def matrix(self, sums: Sums) -> Tensor:
        if self._part.name in sums:
            return sums.pop(self._part.name)
        block = self._pair.block(sums)
        return block.reshape(block.shape[0] * block.shape[1], -1)
