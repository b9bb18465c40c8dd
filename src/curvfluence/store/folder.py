"""A study's folder: what it is keyed by, and what it holds. JSON and arrays, nothing pickled."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from curvfluence.errors import InputError, NotKeptError
from curvfluence.store.files import inside
from curvfluence.store.lock import own
from curvfluence.store.manifest import ARRAYS, MANIFEST, write_manifest
from curvfluence.store.records import Record, as_json, read, write

SPEC, RESULTS = "study.json", "results.json"


class MadeBy(Record, frozen=True):
    """The code and the torch that made results: only they read them back instead of working."""

    code: str
    torch: str


class Header(Record, frozen=True):
    """`study.json`: the key that a study's folder goes by, its settings, and who made it."""

    remedy = "remove the folder, or name another one with --out"

    key: str
    spec: dict[str, Any]
    made_by: MadeBy

    @property
    def named(self) -> str:
        """The settings that tell studies apart."""
        shown = (k for k in ("problem", "seed", "models", "subsets") if k in self.spec)
        return ", ".join(f"{k} {self.spec[k]}" for k in shown) or "of unknown settings"


T = TypeVar("T", bound=Record)


@dataclass(frozen=True)
class Folder:
    """A study's folder, keyed by what its results depend on.

    `study.json` is written first; `results.json` is written last and replaces atomically, so a
    folder without it holds an unfinished study.
    """

    path: Path
    header: Header

    def claim(self) -> None:
        """Make the folder this study's. Errors: `InputError` where it holds anything else."""
        self.require_free()
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            inside(self.path, ARRAYS).mkdir(exist_ok=True)
            # Results of an earlier run must not stand beside the arrays of this one.
            (self.path / RESULTS).unlink(missing_ok=True)
            (self.path / MANIFEST).unlink(missing_ok=True)
            write(self.path / SPEC, self.header)

    def require_free(self) -> None:
        """Refuse a folder that holds another study, or files that are no study. Writes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: name a folder with --out")
        if not self.path.is_dir() or only_begun(self.path, ARRAYS, SPEC):
            return
        held = read(self.path / SPEC, Header)
        if held is None:
            raise InputError(
                f"{self.path} holds files that are no study: name an empty folder with --out"
            )
        if held.key != self.header.key:
            same = held.spec == self.header.spec
            kind = "a study of other data, weights or code" if same else "another study"
            finished = (self.path / RESULTS).is_file()
            state = kind if finished else f"{kind}, unfinished"
            raise InputError(
                f"{self.path} holds {state} ({held.named}): name another folder with --out, "
                "or remove it"
            )

    def finished(self, kind: type[T]) -> T | None:
        """The results of this very study, where this very code has finished it."""
        held = read(self.path / SPEC, Header)
        mine = held is not None and (held.key, held.made_by) == (
            self.header.key,
            self.header.made_by,
        )
        return read(self.path / RESULTS, kind) if mine else None

    def save(self, arrays: Mapping[str, Tensor], results: Callable[[str], T]) -> T:
        """Write the arrays, then their manifest, then the results, which are told its seal."""
        with writing(self.path):
            seal = write_manifest(
                self.path,
                self.header,
                {"study": self.header.key, **as_json(self.header.made_by)},
                {name: array.numpy() for name, array in arrays.items()},
            )
            found = results(seal)
            write(self.path / RESULTS, found)
        return found


def only_begun(path: Path, part: str, record: str) -> bool:
    """Whether a folder holds at most what a claim leaves that was killed before its record was
    there: a lock, the folder `part` with nothing else in it, the record under a temporary name."""

    def left(entry: Path) -> bool:
        if own(entry):
            return True
        if entry.is_symlink():
            return False
        if entry.name == part:
            return entry.is_dir() and all(map(own, entry.iterdir()))
        return entry.name.startswith(f".{record}.") and entry.name.endswith(".tmp")

    return all(map(left, path.iterdir()))


def require_no_study(path: Path) -> None:
    """Errors: `InputError` for a folder that is a study's, where anything else is to be written."""
    if (path / SPEC).exists():
        raise InputError(f"{path} holds a study: name another folder with --out")


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Say which folder could not be written, and why."""
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error)
        if isinstance(error, FileNotFoundError) and not path.exists():
            said = "it is not there: it cannot be made, or was removed while this command worked"
        raise InputError(f"cannot write to {path}: {said}") from error


@contextmanager
def keeping(path: Path, results: object) -> Generator[None]:
    """Write results inside. Errors: `NotKeptError`, which has them, where that cannot be."""
    try:
        with writing(path):
            yield
    except InputError as error:
        raise NotKeptError(str(error), results) from error
