"""A table as a page shows it."""

from __future__ import annotations

from dataclasses import dataclass

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of text under a caption; the first column names the row."""

    caption: str
    columns: Row
    rows: tuple[Row, ...]
    open: bool = False
    text: tuple[int, ...] = ()  # columns of words, set from the left
