"""Damped eigenvalues to divide by, and what rounding of them does to a solution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.operators.definite import require_positive
from curvfluence.errors import SingularError
from curvfluence.jacobian.terms import Outer

ROUNDED = 0.1  # of a solution, that the rounding of eigenvalues may move


@dataclass(frozen=True, eq=False)
class Denominator:
    """Λ + w + λ > 0, and the relative error of each where one of them may matter, else None.

    Eigenvalues of a symmetric matrix come with an error of eps of the largest, and so does what a
    rotation leaves in their coordinates; of a lookup, whose A is diagonal, of the largest of their
    own input. A small one is no fault by itself: what counts is how much of a solution it moves.
    """

    values: Tensor
    error: Tensor | None

    @staticmethod
    def of(values: Tensor, *, by_input: bool = False) -> Denominator:
        """Of [n], or of [o, i] where `by_input` says that inputs are apart. Errors: `SingularError`
        where one is not positive."""
        largest = values.amax(0) if by_input else values.max()
        smallest = values.amin(0) if by_input else values.min()
        lowest, top = float(smallest.min()), float(largest.max())
        require_positive(lowest, top, n=0, eps=0.0, what="the damped eigenvalues")
        eps = torch.finfo(values.dtype).eps
        if bool((smallest * ROUNDED > eps * largest).all()):
            return Denominator(values, None)
        return Denominator(values, eps * largest / values)

    def require_trusted(self, x: Tensor) -> None:
        """Refuse solutions in these coordinates, [..., n] or [..., o, i], that rounding moves by
        more than `ROUNDED` of themselves."""
        if self.error is None:
            return
        axes = self.values.ndim
        size = x.flatten(-axes).double().norm(dim=-1)
        moved = (x * self.error).flatten(-axes).double().norm(dim=-1)
        self.require_small(torch.where(size > 0, moved / size, 0.0))

    def require_trusted_rows(self, rotated: Outer) -> None:
        """The same of rows s ⊗ a in the eigenbasis, whose solutions are not formed."""
        if self.error is None:
            return
        exact, values = rotated.to(torch.float64), self.values.double()
        size = exact.weighted_squares(1 / values.square())
        moved = exact.weighted_squares((self.error.double() / values).square())
        self.require_small(torch.where(size > 0, (moved / size).sqrt(), 0.0))

    def require_small(self, share: Tensor) -> None:
        """Refuse shares of solutions, moved by rounding, above `ROUNDED`."""
        worst = float(share.max()) if share.numel() else 0.0
        if not worst <= ROUNDED:  # also where it is NaN
            dtype = str(self.values.dtype).removeprefix("torch.")
            raise SingularError(
                f"the damped eigenvalues cannot be inverted in {dtype}: they go from "
                f"{float(self.values.min()):.3g} to {float(self.values.max()):.3g}, and rounding "
                f"moves a solution by about {worst:.0%} of itself. Use a larger damping, or float64"
            )
