"""A few examples run together and one at a time: what a rule is checked against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.jacobian.capture import record, record_shared
from curvfluence.jacobian.tracing import Use
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import Batched, same
from curvfluence.runtime.autograd import pulled_back


@dataclass(frozen=True, eq=False)
class Probe:
    """A few examples run together, and each example's own outputs and parameter gradients."""

    inputs: Batched
    leaves: Mapping[str, Tensor]
    uses: tuple[Use, ...]
    output: Tensor
    weights: Tensor  # the probing combination of outputs, [B, K]
    alone: tuple[Tensor, ...]  # outputs [1, K] of each example by itself
    gradients: tuple[Mapping[str, Tensor | None], ...]

    @staticmethod
    def of(problem: Problem, inputs: Batched) -> Probe:
        tracer, output, leaves = record(problem, inputs)
        if tracer.by_example:  # as many indices as examples: are they with one fewer?
            fewer, _, _ = record(problem, inputs[:-1])
            if fewer.by_position:
                tracer, output, leaves = record(problem, inputs)
        if tracer.spread:
            with torch.no_grad():
                plain = problem.forward(inputs)
            if not torch.allclose(output.detach(), plain, rtol=1e-4, atol=1e-6, equal_nan=True):
                tracer, output, leaves = record_shared(problem, inputs)
        weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype)
        weights = weights.to(output.device).reshape(output.shape)
        alone: list[Tensor] = []
        gradients: list[Mapping[str, Tensor | None]] = []
        for b in range(len(inputs)):
            theta = {n: v.detach().requires_grad_(True) for n, v in problem.theta.items()}
            with torch.enable_grad():
                single = problem.forward(inputs[b : b + 1], theta)
            alone.append(single.detach())
            grads: tuple[Tensor | None, ...] = (None,) * len(theta)
            if single.requires_grad:
                grads = pulled_back(single, list(theta.values()), weights[b : b + 1])
            gradients.append(dict(zip(theta, grads, strict=True)))
        return Probe(
            inputs, leaves, tuple(tracer.uses), output, weights, tuple(alone), tuple(gradients)
        )


def require_plain_mode() -> None:
    if torch.is_inference_mode_enabled():
        raise InputError("leave torch.inference_mode(): influence needs gradients")
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise InputError(
            "leave torch.autocast: curvature needs to know which passes it is for. Use "
            "Problem(..., autocast=torch.bfloat16)"
        )


def require_deterministic(problem: Problem, probe: Probe, inputs: Batched) -> None:
    """The same outputs again, and one example at a time; and the inputs left as they were."""
    if probe.output.dtype != problem.dtype:
        raise InputError(
            f"the model returns {probe.output.dtype} at {problem.dtype} weights: run it in one "
            "dtype, without autocast inside"
        )
    if not same(probe.inputs, inputs):
        raise InputError("the model changes its inputs in place: have it work on a copy")
    with torch.no_grad():
        again = problem.forward(probe.inputs)
    scale = float(probe.output.detach().abs().max())
    tolerance = 1e4 * torch.finfo(problem.dtype).eps * max(scale, torch.finfo(problem.dtype).tiny)

    def differs(found: Tensor, wanted: Tensor) -> bool:
        both_nan = found.isnan() & wanted.isnan()
        return bool(((found - wanted).abs() > tolerance).logical_and(~both_nan).any())

    if differs(again, probe.output.detach()):
        raise InputError(
            "the model gives other outputs when run again on the same inputs: it is random or "
            "changes its own state. Call model.eval(), or take the randomness out"
        )
    if differs(torch.cat(probe.alone), probe.output.detach()):
        raise InputError(
            "an example's output depends on the others in its batch, so it has no loss of its own: "
            "take out what mixes examples (batch statistics, say)"
        )
