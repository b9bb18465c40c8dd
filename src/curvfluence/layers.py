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

from curvfluence.parameters import call
from curvfluence.problem import Problem, as_rows


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
    return Capture(
        output=output,
        inputs={name: seen[0][0] for name, seen in calls.items()},
        edges={name: seen[0][1] for name, seen in calls.items()},
    )


def coverage(problem: Problem) -> Coverage:
    """Find the unshared Linear layers; say of every other trainable parameter why it has no rule.

    Structure alone does not show how a weight is used (a second call, a use outside its module, a
    hook that changes an output), so two examples are run and the layer's g aᵀ is compared with
    autograd's gradient of its parameters: a layer that disagrees has no rule.
    """
    candidates, reasons = _candidates(problem)
    inputs = problem.train.inputs[:2]
    calls, output = _record(problem, tuple(layer.name for layer in candidates), inputs)
    if not output.requires_grad:
        return Coverage((), dict.fromkeys(problem.parameters.names, "the output ignores it"))
    usable: list[LinearLayer] = []
    for layer in candidates:
        seen = calls[layer.name]
        if len(seen) != 1:
            reason = f"{layer.name} (Linear) is called {len(seen)} times"
        elif seen[0][0].shape != (len(inputs), layer.in_features):
            reason = (
                f"{layer.name} (Linear) acts on inputs of shape {tuple(seen[0][0].shape)}, shared "
                "over positions"
            )
        else:
            usable.append(layer)
            continue
        reasons.update(dict.fromkeys(_names(layer), reason))
    agreeing = [layer for layer in usable if _explains(problem, layer, inputs)]
    for layer in usable:
        if layer not in agreeing:
            reason = f"the gradient of {layer.name} (Linear) is not that of its own call alone"
            reasons.update(dict.fromkeys(_names(layer), reason))
    return Coverage(tuple(agreeing), reasons)


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


def _explains(problem: Problem, layer: LinearLayer, inputs: Tensor) -> bool:
    parameters = {name: problem.theta[name].detach().requires_grad_(True) for name in _names(layer)}
    calls, output = _record(problem, (layer.name,), inputs, parameters)
    probe = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype, device=output.device)
    a_bi, edge = calls[layer.name][0]
    wrt: list[Any] = [edge, *parameters.values()]
    found = cast(
        "tuple[Tensor | None, ...]",
        torch.autograd.grad(output, wrt, probe.reshape(output.shape), allow_unused=True),
    )
    g_bo = found[0]
    if g_bo is None:  # the layer's output does not reach the model's
        return False
    expected = [g_bo.T @ a_bi, g_bo.sum(0)]
    tolerance = 1e3 * torch.finfo(output.dtype).eps
    return all(
        gradient is not None
        and float((gradient - wanted).norm()) <= tolerance * (1 + float(wanted.norm()))
        for gradient, wanted in zip(found[1:], expected, strict=False)
    )


def _record(
    problem: Problem,
    names: tuple[str, ...],
    inputs: Tensor,
    theta: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, list[tuple[Tensor, GradientEdge]]], Tensor]:
    """Run the model; for each named module the (input, edge of its output) of each call.

    A gradient edge is taken at once, so an in-place activation that follows does not move it.
    """
    calls: dict[str, list[tuple[Tensor, GradientEdge]]] = {name: [] for name in names}
    tracked = {name: value.detach().requires_grad_(True) for name, value in problem.theta.items()}
    with torch.enable_grad(), _hooked(problem.model, calls):
        values = {**problem.state, **tracked, **(theta or {})}
        output = call(problem.model, problem.slots, values, inputs)
    return calls, as_rows(output, len(inputs))


@contextmanager
def _hooked(
    model: nn.Module, calls: dict[str, list[tuple[Tensor, GradientEdge]]]
) -> Generator[None]:
    modules = dict(model.named_modules())

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name].append((args[0].detach(), get_gradient_edge(output)))

        return hook

    handles = [modules[name].register_forward_hook(record(name)) for name in calls]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
