"""Per-example losses, their output gradients, and the output-space factor S.

For outputs f (one row an example) and a loss ℓ, everything above the output needs only

    ∂ℓ/∂f            [N, K]
    S with S Sᵀ = ∂²ℓ/∂f²   [N, K, C]
    t with S t = ∂ℓ/∂f      [N, C]

DESIGN: an example's loss is unreduced; `MSE` and `BinaryCrossEntropy` are means over outputs, as
in torch. Gradients are formed without cancellation, so that a well-fitted example in float32 keeps
its relative precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from curvfluence.errors import CurvfluenceError, InputError


class Loss(ABC):
    """A loss ℓ(f, y) per example, with its first and second derivatives in f.

    `output` is [N, K]; `target` is whatever `check` accepts. Nothing is reduced over N.
    """

    unit: str = "loss"
    lower_is_better: bool = True
    convex: bool = True  # whether ∂²ℓ/∂f² is S Sᵀ in full: nothing negative was set to 0

    @abstractmethod
    def check(self, n_outputs: int, target: Tensor) -> None:
        """Raise `InputError` where `target` does not fit a model with `n_outputs` outputs."""

    @abstractmethod
    def values(self, output: Tensor, target: Tensor) -> Tensor:
        """ℓ per example, [N]; differentiable, and composed of functions that vmap understands."""

    @abstractmethod
    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        """∂ℓ/∂f per example, [N, K]."""

    @abstractmethod
    def factor(self, output: Tensor, target: Tensor) -> Tensor:
        """S per example, [N, K, C], with S Sᵀ = ∂²ℓ/∂f²."""

    def hessian(self, output: Tensor, target: Tensor) -> Tensor:
        """∂²ℓ/∂f² per example, [N, K, K], negative eigenvalues included."""
        s_nkc = self.factor(output, target)
        return s_nkc @ s_nkc.mT

    @abstractmethod
    def coordinates(self, output: Tensor, target: Tensor) -> Tensor:
        """t per example, [N, C], with S t = ∂ℓ/∂f."""

    @abstractmethod
    def columns(self, n_outputs: int) -> int:
        """C, the number of columns of S for a model with `n_outputs` outputs."""

    def sample(
        self, output: Tensor, target: Tensor, *, draws: int, generator: torch.Generator
    ) -> Tensor:
        """Random columns s, [N, K, draws], scaled so that E[Σ s sᵀ] = S Sᵀ.

        By default S ε with ε standard normal; a loss with labels draws labels instead.
        """
        s_nkc = self.factor(output, target)
        eps = torch.randn(
            (s_nkc.shape[0], s_nkc.shape[2], draws), generator=generator, dtype=s_nkc.dtype
        ).to(s_nkc.device)
        return s_nkc @ eps / sqrt(draws)

    def surprise(self, output: Tensor) -> Tensor | None:
        """1 − p_max per example and independent label; None where the loss has no labels."""
        return None

    def notes(self, output: Tensor, target: Tensor) -> tuple[str, ...]:
        """What a result that uses S must say about it."""
        return ()


def _softmax(output: Tensor) -> Tensor:
    """softmax over the last axis; torch's own kernel is several times slower for few classes."""
    if output.shape[-1] >= 16:
        return output.softmax(-1)
    e_nk = (output - output.amax(-1, keepdim=True)).exp()
    return e_nk / e_nk.sum(-1, keepdim=True)


def residual(p_nk: Tensor, label_n: Tensor) -> Tensor:
    """p − e_label with the label's entry formed as −Σ of the others: no cancellation as p → e."""
    index = label_n.unsqueeze(-1)
    others = p_nk.scatter(-1, index, 0.0)
    return others.scatter(-1, index, -others.sum(-1, keepdim=True))


def _complement(u_nk: Tensor) -> Tensor:
    """Orthonormal basis Q, [N, K, K−1], of the complement of the unit vector u ≥ 0.

    The Householder reflection that takes u to −e_k, less its column k: Q_ij = δ_ij − u_i u_j /
    (1 + u_k) for i ≠ k, and Q_kj = −u_j. Taking k = argmax u keeps every entry free of
    cancellation (u_i² ≤ 1/2 for i ≠ k).
    """
    n, k = u_nk.shape
    top_n1 = u_nk.argmax(-1, keepdim=True)
    v_nk = u_nk.scatter_add(-1, top_n1, torch.ones_like(u_nk[:, :1]))
    scaled_nk = u_nk / (1 + u_nk.gather(-1, top_n1))
    q_nkk = (
        torch.eye(k, dtype=u_nk.dtype, device=u_nk.device)
        - v_nk[:, :, None] * scaled_nk[:, None, :]
    )
    # Row k is −u_j exactly: v_k = 1 + u_k cancels the denominator.
    q_nkk = q_nkk.scatter(1, top_n1[:, :, None].expand(n, 1, k), -u_nk[:, None, :])
    kept = torch.arange(k - 1, device=u_nk.device).expand(n, k - 1)
    kept = kept + (kept >= top_n1)
    return q_nkk.gather(2, kept[:, None, :].expand(n, k, k - 1))


@dataclass(frozen=True, eq=False)
class CrossEntropy(Loss):
    """ℓ = −Σ_c r_c log p_c with p = softmax(f), r_c = weight_c ((1 − ε) [c = y] + ε/K).

    The same as torch's with reduction='none': `weight` holds a value per class and
    `label_smoothing` is ε. With R = Σ_c r_c:  ∂ℓ/∂f = R p − r,  S = √R diag(√p) Q, where Q is
    an orthonormal basis of the complement of √p: K − 1 columns, as many as the rank.
    (torch's reduction='mean' divides by Σ_n weight_{y_n}; J here divides by N.)

    Units: nats. Errors: `InputError` for a label that is no integer in [0, K).
    """

    label_smoothing: float = 0.0
    weight: Tensor | None = None
    unit = "nats"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing must lie in [0, 1); seen {self.label_smoothing}")
        if self.weight is None:
            return
        object.__setattr__(self, "weight", torch.as_tensor(self.weight).detach())
        if not bool((self.weight.isfinite() & (self.weight >= 0)).all()):
            raise InputError("class weights must be non-negative and finite")

    def check(self, n_outputs: int, target: Tensor) -> None:
        if n_outputs < 2:
            raise InputError(
                f"CrossEntropy needs at least 2 outputs, the model has {n_outputs}: "
                "use BinaryCrossEntropy for one logit"
            )
        if target.ndim != 1 or target.is_floating_point() or target.is_complex():
            raise InputError(
                f"CrossEntropy needs one integer label an example; seen targets of shape "
                f"{tuple(target.shape)} and dtype {target.dtype}"
            )
        outside = ((target < 0) | (target >= n_outputs)).nonzero().flatten()
        if len(outside):
            n = int(outside[0])
            raise InputError(
                f"label {int(target[n])} of example {n} is outside 0..{n_outputs - 1} "
                f"({len(outside)} such labels); the model has {n_outputs} outputs"
            )
        if self.weight is not None and self.weight.shape != (n_outputs,):
            raise InputError(
                f"class weights have shape {tuple(self.weight.shape)}, the model has "
                f"{n_outputs} outputs"
            )

    def columns(self, n_outputs: int) -> int:
        return n_outputs - 1

    def _class_weight(self, output: Tensor) -> Tensor | None:
        return None if self.weight is None else self.weight.to(output)

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            output,
            target,
            weight=self._class_weight(output),
            label_smoothing=self.label_smoothing,
            reduction="none",
        )

    def _mass(self, output: Tensor, target: Tensor) -> Tensor:
        """r, [N, K]: what each class's log-probability counts."""
        eps, k = self.label_smoothing, output.shape[-1]
        r_nk = torch.full_like(output, eps / k)
        r_nk = r_nk.scatter(-1, target[:, None], 1 - eps + eps / k)
        weight = self._class_weight(output)
        return r_nk if weight is None else r_nk * weight

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        if self.label_smoothing == 0 and self.weight is None:
            return residual(_softmax(output), target)
        r_nk = self._mass(output, target)
        g_nk = r_nk.sum(-1, keepdim=True) * output.softmax(-1) - r_nk
        return residual(g_nk, target)  # the rows sum to zero

    def factor(self, output: Tensor, target: Tensor) -> Tensor:
        u_nk = (0.5 * output.log_softmax(-1)).exp()
        total_n = self._mass(output, target).sum(-1)
        return (total_n.sqrt()[:, None] * u_nk)[:, :, None] * _complement(u_nk)

    def coordinates(self, output: Tensor, target: Tensor) -> Tensor:
        u_nk = (0.5 * output.log_softmax(-1)).exp()
        r_nk = self._mass(output, target)
        total_n1 = r_nk.sum(-1, keepdim=True)
        pull_nk = torch.where(r_nk > 0, r_nk / (u_nk * total_n1.sqrt()), 0.0)
        return -(pull_nk[:, None, :] @ _complement(u_nk))[:, 0, :]

    def sample(
        self, output: Tensor, target: Tensor, *, draws: int, generator: torch.Generator
    ) -> Tensor:
        """√R (p − e_ŷ) with ŷ drawn from p: what a Fisher of sampled labels uses."""
        p_nk = output.softmax(-1)
        labels_nd = torch.multinomial(p_nk.cpu(), draws, replacement=True, generator=generator).to(
            output.device
        )
        scale_n = (self._mass(output, target).sum(-1) / draws).sqrt()
        drawn = [residual(p_nk, labels_nd[:, d]) * scale_n[:, None] for d in range(draws)]
        return torch.stack(drawn, dim=-1)

    def surprise(self, output: Tensor) -> Tensor:
        p_nk = output.softmax(-1)
        return p_nk.scatter(-1, p_nk.argmax(-1, keepdim=True), 0.0).sum(-1)


def _as_output(output: Tensor, target: Tensor) -> Tensor:
    return target.to(output).reshape(output.shape)


def _check_elementwise(name: str, n_outputs: int, target: Tensor) -> None:
    width = 1 if target.ndim == 1 else int(target[0].numel())
    if width != n_outputs:
        raise InputError(
            f"{name} needs {n_outputs} target values an example, one for each output; seen targets "
            f"of shape {tuple(target.shape)}"
        )


@dataclass(frozen=True)
class MSE(Loss):
    """ℓ = mean_k (f_k − y_k)², torch's `mse_loss` per example. S = √(2/K) I.

    Units: squared output units. Targets: [N, K], or [N] where K = 1.
    """

    unit = "squared output units"

    def check(self, n_outputs: int, target: Tensor) -> None:
        _check_elementwise("MSE", n_outputs, target)

    def columns(self, n_outputs: int) -> int:
        return n_outputs

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - _as_output(output, target)).square().mean(-1)

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - _as_output(output, target)) * (2 / output.shape[-1])

    def factor(self, output: Tensor, target: Tensor) -> Tensor:
        n, k = output.shape
        eye = torch.eye(k, dtype=output.dtype, device=output.device)
        return (sqrt(2 / k) * eye).expand(n, k, k)

    def coordinates(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - _as_output(output, target)) * sqrt(2 / output.shape[-1])


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """ℓ = mean_k BCE(σ(f_k), y_k) on logits f, with y in [0, 1]. S = diag(√(σ(1 − σ)/K)).

    torch's `binary_cross_entropy_with_logits` per example. Units: nats.
    Targets: [N, K], or [N] where K = 1.
    """

    unit = "nats"

    def check(self, n_outputs: int, target: Tensor) -> None:
        _check_elementwise("BinaryCrossEntropy", n_outputs, target)
        rows = target.reshape(len(target), -1)
        outside = ((rows < 0) | (rows > 1)).any(-1).nonzero().flatten()
        if len(outside):
            raise InputError(
                f"BinaryCrossEntropy needs targets in [0, 1]; example {int(outside[0])} holds "
                f"{rows[int(outside[0])].tolist()} ({len(outside)} such examples)"
            )

    def columns(self, n_outputs: int) -> int:
        return n_outputs

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        y_nk = _as_output(output, target)
        return F.binary_cross_entropy_with_logits(output, y_nk, reduction="none").mean(-1)

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        y_nk = _as_output(output, target)
        pull_nk = (1 - y_nk) * output.sigmoid() - y_nk * (-output).sigmoid()
        return pull_nk / output.shape[-1]

    def _diagonal(self, output: Tensor) -> Tensor:
        return (output.sigmoid() * (-output).sigmoid() / output.shape[-1]).sqrt()

    def factor(self, output: Tensor, target: Tensor) -> Tensor:
        return torch.diag_embed(self._diagonal(output))

    def coordinates(self, output: Tensor, target: Tensor) -> Tensor:
        # (1 − y) σ(f) / √(σ(f) σ(−f)) = (1 − y) e^{f/2}, and likewise for y: no 0/0.
        y_nk = _as_output(output, target)
        up = torch.where(y_nk < 1, (1 - y_nk) * (output / 2).exp(), 0.0)
        down = torch.where(y_nk > 0, y_nk * (-output / 2).exp(), 0.0)
        return (up - down) / sqrt(output.shape[-1])

    def sample(
        self, output: Tensor, target: Tensor, *, draws: int, generator: torch.Generator
    ) -> Tensor:
        """(σ − ŷ)/√K with ŷ_k drawn from σ(f_k), each output by itself."""
        p_nk = output.sigmoid()
        n, k = p_nk.shape
        uniform = torch.rand((n, k, draws), generator=generator, dtype=p_nk.dtype).to(p_nk.device)
        ones_nkd = uniform < p_nk[:, :, None]
        pull_nkd = torch.where(ones_nkd, -(-output).sigmoid()[:, :, None], p_nk[:, :, None])
        return pull_nkd / sqrt(k * draws)

    def surprise(self, output: Tensor) -> Tensor:
        return (-output.abs()).sigmoid().sum(-1)


@dataclass(frozen=True)
class CustomLoss(Loss):
    """Any per-example loss `function(output [N, K], target) -> [N]`, twice differentiable in f.

    S comes from the eigendecomposition of ∂²ℓ/∂f²: S = V √max(μ, 0). A loss that is not convex in
    f has negative μ: they raise, or with `clip_negative=True` are set to 0 and named in the
    result. Cost: K backward passes through the loss and an eigendecomposition of K × K an example.

    Errors: `CurvfluenceError` for a negative eigenvalue (below −100 eps of the example's largest
    |μ|), or for a gradient outside the span of S where `coordinates` is asked for.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    clip_negative: bool = False
    unit: str = "loss"
    convex = False

    def check(self, n_outputs: int, target: Tensor) -> None:
        seen = self.function(torch.zeros(2, n_outputs), target[[0, 0]])
        if seen.shape != (2,):
            raise InputError(
                f"a custom loss must return one value an example; for 2 examples with "
                f"{n_outputs} outputs it returned shape {tuple(seen.shape)}"
            )

    def columns(self, n_outputs: int) -> int:
        return n_outputs

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        return self.function(output, target)

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        with torch.enable_grad():
            f = output.detach().requires_grad_(True)
            total = self.function(f, target).sum()
            if not total.requires_grad:
                raise InputError("the custom loss does not depend on the model's output")
            return torch.autograd.grad(total, f)[0]

    def _curvature(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            f = output.detach().requires_grad_(True)
            (g_nk,) = torch.autograd.grad(self.function(f, target).sum(), f, create_graph=True)
            rows: list[Tensor] = []
            for k in range(f.shape[-1]):
                row = None
                if g_nk.requires_grad:
                    (row,) = torch.autograd.grad(
                        g_nk[:, k].sum(), f, retain_graph=True, allow_unused=True
                    )
                rows.append(torch.zeros_like(output) if row is None else row)
        return torch.linalg.eigh(torch.stack(rows, dim=1))

    def hessian(self, output: Tensor, target: Tensor) -> Tensor:
        mu_nk, v_nkk = self._curvature(output, target)
        return (v_nkk * mu_nk[:, None, :]) @ v_nkk.mT

    def _negative(self, mu_nk: Tensor) -> Tensor:
        # beyond what an eigendecomposition of this example's matrix can get wrong
        floor = 100 * torch.finfo(mu_nk.dtype).eps
        return mu_nk < -floor * mu_nk.abs().amax(-1, keepdim=True)

    def factor(self, output: Tensor, target: Tensor) -> Tensor:
        mu_nk, v_nkk = self._curvature(output, target)
        negative = self._negative(mu_nk)
        if not self.clip_negative and bool(negative.any()):
            n = int(negative.any(-1).nonzero()[0])
            raise CurvfluenceError(
                f"the loss is not convex in the output: ∂²ℓ/∂f² of example {n} (of this batch) has "
                f"eigenvalue {float(mu_nk[n].min()):.3g}; use clip_negative=True to set such "
                "eigenvalues to 0 (named in the result), or the Hessian rung"
            )
        return v_nkk * mu_nk.clamp_min(0).sqrt()[:, None, :]

    def coordinates(self, output: Tensor, target: Tensor) -> Tensor:
        s_nkc, g_nk = self.factor(output, target), self.gradient(output, target)
        t_nc = (torch.linalg.pinv(s_nkc) @ g_nk[:, :, None])[:, :, 0]
        left_n = ((s_nkc @ t_nc[:, :, None])[:, :, 0] - g_nk).norm(dim=-1)
        bad = (left_n > 1e-4 * g_nk.norm(dim=-1)).nonzero().flatten()
        if len(bad):
            raise CurvfluenceError(
                f"the loss gradient of example {int(bad[0])} (of this batch) lies outside the span "
                "of ∂²ℓ/∂f²: the leverage correction is not defined for this loss"
            )
        return t_nc

    def notes(self, output: Tensor, target: Tensor) -> tuple[str, ...]:
        if not self.clip_negative:
            return ()
        mu_nk, _ = self._curvature(output, target)
        clipped = self._negative(mu_nk)
        if not bool(clipped.any()):
            return ()
        return (
            f"{int(clipped.sum())} negative eigenvalues of ∂²ℓ/∂f² set to 0, "
            f"the lowest {float(mu_nk.min()):.3g}",
        )
