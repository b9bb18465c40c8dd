"""A finished sweep as it lies on disk; anything else is refused with its reason."""

from __future__ import annotations

from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from curvfluence._version import __version__
from curvfluence.errors import InputError
from curvfluence.store import folder as store
from curvfluence.study.finished import read_study
from curvfluence.study.sweep import CELLS, INDEX, Sweep

_KEYS = ("curvfluence", "axes", "cells")


def is_sweep(folder: Path) -> bool:
    """Whether the folder is a sweep's, finished or not."""
    if (folder / store.SPEC).exists():
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
    index = store.read_json(folder / INDEX)
    if index is None:
        raise InputError(
            f"{folder} holds an unfinished sweep: there is no {INDEX} in it; run the same sweep "
            "again, it goes on where it stopped"
        )
    _require_whole(folder, index)
    studied = tuple((c["settings"], _cell(folder, c)) for c in index["cells"])
    made = {tuple(sorted(results.get("made_by", {}).items())) for _, results in studied}
    if len(made) > 1:
        raise InputError(
            f"the studies of {folder} were made by {len(made)} versions of the code or of torch: "
            "run the same sweep again"
        )
    return Sweep(studied, folder)


def _require_whole(folder: Path, index: dict[str, Any]) -> None:
    made_by = index.get("curvfluence")
    if made_by != __version__:
        raise InputError(
            f"{folder} was made by curvfluence {made_by or 'of an unknown version'} and this is "
            f"{__version__}: run the sweep again, or use the version that made it"
        )
    missing = [name for name in _KEYS if not index.get(name)]
    if missing:
        raise InputError(f"{folder / INDEX} is not whole: it lacks {', '.join(missing)}")
    if not all({"settings", "folder"} <= set(listed) for listed in index["cells"]):
        raise InputError(f"{folder / INDEX} is not whole: a cell lacks its settings or its folder")
    count = prod(len(values) for values in index["axes"].values())
    if len(index["cells"]) != count:
        raise InputError(
            f"{folder / INDEX} lists {len(index['cells'])} studies where its axes make {count}: "
            "run the sweep again"
        )


def _cell(folder: Path, listed: dict[str, Any]) -> dict[str, Any]:
    """The results of one study, whose settings must be those that the sweep speaks of."""
    inside = PurePosixPath(listed["folder"])
    if inside.is_absolute() or ".." in inside.parts:
        raise InputError(f"{folder / INDEX} names a study outside of the sweep: {inside}")
    results = read_study(folder / inside).results
    spec: dict[str, Any] = results["spec"]
    seen = {**spec, **spec.get("variant", {})}
    for name, value in listed["settings"].items():
        if seen.get(name) != value:
            raise InputError(
                f"{folder / inside} is a study of {name} {seen.get(name)}, where {INDEX} speaks of "
                f"{value}: run the sweep again"
            )
    return results
