"""The generalised Gauss-Newton matrix, dense."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.base import Block, Curvature
from curvfluence.curvature.block_ggn import require_dense
from curvfluence.curvature.layerwise import LayerBlock, fisher_notes, fisher_rows, layer_blocks
from curvfluence.curvature.operators import Dense
from curvfluence.curvature.pairs import PairSum
from curvfluence.curvature.rung import Rung
from curvfluence.fisher import Type2
from curvfluence.gradients import Rows
from curvfluence.layers import Coverage, coverage
from curvfluence.problem import Problem


@dataclass(frozen=True)
class GGN(Rung):
    """(1/N) Σ_n J_nᵀ S_n S_nᵀ J_n over all parameters, exact expectation over labels.

    Where unshared Linear layers hold every parameter: one Khatri-Rao GEMM a pair of layers, about
    N P² operations. Otherwise the Gram of the rows, C times that. Memory: 2 P² numbers while
    fitting. Errors: `InputError` above 30,000 parameters.
    """

    def rank(self, problem: Problem) -> int | None:
        return len(problem.train) * problem.loss.columns(problem.n_outputs)

    def build(self, problem: Problem) -> Curvature:
        count = problem.parameters.count
        require_dense(self.name, count, "the model")
        matrix, rule = ggn_matrix(problem)
        every = Block("all", problem.parameters.names, torch.arange(count), Dense(matrix), rule)
        return Curvature(
            rung=self.name,
            parameters=problem.parameters,
            blocks=(every,),
            decay=problem.decay,
            fisher=Type2().name,
            notes=fisher_notes(problem, Type2()),
        )


def ggn_matrix(problem: Problem) -> tuple[Tensor, str]:
    """(GGN [P, P], by which path)."""
    covered = coverage(problem)
    if covered.others:
        return _from_rows(problem, covered), "exact, from per-example Jacobians"
    return _from_pairs(problem, covered), "exact, from pairs of layers"


def _from_rows(problem: Problem, covered: Coverage) -> Tensor:
    count = problem.parameters.count
    total = torch.zeros(count, count, dtype=problem.dtype, device=problem.device)
    for rows in fisher_rows(problem, covered, Type2()):
        n, c = rows.dense.shape[:2]
        step = max(1, 2**26 // (c * count))
        for start in range(0, n, step):
            z = _slice(rows, start, start + step).to_dense().flatten(0, 1)
            total.addmm_(z.T, z)
    return total / len(problem.train)


def _slice(rows: Rows, start: int, stop: int) -> Rows:
    return Rows(
        parameters=rows.parameters,
        layers=rows.layers,
        a=tuple(a[start:stop] for a in rows.a),
        s=tuple(s[start:stop] for s in rows.s),
        rest=rows.rest,
        dense=rows.dense[start:stop],
    )


def _from_pairs(problem: Problem, covered: Coverage) -> Tensor:
    blocks = layer_blocks(problem.parameters, covered, joint_bias=True)
    sums = pair_sums(len(blocks))
    for rows in fisher_rows(problem, covered, Type2()):
        grads = [block.grads(rows) for block in blocks]
        inputs = [block.inputs(rows) for block in blocks]
        for (m, k), pair in sums.items():
            pair.add(grads[m].transpose(1, 2) @ grads[k], inputs[m], inputs[k])
    return assemble(problem, blocks, sums)


def pair_sums(count: int) -> dict[tuple[int, int], PairSum]:
    """An empty sum for every pair (m, k) of layers with k <= m."""
    return {(m, k): PairSum(symmetric=m == k) for m in range(count) for k in range(m + 1)}


def assemble(
    problem: Problem, blocks: tuple[LayerBlock, ...], sums: dict[tuple[int, int], PairSum]
) -> Tensor:
    """The matrix [P, P] whose block (m, k) is the mean of that pair's sum.

    A layer's parameters lie in the flat vector as weight (row-major), then bias, so each corner of
    a pair's block is one strided copy.
    """
    count, n = problem.parameters.count, len(problem.train)
    matrix = torch.empty(count, count, dtype=problem.dtype, device=problem.device)
    for m, k in list(sums):
        block_pqrs = sums.pop((m, k)).block()
        for rows, q in _corners(problem, blocks[m]):
            for columns, s in _corners(problem, blocks[k]):
                corner = block_pqrs[:, q, :, s]
                shape = corner.shape
                target = matrix[rows, columns]
                target.unflatten(0, shape[:2]).unflatten(2, shape[2:]).copy_(corner / n)
                if m != k:
                    matrix[columns, rows].copy_(target.T)
    return matrix


def _corners(problem: Problem, block: LayerBlock) -> list[tuple[slice, slice]]:
    """(place in the flat vector, inputs) of a layer's weight and of its bias."""
    width = block.layer.in_features
    slices = problem.parameters.slices
    corners = [(slices[block.layer.weight], slice(0, width))]
    if block.with_bias and block.layer.bias is not None:
        corners.append((slices[block.layer.bias], slice(width, width + 1)))
    return corners
