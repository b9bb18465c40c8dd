"""The Hessian by its products, solved behind an exact inverse on the largest rows of the GGN."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from curvfluence.curvature.estimate.products import CurvatureProduct
from curvfluence.curvature.operators.block_conjugate_gradients import (
    BlockIteration,
    block_conjugate_gradients,
)
from curvfluence.curvature.operators.minimal_residual import minimal_residual
from curvfluence.curvature.operators.negative_pairs import NegativePairs, negative_pairs
from curvfluence.curvature.operators.selected_rows import SelectedRowsOperator
from curvfluence.errors import CurvfluenceError, InputError

SPARED = 1e-2  # of λ: negative eigenvalues above −SPARED λ are inverted as 1/(μ + λ)
MOST_NEGATIVE = 256  # that are turned over one by one


@dataclass(frozen=True, eq=False)
class SelectedRowsHessian(SelectedRowsOperator):
    """H by exact products; P = Z_MᵀZ_M/N + D, the GGN's on its largest rows, as a preconditioner.

    With `turned` it inverts |H + diag(w)| + λ = H + diag(w) + λ + 2 Σ |μ| v vᵀ, the sum over all
    eigenpairs with μ < −λ/100, by block conjugate gradients; eigenvalues between that and 0 are
    inverted as 1/(μ + λ), which changes their part by 2% at most. Without, H + diag(w) + λ as it
    is, by MINRES. P is positive definite either way, but no bound of H: nothing is proven by it.
    """

    definite: ClassVar[bool] = False

    # H in float64, for pairs: where they are turned over
    exact: CurvatureProduct | None = field(default=None, kw_only=True)
    turned: bool = field(default=False, kw_only=True)
    _negative: list[tuple[Tensor, float, NegativePairs]] = field(
        default_factory=list["tuple[Tensor, float, NegativePairs]"], init=False, repr=False
    )

    @property
    def iteration(self) -> BlockIteration:
        """Turned over it is definite."""
        return block_conjugate_gradients if self.turned else minimal_residual

    def _select(self, shift: Tensor, count: int) -> None:
        loss = self.product.problem.loss
        try:
            super()._select(shift, count)
        except CurvfluenceError as error:
            if loss.convex or loss.clip_negative:
                raise
            raise InputError(
                f"{error}; with clip_negative=True it is the rows before the iteration that are "
                "clipped, and not H. Or use Hessian() as a matrix"
            ) from error

    def within(self, tolerance: float) -> SelectedRowsHessian:
        other = super().within(tolerance)
        assert isinstance(other, SelectedRowsHessian)
        other._negative.extend(self._negative)
        return other

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        if self.turned and bool((decay + damping > 0).all()):
            self._find(decay, damping)
        return super().solve(v, decay, damping)

    def inverted(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        if self.turned:
            self._find(decay, damping)
        return self._damped(v.reshape(-1, self.size), decay + damping).view_as(v)

    def _damped(self, x_qp: Tensor, shift: Tensor) -> Tensor:
        y_qp = super()._damped(x_qp, shift)
        for _, _, pairs in self._negative:  # none where nothing is turned over
            y_qp -= 2 * ((x_qp @ pairs.vectors.T) * pairs.values) @ pairs.vectors
        return y_qp

    def _find(self, decay: Tensor, damping: float) -> None:
        """The negative eigenpairs of H + diag(w) that matter at λ."""
        if self._negative:
            known_decay, known_damping, _ = self._negative[0]
            if torch.equal(known_decay, decay) and known_damping == damping:
                return
        if not damping > 0:
            raise InputError("|μ| + λ by iteration needs λ > 0: which μ matter is told by it")
        shift = decay + damping
        self._negative.clear()
        self.selected(shift)
        assert self.exact is not None
        exact, exactly = self.exact, decay.double()
        pairs = negative_pairs(
            lambda x: exact(x).addcmul_(exactly, x),
            lambda r: self._preconditioned(r.to(decay), shift).double(),
            exactly,
            spared=SPARED * damping,
            most=MOST_NEGATIVE,
        )
        self._negative.append((decay, damping, pairs.to(decay)))

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(pairs.vectors.nbytes for _, _, pairs in self._negative)

    def note(self, damping: float) -> str | None:
        said = super().note(damping)
        if said is None:
            return None
        said += "; a relative damping is in units of the GGN's mean eigenvalue, not of H's"
        if not self._negative or self._negative[0][1] != damping:
            return said
        values = self._negative[0][2].values
        if not len(values):
            return f"{said}; no eigenvalue of H + diag(w) below −λ/100"
        return (
            f"{said}; {len(values)} eigenvalues of H + diag(w) below −λ/100, the lowest "
            f"{float(values[0]):.3g}: abs"
        )
