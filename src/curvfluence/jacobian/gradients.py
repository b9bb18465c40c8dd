"""∇ℓ_n of the training examples and ∇m_q of the queries, as rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from curvfluence.jacobian.cache import GRADIENTS, CachedRows, row_cache
from curvfluence.jacobian.columns import Columns, of_gradient
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.passes import rows_in_chunks
from curvfluence.jacobian.rows import Rows, concatenate
from curvfluence.problem.losses import Loss
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data
from curvfluence.problem.tree import Batched
from curvfluence.runtime import budget, journal, paged, ranks


def gradient_rows(
    problem: Problem,
    layout: Layout,
    *,
    again: bool = False,
    factored: bool = False,
    first: int = 0,
) -> Iterator[tuple[int, Rows]]:
    """(start, g_n = ∇ℓ_n of a chunk of training examples), times v_n where they are weighted; with
    `factored` as a and s, for which others that are cached are dropped. From `first` on, where a
    chunk begins.

    With `again` (they will be asked for once more), and from the second time on, those of the first
    examples are cached, `Problem.remember` bytes of them, and read from then on. Fresh memory costs
    a third of a pass, which one that stays alone does not pay.
    """
    if journal.steady() or first:
        yield from _computed(problem, layout, first)
        return
    cached = cached_gradients(problem, layout)
    if factored and not all(chunk.rows.factored for chunk in cached.chunks):
        cached.clear(problem.remember)
    end = len(problem.train)
    yield from _kept(cached, again, end, lambda first: _computed(problem, layout, first))


def _kept(
    cached: CachedRows[Rows],
    again: bool,
    end: int,
    computed: Callable[[int], Iterator[tuple[int, Rows]]],
) -> Iterator[tuple[int, Rows]]:
    """What is cached of the examples before `end`, and the rest, `computed` from one on, which is
    kept if it is asked for again."""
    keeping, cached.asked = again or cached.asked, True
    first = cached.first
    for start, rows in cached:
        yield start, rows
        first = start + len(rows)
    for start, rows in computed(first) if first < end else ():
        if keeping:
            cached.offer(start, rows)
        yield start, rows


def _computed(
    problem: Problem, layout: Layout, first: int, end: int | None = None, before: int = 0
) -> Iterator[tuple[int, Rows]]:
    end = len(problem.train) if end is None else end
    if first >= end:
        return iter(())
    part, columns = problem.train[first:end], of_gradient("training set")
    return rows_in_chunks(problem, layout, part, columns, first=first, before=before)


def cached_gradients(problem: Problem, layout: Layout) -> CachedRows[Rows]:
    """What `gradient_rows` will read and not compute."""
    if journal.steady():
        return CachedRows(0)
    return row_cache(problem, layout).of(GRADIENTS)


def forget_gradients(problem: Problem, layout: Layout) -> None:
    """As if no pass had been made: the next one computes all of them."""
    row_cache(problem, layout).forget(GRADIENTS)


def gradient_batches(
    problem: Problem, layout: Layout, *, again: bool = False, first: int = 0
) -> Iterator[tuple[int, tuple[Rows, ...]]]:
    """`gradient_rows` with the chunks that are cached several at a time, up to 4,096 examples, or
    `budget.BATCH` bytes where they lie in files: what is scored against them is read from memory
    once for all of these."""
    rows_cached = cached_gradients(problem, layout)
    cached = sum(len(rows) for _, rows in rows_cached)
    room = budget.BATCH if paged.possible(problem.device) else math.inf
    several: list[Rows] = []
    count = held = 0
    for start, rows in gradient_rows(problem, layout, again=again, first=first):
        if several and (count + len(rows) > budget.EXAMPLES or held + rows.nbytes > room):
            yield first, tuple(several)
            rows_cached.let_go()
            several, first, count, held = [], start, 0, 0
        several.append(rows)
        count += len(rows)
        held += rows.nbytes
        if first + count >= cached:
            yield first, tuple(several)
            rows_cached.let_go()
            several, first, count, held = [], first + count, 0, 0


def own_gradients(
    problem: Problem, layout: Layout, *, again: bool = False, first: int = 0
) -> Iterator[tuple[int, tuple[Rows, ...]]]:
    """`gradient_batches` of all examples, or where processes work together of this one's ranges, in
    the chunks in which they are made: sums over a chunk do not hang on how many there are."""
    team = ranks.here()
    if team is None:
        yield from gradient_batches(problem, layout, again=again, first=first)
        return
    for number in team.own:
        if first < ranks.bounds(len(problem.train), number)[1]:
            for start, rows in range_gradients(problem, layout, number, again=again, first=first):
                yield start, (rows,)


def range_gradients(
    problem: Problem, layout: Layout, number: int, *, again: bool = False, first: int = 0
) -> Iterator[tuple[int, Rows]]:
    """`gradient_rows` of one of the ranges that processes share out; from `first` on, if that lies
    in it, where a chunk begins."""
    begin, end = ranks.bounds(len(problem.train), number)
    before = ranks.chunks_before(len(problem.train), number)

    def computed(first: int) -> Iterator[tuple[int, Rows]]:
        return _computed(problem, layout, first, end, before)

    if journal.steady() or first > begin:
        yield from computed(max(begin, first))
        return
    cached = row_cache(problem, layout).of_range(GRADIENTS, number)
    yield from _kept(cached, again, end, computed)


def training_gradients(problem: Problem, layout: Layout) -> Rows:
    """g_n = ∇ℓ_n of every training example (v_n ∇ℓ_n), held all at once."""
    return concatenate([rows for _, rows in gradient_rows(problem, layout)])


def gradients_of(problem: Problem, layout: Layout, examples: Data) -> Rows:
    """∇ℓ of some examples (v_n ∇ℓ_n where they have weights), held all at once."""
    rows_of = rows_in_chunks(problem, layout, examples, of_gradient("training set"))
    return concatenate([rows for _, rows in rows_of])


def query_gradients(problem: Problem, layout: Layout) -> Rows:
    """g_q = ∇m_q of every query, factored."""

    def measured(_: Loss, output: Tensor, target: Batched) -> Tensor:
        return problem.measurement.gradient(output, target)[:, :, None]

    columns = Columns(1, "queries", measured)
    rows_of = rows_in_chunks(problem, layout, problem.queries, columns)
    return concatenate([rows for _, rows in rows_of])
