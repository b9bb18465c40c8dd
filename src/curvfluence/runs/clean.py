"""What commands that were killed have left behind, and how to be rid of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from curvfluence.errors import InputError
from curvfluence.runs.find import find
from curvfluence.store.folder import writing
from curvfluence.store.lock import HOLDER, LOCK, is_held
from curvfluence.store.steps import STEPS


def leftovers(root: Path, *, unfinished: bool = False) -> list[Path]:
    """Temporary files, names of dead holders, and steps on the way to what is finished by now, in
    the folders of results below `root`; with
    `unfinished` the folders that are not finished, whole. What a command is writing to now is left
    out, and so are lock files: a command that waits for one may have it open."""
    found: list[Path] = []
    for run in find(root):
        if run.state == "being written" or _busy(run.path):
            continue
        if unfinished and run.state == "unfinished":
            found.append(run.path)
            continue
        found += sorted(p for p in run.path.rglob(".*") if _left(p) and not p.is_symlink())
        if run.state == "finished" and run.kind != "bank":  # nobody goes on from there
            found += sorted(p for p in run.path.rglob(STEPS) if p.is_dir() and not p.is_symlink())
    return found


def clean(root: Path, *, unfinished: bool = False) -> list[Path]:
    """Remove the `leftovers`. Errors: `InputError` where one cannot be removed."""
    gone = leftovers(root, unfinished=unfinished)
    for path in gone:
        if path.resolve().is_relative_to(root.resolve()):
            with writing(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        else:
            raise InputError(f"{path} is not in {root}: left where it is")
    return gone


def _left(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".tmp" or path.name == HOLDER)


def _busy(folder: Path) -> bool:
    """Whether a command is at work in any folder of a sweep or of claims."""
    return any(is_held(lock.parent) for lock in folder.rglob(LOCK))
