"""TKFAC: the Kronecker product of Shampoo's factors that has the block's trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curvfluence.curvature.estimate.factors import Grams
from curvfluence.curvature.kronecker_rung import KroneckerRung


@dataclass(frozen=True)
class TKFAC(KroneckerRung):
    """Per layer L ⊗ R / tr L with L = (1/N) Σ_n Σ_c G Gᵀ and R = (1/N) Σ_n Σ_c Gᵀ G, G the o × i
    matrix of a row, summed over shared positions; tr L = tr R is the block's trace.

    Exact where the block is a Kronecker product: the coefficient keeps its trace (Gao et al. 2020).
    It is one power iteration, from the identity, towards the nearest Kronecker product (Morwani et
    al. 2024). With the eigenvalues corrected it is `EShampoo`.
    Cost: as `Shampoo`.
    """

    kind: ClassVar[str] = "trace-restricted Kronecker"

    @property
    def factors(self) -> Grams:
        return Grams()

    def spectrum(self, out_values: Tensor, in_values: Tensor) -> Tensor:
        trace = out_values.sum()
        # Divided first: the product of two traces is beyond float32 where either is small or large.
        return torch.outer(out_values / torch.where(trace > 0, trace, 1.0), in_values)
