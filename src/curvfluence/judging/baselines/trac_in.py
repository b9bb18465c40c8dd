"""TracIn at the last checkpoint."""

from __future__ import annotations

from torch import Tensor

from curvfluence.curvature.identity import Identity
from curvfluence.problem.problem import Problem
from curvfluence.score.influence import influence


def trac_in(problem: Problem) -> Tensor:
    """g_qᵀ g_n / N at the problem's weights, [Q, N]: the rung `Identity`. No units.

    TracIn sums this over checkpoints of a training, times their learning rates; of retrainings none
    but the last is kept, so it is the last term of that sum.
    Cost: the gradients, and 2 Q N P operations. Source: Pruthi et al. 2020, section 3.3.
    """
    return influence(problem, Identity()).values
