"""Rows against what the model does otherwise: an example alone, an ordinary backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.problem import Problem
from curvfluence.rows import Rows

TOLERANCE = 1e3  # times eps, of the size of what was added up
AUTOCAST_TOLERANCE = 30  # the same in bfloat16
SUM_TOLERANCE = 100  # of a sum over some hundred examples, of which one may be wrong


def require_alike(
    problem: Problem,
    together: Rows,
    alone: Rows,
    output: Tensor,
    output_alone: Tensor,
    number: int,
    what: str,
) -> None:
    """One example's output and row in a batch, and run by itself with the same columns.

    Rows are compared by their inner product with a random vector, which does not ask in which
    order positions are added: a row that is another example's is found almost surely.
    """
    low = problem.autocast
    tolerance = (
        TOLERANCE * torch.finfo(problem.dtype).eps
        if low is None
        else AUTOCAST_TOLERANCE * torch.finfo(low).eps
    )
    gap = float((output - output_alone).norm())
    if gap > 2 * tolerance * max(float(output.norm()), float(output_alone.norm())):
        raise InputError(
            f"example {number} of the {what} has another output alone than in its batch: an "
            "example must not depend on the others. Take out what mixes them (batch statistics, "
            "routing with a capacity)"
        )
    generator = torch.Generator().manual_seed(number)
    x_1p = torch.randn(1, together.parameters.count, generator=generator).to(together.dense)
    difference = (together.inner(x_1p) - alone.inner(x_1p))[0, 0].abs()
    size = torch.maximum(together.squared_norms(), alone.squared_norms())[0].sqrt()
    bound = max(together.size(), alone.size())
    if bool((difference > tolerance * size.clamp_min(bound)).any()):
        raise InputError(
            f"the gradient of example {number} of the {what} is another alone than in its batch: "
            "the model reorders its batch, or drops positions, in a way that the data decides. "
            "Keep examples and padded positions in their places"
        )


def require_sum(rows: Rows, wanted: Tensor, what: str) -> None:
    """Σ_n of the first columns' rows against what an ordinary backward pass gives, [P].

    The probe sees a few examples: a use of a weight that none of them shows would be left out.
    Rounding of a sum goes with the size of its terms, not with that of the sum.
    """
    summed = rows.first_column_sum()
    size = rows.size() + float(wanted.norm())
    if float((summed - wanted).norm()) <= SUM_TOLERANCE * torch.finfo(summed.dtype).eps * size:
        return
    slices = rows.parameters.slices
    worst = max(slices, key=lambda name: float((summed - wanted)[slices[name]].norm()))
    raise InputError(
        f"the per-example gradients of {worst} do not add up to the gradient over the {what}: its "
        "weight is used in a way that depends on the data. Give it a module of its own"
    )
