"""Which folders hold what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curvfluence.errors import InputError
from curvfluence.indexing.records import BEGUN, IndexRecord
from curvfluence.indexing.records import INDEX as INDEXED
from curvfluence.store.folder import RESULTS, SPEC, Header
from curvfluence.store.lock import is_held
from curvfluence.store.records import read
from curvfluence.study.claims.table import TABLE
from curvfluence.study.claims.table1_run import TABLE1
from curvfluence.study.questions.records import QUESTIONS
from curvfluence.study.sweep.grid import CELLS
from curvfluence.study.sweep.index import INDEX
from curvfluence.truth.bank import BANK, ENTRIES

# What a folder is by the file that is written last, or, unfinished, by what is written first.
KINDS = {
    "study": (RESULTS, (SPEC,)),
    "questions": (QUESTIONS, ()),
    "claims": (TABLE, ()),
    "table1": (TABLE1, ()),
    "sweep": (INDEX, (CELLS,)),
    "bank": (BANK, (ENTRIES,)),
    "index": (INDEXED, (BEGUN,)),
}
DEEPEST = 3  # folders below the one that is asked about


@dataclass(frozen=True)
class RunFolder:
    """A folder of results. `state` is finished, unfinished or being written; `bytes` and `files`
    are of all that it holds, `changed` is when the last of it was written (seconds since 1970)."""

    path: Path
    kind: str
    state: str
    said: str
    files: int
    bytes: int
    changed: float


def kind_of(folder: Path) -> str | None:
    """What a folder holds, None where it is nothing of this project's."""
    if folder.is_symlink() or not folder.is_dir():
        return None
    for kind, (last, _) in KINDS.items():
        if (folder / last).is_file():
            return kind
    for kind, (_, first) in KINDS.items():
        if any((folder / name).exists() for name in first):
            return kind
    return None


def find(root: Path) -> list[RunFolder]:
    """The folders of results in `root`, itself among them, by path; not those inside of others.

    Errors: `InputError` where there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder")
    return sorted(_find(root, DEEPEST), key=lambda one: one.path)


def _find(folder: Path, deep: int) -> Iterator[RunFolder]:
    kind = kind_of(folder)
    if kind is not None:
        yield _described(folder, kind)
    elif deep:
        for each in folder.iterdir():
            if each.is_dir() and not each.is_symlink():
                yield from _find(each, deep - 1)


def _described(folder: Path, kind: str) -> RunFolder:
    sizes = [file.lstat() for file in folder.rglob("*") if file.is_file()]
    return RunFolder(
        path=folder,
        kind=kind,
        state=_state(folder, kind),
        said=_said(folder, kind),
        files=len(sizes),
        bytes=sum(one.st_size for one in sizes),
        changed=max((one.st_mtime for one in sizes), default=0.0),
    )


def _state(folder: Path, kind: str) -> str:
    if is_held(folder):
        return "being written"
    if kind == "index":  # whose record is written after each step
        try:
            record = read(folder / INDEXED, IndexRecord)
        except InputError:
            return "finished"  # `verify` says what is wrong
        return "unfinished" if record is None or record.recall is None else "finished"
    return "finished" if (folder / KINDS[kind][0]).is_file() else "unfinished"


def _said(folder: Path, kind: str) -> str:
    """A study's settings; of others their folder says enough."""
    if kind != "study":
        return ""
    try:
        header = read(folder / SPEC, Header)
    except InputError as error:
        return str(error)
    return "" if header is None else header.named
