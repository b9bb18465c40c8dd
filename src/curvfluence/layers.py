"""The only file with hooks: inputs and output-gradients of the layers that have a rule.

For an unshared Linear layer z = W a + b (one row of inputs an example, called once), an example's
gradient is the outer product of ∂/∂z and a. `capture` collects a for every such layer in one
forward pass; its `pullback` sends columns at the model's output down to ∂/∂z of every layer.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from curvfluence.errors import InputError
from curvfluence.parameters import call
from curvfluence.problem import Problem, as_rows, require_per_example


@dataclass(frozen=True)
class LinearLayer:
    """An unshared `nn.Linear`: parameter names, and its sizes o × i."""

    name: str
    weight: str
    bias: str | None
    out_features: int
    in_features: int


@dataclass(frozen=True)
class Coverage:
    """Which parameters a layer's structure explains, and why the others are not explained."""

    layers: tuple[LinearLayer, ...]
    others: Mapping[str, str]  # parameter name -> reason


@dataclass(frozen=True, eq=False)
class Capture:
    """One forward pass: outputs [B, K] with their graph, and each layer's inputs a [B, i]."""

    output: Tensor
    inputs: Mapping[str, Tensor]
    edges: Mapping[str, GradientEdge]

    def pullback(self, columns_bkc: Tensor) -> dict[str, Tensor]:
        """s = (∂f/∂z)ᵀ column for every layer, [B, C, o]. Cost: C backward passes, none into W."""
        names = list(self.edges)
        per_column = [
            torch.autograd.grad(
                self.output,
                [self.edges[name] for name in names],
                columns_bkc[:, :, c],
                retain_graph=True,
            )
            for c in range(columns_bkc.shape[2])
        ]
        return {
            name: torch.stack([grads[k] for grads in per_column], dim=1)
            for k, name in enumerate(names)
        }


def capture(problem: Problem, layers: tuple[LinearLayer, ...], inputs: Tensor) -> Capture:
    """A forward pass over `inputs` with the layers' inputs and output edges kept."""
    calls, output = _record(problem, tuple(layer.name for layer in layers), inputs)
    for name, seen in calls.items():
        if len(seen) != 1 or seen[0].edge is None:
            raise InputError(
                f"{name} (Linear) was called {len(seen)} times on a batch of the data, though once "
                "on a probe: which layers run must not depend on the data"
            )
    return Capture(
        output=output,
        inputs={name: seen[0].input for name, seen in calls.items()},
        edges={name: seen[0].edge for name, seen in calls.items() if seen[0].edge is not None},
    )


def coverage(problem: Problem) -> Coverage:
    """Find the unshared Linear layers; say of every other trainable parameter why it has no rule.

    Structure alone does not show how a weight is used (a second call, a use outside its module, a
    hook that changes an output), so up to eight examples, spread over the training set, are run
    together and one at a time. Outputs must agree, or the model mixes examples or is random and
    is refused. A layer has a rule where its g aᵀ equals autograd's gradient of each example.
    """
    _require_plain_mode()
    require_per_example(problem.model)
    candidates, reasons = _candidates(problem)
    at = torch.linspace(0, len(problem.train) - 1, min(8, len(problem.train))).long().unique()
    inputs = problem.train.inputs[at]
    with torch.random.fork_rng(devices=[]):
        probe = _Probe.of(problem, candidates, inputs)
        _require_deterministic(problem, probe, at)
    if not probe.output.requires_grad:
        return Coverage((), dict.fromkeys(problem.parameters.names, "the output ignores it"))
    agreeing: list[LinearLayer] = []
    for layer in candidates:
        reason = _reason_against(probe, layer)
        if reason is None:
            agreeing.append(layer)
        else:
            reasons.update(dict.fromkeys(_names(layer), reason))
    return Coverage(tuple(agreeing), reasons)


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a Linear layer: its input, and the edge of its output (None without a graph)."""

    input: Tensor
    edge: GradientEdge | None


@dataclass(frozen=True, eq=False)
class _Probe:
    """A few examples run together, and each example's own outputs and parameter gradients."""

    inputs: Tensor
    calls: Mapping[str, list[_Call]]
    output: Tensor
    weights: Tensor  # the probing combination of outputs, [B, K]
    alone: tuple[Tensor, ...]  # outputs [1, K] of each example by itself
    gradients: tuple[Mapping[str, Tensor | None], ...]

    @staticmethod
    def of(problem: Problem, candidates: list[LinearLayer], inputs: Tensor) -> _Probe:
        calls, output = _record(problem, tuple(layer.name for layer in candidates), inputs)
        weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype)
        weights = weights.to(output.device).reshape(output.shape)
        alone: list[Tensor] = []
        gradients: list[Mapping[str, Tensor | None]] = []
        for b in range(len(inputs)):
            theta = {n: v.detach().requires_grad_(True) for n, v in problem.theta.items()}
            _, own = _record(problem, (), inputs[b : b + 1], theta)
            alone.append(own.detach())
            found = (
                torch.autograd.grad(
                    own, list(theta.values()), weights[b : b + 1], allow_unused=True
                )
                if own.requires_grad
                else [None] * len(theta)
            )
            gradients.append(dict(zip(theta, found, strict=True)))
        return _Probe(inputs, calls, output, weights, tuple(alone), tuple(gradients))


def _require_plain_mode() -> None:
    if torch.is_inference_mode_enabled():
        raise InputError("leave torch.inference_mode(): influence needs gradients")
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise InputError("leave torch.autocast: curvature needs one dtype throughout")


def _require_deterministic(problem: Problem, probe: _Probe, at: Tensor) -> None:
    """The same outputs again, and one example at a time; and the inputs left as they were."""
    if probe.output.dtype != problem.dtype:
        raise InputError(
            f"the model returns {probe.output.dtype} at {problem.dtype} weights: run it in one "
            "dtype, without autocast inside"
        )
    if not torch.equal(probe.inputs, problem.train.inputs[at]):
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


def _reason_against(probe: _Probe, layer: LinearLayer) -> str | None:
    """Why the layer has no rule, or None."""
    seen = probe.calls[layer.name]
    label = f"{layer.name or 'the model'} (Linear)"
    if len(seen) != 1:
        return f"{label} is called {len(seen)} times"
    a_bi, edge = seen[0].input, seen[0].edge
    if a_bi.shape != (len(probe.inputs), layer.in_features):
        return f"{label} acts on inputs of shape {tuple(a_bi.shape)}, shared over positions"
    if edge is None:
        return f"{label} runs without a gradient"
    (g_bo,) = cast(
        "tuple[Tensor | None]",
        torch.autograd.grad(
            probe.output, [edge], probe.weights, allow_unused=True, retain_graph=True
        ),
    )
    if g_bo is None:
        return f"{label} does not reach the output"
    for a_i, g_o, own in zip(a_bi, g_bo, probe.gradients, strict=True):
        expected = [torch.outer(g_o, a_i), g_o]
        for name, wanted in zip(_names(layer), expected, strict=False):
            if not _agree(own[name], wanted):
                return f"the gradient of {label} is not that of its own call alone"
    return None


def _agree(found: Tensor | None, wanted: Tensor) -> bool:
    """Equal to rounding, relative to the gradient itself: there is no scale below which any is."""
    found = torch.zeros_like(wanted) if found is None else found
    if not bool(found.isfinite().all() and wanted.isfinite().all()):
        return True  # not for this check to name: the pass over the data names the example
    size = max(float(found.norm()), float(wanted.norm()))
    return float((found - wanted).norm()) <= 1e3 * torch.finfo(found.dtype).eps * size


def _names(layer: LinearLayer) -> list[str]:
    return [layer.weight] + ([layer.bias] if layer.bias is not None else [])


def _candidates(problem: Problem) -> tuple[list[LinearLayer], dict[str, str]]:
    trainable = set(problem.parameters.names)
    owners: dict[int, int] = {}
    for module in problem.model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    reasons: dict[str, str] = {}
    found: list[LinearLayer] = []
    for name, module in problem.model.named_modules():
        own = {
            f"{name}.{key}" if name else key: parameter
            for key, parameter in module.named_parameters(recurse=False)
        }
        tied = any(owners[id(parameter)] > 1 for parameter in own.values())
        weight = f"{name}.weight" if name else "weight"
        bias = f"{name}.bias" if name else "bias"
        if type(module) is nn.Linear and not tied and weight in trainable:
            found.append(
                LinearLayer(
                    name=name,
                    weight=weight,
                    bias=bias if bias in trainable else None,
                    out_features=module.out_features,
                    in_features=module.in_features,
                )
            )
            continue
        kind = type(module).__name__
        why = "shares a parameter with another module" if tied else "has no rule"
        label = f"{name} ({kind})" if name else kind
        for key in own:
            if key in trainable and key not in reasons:
                reasons[key] = f"{label} {why}"
    return found, reasons


def _record(
    problem: Problem,
    names: tuple[str, ...],
    inputs: Tensor,
    theta: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, list[_Call]], Tensor]:
    """Run the model; each call of each named module, and the outputs.

    A gradient edge is taken at once, so an in-place activation that follows does not move it.
    """
    calls: dict[str, list[_Call]] = {name: [] for name in names}
    tracked = {name: value.detach().requires_grad_(True) for name, value in problem.theta.items()}
    with torch.enable_grad(), _hooked(problem.model, calls):
        values = {**problem.state, **tracked, **(theta or {})}
        output = call(problem.model, problem.slots, values, inputs)
    return calls, as_rows(output, len(inputs))


@contextmanager
def _hooked(model: nn.Module, calls: dict[str, list[_Call]]) -> Generator[None]:
    modules = dict(model.named_modules())

    def record(name: str) -> Any:
        def hook(
            module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor
        ) -> None:
            edge = get_gradient_edge(output) if output.requires_grad else None
            given = args[0] if args else kwargs["input"]
            calls[name].append(_Call(given.detach(), edge))

        return hook

    handles = [modules[n].register_forward_hook(record(n), with_kwargs=True) for n in calls]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
