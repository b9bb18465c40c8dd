"""EK-FAC: K-FAC's eigenbasis with the diagonal of the layer's GGN block in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curvfluence.curvature.estimate.factors import Expand, Sharing
from curvfluence.curvature.kfac import require_sharing
from curvfluence.curvature.kronecker_rung import CorrectedRung


@dataclass(frozen=True)
class EKFAC(CorrectedRung):
    """Λ_ij = (1/N) Σ_n Σ_c (Σ_t (U_Bᵀ s_t)_i (U_Aᵀ a_t)_j)², the diagonal of Uᵀ (GGN block) U.

    The best diagonal in that basis in Frobenius norm, so never further from the block than K-FAC
    (George et al. 2018). Where no position is shared a row is s ⊗ a, and Λ is
    (Σ_c (s U_B)²)ᵀ ((a U_A)²): no per-example matrix is formed. Where T positions are, an example's
    o × i matrix is formed for each column, a slice of examples at a time. Cost: K-FAC's, and
    N T (C o² + i²) + N C o i (T + 1, where shared) in a second pass over the data, which reads what
    the first one computed as far as that is at most `Problem.remember` bytes and computes the rest
    again. With the training labels the matrices so formed are the gradients in the eigenbasis, and
    are kept for scores in the place of a and s.
    """

    sharing: Sharing = Expand()  # noqa: RUF009 - a value without state

    kind: ClassVar[str] = "eigenvalue-corrected Kronecker"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sharing(self.sharing)

    @property
    def factors(self) -> Sharing:
        return self.sharing
