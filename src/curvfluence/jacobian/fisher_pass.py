"""Passes over the training set under a Fisher type, the same rows at each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from curvfluence.jacobian.cache import CachedRows, Kind, row_cache
from curvfluence.jacobian.columns import MakeColumns
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher import FEW_SURPRISES, Draws, Fisher
from curvfluence.jacobian.gradients import cached_gradients, gradient_rows, range_gradients
from curvfluence.jacobian.passes import rows_in_chunks
from curvfluence.jacobian.rows import Basis, Rows
from curvfluence.problem.losses import Loss, ScaledLoss
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import Batched, joined
from curvfluence.runtime import journal, ranks

FEW_SURPRISES_NOTE = "a sampled factor is nearly zero"


class FisherPass:
    """The rows Jᵀs of the training set, chunk by chunk; iterate again for the same rows again.

    With `again`, chunks are cached from the first while they are `Problem.remember` bytes; a
    further pass reads those and computes the rest once more, with the same draws. So the memory of
    a fit does not grow with N. Where the rows are the gradients, they are those of `gradient_rows`,
    which scores read later. The first pass also counts what a sampled Fisher must say.
    """

    def __init__(self, problem: Problem, fisher: Fisher, *, again: bool = False) -> None:
        self.problem, self.fisher = problem, fisher
        self.layout = discover(problem)
        self._kind = Kind() if again else None
        self._states: dict[int, Tensor] = {}  # of the draws, before an example
        self._surprising: dict[int, float] = {}  # by a chunk's first example
        self._reached = 0  # the example after the last chunk that was given
        self._drawing: torch.Generator | None = None
        self._ends: dict[int, dict[int, Tensor]] = {}  # the draws of a range, after an example

    @cached_property
    def rank(self) -> int:
        """What the rank of a sum over the rows is at most: C for each different example."""
        return self.fisher.rank(self.problem)

    @property
    def _of_gradients(self) -> bool:
        """Whether the rows are those of `gradient_rows`."""
        return self.fisher.is_gradient and self.problem.train.weights is None

    @property
    def _cached(self) -> CachedRows[Rows]:
        """The rows of an earlier pass."""
        if self._kind is None:
            return CachedRows(0)
        return row_cache(self.problem, self.layout).of(self._kind)

    def __iter__(self) -> Iterator[Rows]:
        return self._from(0)

    def _from(self, first: int) -> Iterator[Rows]:
        """The rows from an example on; where that is not the first, from where a chunk begins."""
        for rows in self._rows(first):
            first = self._reached = first + len(rows)
            yield rows

    def _rows(self, first: int) -> Iterator[Rows]:
        if self._of_gradients:
            read = gradient_rows(self.problem, self.layout, again=True, factored=True, first=first)
            yield from (rows for _, rows in read)
            return
        if not first:
            for start, rows in self._cached:
                yield rows
                first = start + len(rows)
        if first < len(self.problem.train):
            yield from self._computed(first)

    def group(self, number: int) -> Iterator[Rows]:
        """The rows of one of the ranges that processes share out, with draws of its own; kept for a
        further pass as far as there is room."""
        if self._of_gradients:
            read = range_gradients(self.problem, self.layout, number, again=True)
            yield from (rows for _, rows in read)
            return
        first, end = ranks.bounds(len(self.problem.train), number)
        kept = self._of_range(number, first)
        for start, rows in kept:
            yield rows
            first = start + len(rows)
        if first >= end:
            return
        drawn = self.fisher.columns(number)
        states = self._ends.setdefault(number, {})
        if isinstance(drawn, Draws) and first in states:
            drawn.generator.set_state(states[first])
        made = first

        def make(loss: Loss, output: Tensor, target: Batched) -> Tensor:
            self._surprise(drawn, made, loss, output, target)
            return drawn(loss, output, target)

        columns = self.fisher.pulling(self.problem, make, f"training set ({self.fisher.name})")
        part = self.problem.train[first:end]
        before = ranks.chunks_before(len(self.problem.train), number)
        chunks = rows_in_chunks(
            self.problem, self.layout, part, columns, first=first, before=before
        )
        for start, rows in chunks:
            made = start + len(rows)
            if isinstance(drawn, Draws):
                states[made] = drawn.generator.get_state()
            kept.offer(start, rows)
            yield rows

    def _of_range(self, number: int, first: int) -> CachedRows[Rows]:
        """The rows of an earlier pass over a range."""
        if self._kind is None:
            return CachedRows(0, count=first, first=first)
        return row_cache(self.problem, self.layout).of_range(self._kind, number)

    def _surprise(
        self, drawn: MakeColumns, made: int, loss: Loss, output: Tensor, target: Batched
    ) -> None:
        """Note how many drawn labels are expected to surprise."""
        if isinstance(drawn, Draws) and made not in self._surprising:
            surprise = loss.surprise(output, target)
            if surprise is not None:
                self._surprising[made] = float(surprise.double().sum()) * drawn.draws

    @property
    def position(self) -> dict[str, Any]:
        """Where the pass is: the next example, the state of the draws, and what they surprised."""
        draws = None if self._drawing is None else self._drawing.get_state()
        surprising = list(self._surprising.items())
        return {"first": self._reached, "draws": draws, "surprising": surprising}

    def after(self, position: dict[str, Any]) -> Iterator[Rows]:
        """The rows of a pass from a position on."""
        first = position["first"]
        if position["draws"] is not None:
            self._states[first] = position["draws"]
        self.recall(position)
        return self._from(first)

    def recall(self, position: dict[str, Any]) -> None:
        """What the pass had seen there, without going on from it."""
        self._surprising.update(dict(position["surprising"]))

    def within(self, bases: Mapping[int, Basis]) -> Iterable[Rows]:
        """The same rows again; of gradients that are cached, those of layers in `bases` (by number)
        as matrices in that basis, where these are not much larger than a and s.

        So they stay in the cache: scores in the same basis then form no row.
        """
        if not self._of_gradients or journal.steady() or ranks.here() is not None:
            return self
        cached = cached_gradients(self.problem, self.layout)
        return (_formed(rows, bases, cached) if cached.holds(rows) else rows for rows in self)

    def _computed(self, first: int) -> Iterator[Rows]:
        """The rows from an example on, by the draws that every pass has there."""
        drawn, cached = self.fisher.columns(), self._cached
        if isinstance(drawn, Draws) and first:
            drawn.generator.set_state(self._states[first])
        self._drawing = drawn.generator if isinstance(drawn, Draws) else None
        made = first

        def make(loss: Loss, output: Tensor, target: Batched) -> Tensor:
            self._surprise(drawn, made, loss, output, target)
            return drawn(loss, output, target)

        what = f"training set ({self.fisher.name})"
        columns = self.fisher.pulling(self.problem, make, what)
        part = self.problem.train[first:]
        for start, rows in rows_in_chunks(self.problem, self.layout, part, columns, first=first):
            made = start + len(rows)
            if cached.offer(start, rows) and isinstance(drawn, Draws):
                self._states[made] = drawn.generator.get_state()
            yield rows

    @property
    def surprising(self) -> float | None:
        """How many drawn labels were expected to differ from the likeliest, after a whole pass."""
        team = ranks.here()
        known = self._surprising if team is None else team.merged(self._surprising)
        return sum(known.values()) if known else None

    def notes(self) -> tuple[str, ...]:
        """What a result must say of its Fisher type, after a pass."""
        notes, surprising = loss_notes(self.problem), self.surprising
        if surprising is None:
            return notes
        text = (
            f"Fisher {self.fisher.name}, seed {getattr(self.fisher, 'seed', None)}: "
            f"{surprising:.3g} surprising labels expected among {len(self.problem.train)} "
            "examples"
        )
        if surprising < FEW_SURPRISES:
            text += (
                f"; below about {FEW_SURPRISES:.0f} {FEW_SURPRISES_NOTE} and its scores are mostly "
                "noise. Use Type2(), or more draws"
            )
        return (*notes, text)


def _formed(rows: Rows, bases: Mapping[int, Basis], cached: CachedRows[Rows]) -> Rows:
    formed = rows.formed(bases)
    cached.replace(rows, formed)
    return formed


def loss_notes(problem: Problem) -> tuple[str, ...]:
    """What a result that uses S must say about it; a forward pass where the loss has any."""
    if not problem.loss.speaks:
        return ()
    with torch.no_grad():
        found = list(problem.each_output(problem.train, "training set"))
    targets = joined([part.targets for part, _ in found])
    weights = problem.train.weights
    loss = ScaledLoss.of(problem.loss, weights)
    return loss.notes(torch.cat([output for _, output in found]), targets)
