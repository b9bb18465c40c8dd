"""Influence of an example on itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Damping, Relative
from curvfluence.curvature.rung import Rung
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import gradient_batches, own_gradients
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.problem import Problem, require_problem
from curvfluence.runtime import journal, precision, ranks
from curvfluence.score.best_damping import require_named
from curvfluence.score.fitted import fitted
from curvfluence.score.influence import require_finite_scores
from curvfluence.score.matrix import ScoreMatrix


@precision.full()
def self_influence(
    problem: Problem,
    rung: Rung | Curvature,
    *,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    strict: bool = False,
) -> Tensor:
    """(1/N) g_nᵀ (C + diag(w) + λI)⁻¹ g_n, [N]: how much leaving n out would raise n's own loss;
    on the CPU.

    Where examples have weights, v_n of that: v_n ℓ_n is left out, and ℓ_n is what rises.

    Cost: a pass over the training set, and in a Kronecker eigenbasis N (o² + i² + o i) a layer
    where no position is shared; a solve for each example otherwise. Processes that work together
    share the examples out, but under an inverse by products with the data.
    """
    require_problem(problem)
    curvature = fitted(problem, rung, damping, strict=strict, solves=len(problem.train))
    chosen = require_named(curvature, damping, "BestOf chooses by queries", "self-influence")
    layout = discover(problem)
    # an inverse by products with the data is one that all processes make together
    gradients = own_gradients if curvature.tolerance is None else gradient_batches

    def from_example(first: int) -> Iterator[tuple[int, Tensor]]:
        for start, parts in gradients(problem, layout, first=first):
            scores_n = torch.cat([_of_rows(curvature, g_n, chosen) for g_n in parts])
            scores_n = scores_n / len(problem.train)
            require_finite_scores(scores_n[None], curvature.rung, 0, start)
            yield start, scores_n.cpu()

    with journal.scope(lambda: f"self-influence {chosen} {curvature.coverage}"):
        if curvature.tolerance is not None:
            return torch.cat([part for _, part in journal.in_pieces("parts", from_example)])
        with ScoreMatrix.of(1, len(problem.train), problem.dtype, None) as scores:
            with ranks.alike():
                for start, part in journal.in_pieces("parts", from_example):
                    scores.put(0, start, part[None])
            scores.gather()
    return scores.values[0]


def _of_rows(curvature: Curvature, g_n: Rows, damping: Damping) -> Tensor:
    """N times that of examples; over v_n where rows are weighted, which hold v twice."""
    scores_n = curvature.quadratic(g_n, damping)
    if g_n.weights is None:
        return scores_n
    v_n = g_n.weights.to(scores_n)
    return torch.where(v_n > 0, scores_n / v_n, 0.0)
