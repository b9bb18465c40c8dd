"""Passes over the training set under a Fisher type, the same rows at each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from curvfluence.coverage import coverage
from curvfluence.fisher import FEW_SURPRISES, Draws, Empirical, Fisher
from curvfluence.gradients import Rows, gradient_rows, rows_in_chunks
from curvfluence.kept import Kept
from curvfluence.losses import Loss
from curvfluence.problem import Problem

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
        self.covered = coverage(problem)
        self._columns = fisher.columns()
        self._kept = Kept[Rows](problem.remember if again else 0)
        self._next_state = self._state()  # of the draws, after what is kept
        self.surprising: float | None = None

    def __iter__(self) -> Iterator[Rows]:
        if isinstance(self.fisher, Empirical) and self.problem.train.weights is None:
            found = gradient_rows(self.problem, self.covered, again=True)
            yield from (rows for _, rows in found)
            return
        yield from (rows for _, rows in self._kept)
        if isinstance(self._columns, Draws) and self._next_state is not None:
            self._columns.generator.set_state(self._next_state)
        first = self._kept.count
        if first < len(self.problem.train):
            yield from self._computed(first)

    def _computed(self, first: int) -> Iterator[Rows]:
        for start, rows in self._rows(first):
            if self._kept.offer(start, rows):
                self._next_state = self._state()
            yield rows

    def _state(self) -> Tensor | None:
        return self._columns.generator.get_state() if isinstance(self._columns, Draws) else None

    def _rows(self, start: int) -> Iterator[tuple[int, Rows]]:
        counted = start == 0 and self.surprising is None

        def columns(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
            if counted and isinstance(self._columns, Draws):
                found = loss.surprise(output, target)
                if found is not None:
                    total = float(found.double().sum()) * self._columns.draws
                    self.surprising = total + (self.surprising or 0.0)
            return self._columns(loss, output, target)

        return rows_in_chunks(
            self.problem,
            self.covered,
            self.problem.train[start:],
            columns,
            what=f"training set ({self.fisher.name})",
            width=self.fisher.width(self.problem),
            first=start,
        )

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
