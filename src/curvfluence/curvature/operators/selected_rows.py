"""The GGN by its products, preconditioned by an exact inverse on its largest rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from curvfluence.curvature.dense_limit import require_dense
from curvfluence.curvature.estimate.leading_rows import LeadingRows, require_norms
from curvfluence.curvature.estimate.products import CurvatureProduct
from curvfluence.curvature.operators.block_conjugate_gradients import (
    BlockIteration,
    block_conjugate_gradients,
)
from curvfluence.curvature.operators.eigen import Eigen
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue
from curvfluence.curvature.operators.operator import Operator
from curvfluence.curvature.operators.sample_space import SampleSpaceOperator
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.jacobian.fisher import TYPE2_LIMIT, Type2
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.rows import Rows, concatenate
from curvfluence.problem.problem import Problem
from curvfluence.runtime import budget
from curvfluence.runtime.eigen_solver import eigh
from curvfluence.runtime.finite import all_finite

RESTARTS = 3  # times that what rounding left of a residual is solved for
PATIENCE, PROGRESS = 10, 0.1  # products after which every residual is to be a tenth, or less
ENOUGH = 1000  # rows that are selected at least, where fewer were not enough
CANDIDATES = 3  # rows that are looked at for one that is selected, where examples have many
FEWEST, MOST = 4, 32  # rows of such an example that are looked at


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows of Z of the largest zᵀD⁻¹z, [R] of a single column, and how much of
    tr(Z D⁻¹ Zᵀ) they hold. Of each example the rows are those in which Z_n D⁻¹ Z_nᵀ is diagonal, so
    that few of them hold most: an orthogonal change, after which Σ z zᵀ is the same."""

    rows: Rows
    trace: float
    whole_trace: float
    estimated: bool = False  # whether the whole one is, and not computed

    @property
    def share(self) -> float:
        return self.trace / self.whole_trace if self.whole_trace > 0 else 1.0

    @property
    def said(self) -> str:
        about = "about " if self.estimated else ""
        return f"{len(self.rows):,} selected rows, {about}{self.share:.0%} of the trace of Z D⁻¹ Zᵀ"


# (D, how many rows) -> the largest ones
Selecting: TypeAlias = Callable[[Tensor, int], Selection]


def select(chunks: Iterable[Rows], shift: Tensor, count: int) -> Selection:
    """The `count` largest rows of a pass. Cost: an eigendecomposition of C × C an example; up to
    twice as many rows are held, so that they are not put together anew with every chunk."""
    parts: list[Rows] = []
    sizes = torch.empty(0)
    whole = 0.0
    for chunk in chunks:
        grams = chunk.scaled_grams(shift)
        require_norms(grams, grams.dtype)
        values_nc, vectors = eigh(grams.double())
        values_nc = values_nc.clamp_min(0)
        whole += float(values_nc.sum())
        n, c = values_nc.shape
        best = values_nc.flatten().topk(min(count, n * c))
        least = float(sizes.topk(count).values[-1]) if len(sizes) >= count else 0.0
        found = best.indices[best.values > least]
        if parts and not len(found):
            continue
        index, column = found // c, found % c
        parts.append(chunk.mixed(index, vectors[index, :, column]).compacted())
        sizes = torch.cat([sizes.to(best.values), best.values[: len(found)]])
        if len(sizes) > 2 * count:
            parts, sizes = _largest(parts, sizes, count)
    parts, sizes = _largest(parts, sizes, count)
    return Selection(parts[0], float(sizes.sum()), whole)


def many(problem: Problem) -> bool:
    """Whether an example has more rows than are all looked at (a sequence has T (V − 1))."""
    return problem.loss.columns(problem.n_outputs) > TYPE2_LIMIT


def looked_at(problem: Problem, count: int) -> int:
    """How many rows of each example are looked at, where `count` are to be selected."""
    if not many(problem):
        return problem.loss.columns(problem.n_outputs)
    return min(max(-(-CANDIDATES * count // len(problem.train)), FEWEST), MOST)


def of_largest(problem: Problem, rows: Iterable[Rows] | None = None) -> Selecting:
    """How the largest rows are found: among all, `rows` where these are there already; where an
    example has many, among few that hold much of them, see `LeadingRows`."""

    def selecting(shift: Tensor, count: int) -> Selection:
        if not many(problem):
            return select(FisherPass(problem, Type2()) if rows is None else rows, shift, count)
        leading = LeadingRows(problem, shift, looked_at(problem, count))
        found = select(leading, shift, count)
        return replace(found, whole_trace=leading.trace, estimated=True)

    return selecting


def _largest(parts: list[Rows], sizes: Tensor, count: int) -> tuple[list[Rows], Tensor]:
    """Of the rows in all parts, whose `sizes` follow one another, the largest ones in one part."""
    rows = concatenate(parts)
    if len(sizes) <= count:
        return [rows], sizes
    order = sizes.topk(count).indices
    return [rows[order]], sizes[order]


@dataclass(frozen=True, eq=False)
class SelectedRowsOperator(Operator):
    """C by exact products; (C + D)⁻¹ v by block conjugate gradients over all vectors,
    preconditioned by P = Z_MᵀZ_M/N + D on the `count` largest rows, solved exactly (Woodbury).

    In a fitted model curvature lives in the unsaturated examples, and the norms of rows say which.
    While `PATIENCE` products do not bring every relative residual to `PROGRESS`, and products
    enough are left to profit, four times as many rows are selected, up to `most`. Stops on the
    residual of every vector. The rows of the last D and the factor of their kernel are kept for the
    next solve with it.
    """

    product: CurvatureProduct
    selecting: Selecting
    mean: Callable[[], MeanEigenvalue]  # of C: by a pass, where a damping asks for it
    count: int
    max_products: int
    tolerance: float = field()  # pyright: ignore[reportIncompatibleVariableOverride]
    most: int = field(default=0, kw_only=True)  # up to which four times as many are selected
    _last: list[tuple[Tensor, Selection, SampleSpaceOperator]] = field(
        default_factory=list, init=False, repr=False
    )
    _products: list[int] = field(default_factory=list, init=False, repr=False)

    @property
    def iteration(self) -> BlockIteration:
        """By which the damped matrix is inverted."""
        return block_conjugate_gradients

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.product.problem.parameters.count

    @property
    def nbytes(self) -> int:
        return sum(selection.rows.nbytes for _, selection, _ in self._last)

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.product(v.reshape(-1, self.size)).view_as(v)

    def within(self, tolerance: float) -> SelectedRowsOperator:
        other = replace(self, tolerance=tolerance)
        other._last.extend(self._last)  # the rows do not depend on it
        return other

    def selected(self, shift: Tensor) -> tuple[Selection, SampleSpaceOperator]:
        """The rows for a D, and P as an operator."""
        if not (self._last and torch.equal(self._last[0][0], shift)):
            self._select(shift, self.count)
        return self._last[0][1:]

    def _select(self, shift: Tensor, count: int) -> None:
        self._last.clear()  # before the next are made: both at once may not fit
        selection = self.selecting(shift, count)
        n = len(self.product.problem.train)
        held = SampleSpaceOperator(selection.rows, n, rank=len(selection.rows))
        self._last.append((shift, selection, held))

    def _extended(self, shift: Tensor) -> bool:
        """Select more rows; False where there are no more to select. What was iterated on fewer is
        kept as a start, but its directions are not, so steps are long."""
        now = len(self._last[0][1].rows)
        count = min(max(4 * now, ENOUGH), self.most)
        if count <= now:
            return False
        self._select(shift, count)
        return len(self._last[0][1].rows) > now

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        shift = decay + damping
        if not bool((shift > 0).all()):
            raise InputError(
                "with selected rows every parameter needs w + λ > 0: the kernel divides by it. Use "
                "a damping > 0"
            )
        _, held = self.selected(shift)
        if not held.count and self.definite:  # every row is 0, and so is C
            return v / shift
        flat = v.reshape(-1, self.size)
        if not all_finite(flat):
            raise NonFiniteError("a vector to be solved for is not finite")
        self._products.clear()
        batch = max(1, budget.SOLVED // self.size)
        out = torch.empty_like(flat)
        for to, part in zip(out.split(batch), flat.split(batch), strict=True):
            to.copy_(self._solved(part, shift))
        return out.view_as(v)

    def _preconditioned(self, r_qp: Tensor, shift: Tensor) -> Tensor:
        """P⁻¹ r, with the rows that are selected now."""
        held = self._last[0][2]
        return held.direct(r_qp, shift, held.factor(shift)) if held.count else r_qp / shift

    def _damped(self, x_qp: Tensor, shift: Tensor) -> Tensor:
        """What is inverted: (C + D) x."""
        return self.product(x_qp).addcmul_(shift, x_qp)

    def _solved(self, v_qp: Tensor, shift: Tensor) -> Tensor:
        scale = v_qp.abs().amax(1, keepdim=True)  # squares of small numbers would be 0
        scale = torch.where(scale > 0, scale, 1)
        b_qp = v_qp / scale
        size = b_qp.norm(dim=1).double()
        enough, first = self.tolerance * size, PROGRESS * size
        x, residual, products = torch.zeros_like(b_qp), b_qp, 0
        restarts, more = 0, True  # rows to be had, where residuals do not fall
        while restarts < RESTARTS and products < self.max_products:
            worth = self.max_products - products >= 3 * PATIENCE
            left = (residual.norm(dim=1) > enough).nonzero().flatten()
            if not len(left):
                break
            found = self.iteration(
                lambda x_qp: self._damped(x_qp, shift),
                residual[left],
                precondition=lambda r_qp: self._preconditioned(r_qp, shift),
                enough_q=enough[left] / 2,  # the recurrence and the residual part by rounding
                max_products=self.max_products - products,
                patience=(PATIENCE, first[left]) if more and worth else None,
            )
            x[left] += found.x
            products += found.products
            residual = b_qp - self._damped(x, shift)
            if found.slow:
                more = self._extended(shift)
            else:
                restarts += 1
        self._products.append(products)
        tiny = torch.finfo(torch.float64).tiny
        self.tell_short(residual.norm(dim=1).double() / size.clamp_min(tiny))
        return x * scale

    def note(self, damping: float) -> str | None:
        if not self._last or not self._products:
            return None
        selection = self._last[0][1]
        return f"{selection.said}; {max(self._products)} products with a block of all open queries"

    def to_dense(self) -> Tensor:
        require_dense(self.product.kind, self.size, "the model")
        eye = torch.eye(self.size).to(self.product.problem.decay)
        return torch.cat([self.product(part) for part in eye.split(256)])

    def eigenvalues(self) -> Tensor:
        raise InputError(
            f"{self.product.kind} by selected rows has no eigenvalues at hand: use a matrix, or "
            "SampleSpace() for the GGN"
        )

    def eigenbasis(self) -> Eigen:
        return Eigen.of(self.to_dense())

    def mean_eigenvalue(self) -> MeanEigenvalue:
        return self.mean()
