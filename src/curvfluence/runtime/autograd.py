"""Vector-Jacobian products by autograd."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from curvfluence.errors import InputError

# What torch says where activations are computed again: without the call's weights, which leave the
# private copy of the modules with the call; or by a checkpoint that knows `.backward()` alone.
RECOMPUTED = re.compile(
    r"\b(at|device) meta\b|Checkpointing is not compatible|torch\.utils\.checkpoint"
)

Leaf: TypeAlias = "Tensor | GradientEdge"


class Recomputed(InputError):
    """A backward pass that computes activations again, without what it needs for them."""


def reached(output: Tensor) -> Iterator[Tensor]:
    """The leaves that require a gradient in the graph of a tensor."""
    todo = [] if output.grad_fn is None else [output.grad_fn]
    seen = set(todo)
    while todo:
        node = todo.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            yield leaf
        below = [node for node, _ in node.next_functions if node is not None and node not in seen]
        seen.update(below)
        todo += below


def pulled_back(
    output: Tensor,
    leaves: Sequence[Leaf],
    cotangent: Tensor,
    *,
    create_graph: bool = False,
    retain_graph: bool = True,
) -> tuple[Tensor | None, ...]:
    """Jᵀ u for each leaf, u of the output's shape; None where the output does not depend on it.

    As the gradient of ⟨output, u⟩, which has u itself for its cotangent. Given u as `grad_outputs`,
    torch imports sympy on the first call of a process: half a second.

    Errors: `Recomputed` for a model that computes activations again in its backward pass, whose
    weights are not there (`Structure.holding`), or by a checkpoint that is reentrant.
    """
    with torch.enable_grad():
        total = (output * cotangent).sum()
    try:
        found = torch.autograd.grad(
            total,
            cast("Sequence[Tensor]", leaves),
            retain_graph=retain_graph,
            create_graph=create_graph,
            allow_unused=True,
        )
    except RuntimeError as error:
        if not RECOMPUTED.search(str(error)):
            raise
        raise Recomputed(
            "the model computes activations again in its backward pass (torch.utils.checkpoint) in "
            "a way that cannot be followed: with use_reentrant=True, or with "
            "nn.MultiheadAttention, nn.LSTM, nn.GRU, nn.RNN or shared positions in what is "
            "computed again. Give checkpoint(...) use_reentrant=False, or switch it off for "
            "scores (Hugging Face: model.gradient_checkpointing_disable()), which changes no number"
        ) from error
    grads = cast("tuple[Tensor | None, ...]", found)
    return tuple(g.to_dense() if g is not None and g.is_sparse else g for g in grads)
