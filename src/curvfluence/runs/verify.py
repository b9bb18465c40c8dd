"""Whether a folder holds what was written, every file of it that results rest on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from curvfluence.banks.verify import verify_bank
from curvfluence.errors import InputError
from curvfluence.indexing.load import verify_index
from curvfluence.runs.find import KINDS, kind_of
from curvfluence.study.claims import read_claims
from curvfluence.study.claims.table1_run import read_table1
from curvfluence.study.questions import read_questions
from curvfluence.study.study import read_study
from curvfluence.study.sweep import read_sweep


@dataclass(frozen=True)
class Checked:
    """A folder, what it is, and what is wrong with it; None where nothing is."""

    path: Path
    kind: str
    fault: str | None


READERS: dict[str, Callable[[Path], object]] = {
    "study": read_study,
    "questions": read_questions,
    "claims": read_claims,
    "table1": read_table1,
    "sweep": read_sweep,
    "bank": verify_bank,
    "index": verify_index,
}


def verify(folder: Path) -> list[Checked]:
    """Read the folder, and every study and bank inside of it, against their checksums.

    Cost: all of their bytes are read. Errors: `InputError` where it holds no results.
    """
    if kind_of(folder) is None:
        raise InputError(f"{folder} holds no results: {', '.join(KINDS)} are told by their files")
    places = [folder, *(p for p in sorted(folder.rglob("*")) if p.is_dir() and not p.is_symlink())]
    return [_checked(place, kind) for place in places if (kind := kind_of(place)) is not None]


def _checked(place: Path, kind: str) -> Checked:
    try:
        READERS[kind](place)
    except InputError as error:
        return Checked(place, kind, str(error))
    return Checked(place, kind, None)
