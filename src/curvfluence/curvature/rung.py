"""A rung of the ladder: a request for a curvature. `fit` turns (problem, rung) into the value."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from curvfluence import kinds
from curvfluence.curvature.coverage import CoverageLine
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.workload import Workload
from curvfluence.errors import CoverageError, CurvfluenceWarning, InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher import Fisher
from curvfluence.jacobian.fisher_pass import FEW_SURPRISES_NOTE
from curvfluence.problem.content import content
from curvfluence.problem.data import Examples
from curvfluence.problem.parts import WHOLE, differing, parts, parts_of_fit
from curvfluence.problem.problem import Problem, require_problem
from curvfluence.runtime import backend, journal, precision, ranks
from curvfluence.runtime import device as machine
from curvfluence.runtime.said import noted
from curvfluence.runtime.stage import Stage


@dataclass(frozen=True)
class LeftBehind:
    """What a fit leaves for the scores after it: the rows of its last pass, and of which weights
    the gradients are matrices in the curvature's own basis."""

    fisher: Fisher | None = None
    formed: frozenset[str] = field(default_factory=frozenset[str])


class Rung(ABC):
    """Settings only; cheap to make."""

    @property
    def name(self) -> str:
        return type(self).__name__

    # whether its inverse may be taken at low rank, where scores are cheaper by that
    low_rank: ClassVar[bool] = False

    @abstractmethod
    def build(self, problem: Problem) -> Curvature:
        """The curvature of `problem` at its weights. Call `fit`, which also times and checks."""

    @abstractmethod
    def coverage(self, problem: Problem) -> tuple[CoverageLine, ...]:
        """What would cover which parameter, known before any work."""

    def fishers(self, problem: Problem) -> tuple[Fisher, ...]:
        """The Fisher types that it is estimated under; empty where there is no choice."""
        return ()

    def fisher_name(self, problem: Problem) -> str | None:
        """As results call it: "mc(1)", or "type2, values mc(1)"."""
        return ", values ".join(dict.fromkeys(each.name for each in self.fishers(problem))) or None

    def rank(self, problem: Problem) -> int | None:
        """A bound on the rank of each block with a rule, known before work; None without one."""
        return None

    def elements(self, problem: Problem) -> float:
        """Numbers that its matrices take at the peak of a fit and a solve, known before any work;
        rows that go with the number of examples are taken in parts and not among them."""
        return 0.0

    def refusal(self, problem: Problem) -> str | None:
        """Why it cannot be fitted, whatever the memory; None where it can."""
        return None

    def stages(self, work: Workload) -> list[Stage]:
        """The stages of a fit. Errors: `InputError` for a rung that has no forecast."""
        raise InputError(f"there is no forecast of {self.name}: it states no stages")

    def left_behind(self, problem: Problem) -> LeftBehind:
        """What scores after a fit find."""
        return LeftBehind()

    def separable(self, problem: Problem) -> bool:
        """Whether the curvature of some modules' parameters alone is that part of the whole one:
        then some blocks can be taken after others."""
        return False

    def for_solves(self, problem: Problem, count: int) -> Rung:
        """The same rung in the form that suits so many solves, where it has a choice of forms."""
        return self

    def rotations(self, work: Workload, formed: frozenset[str]) -> float:
        """Operations that take solved queries and rows to common coordinates; `formed` are the
        weights whose rows are there already."""
        return 0.0


@precision.full()
def fit(problem: Problem, rung: Rung, *, strict: bool = False) -> Curvature:
    """The curvature of `problem` under `rung`.

    Parameters that no rule of the rung covers get its fallback (the exact GGN block up to 2,048
    parameters, else its diagonal) and are listed in `coverage`; with `strict=True` they raise
    `CoverageError` instead. Errors, before work starts: `InputError` where the rung's matrices are
    larger than the memory of this machine, or of the CUDA device that the problem is on.
    """
    require_problem(problem)
    kinds.flag(strict, "strict")
    require_rung(rung)
    start = machine.clock(problem.device)
    require_together(problem, the_rung=repr(rung))
    discover(problem)  # refuses a model that is no function of one example, before anything runs
    _require_room(problem, rung)
    if strict:
        require_rules(problem, rung)
    with noted() as said, journal.scope(lambda: f"fit {rung!r} {rung.coverage(problem)}"):
        built = rung.build(problem)
    for note in built.notes:
        if FEW_SURPRISES_NOTE in note:
            warnings.warn(note, CurvfluenceWarning, stacklevel=3)  # past the decorator
    notes = (*built.notes, *said, *_of_decay(problem), *problem.notes)
    curvature = replace(
        built, notes=notes, fitted_on=problem.fingerprint, parts=parts_of_fit(problem)
    )
    return curvature.with_cost(machine.clock(problem.device) - start)


def require_rung(value: object) -> None:
    if not isinstance(value, Rung):
        raise InputError(f"a rung is an object such as EKFAC(); seen {value!r}")


def require_together(problem: Problem, **asked: object) -> None:
    """Where processes work together they must work on the same: one problem, and whatever else they
    were `asked`."""
    team = ranks.here()
    if team is None:
        return
    with team.alike():
        backend.require_device(problem.device)
    team.require_enough(len(problem.train))
    if not isinstance(problem.train, Examples):
        raise InputError(
            "data that every pass reads anew are not shared out yet: give the processes tensors"
        )
    told = {name.replace("_", " "): str(value) for name, value in asked.items()}
    told["the number of torch's threads"] = str(torch.get_num_threads())
    whole = content(problem)
    if not team.agree(whole):  # where they differ is looked for only then
        told = {**parts(problem), WHOLE: whole, **told}
    team.require_same(told, differing)


def _of_decay(problem: Problem) -> tuple[str, ...]:
    if problem.has_decay or not any(problem.weight_decay.values()):
        return ()
    if problem.decoupled_decay:
        return ("weight decay was decoupled (AdamW): recorded, not added to the curvature",)
    return ("weight decay is left out of the inverse, as asked: the matrix is C + λI",)


def require_rules(problem: Problem, rung: Rung) -> None:
    """Errors: `CoverageError` where a fallback would be needed."""
    lost = [line for line in rung.coverage(problem) if line.fallback]
    if lost:
        share = sum(line.count for line in lost) / problem.parameters.count
        listed = "; ".join(f"{', '.join(c.parameters)}: {c.rule}" for c in lost)
        raise CoverageError(
            f"{rung.name} has no rule for {share:.1%} of the parameters ({listed}). Use BlockGGN, "
            "GGN or Hessian, or strict=False to accept the fallbacks"
        )


def _require_room(problem: Problem, rung: Rung) -> None:
    reason = rung.refusal(problem)
    if reason is not None:
        raise InputError(reason)
    needed, room = rung.elements(problem) * problem.dtype.itemsize, machine.memory(problem.device)
    where = "this machine" if problem.device.type == "cpu" else str(problem.device)
    if needed > room:
        raise InputError(
            f"{rung.name} needs about {needed / 2**30:.1f} GiB for its matrices, {where} has "
            f"{room / 2**30:.1f}: `cf.plan(problem, rung)` names the next cheaper rung that fits"
        )
