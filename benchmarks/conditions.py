"""What "fast" has to mean, as conditions on the records of results.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

from floor import fit_operations, pairwise_operations
from question import Task
from record import Record, Round

Stage = Literal["fit_seconds", "pairwise_seconds", "total_seconds", "cold_seconds"]
OURS = "curvfluence"
STAGES: dict[Stage, str] = {
    "fit_seconds": "fit",
    "pairwise_seconds": "pairwise",
    "total_seconds": "fit + pairwise",
    "cold_seconds": "fit + pairwise, cold",
}


@dataclass(frozen=True)
class Verdict:
    """A condition with its measured value; `met` is None where nothing could be measured."""

    condition: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class Select:
    """The records of one question."""

    workload: str
    rung: str
    fisher: str
    examples: int

    def of(self, records: list[Record], library: str) -> Record | None:
        found = [
            r
            for r in records
            if r.ran
            and r.matches(
                workload=self.workload,
                rung=self.rung,
                fisher=self.fisher,
                examples=self.examples,
                library=library,
            )
        ]
        return found[0] if found else None

    def __str__(self) -> str:
        return f"{self.workload} {self.rung} {self.fisher}, {self.examples} examples"


def paired(theirs: Record, ours: Record, stage: Stage) -> float | None:
    """Median over rounds of their seconds / ours, each pair from one round; None where one has
    fewer rounds than the other, or they are of different runs."""
    if len(theirs.rounds) != len(ours.rounds) or theirs.kept != ours.kept:
        return None
    ratios: list[float] = []
    for their_round, our_round in zip(theirs.rounds, ours.rounds, strict=True):
        their, our = getattr(their_round, stage), getattr(our_round, stage)
        if their and our:
            ratios.append(their / our)
    return median(ratios) if ratios else None


def faster(
    records: list[Record], ours: Select, library: str, stage: Stage, least: float, theirs: Select
) -> Verdict:
    """`library` takes at least `least` times our seconds."""
    said = f"{ours}: {STAGES[stage]} of {library}"
    if theirs != ours:
        said += f" ({theirs.fisher})"
    said += f" ÷ ours ≥ {least:g}"
    our, their = ours.of(records, OURS), theirs.of(records, library)
    if our is None or their is None:
        return Verdict(said, f"no measurement of {OURS if our is None else library}", None)
    ratio = paired(their, our, stage)
    if ratio is None:
        return Verdict(said, "not measured in one run", None)
    return Verdict(said, f"{ratio:.3g}", ratio >= least)


def fastest_right(records: list[Record], ours: Select, least: float) -> Verdict:
    """The fastest peer that is right takes at least `least` times our fit + pairwise.

    Sampled labels have no reference: a peer counts as right if it is with the training labels.
    """
    said = f"{ours}: fastest right peer ÷ ours, fit + pairwise ≥ {least:g}"
    our = ours.of(records, OURS)
    checked = Select(ours.workload, ours.rung, "empirical", ours.examples)
    peers = [
        (their, ratio)
        for name in ("kronfluence", "curvlinops", "dattri", "pyDVL")
        if (their := ours.of(records, name)) is not None
        and (check := checked.of(records, name)) is not None
        and check.right
        and our is not None
        and (ratio := paired(their, our, "total_seconds")) is not None
    ]
    if our is None:
        return Verdict(said, f"no measurement of {OURS}", None)
    if not peers:
        return Verdict(said, "no peer is right here", None)
    their, ratio = min(peers, key=lambda pair: pair[1])
    measured = f"{ratio:.2f} ({their.library})"
    if ratio < least:
        measured += f"; {_at_most(their, our):.2f} were every operation at the rate of sgemm"
    return Verdict(said, measured, ratio >= least)


def _at_most(their: Record, ours: Record) -> float:
    """The ratio if our fit and pairwise scores took what sgemm takes for their operations."""
    task = _task(ours)
    needed = fit_operations(task) + pairwise_operations(task)
    return median(
        one.total_seconds * our.sgemm / needed
        for one, our in zip(their.rounds, ours.rounds, strict=True)
    )


def _task(ours: Record) -> Task:
    return Task(
        ours.workload,
        ours.rung,
        ours.fisher,
        ours.examples,
        ours.queries,
        ours.damping,
        ours.parameters,
    )


def rate(
    records: list[Record],
    ours: Select,
    stage: Stage,
    operations: Callable[[Task], float],
    least: float,
) -> Verdict:
    """Share of the rate of sgemm, measured in the same process, at the operations needed."""
    our = ours.of(records, OURS)
    if our is None:
        return Verdict(f"{ours}: {STAGES[stage]} at ≥ {least:.0%} of sgemm", "no measurement", None)
    needed = operations(_task(our))

    def share(one: Round) -> float:
        return needed / (getattr(one, stage) * one.sgemm)

    found = median(share(one) for one in our.rounds)
    said = f"{ours}: {STAGES[stage]} at ≥ {least:.0%} of sgemm for {needed:.2g} operations"
    return Verdict(said, f"{found:.0%}", found >= least)


def parity(records: list[Record], ours: Select, most: float) -> Verdict:
    """Distance to kronfluence's scores, at most the sum of both distances to the reference."""
    said = f"{ours}: scores differ from kronfluence's by ≤ {most:g}"
    our, their = ours.of(records, OURS), ours.of(records, "kronfluence")
    if our is None or their is None or our.error is None or their.error is None:
        return Verdict(said, "no measurement", None)
    return Verdict(said, f"≤ {our.error + their.error:.1e}", our.error + their.error <= most)


def verdicts(records: list[Record]) -> list[Verdict]:
    """All of them, in the order in which they are asked."""
    w1 = [Select("W1", "EKFAC", fisher, 1617) for fisher in ("empirical", "type2")]
    part = Select("W2", "EKFAC", "empirical", 256)
    exact = Select("W2", "EKFAC", "type2", 4500)
    drawn = Select("W2", "EKFAC", "mc(1)", 4500)
    found = [faster(records, one, "curvlinops", "total_seconds", 1.0, one) for one in w1]
    found += [
        rate(records, exact, "fit_seconds", fit_operations, 0.7),
        faster(records, part, "kronfluence", "fit_seconds", 20.0, part),
        faster(records, exact, "curvlinops", "fit_seconds", 1 / 2.5, drawn),
        rate(records, exact, "pairwise_seconds", pairwise_operations, 0.5),
        faster(records, part, "kronfluence", "pairwise_seconds", 4.0, part),
    ]
    large = (
        ("W2", 256, ("EKFAC",)),
        ("W3", 4500, ("EKFAC",)),
        ("W4", 512, ("EKFAC", "KFAC")),
        ("W5", 128, ("EKFAC",)),
        ("W6", 64, ("EKFAC", "KFAC")),
        ("W7", 64, ("EKFAC",)),
    )
    for workload, examples, rungs in large:
        for rung in rungs:
            for fisher in ("empirical", "mc(1)"):
                asked = Select(workload, rung, fisher, examples)
                if asked.of(records, OURS) is not None:
                    found.append(fastest_right(records, asked, 2.0))
    found += [parity(records, one, 1e-4) for one in (w1[0], part)]
    return found
