"""The block-diagonal GGN: one dense block a layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvfluence.curvature.curvature import Block
from curvfluence.curvature.estimate.khatri_rao import PairSum
from curvfluence.curvature.layerwise import Remainder, layer_blocks
from curvfluence.curvature.operators.dense import Dense
from curvfluence.curvature.rung import FisherRung
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.terms import Factored, Outer
from curvfluence.problem.problem import Problem

DENSE_LIMIT = 30_000  # parameters above which a dense matrix is refused


@dataclass(frozen=True)
class BlockGGN(FisherRung):
    """The GGN with everything between two blocks set to 0 (weight and bias in one block).

    Cost: N P_l²/2 multiplications (N C P_l² where positions are shared) and P_l² numbers a block, a
    Cholesky factor a damping.
    Errors: `InputError` for a layer block of more than 30,000 parameters.
    """

    def elements(self, problem: Problem) -> float:
        blocks = layer_blocks(problem.parameters, discover(problem), joint_bias=self.joint_bias)
        sizes = [float(block.size) for block in blocks if block.size <= DENSE_LIMIT]
        return sum(size**2 for size in sizes) + max(sizes, default=0.0) ** 2

    def build_blocks(self, problem: Problem, rows: FisherPass) -> tuple[Block, ...]:
        layout = rows.layout
        blocks = layer_blocks(problem.parameters, layout, joint_bias=self.joint_bias)
        for block in blocks:
            require_dense(self.name, block.size, f"block {block.name}")
        remainder = Remainder(problem, layout, joint=self.joint_bias, native_exact=True)
        sums: dict[str, GramSum] = {}
        for chunk in rows:
            for block in blocks:
                sums.setdefault(block.name, GramSum()).add(block.factored(chunk))
            remainder.add(chunk)
        made: list[Block] = []
        for block in blocks:
            matrix = sums.pop(block.name).matrix() / len(problem.train)
            made.append(block.holding(Dense(matrix), "exact block"))
        return (*made, *remainder.blocks())


class GramSum:
    """Σ_n Σ_c row rowᵀ of one block, [o ĩ, o ĩ]: by pairs where rows are s ⊗ a, else by rows."""

    def __init__(self) -> None:
        self._pairs: PairSum | None = None
        self._total: Tensor | None = None

    def add(self, term: Factored) -> None:
        if isinstance(term, Outer):
            self._pairs = self._pairs or PairSum(symmetric=True)
            self._pairs.add(term.s.mT @ term.s, term.a, term.a)
            return
        size = term.shape[0] * term.shape[1]
        total = term.s.new_zeros(size, size) if self._total is None else self._total
        for part in term.slices(size):
            rows = part.dense().reshape(-1, size)
            total.addmm_(rows.T, rows)
        self._total = total

    def matrix(self) -> Tensor:
        if self._pairs is not None:
            block = self._pairs.block()
            return block.reshape(block.shape[0] * block.shape[1], -1)
        assert self._total is not None
        return self._total


def require_dense(rung: str, size: int, what: str) -> None:
    """Refuse a dense matrix that no longer fits a desk."""
    if size > DENSE_LIMIT:
        raise InputError(
            f"{rung} would form a dense matrix for {what} of {size:,} parameters "
            f"({size * size * 4 / 2**30:.0f} GiB in float32); the limit is {DENSE_LIMIT:,}. "
            "EKFAC is the next cheaper rung"
        )
