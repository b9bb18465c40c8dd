"""Rungs on a Kronecker eigenbasis U_B ⊗ U_A for each layer, and how their eigenvalues are had."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from curvfluence.curvature.estimate.accumulate import Sums, accumulate
from curvfluence.curvature.estimate.factors import Factors
from curvfluence.curvature.fisher_rung import AddPart, FisherRung, each_part, require_fisher
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.decomposed import share
from curvfluence.curvature.operators.kronecker import (
    InputBases,
    Kronecker,
    KroneckerEigen,
    basis_of,
)
from curvfluence.curvature.places import LayerPart, layer_parts
from curvfluence.curvature.rung import LeftBehind
from curvfluence.curvature.workload import Workload
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher import Fisher
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.rows import Basis, Rows
from curvfluence.jacobian.terms import Memo
from curvfluence.jacobian.terms.shared import is_compact
from curvfluence.problem.problem import Problem
from curvfluence.runtime import ranks
from curvfluence.runtime.stage import Stage

OutBasis: TypeAlias = "tuple[Tensor, Tensor]"
InBasis: TypeAlias = "tuple[Tensor, Tensor | None]"

NOISE = 4.0  # ε of a factor's largest eigenvalue, that a sum leaves of one that is 0


@dataclass(frozen=True)
class KroneckerRung(FisherRung):
    """Per layer U_B ⊗ U_A, the eigenvectors of two factors, with eigenvalues made of theirs.

    A rung of this kind says which `factors` it has and what `spectrum` they give.
    """

    kind: ClassVar[str]  # what coverage calls a layer's block
    low_rank: ClassVar[bool] = True
    by_layer: ClassVar[bool] = True

    @property
    @abstractmethod
    def factors(self) -> Factors:
        """Which two sums over the data."""

    def spectrum(self, out_values: Tensor, in_values: Tensor) -> Tensor:
        """Λ [o, i] from λ_B [o] and λ_A [i]: of B ⊗ A, their products."""
        return torch.outer(out_values, in_values)

    def operator(self, out: tuple[Tensor, Tensor], inp: tuple[Tensor, Tensor | None]) -> Kronecker:
        """A layer's operator from (λ_B, U_B) and (λ_A, U_A)."""
        (out_values, out_basis), (in_values, in_basis) = out, inp
        return KroneckerEigen(out_basis, in_basis, self.spectrum(out_values, in_values))

    def rule(self, part: LayerPart) -> str:
        sharing = self.factors.rule(part)
        return f"{self.kind}, {sharing}" if sharing else self.kind

    def build_blocks(self, rows: FisherPass, values: FisherPass) -> tuple[Block, ...]:
        """Factors, their eigenvectors, and the operator that these make."""
        parts, fallback = self.parts(rows.problem), self.fallback(rows.problem)
        sums = accumulate(rows, each_part(parts, self.factors.add, fallback))
        made: list[Block] = []
        for part, (out, inp) in zip(parts, self._bases(parts, sums, rows.problem), strict=True):
            operator = self.operator(out, inp)
            rank = _rank(out[0], inp[0], lookup=part.lookup)
            made.append(self.block(part, replace(operator, rank=rank)))
        return (*made, *fallback.blocks(sums, rows))

    def _bases(
        self, parts: tuple[LayerPart, ...], sums: Sums, problem: Problem
    ) -> Iterator[tuple[OutBasis, InBasis]]:
        """(λ_B, U_B) and (λ_A, U_A) of each part, decomposed one after the other, or shared out
        among processes."""
        team = ranks.here()
        if team is None:
            inputs = InputBases()
            for part in parts:
                most_a, most_b = self._ranks(part, problem)
                a_ii, b_oo = self.factors.of(part, sums, problem)
                out_values, out_basis = basis_of(b_oo, most_b)
                assert out_basis is not None
                yield (out_values, out_basis), inputs.of(a_ii, most_a)
            return
        yield from self._shared_bases(parts, sums, problem, team)

    def _shared_bases(
        self, parts: tuple[LayerPart, ...], sums: Sums, problem: Problem, team: ranks.Ranks
    ) -> Iterator[tuple[OutBasis, InBasis]]:
        jobs: list[ranks.Job] = []
        of_part: list[tuple[int, int | None, Tensor]] = []  # jobs of B and A; the A of a lookup
        last: tuple[Tensor, int] | None = None  # layers on the same inputs have the same A
        for part in parts:
            most_a, most_b = self._ranks(part, problem)
            a_ii, b_oo = self.factors.of(part, sums, problem)
            jobs.append(_decomposition(b_oo, most_b))
            out, inp = len(jobs) - 1, None
            if a_ii.ndim > 1:
                if last is None or not torch.equal(last[0], a_ii):
                    jobs.append(_decomposition(a_ii, most_a))
                    last = a_ii, len(jobs) - 1
                inp = last[1]
            of_part.append((out, inp, a_ii))
        found = team.shared_out(jobs)
        for out, inp, a_ii in of_part:
            out_values, out_basis = found[out]
            if inp is None:
                yield (out_values, out_basis), (a_ii, None)
            else:
                in_values, in_basis = found[inp]
                yield (out_values, out_basis), (in_values, in_basis)

    def _ranks(self, part: LayerPart, problem: Problem) -> tuple[int, int]:
        columns = self.fisher_of(problem).width_at(problem, part.layer)
        return self.factors.ranks(part, len(problem.train), columns)

    def _cubes(self, part: LayerPart, problem: Problem) -> float:
        """Of both decompositions, in those of whole matrices: o³ + i³, less where a rank is known
        to be small; the factor of a lookup is diagonal."""
        (o, i), (most_a, most_b) = part.shape, self._ranks(part, problem)
        return share(o, most_b) * o**3 + (0.0 if part.lookup else share(i, most_a) * i**3)

    def elements(self, problem: Problem) -> float:
        return sum(3.0 * _factor_elements(p) + p.size for p in _whole_parts(problem))

    def stages(self, work: Workload) -> list[Stage]:
        fisher, parts = self.fisher_of(work.problem), self.parts(work.problem)
        columns, fallback = fisher.width(work.problem), self.fallback(work.problem)
        held = sum(_factor_elements(p) + p.size for p in _whole_parts(work.problem))
        cached = work.cached(fisher) if self.passes > 1 else 0.0
        update = each_part(parts, self.factors.add, fallback)
        operations = sum(self.factors.operations(part, columns) for part in parts)
        cubes = sum(self._cubes(part, work.problem) for part in parts)
        return [
            work.passed("pass over the data", columns),
            work.timed(
                "factors",
                len(work.problem.train) * operations,
                held + cached,
                fisher,
                lambda rows: update(rows, Sums()),
            ),
            work.eigendecompositions("eigendecompositions", cubes, 3 * held + cached, exact=True),
        ]

    def rotations(self, work: Workload, formed: frozenset[str]) -> float:
        """Of the solved queries, and back or of the rows, whichever is less."""
        n, total = len(work.problem.train), 0.0
        for layer in work.layout.layers:
            o, i = layer.out_features, layer.in_features
            turn = 2.0 * work.queries * o * i * (o + i)
            total += turn
            if layer.weight not in formed:
                total += min(turn, 2.0 * n * layer.positions * (o * o + i * i))
        return total


@dataclass(frozen=True)
class CorrectedRung(KroneckerRung):
    """The same eigenbasis with the diagonal of the layer's GGN block in it for eigenvalues:
    Λ_ij = (1/N) Σ_n Σ_c (Σ_t (U_Bᵀ s_t)_i (U_Aᵀ a_t)_j)², the best diagonal there (George et al.
    2018). `values` is the Fisher type of Λ, by default that of the factors: with sampled factors
    and `values=Type2()` the basis is sampled and the eigenvalues are exact.
    """

    values: Fisher | None = None

    passes: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fisher(self.values, "values")

    def fishers(self, problem: Problem) -> tuple[Fisher, Fisher]:
        fisher = self.fisher_of(problem)
        return fisher, fisher if self.values is None else self.as_summed(self.values, problem)

    def build_blocks(self, rows: FisherPass, values: FisherPass) -> tuple[Block, ...]:
        problem = rows.problem
        parts, fallback = self.parts(problem), self.fallback(problem)
        sums = accumulate(rows, each_part(parts, self.factors.add, fallback))
        out_bases, in_bases = dict[str, Tensor](), dict[str, Tensor | None]()
        rank: dict[str, int] = {}
        for part, (out, inp) in zip(parts, self._bases(parts, sums, problem), strict=True):
            out_bases[part.name], in_bases[part.name] = out[1], inp[1]
            rank[part.name] = _rank(out[0], inp[0], lookup=part.lookup)
        bases: dict[str, Basis] = {k: (u, in_bases[k]) for k, u in out_bases.items()}
        chunks = values.within({p.position: bases[p.name] for p in parts if p.whole})
        squares = accumulate(chunks, each_part(parts, add_squares(bases)))
        made: list[Block] = []
        for part in parts:
            best, k = squares.pop(part.name) / len(problem.train), part.name
            operator = KroneckerEigen(out_bases[k], in_bases[k], best, rank=rank[k])
            made.append(self.block(part, operator))
        return (*made, *fallback.blocks(sums, rows))

    def stages(self, work: Workload) -> list[Stage]:
        problem, parts = work.problem, self.parts(work.problem)
        fisher, values = self.fishers(problem)
        stages, missing = super().stages(work), work.missing(fisher)
        again = "second pass over the data"
        if self.values is not None:
            stages.append(work.passed(again, values.width(problem)))
        elif missing:
            stages.append(work.passed(again, fisher.width(problem), missing))
        bases = {part.name: _placeholders(problem, part) for part in parts}
        update = each_part(parts, add_squares(bases))
        held = sum(_factor_elements(p) + p.size for p in _whole_parts(problem))
        cached = work.cached(fisher) if self.values is None else 0.0
        operations = len(problem.train) * sum(
            _square_operations(part, fisher.width(problem)) for part in parts
        )
        stages.append(
            work.timed(
                "eigenvalues",
                operations,
                2 * held + cached,
                values,
                lambda rows: update(rows, Sums()),
            )
        )
        return stages

    def left_behind(self, problem: Problem) -> LeftBehind:
        """Of gradients that a fit reads, those of compact layers are left in its eigenbasis."""
        formed = (
            part.layer.weight
            for part in self.parts(problem)
            if part.whole and part.shared and is_compact(*part.shape, part.layer.positions)
        )
        return LeftBehind(self.fishers(problem)[1], frozenset(formed))


def _decomposition(factor: Tensor, most: int) -> ranks.Job:
    def run() -> tuple[Tensor, ...]:
        values, basis = basis_of(factor, most)
        assert basis is not None
        return values, basis

    n = len(factor)
    return ranks.Job(share(n, most) * float(n) ** 3, run)


def add_squares(bases: dict[str, Basis]) -> AddPart:
    """Adds Σ_n Σ_c (U_Bᵀ row U_A)² elementwise of a part, [o, i]."""

    def add(part: LayerPart, rows: Rows, sums: Sums, memo: Memo) -> None:
        sums.add_(part.name, part.term(rows).squares(*bases[part.name], memo))

    return add


def _rank(out_values: Tensor, in_values: Tensor, *, lookup: bool) -> int:
    """How many products of λ_B and λ_A are more than what rounding leaves of a 0: a few ε of the
    largest in a factor, nothing in the counts of a lookup."""

    def above(values: Tensor, ulps: float) -> int:
        floor = ulps * torch.finfo(values.dtype).eps * float(values.max())
        return int((values > floor).sum())

    return above(out_values, NOISE) * above(in_values, 0.0 if lookup else NOISE)


def _whole_parts(problem: Problem) -> tuple[LayerPart, ...]:
    return layer_parts(problem.parameters, discover(problem), joint_bias=True)


def _factor_elements(part: LayerPart) -> float:
    o, i = part.shape
    return float(o) ** 2 + (float(i) if part.lookup else float(i) ** 2)


def _square_operations(part: LayerPart, columns: int) -> float:
    """Of one example: both factors rotated and multiplied, or its row formed and rotated."""
    (o, i), t = part.shape, part.layer.positions
    width = 0 if part.lookup else i
    rotate = 2.0 * t * (columns * o * o + width * width)
    if not part.layer.shared:
        return rotate + 2.0 * o * i
    rows = 2.0 * columns * o * width * (o + width)
    return 2.0 * columns * t * o * max(width, 1) + min(rotate, rows)


def _placeholders(problem: Problem, part: LayerPart) -> Basis:
    """Matrices of the sizes of U_B and U_A, whose numbers do not matter to a clock."""
    o, i = part.shape
    inner = None if part.lookup else torch.eye(i).to(problem.decay)
    return torch.eye(o).to(problem.decay), inner
