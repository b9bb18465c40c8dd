"""Which columns of output space the rows of a pass are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

from torch import Tensor

from curvfluence.errors import counted_from
from curvfluence.jacobian.capture import Capture
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.terms import Factored
from curvfluence.jacobian.unruled import rows_without_rule
from curvfluence.problem.data import Examples, require_finite
from curvfluence.problem.losses import Loss
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import Batched

MakeColumns: TypeAlias = Callable[[Loss, Tensor, Batched], Tensor]  # (loss, output, target)


@dataclass(frozen=True)
class Pulling(ABC):
    """Columns of the examples of a pass, `width` of each, and how they are pulled back to rows.
    `what` is what an error calls the pass; with `by_layer` each layer has columns of its own."""

    width: int
    what: str

    by_layer: ClassVar[bool] = False

    @abstractmethod
    def elements(self, layout: Layout) -> int:
        """Numbers of an example, in a and s of all layers and in the columns."""

    def dense_elements(self, parameters: int) -> int:
        """Numbers of an example in rows of so many parameters of no layer."""
        return parameters * self.width

    @abstractmethod
    def pulled(
        self,
        problem: Problem,
        layout: Layout,
        part: Examples,
        seen: Capture,
        at: int,
        *,
        summed: bool,
    ) -> Pulled:
        """Rows of a traced pass over `part`, the examples from number `at` on."""


@dataclass(frozen=True, eq=False)
class Pulled:
    """The rows of a pass, [B, C, …]: a term for each layer, and dense those of no layer; the same
    columns again, of some of the examples; with `summed`, Σ_b of the first by autograd's own rules.
    """

    terms: tuple[Factored, ...]
    dense: Tensor
    again: Callable[[slice], Pulling]
    summed: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Columns(Pulling):
    """`make(loss, output, target)` gives s [B, K, C] with C = `width`; a row is Jᵀs.

    A gradient is the row of the one column ∂ℓ/∂f; the factor Z of the GGN has the rows of S.
    """

    make: MakeColumns

    def elements(self, layout: Layout) -> int:
        return layout.elements(self.width)

    def pulled(
        self,
        problem: Problem,
        layout: Layout,
        part: Examples,
        seen: Capture,
        at: int,
        *,
        summed: bool,
    ) -> Pulled:
        with counted_from(at):
            columns_bkc = self.make(problem.loss_of(part), seen.output.detach(), part.targets)
        require_finite(columns_bkc, f"output gradient of {self.what}", at)
        terms, small, total = seen.pullback(columns_bkc, summed=summed)
        dense = rows_without_rule(problem, layout, part.inputs, columns_bkc, small)
        for rows in (*(term.s for term in terms), dense):
            require_finite(rows, f"gradient of {self.what}", at)

        def again(some: slice) -> Columns:
            def make(loss: Loss, output: Tensor, target: Batched) -> Tensor:
                return columns_bkc[some]

            return replace(self, make=make)

        return Pulled(terms, dense, again, total)


def of_gradient(what: str) -> Columns:
    """∂ℓ/∂f: the rows are ∇ℓ."""

    def gradient(loss: Loss, output: Tensor, target: Batched) -> Tensor:
        return loss.gradient(output, target)[:, :, None]

    return Columns(1, what, gradient)
