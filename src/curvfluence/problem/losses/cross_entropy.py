"""Cross-entropy over classes, with label smoothing and class weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError, about
from curvfluence.problem.losses.base import Loss
from curvfluence.problem.losses.output_hessian import SoftmaxHessian

ROUNDING = 1e-3  # by which probabilities may miss the sum of 1


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
    return others.scatter_(-1, index, -others.sum(-1, keepdim=True))


def _drawn(p_nk: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Labels drawn from p, [N, draws], by the inverse of the distribution function: one uniform
    number a draw, where `torch.multinomial` takes one a class. In float64, so that labels do not
    depend on the dtype of p."""
    below_nk = p_nk.cumsum(-1, dtype=torch.float64).cpu()
    u_nd = torch.rand(len(p_nk), draws, generator=generator, dtype=torch.float64)
    found = torch.searchsorted(below_nk, u_nd * below_nk[:, -1:], right=True)
    return found.clamp_max(p_nk.shape[-1] - 1).to(p_nk.device)


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


def _require_labels(target: Tensor, n_outputs: int) -> None:
    outside = ((target < 0) | (target >= n_outputs)).nonzero().flatten()
    if len(outside):
        n = int(outside[0])
        raise about(
            n,
            InputError,
            f"label {int(target[n])} of example {{n}} is outside 0..{n_outputs - 1} "
            f"({len(outside)} such labels); the model has {n_outputs} outputs",
        )


def _require_distributions(target: Tensor) -> None:
    y_nk = target.double()
    wrong = ((y_nk < 0).any(1) | ((y_nk.sum(1) - 1).abs() > ROUNDING)).nonzero().flatten()
    if len(wrong):
        n = int(wrong[0])
        raise about(
            n,
            InputError,
            "the targets of example {n} are no distribution over the classes: they sum to "
            f"{float(y_nk[n].sum()):.6g}, the least is {float(y_nk[n].min()):.6g} ({len(wrong)} "
            "such examples)",
        )


@dataclass(frozen=True, eq=False)
class CrossEntropy(Loss):
    """ℓ = −Σ_c r_c log p_c with p = softmax(f), r_c = weight_c ((1 − ε) y_c + ε/K).

    A target is a label, y_c = [c = y], or a row of K probabilities y that sum to 1 (one-hot rows
    among them). The same as torch's with reduction='none': `weight` holds a value per class and
    `label_smoothing` is ε. With R = Σ_c r_c:  ∂ℓ/∂f = R p − r,  S = √R diag(√p) Q, where Q is
    an orthonormal basis of the complement of √p: K − 1 columns, as many as the rank.
    (torch's reduction='mean' divides by Σ_n weight_{y_n}; J here divides by N.)

    Units: nats. Errors: `InputError` for a label that is no integer in [0, K), or a row of targets
    that is no distribution over the K classes.
    """

    label_smoothing: float = 0.0
    weight: Tensor | None = None
    unit = "nats"

    def __post_init__(self) -> None:
        kinds.number(self.label_smoothing, "label_smoothing", below=1)
        if self.weight is None:
            return
        weight = kinds.tensor(self.weight, "class weights").detach().clone()
        object.__setattr__(self, "weight", weight)
        if weight.is_complex() or not bool((weight.isfinite() & (weight >= 0)).all()):
            raise InputError("class weights must be non-negative and finite")

    def check(self, n_outputs: int, target: Tensor) -> None:
        if n_outputs < 2:
            raise InputError(
                f"CrossEntropy needs at least 2 outputs, the model has {n_outputs}: "
                "use BinaryCrossEntropy for one logit"
            )
        if target.ndim == 2 and target.shape[1] == n_outputs:
            _require_distributions(target)
        elif target.ndim != 1 or target.is_floating_point() or target.is_complex():
            raise InputError(
                f"CrossEntropy needs one integer label an example, or {n_outputs} probabilities; "
                f"seen targets of shape {tuple(target.shape)} and dtype {target.dtype}"
                f"{_whole(target)}"
            )
        else:
            _require_labels(target, n_outputs)
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
            target if target.ndim == 1 else target.to(output),
            weight=self._class_weight(output),
            label_smoothing=self.label_smoothing,
            reduction="none",
        )

    def _mass(self, output: Tensor, target: Tensor) -> Tensor:
        """r, [N, K]: what each class's log-probability counts."""
        eps, k = self.label_smoothing, output.shape[-1]
        if target.ndim == 2:
            r_nk = (1 - eps) * target.to(output) + eps / k
        else:
            r_nk = torch.full_like(output, eps / k)
            r_nk = r_nk.scatter(-1, target[:, None], 1 - eps + eps / k)
        weight = self._class_weight(output)
        return r_nk if weight is None else r_nk * weight

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        if self.label_smoothing == 0 and self.weight is None and target.ndim == 1:
            return residual(_softmax(output), target)
        r_nk = self._mass(output, target)
        g_nk = r_nk.sum(-1, keepdim=True) * output.softmax(-1) - r_nk
        # the rows sum to zero
        return residual(g_nk, target if target.ndim == 1 else r_nk.argmax(-1))

    def factor(self, output: Tensor, target: Tensor) -> Tensor:
        u_nk = (0.5 * output.log_softmax(-1)).exp()
        total_n = self._mass(output, target).sum(-1)
        return (total_n.sqrt()[:, None] * u_nk)[:, :, None] * _complement(u_nk)

    def output_hessian(self, output: Tensor, target: Tensor) -> SoftmaxHessian:
        """R (diag(p) − p pᵀ)."""
        return SoftmaxHessian.of(output.softmax(-1), self._mass(output, target).sum(-1))

    def factored_product(self, output: Tensor, target: Tensor, v: Tensor) -> Tensor:
        """R (p ∘ v − p pᵀ v)."""
        p_nk = output.softmax(-1)
        total_n = self._mass(output, target).sum(-1)
        centred = v - (p_nk * v).sum(-1, keepdim=True)
        return total_n[:, None] * p_nk * centred

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
        labels_nd = _drawn(p_nk, draws, generator)
        scale_n = (self._mass(output, target).sum(-1) / draws).sqrt()
        drawn = [residual(p_nk, labels_nd[:, d]) * scale_n[:, None] for d in range(draws)]
        return torch.stack(drawn, dim=-1)

    @property
    def _most(self) -> float:
        return 1.0 if self.weight is None else float(self.weight.max())

    def worst(self, output: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        return self._most * (output.logsumexp(-1) - output.amin(-1))

    def least_worst(self, n_outputs: int) -> float:
        return self._most * log(n_outputs)

    def surprise(self, output: Tensor, target: Tensor) -> Tensor:
        p_nk = output.softmax(-1)
        return p_nk.scatter(-1, p_nk.argmax(-1, keepdim=True), 0.0).sum(-1)


def _whole(target: Tensor) -> str:
    """What to do with labels that are whole numbers of another dtype."""
    floating = target.ndim == 1 and target.is_floating_point()
    if floating and bool((target == target.round()).all()):
        return ". They are whole numbers: give labels.long()"
    return ""
