"""Losses that are means over outputs: squared error, and binary cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from curvfluence.errors import InputError, about
from curvfluence.problem.losses.base import Loss
from curvfluence.problem.losses.output_hessian import DiagonalHessian


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

    def worst(self, output: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        y_nk = labels.to(output).reshape(len(labels), -1)
        far = torch.maximum((output - y_nk.amin(0)).abs(), (output - y_nk.amax(0)).abs())
        return far.square().mean(-1)

    def factor(self, output: Tensor, target: Tensor) -> Tensor:
        n, k = output.shape
        eye = torch.eye(k, dtype=output.dtype, device=output.device)
        return (sqrt(2 / k) * eye).expand(n, k, k)

    def output_hessian(self, output: Tensor, target: Tensor) -> DiagonalHessian:
        return DiagonalHessian(torch.full_like(output, 2 / output.shape[-1]))

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
            raise about(
                int(outside[0]),
                InputError,
                "BinaryCrossEntropy needs targets in [0, 1]; example {n} holds "
                f"{rows[int(outside[0])].tolist()} ({len(outside)} such examples)",
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

    def output_hessian(self, output: Tensor, target: Tensor) -> DiagonalHessian:
        return DiagonalHessian(self._diagonal(output).square())

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

    def worst(self, output: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        return F.softplus(output.abs()).mean(-1)

    def least_worst(self, n_outputs: int) -> float:
        return log(2)

    def surprise(self, output: Tensor, target: Tensor) -> Tensor:
        return (-output.abs()).sigmoid().sum(-1)
