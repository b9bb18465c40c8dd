"""The generalised Gauss-Newton matrix, dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from curvfluence.curvature.block_ggn import DENSE_LIMIT, require_dense
from curvfluence.curvature.curvature import Block, Curvature, Operator
from curvfluence.curvature.estimate.khatri_rao import PairSum
from curvfluence.curvature.inversion import ConjugateGradients, Form, Matrix, SampleSpace, cheapest
from curvfluence.curvature.layerwise import LayerPart, layer_blocks
from curvfluence.curvature.operators.dense import Dense
from curvfluence.curvature.operators.iterative import iterative
from curvfluence.curvature.operators.places import Whole
from curvfluence.curvature.operators.sample_space import SampleSpaceOperator, without_small
from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher import Type2
from curvfluence.jacobian.fisher_pass import FisherPass, loss_notes
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import concatenate
from curvfluence.jacobian.terms import Outer
from curvfluence.problem.problem import Problem


@dataclass(frozen=True)
class GGN(Rung):
    """(1/N) Σ_n J_nᵀ S_n S_nᵀ J_n over all parameters, exact expectation over labels.

    `form` says how it is held: `Matrix()`, `SampleSpace()`, `ConjugateGradients()`, by default the
    one with the fewest operations of those that fit half the memory. As a matrix: where unshared
    layers hold every parameter one Khatri-Rao GEMM a pair of layers, about N P² operations;
    otherwise the Gram of the rows, 2 C times that; 2 P² numbers. Errors: `InputError` for a matrix
    above 30,000 parameters.
    """

    form: Form | None = None

    def __post_init__(self) -> None:
        if self.form is not None and not isinstance(self.form, Form):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"form must be Matrix(), SampleSpace() or ConjugateGradients(); seen {self.form!r}"
            )

    def rank(self, problem: Problem) -> int | None:
        return len(problem.train) * problem.loss.columns(problem.n_outputs)

    def elements(self, problem: Problem) -> float:
        form = cheapest(problem) if self.form is None else self.form
        if isinstance(form, Matrix) and problem.parameters.count > DENSE_LIMIT:
            return 0.0  # refused by name
        return form.elements(problem, len(problem.queries))

    def build(self, problem: Problem) -> Curvature:
        form = cheapest(problem) if self.form is None else self.form
        operator, rule = self._operator(problem, form)
        every = Block("all", problem.parameters.names, Whole(problem.parameters), operator, rule)
        return Curvature(
            rung=self.name,
            parameters=problem.parameters,
            blocks=(every,),
            decay=problem.decay,
            fisher=Type2().name,
            notes=loss_notes(problem),
        )

    def _operator(self, problem: Problem, form: Form) -> tuple[Operator, str]:
        if isinstance(form, SampleSpace):
            return sample_space(problem, form)
        if isinstance(form, ConjugateGradients):
            return iterative(problem, "GGN", form)
        require_dense(self.name, problem.parameters.count, "the model")
        matrix, rule = ggn_matrix(problem)
        return Dense(matrix), rule


def sample_space(problem: Problem, form: SampleSpace) -> tuple[Operator, str]:
    """(the GGN by its rows, by which path)."""
    found = list(FisherPass(problem, Type2()))
    rows, gone, trace = without_small(concatenate(found), len(problem.train), form.drop)
    if gone == len(problem.train) and trace > 0:
        raise InputError(
            f"drop={form.drop:g} leaves out every example: the trace of the GGN is {trace:.3g}, of "
            "which drop should be a small part"
        )
    operator = SampleSpaceOperator(rows, len(problem.train), gone, trace)
    return operator, f"exact, in the space of {operator.count:,} samples"


def ggn_matrix(problem: Problem) -> tuple[Tensor, str]:
    """(GGN [P, P], by which path)."""
    layout = discover(problem)
    if layout.others or not layout.unshared:
        return _from_rows(problem, layout), "exact, from per-example Jacobians"
    return _from_pairs(problem, layout), "exact, from pairs of layers"


def _from_rows(problem: Problem, layout: Layout) -> Tensor:
    count = problem.parameters.count
    total = torch.zeros(count, count, dtype=problem.dtype, device=problem.device)
    for rows in FisherPass(problem, Type2()):
        step = max(1, 2**26 // (rows.dense.shape[1] * count))
        for start in range(0, len(rows), step):
            z = rows[start : start + step].to_dense().flatten(0, 1)
            total.addmm_(z.T, z)
    return total / len(problem.train)


def _from_pairs(problem: Problem, layout: Layout) -> Tensor:
    blocks = layer_blocks(problem.parameters, layout, joint_bias=True)
    sums = pair_sums(len(blocks))
    for rows in FisherPass(problem, Type2()):
        terms = [cast(Outer, block.term(rows)) for block in blocks]
        for (m, k), pair in sums.items():
            pair.add(terms[m].s.mT @ terms[k].s, terms[m].a, terms[k].a)
    return assemble(problem, blocks, sums)


def pair_sums(count: int) -> dict[tuple[int, int], PairSum]:
    """An empty sum for every pair (m, k) of layers with k <= m."""
    return {(m, k): PairSum(symmetric=m == k) for m in range(count) for k in range(m + 1)}


def assemble(
    problem: Problem, blocks: tuple[LayerPart, ...], sums: dict[tuple[int, int], PairSum]
) -> Tensor:
    """The matrix [P, P] whose block (m, k) is the mean of that pair's sum.

    Each corner of a pair's block, weight or bias by weight or bias, is one strided copy.
    """
    count, n = problem.parameters.count, len(problem.train)
    matrix = torch.empty(count, count, dtype=problem.dtype, device=problem.device)
    for m, k in list(sums):
        block_pqrs = sums.pop((m, k)).block()
        for rows, q in _corners(blocks[m]):
            for columns, s in _corners(blocks[k]):
                corner = block_pqrs[:, q, :, s].div(n)
                # the last axis of a vector's part is the first of its places' in the matrix
                columns(rows(matrix.T).movedim(0, -1)).copy_(corner)
                if m != k:
                    rows(columns(matrix.T).movedim(0, -1)).copy_(corner.permute(2, 3, 0, 1))
    return matrix


def _corners(block: LayerPart) -> list[tuple[Callable[[Tensor], Tensor], slice]]:
    """(its part of flat vectors [..., P] -> [..., o, i], inputs) of a layer's weight and bias."""
    layer, of = block.layer, block.of
    width = layer.in_features
    corners: list[tuple[Callable[[Tensor], Tensor], slice]] = [
        (lambda v: layer.weight_of(of, v), slice(0, width))
    ]
    if block.with_bias:
        corners.append((lambda v: layer.bias_of(of, v)[..., None], slice(width, width + 1)))
    return corners
