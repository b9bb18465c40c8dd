"""Rungs that are estimated layer by layer under a Fisher type."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from curvfluence import kinds
from curvfluence.curvature.coverage import CoverageLine
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.estimate.accumulate import Sums
from curvfluence.curvature.fallback import Fallback, Native
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.operator import Operator
from curvfluence.curvature.places import LayerPart, layer_parts
from curvfluence.curvature.rung import LeftBehind, Rung
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher import TYPE2_LIMIT, Fisher, Type2, default_fisher, type2
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Memo
from curvfluence.problem.problem import Problem

AddPart: TypeAlias = Callable[[LayerPart, Rows, Sums, Memo], None]


@dataclass(frozen=True)
class FisherRung(Rung):
    """A rung below GGN. `fisher` is by default type2 up to 64 output columns, mc(8) above;
    `joint_bias=False` gives a layer's bias a block of its own."""

    fisher: Fisher | None = None
    joint_bias: bool = True

    by_layer: ClassVar[bool] = False  # whether it needs sums within each layer's rows alone
    native: ClassVar[Native] = Native()  # its definition where there is no layer rule
    passes: ClassVar[int] = 1  # how often the rows are read

    def __post_init__(self) -> None:
        require_fisher(self.fisher, "fisher")
        kinds.flag(self.joint_bias, "joint_bias")

    @abstractmethod
    def rule(self, part: LayerPart) -> str:
        """What coverage says of a layer's block."""

    @abstractmethod
    def build_blocks(self, rows: FisherPass, values: FisherPass) -> tuple[Block, ...]:
        """The rung's blocks from the rows of the training set under a Fisher type, and from those
        that eigenvalues are corrected with, where they are."""

    def fisher_of(self, problem: Problem) -> Fisher:
        if self.fisher is None:
            return default_fisher(problem, by_layer=self.by_layer)
        return self.as_summed(self.fisher, problem)

    def as_summed(self, fisher: Fisher, problem: Problem) -> Fisher:
        """The same Fisher type as this rung's sums need it."""
        whole = type(fisher) is Type2
        return type2(problem, by_layer=self.by_layer) if whole else fisher

    def fishers(self, problem: Problem) -> tuple[Fisher, Fisher]:
        """The Fisher type of the rows, and that of the eigenvalues: the same object where they are
        not estimated apart."""
        fisher = self.fisher_of(problem)
        return fisher, fisher

    def build(self, problem: Problem) -> Curvature:
        fisher, of_values = self.fishers(problem)
        rows = FisherPass(problem, fisher, again=self.passes > 1)
        values = rows if of_values is fisher else FisherPass(problem, of_values)
        blocks = self.build_blocks(rows, values)
        notes = dict.fromkeys((*rows.notes(), *values.notes()))
        return Curvature(
            rung=self.name,
            parameters=problem.parameters,
            blocks=blocks,
            decay=problem.decay,
            fisher=self.fisher_name(problem),
            notes=(*notes, *self._of_default(problem, fisher), *self.notes_of(blocks)),
        )

    def notes_of(self, blocks: Sequence[Block]) -> tuple[str, ...]:
        """What a result must say of its blocks."""
        return ()

    def _of_default(self, problem: Problem, fisher: Fisher) -> tuple[str, ...]:
        columns = problem.loss.columns(problem.n_outputs)
        if self.fisher is not None or columns <= TYPE2_LIMIT or isinstance(fisher, Type2):
            return ()
        return (
            f"{fisher.name} by default: {columns} output columns an example are more than "
            f"{TYPE2_LIMIT}",
        )

    def parts(self, problem: Problem) -> tuple[LayerPart, ...]:
        return layer_parts(problem.parameters, discover(problem), joint_bias=self.joint_bias)

    def fallback(self, problem: Problem) -> Fallback:
        return Fallback.of(problem, discover(problem), self.native, joint=self.joint_bias)

    def block(self, part: LayerPart, operator: Operator) -> Block:
        """A layer's block of this rung."""
        return Block(part.name, part.parameters, part, operator, self.rule(part))

    def coverage(self, problem: Problem) -> tuple[CoverageLine, ...]:
        lines = (
            CoverageLine(part.name, part.parameters, part.size, self.rule(part))
            for part in self.parts(problem)
        )
        return (*lines, *self.fallback(problem).coverage())

    def separable(self, problem: Problem) -> bool:
        return True

    def left_behind(self, problem: Problem) -> LeftBehind:
        return LeftBehind(self.fisher_of(problem))


def require_fisher(fisher: object, what: str) -> None:
    if fisher is not None and not isinstance(fisher, Fisher):
        raise InputError(f"{what} must be Type2(), MonteCarlo(k) or Empirical(); seen {fisher!r}")


def each_part(
    parts: tuple[LayerPart, ...], add: AddPart, fallback: Fallback | None = None
) -> Callable[[Rows, Sums], None]:
    """The update of a pass that adds `add(part, rows, sums, memo)` of every part, and what the
    fallback's blocks need. `memo` holds what neighbours on the same inputs share."""

    def update(rows: Rows, sums: Sums) -> None:
        memo: Memo = {}
        inputs: int | None = None
        for part in parts:
            if inputs != (inputs := rows.inputs_of(part.position)):
                memo.clear()
            add(part, rows, sums, memo)
        if fallback is not None:
            fallback.add(rows, sums)

    return update
