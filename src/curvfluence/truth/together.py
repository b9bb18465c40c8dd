"""Training and evaluating M models side by side: one loop, whatever computes the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor

from curvfluence.problem.data import Examples
from curvfluence.problem.tree import Batched, each, leaves, of_leaves
from curvfluence.truth.paths import Network
from curvfluence.truth.recipe import Recipe
from curvfluence.truth.resume import Optimized, Resume, Together
from curvfluence.truth.run import Share, stacked_batches

_ROWS = 256  # of evaluation at a time; a multiple of 16, see `StackedChain`


def train_together(
    network: Network,
    recipe: Recipe,
    examples: Examples,
    shares: Sequence[Share],
    resume: Resume | None = None,
) -> None:
    """Take `network` from its initial to its trained parameters, in place.

    `shares` are the runs' examples, equally many in each; with `resume` states on the way are kept,
    and the last one is where training goes on. Cost: the models' flops; memory for M
    batches and their activations.
    """
    stack = network.stack
    any_theta = next(iter(stack.theta.values()))
    optimizer = stack.optimizer(recipe.optimizer)
    total = recipe.total_steps(len(shares[0]))
    gradient = network.gradient_function()
    taken = _Taken(examples.inputs)
    resume = resume or Resume(None)
    found = resume.begin(shares, Together, type(network).__name__)
    start = 0 if found is None else found.step
    if found is not None:
        found.optimized.put_into(optimizer)
    batches = islice(stacked_batches(recipe, shares, any_theta), start, None)
    for step, (index_mb, scale_mb) in enumerate(batches, start):
        y = each(
            examples.targets,
            lambda leaf, at=index_mb: leaf.index_select(0, at.flatten()).view(
                *at.shape, *leaf.shape[1:]
            ),
        )
        gradient(taken(index_mb), y, scale_mb)
        if recipe.clip_norm is not None:
            stack.clip(recipe.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step, total)
        optimizer.step()
        if resume.due:
            resume.keep(Together(step + 1, Optimized.of(optimizer)))
    if resume.near:
        resume.keep(Together(total, Optimized.of(optimizer)))


class _Taken:
    """Rows of the inputs by index, in memory that is used again."""

    def __init__(self, inputs: Batched) -> None:
        self.inputs = inputs
        self.rows = [leaf.flatten(1) if leaf.ndim > 1 else leaf for leaf in leaves(inputs)]
        self.buffers = [leaf.new_empty(0) for leaf in self.rows]

    def __call__(self, index_mb: Tensor) -> Batched:
        """[M, B, ...] of each leaf; overwritten by the next call."""
        flat = index_mb.flatten()
        found: list[Tensor] = []
        for leaf, row, buffer in zip(leaves(self.inputs), self.rows, self.buffers, strict=True):
            buffer.resize_(len(flat), *row.shape[1:])
            taken = torch.index_select(row, 0, flat, out=buffer)
            found.append(taken.view(*index_mb.shape, *leaf.shape[1:]))
        return of_leaves(self.inputs, found)


def evaluate(
    network: Network, values: Callable[[Tensor, Batched], Tensor], examples: Examples
) -> Tensor:
    """values(output, target) of each example under each model, [M, N]."""
    columns: list[Tensor] = []
    for _, part in examples.chunks(_ROWS):
        x, y = part.inputs, part.targets
        f_mbk = network.outputs(each(x, _filled))[:, : len(x)]
        models = len(f_mbk)
        target = each(y, lambda leaf, m=models: leaf.expand(m, *leaf.shape).flatten(0, 1))
        columns.append(values(f_mbk.flatten(0, 1), target).view(len(f_mbk), len(x)))
    return torch.cat(columns, dim=1)


def _filled(x: Tensor) -> Tensor:
    """Up to a multiple of 16 rows."""
    return torch.cat([x, x[:1].expand(-len(x) % 16, *x.shape[1:])])


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
