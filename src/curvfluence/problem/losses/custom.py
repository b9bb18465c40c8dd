"""Any other differentiable per-example loss."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import CurvfluenceError, InputError, about
from curvfluence.problem.data import require_finite
from curvfluence.problem.losses.base import Loss
from curvfluence.problem.own_code import own_code, require_differentiable, require_one_each
from curvfluence.problem.tree import Batched, value_of
from curvfluence.runtime.autograd import pulled_back
from curvfluence.runtime.eigen_solver import eigh, pinv

NAME = "the custom loss"


@contextmanager
def _second_derivative() -> Generator[None]:
    """Within it an error of torch's own is that the function can be differentiated once only."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # NotImplementedError is one
        raise InputError(
            f"{NAME} has no second derivative that torch knows ({error}): use a rung with "
            "fisher=Empirical(), which needs the first alone, or write the loss in operations that "
            "have one"
        ) from error


@dataclass(frozen=True)
class CustomLoss(Loss):
    """Any per-example loss `function(output [N, K], target) -> [N]`, twice differentiable in f.

    `target` is what the examples have, a tensor [N, ...] or a container of several.

    S comes from the eigendecomposition of ∂²ℓ/∂f²: S = V √max(μ, 0). A loss that is not convex in
    f has negative μ: they raise, or with `clip_negative=True` are set to 0 and named in the
    result. Cost: K backward passes through the loss and an eigendecomposition of K × K an example.

    Errors: `CurvfluenceError` for a negative eigenvalue (below −100 eps of the example's largest
    |μ|), or for a gradient outside the span of S where `coordinates` is asked for.
    """

    function: Callable[[Tensor, Any], Tensor]
    clip_negative: bool = False
    unit: str = "loss"
    convex = False
    closed = False
    full_rank = False
    trees = True

    def __post_init__(self) -> None:
        kinds.flag(self.clip_negative, "clip_negative")
        kinds.function(self.function, "the function of a CustomLoss")

    def check(self, n_outputs: int, target: Batched) -> None:
        """Nothing: what the function returns is looked at whenever it is called."""

    def columns(self, n_outputs: int) -> int:
        return n_outputs

    def rank(self, output: Tensor, target: Batched) -> int:
        """The largest of these outputs', by eigenvalues above rounding."""
        mu_nk, _ = self._curvature(output, target)
        floor = 100 * torch.finfo(mu_nk.dtype).eps * mu_nk.abs().amax(-1, keepdim=True)
        return max(1, int((mu_nk > floor).sum(-1).max()))

    def values(self, output: Tensor, target: Batched) -> Tensor:
        with own_code(NAME):
            values: object = self.function(output, value_of(target))
        return require_one_each(values, output, NAME)

    def _slope(self, output: Tensor, target: Batched, *, twice: bool) -> tuple[Tensor, Tensor]:
        """(f, ∂ℓ/∂f) per example, [N, K] each; with `twice` a slope that has one too."""
        f = output.detach().requires_grad_(True)
        values = require_differentiable(self.values(f, target), NAME)
        require_finite(values.detach(), "value of the loss")
        total = values.sum()
        return f, torch.autograd.grad(total, f, create_graph=twice)[0]

    def gradient(self, output: Tensor, target: Batched) -> Tensor:
        with torch.enable_grad():
            return self._slope(output, target, twice=False)[1]

    def hessian_product(self, output: Tensor, target: Batched, v: Tensor) -> Tensor:
        with torch.enable_grad():
            f, g_nk = self._slope(output, target, twice=True)
            if not g_nk.requires_grad:
                return torch.zeros_like(output)
            with _second_derivative():
                (row,) = pulled_back(g_nk, [f], v)
        return torch.zeros_like(output) if row is None else row

    def _curvature(self, output: Tensor, target: Batched) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            f, g_nk = self._slope(output, target, twice=True)
            rows: list[Tensor] = []
            for k in range(f.shape[-1]):
                row = None
                if g_nk.requires_grad:
                    with _second_derivative():
                        (row,) = torch.autograd.grad(
                            g_nk[:, k].sum(), f, retain_graph=True, allow_unused=True
                        )
                rows.append(torch.zeros_like(output) if row is None else row)
        h_nkk = torch.stack(rows, dim=1)
        require_finite(h_nkk, "∂²ℓ/∂f²")
        return eigh(h_nkk)

    def hessian(self, output: Tensor, target: Batched) -> Tensor:
        mu_nk, v_nkk = self._curvature(output, target)
        return (v_nkk * mu_nk[:, None, :]) @ v_nkk.mT

    def _negative(self, mu_nk: Tensor) -> Tensor:
        # beyond what an eigendecomposition of this example's matrix can get wrong
        floor = 100 * torch.finfo(mu_nk.dtype).eps
        return mu_nk < -floor * mu_nk.abs().amax(-1, keepdim=True)

    def factor(self, output: Tensor, target: Batched) -> Tensor:
        mu_nk, v_nkk = self._curvature(output, target)
        negative = self._negative(mu_nk)
        if not self.clip_negative and bool(negative.any()):
            n = int(negative.any(-1).nonzero()[0])
            raise about(
                n,
                CurvfluenceError,
                "the loss is not convex in the output: ∂²ℓ/∂f² of example {n} has eigenvalue "
                f"{float(mu_nk[n].min()):.3g}; use clip_negative=True to set such eigenvalues to 0 "
                "(named in the result), or the Hessian rung",
            )
        return v_nkk * mu_nk.clamp_min(0).sqrt()[:, None, :]

    def coordinates(self, output: Tensor, target: Batched) -> Tensor:
        s_nkc, g_nk = self.factor(output, target), self.gradient(output, target)
        t_nc = (pinv(s_nkc) @ g_nk[:, :, None])[:, :, 0]
        left_n = ((s_nkc @ t_nc[:, :, None])[:, :, 0] - g_nk).norm(dim=-1)
        bad = (left_n > 1e-4 * g_nk.norm(dim=-1)).nonzero().flatten()
        if len(bad):
            raise about(
                int(bad[0]),
                CurvfluenceError,
                "the loss gradient of example {n} lies outside the span of ∂²ℓ/∂f²: the leverage "
                "correction is not defined for this loss",
            )
        return t_nc

    def notes(self, output: Tensor, target: Batched) -> tuple[str, ...]:
        if not self.clip_negative:
            return ()
        mu_nk, _ = self._curvature(output, target)
        clipped = self._negative(mu_nk)
        if not bool(clipped.any()):
            return ()
        return (
            f"negative eigenvalues of ∂²ℓ/∂f² set to 0: {int(clipped.sum())}, "
            f"the lowest {float(mu_nk.min()):.3g}",
        )
