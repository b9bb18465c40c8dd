"""Exact products with the GGN and the Hessian that form no matrix."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from curvfluence.curvature.estimate.accumulate import Sums, accumulate
from curvfluence.curvature.estimate.linearised import Kind, Linearised
from curvfluence.curvature.estimate.second_differences import require_second_derivative
from curvfluence.errors import InputError
from curvfluence.jacobian.fisher import TYPE2_LIMIT, Type2
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.data import Examples
from curvfluence.problem.in_chunks import InChunks
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data
from curvfluence.runtime import attention, precision

PROBED = 4  # examples that symmetry is tried on


class CurvatureProduct:
    """v -> A v for A the GGN or the Hessian of the data term, v [Q, P].

    The GGN of a loss with at most 64 columns goes through its factor Z: (1/N) Zᵀ (Z v), two
    products of 2 Q N P operations (C times that where positions are shared), whose rows are held
    while they are at most `Problem.remember` bytes and made anew otherwise. Every other takes Jv by
    double backward, ∂²ℓ/∂f² in output space and a backward pass, for each v: about the cost of four
    passes over the data. `examples` a chunk.
    """

    def __init__(self, problem: Problem, kind: Kind = "GGN", *, examples: int = 256) -> None:
        # By double backward v would pass through autocast and the product be linear no more.
        self.problem = problem.exact
        self.kind: Kind = kind
        self._examples = examples
        columns = problem.loss.columns(problem.n_outputs)
        by_rows = kind == "GGN" and columns <= TYPE2_LIMIT
        self.rows = FisherPass(problem, Type2(), again=True) if by_rows else None
        if self.rows is None:
            if kind == "Hessian":
                require_second_derivative(self.problem)
            self._require_symmetric()

    @precision.full()
    def __call__(self, v_qp: Tensor) -> Tensor:
        n = len(self.problem.train)
        if self.rows is not None:
            return gram_product(self.rows, v_qp) / n

        return self._by_double_backward(v_qp, self.problem.train).div_(n)

    def _by_double_backward(self, v_qp: Tensor, part: Data) -> Tensor:
        """Σ_n over `part`, [Q, P]."""

        def add_products(numbered: tuple[int, Examples], sums: Sums) -> None:
            model = Linearised.of(self.problem, *numbered, self.kind)
            sums.add_("A v", torch.stack([model.product(v) for v in v_qp]))

        with attention.plain():  # the others cannot be differentiated twice
            return accumulate(InChunks(part, self._examples), add_products).pop("A v")

    @precision.full()
    def _require_symmetric(self) -> None:
        """uᵀAv = vᵀAu on a few examples, or an operation of the model has a wrong double backward:
        by its products alone an A that is not symmetric looks like one that is.

        Errors: `InputError` with both numbers."""
        count = self.problem.parameters.count
        generator = torch.Generator().manual_seed(0)
        u, v = torch.randn(2, count, generator=generator, dtype=torch.float64).to(
            self.problem.decay
        )
        au, av = self._by_double_backward(
            torch.stack([u, v]), self.problem.train.take(slice(0, PROBED))
        )
        uav, vau = float(u.double() @ av.double()), float(v.double() @ au.double())
        size = float(u.norm() * av.norm() + v.norm() * au.norm())
        eps = max(torch.finfo(dtype).eps for dtype in (u.dtype, self.problem.arithmetic))
        if abs(uav - vau) > 100 * eps * size:
            raise InputError(
                f"products with the {self.kind} of this model are not symmetric (uᵀAv is "
                f"{uav:.6g}, vᵀAu {vau:.6g}): an operation in it has a wrong double backward. Use "
                "a rung that needs first derivatives only: the GGN (as Matrix() or SampleSpace()), "
                "BlockGGN, EKFAC, KFAC or Diagonal"
            )


def gram_product(rows_of: Iterable[Rows], v_qp: Tensor) -> Tensor:
    """Zᵀ (Z v), a chunk of rows at a time."""

    def add_product(rows: Rows, sums: Sums) -> None:
        zv_qnc = rows.inner(v_qp)
        sums.add_("Zᵀ Z v", rows.adjoint(zv_qnc))

    return accumulate(rows_of, add_product).pop("Zᵀ Z v")
