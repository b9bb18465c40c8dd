"""A finished sweep as it lies on disk; anything else is refused with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from curvfluence.errors import InputError
from curvfluence.store.files import inside, require_inside
from curvfluence.store.folder import SPEC
from curvfluence.store.records import Record, read
from curvfluence.study.results import Results
from curvfluence.study.study import read_study
from curvfluence.study.sweep.grid import CELLS, Cell

INDEX = "sweep.json"
Kept = bool | Annotated[int, Meta(ge=0, le=2**53)] | float | str


class IndexedCell(Record, frozen=True):
    """The settings of a cell, the folder of its study inside the sweep's, and the digest of its
    results."""

    settings: dict[str, Kept]
    folder: str
    digest: str


class SweepIndex(Record, frozen=True):
    """`sweep.json`: the axes of the grid, and its cells. A folder without it holds an unfinished
    sweep."""

    version_at = ("curvfluence",)
    remedy = "run the sweep again"

    curvfluence: str
    axes: Annotated[dict[str, Annotated[tuple[Kept, ...], Meta(min_length=1)]], Meta(min_length=1)]
    cells: Annotated[tuple[IndexedCell, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        count = prod(len(values) for values in self.axes.values())
        if len(self.cells) != count:
            raise ValueError(f"it lists {len(self.cells)} studies where its axes make {count}")
        for name in ("settings", "folder"):
            seen = [str(getattr(cell, name)) for cell in self.cells]
            if len(set(seen)) < len(seen):
                raise ValueError(f"two cells have the same {name}")
        for cell in self.cells:
            if set(cell.settings) != set(self.axes):
                raise ValueError(f"a cell has settings {list(cell.settings)}, not the axes'")
            for name, value in cell.settings.items():
                if value not in self.axes[name]:
                    raise ValueError(f"a cell has {name} {value!r}, no value of its axis")
            require_inside(cell.folder)


@dataclass(frozen=True, eq=False)
class SweptStudy:
    """One study of a sweep: its cell of the grid, and its results."""

    cell: Cell
    results: Results


@dataclass(frozen=True, eq=False)
class Sweep:
    """The studies of a grid, in its order, and the folder that holds them."""

    studies: tuple[SweptStudy, ...]
    path: Path


def is_sweep(folder: Path) -> bool:
    """Whether the folder is a sweep's, finished or not."""
    if (folder / SPEC).exists():
        return False
    return (folder / INDEX).is_file() or (folder / CELLS).is_dir()


def read_sweep(folder: Path) -> Sweep:
    """The finished sweep in `folder`, every study of it.

    Errors: `InputError` where there is no sweep, where it is unfinished or half written, where one
    of its studies is missing, unfinished or of other settings, or where another version of
    curvfluence made it.
    """
    if not is_sweep(folder):
        raise InputError(f"{folder} holds no sweep: there is neither {INDEX} nor {CELLS}/ in it")
    index = read(folder / INDEX, SweepIndex)
    if index is None:
        raise InputError(
            f"{folder} holds an unfinished sweep: there is no {INDEX} in it; run the same sweep "
            "again, it goes on where it stopped"
        )
    studies = tuple(_study(folder, cell, list(index.axes)) for cell in index.cells)
    makers = {study.results.made_by for study in studies}
    if len(makers) > 1:
        raise InputError(
            f"the studies of {folder} were made by {len(makers)} versions of the code or of torch: "
            "run the same sweep again"
        )
    return Sweep(studies, folder)


def _study(folder: Path, cell: IndexedCell, axes: list[str]) -> SweptStudy:
    """One study, whose settings must be those that the sweep speaks of."""
    results = read_study(inside(folder, cell.folder)).results
    if results.digest != cell.digest:
        raise InputError(
            f"{folder / cell.folder} holds other results than {INDEX} was made of: run the sweep "
            "again"
        )
    spec = results.spec
    settings: dict[str, Kept] = {**spec.variant, "seed": spec.seed, "alpha": spec.alpha}
    for name, value in cell.settings.items():
        if settings.get(name) != value:
            raise InputError(
                f"{folder / cell.folder} is a study of {name} {settings.get(name)}, where {INDEX} "
                f"speaks of {value}: run the sweep again"
            )
    return SweptStudy({name: cell.settings[name] for name in axes}, results)
