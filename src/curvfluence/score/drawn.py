"""Gradients of a few training examples, drawn the more likely the larger they are."""

from __future__ import annotations

import torch

from curvfluence.jacobian.gradients import query_gradients
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.measurement import LossMeasurement
from curvfluence.problem.problem import Problem

LOOKED_AT = 256  # examples, drawn at random
DRAWN = 48  # of these, by the size of their gradients: what scores are mostly made of


def drawn_gradients(problem: Problem, layout: Layout) -> Rows:
    """∇ℓ_n of up to 48 training examples, the same ones at every call; in no particular order."""
    generator = torch.Generator().manual_seed(0)
    n = len(problem.train)
    index = torch.randperm(n, generator=generator)[:LOOKED_AT].sort().values
    asked = problem.train.take(index.to(problem.device))
    rows = query_gradients(problem.about(asked, LossMeasurement(problem.loss)), layout)
    sizes = rows.squared_norms()[:, 0].double().sqrt().cpu()
    sizes += torch.finfo(torch.float64).tiny  # of size 0 are drawn last, and may be
    drawn = torch.multinomial(sizes, min(DRAWN, len(sizes)), generator=generator)
    return rows[drawn.to(problem.device)]
