"""Scores that know nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.problem.problem import Problem


def random_scores(problem: Problem, seed: int = 0) -> Tensor:
    """Independent standard normal numbers, [Q, N] in float64. No units. LDS 0 on average."""
    generator = torch.Generator().manual_seed(kinds.count(seed, "seed", least=0))
    shape = len(problem.queries), len(problem.train)
    return torch.randn(shape, generator=generator, dtype=torch.float64)
