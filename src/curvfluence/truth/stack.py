"""The parameters of M models of one shape, laid out so that one optimiser steps all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from curvfluence.truth.recipe import Optimizer

# A vectorised elementwise kernel treats the last elements of a tensor, those that fill no vector,
# by scalar code that may round otherwise. With lengths in multiples of 64 there are none.
_ALIGN = 64
# A matrix product may round otherwise when its operands begin elsewhere in a cache line (MKL's do
# for small results), so each model's tensor begins on a line: 16 numbers of at least 4 bytes.
_LINE = 16


@dataclass(frozen=True, eq=False)
class Stack:
    """θ and ∂/∂θ of M models: `theta[name]` and `grad[name]` are [M, *shape] views of slabs.

    A slab is one flat vector of all tensors that share a weight decay; an optimiser that works
    element by element then steps every model in one call, each as if it were alone. The gaps
    between models and tensors hold zeros, and stay so.
    """

    theta: Mapping[str, Tensor]
    grad: Mapping[str, Tensor]
    slabs: Mapping[float, Tensor]  # by weight decay

    @staticmethod
    def of(initial: Mapping[str, Tensor], decay: Mapping[str, float]) -> Stack:
        theta: dict[str, Tensor] = {}
        grad: dict[str, Tensor] = {}
        slabs: dict[float, Tensor] = {}
        for value in sorted(set(decay.values())):
            names = [name for name in initial if decay[name] == value]
            ends = [0]
            strides = {name: _up(initial[name][0].numel(), _LINE) for name in names}
            for name in names:
                ends.append(ends[-1] + _up(len(initial[name]) * strides[name], _ALIGN))
            slab = next(iter(initial.values())).new_zeros(ends[-1])
            slab.grad = torch.zeros_like(slab)
            for name, start in zip(names, ends, strict=False):
                shape, stride = initial[name].shape, strides[name]
                theta[name] = _models(slab, start, shape, stride).copy_(initial[name])
                grad[name] = _models(slab.grad, start, shape, stride)
            slabs[value] = slab
        return Stack(theta, grad, slabs)

    def optimizer(self, optimizer: Optimizer) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [
            {"params": [slab], "weight_decay": decay} for decay, slab in self.slabs.items()
        ]
        return optimizer.build(groups, fused=True)

    def clip(self, norm: float) -> None:
        """Scale each model's gradient to at most `norm`, as `clip_grad_norm_` does for one."""
        rows = [g.view(len(g), -1) for g in self.grad.values()]
        parts = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in rows])
        total_m = torch.linalg.vector_norm(parts, dim=0)
        factor_m1 = (norm / (total_m + 1e-6)).clamp_max(1.0)[:, None]
        for g in rows:
            g.mul_(factor_m1)


def _up(length: int, unit: int) -> int:
    return -(-length // unit) * unit


def _models(slab: Tensor, start: int, shape: torch.Size, stride: int) -> Tensor:
    """The [M, *shape] view of `slab` whose models begin `stride` numbers apart."""
    m, own = shape[0], shape[1:]
    return slab[start : start + m * stride].view(m, stride)[:, : prod(own)].view(shape)
