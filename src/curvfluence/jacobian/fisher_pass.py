"""Passes over the training set under a Fisher type, the same rows at each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from curvfluence.jacobian.cache import Kept
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher import FEW_SURPRISES, Draws, Empirical, Fisher
from curvfluence.jacobian.passes import (
    gradient_rows,
    keeps_gradients,
    rows_in_chunks,
    swap_gradients,
)
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.losses import Loss
from curvfluence.problem.problem import Problem

FEW_SURPRISES_NOTE = "a sampled factor is nearly zero"


class FisherPass:
    """The rows Jᵀs of the training set, chunk by chunk; iterate again for the same rows again.

    With `again`, chunks are kept from the first while they are `Problem.remember` bytes; a further
    pass reads those and computes the rest once more, with the same draws. So the memory of a fit
    does not grow with N. Where the rows are the gradients, they are those of `gradient_rows`, which
    scores read later. The first pass also counts what a sampled Fisher must say.
    """

    def __init__(self, problem: Problem, fisher: Fisher, *, again: bool = False) -> None:
        self.problem, self.fisher = problem, fisher
        self.layout = discover(problem)
        self._kept = Kept[Rows](problem.remember if again else 0)
        self._states: dict[int, Tensor] = {}  # of the draws, before an example
        self._surprising: dict[int, float] = {}  # by a chunk's first example

    @property
    def gradients(self) -> bool:
        """Whether the rows are those of `gradient_rows`."""
        return isinstance(self.fisher, Empirical) and self.problem.train.weights is None

    def keeps(self, rows: Rows) -> bool:
        """Whether the rows of a chunk are kept as the gradients that scores read."""
        return self.gradients and keeps_gradients(self.problem, self.layout, rows)

    def swap(self, old: Rows, new: Rows) -> None:
        """Keep the rows of a chunk that is kept in another form."""
        swap_gradients(self.problem, self.layout, old, new)

    def __iter__(self) -> Iterator[Rows]:
        if self.gradients:
            found = gradient_rows(self.problem, self.layout, again=True, factored=True)
            yield from (rows for _, rows in found)
            return
        first = 0
        for start, rows in self._kept:
            yield rows
            first = start + len(rows)
        if first < len(self.problem.train):
            yield from self._computed(first)

    def _computed(self, first: int) -> Iterator[Rows]:
        """The rows from an example on, by the draws that every pass has there."""
        drawn = self.fisher.columns()
        if isinstance(drawn, Draws) and first:
            drawn.generator.set_state(self._states[first])
        made = first

        def columns(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
            if isinstance(drawn, Draws) and made not in self._surprising:
                found = loss.surprise(output, target)
                if found is not None:
                    self._surprising[made] = float(found.double().sum()) * drawn.draws
            return drawn(loss, output, target)

        found = rows_in_chunks(
            self.problem,
            self.layout,
            self.problem.train[first:],
            columns,
            what=f"training set ({self.fisher.name})",
            width=self.fisher.width(self.problem),
            first=first,
        )
        for start, rows in found:
            made = start + len(rows)
            if self._kept.offer(start, rows) and isinstance(drawn, Draws):
                self._states[made] = drawn.generator.get_state()
            yield rows

    @property
    def surprising(self) -> float | None:
        """How many drawn labels were expected to differ from the likeliest, after a whole pass."""
        return sum(self._surprising.values()) if self._surprising else None

    def notes(self) -> tuple[str, ...]:
        """What a result must say of its Fisher type, after a pass."""
        notes = loss_notes(self.problem)
        if self.surprising is None:
            return notes
        text = (
            f"Fisher {self.fisher.name}, seed {getattr(self.fisher, 'seed', None)}: "
            f"{self.surprising:.3g} surprising labels expected among {len(self.problem.train)} "
            "examples"
        )
        if self.surprising < FEW_SURPRISES:
            text += (
                f"; below about {FEW_SURPRISES:.0f} {FEW_SURPRISES_NOTE} and its scores are mostly "
                "noise. Use Type2(), or more draws"
            )
        return (*notes, text)


def loss_notes(problem: Problem) -> tuple[str, ...]:
    """What a result that uses S must say about it; a forward pass where the loss has any."""
    if not problem.loss.speaks:
        return ()
    with torch.no_grad():
        outputs = problem.outputs(problem.train, "training set")
    return problem.loss_of(problem.train).notes(outputs, problem.train.targets)
