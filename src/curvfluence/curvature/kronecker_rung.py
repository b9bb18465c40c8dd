"""Rungs on a Kronecker eigenbasis U_B ⊗ U_A for each layer, and how their eigenvalues are had."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.estimate.accumulate import Sums, accumulate
from curvfluence.curvature.estimate.factors import Factors
from curvfluence.curvature.fisher_rung import AddPart, FisherRung, each_part, require_fisher
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.decomposed import leading_elements, share
from curvfluence.curvature.operators.kronecker import (
    InputBases,
    Kronecker,
    KroneckerEigen,
    basis_of,
)
from curvfluence.curvature.operators.operator import Operator
from curvfluence.curvature.operators.truncated_kronecker import (
    TruncatedKronecker,
    expanded,
    leading_basis,
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

    A rung of this kind says which `factors` it has and what `spectrum` they give. With
    `eigenvectors` no more of them are held of each factor, the largest, and one more where there is
    a bias; on what is orthogonal to them the eigenvalue is the mean there. So bases take less
    memory and time, and the rung is another one: `Scores.certificate` tells how much further from
    the exact curvature.
    """

    eigenvectors: int | None = field(default=None, kw_only=True)

    kind: ClassVar[str]  # what coverage calls a layer's block
    low_rank: ClassVar[bool] = True
    by_layer: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eigenvectors is not None:
            kinds.count(self.eigenvectors, "eigenvectors")

    @property
    def name(self) -> str:
        held = self.eigenvectors
        return super().name if held is None else f"{super().name}(eigenvectors={held})"

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
        return ", ".join(text for text in (self.kind, sharing, self._said_of_held(part)) if text)

    def _held(self, part: LayerPart) -> tuple[int, int]:
        """How many eigenvectors of B and of A are held; all of a lookup's A."""
        o, i = part.shape
        most = self.eigenvectors
        if most is None:
            return o, i
        return min(o, most), i if part.lookup else min(i, most + part.with_bias)

    def _is_complete(self, part: LayerPart) -> bool:
        """Whether all eigenvectors of both factors are held."""
        return self._held(part) == part.shape

    def _bases_elements(self, part: LayerPart) -> float:
        """Numbers of the columns of U_B and U_A that are held."""
        (o, i), (out, inp) = part.shape, self._held(part)
        return float(o * out) + (i if part.lookup else i * inp)

    def _held_elements(self, part: LayerPart) -> float:
        """With those of Λ."""
        (o, i), (out, inp) = part.shape, self._held(part)
        return self._bases_elements(part) + (out + (out < o)) * (inp + (inp < i))

    def _making_elements(self, part: LayerPart, dtype: torch.dtype) -> float:
        """What `leading_basis` takes of one factor, in numbers of that dtype."""
        if self.eigenvectors is None:
            return 0.0
        factors = zip(part.shape[: 2 - part.lookup], self._held(part), strict=False)
        wide = torch.float64.itemsize / dtype.itemsize
        return max(wide * (n**2 + leading_elements(n, held)) for n, held in factors)

    def _said_of_held(self, part: LayerPart) -> str:
        if self._is_complete(part):
            return ""
        (o, i), (out, inp) = part.shape, self._held(part)
        return f"{out} of {o} and {inp} of {i} eigenvectors"

    def build_blocks(self, rows: FisherPass, values: FisherPass) -> tuple[Block, ...]:
        """Factors, their eigenvectors, and the operator that these make."""
        parts, fallback = self.parts(rows.problem), self.fallback(rows.problem)
        sums = accumulate(rows, each_part(parts, self.factors.add, fallback))
        made: list[Block] = []
        for part, (out, inp) in zip(parts, self._bases(parts, sums, rows.problem), strict=True):
            rank = self._rank(part, out[0], inp[0], rows.problem)
            made.append(self.block(part, self._operator(part, out, inp, rank)))
        return (*made, *fallback.blocks(sums, rows))

    def notes_of(self, blocks: Sequence[Block]) -> tuple[str, ...]:
        """How much of the curvature lies outside of the eigenvectors that are held."""
        outside = {
            block.name: block.operator.outside
            for block in blocks
            if isinstance(block.operator, TruncatedKronecker)
        }
        if not outside:
            return ()
        most, least = max(outside, key=outside.__getitem__), min(outside.values())
        return (
            f"{self.eigenvectors} eigenvectors held of each factor, what is left at its mean: "
            f"{least:.2g} to {outside[most]:.2g} of a block's trace lies there, the most in block "
            f"{most}. certificate() tells what that does to scores",
        )

    def _operator(self, part: LayerPart, out: OutBasis, inp: InBasis, rank: int | None) -> Operator:
        if self._is_complete(part):
            return replace(self.operator(out, inp), rank=rank)
        (o, i), (out_basis, in_basis) = part.shape, (out[1], inp[1])
        whole = self.spectrum(expanded(out[0], o), expanded(inp[0], i))
        table = whole[: len(out[0]), : len(inp[0])].clone()
        return TruncatedKronecker(out_basis, in_basis, table, rank=rank)

    def _rank(
        self, part: LayerPart, out_values: Tensor, in_values: Tensor, problem: Problem
    ) -> int | None:
        """How many products of λ_B and λ_A are more than what rounding leaves of a 0. Of a factor
        whose eigenvectors are not all held, whose other eigenvalues have one mean, no more than the
        data make, so that λ by `Relative` does not hang on how many are; None where that is not
        known."""
        (o, i), noise = part.shape, 0.0 if part.lookup else NOISE
        out, inp = _above(expanded(out_values, o), NOISE), _above(expanded(in_values, i), noise)
        if self._is_complete(part):
            return out * inp
        if problem.varied:
            return None
        most_a, most_b = self._ranks(part, problem)
        return min(out, most_b) * min(inp, most_a)

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
                out_values, out_basis = self._decomposed(b_oo, most_b)
                assert out_basis is not None
                decompose = partial(self._decomposed, bias=part.with_bias)
                inp = inputs.of(a_ii, most_a, decompose, alike=part.with_bias)
                yield (out_values, out_basis), inp
            return
        yield from self._shared_bases(parts, sums, problem, team)

    def _shared_bases(
        self, parts: tuple[LayerPart, ...], sums: Sums, problem: Problem, team: ranks.Ranks
    ) -> Iterator[tuple[OutBasis, InBasis]]:
        jobs: list[ranks.Job] = []
        of_part: list[tuple[int, int | None, Tensor]] = []  # jobs of B and A; the A of a lookup
        last: tuple[Tensor, bool, int] | None = None  # layers on the same inputs have the same A
        for part in parts:
            most_a, most_b = self._ranks(part, problem)
            a_ii, b_oo = self.factors.of(part, sums, problem)
            jobs.append(self._job(b_oo, most_b))
            out, inp = len(jobs) - 1, None
            if a_ii.ndim > 1:
                if last is None or last[1] != part.with_bias or not torch.equal(last[0], a_ii):
                    jobs.append(self._job(a_ii, most_a, bias=part.with_bias))
                    last = a_ii, part.with_bias, len(jobs) - 1
                inp = last[2]
            of_part.append((out, inp, a_ii))
        found = team.shared_out(jobs)
        for out, inp, a_ii in of_part:
            out_values, out_basis = found[out]
            if inp is None:
                yield (out_values, out_basis), (a_ii, None)
            else:
                in_values, in_basis = found[inp]
                yield (out_values, out_basis), (in_values, in_basis)

    def _decomposed(
        self, factor: Tensor, most: int, *, bias: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(eigenvalues, eigenvectors) of a factor of at most that rank, as many as are held."""
        if self.eigenvectors is None or factor.ndim == 1:
            return basis_of(factor, most)
        return leading_basis(factor, most, self.eigenvectors, bias=bias)

    def _job(self, factor: Tensor, most: int, *, bias: bool = False) -> ranks.Job:
        def run() -> tuple[Tensor, ...]:
            values, basis = self._decomposed(factor, most, bias=bias)
            assert basis is not None
            return values, basis

        return ranks.Job(self._share(len(factor), most) * float(len(factor)) ** 3, run)

    def _share(self, n: int, most: int) -> float:
        """Of the time of a whole decomposition; with few columns held, about twice that of a thin
        one of so many."""
        held = self.eigenvectors
        return min(share(n, most), 1.0 if held is None else 2 * share(n, held))

    def _ranks(self, part: LayerPart, problem: Problem) -> tuple[int, int]:
        columns = self.fisher_of(problem).width_at(problem, part.layer)
        return self.factors.ranks(part, len(problem.train), columns)

    def _cubes(self, part: LayerPart, problem: Problem) -> float:
        """Of both decompositions, in those of whole matrices: o³ + i³, less where a rank is known
        to be small; the factor of a lookup is diagonal."""
        (o, i), (most_a, most_b) = part.shape, self._ranks(part, problem)
        inputs = 0.0 if part.lookup else self._share(i, most_a) * i**3
        return self._share(o, most_b) * o**3 + inputs

    def elements(self, problem: Problem) -> float:
        """Factors, bases twice while they are made, and tables; with few columns held what makes
        those of one factor, in float64, may take more than the second time."""
        parts = _whole_parts(problem)
        held = sum(map(self._held_elements, parts))
        one = max((self._making_elements(p, problem.dtype) for p in parts), default=0.0)
        making = max(one, sum(map(self._bases_elements, parts)))
        return sum(map(_factor_elements, parts)) + making + held

    def stages(self, work: Workload) -> list[Stage]:
        fisher, parts = self.fisher_of(work.problem), self.parts(work.problem)
        columns, fallback = fisher.width(work.problem), self.fallback(work.problem)
        held = sum(_factor_elements(p) + p.size for p in _whole_parts(work.problem))
        cached = work.cached(fisher) if self.passes > 1 else 0.0
        decomposed = self.elements(work.problem)
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
            work.eigendecompositions("eigendecompositions", cubes, decomposed + cached, exact=True),
        ]

    def rotations(self, work: Workload, formed: frozenset[str]) -> float:
        """Of the solved queries, and back or of the rows, whichever is less."""
        n, total = len(work.problem.train), 0.0
        for layer in work.layout.layers:
            o, i = layer.out_features, layer.in_features
            width = 0 if layer.lookup else i  # whose input basis is the identity
            turn = 2.0 * work.queries * o * i * (o + width)
            total += turn
            if layer.weight not in formed:
                total += min(turn, 2.0 * n * layer.positions * (o * o + width * width))
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
        bases: dict[str, tuple[Tensor, Tensor | None]] = {}
        rank: dict[str, int | None] = {}
        for part, (out, inp) in zip(parts, self._bases(parts, sums, problem), strict=True):
            bases[part.name] = out[1], inp[1]
            rank[part.name] = self._rank(part, out[0], inp[0], problem)
        within = {p.position: bases[p.name] for p in parts if p.whole and self._is_complete(p)}
        squares = accumulate(values.within(within), each_part(parts, add_squares(bases)))
        made: list[Block] = []
        for part in parts:
            out_basis, in_basis = bases.pop(part.name)
            kind = KroneckerEigen if self._is_complete(part) else TruncatedKronecker
            best = table_of(part, squares) / len(problem.train)
            operator = kind(out_basis, in_basis, best, rank=rank[part.name])
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
        bases = {part.name: _placeholders(problem, part, self._held(part)) for part in parts}
        update = each_part(parts, add_squares(bases))
        held = sum(map(self._held_elements, _whole_parts(problem)))
        cached = work.cached(fisher) if self.values is None else 0.0
        operations = len(problem.train) * sum(
            _square_operations(part, self._held(part), fisher.width(problem)) for part in parts
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
            if self._is_complete(part)
            and part.whole
            and part.shared
            and is_compact(*part.shape, part.layer.positions)
        )
        return LeftBehind(self.fishers(problem)[1], frozenset(formed))


def add_squares(bases: Mapping[str, Basis]) -> AddPart:
    """Adds Σ_n Σ_c (U_Bᵀ row U_A)² elementwise of a part, [o, i]; where columns of a basis are not
    held also what the rows are in each that is held of the other, and in all."""

    def add(part: LayerPart, rows: Rows, sums: Sums, memo: Memo) -> None:
        term, (out_basis, in_basis) = part.term(rows), bases[part.name]
        inside = term.squares(out_basis, in_basis, memo)
        sums.add_(part.name, inside)
        below, right = (held < n for held, n in zip(inside.shape, part.shape, strict=True))
        if right:
            sums.add_((part.name, "B"), term.squares(out_basis, None, memo).sum(1))
        if below:
            sums.add_((part.name, "A"), term.squares(None, in_basis, memo).sum(0))
        if below and right:
            sums.add_((part.name, "all"), term.squared_norms().sum())

    return add


def table_of(part: LayerPart, sums: Sums) -> Tensor:
    """The sums of `add_squares` as an operator has its values: where columns are not held, with one
    row or column more, the mean of what is left. It is below 0 by rounding alone."""
    (o, i), inside = part.shape, sums.pop(part.name)
    (out, inp), table = inside.shape, inside
    right = sums.pop((part.name, "B")) - inside.sum(1) if inp < i else inside.new_zeros(out)
    if inp < i:
        table = torch.cat([table, right[:, None] / (i - inp)], dim=1)
    if out < o:
        below = sums.pop((part.name, "A")) - inside.sum(0)
        if inp < i:
            rest = sums.pop((part.name, "all")) - inside.sum() - right.sum() - below.sum()
            below = torch.cat([below, rest[None] / (i - inp)])
        table = torch.cat([table, below[None] / (o - out)])
    return table.clamp_min(0)


def _above(values: Tensor, ulps: float) -> int:
    """How many are more than so many ε of the largest: a few in a factor, none in the counts of a
    lookup."""
    floor = ulps * torch.finfo(values.dtype).eps * float(values.max())
    return int((values > floor).sum())


def _whole_parts(problem: Problem) -> tuple[LayerPart, ...]:
    return layer_parts(problem.parameters, discover(problem), joint_bias=True)


def _factor_elements(part: LayerPart) -> float:
    o, i = part.shape
    return float(o) ** 2 + (float(i) if part.lookup else float(i) ** 2)


def _square_operations(part: LayerPart, held: tuple[int, int], columns: int) -> float:
    """Of one example: both factors rotated and multiplied, or its row formed and rotated."""
    (o, i), (out, inp), t = part.shape, held, part.layer.positions
    width = 0 if part.lookup else i
    rotate = 2.0 * t * (columns * o * out + width * inp)
    if not part.layer.shared:
        return rotate + 2.0 * out * inp
    rows = 2.0 * columns * o * width * inp + 2.0 * columns * o * out * (inp if width else 0)
    return 2.0 * columns * t * o * max(width, 1) + min(rotate, rows)


def _placeholders(problem: Problem, part: LayerPart, held: tuple[int, int]) -> Basis:
    """Matrices of the sizes of U_B and U_A, whose numbers do not matter to a clock."""
    (o, i), (out, inp) = part.shape, held
    inner = None if part.lookup else torch.eye(i, inp).to(problem.decay)
    return torch.eye(o, out).to(problem.decay), inner
