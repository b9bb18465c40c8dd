"""The error of an inverse against the exact Hessian, as “Better Hessians Matter” measures it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Absolute
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.operator import Diagonalised
from curvfluence.errors import InputError, SingularError
from curvfluence.fidelity.spectra import diagonalised

THRESHOLD = 1e-4  # below which an eigenvalue is dropped from a pseudo-inverse, as in the paper


@dataclass(frozen=True, eq=False)
class Spectral:
    """A curvature C = U diag(μ) Uᵀ, block by block: functions of it applied to vectors [R, P]."""

    curvature: Curvature

    @cached_property
    def diagonal(self) -> Curvature:
        """The same matrix in its eigenbasis: decomposed once, for every threshold and damping."""
        return diagonalised(self.curvature)

    @cached_property
    def bases(self) -> tuple[tuple[Block, Diagonalised], ...]:
        """Each block with its eigenbasis."""
        return tuple((block, block.operator.eigenbasis()) for block in self.diagonal.blocks)

    @property
    def values(self) -> Tensor:
        """μ, [P], block by block."""
        return torch.cat([basis.eigenvalues() for _, basis in self.bases])

    def coordinates(self, v_rp: Tensor) -> Tensor:
        """Uᵀ v, [R, P], in the order of `values`."""
        parts = (basis.coordinates(block.places.take(v_rp)) for block, basis in self.bases)
        return torch.cat(list(parts), dim=1)

    def pseudo_inverse(self, v_rp: Tensor, threshold: float, *, signed: bool = False) -> Tensor:
        """C⁺ v with the eigenvalues |μ| ≤ τ (μ ≤ τ where `signed`) dropped; v itself for Identity,
        which stands for C = I.

        Errors: `InputError` where τ drops all of them.
        """
        if self.curvature.fixed_damping is not None:
            return v_rp
        threshold = kinds.number(threshold, "threshold")
        x_rp, kept = torch.zeros_like(v_rp), False
        for block, basis in self.bases:
            mu = basis.eigenvalues()
            keep = (mu if signed else mu.abs()) > threshold
            kept |= bool(keep.any())
            inverse = basis.with_eigenvalues(torch.where(keep, 1 / mu, 0.0))
            block.places.put(x_rp, inverse @ block.places.take(v_rp))
        if not kept:
            raise InputError(
                f"{self.curvature.rung}: the threshold {threshold:g} drops every eigenvalue; the "
                f"largest is {float(self.values.abs().max()):.3g}. Use a smaller one"
            )
        return x_rp

    def damped_inverse(self, v_rp: Tensor, damping: float) -> Tensor:
        """(C + λI)⁻¹ v as the rung inverts it (an indefinite C as treated); v for Identity."""
        if self.curvature.fixed_damping is not None:
            return v_rp
        return self.diagonal.solve(v_rp, Absolute(damping))

    def absolute(self, v_rp: Tensor) -> Tensor:
        """|C| v."""
        out_rp = torch.zeros_like(v_rp)
        for block, basis in self.bases:
            size = basis.with_eigenvalues(basis.eigenvalues().abs())
            block.places.put(out_rp, size @ block.places.take(v_rp))
        return out_rp


@dataclass(frozen=True, eq=False)
class InverseErrors:
    """Of one rung, for each of R vectors: of its pseudo-inverse [R], with the cut by size and by
    sign, and of its damped inverse [D, R], against |H| + λ and against H + λ (`plain`)."""

    cut: Tensor
    signed: Tensor
    damped: Tensor
    plain: Tensor


@dataclass(frozen=True, eq=False)
class Yardstick:
    """The exact Hessian H = U diag(μ) Uᵀ, with vectors [R, P] in its eigenbasis: what the inverse
    of every rung is held against.

    All errors are taken there, where H x is μ times the coordinates of x: one product with U for
    each inverse, 2 R P², serves the error against H and that against |H|.
    """

    exact: Spectral
    vectors: Tensor

    def __post_init__(self) -> None:
        _require_float64(self.vectors)

    @cached_property
    def _turned(self) -> Tensor:
        return self.exact.coordinates(self.vectors)

    def errors(
        self, approximate: Spectral, dampings: Sequence[float], *, threshold: float = THRESHOLD
    ) -> InverseErrors:
        """`inverse_errors` by both cuts, and `damped_errors` against both, at each damping. NaN
        where there is no inverse: the threshold drops every eigenvalue, or the damped curvature is
        singular."""
        v_rp, mu = self.vectors, self.exact.values
        cut = self._cut(approximate, threshold, signed=False)
        # where no eigenvalue lies below −τ, both cuts are one
        both = bool((approximate.values >= -threshold).all())
        signed = cut if both else self._cut(approximate, threshold, signed=True)
        damped: list[Tensor] = []
        plain: list[Tensor] = []
        for damping in dampings:
            try:
                x_rp = self.exact.coordinates(approximate.damped_inverse(v_rp, damping))
            except SingularError:
                x_rp = torch.full_like(v_rp, torch.nan)
            for found, top in ((damped, mu.abs()), (plain, mu)):
                found.append(_errors(x_rp * (top + damping), self._turned))
        return InverseErrors(cut, signed, torch.stack(damped), torch.stack(plain))

    def _cut(self, approximate: Spectral, threshold: float, *, signed: bool) -> Tensor:
        size = approximate.values if signed else approximate.values.abs()
        if approximate.curvature.fixed_damping is None and not bool((size > threshold).any()):
            return self.vectors.new_full((len(self.vectors),), torch.nan)
        x_rp = approximate.pseudo_inverse(self.vectors, threshold, signed=signed)
        return _errors(self.exact.coordinates(x_rp) * self.exact.values, self._turned)


def inverse_errors(
    exact: Spectral,
    approximate: Spectral,
    v_rp: Tensor,
    *,
    threshold: float = THRESHOLD,
    signed: bool = False,
) -> Tensor:
    """‖H Ĥ⁺ v − v‖²/‖v‖² of each vector, [R], with eigenvalues |μ̂| ≤ τ of Ĥ dropped (μ̂ ≤ τ where
    `signed`); 0 where Ĥ⁺ inverts H on v. A vector that is 0 has NaN: leave it out.

    It is no distance and not additive over a ladder: what Ĥ⁺ makes too large, H may shrink again.
    Cost: an eigendecomposition of each block of Ĥ and 2 R P² for H. Source: arXiv 2509.23437.
    """
    _require_float64(v_rp)
    x_rp = approximate.pseudo_inverse(v_rp, threshold, signed=signed)
    return _errors(exact.curvature.matvec(x_rp), v_rp)


def damped_errors(
    exact: Spectral, approximate: Spectral, v_rp: Tensor, damping: float, *, plain: bool = False
) -> Tensor:
    """‖(|H| + λ)(Ĥ + λ)⁻¹ v − v‖²/‖v‖² of each vector, [R]; with `plain` H in place of |H|.

    Cost: a solve and 2 R P². Errors: `SingularError` where Ĥ + λI has no inverse.
    """
    _require_float64(v_rp)
    x_rp = approximate.damped_inverse(v_rp, damping)
    turned = exact.curvature.matvec(x_rp) if plain else exact.absolute(x_rp)
    return _errors(turned + damping * x_rp, v_rp)


def _errors(found_rp: Tensor, v_rp: Tensor) -> Tensor:
    return (found_rp - v_rp).square().sum(1) / v_rp.square().sum(1)


def _require_float64(v_rp: Tensor) -> None:
    if v_rp.dtype != torch.float64:
        raise InputError(
            f"the error of an inverse is measured in float64: a pseudo-inverse multiplies rounding "
            f"by up to 1/τ; seen vectors of {v_rp.dtype}"
        )
