"""A finished study as it lies on disk; anything else is refused with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from curvfluence.errors import InputError
from curvfluence.store.folder import RESULTS, SPEC, Header
from curvfluence.store.manifest import (
    ARRAYS,
    Manifest,
    read_listed,
    read_manifest,
    verify_arrays,
)
from curvfluence.store.records import read
from curvfluence.study.results import Results

WITH_GAPS = ("bregman", "draws.", "predicted.")  # arrays in which NaN stands for no number


@dataclass(frozen=True, eq=False)
class Study:
    """The results of a study, where they are, and its arrays on demand; `reused` where they had
    been computed before."""

    path: Path
    results: Results
    reused: bool = True

    @cached_property
    def manifest(self) -> Manifest:
        """What its arrays are. Errors: `InputError` where it is not that of these results."""
        return read_manifest(self.path, _header_of(self.path), self.results.manifest)

    def array(self, name: str) -> NDArray[Any] | None:
        """`arrays/<name>.npy`, or None where the study kept no such array.

        Errors: `InputError` for a file that is not what was written, or that holds a NaN or
        infinity where results have none."""
        finite = not name.startswith(WITH_GAPS)
        return read_listed(self.path, self.manifest, name, finite=finite)

    def scores(self, name: str) -> NDArray[Any] | None:
        """[J, Q, N] of a rung, at the dampings that its LDS is reported for."""
        return self.array(f"scores.{name}")


def read_study(folder: Path) -> Study:
    """The finished study in `folder`.

    Errors: `InputError` where there is no study, where it is unfinished, half written or being run
    again, where its files do not fit, or where another version of curvfluence made it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: name the folder of a study, such as runs/digits")
    header = _header_of(folder)
    results = read(folder / RESULTS, Results)
    if results is None:
        raise InputError(
            f"{folder} holds an unfinished study: there is no {RESULTS} in it; run the study again"
        )
    if header.made_by != results.made_by:
        raise InputError(
            f"{folder} holds results of an earlier run of a study that was begun again and not "
            "finished: run the study again"
        )
    study = Study(folder, results)
    verify_arrays(folder, study.manifest)
    _require_arrays(study)
    return study


def _header_of(folder: Path) -> Header:
    header = read(folder / SPEC, Header)
    if header is None:
        raise InputError(f"{folder} holds no study: there is no {SPEC} in it")
    return header


def _require_arrays(study: Study) -> None:
    """The arrays that every finished study keeps, with the sizes that its results state, and the
    first axes of those that it may keep."""
    truth = study.results.truth
    wanted: dict[str, tuple[int, ...]] = {
        "truth": (truth.models, truth.orders, truth.subsets, truth.queries),
        "subsets": (truth.subsets, truth.train),
    }
    for rung in study.results.rungs if study.results.spec.scores else ():
        wanted[f"scores.{rung.name}"] = (truth.models, truth.queries, truth.train)
    for name, shape in wanted.items():
        array = study.array(name)
        _require_shape(study, name, None if array is None else array.shape, shape)
    leading: dict[str, tuple[int, ...]] = {
        "base": (truth.models, truth.queries),
        "outputs": (truth.models, truth.queries),
        "display.train": (truth.train,),
        "display.queries": (truth.queries,),
        "targets.train": (truth.train,),
        "targets.queries": (truth.queries,),
    }
    for name, shape in leading.items():
        array = study.array(name)
        if array is not None:
            _require_shape(study, name, array.shape[: len(shape)], shape)


def _require_shape(
    study: Study, name: str, seen: tuple[int, ...] | None, shape: tuple[int, ...]
) -> None:
    if seen != shape:
        said = "is missing" if seen is None else f"has shape {seen}"
        raise InputError(
            f"{study.path / ARRAYS / name}.npy {said}, where the results speak of {shape}: the "
            "folder is half written; run the study again with --rerun, or remove its folder"
        )
