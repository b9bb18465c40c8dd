"""∇ℓ_n of the training examples and ∇m_q of the queries, as rows."""

from __future__ import annotations

import math
from collections.abc import Iterator

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
    keeping, cached.asked = again or cached.asked, True
    for start, rows in cached:
        yield start, rows
        first = start + len(rows)
    if first < len(problem.train):
        for start, rows in _computed(problem, layout, first):
            if keeping:
                cached.offer(start, rows)
            yield start, rows


def _computed(problem: Problem, layout: Layout, first: int) -> Iterator[tuple[int, Rows]]:
    if first >= len(problem.train):
        return iter(())
    part = problem.train[first:]
    return rows_in_chunks(problem, layout, part, of_gradient("training set"), first=first)


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
    alone = journal.steady() or first > begin  # nothing is read, nor kept, as in `gradient_rows`
    cached = (
        CachedRows[Rows](0) if alone else row_cache(problem, layout).of_range(GRADIENTS, number)
    )
    keeping, cached.asked = again or cached.asked, True
    begin = max(begin, first)
    for start, rows in cached:
        yield start, rows
        begin = start + len(rows)
    if begin < end:
        part, columns = problem.train[begin:end], of_gradient("training set")
        before = ranks.chunks_before(len(problem.train), number)
        for start, rows in rows_in_chunks(
            problem, layout, part, columns, first=begin, before=before
        ):
            if keeping and not alone:
                cached.offer(start, rows)
            yield start, rows


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
