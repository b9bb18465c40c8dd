"""Influence of single positions of training examples: tokens of a sequence, pixels of a map."""

from __future__ import annotations

import torch
from torch import Tensor

from curvfluence.curvature import Curvature, Rung
from curvfluence.curvature.damping import BestOf, Damping, Relative
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.passes import query_gradients, rows_in_chunks
from curvfluence.problem.losses import Loss, Positions
from curvfluence.problem.problem import Problem
from curvfluence.runtime import precision
from curvfluence.score.influence import fitted
from curvfluence.score.solved import solve_queries


@precision.full()
def token_influence(
    problem: Problem,
    rung: Rung | Curvature,
    *,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    strict: bool = False,
) -> Tensor:
    """(1/N) g_qᵀ (C + diag(w) + λI)⁻¹ ∇(c_n ℓ_nt), [Q, N, T]: the share of target t of example n.

    ℓ_n = c_n Σ_t ℓ_nt, so they add up over t to `influence(...).values`: what leaving the loss of
    one position out would change, with its token still in the context. A position that does not
    count has 0. On the CPU. Cost: T backward passes over the training set in place of one.

    Errors: `InputError` for a loss that is not `Positions`.
    """
    loss = problem.loss
    if not isinstance(loss, Positions):
        raise InputError(
            f"token influence needs a loss over positions, Positions(...); seen {loss}"
        )
    if isinstance(damping, BestOf):
        raise InputError("BestOf chooses by whole examples: name a damping for tokens")
    curvature = fitted(problem, rung, damping, strict=strict)
    layout = discover(problem)
    chosen = damping if curvature.fixed_damping is None else curvature.fixed_damping
    count = loss.count

    def columns(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
        g_btk = loss.gradient(output, target).view(len(output), count, -1)
        each = torch.diag_embed(g_btk.movedim(1, -1), dim1=1, dim2=3)  # [B, T, K, T]
        return each.flatten(1, 2)

    solved = solve_queries(
        curvature, query_gradients(problem, layout), chosen, examples=len(problem.train) * count
    )
    found = rows_in_chunks(
        problem, layout, problem.train, columns, what="training set", width=count
    )
    parts = [solved.values(rows).cpu() for _, rows in found]
    return torch.cat(parts, dim=1) / len(problem.train)
