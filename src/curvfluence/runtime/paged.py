"""Tensors in files without a name, whose pages the system writes out and drops when memory is
short."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from tempfile import TemporaryFile
from typing import NamedTuple

import torch
from torch import Tensor

from curvfluence.runtime import budget, log

ALIGNED = 64  # bytes: a cache line


@dataclass(frozen=True, eq=False)
class Pages:
    """The file of some tensors, mapped into memory; it is gone with them."""

    mapped: mmap.mmap

    def let_go(self) -> None:
        """Have the process hold none of the pages: what is read again comes from the file."""
        self.mapped.madvise(mmap.MADV_DONTNEED)


def possible(device: torch.device) -> bool:
    """Whether memory of a device can lie in files: of a CPU, on POSIX."""
    return os.name == "posix" and device.type == "cpu"


def paged(values: Tensor) -> Tensor:
    """The same numbers in a file, where they are many and there can be one; else `values`."""
    found = paged_out([values]) if values.nbytes >= budget.PAGED else None
    return values if found is None else found[0][0]


def paged_out(tensors: Sequence[Tensor]) -> tuple[list[Tensor], Pages] | None:
    """The same tensors (what overlaps does so again) in one file in the folder for temporary files
    (`TMPDIR`). It has no name, so that nothing of it outlives the process. None where there can be
    no such file (`possible`, or the disk is full)."""
    if not all(possible(tensor.device) for tensor in tensors):
        return None
    spans = _spans(tensors)
    places: list[int] = []  # of each span in the file
    end = 0
    for span in spans:
        places.append(end)
        end += -(-span.nbytes // ALIGNED) * ALIGNED
    if not end:
        return None
    try:
        with TemporaryFile() as file:
            for place, span in zip(places, spans, strict=True):
                file.seek(place)
                file.write(span.read().numpy().data)
            file.truncate(end)
            file.flush()
            pages = mmap.mmap(file.fileno(), end)
    except OSError as error:
        log.logger(__name__).info("%d bytes stay in memory: %s", end, error)
        return None
    memory = torch.frombuffer(pages, dtype=torch.uint8).untyped_storage()

    def placed(tensor: Tensor) -> Tensor:
        if not tensor.nbytes:
            return tensor
        own = _Span.of(tensor)
        k = next(k for k, span in enumerate(spans) if span.holds(own))
        first = tensor.storage_offset() - spans[k].start // tensor.element_size()
        at = places[k] // tensor.element_size() + first
        return torch.empty(0, dtype=tensor.dtype).set_(memory, at, tensor.shape, tensor.stride())

    return [placed(tensor) for tensor in tensors], Pages(pages)


def spanned(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors lie in, each once."""
    return sum(span.nbytes for span in _spans(tensors))


class _Span(NamedTuple):
    """Successive bytes of a memory."""

    address: int  # of the memory
    start: int
    end: int
    memory: torch.UntypedStorage

    @classmethod
    def of(cls, tensor: Tensor) -> _Span:
        memory, size = tensor.untyped_storage(), tensor.element_size()
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        start = int(tensor.storage_offset()) * size
        return cls(memory.data_ptr(), start - start % ALIGNED, start + (last + 1) * size, memory)

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    def holds(self, other: _Span) -> bool:
        same = self.address == other.address
        return same and self.start <= other.start and other.end <= self.end

    def read(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8).set_(self.memory, self.start, (self.nbytes,), (1,))


def _spans(tensors: Iterable[Tensor]) -> list[_Span]:
    """Where they lie; those that meet are one."""
    found: list[_Span] = []
    each = sorted((_Span.of(t) for t in tensors if t.nbytes), key=lambda span: span[:3])
    for _, group in groupby(each, key=lambda span: span.address):
        joined: list[_Span] = []
        for span in group:
            if joined and span.start <= joined[-1].end:
                end = max(span.end, joined[-1].end)
                joined[-1] = joined[-1]._replace(end=end)
            else:
                joined.append(span)
        found += joined
    return found
