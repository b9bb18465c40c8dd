"""A few examples run together and one at a time: what a rule is checked against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.jacobian.capture import record, record_shared
from curvfluence.jacobian.tracing import Tracer, Use
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
    positions: frozenset[str]  # weights that are looked up in by positions [T]

    def without_graph(self) -> Probe:
        """Without what a backward pass needs, and the inputs of calls: what may be large."""
        uses = (replace(u, input=u.input.new_empty(0), edge=None, source=None) for u in self.uses)
        return replace(self, output=self.output.detach(), uses=tuple(uses))

    @staticmethod
    def of(problem: Problem, inputs: Batched) -> Probe:
        tracer, output, leaves = _recorded(problem, inputs)
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
                with problem.holding(theta):
                    grads = pulled_back(single, list(theta.values()), weights[b : b + 1])
            gradients.append(dict(zip(theta, grads, strict=True)))
        return Probe(
            inputs,
            leaves,
            tuple(tracer.uses),
            output,
            weights,
            tuple(alone),
            tuple(gradients),
            frozenset(tracer.positions),
        )


def _recorded(problem: Problem, inputs: Batched) -> tuple[Tracer, Tensor, Mapping[str, Tensor]]:
    """`record` with shared lookups of each example, as far as outputs are what they are without."""
    found = record(problem, inputs)
    if positions := _positions(problem, inputs, found[0]):
        spread = record(problem, inputs, positions)
        if _is_plain(problem, inputs, spread[1]):
            return spread
    if found[0].spread and not _is_plain(problem, inputs, found[1]):
        return record_shared(problem, inputs)
    return found


def _positions(problem: Problem, inputs: Batched, seen: Tracer) -> frozenset[str]:
    """Weights of which every lookup by indices [T] has as many of a single example: positions that
    all share. (One of each example is then one, and those of all in a row are fewer.)"""
    if not seen.lengths:
        return frozenset()
    single, _, _ = record(problem, inputs[:1])
    apart = set(seen.lengths) ^ set(single.lengths)
    return frozenset(name for name, _ in seen.lengths) - {name for name, _ in apart}


def _is_plain(problem: Problem, inputs: Batched, output: Tensor) -> bool:
    with torch.no_grad():
        plain = problem.forward(inputs)
    same_shape = output.shape == plain.shape
    return same_shape and not _differ(output.detach(), plain, _tolerance(problem, plain))


def _tolerance(problem: Problem, output: Tensor) -> float:
    """How far two ways to the same outputs may part."""
    size = max(float(output.detach().abs().max()), torch.finfo(problem.dtype).tiny)
    return 1e4 * torch.finfo(problem.dtype).eps * size


def _differ(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    both_nan = found.isnan() & wanted.isnan()
    return bool(((found - wanted).abs() > tolerance).logical_and(~both_nan).any())


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
    tolerance = _tolerance(problem, probe.output)
    if _differ(again, probe.output.detach(), tolerance):
        raise InputError(
            "the model gives other outputs when run again on the same inputs: it is random or "
            "changes its own state. Call model.eval(), or take the randomness out"
        )
    if _differ(torch.cat(probe.alone), probe.output.detach(), tolerance):
        raise InputError(
            "an example's output depends on the others in its batch, so it has no loss of its own: "
            "take out what mixes examples (batch statistics, say)"
        )
