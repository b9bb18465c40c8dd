"""Gradients summed over groups of examples."""

from __future__ import annotations

from torch import Tensor

from curvfluence.curvature.estimate.accumulate import Sums, accumulate
from curvfluence.jacobian.gradients import gradient_rows
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.problem import Problem


def group_gradients(problem: Problem, layout: Layout, weights_mn: Tensor) -> Tensor:
    """Σ_n weights_mn g_n, [m, P]."""
    weights_mn = weights_mn.to(problem.decay)

    def add(numbered: tuple[int, Rows], sums: Sums) -> None:
        start, g_n = numbered
        sums.add_("g_m", g_n.weighted_sum(weights_mn[:, start : start + len(g_n)]))

    return accumulate(gradient_rows(problem, layout), add).pop("g_m")
