"""The damping that a truth prefers."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from curvfluence.curvature import Curvature
from curvfluence.curvature.damping import BestOf, Damping
from curvfluence.errors import InputError
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.passes import gradient_rows
from curvfluence.problem.problem import Problem


def group_predictions(
    curvature: Curvature,
    queries_qp: Tensor,
    groups_mp: Tensor,
    dampings: tuple[Damping, ...],
    n: int,
) -> Tensor:
    """Predicted change of each query for each group of summed gradients, [D, Q, m].

    Σ_{n in group} I[q, n] by (C + W + λ)⁻¹ g_q against the group's summed gradient: nothing of size
    Q × N is formed, and operators share what they can between dampings.
    """
    return torch.stack(
        [solved @ groups_mp.T / n for solved in curvature.solve_many(queries_qp, dampings)]
    )


@dataclass(frozen=True)
class _Choice:
    damping: Damping
    validation: float
    held_out: float


def choose(
    curvature: Curvature, best: BestOf, queries_qp: Tensor, problem: Problem, layout: Layout
) -> tuple[Damping, str]:
    assert best.truth is not None
    n = len(problem.train)
    left_out = best.truth.left_out.to(queries_qp)
    groups = queries_qp.new_zeros(len(left_out), queries_qp.shape[1])
    for start, rows in gradient_rows(problem, layout):
        groups += rows.weighted_sum(left_out[:, start : start + len(rows)])
    predicted = group_predictions(curvature, queries_qp, groups, best.candidates, n)
    tried = [
        _Choice(damping, *best.truth.judge(row.T))
        for damping, row in zip(best.candidates, predicted, strict=True)
    ]
    if not all(isfinite(choice.validation) for choice in tried):
        raise InputError(f"the truth gave a score that is not finite: {tried}")
    won = max(tried, key=lambda choice: choice.validation)
    sizes = {id(c): sum(curvature.lambdas(c.damping)) for c in tried}
    edge = len(tried) > 1 and sizes[id(won)] in (min(sizes.values()), max(sizes.values()))
    note = (
        f"damping {won.damping} chosen among {len(tried)}: {won.validation:.3f} on validation "
        f"queries, {won.held_out:.3f} on held-out ones"
    )
    return won.damping, note + ("; the choice is on the edge of the candidates" if edge else "")
