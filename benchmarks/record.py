"""Record: one line of results.json, and the file itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jobs import Job

RESULTS = Path(__file__).resolve().parent / "results.json"
RIGHT = 1e-2  # relative error up to which float32 scores count as right


@dataclass(frozen=True)
class Round:
    """One run, warm and cold: CPU seconds, and the rate of sgemm in the same process after it."""

    fit_seconds: float
    pairwise_seconds: float | None
    sgemm: float
    cold_fit_seconds: float | None = None
    cold_pairwise_seconds: float | None = None
    blas: str = ""

    @property
    def total_seconds(self) -> float:
        return self.fit_seconds + (self.pairwise_seconds or 0.0)

    @property
    def cold_seconds(self) -> float | None:
        if self.cold_fit_seconds is None:
            return None
        return self.cold_fit_seconds + (self.cold_pairwise_seconds or 0.0)


@dataclass(frozen=True)
class Record:
    """Medians over rounds. Where a library declined or ran too long, `note` has its message.

    `error` is the relative Frobenius error of the scores against a float64 reference of the task's
    definition (None for sampled labels); `own_error` the same against the library's own definition
    where that is another.
    """

    workload: str
    rung: str
    fisher: str
    bias: str
    examples: int
    queries: int
    library: str
    fit_seconds: float | None
    pairwise_seconds: float | None
    total_seconds: float | None
    peak_bytes: int | None
    error: float | None
    note: str
    own_error: float | None
    ran: bool
    parameters: str
    damping: float
    rounds: tuple[Round, ...]
    version: str
    torch: str
    cpu: str
    measured: str
    command: str
    kept: bool  # from an earlier run than the others of its group

    def matches(self, **fields: object) -> bool:
        return all(getattr(self, name) == value for name, value in fields.items())

    @property
    def right(self) -> bool:
        return self.error is not None and self.error <= RIGHT


def middle(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def read() -> list[Record]:
    if not RESULTS.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())
    for row in rows:
        row["rounds"] = tuple(Round(**one) for one in row["rounds"])
    return [Record(**row) for row in rows]


def write(records: list[Record]) -> None:
    RESULTS.write_text(
        json.dumps([asdict(r) for r in records], indent=1, ensure_ascii=False) + "\n"
    )


def same_question(record: Record, job: Job) -> bool:
    task = job.task
    return record.matches(
        workload=task.workload,
        rung=task.rung,
        fisher=task.fisher,
        examples=task.examples,
        queries=task.queries,
    )
