"""U diag(Λ) Uᵀ with U = U_B ⊗ U_A, on a layer's weights as (out, in).

K-FAC has Λ = λ_B λ_Aᵀ, EK-FAC the diagonal of the layer's block in the same basis. With vec
row-major, (U_B ⊗ U_A) vec(V) = vec(U_B V U_Aᵀ).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Operator, require_positive
from curvfluence.errors import InputError
from curvfluence.jacobian.terms import Term


@dataclass(frozen=True, eq=False)
class KroneckerEigen(Operator):
    """Cost of a product or a solve: O(o² i + o i²) time a vector; memory o² + i² + o i."""

    out_basis: Tensor  # U_B, (o, o)
    in_basis: Tensor | None  # U_A, (i, i), a bias the last input; None is the identity (a lookup)
    values: Tensor  # Λ, (o, i)

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.values.numel()

    @property
    def nbytes(self) -> int:
        held = 0 if self.in_basis is None else self.in_basis.nbytes
        return self.out_basis.nbytes + held + self.values.nbytes

    def shares_basis(self, other: KroneckerEigen) -> bool:
        """Whether U is the same matrix in both."""
        a, b = self.in_basis, other.in_basis
        same = a is b if a is None or b is None else torch.equal(a, b)
        return same and torch.equal(self.out_basis, other.out_basis)

    def rotate(self, v: Tensor) -> Tensor:
        """Uᵀ v as [..., o, i]."""
        v_koi = v.reshape(*v.shape[:-1], *self.values.shape)
        rotated = self.out_basis.T @ v_koi
        return rotated if self.in_basis is None else rotated @ self.in_basis

    def rotate_back(self, v_koi: Tensor) -> Tensor:
        """U v as [..., n]."""
        back = self.out_basis @ v_koi
        return (back if self.in_basis is None else back @ self.in_basis.T).flatten(-2)

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.rotate_back(self.values * self.rotate(v))

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        """Exact, also where the bias (the last input) has another decay than the weight.

        diag(w) is then w₀ I + δ I ⊗ e eᵀ with e the bias input: diagonal in U_B and of rank one in
        U_A, so one Sherman-Morrison step for each of the o output directions.
        """
        return self.rotate_back(self.solve_rotated(self.rotate(v), decay, damping))

    def solve_rotated(self, r_koi: Tensor, decay: Tensor, damping: float) -> Tensor:
        """The same in the eigenbasis, [..., o, i]: Uᵀ (M + diag(w) + λI)⁻¹ U r."""
        denominator, correction = self._damped(decay, damping)
        x_koi = r_koi / denominator
        if correction is None:
            return x_koi
        u_i, scaled_oi, gain_o = correction
        return x_koi - (gain_o * (x_koi @ u_i))[..., None] * scaled_oi

    def quadratic(self, rotated: Term, decay: Tensor, damping: float) -> Tensor:
        """rᵀ (M + diag(w) + λI)⁻¹ r of single-column rows in the eigenbasis, [N]: N o i operations
        where no position is shared."""
        denominator, correction = self._damped(decay, damping)
        total = rotated.weighted_squares(1 / denominator)
        if correction is not None:
            _, scaled_oi, gain_o = correction
            total = total - rotated.contracted(scaled_oi).square() @ gain_o
        return total

    def rotated(self, term: Term) -> Term:
        """The rows of a term in the eigenbasis."""
        return term.rotated(self.out_basis, self.in_basis)

    def _damped(
        self, decay: Tensor, damping: float
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """(Λ + w₀ + λ [o, i], and where the bias has a decay of its own: u [i], u over that, and δ
        over the gain of each output direction [o])."""
        weight_decay, delta = self._split(decay)
        denominator = self.values + (weight_decay + damping)
        self._require_positive(denominator)
        if delta == 0:
            return denominator, None
        assert self.in_basis is not None, "a lookup has no bias"
        u_i = self.in_basis[-1]
        scaled_oi = u_i / denominator
        gain_o = 1 + delta * (u_i * scaled_oi).sum(-1)
        self._require_positive(gain_o)
        return denominator, (u_i, scaled_oi, delta / gain_o)

    def _require_positive(self, values: Tensor) -> None:
        # Inverted one by one, so nothing is lost to conditioning: an eigenvalue is uncertain by
        # the rounding of the factors, a few eps of the largest.
        eps = torch.finfo(values.dtype).eps
        smallest, largest = float(values.min()), float(values.max())
        require_positive(smallest, largest, n=10, eps=eps, what="the damped eigenvalues")

    def _split(self, decay: Tensor) -> tuple[float, float]:
        """w₀ and δ with decay = w₀ everywhere and w₀ + δ on the last input."""
        w_oi = decay.reshape(self.values.shape)
        first, last = w_oi[0, 0], w_oi[0, -1]
        if bool((w_oi[:, :-1] != first).any()) or bool((w_oi[:, -1] != last).any()):
            raise InputError(
                "a Kronecker block needs one weight decay for its weight and one for its bias; "
                f"seen values from {float(w_oi.min()):.3g} to {float(w_oi.max()):.3g}"
            )
        return float(first), float(last - first)

    def to_dense(self) -> Tensor:
        inner = self.in_basis
        if inner is None:
            inner = torch.eye(self.values.shape[1]).to(self.values)
        basis = torch.kron(self.out_basis.contiguous(), inner.contiguous())
        return (basis * self.values.flatten()) @ basis.T

    def eigenvalues(self) -> Tensor:
        return self.values.flatten()

    def mean_eigenvalue(self) -> float:
        return float(self.values.abs().mean())


@dataclass(frozen=True, eq=False)
class FactoredKronecker(KroneckerEigen):
    """K-FAC inverted with factored damping: (A + π√λ I) ⊗ (B + √λ/π I), Martens & Grosse 2015 §6.3.

    π² = (tr A / i) / (tr B / o), 1 where a factor is 0; λ here is damping + w, which must be
    uniform in the block.
    It is not the inverse of C + diag(w) + λI, but cheaper for rank-one vectors.
    """

    out_values: Tensor  # λ_B, (o,)
    in_values: Tensor  # λ_A, (i,)

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        weight_decay, delta = self._split(decay)
        if delta != 0:
            raise InputError(
                "factored damping needs the same weight decay for a layer's weight and bias: keep "
                "the bias in a block of its own (joint_bias=False), or use exact damping"
            )
        root = (weight_decay + damping) ** 0.5
        in_mean, out_mean = float(self.in_values.mean()), float(self.out_values.mean())
        pi = (in_mean / out_mean) ** 0.5 if in_mean > 0 and out_mean > 0 else 1.0
        out = self.out_values + root / pi
        inp = self.in_values + root * pi
        denominator = torch.outer(out, inp)
        self._require_positive(denominator)
        return self.rotate_back(self.rotate(v) / denominator)


def basis_of(factor: Tensor) -> tuple[Tensor, Tensor | None]:
    """(eigenvalues, eigenvectors) of a factor; of a lookup's, its diagonal and None."""
    return (factor, None) if factor.ndim == 1 else eigh(factor)


class InputBases:
    """`basis_of` layer after layer: one on the inputs of the layer before it has the same A, and is
    given the same eigenvectors."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, tuple[Tensor, Tensor | None]] | None = None

    def of(self, a_ii: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._last is None or not torch.equal(self._last[0], a_ii):
            self._last = a_ii, basis_of(a_ii)
        return self._last[1]


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigendecomposition of a symmetric matrix, in float64 whatever its dtype; the vectors are laid
    out row by row, with which products are faster."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.to(matrix.dtype), vectors.to(matrix.dtype).contiguous()
