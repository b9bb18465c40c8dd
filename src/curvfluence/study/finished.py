"""A finished study as it lies on disk; anything else is refused with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curvfluence._version import __version__
from curvfluence.errors import InputError
from curvfluence.store import folder as store

_SECTIONS = ("problem", "protocol", "spec", "recipe", "environment", "truth", "rungs", "steps")
_KINDS = {"rungs": "ladder", "hybrids": "hybrid"}
_RUNG = ("name", "full_name", "lds", "interval", "dampings", "sweep", "fit_seconds")


@dataclass(frozen=True, eq=False)
class Finished:
    """`results.json` of one study, and its arrays on demand."""

    path: Path
    results: dict[str, Any]

    @cached_property
    def rungs(self) -> list[dict[str, Any]]:
        """Rungs from the top down, then hybrids, each with its `kind`."""
        found = [(kind, rung) for kind in _KINDS for rung in self.results.get(kind, [])]
        return [{"kind": _KINDS[kind], **rung} for kind, rung in found]

    @property
    def ladder(self) -> list[dict[str, Any]]:
        """The rungs without the hybrids."""
        return [rung for rung in self.rungs if rung["kind"] == "ladder"]

    def array(self, name: str) -> NDArray[Any] | None:
        """`arrays/<name>.npy`, or None where the study kept no such array."""
        file = self.path / store.ARRAYS / f"{name}.npy"
        if not file.is_file():
            return None
        try:
            return np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(
                f"{file} is no readable array ({error}): run the study again with --rerun"
            ) from None


def read_study(folder: Path) -> Finished:
    """The finished study in `folder`.

    Errors: `InputError` where there is no study, where it is unfinished, half written or being run
    again, or where another version of curvfluence made it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: name the folder of a study, such as runs/digits")
    settings = store.read_json(folder / store.SPEC)
    results = store.read_json(folder / store.RESULTS)
    if settings is None:
        raise InputError(f"{folder} holds no study: there is no {store.SPEC} in it")
    if results is None:
        raise InputError(
            f"{folder} holds an unfinished study: there is no {store.RESULTS} in it; run the study "
            "again"
        )
    _require_version(folder, results)
    _require_whole(folder, results)
    if settings.get("made_by") != results.get("made_by"):
        raise InputError(
            f"{folder} holds results of an earlier run of a study that was begun again and not "
            "finished: run the study again"
        )
    finished = Finished(folder, results)
    _require_arrays(finished)
    return finished


def _require_version(folder: Path, results: dict[str, Any]) -> None:
    made_by = results.get("environment", {}).get("curvfluence")
    if made_by != __version__:
        raise InputError(
            f"{folder} was made by curvfluence {made_by or 'of an unknown version'} and this is "
            f"{__version__}: run the study again with --rerun, or use the version that made it"
        )


def _require_whole(folder: Path, results: dict[str, Any]) -> None:
    missing = [name for name in _SECTIONS if name not in results]
    rungs: list[dict[str, Any]] = results.get("rungs", [])
    for rung in [*rungs, *results.get("hybrids", [])]:
        missing += [f"rungs[].{name}" for name in _RUNG if name not in rung]
    if missing or not rungs:
        raise InputError(
            f"{folder / store.RESULTS} is not whole: it lacks "
            f"{', '.join(dict.fromkeys(missing)) or 'any rung'}; run the study again with --rerun"
        )


def _require_arrays(study: Finished) -> None:
    """The arrays that every finished study keeps, with the sizes that its results state."""
    truth = study.results["truth"]
    models, queries = truth["models"], truth["queries"]
    wanted: dict[str, tuple[int, ...]] = {
        "truth": (models, truth["orders"], truth["subsets"], queries),
        "subsets": (truth["subsets"], truth["train"]),
    }
    for rung in study.ladder:
        wanted[f"scores.{rung['name']}"] = (models, queries, truth["train"])
    for name, shape in wanted.items():
        array = study.array(name)
        if array is None or array.shape != shape:
            seen = "is missing" if array is None else f"has shape {array.shape}"
            raise InputError(
                f"{study.path / store.ARRAYS / name}.npy {seen}, where the results speak of "
                f"{shape}: the folder is half written; run the study again with --rerun"
            )
