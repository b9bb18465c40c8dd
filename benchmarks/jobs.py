"""Which library is asked what. Jobs of a group have the same examples and are run by turns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from question import Task
from workloads import WORKLOADS

OURS = "ours"
ONCE = {("W2", "dattri"), ("W3", "dattri"), ("W4", "pydvl")}  # slow and wrong: one round, no ratio
EXACT, TOLERANCE = "GGN", 1e-2  # the exact GGN, and its residuals ‖(C + λI) x − g‖/‖g‖ at most
PEERS = ("kronfluence", "curvlinops", "dattri", "pydvl")


@dataclass(frozen=True)
class Job:
    """One library and one task. `rounds` caps the repeats of a slow one."""

    library: str  # a module: ours, or peers.NAME
    task: Task
    fit_only: bool = False
    rounds: int = 100

    @property
    def label(self) -> str:
        task = self.task
        return f"{task.workload} {task.rung} {task.fisher} {task.examples}×{task.queries}"


@dataclass(frozen=True)
class Group:
    """Jobs on one workload with one choice of examples and queries."""

    workload: str
    examples: int
    queries: int
    asked: tuple[tuple[str, str, tuple[str, ...]], ...]  # rung, Fisher, libraries
    fit_only: tuple[str, ...] = ()  # libraries whose pairwise scores take too long here
    rounds: int = 100

    def jobs(self) -> Iterable[Job]:
        for rung, fisher, libraries in self.asked:
            for name in libraries:
                task = Task(
                    self.workload,
                    rung,
                    fisher,
                    self.examples,
                    self.queries,
                    WORKLOADS[self.workload].damping,
                )
                library = OURS if name == OURS else f"peers.{name}"
                slow = (self.workload, name) in ONCE
                yield Job(library, task, name in self.fit_only, 1 if slow else self.rounds)


GROUPS = (
    Group(
        "W1",
        1617,
        180,
        (
            ("EKFAC", "empirical", (OURS, "kronfluence", "curvlinops", "dattri")),
            ("EKFAC", "type2", (OURS, "curvlinops", "pydvl")),
            ("EKFAC", "mc(1)", (OURS, "kronfluence", "curvlinops")),
            ("KFAC", "empirical", (OURS, "kronfluence", "curvlinops")),
            ("KFAC", "type2", (OURS, "curvlinops", "pydvl")),
            (EXACT, "type2", (OURS,)),
        ),
    ),
    Group(
        "W2",
        256,
        20,
        (
            ("EKFAC", "empirical", (OURS, "kronfluence", "curvlinops", "dattri")),
            ("EKFAC", "type2", (OURS, "curvlinops", "pydvl")),
            (EXACT, "type2", (OURS,)),
        ),
    ),
    Group(
        "W2",
        4500,
        100,
        (
            ("EKFAC", "type2", (OURS, "curvlinops")),
            ("EKFAC", "mc(1)", (OURS, "curvlinops")),
        ),
        fit_only=("curvlinops",),
    ),
    Group(
        "W3",
        4500,
        100,
        (
            ("EKFAC", "empirical", (OURS, "kronfluence", "curvlinops", "dattri")),
            ("EKFAC", "mc(1)", (OURS, "kronfluence", "curvlinops")),
            ("EKFAC", "type2", (OURS, "curvlinops", "pydvl")),
        ),
    ),
    Group(
        "W4",
        512,
        32,
        (
            ("EKFAC", "empirical", (OURS, "kronfluence", "curvlinops", "dattri")),
            ("EKFAC", "mc(1)", (OURS, "kronfluence")),
            ("EKFAC", "type2", ("pydvl",)),
            ("KFAC", "empirical", (OURS, "kronfluence", "curvlinops")),
            ("KFAC", "mc(1)", (OURS, "kronfluence", "curvlinops")),
        ),
    ),
    Group(
        "W5",
        128,
        8,
        (("EKFAC", "empirical", (OURS, "kronfluence", "curvlinops")),),
    ),
    Group(
        "W6",
        64,
        8,
        (
            ("EKFAC", "empirical", (OURS, "kronfluence")),
            ("KFAC", "empirical", (OURS, "kronfluence", "curvlinops")),
        ),
    ),
    Group("W7", 64, 8, (("EKFAC", "empirical", (OURS, "kronfluence", "curvlinops")),)),
)
