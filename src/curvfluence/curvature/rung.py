"""A rung of the ladder: a request for a curvature. `fit` turns (problem, rung) into the value."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from curvfluence.curvature.curvature import Block, Curvature
from curvfluence.errors import CoverageError, CurvfluenceWarning, InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher import TYPE2_LIMIT, Fisher, Type2, default_fisher
from curvfluence.jacobian.fisher_pass import FEW_SURPRISES_NOTE, FisherPass
from curvfluence.problem.problem import Problem
from curvfluence.runtime import device as machine
from curvfluence.runtime import precision


class Rung(ABC):
    """Settings only; cheap to make."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def build(self, problem: Problem) -> Curvature:
        """The curvature of `problem` at its weights. Call `fit`, which also times and checks."""

    def rank(self, problem: Problem) -> int | None:
        """A bound on the rank of C (of each block), known before any work; None without one."""
        return None

    def elements(self, problem: Problem) -> float:
        """Numbers that its matrices take at the peak of a fit and a solve, known before any work;
        rows that go with the number of examples are taken in parts and not among them."""
        return 0.0


@dataclass(frozen=True)
class FisherRung(Rung):
    """A rung below GGN. `fisher` is by default type2 up to 64 output columns, mc(8) above;
    `joint_bias=False` gives a layer's bias a block of its own."""

    fisher: Fisher | None = None
    joint_bias: bool = True

    def __post_init__(self) -> None:
        if self.fisher is not None and not isinstance(self.fisher, Fisher):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"fisher must be Type2(), MonteCarlo(k) or Empirical(); seen {self.fisher!r}"
            )

    @property
    def passes(self) -> int:
        """How often `build_blocks` reads the rows."""
        return 1

    @abstractmethod
    def build_blocks(self, problem: Problem, rows: FisherPass) -> tuple[Block, ...]:
        """The rung's blocks from the rows of the training set under a Fisher type."""

    def build(self, problem: Problem) -> Curvature:
        fisher = default_fisher(problem) if self.fisher is None else self.fisher
        rows = FisherPass(problem, fisher, again=self.passes > 1)
        blocks = self.build_blocks(problem, rows)
        notes = rows.notes()
        if self.fisher is None and not isinstance(fisher, Type2):
            columns = problem.loss.columns(problem.n_outputs)
            notes = (
                *notes,
                f"{fisher.name} by default: {columns} output columns an example are more than "
                f"{TYPE2_LIMIT}",
            )
        return Curvature(
            rung=self.name,
            parameters=problem.parameters,
            blocks=blocks,
            decay=problem.decay,
            fisher=fisher.name,
            notes=notes,
        )


@precision.full()
def fit(problem: Problem, rung: Rung, *, strict: bool = False) -> Curvature:
    """The curvature of `problem` under `rung`.

    Parameters that no rule of the rung covers get its fallback (the exact GGN block up to 2,048
    parameters, else its diagonal) and are listed in `coverage`; with `strict=True` they raise
    `CoverageError` instead. Errors, before work starts: `InputError` where the rung's matrices are
    larger than the memory of this machine, or of the CUDA device that the problem is on.
    """
    if not isinstance(rung, Rung):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"a rung is an object such as EKFAC(); seen {rung!r}")
    start = machine.clock(problem.device)
    discover(problem)  # refuses a model that is no function of one example, before anything runs
    _require_room(problem, rung)
    curvature = replace(rung.build(problem), fitted_on=problem.fingerprint)
    for note in curvature.notes:
        if FEW_SURPRISES_NOTE in note:
            warnings.warn(note, CurvfluenceWarning, stacklevel=3)  # past the decorator
    if problem.decoupled_decay and any(problem.weight_decay.values()):
        note = "weight decay was decoupled (AdamW): recorded, not added to the curvature"
        curvature = replace(curvature, notes=(*curvature.notes, note))
    curvature = replace(curvature, notes=(*curvature.notes, *problem.notes))
    lost = [line for line in curvature.coverage if line.fallback]
    if strict and lost:
        listed = "; ".join(f"{', '.join(c.parameters)}: {c.rule}" for c in lost)
        raise CoverageError(
            f"{rung.name} has no rule for {curvature.fallback_share:.1%} of the parameters "
            f"({listed}). Use BlockGGN, GGN or Hessian, or strict=False to accept the fallbacks"
        )
    return curvature.with_cost(machine.clock(problem.device) - start)


def _require_room(problem: Problem, rung: Rung) -> None:
    needed, room = rung.elements(problem) * problem.dtype.itemsize, machine.memory(problem.device)
    where = "this machine" if problem.device.type == "cpu" else str(problem.device)
    if needed > room:
        raise InputError(
            f"{rung.name} needs about {needed / 2**30:.1f} GiB for its matrices, {where} has "
            f"{room / 2**30:.1f}: `cf.plan(problem, rung)` names the next cheaper rung that fits"
        )
