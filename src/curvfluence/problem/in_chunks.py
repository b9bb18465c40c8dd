"""Examples a chunk at a time, from any of them on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from curvfluence.problem.data import Examples
from curvfluence.problem.stream import Data
from curvfluence.runtime.ranks import bounds


@dataclass(eq=False)
class InChunks:
    """(start, examples) of at most `size` at a time; `position` is the next one's number."""

    data: Data
    size: int
    position: int = 0

    def __iter__(self) -> Iterator[tuple[int, Examples]]:
        return self.after(0)

    def group(self, number: int) -> Iterator[tuple[int, Examples]]:
        """The chunks of one of the ranges that processes share out."""
        first, end = bounds(len(self.data), number)
        if first < end:
            for place, part in self.data[first:end].chunks(self.size):
                yield first + place, part

    def after(self, position: int) -> Iterator[tuple[int, Examples]]:
        """The chunks from an example on, where one begins."""
        if position >= len(self.data):
            return
        for place, part in self.data[position:].chunks(self.size):
            start = position + place
            self.position = start + len(part)
            yield start, part
