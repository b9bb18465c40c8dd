"""The one sum over the data: every curvature is estimated by it, whatever is added up."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from torch import Tensor

from curvfluence.errors import NonFiniteError

Chunk = TypeVar("Chunk")


class Sums:
    """Named sums of tensors that grow chunk by chunk."""

    def __init__(self) -> None:
        self._totals: dict[Hashable, Tensor] = {}

    def add(self, key: Hashable, value: Tensor) -> None:
        """Add a tensor that others may hold too, and that stays as it is."""
        total = self._totals.get(key)
        self._totals[key] = value if total is None else total + value

    def add_(self, key: Hashable, value: Tensor) -> None:
        """Add a fresh tensor, which may become the sum's own memory."""
        total = self._totals.get(key)
        self._totals[key] = value if total is None else total.add_(value)

    def add_product_(self, key: Hashable, x: Tensor, y: Tensor) -> None:
        """Add x y, with no memory for the product beside that of the sum."""
        total = self._totals.get(key)
        self._totals[key] = x @ y if total is None else total.addmm_(x, y)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._totals

    def __getitem__(self, key: Hashable) -> Tensor:
        return self._totals[key]

    def require_finite(self) -> None:
        for key, total in self._totals.items():
            if not bool(total.sum().isfinite()) and not bool(total.isfinite().all()):
                name = " ".join(map(str, key)) if isinstance(key, tuple) else str(key)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
                kind = str(total.dtype).removeprefix("torch.")
                raise NonFiniteError(
                    f"a sum over the data overflows {kind} ({name}), though every example's rows "
                    "are finite: scale the inputs or the loss, or use problem.to(torch.float64)"
                )

    def pop(self, key: Hashable) -> Tensor:
        """The sum, which is then held here no longer."""
        return self._totals.pop(key)


def accumulate(chunks: Iterable[Chunk], update: Callable[[Chunk, Sums], None]) -> Sums:
    """Σ over chunks of the data of what `update(chunk, sums)` adds of each.

    Factors, squares, Gram matrices, the GGN, products with it and with the Hessian, gradients of
    groups: all are such sums, and what all of them need (a reduction over machines, progress,
    a point to resume from, another device) has this one place. A chunk is let go of before the
    next is made.

    Errors: `NonFiniteError` where a sum is beyond its dtype though each row was finite.
    """
    sums = Sums()
    for chunk in chunks:
        update(chunk, sums)
        del chunk
    sums.require_finite()
    return sums
