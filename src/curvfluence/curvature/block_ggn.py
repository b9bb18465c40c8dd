"""The block-diagonal GGN: one dense block a layer."""

from __future__ import annotations

from dataclasses import dataclass

from curvfluence.curvature.base import Block
from curvfluence.curvature.layerwise import Remainder, fisher_rows, layer_blocks
from curvfluence.curvature.operators import Dense
from curvfluence.curvature.pairs import PairSum
from curvfluence.curvature.rung import FisherRung
from curvfluence.errors import InputError
from curvfluence.fisher import Fisher
from curvfluence.layers import coverage
from curvfluence.problem import Problem

DENSE_LIMIT = 30_000  # parameters above which a dense matrix is refused


@dataclass(frozen=True)
class BlockGGN(FisherRung):
    """The GGN with everything between two blocks set to 0 (weight and bias in one block).

    Cost: N P_l²/2 multiplications and P_l² numbers a block, a Cholesky factor a damping.
    Errors: `InputError` for a layer block of more than 30,000 parameters.
    """

    def build_blocks(self, problem: Problem, fisher: Fisher) -> tuple[Block, ...]:
        covered = coverage(problem)
        blocks = layer_blocks(problem.parameters, covered, joint_bias=self.joint_bias)
        for block in blocks:
            require_dense(self.name, block.index.numel(), f"block {block.name}")
        remainder = Remainder(problem, covered, joint=self.joint_bias, native_exact=True)
        sums = {block.name: PairSum(symmetric=True) for block in blocks}
        for rows in fisher_rows(problem, covered, fisher):
            for block in blocks:
                s_bco, a_bi = block.grads(rows), block.inputs(rows)
                sums[block.name].add(s_bco.transpose(1, 2) @ s_bco, a_bi, a_bi)
            remainder.add(rows)
        made: list[Block] = []
        for block in blocks:
            size = block.index.numel()
            matrix = sums[block.name].block().reshape(size, size) / len(problem.train)
            index = block.index.flatten()
            made.append(Block(block.name, block.parameters, index, Dense(matrix), "exact block"))
        return (*made, *remainder.blocks())


def require_dense(rung: str, size: int, what: str) -> None:
    """Refuse a dense matrix that no longer fits a desk."""
    if size > DENSE_LIMIT:
        raise InputError(
            f"{rung} would form a dense matrix for {what} of {size:,} parameters "
            f"({size * size * 4 / 2**30:.0f} GiB in float32); the limit is {DENSE_LIMIT:,}. "
            "EKFAC is the next cheaper rung"
        )
