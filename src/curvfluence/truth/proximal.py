"""The proximal Bregman objective around trained weights, for many models at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from curvfluence.curvature.ggn import GGN
from curvfluence.curvature.inversion import Matrix
from curvfluence.curvature.operators.definite import require_positive
from curvfluence.curvature.rung import fit
from curvfluence.problem.data import Examples
from curvfluence.problem.losses import ScaledLoss
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data, in_memory
from curvfluence.problem.tree import Batched, each, leaves
from curvfluence.runtime import budget
from curvfluence.truth.functional import obstacle

Pull: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Proximal:
    """F around θˢ, for m models at once, as a function of x with θ = θˢ + L⁻ᵀ x.

    L Lᵀ = GGN + diag(w) + λI, so that in x the Hessian at θˢ is the identity for ε = 0.
    """

    problem: Problem  # in float64, at θˢ
    centre: Tensor  # θˢ, [P]
    factor: Tensor  # L, [P, P]
    pull: Tensor  # w + λ, [P]
    together: bool  # whether torch.func can stack the model

    @staticmethod
    def at(problem: Problem, damping: float) -> Proximal:
        exact = problem.to(torch.float64)
        pull = exact.decay + damping
        matrix = fit(exact, GGN(Matrix())).to_dense()
        matrix.diagonal().add_(pull)
        return Proximal(
            problem=exact,
            centre=exact.parameters.flatten(exact.theta),
            factor=_cholesky(matrix, damping),
            pull=pull,
            together=_stackable(exact),
        )

    @cached_property
    def anchor(self) -> tuple[Tensor, Tensor, Tensor]:
        """fˢ [N, K], ℓ(fˢ) [N] and ∇ℓ(fˢ) [N, K], as training weights them."""
        train = in_memory(self.problem.train)
        loss, y = self.problem.loss_of(train), train.targets
        f_nk = self.problem.outputs(self.problem.train, "training set")
        return f_nk, loss.values(f_nk, y), loss.gradient(f_nk, y)

    @cached_property
    def rounding(self) -> float:
        """What float64 may hide in F."""
        f_nk, l_n, _ = self.anchor
        scale = l_n.abs().mean() + f_nk.abs().amax(1).mean()
        return 8 * torch.finfo(torch.float64).eps * float(scale)

    def shift(self, x_mp: Tensor) -> Tensor:
        """θ − θˢ = L⁻ᵀ x, [m, P]."""
        return torch.linalg.solve_triangular(self.factor.T, x_mp.T, upper=True).T

    def objective(self, x_mp: Tensor, kept_mn: Tensor) -> tuple[Tensor, Tensor]:
        """F − F(θˢ) [m] and its gradient in x [m, P]; `kept_mn` is 1 − ε left_out."""
        shift_mp = self.shift(x_mp)
        theta = self.centre + shift_mp
        value_m = 0.5 * (self.pull * shift_mp.square()).sum(1)
        gradient_mp = self.pull * shift_mp
        n = len(self.problem.train)
        for start, part in self._chunks(self.problem.train, len(theta)):
            rows = slice(start, start + len(part))
            kept_mb = kept_mn[:, rows]
            data_m, slope_mp = self._data(theta, part, kept_mb, rows)
            value_m += data_m / n
            gradient_mp += slope_mp / n
        solved = torch.linalg.solve_triangular(self.factor, gradient_mp.T, upper=False)
        return value_m, solved.T

    def _data(
        self, theta: Tensor, part: Examples, kept_mb: Tensor, rows: slice
    ) -> tuple[Tensor, Tensor]:
        """Σ_b kept_b (ℓ_b(f) − ℓ_b(fˢ)) − ∇ℓ_b(fˢ)ᵀ (f − fˢ) [m] and its gradient in θ [m, P]."""
        m, weights = len(theta), part.weights
        loss = ScaledLoss.of(self.problem.loss, None if weights is None else _repeat(weights, m))
        anchor_bk, l_b, g_bk = (part[rows] for part in self.anchor)
        f_mbk, pull = self._linearised(theta, part.inputs)
        f_rk, y_r = f_mbk.flatten(0, 1), _repeat(part.targets, m)
        with torch.no_grad():
            l_mb = loss.values(f_rk, y_r).view_as(kept_mb)
            slope_mbk = kept_mb[:, :, None] * loss.gradient(f_rk, y_r).view_as(f_mbk) - g_bk
            linear_mb = (g_bk * (f_mbk - anchor_bk)).sum(2)
            value_m = (kept_mb * (l_mb - l_b) - linear_mb).sum(1)
        return value_m, pull(slope_mbk)

    def measured(self, theta: Tensor) -> Tensor:
        """m_q at each θ, [m, Q]."""
        values, m = self.problem.measurement.values, len(theta)
        with torch.no_grad():
            columns = [
                values(
                    self._outputs(theta, part.inputs).flatten(0, 1), _repeat(part.targets, m)
                ).view(m, len(part))
                for _, part in self._chunks(self.problem.queries, m)
            ]
        return torch.cat(columns, dim=1)

    def _outputs(self, theta: Tensor, x: Batched) -> Tensor:
        """[m, B, K]."""

        def forward(theta: Tensor) -> Tensor:
            return self.problem.forward(x, self.problem.parameters.unflatten(theta))

        if self.together:
            return torch.func.vmap(forward)(theta)
        return torch.stack([forward(row) for row in theta])

    def _linearised(self, theta: Tensor, x: Batched) -> tuple[Tensor, Pull]:
        """(outputs [m, B, K], u [m, B, K] -> Jᵀ u [m, P]), once."""
        if not self.together:
            singles = [self._of_one(row, x) for row in theta]

            def pull_each(u_mbk: Tensor) -> Tensor:
                return torch.stack([pull(u) for (_, pull), u in zip(singles, u_mbk, strict=True)])

            return torch.stack([f_bk for f_bk, _ in singles]), pull_each
        leaf = theta.detach().requires_grad_(True)
        with torch.enable_grad():
            f_mbk = self._outputs(leaf, x)
        return f_mbk.detach(), lambda u_mbk: torch.autograd.grad(f_mbk, leaf, u_mbk)[0]

    def _of_one(self, row: Tensor, x: Batched) -> tuple[Tensor, Pull]:
        leaf = row.detach().requires_grad_(True)
        with torch.enable_grad():
            parts = self.problem.parameters.unflatten(leaf)
            f_bk = self.problem.forward(x, parts)

        def pull(u_bk: Tensor) -> Tensor:
            with self.problem.holding(parts):
                return torch.autograd.grad(f_bk, leaf, u_bk)[0]

        return f_bk.detach(), pull

    def _chunks(self, examples: Data, models: int) -> Iterator[tuple[int, Examples]]:
        one = examples.take(slice(0, 1)).inputs
        numbers = sum(leaf.numel() for leaf in leaves(one))
        return examples.chunks(max(1, budget.MODEL_INPUTS // (models * numbers)))


def _stackable(problem: Problem) -> bool:
    """Whether torch.func can evaluate several models at once; two are tried on one example. It
    computes no activations again."""
    if problem.structure.recomputes or obstacle(problem.structure.modules) is not None:
        return False
    theta, x = problem.parameters.flatten(problem.theta), problem.train.take(slice(0, 1)).inputs

    def forward(row: Tensor) -> Tensor:
        return problem.forward(x, problem.parameters.unflatten(row))

    try:
        torch.func.vmap(forward)(theta.expand(2, -1))
    except Exception:  # whatever torch.func raises, one model at a time is as right
        return False
    return True


def _repeat(rows: Batched, models: int) -> Any:
    """[B, ...] -> [models · B, ...]."""
    return each(rows, lambda leaf: leaf.expand(models, *leaf.shape).flatten(0, 1))


def _cholesky(matrix: Tensor, damping: float) -> Tensor:
    largest = float(matrix.diagonal().max())
    factor, info = torch.linalg.cholesky_ex(matrix)
    require_positive(
        0.0 if int(info) else float(factor.diagonal().min()) ** 2,
        largest,
        n=len(matrix),
        eps=torch.finfo(matrix.dtype).eps,
        what=f"GGN + diag(w) + {damping:.3g} I",
    )
    return factor
