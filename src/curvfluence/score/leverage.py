"""The full Newton step of leaving one example out, by its leverage."""

from __future__ import annotations

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Damping
from curvfluence.errors import SingularError, counted_from
from curvfluence.jacobian.columns import Columns
from curvfluence.jacobian.fisher import Type2
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.passes import rows_in_chunks
from curvfluence.problem.data import require_finite
from curvfluence.problem.problem import Problem
from curvfluence.runtime import budget
from curvfluence.runtime.eigen_solver import eigvalsh


def newton_scores(
    problem: Problem,
    curvature: Curvature,
    layout: Layout,
    damping: Damping,
    solved_qp: Tensor,
) -> Tensor:
    """g_qᵀ (C + W + λ)⁻¹ J_nᵀ S_n (I − H_n)⁻¹ t_n, [Q, N]."""
    n, width = len(problem.train), problem.loss.columns(problem.n_outputs)
    chunk = max(1, budget.LEVERAGE // (problem.parameters.count * width))
    columns = Columns(width, "training set", Type2().columns())
    parts: list[Tensor] = []
    for start, rows in rows_in_chunks(problem, layout, problem.train, columns, chunk=chunk):
        part = problem.train.take(slice(start, start + len(rows)))
        with torch.no_grad(), counted_from(start):
            loss = problem.loss_of(part)
            t_bc = loss.coordinates(problem.forward(part.inputs), part.targets)
        require_finite(t_bc, "leverage coordinates of training set", start)
        z_bcp = rows.to_dense()
        h_bcc = z_bcp @ curvature.solve(z_bcp, damping).transpose(1, 2) / n
        kept = torch.eye(h_bcc.shape[1]).to(h_bcc) - h_bcc
        _require_below_one(kept, start)
        step_bc = torch.linalg.solve(kept, t_bc)
        parts.append((rows.inner(solved_qp) * step_bc).sum(-1))
    return torch.cat(parts, dim=1)


def _require_below_one(kept_bcc: Tensor, start: int) -> None:
    """I − H_n is positive definite for every example."""
    lowest_b = eigvalsh(kept_bcc)[:, 0]
    bad = (lowest_b <= 0).nonzero().flatten()
    if len(bad):
        raise SingularError(
            f"example {start + int(bad[0])} has a leverage of {1 - float(lowest_b[bad[0]]):.3g} "
            ">= 1: without it the quadratic model has no minimum. Use a larger damping"
        )
