"""K-FAC: B ⊗ A per layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from curvfluence.curvature.estimate.factors import Expand, Sharing
from curvfluence.curvature.kronecker_rung import KroneckerRung
from curvfluence.curvature.operators.kronecker import FactoredKronecker, Kronecker
from curvfluence.curvature.places import LayerPart
from curvfluence.errors import InputError


def require_sharing(sharing: object) -> None:
    if not isinstance(sharing, Sharing):
        raise InputError(f"sharing must be Expand() or Reduce(); seen {sharing!r}")


@dataclass(frozen=True)
class KFAC(KroneckerRung):
    """Per layer B ⊗ A with A = (1/N) Σ_n a aᵀ and B = (1/N) Σ_n Σ_c s sᵀ (Martens & Grosse 2015);
    over shared positions as `sharing` says, `Expand()` or `Reduce()`.

    Inverted exactly in the Kronecker eigenbasis, or with `factored_damping=True` by their π rule.
    Exact for one unshared datum, and for deep linear nets under MSE (Bernacchia et al. 2018).
    Cost: N T (i² + C o²) and two eigendecompositions a layer.
    """

    sharing: Sharing = Expand()  # noqa: RUF009 - a value without state
    factored_damping: bool = False

    kind: ClassVar[str] = "Kronecker"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sharing(self.sharing)
        if self.factored_damping and self.eigenvectors is not None:
            raise InputError(
                "factored damping is of all eigenvectors: leave eigenvectors=None, or use exact "
                "damping (factored_damping=False)"
            )

    @property
    def factors(self) -> Sharing:
        return self.sharing

    def operator(self, out: tuple[Tensor, Tensor], inp: tuple[Tensor, Tensor | None]) -> Kronecker:
        if not self.factored_damping:
            return super().operator(out, inp)
        (out_values, out_basis), (in_values, in_basis) = out, inp
        values = self.spectrum(out_values, in_values)
        return FactoredKronecker(out_basis, in_basis, values, out_values, in_values)

    def rule(self, part: LayerPart) -> str:
        rule = super().rule(part)
        return (
            rule.replace(self.kind, "Kronecker, factored damping")
            if self.factored_damping
            else rule
        )
