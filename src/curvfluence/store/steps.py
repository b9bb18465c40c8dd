"""Finished steps of work that is under way: what the same command need not do again."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock, Timeout

from curvfluence.errors import InputError
from curvfluence.store.arrays import Size, StoredArray, read_stored, write_array
from curvfluence.store.files import inside, require_no_link
from curvfluence.store.folder import writing
from curvfluence.store.hashes import hash_code, hash_json
from curvfluence.store.lock import LOCK, own
from curvfluence.store.packed import pack, unpack
from curvfluence.store.records import Record, read, write

STEPS = "steps"  # the folder of work that is under way, inside of that of its results
RACES = 10  # in which a folder that is shared may be lost to others that clear it
REMEDY = "remove that folder: the same command does these steps again"

T = TypeVar("T")


class Step(Record, frozen=True):
    """`<key>.json`: written last, so that a step without it was interrupted. `arrays` are those of
    its body and of every tensor in it, in files that bear `turn`."""

    remedy = REMEDY

    key: str
    turn: Size
    arrays: tuple[StoredArray, ...]


@dataclass(frozen=True)
class Steps:
    """Steps in the folder `path`, each under a hash of `depends`, of its own name, and of what
    makes numbers what they are: this code, torch, and how many threads it has.

    Steps are of no use once the results that they lead to are written: `clear` then removes them.
    """

    path: Path
    depends: Mapping[str, Any]

    def key(self, name: Mapping[str, Any]) -> str:
        """What a step goes by."""
        makers = {
            "code": hash_code(),
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
        }
        return hash_json({"depends": dict(self.depends), "step": dict(name), **makers})

    def find(self, name: Mapping[str, Any], kind: type[T]) -> T | None:
        """The step of that name where it is kept. Errors: `InputError` where its files are not
        those that were written."""
        step = self._read(self.key(name))
        if step is None:
            return None
        body, *arrays = (
            read_stored(self._file(step, k), said, finite=False, remedy=REMEDY)
            for k, said in enumerate(step.arrays)
        )
        try:
            return unpack(body.tobytes(), arrays, kind)
        except InputError as error:
            raise InputError(f"{self.path / step.key}.json: {error}; {REMEDY}") from None

    def keep(self, name: Mapping[str, Any], value: object) -> None:
        """Write a step, in the place of what was kept of it before: after a crash there is the old
        one or the new one, whole. Errors: `InputError` where they cannot be written."""
        key, (data, arrays) = self.key(name), pack(value)
        with writing(self.path):
            self._make_folder()
            before = self._read(key)
            turn = 0 if before is None else before.turn + 1
            made = Step(key, turn, ())
            every = (np.frombuffer(data, np.uint8), *arrays)
            stored = tuple(write_array(self._file(made, k), a, key) for k, a in enumerate(every))
            write(inside(self.path, f"{key}.json"), Step(key, turn, stored))
            if before is not None:
                self._remove_arrays(before)

    def within(self, about: Mapping[str, Any]) -> Steps:
        """Steps of one of these steps, in a folder of their own, which can be cleared before."""
        depends = {**self.depends, **about}
        return Steps(self.path / hash_json(depends)[:16], depends)

    @contextmanager
    def ours(self) -> Generator[Steps | None]:
        """These steps while nobody else writes them, and cleared where the work was done; None
        where another command does the same work now."""
        file = self.path / LOCK
        with writing(self.path):
            self._make_folder()
            require_no_link(file)
        lock = FileLock(file, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield None
            return
        try:
            yield self
            self.clear()
        finally:
            lock.release()

    def forget(self) -> None:
        """Remove what is kept, and leave the folder with its lock."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif not own(entry):
                entry.unlink()

    def clear(self) -> None:
        """Remove the folder, and the one that it is in where that holds steps alone."""
        require_no_link(self.path)
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.parent.name == STEPS:
            with suppress(OSError):  # others are in it
                self.path.parent.rmdir()

    def _make_folder(self) -> None:
        """Not the folder of the results, which must be there: somebody may have removed it."""
        require_no_link(self.path)
        if self.path.parent.name == STEPS:
            for _ in range(RACES):
                self.path.parent.mkdir(exist_ok=True)
                with suppress(FileNotFoundError):  # another command has just cleared the last of it
                    self.path.mkdir(exist_ok=True)
                    return
        self.path.mkdir(exist_ok=True)

    def _read(self, key: str) -> Step | None:
        return read(inside(self.path, f"{key}.json"), Step) if self.path.is_dir() else None

    def _file(self, step: Step, k: int) -> Path:
        return inside(self.path, f"{step.key}.{step.turn}.{k}.npy")

    def _remove_arrays(self, step: Step) -> None:
        for k in range(len(step.arrays)):
            self._file(step, k).unlink(missing_ok=True)
