"""Vector-Jacobian products by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

Leaf: TypeAlias = "Tensor | GradientEdge"


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
    """
    with torch.enable_grad():
        total = (output * cotangent).sum()
    grads = cast(
        "tuple[Tensor | None, ...]",
        torch.autograd.grad(
            total,
            cast("Sequence[Tensor]", leaves),
            retain_graph=retain_graph,
            create_graph=create_graph,
            allow_unused=True,
        ),
    )
    return tuple(g.to_dense() if g is not None and g.is_sparse else g for g in grads)
