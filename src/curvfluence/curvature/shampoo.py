"""Shampoo's preconditioner as a curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curvfluence.curvature.estimate.factors import Grams
from curvfluence.curvature.kronecker_rung import KroneckerRung


@dataclass(frozen=True)
class Shampoo(KroneckerRung):
    """Per layer L^½ ⊗ R^½ with L = (1/N) Σ_n Σ_c G Gᵀ (o × o) and R = (1/N) Σ_n Σ_c Gᵀ G (i × i),
    G the o × i matrix of a row, summed over shared positions.

    The matrix whose square root the optimiser inverts (Gupta, Koren & Singer 2018, algorithm 1,
    with means for its sums): L^¼ ⊗ R^¼ there is the square root of this. Exact for a single row
    where no position is shared. The block is at most r times it, r the largest rank of a G: from
    above, then, where no position is shared (their lemma 8; not with a lookup's diagonal R).
    Cost: N C (i² + o²), o i (o + i) a row where positions are shared, and two eigendecompositions a
    layer.
    """

    kind: ClassVar[str] = "Shampoo"

    @property
    def factors(self) -> Grams:
        return Grams()

    def spectrum(self, out_values: Tensor, in_values: Tensor) -> Tensor:
        """√(λ_L λ_R); what rounding left below 0 of a sum of squares has the root of 0."""
        return torch.outer(out_values.clamp_min(0).sqrt(), in_values.clamp_min(0).sqrt())
