"""Training and evaluating M models side by side: one loop, whatever computes the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from curvfluence.problem.data import Examples
from curvfluence.truth.paths import Network
from curvfluence.truth.recipe import Recipe
from curvfluence.truth.run import Share, stacked_batches

_ROWS = 256  # of evaluation at a time; a multiple of 16, see `StackedChain`


def train_together(
    network: Network, recipe: Recipe, examples: Examples, shares: Sequence[Share]
) -> None:
    """Take `network` from its initial to its trained parameters, in place.

    `shares` are the runs' examples, equally many in each. Cost: the models' flops; memory for M
    batches and their activations.
    """
    stack = network.stack
    any_theta = next(iter(stack.theta.values()))
    optimizer = stack.optimizer(recipe.optimizer)
    total = recipe.total_steps(len(shares[0]))
    gradient = network.gradient_function()
    x_nd, y = (
        examples.inputs.flatten(1) if examples.inputs.ndim > 1 else examples.inputs,
        examples.targets,
    )
    buffer = x_nd.new_empty(0)
    for step, (index_mb, scale_mb) in enumerate(stacked_batches(recipe, shares, any_theta)):
        flat = index_mb.flatten()
        buffer.resize_(len(flat), *x_nd.shape[1:])
        x = torch.index_select(x_nd, 0, flat, out=buffer)
        gradient(
            x.view(*index_mb.shape, *examples.inputs.shape[1:]),
            y.index_select(0, flat).view(*index_mb.shape, *y.shape[1:]),
            scale_mb,
        )
        if recipe.clip_norm is not None:
            stack.clip(recipe.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step, total)
        optimizer.step()


def evaluate(
    network: Network, values: Callable[[Tensor, Tensor], Tensor], examples: Examples
) -> Tensor:
    """values(output, target) of each example under each model, [M, N]."""
    columns: list[Tensor] = []
    for _, part in examples.chunks(_ROWS):
        x, y = part.inputs, part.targets
        spare = -len(x) % 16
        output = network.outputs(torch.cat([x, x[:1].expand(spare, *x.shape[1:])]))
        f_mbk = output[:, : len(x)]
        target = y.expand(len(f_mbk), *y.shape).flatten(0, 1)
        columns.append(values(f_mbk.flatten(0, 1), target).view(len(f_mbk), len(x)))
    return torch.cat(columns, dim=1)


def final_losses(
    network: Network, recipe: Recipe, examples: Examples, shares: Sequence[Share]
) -> Tensor:
    """The (weighted) mean loss of each run over its own examples, [M] float64."""
    value_mn = evaluate(network, recipe.loss.values, examples).double()
    return torch.stack(
        [
            (row[share.index] * share.weight.to(row.device)).sum() / share.weight.sum()
            for row, share in zip(value_mn, shares, strict=True)
        ]
    )
