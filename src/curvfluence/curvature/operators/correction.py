"""What a bias with a weight decay of its own adds to a Kronecker block."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvfluence.jacobian.terms import Outer, Term


@dataclass(frozen=True, eq=False)
class Correction:
    """diag(w) is then w₀ I + δ I ⊗ e eᵀ with e the bias input: diagonal in U_B and of rank one in
    U_A, with u = U_Aᵀ e. By Sherman and Morrison's formula the inverse loses, in each output
    direction o, gain_o scaled_o scaled_oᵀ with scaled_o = u / (Λ + w₀ + λ)_o and
    gain_o = δ / (1 + δ u·scaled_o). All in the eigenbasis."""

    unit_i: Tensor  # u
    scaled_oi: Tensor
    gain_o: Tensor

    def solved(self, x_koi: Tensor) -> Tensor:
        """The solutions, of r / (Λ + w₀ + λ)."""
        return x_koi - (self.gain_o * (x_koi @ self.unit_i))[..., None] * self.scaled_oi

    def pairs(self, queries: Outer, rows: Outer) -> Tensor:
        """What products of solved queries with rows lose, [Q, N, C]."""
        of_queries = queries.contracted(self.scaled_oi) * self.gain_o
        of_rows = (rows.a @ self.scaled_oi.T)[:, None] * rows.s
        return (of_queries @ of_rows.flatten(0, 1).T).unflatten(1, (rows.n, rows.c))

    def quadratic(self, rows: Term) -> Tensor:
        """What rᵀ (M + diag(w) + λI)⁻¹ r loses, [N]."""
        return rows.contracted(self.scaled_oi).square() @ self.gain_o
