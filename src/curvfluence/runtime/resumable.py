"""Chunks of data that can begin anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

Chunk = TypeVar("Chunk", covariant=True)


@runtime_checkable
class Resumable(Protocol[Chunk]):
    """`after(position)` gives the chunks that a pass would still have given when its `position` was
    that, each with the same bits; a position is made of plain values and tensors."""

    def __iter__(self) -> Iterator[Chunk]: ...

    @property
    def position(self) -> Any: ...

    def after(self, position: Any) -> Iterator[Chunk]: ...


@runtime_checkable
class Recalling(Protocol):
    """A pass that sees more than its chunks: `recall(position)` puts back what it had seen where
    its `position` was that."""

    @property
    def position(self) -> Any: ...

    def recall(self, position: Any) -> None: ...
