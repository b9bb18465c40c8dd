"""The one interface: a curvature is small operators on disjoint blocks of the parameters."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.coverage import CoverageLine, fallback_share, named
from curvfluence.curvature.damping import Absolute, Damping, require_damping
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.low_rank_inverse import LowRankInverse
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue
from curvfluence.curvature.operators.operator import Against
from curvfluence.curvature.operators.solution import Solution
from curvfluence.curvature.places import LayerPart, Whole
from curvfluence.curvature.saved import SavedCurvature, blocks_of, read_curvature, write_curvature
from curvfluence.errors import InputError, SingularError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import sum_of
from curvfluence.problem.parameters import Parameters
from curvfluence.problem.parts import another
from curvfluence.problem.problem import Problem, require_problem

NO_INVERSES: Mapping[str, LowRankInverse] = MappingProxyType({})


@dataclass(frozen=True)
class Cost:
    """What fitting took and what the fitted value holds."""

    fit_seconds: float
    nbytes: int


@dataclass(frozen=True, eq=False)
class Curvature:
    """C of one rung: an immutable value.

    `matvec`, `to_dense` and `eigenvalues` speak of C, the mean curvature of the data term;
    `solve(v, damping)` applies (C + diag(w) + λI)⁻¹ with `decay` = w [P], `solve_rows` the same to
    rows, without forming them where that is cheaper. Vectors are flat, in the order of
    `parameters`. `fixed_damping` is set where the rung's definition fixes λ (Identity).
    """

    rung: str
    parameters: Parameters
    blocks: tuple[Block, ...]
    decay: Tensor
    fisher: str | None = None
    fixed_damping: Absolute | None = None
    notes: tuple[str, ...] = ()
    fitted_on: str = ""  # `Problem.fingerprint`
    parts: Mapping[str, str] = field(default_factory=dict[str, str])  # of it, to say what differs
    cost: Cost = field(default_factory=lambda: Cost(0.0, 0))

    @cached_property
    def coverage(self) -> tuple[CoverageLine, ...]:
        return tuple(
            CoverageLine(b.name, b.parameters, b.size, b.rule, b.fallback) for b in self.blocks
        )

    @cached_property
    def fallback_share(self) -> float:
        """The share of P that a fallback covers."""
        return fallback_share(self.coverage)

    @property
    def name(self) -> str:
        """The rung, and that fallbacks were used where they hold more than 5% of P."""
        return named(self.rung, self.coverage)

    @property
    def tolerance(self) -> float | None:
        """The relative residual that an inverse by iteration was asked for; None where all of it
        is direct."""
        wanted = (block.operator.tolerance for block in self.blocks)
        return max((value for value in wanted if value is not None), default=None)

    @property
    def definite(self) -> bool:
        """Whether C ⪰ 0 by its making."""
        return all(block.operator.definite for block in self.blocks)

    def matvec(self, v: Tensor) -> Tensor:
        """C v for v [..., P]."""
        self._require_length(v)
        out = torch.zeros_like(v)
        for block in self.blocks:
            block.places.put(out, block.operator @ block.places.take(v))
        return out

    def inverted(self, v: Tensor, damping: Damping) -> Tensor:
        """The matrix that `solve` inverts, times v [..., P]: (C + diag(w) + λI) v, but for what a
        rung does to eigenvalues of its own, |μ| + λ say."""
        self._require_length(v)
        out = torch.zeros_like(v)
        for block, value in zip(self.blocks, self.lambdas(damping), strict=True):
            decay = block.places.take(self.decay)
            x = block.places.take(v)
            block.places.put(out, block.operator.inverted(x, decay, value))
        return out

    def effective(self, damping: Damping) -> Damping:
        """`damping`, or the one that the rung's definition fixes."""
        return damping if self.fixed_damping is None else self.fixed_damping

    def lambdas(self, damping: Damping) -> tuple[float, ...]:
        """λ of each block."""
        require_damping(damping)
        resolved = self.effective(damping).resolve(self)
        largest = torch.finfo(self.decay.dtype).max
        for block, value in zip(self.blocks, resolved, strict=True):
            if not value < largest:
                raise InputError(
                    f"λ = {value:.3g} of block {block.name} is beyond {self.decay.dtype}: use a "
                    "smaller damping, or problem.to(torch.float64)"
                )
        if 0 in resolved:
            self._require_curvature(resolved)
        return resolved

    @property
    def mean_eigenvalues(self) -> tuple[MeanEigenvalue, ...]:
        """Of each block of C: the unit of `Relative`."""
        return self._means

    @cached_property  # by itself: to a protocol a cached property is no property
    def _means(self) -> tuple[MeanEigenvalue, ...]:
        return tuple(block.operator.mean_eigenvalue() for block in self.blocks)

    def _require_curvature(self, lambdas: Sequence[float]) -> None:
        """Refuse a block that is 0, has no weight decay and no damping."""
        for block, mean, value in zip(self.blocks, self.mean_eigenvalues, lambdas, strict=True):
            bare = value == 0 and bool((block.places.take(self.decay) == 0).any())
            if bare and not mean.count:
                raise SingularError(
                    f"{self.rung}, block {block.name}: it has no curvature (do its units reach the "
                    "output?) and no weight decay, so a relative damping is 0 there. Use an "
                    "Absolute damping"
                )

    def shift(self, damping: Damping) -> Tensor:
        """w + λ of each parameter's block, [P]: the matrix that `solve` inverts, less C."""
        shift = self.decay.clone()
        for block, value in zip(self.blocks, self.lambdas(damping), strict=True):
            block.places.put(shift, block.places.take(self.decay) + value)
        return shift

    def notes_at(self, damping: Damping) -> tuple[str, ...]:
        """What a result at this damping must say: of the fit, and of the inverse."""
        of_inverse = (
            block.operator.note(value)
            for block, value in zip(self.blocks, self.lambdas(damping), strict=True)
        )
        found = (self.effective(damping).note(self), *of_inverse)
        return (*self.notes, *(note for note in found if note is not None))

    def _require_length(self, v: Tensor) -> None:
        if not isinstance(v, Tensor) or v.ndim == 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"vectors must be a tensor [..., P]; seen {type(v).__name__}")
        if v.shape[-1] != self.parameters.count:
            raise InputError(
                f"the vectors have length {v.shape[-1]}, the model {self.parameters.count} "
                "trainable parameters"
            )
        if v.dtype != self.decay.dtype:
            raise InputError(
                f"the vectors are {v.dtype}, the curvature {self.decay.dtype}: give both one dtype"
            )

    def solve(self, v: Tensor, damping: Damping) -> Tensor:
        """(C + diag(w) + λI)⁻¹ v for v [..., P]. Errors: `SingularError` names the block."""
        return next(iter(self.solve_many(v, (damping,))))

    def solve_many(self, v: Tensor, dampings: Iterable[Damping]) -> Iterable[Tensor]:
        """`solve` at each damping in turn, sharing what the operators can share."""
        self._require_length(v)
        lambdas = [self.lambdas(damping) for damping in dampings]
        solutions = [
            iter(
                block.operator.solve_many(
                    block.places.take(v),
                    block.places.take(self.decay),
                    [row[k] for row in lambdas],
                )
            )
            for k, block in enumerate(self.blocks)
        ]
        for _ in lambdas:
            out = torch.empty_like(v)
            for block, solution in zip(self.blocks, solutions, strict=True):
                with self.naming(block):
                    block.places.put(out, next(solution))
            yield out

    def solve_rows(
        self,
        rows: Rows,
        damping: Damping,
        *,
        against: Against,
        compress: float | None = None,
        inverses: Mapping[str, LowRankInverse] = NO_INVERSES,
    ) -> Solved:
        """(C + diag(w) + λI)⁻¹ r for single-column rows r, held block by block; those of layers
        with shared positions at low rank where `compress` allows so much relative error, and by
        the low-rank `inverses` of some blocks, which stand for the block's own."""
        return self.solve_handed(
            [rows], damping, against=against, compress=compress, inverses=inverses
        )

    def solve_handed(
        self,
        handed: list[Rows],
        damping: Damping,
        *,
        against: Against,
        compress: float | None = None,
        inverses: Mapping[str, LowRankInverse] = NO_INVERSES,
    ) -> Solved:
        """`solve_rows` of rows in a list, which is emptied: where nobody else has them a layer's
        are let go of once its blocks are solved, so that rows and solutions are not held at once.
        """
        rows, parts = handed.pop(), dict[str, Solution]()
        places = (block.places for block in self.blocks)
        layers = [at.position if isinstance(at, LayerPart) else None for at in places]
        last = {layer: number for number, layer in enumerate(layers)}
        for number, (block, value) in enumerate(self.damped(damping)):
            if block.name in inverses:
                parts[block.name] = inverses[block.name].of(rows)
            else:
                decay = block.places.take(self.decay)
                with self.naming(block):
                    x = block.operator.solve_rows(block.places, rows, decay, value, against)
                parts[block.name] = x if compress is None else x.compressed(compress)
            layer = layers[number]
            if layer is not None and last[layer] == number:
                rows = rows.without(layer)
        return Solved(self, parts)

    def quadratic(self, rows: Rows, damping: Damping) -> Tensor:
        """rᵀ (C + diag(w) + λI)⁻¹ r of single-column rows, [N]."""
        total = rows.dense.new_zeros(len(rows))
        for block, value in self.damped(damping):
            decay = block.places.take(self.decay)
            with self.naming(block):
                total += block.operator.quadratic(block.places, rows, decay, value)
        return total

    def within(self, tolerance: float) -> Curvature:
        """The same curvature with inverses by iteration to another relative residual; direct ones
        stay as they are."""
        blocks = (replace(b, operator=b.operator.within(tolerance)) for b in self.blocks)
        return replace(self, blocks=tuple(blocks))

    def damped(self, damping: Damping) -> Iterator[tuple[Block, float]]:
        """Each block with its λ."""
        return zip(self.blocks, self.lambdas(damping), strict=True)

    @contextmanager
    def naming(self, block: Block) -> Generator[None]:
        """Name the block in what its operator finds singular."""
        try:
            yield
        except SingularError as error:
            raise SingularError(f"{self.rung}, block {block.name}: {error}") from None

    def to_dense(self) -> Tensor:
        """C, [P, P], in memory of its own."""
        first = self.blocks[0]
        if isinstance(first.places, Whole):
            return first.operator.to_dense().clone()  # no copy through P² indices
        dense = self.decay.new_zeros(self.parameters.count, self.parameters.count)
        for block in self.blocks:
            index = block.index
            dense[index[:, None], index] = block.operator.to_dense()
        return dense

    def eigenvalues(self) -> Tensor:
        """Eigenvalues of C, [P], ascending."""
        return torch.cat([block.operator.eigenvalues() for block in self.blocks]).sort().values

    def save(self, path: str | Path) -> None:
        """Into a new folder: an array for each factor, and `curvature.json` that says which. No
        pickle. `Curvature.load` reads it back for the problem that it was fitted on.

        Errors: `InputError` where the folder holds anything, or where the inverse is by products
        with the data (GGN and Hessian by iteration, in sample space), which no file holds.
        """
        folder = kinds.place(path, "path")
        describe = partial(
            SavedCurvature,
            rung=self.rung,
            fisher=self.fisher,
            fixed_damping=None if self.fixed_damping is None else self.fixed_damping.value,
            notes=self.notes,
            fitted_on=self.fitted_on,
            parts=dict(self.parts),
            fit_seconds=self.cost.fit_seconds,
            nbytes=self.cost.nbytes,
        )
        write_curvature(folder, self.blocks, self.decay, describe)

    @staticmethod
    def load(path: str | Path, problem: Problem, *, mapped: bool = False) -> Curvature:
        """The curvature that `save` wrote, for the problem that it was fitted on: at the same
        weights, weight decay, loss and training set. With `mapped` its arrays are memory maps: read
        as they are needed, and let go of where memory is short.

        Cost: all of its arrays are read and held to their SHA-256. Errors: `InputError` naming the
        file that is missing, damaged or of another version, and for another problem.
        """
        require_problem(problem)
        folder = kinds.place(path, "path")
        said, tensors = read_curvature(folder, problem.device, mapped=kinds.flag(mapped, "mapped"))
        other = another(said.fitted_on, said.parts, problem)
        if other is not None:
            raise InputError(f"the curvature in {folder} is of {other}: fit it on this problem")
        try:
            blocks, decay = blocks_of(
                said, tensors, problem.parameters, discover(problem), problem.dtype
            )
        except InputError as error:
            raise InputError(f"the curvature in {folder} cannot be used: {error}") from None
        return Curvature(
            rung=said.rung,
            parameters=problem.parameters,
            blocks=blocks,
            decay=decay,
            fisher=said.fisher,
            fixed_damping=None if said.fixed_damping is None else Absolute(said.fixed_damping),
            notes=said.notes,
            fitted_on=said.fitted_on,
            parts=said.parts,
            cost=Cost(said.fit_seconds, said.nbytes),
        )

    def with_cost(self, fit_seconds: float) -> Curvature:
        held = sum(block.operator.nbytes for block in self.blocks)
        return replace(self, cost=Cost(fit_seconds, held))


@dataclass(frozen=True, eq=False)
class Solved:
    """x_q = (C + diag(w) + λI)⁻¹ r_q of Q rows, by the name of the block."""

    curvature: Curvature
    parts: dict[str, Solution]

    def inner(self, *chunks: Rows) -> Tensor:
        """⟨x_q, row_nc⟩ of successive examples, [Q, n, C]; a block after the other, so that its
        solutions stay in a cache."""
        return sum_of(_joined(part, chunks) for part in self.parts.values())

    def by_block(self, *chunks: Rows) -> dict[str, Tensor]:
        """The same, each block's share by itself; they add up to `inner`."""
        return {name: _joined(part, chunks) for name, part in self.parts.items()}

    def flat(self) -> Tensor:
        """x, [Q, P]."""
        blocks = self.curvature.blocks
        if isinstance(blocks[0].places, Whole):
            return self.parts[blocks[0].name].flat()
        first = self.parts[blocks[0].name].flat()
        x_qp = first.new_empty(len(first), self.curvature.parameters.count)
        blocks[0].places.put(x_qp, first)
        for block in blocks[1:]:
            block.places.put(x_qp, self.parts[block.name].flat())
        return x_qp

    @property
    def residuals(self) -> tuple[float, ...] | None:
        """‖(C + diag(w) + λI) x − r‖/‖r‖ of each where the solve itself measured them."""
        return next(iter(self.parts.values())).residuals if len(self.parts) == 1 else None

    @property
    def compression_error(self) -> float:
        """The largest ‖x − L Rᵀ‖/‖x‖ of a query in a compressed block; 0 where there is none."""
        return max(part.error for part in self.parts.values())


def _joined(part: Solution, chunks: Sequence[Rows]) -> Tensor:
    inner = [part.inner(rows) for rows in chunks]
    return inner[0] if len(inner) == 1 else torch.cat(inner, dim=1)
