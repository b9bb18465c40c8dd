"""M models of any architecture that torch.func can stack: vmap over models of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from curvfluence.errors import InputError
from curvfluence.problem.structure import Structure
from curvfluence.problem.tree import Batched, each, leaves, of_leaves
from curvfluence.runtime import generators
from curvfluence.runtime.calls import OneCode
from curvfluence.truth.recipe import Recipe
from curvfluence.truth.stack import Stack


def obstacle(model: nn.Module) -> str | None:
    """Why the model's training depends on more than (θ, batch), as far as its modules tell."""
    for name, module in model.named_modules():
        label = f"module {name or 'itself'} ({type(module).__name__})"
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training:  # pyright: ignore[reportPrivateUsage]
            if module.track_running_stats or isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
                return f"{label} normalises over the batch or keeps running statistics"
        elif isinstance(module, nn.modules.dropout._DropoutNd):  # pyright: ignore[reportPrivateUsage]
            if module.training and module.p > 0:
                return f"{label} is random"
        elif isinstance(module, nn.RNNBase):
            return f"{label} has no batching rule"
    return None


def probe(model: nn.Module, recipe: Recipe, inputs: Batched, targets: Batched) -> str | None:
    """Why torch.func cannot stack the model, found by trying one gradient of two copies."""
    reason = obstacle(model)
    if reason is not None:
        return reason
    named = list(model.named_parameters())
    theta = {n: torch.stack([p.detach()] * 2) for n, p in named if p.requires_grad}
    frozen = {n: p.detach() for n, p in named if not p.requires_grad}
    rest = {**frozen, **dict(model.named_buffers())}
    state = {n: torch.stack([b] * 2) for n, b in rest.items()}
    before = {n: b.clone() for n, b in state.items()}
    net = FunctionalNet(model, recipe, Stack.of(theta, dict.fromkeys(theta, 0.0)), state)
    rows = min(len(inputs), 2)
    x, y = (each(t[:rows], lambda leaf: torch.stack([leaf] * 2)) for t in (inputs, targets))
    try:
        with generators.preserved():
            net.gradient_function()(x, y, next(iter(theta.values())).new_ones(2, rows))
            net.outputs(inputs[:rows])  # as it is measured: in evaluation mode
    except InputError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return f"torch.func cannot stack the model: {type(error).__name__}: {first}"
    changed = [n for n, b in state.items() if not torch.equal(b, before[n])]
    if changed:
        return f"training changes the buffers {changed}"
    with torch.no_grad(), OneCode():
        together = recipe.calls(model, inputs[:rows])[:1]
        alone = recipe.calls(model, inputs[:1])
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-5):
        # Unused rows of a partial minibatch would then count.
        return "an example's output depends on the others in its batch"
    return None


@dataclass(frozen=True, eq=False)
class FunctionalNet:
    """M models by `functional_call` under vmap; `state` is their frozen parameters and buffers.

    The same interface as `StackedChain`.
    """

    model: nn.Module
    recipe: Recipe
    stack: Stack
    state: Mapping[str, Tensor]

    @cached_property
    def _training(self) -> Structure:
        return Structure(self.model, self.recipe.calls)

    @cached_property
    def _evaluated(self) -> Structure:
        evaluated = Structure(self.model, self.recipe.calls)
        evaluated.modules.eval()
        return evaluated

    def outputs(self, x: Batched) -> Tensor:
        """Outputs [M, B, K] of shared inputs [B, ...], in evaluation mode."""
        model = self._evaluated

        def forward(everything: dict[str, Tensor]) -> Tensor:
            return self.recipe.loss.rows(model(everything, x), len(x))

        everything = {**self.state, **self.stack.theta}
        return torch.func.vmap(forward, randomness="error")(everything)

    def gradient_function(self) -> Callable[[Batched, Batched, Tensor], None]:
        """`gradient(x [M, B, ...], target [M, B, ...], scale [M, B])`, into `stack.grad`."""
        model, loss = self._training, self.recipe.loss
        theta, state = dict(self.stack.theta), dict(self.state)

        def gradient(x: Batched, target: Batched, scale_mb: Tensor) -> None:
            def objective(
                theta: dict[str, Tensor],
                state: dict[str, Tensor],
                x_leaves: tuple[Tensor, ...],
                y_leaves: tuple[Tensor, ...],
                s: Tensor,
            ) -> Tensor:
                x_b, y_b = of_leaves(x, x_leaves), of_leaves(target, y_leaves)
                output = loss.rows(model({**state, **theta}, x_b), len(s))
                return (loss.values(output, y_b) * s).sum()

            stacked = torch.func.vmap(torch.func.grad(objective), randomness="error")
            found = stacked(theta, state, leaves(x), leaves(target), scale_mb)
            for name, value in found.items():
                self.stack.grad[name].copy_(value)

        return gradient
