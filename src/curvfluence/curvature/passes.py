"""Passes over the training set under a Fisher type, the same rows at each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from curvfluence.coverage import coverage
from curvfluence.fisher import FEW_SURPRISES, Draws, Fisher
from curvfluence.gradients import Rows, rows_in_chunks
from curvfluence.losses import Loss
from curvfluence.problem import Problem

REMEMBERED = 2**28  # numbers of rows that a second pass reads instead of computing them
FEW_SURPRISES_NOTE = "a sampled factor is nearly zero"


class FisherPass:
    """The rows Jᵀs of the training set, chunk by chunk; iterate again for the same rows again.

    With `again`, chunks are remembered from the first until they are `REMEMBERED` numbers; a
    further pass reads those and computes the rest once more, with the same draws. So the memory of
    a fit does not grow with N. The first pass also counts what a sampled Fisher must say.
    """

    def __init__(self, problem: Problem, fisher: Fisher, *, again: bool = False) -> None:
        self.problem, self.fisher = problem, fisher
        self.covered = coverage(problem)
        self._columns = fisher.columns()
        self._room = REMEMBERED if again else 0
        self._kept: list[Rows] = []
        self._from: tuple[int, Tensor | None] | None = None  # where computing goes on, and draws
        self.surprising: float | None = None

    def __iter__(self) -> Iterator[Rows]:
        if self._from is None:
            yield from self._first()
            return
        yield from self._kept
        start, state = self._from
        if isinstance(self._columns, Draws) and state is not None:
            self._columns.generator.set_state(state)
        if start < len(self.problem.train):
            yield from self._rows(start)

    def _first(self) -> Iterator[Rows]:
        self._from = (0, self._state())
        seen, room, keeping = 0, self._room, True
        for rows in self._rows(0):
            seen += len(rows)
            room -= rows.nbytes // rows.dense.element_size()
            keeping = keeping and room >= 0
            if keeping:
                self._kept.append(rows)
                self._from = (seen, self._state())
            yield rows

    def _state(self) -> Tensor | None:
        return self._columns.generator.get_state() if isinstance(self._columns, Draws) else None

    def _rows(self, start: int) -> Iterator[Rows]:
        counted = start == 0 and self.surprising is None

        def columns(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
            if counted and isinstance(self._columns, Draws):
                found = loss.surprise(output, target)
                if found is not None:
                    total = float(found.double().sum()) * self._columns.draws
                    self.surprising = total + (self.surprising or 0.0)
            return self._columns(loss, output, target)

        found = rows_in_chunks(
            self.problem,
            self.covered,
            self.problem.train[start:],
            columns,
            what=f"training set ({self.fisher.name})",
            width=self.fisher.width(self.problem),
            first=start,
        )
        for _, rows in found:
            yield rows

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
