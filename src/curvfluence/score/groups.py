"""Influence of groups of examples."""

from __future__ import annotations

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Damping, Relative
from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients
from curvfluence.problem.problem import Problem, require_problem
from curvfluence.runtime import precision
from curvfluence.score.best_damping import resolved
from curvfluence.score.fitted import fitted
from curvfluence.score.group_gradients import group_gradients
from curvfluence.score.influence import require_finite_scores


@precision.full()
def group_influence(
    problem: Problem,
    rung: Rung | Curvature,
    groups: Tensor,
    *,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    strict: bool = False,
) -> Tensor:
    """Predicted change of each query when each group is left out, [Q, m]: Σ_{n in group} I[q, n];
    on the CPU.

    `groups` is a group's number for each training example [N], or weights [m, N] of how much of
    each example each group leaves out. Gradients are summed before the product, so nothing of size
    Q × N is formed: 2 (N + Q) m P operations.
    """
    require_problem(problem)
    weights_mn = _group_weights(kinds.tensor(groups, "groups"), len(problem.train))
    curvature = fitted(problem, rung, damping, strict=strict)
    layout = discover(problem)
    g_q = query_gradients(problem, layout)
    chosen, _ = resolved(problem, curvature, damping, g_q)
    g_mp = group_gradients(problem, layout, weights_mn)
    x_qp = curvature.solve(g_q.to_dense()[:, 0], chosen)
    scores_qm = x_qp @ g_mp.T / len(problem.train)
    require_finite_scores(scores_qm, curvature.rung, 0, 0)
    return scores_qm.cpu()


def _group_weights(groups: Tensor, n: int) -> Tensor:
    if groups.ndim == 2 and groups.shape[1] == n:
        if groups.is_floating_point() and not bool(groups.isfinite().all()):
            m = int((~groups.isfinite()).any(1).nonzero()[0])
            raise InputError(f"the weights of group {m} hold a NaN or infinity")
        return groups
    plain = not (groups.is_floating_point() or groups.dtype == torch.bool)
    if groups.ndim != 1 or len(groups) != n or not plain:
        raise InputError(
            f"groups are the number of each example's group, integers [{n}], or weights [m, {n}] "
            "(one row for a mask); "
            f"seen shape {tuple(groups.shape)} of {groups.dtype}"
        )
    if len(groups) and int(groups.min()) < 0:
        raise InputError(f"group numbers start at 0; seen {int(groups.min())}")
    return torch.nn.functional.one_hot(groups.long()).T
