"""Examples that are read when they are asked for, and never held whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.problem.data import (
    Examples,
    count_distinct,
    placed,
    row_sums,
    unchecked,
    weights_of,
)
from curvfluence.problem.own_code import own_code
from curvfluence.problem.readers import Pair, Reader, reading
from curvfluence.problem.tree import Batched, Tree, joined, leaves
from curvfluence.runtime import generators
from curvfluence.runtime.checksum import checksum

AGAIN = (
    "is another when it is read again (a random transform, say), so scores would be of one draw of "
    "the data and differ from call to call. Give the data without what is random, and name it: "
    "Problem(..., unmodelled='random crops')"
)


LABELS = 4096  # examples whose labels are read at a time
TRIED = 8  # shapes that a model is tried on


@dataclass(frozen=True, eq=False)
class Stream:
    """N examples in a fixed order, of which `chunks` reads some at a time: what passes take, in the
    place of `Examples`.

    `sums` [N] holds a number for each example's content, from the first reading; whatever is read
    later must have the same. Chunks are as long as asked for where neighbouring pieces of the
    source have one shape, and no longer than a piece where they have not (sequences that are padded
    batch by batch). Memory: 8 bytes an example, a chunk, and what the source holds.

    Errors, while it is read: `InputError` naming the example that is another one now.
    """

    reader: Reader = field(repr=False)
    sums: Tensor = field(repr=False)  # of the whole source
    extremes: Batched | None = field(repr=False)  # the least and the largest of targets, [2, ...]
    device: torch.device
    dtype: torch.dtype
    shapes: tuple[int, ...] = (0,)  # the first example of each shape, where it is read in order
    weights: Tensor | None = None
    first: int = 0  # this part of the source begins there
    readings: list[int] = field(default_factory=lambda: [0], repr=False)  # how many there were

    def __len__(self) -> int:
        return len(self.sums) - self.first

    def __getitem__(self, part: slice) -> Stream | Examples:
        """What follows an example, unread; a part that ends before, in memory."""
        start, stop, step = part.indices(len(self))
        if step == 1 and stop == len(self):
            weights = None if self.weights is None else self.weights[part]
            return replace(self, first=self.first + start, weights=weights)
        return self.take(part)

    def take(self, index: slice | Tensor) -> Examples:
        """Some of them, in memory, put together as the source does for these alone."""
        numbers = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        with generators.preserved(), own_code("reading the data"):
            x, y = self.reader.take((self.first + numbers).tolist())
        weights = None if self.weights is None else self.weights[numbers.to(self.weights.device)]
        return self._placed(x, y, weights)

    def chunks(self, size: int) -> Iterator[tuple[int, Examples]]:
        """(start, examples) of at most `size` examples at a time, in order: one reading."""
        several: list[Pair] = []
        first = count = 0
        for x, y in self._pieces():
            if several and (count + len(x) > size or shapes(several[-1]) != shapes((x, y))):
                yield from self._cut(first, several, size)
                several, first, count = [], first + count, 0
            several.append((x, y))
            count += len(x)
        yield from self._cut(first, several, size)

    def _cut(self, first: int, pieces: list[Pair], size: int) -> Iterator[tuple[int, Examples]]:
        if not pieces:
            return
        xs, ys = zip(*pieces, strict=True)
        x, y = (xs[0], ys[0]) if len(pieces) == 1 else (joined(xs), joined(ys))
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            at = first + start
            weights = None if self.weights is None else self.weights[at : at + len(x[part])]
            yield at, self._placed(x[part], y[part], weights)

    def _pieces(self) -> Iterator[Pair]:
        """As the source gives them, each the same as at the first reading."""
        at = self.first
        self.readings[0] += 1
        for x, y in reading(self.reader.read(self.first), again=self.readings[0]):
            found, wanted = row_sums(x, y).cpu(), self.sums[at : at + len(x)]
            if len(found) > len(wanted):
                raise InputError(f"the source had {len(self.sums)} examples before, more now")
            if not torch.equal(found, wanted):
                n = int((found != wanted).int().argmax())
                raise InputError(f"example {at + n} {AGAIN}")
            yield x, y
            at += len(x)
        if at != len(self.sums):
            raise InputError(f"the source had {len(self.sums)} examples before, {at} now")

    def _placed(self, x: Batched, y: Batched, weights: Tensor | None) -> Examples:
        return unchecked(*placed(x, y, self.device, self.dtype), weights)

    def to(self, device: torch.device, dtype: torch.dtype) -> Stream:
        """What is read goes to `device`, and floating inputs to `dtype`."""
        weights = None if self.weights is None else self.weights.to(device)
        return replace(self, device=device, dtype=dtype, weights=weights)

    def weighted(self, weights: Tensor) -> Stream:
        """The same examples with weights."""
        return replace(self, weights=weights_of(weights, len(self)))

    @property
    def varied(self) -> bool:
        """Whether examples differ in shape, as sequences that are padded batch by batch."""
        return len(self.shapes) > 1

    def of_each_shape(self) -> Iterator[tuple[int, Examples]]:
        """(number, one example) of the shapes that they have, as it is read in order: of all, or of
        `TRIED` of them."""
        for n in self.shapes[:: -(-len(self.shapes) // TRIED)]:
            ahead = replace(self, first=n, weights=None)
            yield n, next(ahead.chunks(1))[1]

    @property
    def one_tensor(self) -> bool:
        """Whether inputs are a tensor by themselves."""
        return not isinstance(self.take(slice(0, 1)).inputs, Tree)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What stands for all of it, and the weights where there are some."""
        return (self.sums,) if self.weights is None else (self.sums, self.weights)

    @property
    def versions(self) -> tuple[int, ...]:
        """Nothing of it is held that could be changed in place."""
        return ()

    @property
    def checksum(self) -> int:
        return checksum(*self.tensors)

    def checksum_of(self, part: slice) -> int:
        """Of some of them, as they were when they were last read."""
        return checksum(self.sums[self.first :][part])

    @property
    def contents(self) -> Tensor:
        """A number for each example's content, [N]."""
        return self.sums[self.first :]

    @property
    def distinct(self) -> int:
        """How many different examples there are, without those of weight 0."""
        return count_distinct(self.contents, self.weights)


Data: TypeAlias = "Examples | Stream"


def in_memory(data: Data) -> Examples:
    """All of it, held: what retraining needs."""
    return data if isinstance(data, Examples) else data.take(slice(None))


def labels_of(data: Data) -> Tensor | None:
    """The targets where they are one class of each example, [N] on the CPU; of what is not in
    memory by one reading."""
    if isinstance(data, Examples):
        return None if data.labels is None else data.labels.cpu()
    if data.take(slice(0, 1)).labels is None:
        return None
    found = [labels for _, part in data.chunks(LABELS) if (labels := part.labels) is not None]
    return torch.cat(found).cpu()


def shapes(pair: Pair) -> tuple[torch.Size, ...]:
    return tuple(leaf.shape[1:] for rows in pair for leaf in leaves(rows))
