"""Rows against what the model does otherwise: an example alone, an ordinary backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.jacobian.rows import Rows

PERIOD = 65_537  # of a random x: a prime, with which no width of a layer goes in step
TOLERANCE = 1e3  # times eps, of the size of what was added up
AUTOCAST_TOLERANCE = 30  # the same in bfloat16
NOISE = 64  # eps, of the largest row beside it, that a row may be of by rounding alone
SUM_TOLERANCE = 100  # of a sum over some hundred examples, of which one may be wrong


def drawn(row: Rows, number: int) -> Tensor:
    """The random x [1, P] of an example; of many parameters its first numbers again and again, in a
    quarter of the time of drawing all of them."""
    count, generator = row.parameters.count, torch.Generator().manual_seed(number)
    x_1p = torch.randn(1, min(count, PERIOD), generator=generator)
    return x_1p.repeat(1, -(-count // PERIOD))[:, :count].to(row.dense)


@dataclass(frozen=True, eq=False)
class Sketch:
    """What is compared of one example: its output [1, K], ⟨x, row_c⟩ for a random x [C], the sizes
    ‖row_c‖ [C], and what rounding goes with.

    An inner product does not ask in which order positions are added, and finds a row that is
    another example's almost surely.
    """

    output: Tensor
    inner: Tensor
    sizes: Tensor
    added: float

    @classmethod
    def of(cls, row: Rows, output: Tensor, x_1p: Tensor) -> Sketch:
        sizes = row.to(torch.float64).column_norms()[0]  # in float32 1e-23 squared is 0
        return cls(output.clone(), row.sketched(x_1p[0])[0], sizes, row.size())


def require_alike(
    together: Sketch,
    alone: Sketch,
    autocast: torch.dtype | None,
    number: int,
    what: str,
    beside: Callable[[], float],
) -> None:
    """One example's output and row in a batch, and run by itself with the same columns.

    A column is held to its own size, or to rounding of the largest one `beside` it in the batch:
    attention to a single position does not see its query, whose gradient is then what rounding
    left of 0.
    """
    eps = torch.finfo(autocast or together.inner.dtype).eps
    tolerance = (TOLERANCE if autocast is None else AUTOCAST_TOLERANCE) * eps
    gap = float((together.output - alone.output).norm())
    if gap > 2 * tolerance * max(float(together.output.norm()), float(alone.output.norm())):
        raise InputError(
            f"example {number} of the {what} has another output alone than in its batch: an "
            "example must not depend on the others. Take out what mixes them (batch statistics, "
            "routing with a capacity)"
        )
    difference = (together.inner - alone.inner).abs()
    size = torch.maximum(together.sizes, alone.sizes).clamp_min(max(together.added, alone.added))
    # below `tiny` numbers are not rounded in proportion to themselves
    allowed = tolerance * size + torch.finfo(together.inner.dtype).tiny
    if bool((difference > allowed).any()) and not bool(
        (difference <= allowed + NOISE * eps * beside()).all()
    ):
        if bool(((difference > 0) & (size == 0)).any()):
            raise InputError(
                f"the gradient of example {number} of the {what} is so small that its square is 0 "
                f"in {together.inner.dtype}: scale the loss, or use problem.to(torch.float64)"
            )
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
