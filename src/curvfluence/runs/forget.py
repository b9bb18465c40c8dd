"""Begin a folder of results anew, whatever state it is in."""

from __future__ import annotations

import shutil
from pathlib import Path

from curvfluence.errors import InputError
from curvfluence.runs.find import KINDS, kind_of
from curvfluence.store.folder import writing
from curvfluence.store.lock import held, own
from curvfluence.store.steps import STEPS
from curvfluence.study.sweep.grid import CELLS
from curvfluence.study.sweep.run import BANKS

PARTS = (CELLS, BANKS, STEPS)  # what an unfinished folder may hold beside studies


def forget(folder: Path, kind: str, *, wait: bool = False) -> None:
    """Remove all that a folder of results of this kind holds, finished or not, so that the command
    that made it makes it again; a folder that is not there, or is empty, is left so.

    Errors: `InputError` where it holds anything else, or where another command writes to it.
    """
    if not folder.is_dir():
        return
    inside = [path for path in folder.iterdir() if not own(path)]
    if not inside:
        return
    found = kind_of(folder)
    other = found is not None and found != kind and (folder / KINDS[found][0]).is_file()
    strange = [path for path in inside if path.name not in PARTS and kind_of(path) is None]
    if other or (found is None and strange):
        seen = f"a finished {found}" if other else f"{strange[0].name}, which is no result"
        raise InputError(f"{folder} holds {seen}: --rerun removes nothing of it")
    with held(folder, wait=wait), writing(folder):
        for path in inside:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
