"""Where examples are read from that are not in memory: in order, from any place, or by number."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
)
from torch.utils.data import default_collate as collate_default

from curvfluence.errors import InputError
from curvfluence.problem.own_code import own_code
from curvfluence.problem.tree import Batched, batched, each, joined, same
from curvfluence.runtime import generators

LABELS = "labels"  # what collators call the targets
PIECE = 256  # items that are read at a time where the source does not say
ROWS = 1024  # rows of a memory map
GIVE_BACK: int | None = getattr(mmap, "MADV_DONTNEED", None)  # not on every system

# of a loader, beside its data set, batches, collate function and number of workers
SETTINGS = ("worker_init_fn", "multiprocessing_context", "timeout")

Pair = tuple[Batched, Batched]
T = TypeVar("T")


class Reader(ABC):
    """An ordered source of examples, each (inputs, targets) with a first axis over some of them."""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def read(self, first: int) -> Iterator[Pair]:
        """Successive pieces from example `first` on."""

    @abstractmethod
    def take(self, numbers: Sequence[int]) -> Pair:
        """Some examples by number."""


def reading(pieces: Iterator[T], again: int = 0) -> Iterator[T]:
    """The same one after another: what reading each draws at random is undone before it is handed
    on, and what the source raises is said to be its own. With `again`, the number of this reading,
    other numbers are drawn than before, so data that are drawn at random show."""
    while True:
        with generators.preserved(), own_code("reading the data"):
            if again:
                torch.default_generator.manual_seed(again)
            try:
                piece = next(pieces)
            except StopIteration:
                return
        yield piece


@dataclass(frozen=True)
class _Batches:
    """The numbers of successive batches, from batch `first` on: what a `DataLoader` draws by."""

    count: int
    size: int
    first: int

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(self.first * self.size, self.count, self.size):
            yield list(range(start, min(start + self.size, self.count)))

    def __len__(self) -> int:
        return max(0, -(-self.count // self.size) - self.first)


@dataclass(frozen=True, eq=False)
class Items(Reader):
    """A map-style data set, put together into batches as its loader does it: `size` items by
    `collate`, read by `workers` processes that are started as `settings` of a loader say."""

    dataset: Any
    collate: Callable[[list[Any]], Any] = collate_default
    size: int = PIECE
    workers: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, first: int) -> Iterator[Pair]:
        batches = _Batches(len(self), self.size, first // self.size)
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=cast("Any", batches),
            collate_fn=self.collate,
            num_workers=self.workers,
            **self.settings,
        )
        skip = first % self.size
        for batch in loader:
            x, y = _pair(batch)
            yield x[skip:], y[skip:]
            skip = 0

    def take(self, numbers: Sequence[int]) -> Pair:
        return _pair(self.collate([self.dataset[int(n)] for n in numbers]))


@dataclass(frozen=True, eq=False)
class Slices(Reader):
    """Arrays in files (`numpy.memmap`), of which rows are copied as they are asked for. `files` are
    their mappings, whose pages are given back as reading goes on."""

    inputs: Batched
    targets: Batched
    files: tuple[mmap.mmap, ...]

    def __len__(self) -> int:
        return len(self.inputs)

    def read(self, first: int) -> Iterator[Pair]:
        for start in range(first, len(self), ROWS):
            yield self._rows(slice(start, start + ROWS))
            if GIVE_BACK is not None:
                for file in self.files:
                    file.madvise(GIVE_BACK)

    def take(self, numbers: Sequence[int]) -> Pair:
        return self._rows(torch.tensor(list(map(int, numbers))))

    def _rows(self, at: slice | Tensor) -> Pair:
        return each(self.inputs[at], torch.clone), each(self.targets[at], torch.clone)


@dataclass(frozen=True, eq=False)
class _Single:
    """Stacks items of a loader without batches, each as its own function of one item makes it."""

    convert: Callable[[Any], Any]

    def __call__(self, items: list[Any]) -> Pair:
        pairs = [_pair(self.convert(item)) for item in items]
        x, y = zip(*pairs, strict=True)
        return joined(x, torch.stack), joined(y, torch.stack)


def reader_of(source: object) -> Reader | None:
    """How a source is read that is a map-style data set or a loader of one; None for others.

    Errors: `InputError` for a loader whose order is not that of its data set."""
    if isinstance(source, DataLoader):
        loader = cast("DataLoader[Any]", source)
        require_order(loader)
        if isinstance(loader.dataset, IterableDataset):
            return None
        collate = cast("Callable[[Any], Any]", loader.collate_fn)
        settings = {name: getattr(loader, name) for name in SETTINGS}
        if loader.batch_sampler is None:
            collate, size = _Single(collate), PIECE
        else:
            size = int(cast("Any", loader.batch_sampler).batch_size)
        items = Items(loader.dataset, collate, size, loader.num_workers, settings)
        if type(loader).__iter__ is not DataLoader.__iter__ and loader.batch_sampler is not None:
            _require_plain(loader, items)
        return items
    if isinstance(source, IterableDataset):
        return None
    if isinstance(source, Dataset) or _is_map_style(source):
        return Items(source)
    return None


def _require_plain(loader: DataLoader[Any], items: Items) -> None:
    """A loader with an iteration of its own gives the batches of its items all the same."""
    given, read = (next(reading(pieces), None) for pieces in (_own(loader), items.read(0)))
    if given is None or read is None:
        return
    for own, plain in zip(given, read, strict=True):
        if not same(each(own, Tensor.cpu), plain):
            raise InputError(
                f"{type(loader).__name__} makes other batches than its collate function does of "
                "its items, and other passes would not see what it does: do it in the data set or "
                "in the collate function"
            )


def _own(loader: DataLoader[Any]) -> Iterator[Pair]:
    for batch in loader:
        yield _pair(batch)


def _is_map_style(source: object) -> bool:
    """An ordered set of items that is no `Dataset` of torch by name (a `datasets.Dataset`)."""
    plain = isinstance(source, Mapping | tuple | list | str | bytes) or hasattr(source, "__array__")
    return not plain and hasattr(source, "__len__") and hasattr(source, "__getitem__")


def _pair(batch: object) -> Pair:
    x, y = split(batch, "a batch must be (inputs, targets), or a mapping with 'labels'")
    return batched(x, "the inputs of a batch"), batched(y, "the targets of a batch")


def split(value: object, expected: str) -> tuple[Any, Any]:
    """(inputs, targets) of a pair, or of a mapping in which the targets are the `labels`, as
    collators of Hugging Face make it.

    Errors: `InputError` that says what was `expected`, for anything else."""
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        if LABELS not in mapping:
            raise InputError(
                f"a mapping needs the targets under '{LABELS}'; seen {', '.join(map(str, mapping))}"
                ". Rename them, or give (inputs, targets)"
            )
        inputs = {key: mapping[key] for key in mapping if key != LABELS}
        if not inputs:
            raise InputError(f"a mapping of '{LABELS}' alone has no inputs")
        return inputs, mapping[LABELS]
    if isinstance(value, tuple | list) and len(cast("list[Any]", value)) == 2:
        first, second = cast("tuple[Any, Any]", value)
        return first, second
    seen = f"a {type(value).__name__}"
    if isinstance(value, tuple | list):
        seen += (
            f" of {len(cast('list[Any]', value))}. Several inputs stand together: "
            "((first, second), targets), or a mapping by their names"
        )
    raise InputError(f"{expected}; seen {seen}")


def require_order(loader: DataLoader[Any]) -> None:
    """Refuse a loader by which scores would not line up with the numbers of examples."""
    if isinstance(loader.dataset, IterableDataset):
        if loader.num_workers > 1:
            raise InputError(
                f"{loader.num_workers} workers read the stream at once, so its order is theirs: "
                "build the DataLoader with num_workers=0"
            )
        return
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if type(sampler) is not SequentialSampler or (
        loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler
    ):
        by = sampler if type(sampler) is not SequentialSampler else loader.batch_sampler
        raise InputError(
            f"the DataLoader draws its examples by {type(by).__name__}: scores would not line "
            "up with indices. Build it with shuffle=False, or pass the dataset itself"
        )
    if loader.drop_last or getattr(loader.batch_sampler, "drop_last", False):
        raise InputError("the DataLoader has drop_last=True: the last examples would get no score")
