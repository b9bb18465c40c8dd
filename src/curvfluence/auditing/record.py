"""An audit as a file."""

from __future__ import annotations

from math import isfinite

from curvfluence._version import __version__
from curvfluence.auditing.result import SHARE, Audit
from curvfluence.store.records import Record


class CriterionRecord(Record, frozen=True):
    """A criterion and, where wrong labels are known, how well it finds them."""

    name: str
    title: str
    meaning: str
    recall_at_15_percent: float | None
    auc: float | None


class Suspect(Record, frozen=True):
    """A training example, its place in the list (from 1), and its value by each criterion."""

    example: int
    place: int
    label: int | None
    suggested: int | None
    values: dict[str, float | None]


class Group(Record, frozen=True):
    """Training examples of equal inputs; `conflicting` where their targets differ."""

    examples: tuple[int, ...]
    conflicting: bool


class AuditRecord(Record, frozen=True):
    """`recall_at_15_percent` is the share of the known wrong labels in the first 15% of the list,
    which goes by `order`; None where no labels are known to be wrong. `suspects` are all training
    examples or the first of them, as was asked."""

    version_at = ("version",)
    remedy = "audit again"

    version: str
    problem: str
    train: int
    rung: str
    damping: str
    unit: str
    order: str
    recall_at_15_percent: float | None
    known_wrong: int | None
    criteria: tuple[CriterionRecord, ...]
    duplicates: tuple[Group, ...]
    suspects: tuple[Suspect, ...]
    notes: tuple[str, ...]
    seconds: float


def record_of(found: Audit, problem: str, count: int | None = None) -> AuditRecord:
    """The audit of a problem by its name, with the first `count` suspects (all unless given)."""
    known = bool(found.flipped)
    return AuditRecord(
        version=__version__,
        problem=problem,
        train=len(found),
        rung=found.rung,
        damping=found.damping,
        unit=found.unit,
        order=found.order,
        recall_at_15_percent=found.recall(share=SHARE) if known else None,
        known_wrong=len(found.flipped) if found.flipped is not None else None,
        criteria=tuple(
            CriterionRecord(
                one.name,
                one.title,
                one.meaning,
                found.recall(one.name) if known else None,
                found.auc(one.name) if known else None,
            )
            for one in found.criteria
        ),
        duplicates=tuple(Group(one.examples, one.conflicting) for one in found.duplicates),
        suspects=tuple(
            Suspect(
                n,
                place + 1,
                None if found.labels is None else int(found.labels[n]),
                _suggestion(found, n),
                {name: _finite(float(value[n])) for name, value in found.values.items()},
            )
            for place, n in enumerate(found.ranking()[:count].tolist())
        ),
        notes=found.notes,
        seconds=found.seconds,
    )


def _suggestion(found: Audit, n: int) -> int | None:
    if found.suggested is None or int(found.suggested[n]) < 0:
        return None
    return int(found.suggested[n])


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
