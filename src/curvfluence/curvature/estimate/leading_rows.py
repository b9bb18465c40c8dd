"""Of examples with many rows of the GGN, a few that hold much of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.estimate.linearised import Linearised
from curvfluence.errors import NonFiniteError, counted_from
from curvfluence.jacobian.capture import Capture
from curvfluence.jacobian.columns import Columns, Pulled, Pulling
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.passes import rows_in_chunks
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.data import Examples, require_finite
from curvfluence.problem.losses import Loss
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import Batched
from curvfluence.runtime import attention
from curvfluence.runtime.eigen_solver import eigh
from curvfluence.runtime.finite import all_finite

# Of the largest eigenvalue of Yᵀ H Y: what is below goes, and V is orthonormal to ε / DEPENDENT.
DEPENDENT = 1e-8


class LeadingRows:
    """Rows V_nᵀZ_n [k, P] of each example, V_n [C, k] orthonormal, a chunk of examples at a time.

    With H_n = S_n S_nᵀ and Y_n = J_n G, G [P, k] drawn from N(0, D⁻¹), the columns are
    H_n Y_n (Y_nᵀ H_n Y_n)^-½ = S_n V_n with V_n an orthonormal basis of S_nᵀ J_n G: a sketch of the
    range of Z_n D^-½ (Halko, Martinsson & Tropp 2011, Algorithm 4.1). So Σ z zᵀ of these rows is at
    most that of all of them, whatever G, and neither S_n [TV, C] nor a Gram matrix C × C is formed.

    Cost: k products J_n g (about two backward passes each) and k backward passes an example.
    """

    def __init__(self, problem: Problem, shift: Tensor, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(width, len(shift), generator=generator, dtype=torch.float64)
        self._problem = problem.exact
        self._columns = _LeadingColumns(
            width, "training set (rows of the GGN)", normal.to(shift) / shift.sqrt(), []
        )

    def __iter__(self) -> Iterator[Rows]:
        self._columns.traces.clear()
        layout = discover(self._problem)
        given = rows_in_chunks(self._problem, layout, self._problem.train, self._columns)
        return (rows for _, rows in given)

    @property
    def trace(self) -> float:
        """tr(Z D⁻¹ Zᵀ), all rows of all examples, after a pass: the mean of gᵀZᵀZg over the k
        vectors g, which is without bias."""
        return sum(self._columns.traces)


@dataclass(frozen=True, eq=False)
class _LeadingColumns(Pulling):
    probes: Tensor  # G, [k, P]
    traces: list[float]  # of each chunk

    def elements(self, layout: Layout) -> int:
        return layout.elements(self.width)

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
        with attention.plain():  # the others cannot be differentiated twice
            model = Linearised.of(problem, at, part, "GGN")
            y_kbj = torch.stack([model.along(g).detach() for g in self.probes])
            with counted_from(at):
                output, targets = model.output.detach(), part.targets
                h_kbj = torch.stack(
                    [model.loss.factored_product(output, targets, y_bj) for y_bj in y_kbj]
                )
                require_finite(h_kbj.transpose(0, 1), f"∂²ℓ/∂f² J g of {self.what}", at)
        columns_bjk = _orthonormal(y_kbj, h_kbj, self.traces)

        def make(loss: Loss, output: Tensor, target: Batched) -> Tensor:
            return columns_bjk

        made = Columns(self.width, self.what, make)
        return made.pulled(problem, layout, part, seen, at, summed=summed)


def require_norms(grams: Tensor, dtype: torch.dtype) -> None:
    """Errors: `NonFiniteError` where products of rows in D⁻¹ are not finite."""
    if not all_finite(grams):
        raise NonFiniteError(
            f"norms of rows zᵀD⁻¹z overflow {dtype}, though every row is finite: use a larger "
            "damping, scale the loss, or use problem.to(torch.float64)"
        )


def _orthonormal(y_kbj: Tensor, h_kbj: Tensor, traces: list[float]) -> Tensor:
    """H Y (YᵀHY)^-½ of each example, [B, J, k]; columns of 0 where Yᵀ H Y is singular."""
    y_bkj, h_bkj = y_kbj.transpose(0, 1).double(), h_kbj.transpose(0, 1).double()
    grams = y_bkj @ h_bkj.mT
    require_norms(grams, y_kbj.dtype)
    values, vectors = eigh((grams + grams.mT) / 2)
    traces.append(float(values.clamp_min(0).sum()) / values.shape[1])
    least = max(DEPENDENT, 10 * torch.finfo(y_kbj.dtype).eps)
    kept = values > least * values.amax(1, keepdim=True).clamp_min(0)
    roots = torch.where(kept, values.clamp_min(0), torch.inf).rsqrt()
    return (h_bkj.mT @ (vectors * roots[:, None, :])).to(y_kbj)
