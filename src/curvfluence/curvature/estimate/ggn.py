"""The GGN over all parameters as a matrix: by pairs of layers, or from per-example Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from curvfluence.curvature.estimate.accumulate import Sums, accumulate
from curvfluence.curvature.estimate.khatri_rao import PairSum, pair_sums
from curvfluence.curvature.places import LayerPart, layer_parts
from curvfluence.jacobian.fisher import Type2
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Outer
from curvfluence.problem.problem import Problem
from curvfluence.runtime import budget


def by_pairs(layout: Layout) -> bool:
    """Whether unshared layers hold every parameter, so that sums over columns can come first."""
    return layout.unshared and not layout.others


def ggn_matrix(problem: Problem) -> tuple[Tensor, str]:
    """(GGN [P, P], by which path)."""
    rows = FisherPass(problem, Type2())
    if by_pairs(rows.layout):
        return _from_pairs(problem, rows), "exact, from pairs of layers"
    return _from_rows(problem, rows), "exact, from per-example Jacobians"


def _from_rows(problem: Problem, rows: FisherPass) -> Tensor:
    """Zᵀ Z / N."""
    count = problem.parameters.count

    def add_gram(chunk: Rows, sums: Sums) -> None:
        step = max(1, budget.GRAM // (chunk.dense.shape[1] * count))
        for start in range(0, len(chunk), step):
            z_rp = chunk[start : start + step].to_dense().flatten(0, 1)
            sums.add_product_("GGN", z_rp.T, z_rp)

    return accumulate(rows, add_gram).pop("GGN").div_(len(problem.train))


def _from_pairs(problem: Problem, rows: FisherPass) -> Tensor:
    """Σ_n (Σ_c s^m s^lᵀ) ⊗ (a^m a^lᵀ) / N for each pair of layers."""
    parts = layer_parts(problem.parameters, rows.layout, joint_bias=True)
    pairs = pair_sums([part.shape for part in parts])

    def add_pairs(chunk: Rows, sums: Sums) -> None:
        terms = [cast(Outer, part.term(chunk)) for part in parts]
        for (m, k), pair in pairs.items():
            pair.add_outer(sums, terms[m], terms[k])

    return assemble(problem, parts, pairs, accumulate(rows, add_pairs))


def assemble(
    problem: Problem,
    parts: tuple[LayerPart, ...],
    pairs: dict[tuple[int, int], PairSum],
    sums: Sums,
) -> Tensor:
    """The matrix [P, P] whose block (m, k) is the mean of that pair's sum.

    Each corner of a pair's block, weight or bias by weight or bias, is one strided copy.
    """
    count, n = problem.parameters.count, len(problem.train)
    matrix = torch.empty(count, count, dtype=problem.dtype, device=problem.device)
    for (m, k), pair in pairs.items():
        block_pqrs = pair.block(sums)
        for rows, q in _corners(parts[m]):
            for columns, s in _corners(parts[k]):
                corner = block_pqrs[:, q, :, s].div(n)
                # the last axis of a vector's part is the first of its places' in the matrix
                columns(rows(matrix.T).movedim(0, -1)).copy_(corner)
                if m != k:
                    rows(columns(matrix.T).movedim(0, -1)).copy_(corner.permute(2, 3, 0, 1))
    return matrix


def _corners(part: LayerPart) -> list[tuple[Callable[[Tensor], Tensor], slice]]:
    """(its part of flat vectors [..., P] -> [..., o, i], inputs) of a layer's weight and bias."""
    layer, of = part.layer, part.of
    width = layer.in_features
    corners: list[tuple[Callable[[Tensor], Tensor], slice]] = [
        (lambda v: layer.weight_of(of, v), slice(0, width))
    ]
    if part.with_bias:
        corners.append((lambda v: layer.bias_of(of, v)[..., None], slice(width, width + 1)))
    return corners
