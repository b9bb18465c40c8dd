"""`manifest.json`: every array of a study's folder, and what each of them is of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from curvfluence.errors import InputError
from curvfluence.store.arrays import (
    REMEDY,
    Size,
    StoredArray,
    read_stored,
    require_stored,
    write_array,
)
from curvfluence.store.files import inside
from curvfluence.store.hashes import hash_json
from curvfluence.store.records import Record, read, seal_of, write

MANIFEST, ARRAYS = "manifest.json", "arrays"
FORMAT = 2  # of a study's folder; 1 had no manifest


class Manifest(Record, frozen=True):
    """The arrays of a folder by name, the format that it is in, and the seal of the `study.json`
    that it was written beside. Its own seal stands in `results.json`, so neither goes with files
    of another run."""

    remedy = REMEDY

    format: Size
    study: str
    arrays: dict[str, StoredArray]

    def __post_init__(self) -> None:
        for name in self.arrays:
            if not name or set(name) & set("/\\\0") or name.startswith("."):
                raise ValueError(f"no array can be named {name!r}")


def write_manifest(
    folder: Path, study: Record, made: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> str:
    """Write the arrays into `folder` and then the manifest that lists them; its seal. `made` is
    what all of them depend on, `study` the record that `study.json` holds."""
    place = inside(folder, ARRAYS)
    stored = {
        name: write_array(place / f"{name}.npy", array, hash_json({**made, "array": name}))
        for name, array in arrays.items()
    }
    return write(folder / MANIFEST, Manifest(FORMAT, seal_of(study), stored))


def read_manifest(folder: Path, study: Record, seal: str) -> Manifest:
    """The manifest of a finished folder, whose results speak of its `seal`.

    Errors: `InputError` where there is none, where it is in another format, and where it belongs to
    another `study.json` or to other results.
    """
    found = read(folder / MANIFEST, Manifest)
    if found is None:
        raise InputError(f"{folder} has no {MANIFEST}, which lists its arrays: {REMEDY}")
    if found.format != FORMAT:
        raise InputError(
            f"{folder} is in format {found.format}, and this version reads {FORMAT}: {REMEDY}, or "
            "use the version that made it"
        )
    for what, own, other in (
        ("results.json", seal_of(found), seal),
        ("study.json", found.study, seal_of(study)),
    ):
        if own != other:
            raise InputError(
                f"{folder / MANIFEST} was not written with the {what} beside it: the folder is of "
                f"two runs; {REMEDY}"
            )
    return found


def verify_arrays(folder: Path, manifest: Manifest) -> None:
    """Read every array against its SHA-256. Errors: `InputError` names the file that is missing or
    is not what was written."""
    for name, said in manifest.arrays.items():
        require_stored(inside(folder, f"{ARRAYS}/{name}.npy"), said)


def read_listed(folder: Path, manifest: Manifest, name: str, *, finite: bool) -> Any:
    """The array of that name, None where the manifest lists none."""
    said = manifest.arrays.get(name)
    if said is None:
        return None
    return read_stored(inside(folder, f"{ARRAYS}/{name}.npy"), said, finite=finite)
