"""What a user gives as examples: taken into memory where it is small, else read as it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from curvfluence.errors import InputError
from curvfluence.problem.data import Examples, require_lengths, require_sound, row_sums
from curvfluence.problem.own_code import own_code
from curvfluence.problem.readers import Pair, Reader, Slices, reader_of, reading, split
from curvfluence.problem.stream import AGAIN, Data, Stream, shapes
from curvfluence.problem.tree import (
    Batched,
    batched,
    joined,
    leaves,
    paths_of,
    same,
)
from curvfluence.runtime import budget, generators

Source: TypeAlias = (
    "Examples | tuple[Any, Any] | Mapping[str, Any] | Dataset[Any] | DataLoader[Any]"
)


def data_of(source: Source, name: str, hold: int = budget.HELD) -> Data:
    """Examples from (inputs, targets), a mapping with `labels`, a map-style data set of either, or
    a `DataLoader` that keeps its order. `labels` are the targets, all else in a mapping the inputs.

    Tensors and arrays are held as they are. A data set, a loader, or arrays in files
    (`numpy.memmap`) are read once from end to end; what is `hold` bytes at most, in one shape, is
    held, and anything else is a `Stream`, which later passes read again. The global random state is
    left as found.

    Errors: `InputError` for another order than that of the examples, items of different forms, an
    item that is another when it is read again, and a stream without length that is too large to be
    held; `NonFiniteError` naming the example.
    """
    if isinstance(source, Examples):
        return source
    try:
        reader = reader_of(source) or _mapped(source)
        if reader is not None:
            return _read(reader, hold)
        if isinstance(source, DataLoader | IterableDataset):
            given: Any = source
            loader = given if isinstance(source, DataLoader) else DataLoader(given, PASSED)
            return _collected(loader, hold)
        return Examples(*split(source, "expected (inputs, targets), a Dataset or a DataLoader"))
    except InputError as error:
        raise type(error)(f"{name}: {error}") from error.__cause__


PASSED = 256  # items of a stream at a time
AGAIN_READ = 256  # items of a data set that are read a second time, or all


def _mapped(source: object) -> Reader | None:
    """Arrays of which one lies in a file."""
    if not isinstance(source, tuple | list | Mapping):
        return None
    maps = [leaf for leaf in _flat(source) if isinstance(leaf, np.memmap)]
    if not maps:
        return None
    x, y = split(source, "expected (inputs, targets)")
    inputs, targets = batched(x, "inputs"), batched(y, "targets")
    require_lengths(inputs, targets)
    # "c" is copied on write: its pages may hold what is in no file
    shared = [part for part in maps if getattr(part, "mode", "c") != "c"]
    files = {id(part._mmap): part._mmap for part in shared}  # pyright: ignore[reportAttributeAccessIssue]
    return Slices(inputs, targets, tuple(file for file in files.values() if file is not None))


def _flat(value: Any) -> Iterator[Any]:
    parts: Any = value.values() if isinstance(value, Mapping) else value  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    for part in parts:
        if isinstance(part, tuple | list | Mapping):
            yield from _flat(part)
        else:
            yield part


@dataclass(eq=False)
class _FirstReading:
    """What is learnt of a source while it is read once: every check of single examples, their sums,
    and the examples themselves while they are few."""

    hold: int
    count: int = 0
    held: list[Pair] | None = field(default_factory=list[Pair])
    sums: list[Tensor] = field(default_factory=list[Tensor])
    forms: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    shapes: dict[tuple[torch.Size, ...], int] = field(
        default_factory=dict[tuple[torch.Size, ...], int]
    )  # and the first example of each
    bytes: int = 0
    low: list[Tensor] = field(default_factory=list[Tensor])
    high: list[Tensor] = field(default_factory=list[Tensor])

    def add(self, x: Batched, y: Batched) -> None:
        self._require_form(x, y)
        require_sound(x, y, self.count)
        self.sums.append(row_sums(x, y).cpu())
        self.shapes.setdefault(shapes((x, y)), self.count)
        self.bytes += sum(leaf.nbytes for rows in (x, y) for leaf in leaves(rows))
        self.count += len(x)
        if self.held is not None:
            if self.bytes > self.hold or len(self.shapes) > 1:
                self.held = None
            else:
                self.held.append((x, y))
        if len(self.shapes) == 1:
            self._extend(y)

    def _extend(self, y: Batched) -> None:
        lows = [leaf.amin(0) for leaf in leaves(y)]
        highs = [leaf.amax(0) for leaf in leaves(y)]
        self.low = [torch.minimum(a, b) for a, b in zip(self.low or lows, lows, strict=True)]
        self.high = [torch.maximum(a, b) for a, b in zip(self.high or highs, highs, strict=True)]

    def _require_form(self, x: Batched, y: Batched) -> None:
        form = (paths_of(x), paths_of(y))
        self.forms = self.forms or form
        for what, a, b in zip(("inputs", "targets"), self.forms, form, strict=True):
            if a != b:
                raise InputError(
                    f"{what} must have one form throughout; seen ({', '.join(a)}) and, from "
                    f"example {self.count} on, ({', '.join(b)})"
                )

    def extremes(self, like: Batched) -> Batched | None:
        """[2, ...] of targets; None where their shapes differ."""
        if len(self.shapes) != 1:
            return None
        rows = [torch.stack(pair) for pair in zip(self.low, self.high, strict=True)]
        return rows[0] if isinstance(like, Tensor) else like.of_leaves(rows)


def _read(reader: Reader, hold: int) -> Data:
    seen = _FirstReading(hold)
    last: Batched | None = None
    for x, y in reading(reader.read(0)):
        seen.add(x, y)
        last = y
    if last is None:
        raise InputError("no examples: the set is empty")
    if seen.count != len(reader):
        raise InputError(
            f"the source has {len(reader)} items, and its batches hold {seen.count} examples: "
            "one of each, or scores would not line up with indices"
        )
    with generators.preserved(), own_code("reading the data"):
        data = _taken(reader, seen, last)
        _require_repeatable(reader, data)
    return data


def _taken(reader: Reader, seen: _FirstReading, last: Batched) -> Data:
    if seen.held is not None:
        xs, ys = zip(*seen.held, strict=True)
        return Examples(joined(xs), joined(ys))
    kind = next((x.dtype for x in _leaves_of(reader) if x.is_floating_point()), None)
    return Stream(
        reader=reader,
        sums=torch.cat(seen.sums),
        extremes=seen.extremes(last),
        device=torch.device("cpu"),
        dtype=kind or torch.get_default_dtype(),
        shapes=tuple(seen.shapes.values()),
    )


def _leaves_of(reader: Reader) -> tuple[Tensor, ...]:
    return leaves(reader.take([0])[0])


def _require_repeatable(reader: Reader, data: Data) -> None:
    """Examples spread over the source are the same when they are read once more: `AGAIN_READ` of
    what is held, or all. Of a stream four, since every later pass looks at each."""
    torch.rand(1)  # or what is drawn at random would be drawn as it was
    n, count = len(data), AGAIN_READ if isinstance(data, Examples) else 4
    for i in sorted({k * (n - 1) // (count - 1) for k in range(count)}):
        found = reader.take([i])
        one = _pair_of(data[i : i + 1]) if isinstance(data, Examples) else reader.take([i])
        if shapes(one) != shapes(found):  # padded to another length by itself
            one = reader.take([i])
        for what, a, b in zip(("input", "target"), one, found, strict=True):
            if not same(a, b):
                raise InputError(f"the {what} of item {i} {AGAIN}")


def _pair_of(examples: Examples) -> Pair:
    return examples.inputs, examples.targets


def _collected(loader: DataLoader[Any], hold: int) -> Examples:
    """A stream without length, which is read once more from its beginning."""
    seen = _FirstReading(hold)
    single = loader.batch_sampler is None
    for pair in reading(_batches(loader, single)):
        seen.add(*pair)
        if seen.held is None:
            raise InputError(
                f"a stream (IterableDataset) has no examples to come back to, and after "
                f"{seen.count} of them {_too_much(seen)}: give a map-style Dataset, with __len__ "
                "and __getitem__"
            )
    if not seen.held:
        raise InputError("no examples: the set is empty")
    xs, ys = zip(*seen.held, strict=True)
    with generators.preserved(), own_code("reading the data"):
        torch.rand(1)  # or what is drawn at random would be drawn alike
        first = next(_batches(loader, single))
    for what, again, rows in zip(("input", "target"), first, (xs[0], ys[0]), strict=True):
        if not same(again, rows):
            raise InputError(f"the {what} of item 0 {AGAIN}")
    return Examples(joined(xs), joined(ys))


def _too_much(seen: _FirstReading) -> str:
    if len(seen.shapes) > 1:
        return "they are of more than one shape"
    return (
        f"they are more than is held, {seen.hold:,} bytes (`remember` and 128 MiB bound it; they "
        f"have {seen.bytes:,})"
    )


def _batches(loader: DataLoader[Any], single: bool) -> Iterator[Pair]:
    for batch in loader:
        x, y = split(batch, "a batch must be (inputs, targets), or a mapping with 'labels'")
        pair = batched(x, "the inputs of a batch"), batched(y, "the targets of a batch")
        if single:
            pair = joined([pair[0]], torch.stack), joined([pair[1]], torch.stack)
        yield pair
