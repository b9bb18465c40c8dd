"""A table, the same on a page, in a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias, TypeVar

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from curvfluence.study.words import NONE

GAP = 2  # blanks between two columns of a terminal
Row = tuple[str, ...]
T = TypeVar("T")
Columns: TypeAlias = Mapping[str, Callable[[T], str]]  # what each column says of an item


@dataclass(frozen=True)
class Table:
    """Rows of text under a caption; the first column names the row. An `open` table is seen at
    once; `words` are the columns of words, which are set from the left."""

    caption: str
    columns: Row
    rows: tuple[Row, ...]
    open: bool = False
    words: tuple[str, ...] = ()

    def only(self, columns: Iterable[str]) -> Table:
        """With these of its columns."""
        places = [self.columns.index(name) for name in columns if name in self.columns]
        rows = tuple(tuple(row[k] for k in places) for row in self.rows)
        return Table(
            self.caption, tuple(self.columns[k] for k in places), rows, self.open, self.words
        )

    def show(self, console: Console) -> None:
        """On a terminal; where that is too narrow, without the last columns, which are named."""
        shown = self.only(self.columns[: self._fitting(console.width)])
        grid = Grid(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
        for k, name in enumerate(shown.columns):
            left = k == 0 or name in shown.words
            grid.add_column(
                Text(name),
                style="bold" if k == 0 else None,
                justify="left" if left else "right",
                no_wrap=not left,
                min_width=self._least(k),
            )
        for row in shown.rows:
            grid.add_row(*map(Text, row))
        console.print(grid)
        left_out = self.columns[len(shown.columns) :]
        if left_out:
            console.print(Text(f"left out at this width: {', '.join(left_out)}", style="dim"))

    def _least(self, k: int) -> int:
        """The narrowest that a column can be read at: words wrap between words."""
        cells = (self.columns[k], *(row[k] for row in self.rows))
        if k == 0 or self.columns[k] in self.words:
            return min(max(map(len, cells)), max(len(w) for c in cells for w in [*c.split(), ""]))
        return max(map(len, cells))

    def _fitting(self, width: int) -> int:
        """How many columns, from the first, a terminal has room for; two at least."""
        ends = list(accumulate(self._least(k) + GAP for k in range(len(self.columns))))
        return max(min(2, len(ends)), sum(end - GAP <= width for end in ends))

    @property
    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        cells = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
        return "\n".join(f"| {line} |" for line in cells)


def tabulate(
    caption: str,
    columns: Columns[T],
    items: Iterable[T],
    *,
    open: bool = False,
    words: tuple[str, ...] = (),
) -> Table:
    """A row for each item. A column that says nothing of any of them is left out."""
    lines = [tuple(cell(item) for cell in columns.values()) for item in items]
    table = Table(caption, tuple(columns), tuple(lines), open, words)
    speaks = [k == 0 or any(row[k] not in ("", NONE) for row in lines) for k in range(len(columns))]
    return table.only(name for name, kept in zip(columns, speaks, strict=True) if kept)
