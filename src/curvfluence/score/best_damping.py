"""Which damping scores are made at: the one named, or the one that a truth prefers."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import BestOf, Damping
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.problem import Problem
from curvfluence.score.group_gradients import group_gradients


def require_named(curvature: Curvature, damping: Damping, because: str, what: str) -> Damping:
    """The damping, or `InputError` for one that would have to be chosen first."""
    chosen = curvature.effective(damping)
    if isinstance(damping, BestOf):
        raise InputError(f"{because}: name a damping for {what}")
    return chosen


def resolved(
    problem: Problem, curvature: Curvature, damping: Damping, g_q: Rows
) -> tuple[Damping, tuple[str, ...]]:
    """(the damping that is used, what a result says of its choice)."""
    chosen = curvature.effective(damping)
    if not isinstance(chosen, BestOf):
        return chosen, ()
    best, note = _best(problem, curvature, chosen, g_q.to_dense()[:, 0])
    return best, (note,)


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
class _Candidate:
    damping: Damping
    validation: float
    held_out: float


def _best(
    problem: Problem, curvature: Curvature, best: BestOf, queries_qp: Tensor
) -> tuple[Damping, str]:
    assert best.truth is not None
    groups_mp = group_gradients(problem, discover(problem), best.truth.left_out)
    n = len(problem.train)
    predicted = group_predictions(curvature, queries_qp, groups_mp, best.candidates, n)
    tried = [
        _Candidate(damping, *best.truth.judge(row.T))
        for damping, row in zip(best.candidates, predicted, strict=True)
    ]
    if not all(isfinite(one.validation) for one in tried):
        raise InputError(f"the truth gave a score that is not finite: {tried}")
    won = max(tried, key=lambda one: one.validation)
    sizes = {id(one): sum(curvature.lambdas(one.damping)) for one in tried}
    edge = len(tried) > 1 and sizes[id(won)] in (min(sizes.values()), max(sizes.values()))
    note = (
        f"damping {won.damping} chosen among {len(tried)}: {won.validation:.3f} on validation "
        f"queries, {won.held_out:.3f} on held-out ones"
    )
    return won.damping, note + ("; the choice is on the edge of the candidates" if edge else "")
