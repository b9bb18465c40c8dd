"""Which cells a figure or a table of the paper's experiment puts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curvfluence.study.claims.table1_run import CellResult, Table1

LENGTH, FRACTION = 100, 0.5  # what a cell has where neither is spoken of, if there is such a one
LADDER = ("Hessian", "GGN", "BlockGGN", "EKFAC", "KFAC", "EShampoo", "TKFAC", "Shampoo")
BELOW = ("Diagonal", "Identity")
CHAIN = ("GGN", "BlockGGN", "EKFAC", "KFAC")


@dataclass(frozen=True)
class Axis:
    """Cells that differ in one thing, and the value of it in each."""

    name: str
    fixed: str
    values: tuple[str, ...]
    cells: tuple[CellResult, ...]


def axes(table: Table1) -> tuple[Axis, ...]:
    """Training length, depth, width and the fraction kept, each with more than one cell: from the
    first net, which lies on all of them. Of a table without any, as of a single cell, the first
    that has one."""
    plain = [cell for cell in table.cells if not cell.bias]
    lengths = {cell.epochs for cell in plain}
    length = LENGTH if LENGTH in lengths else max(lengths)
    half = [cell for cell in plain if cell.alpha == FRACTION]
    at = [cell for cell in half if cell.epochs == length]
    depth, width = plain[0].depth, plain[0].width
    net, long = f"depth {depth}, width {width}", f"{length} epochs"
    own = [cell for cell in plain if (cell.depth, cell.width) == (depth, width)]
    made = (
        _axis("epochs", net, [cell for cell in own if cell.alpha == FRACTION]),
        _axis("depth", f"width {width}, {long}", [c for c in at if c.width == width]),
        _axis("width", f"depth {depth}, {long}", [c for c in at if c.depth == depth]),
        _axis("alpha", f"{net}, {long}", [cell for cell in own if cell.epochs == length]),
    )
    several = tuple(axis for axis in made if len(axis.cells) > 1)
    return several or tuple(axis for axis in made if axis.cells)[:1]


def _axis(name: str, fixed: str, cells: Sequence[CellResult]) -> Axis:
    ordered = sorted(cells, key=lambda cell: getattr(cell, name))
    values = tuple(f"{getattr(cell, name):g}" for cell in ordered)
    shown = {"alpha": "fraction kept α"}.get(name, name)
    return Axis(shown, fixed, values, tuple(ordered))


def middle(table: Table1) -> tuple[CellResult, ...]:
    """The cells whose subsets keep half: one for every net and length."""
    return tuple(cell for cell in table.cells if cell.alpha == FRACTION)


def net_label(cell: CellResult) -> str:
    """1×16, 100 epochs."""
    return f"{cell.depth}×{cell.width}{'b' if cell.bias else ''}, {cell.epochs:,} epochs"


def short_label(cell: CellResult) -> str:
    """depth 1, width 16, 100 epochs."""
    return cell.label.removesuffix(f", α = {cell.alpha:g}")
