"""Influence of single positions of training examples: tokens of a sequence, pixels of a map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Damping, Relative
from curvfluence.curvature.operators.operator import Against
from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError
from curvfluence.jacobian.columns import Columns
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients
from curvfluence.jacobian.passes import rows_in_chunks
from curvfluence.problem.data import Examples
from curvfluence.problem.losses import Loss
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import Batched
from curvfluence.runtime import precision
from curvfluence.score.best_damping import require_named
from curvfluence.score.fitted import fitted


@precision.full()
def token_influence(
    problem: Problem,
    rung: Rung | Curvature,
    *,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    strict: bool = False,
    examples: Sequence[int] | None = None,
) -> Tensor:
    """(1/N) g_qᵀ (C + diag(w) + λI)⁻¹ ∇(c_n ℓ_nt), [Q, N, T]: the share of target t of example n.

    Under `CausalLM` target t is the token at t + 1, and T − 1 of them are counted.

    ℓ_n = c_n Σ_t ℓ_nt, so they add up over t to `influence(...).values`: what leaving the loss of
    one position out would change, with its token still in the context. A position that does not
    count has 0, and so have those behind the last of a shorter example, where lengths differ. On
    the CPU. `examples` names some training examples, of which alone it is then, [Q, len, T]. Cost:
    T backward passes over them in place of one.

    Errors: `InputError` for a loss that is not `Positions`.
    """
    count = problem.loss.positions
    if count is None:
        raise InputError(
            f"token influence needs a loss over positions, Positions(...); seen {problem.loss}"
        )
    curvature = fitted(problem, rung, damping, strict=strict)
    chosen = require_named(curvature, damping, "BestOf chooses by whole examples", "tokens")
    layout, n = discover(problem), len(problem.train)
    g_q = query_gradients(problem, layout)
    x_q = curvature.solve_rows(g_q, chosen, against=Against(n * count))
    columns = Columns(_each_position, count, "training set")
    asked = problem.train if examples is None else _some(problem, examples)
    rows_of = rows_in_chunks(problem, layout, asked, columns)
    parts = [x_q.inner(g_nt).cpu() for _, g_nt in rows_of]
    longest = max(part.shape[2] for part in parts)
    return torch.cat([pad(part, (0, longest - part.shape[2])) for part in parts], dim=1) / n


def _some(problem: Problem, examples: Sequence[int]) -> Examples:
    rows = kinds.counts(examples, "examples")
    if not rows or max(rows) >= len(problem.train):
        raise InputError(
            f"examples are numbers of training examples, one or more of 0 to "
            f"{len(problem.train) - 1}; seen {rows}"
        )
    return problem.train.take(torch.tensor(rows, device=problem.device))


def _each_position(loss: Loss, output: Tensor, target: Batched) -> Tensor:
    """∂(c_n ℓ_nt)/∂f of every position by itself, [B, T K, T]."""
    _, f_rk, _ = loss.of_rows(output, target)
    g_btk = loss.gradient(output, target).view(len(output), -1, f_rk.shape[1])
    each = torch.diag_embed(g_btk.movedim(1, -1), dim1=1, dim2=3)  # [B, T, K, T]
    return each.flatten(1, 2)
