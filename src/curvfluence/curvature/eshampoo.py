"""EShampoo: the eigenbasis of Shampoo's factors with the block's diagonal in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curvfluence.curvature.estimate.factors import Grams
from curvfluence.curvature.kronecker_rung import CorrectedRung


@dataclass(frozen=True)
class EShampoo(CorrectedRung):
    """Per layer U diag(Uᵀ (GGN block) U) Uᵀ with U = U_L ⊗ U_R, the eigenvectors of `Shampoo`'s L
    and R: the nearest in Frobenius norm of all matrices that are diagonal in that basis, and so at
    least as near as `Shampoo` and `TKFAC`.

    An eigenvalue-corrected TKFAC is the same matrix (Eschenhagen et al. 2025; SOAP, Vyas et al.
    2024, runs Adam in this basis). Cost: `Shampoo`'s, and the second pass of `EKFAC`.
    """

    kind: ClassVar[str] = "eigenvalue-corrected Shampoo"

    @property
    def factors(self) -> Grams:
        return Grams()
