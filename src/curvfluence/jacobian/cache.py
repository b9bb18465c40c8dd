"""Rows of passes over the data that later passes read, within the memory that a problem grants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Final, Generic, NamedTuple, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.held import Held
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data
from curvfluence.runtime import budget, ranks
from curvfluence.runtime.paged import Pages


class Sized(Protocol):
    def __len__(self) -> int: ...

    @property
    def held(self) -> int: ...

    @property
    def spanned(self) -> int: ...

    @property
    def versions(self) -> tuple[int, ...]: ...

    def paged(self) -> tuple[Sized, Pages] | None: ...


R = TypeVar("R", bound=Sized)


class Chunk(NamedTuple, Generic[R]):
    rows: R
    versions: tuple[int, ...]  # of the memory of the rows
    checksum: int  # of the examples
    pages: Pages | None  # of the file that they lie in


@dataclass(eq=False)
class CachedRows(Generic[R]):
    """The rows of the examples from `first` to before `count`, in the chunks in which they were
    made, at most `room` bytes of them: `budget.CACHED` in memory, and what comes after in files
    without a name, of which the process holds the pages of one chunk at a time."""

    room: int
    examples: Data | None = None  # what the rows are of
    held: Held | None = None  # what else they depend on
    chunks: list[Chunk[R]] = field(default_factory=list["Chunk[R]"])
    count: int = 0
    first: int = 0
    asked: bool = False  # whether a pass has been made before, so that another is likely
    _made_with: int = 0  # the checksum of what is held, when the first were made
    _in_memory: int = 0  # bytes of the chunks in no file
    _filling: Lock = field(default_factory=Lock)

    def offer(self, start: int, rows: R) -> bool:
        """Keep the rows of the examples from `start` on, if they are the next ones and fit."""
        with self._filling:  # two threads make the same rows
            if start != self.count or rows.held > self.room:
                self.room = self.room if start < self.count else 0  # what follows would leave a gap
                return False
            if not self.chunks and self.held is not None:
                self._made_with = self.held.checksum
            self.chunks.append(self._put_away(rows, self._checksum(start, rows)))
            self.count += len(rows)
            self.room -= self.chunks[-1].rows.held
            return True

    def _put_away(self, rows: R, checksum: int) -> Chunk[R]:
        """A chunk of rows, in memory while there are few of them."""
        paged = rows.paged() if self._in_memory + rows.held > budget.CACHED else None
        if paged is None:
            self._in_memory += rows.held
            return Chunk(rows, rows.versions, checksum, None)
        return Chunk(cast(R, paged[0]), paged[0].versions, checksum, paged[1])

    def holds(self, rows: R) -> bool:
        """Whether it is these rows that are cached."""
        return any(chunk.rows is rows for chunk in self.chunks)

    def replace(self, old: R, new: R) -> None:
        """Hold the same rows in another form, if they are cached and there is room."""
        for k, chunk in enumerate(self.chunks):
            if chunk.rows is old and new.spanned - old.spanned <= self.room:
                self._in_memory -= old.held if chunk.pages is None else 0
                self.chunks[k] = self._put_away(new, chunk.checksum)
                self.room -= self.chunks[k].rows.held - old.held

    def clear(self, room: int) -> None:
        self.chunks, self.count, self.room, self._in_memory = [], self.first, room, 0

    def __iter__(self) -> Iterator[tuple[int, R]]:
        """(number of the first example, rows) of each chunk that is cached now, up to the first of
        which the memory was written to since, by the model or by whoever holds the examples (also
        through `.data` or a NumPy view, which torch does not count); none where weights or loss
        have other values now."""
        start, chunks = self.first, self.chunks
        if chunks and self.held is not None and self._made_with != self.held.checksum:
            self.clear(0)
            return
        for k in range(len(chunks)):  # no second list: what is replaced meanwhile is freed
            chunk = chunks[k]
            now = chunk.rows.versions, self._checksum(start, chunk.rows)
            if (chunk.versions, chunk.checksum) != now:
                self.clear(0)
                return
            yield start, chunk.rows
            if chunk.pages is not None:
                chunk.pages.let_go()
            start += len(chunk.rows)

    def let_go(self) -> None:
        """Hold no page of a file, where a consumer kept rows beyond its step."""
        for chunk in self.chunks:
            if chunk.pages is not None:
                chunk.pages.let_go()

    def _checksum(self, start: int, rows: R) -> int:
        """Of what the memory of their examples holds now."""
        if self.examples is None:
            return 0
        return self.examples.checksum_of(slice(start, start + len(rows)))


class Kind:
    """Which rows: an object that stands for a choice of columns, and for as long as it lives."""


GRADIENTS: Final = Kind()  # g_n of the training examples, as long as their problem


@dataclass(eq=False)
class RowCache:
    """What passes over one problem's training set leave for later ones, by their `Kind`.

    Each kind has `room` bytes, of all examples in order or by the ranges that processes share out:
    the gradients, and the rows of a fit that reads them twice, while it lasts. It holds for one
    layout: where the model's modules change, rows are made anew.
    """

    layout: Layout
    room: int
    examples: Data
    held: Held
    _kinds: WeakKeyDictionary[Kind, CachedRows[Rows]] = field(
        default_factory=WeakKeyDictionary[Kind, CachedRows[Rows]], init=False
    )
    _ranges: WeakKeyDictionary[Kind, dict[int, CachedRows[Rows]]] = field(
        default_factory=WeakKeyDictionary[Kind, "dict[int, CachedRows[Rows]]"], init=False
    )

    def of(self, kind: Kind) -> CachedRows[Rows]:
        if ranks.here() is None:
            self._ranges.pop(kind, None)
        if kind not in self._kinds:
            self._kinds[kind] = CachedRows(self.room, self.examples, self.held)
        return self._kinds[kind]

    def of_range(self, kind: Kind, number: int) -> CachedRows[Rows]:
        """Of one of the ranges that processes share out, with its share of the room: what is not by
        ranges goes. Each may have `budget.CACHED` in memory, 256 MiB for all: where ranges are few
        chunks none is written to a file and read again."""
        self._kinds.pop(kind, None)
        ranges = self._ranges.setdefault(kind, {})
        if number not in ranges:
            first, _ = ranks.bounds(len(self.examples), number)
            count = len(ranks.own()) * ranks.on_this_machine()
            ranges[number] = CachedRows(
                self.room // count, self.examples, self.held, count=first, first=first
            )
        return ranges[number]

    def forget(self, kind: Kind) -> None:
        """As if no pass had been made."""
        self._kinds.pop(kind, None)
        self._ranges.pop(kind, None)


_CACHES: WeakKeyDictionary[Problem, RowCache] = WeakKeyDictionary()


def row_cache(problem: Problem, layout: Layout) -> RowCache:
    """The cache of a problem, empty where it was filled under another layout."""
    known = _CACHES.get(problem)
    if known is None or known.layout is not layout:
        known = _CACHES[problem] = RowCache(layout, problem.remember, problem.train, problem.held)
    return known
