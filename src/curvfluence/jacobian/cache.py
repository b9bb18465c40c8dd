"""Rows of a pass over the data that later passes read, within the memory that a problem grants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    def __len__(self) -> int: ...

    @property
    def held(self) -> int: ...

    @property
    def versions(self) -> tuple[int, ...]: ...


R = TypeVar("R", bound=Sized)


@dataclass(eq=False)
class Kept(Generic[R]):
    """The rows of the first `count` examples, in the chunks in which they were made, at most
    `room` bytes of them."""

    room: int
    chunks: list[tuple[R, tuple[int, ...]]] = field(default_factory=list[tuple[R, tuple[int, ...]]])
    count: int = 0
    asked: bool = False  # whether a pass has been made before, so that another is likely

    def offer(self, start: int, rows: R) -> bool:
        """Keep the rows of the examples from `start` on, if they are the next ones and fit."""
        if start != self.count or rows.held > self.room:
            self.room = self.room if start < self.count else 0  # what follows would leave a gap
            return False
        self.chunks.append((rows, rows.versions))
        self.count += len(rows)
        self.room -= rows.held
        return True

    def holds(self, rows: R) -> bool:
        """Whether it is these rows that are kept."""
        return any(kept is rows for kept, _ in self.chunks)

    def swap(self, old: R, new: R) -> None:
        """Keep `new` in the place of `old`, if that is kept and there is room."""
        for k, (rows, _) in enumerate(self.chunks):
            if rows is old and new.held - old.held <= self.room:
                self.room -= new.held - old.held
                self.chunks[k] = new, new.versions

    def clear(self, room: int) -> None:
        self.chunks, self.count, self.room = [], 0, room

    def __iter__(self) -> Iterator[tuple[int, R]]:
        """(number of the first example, rows) of each chunk that is kept now, up to the first of
        which the memory was written to since, by the model or by whoever holds the examples."""
        start, chunks = 0, self.chunks
        for k in range(len(chunks)):  # no second list: what is swapped meanwhile is freed
            rows, versions = chunks[k]
            if rows.versions != versions:
                self.clear(0)
                return
            yield start, rows
            start += len(rows)
