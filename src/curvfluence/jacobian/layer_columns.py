"""Columns of each layer by itself: few below the last layer, none at it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from curvfluence.errors import counted_from
from curvfluence.jacobian.capture import Capture
from curvfluence.jacobian.columns import Pulled, Pulling
from curvfluence.jacobian.layers import Layout
from curvfluence.problem.data import Examples, require_finite
from curvfluence.problem.losses.output_hessian import OutputHessian
from curvfluence.problem.problem import Problem
from curvfluence.runtime.eigen_solver import eigh

FLOOR = 4  # n ε of the largest eigenvalue, below which rounding made it


@dataclass(frozen=True, eq=False)
class LayerColumns(Pulling):
    """The rows of S for sums over examples and columns within a layer, for many outputs K.

    The last layer z = W h + b has H_n = S_n S_nᵀ in closed form in the place of its K − 1 columns
    (`LastOuter`). All below it sees S through h alone: S_nᵀ W, of which any root R_n of
    R_n R_nᵀ = Wᵀ H_n W [h, h] gives the same sums. So where h < K − 1 no more than h columns are
    carried through the model, a Cholesky factor in float64 of each example.

    Cost: N K h² for the roots (N h³ for their factors), and `width` = min(h, K − 1) backward passes
    instead of K − 1. Rows across layers do not belong together.
    """

    given: tuple[OutputHessian, Tensor] | None = None  # H and R, instead of those of the loss

    by_layer: ClassVar[bool] = True

    def elements(self, layout: Layout) -> int:
        assert layout.last is not None
        last = layout.layers[layout.last]
        below = layout.elements(self.width) - last.factored(self.width)
        made = 2 * last.in_features**2  # roots in float64, or S
        if self.width < last.in_features:
            made = last.out_features * self.width
        return below + last.in_features + 2 * last.out_features + made

    def pulled(
        self,
        problem: Problem,
        layout: Layout,
        part: Examples,
        seen: Capture,
        at: int,
        *,
        summed: bool,
    ) -> Pulled:
        assert layout.last is not None
        hessian, below_bhc = self.given or self._made(problem, layout, part, seen, at)
        terms, small = seen.pullback_below(layout.last, below_bhc, hessian)
        rest = [small[name] for name in layout.others]
        b, _, c = below_bhc.shape
        dense = torch.cat(rest, dim=2) if rest else below_bhc.new_empty(b, c, 0)
        of_layers = (term.s for k, term in enumerate(terms) if k != layout.last)
        for rows in (*of_layers, dense):
            require_finite(rows, f"gradient of {self.what}", at)

        def again(some: slice) -> LayerColumns:
            return replace(self, given=(hessian[some], below_bhc[some]))

        return Pulled(terms, dense, again)

    def _made(
        self, problem: Problem, layout: Layout, part: Examples, seen: Capture, at: int
    ) -> tuple[OutputHessian, Tensor]:
        """(H, and columns R at h, [B, h, C])."""
        output, loss = seen.output.detach(), problem.loss_of(part)
        with counted_from(at):
            hessian = loss.output_hessian(output, part.targets)
        require_finite(hessian.traces()[:, None], f"output gradient of {self.what}", at)
        assert layout.last is not None
        w_kh = layout.layers[layout.last].matrix(problem.theta)
        if w_kh.shape[1] <= self.width:
            grams = hessian.to(torch.float64).pulled(w_kh.double())
            columns = root(grams).to(output)
        else:
            columns = torch.einsum("bkc,kh->bhc", loss.factor(output, part.targets), w_kh)
        require_finite(columns, f"output gradient of {self.what}", at)
        return hessian, columns


def root(grams_nhh: Tensor) -> Tensor:
    """R with R Rᵀ = G of each n: by Cholesky where G is definite, else by eigenvalues, of which
    those that rounding leaves of a 0 are 0. Inputs of which no G has anything stay exactly 0."""
    size_nh = grams_nhh.diagonal(dim1=1, dim2=2)
    used = (size_nh != 0).any(0).nonzero().flatten()
    if len(used) < grams_nhh.shape[1]:
        whole = torch.zeros_like(grams_nhh)
        if len(used):
            whole[:, used[:, None], used] = root(grams_nhh[:, used[:, None], used])
        return whole
    factor, info = torch.linalg.cholesky_ex(grams_nhh)
    singular = (info != 0).nonzero().flatten()
    if len(singular):
        values, vectors = eigh(grams_nhh[singular])
        floor = FLOOR * torch.finfo(values.dtype).eps * values.shape[1] * values.amax(1)
        values = torch.where(values > floor[:, None], values, 0)
        factor[singular] = vectors * values.sqrt()[:, None]
    return factor
