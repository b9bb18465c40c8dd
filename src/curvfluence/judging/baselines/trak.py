"""TRAK: a Gauss–Newton influence of margins in a random projection, averaged over models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.jacobian.columns import Columns
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.passes import rows_in_chunks
from curvfluence.problem.losses import CrossEntropy, Loss, residual
from curvfluence.problem.measurement import Margin
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data
from curvfluence.problem.tree import Batched, tensor_of
from curvfluence.runtime.eigen_solver import pinv

MOST = 512  # dimensions of the projection, unless told


@dataclass(frozen=True)
class Trak:
    """`dimension` k of the projection and the `seed` of the first model's; model j has seed + j.

    `of(problem)` chooses k where None: a quarter of N, at most P and 512. With k near N the
    projected gradients would explain every example by itself.
    """

    dimension: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dimension is not None:
            kinds.count(self.dimension, "dimension")
        kinds.count(self.seed, "seed", least=0)

    def of(self, problem: Problem) -> int:
        """k for this problem."""
        if self.dimension is not None:
            return self.dimension
        return max(1, min(MOST, len(problem.train) // 4, problem.parameters.count))


def trak(problems: Sequence[Problem], settings: Trak = Trak()) -> Tensor:
    """TRAK's scores of one problem at the weights of M models, [Q, N] in float64:

        τ(q, ·) = ((1/M) Σ_m φ_q (Φᵀ Φ)⁻¹ Φᵀ) · ((1/M) Σ_m Q),  φ_n = Rᵀ ∇f_n,  Q = diag(1 − p_n)

    with f the margin log p/(1 − p) of the true class, R [P, k] standard normal, drawn anew for each
    model, and Φ [N, k] the rows φ_n of the training set; negative where higher is better. ΦᵀΦ is
    inverted by its pseudo-inverse. No units: a change of the margin stands for that of the loss.

    Assumes a classifier trained by cross-entropy. Cost: k P numbers, and for each model
    2 (N + Q) k P operations. Errors: `InputError` for anything else than class labels.
    Source: Park et al. 2023, section 3.
    """
    first = problems[0]
    if not isinstance(first.loss, CrossEntropy):
        raise InputError(
            "TRAK is of margins of class labels; this problem's loss is "
            f"{type(first.loss).__name__}"
        )
    k = settings.of(first)
    attributed_qn = torch.zeros(len(first.queries), len(first.train), dtype=torch.float64)
    doubt_n = torch.zeros(len(first.train), dtype=torch.float64)
    for m, problem in enumerate(problems):
        layout = discover(problem)
        generator = torch.Generator().manual_seed(settings.seed + m)
        projection_kp = torch.randn(k, problem.parameters.count, generator=generator)
        projection_kp = projection_kp.to(problem.device, problem.dtype)
        phi_qk, phi_nk = (
            _features(problem, layout, data, projection_kp)
            for data in (problem.queries, problem.train)
        )
        kernel_kk = pinv(phi_nk.T @ phi_nk, symmetric=True)
        attributed_qn += phi_qk @ kernel_kk @ phi_nk.T / len(problems)
        doubt_n += _doubt(problem) / len(problems)
    scores_qn = attributed_qn * doubt_n
    return scores_qn if first.measurement.lower_is_better else -scores_qn


def _features(problem: Problem, layout: Layout, data: Data, projection_kp: Tensor) -> Tensor:
    """φ, [N, k] in float64."""
    margin = Margin()

    def gradient(loss: Loss, output: Tensor, target: Batched) -> Tensor:
        return margin.gradient(output, target)[:, :, None]

    columns = Columns(1, "margins", gradient)
    parts = [
        rows.inner(projection_kp)[..., 0].T.double().cpu()
        for _, rows in rows_in_chunks(problem, layout, data, columns)
    ]
    return torch.cat(parts)


def _doubt(problem: Problem) -> Tensor:
    """v_n (1 − p_n), [N], without cancellation where p_n is near 1."""
    parts: list[Tensor] = []
    for part, output in problem.each_output(problem.train, "training set"):
        labels = tensor_of(part.targets, "targets")
        wrong = -residual(output.double().softmax(-1), labels).gather(-1, labels[:, None])[:, 0]
        parts.append((wrong if part.weights is None else wrong * part.weights).cpu())
    return torch.cat(parts)
