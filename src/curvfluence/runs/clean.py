"""What commands that were killed have left behind, and how to be rid of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from curvfluence.errors import InputError
from curvfluence.runs.find import DEEPEST, find, kind_of
from curvfluence.store.folder import writing
from curvfluence.store.lock import HOLDER, LOCK, is_held
from curvfluence.store.steps import STEPS

# All that a folder of steps holds: records, their arrays, works within, a lock, what is half.
OURS = re.compile(r"[0-9a-f]{16}(\.json|\.\d+\.\d+\.npy)?|\.lock|\..+\.tmp")


def leftovers(root: Path, *, unfinished: bool = False) -> list[Path]:
    """Temporary files, names of dead holders, and steps on the way to what is finished by now, in
    the folders of results below `root`, and beside pages and banks; with `unfinished` the folders
    that are not finished, whole, and the steps that a killed command would go on from. What a
    command is writing to now is left out, and so are lock files: a command that waits for one may
    have it open."""
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
    steps = (path for path in _steps(root, DEEPEST) if not is_held(path))
    return found + sorted(path for path in steps if unfinished or _page_is_there(path))


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


def _steps(folder: Path, deep: int) -> Iterator[Path]:
    """Steps that lie in no folder of results: of a page, of a judgement."""
    if kind_of(folder) is not None:
        return
    for each in folder.iterdir():
        if not each.is_dir() or each.is_symlink():
            continue
        if each.name.endswith(STEPS) and all(OURS.fullmatch(p.name) for p in each.iterdir()):
            yield each
        elif deep:
            yield from _steps(each, deep - 1)


def _page_is_there(steps: Path) -> bool:
    """Whether the page that these steps lead to was written after them."""
    page = steps.with_suffix("")
    if steps.suffix != f".{STEPS}" or not page.is_file():
        return False
    last = max((file.lstat().st_mtime for file in steps.rglob("*")), default=0.0)
    return page.lstat().st_mtime >= last


def _left(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".tmp" or path.name == HOLDER)


def _busy(folder: Path) -> bool:
    """Whether a command is at work in any folder of a sweep or of claims."""
    return any(is_held(lock.parent) for lock in folder.rglob(LOCK))
