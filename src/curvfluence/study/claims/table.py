"""`claims.json`: the rows of every problem, and what they rest on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curvfluence.errors import InputError
from curvfluence.store.files import require_inside
from curvfluence.store.records import Record, read
from curvfluence.study.claims.plan import Settings
from curvfluence.study.results import ClaimRow, Environment

TABLE = "claims.json"


class ClaimedStudy(Record, frozen=True):
    """One study that rows rest on: its folder inside the table's, and what differs in it from the
    problem as it is."""

    protocol: str
    folder: str
    subsets: int
    variant: dict[str, bool | int | float | str]


class ProblemClaims(Record, frozen=True):
    """The rows of one problem, under both protocols."""

    claims: tuple[ClaimRow, ...]
    studies: tuple[ClaimedStudy, ...]


class ClaimsTable(Record, frozen=True):
    """The whole of `claims.json`."""

    version_at = ("environment", "curvfluence")
    remedy = "run the same claims again"

    environment: Environment
    settings: Settings
    problems: dict[str, ProblemClaims]

    def __post_init__(self) -> None:
        for name, problem in self.problems.items():
            require_inside(name)
            if "/" in name:
                raise ValueError(f"it names a problem {name!r}")
            for study in problem.studies:
                require_inside(study.folder)
        if not self.settings.dampings:
            raise ValueError("its settings have no dampings")


@dataclass(frozen=True)
class Claims:
    """A table of claims and the folder that it is kept in."""

    table: ClaimsTable
    path: Path

    def rows(self, problem: str) -> tuple[ClaimRow, ...]:
        return self.table.problems[problem].claims


def is_claims(path: Path) -> bool:
    """Whether that is a folder with a table of claims, or the file of one."""
    return path.name == TABLE or (path / TABLE).is_file()


def read_claims(path: Path) -> Claims:
    """The table in a folder, or in the file that was copied from one. Errors: `InputError` where
    there is none, or where it does not fit."""
    file = path if path.name == TABLE else path / TABLE
    table = read(file, ClaimsTable)
    if table is None:
        raise InputError(f"{path} holds no table of claims: there is no {TABLE}")
    return Claims(table, file.parent)
