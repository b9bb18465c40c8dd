"""In which form a curvature over all parameters is held and inverted, and which one is cheapest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from curvfluence import kinds
from curvfluence.curvature.damping import Absolute
from curvfluence.curvature.dense_limit import DENSE_LIMIT, require_dense, too_large
from curvfluence.curvature.diagonal import Diagonal
from curvfluence.curvature.ekfac import EKFAC
from curvfluence.curvature.estimate.accumulate import accumulate
from curvfluence.curvature.estimate.ggn import by_pairs, ggn_matrix
from curvfluence.curvature.estimate.products import CurvatureProduct, Kind
from curvfluence.curvature.operators.block_conjugate_gradients import most_directions
from curvfluence.curvature.operators.dense import Dense
from curvfluence.curvature.operators.iterative import IterativeOperator
from curvfluence.curvature.operators.kernel_iteration import LARGEST
from curvfluence.curvature.operators.mean_eigenvalue import (
    MeanEigenvalue,
    of_definite,
    of_parts,
)
from curvfluence.curvature.operators.operator import Operator
from curvfluence.curvature.operators.sample_space import SampleSpaceOperator, without_small
from curvfluence.curvature.operators.selected_rows import (
    SelectedRowsOperator,
    Selecting,
    looked_at,
    many,
    of_largest,
)
from curvfluence.curvature.operators.selected_rows_hessian import SelectedRowsHessian
from curvfluence.curvature.rung import Rung, fit
from curvfluence.curvature.workload import Workload, row_operations
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher import TYPE2_LIMIT, Type2
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.rows import concatenate
from curvfluence.problem.problem import Problem
from curvfluence.runtime import budget
from curvfluence.runtime import device as machine
from curvfluence.runtime.stage import Stage

ITERATIONS = 12  # products with a kernel that a solve takes, about

__all__ = ["ConjugateGradients", "Form", "Matrix", "SampleSpace", "SelectedRows"]


class Form(ABC):
    """How C + diag(w) + λI is solved; every form solves the same system."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def operator(self, problem: Problem) -> tuple[Operator, str]:
        """(the GGN in this form, by which path)."""

    @abstractmethod
    def rule(self, problem: Problem) -> str:
        """By which path, as far as that is known before any work."""

    @abstractmethod
    def operations(self, problem: Problem, queries: int) -> float:
        """Floating-point operations of a fit and one solve for so many vectors, roughly."""

    @abstractmethod
    def elements(self, problem: Problem, queries: int) -> float:
        """Numbers held at the peak of it."""

    @abstractmethod
    def stages(self, work: Workload) -> list[Stage]:
        """The stages of a fit and a solve."""

    def refusal(self, problem: Problem) -> str | None:
        """Why it cannot be had, whatever the memory; None where it can."""
        return None


@dataclass(frozen=True)
class Matrix(Form):
    """A dense P × P matrix and its Cholesky factor. Exact; up to 30,000 parameters."""

    def operator(self, problem: Problem) -> tuple[Operator, str]:
        require_dense("GGN", problem.parameters.count, "the model")
        matrix, rule = ggn_matrix(problem)
        return Dense(matrix, Type2().rank(problem)), rule

    def rule(self, problem: Problem) -> str:
        paired = by_pairs(discover(problem))
        return f"exact, from {'pairs of layers' if paired else 'per-example Jacobians'}"

    def refusal(self, problem: Problem) -> str | None:
        count = problem.parameters.count
        if not too_large(count):
            return None
        return f"{count:,} parameters are more than the {DENSE_LIMIT:,} of a dense matrix"

    def operations(self, problem: Problem, queries: int) -> float:
        p = problem.parameters.count
        return matrix_operations(problem) + p**3 / 3 + 2.0 * queries * p**2

    def elements(self, problem: Problem, queries: int) -> float:
        return 2.0 * problem.parameters.count**2

    def stages(self, work: Workload) -> list[Stage]:
        p, q = float(work.problem.parameters.count), work.queries
        return [
            work.passed("pass over the data", _columns(work.problem)),
            work.products("matrix", matrix_operations(work.problem), 4 * p**2, fresh=6 * p**2),
            work.cholesky("Cholesky factor", p**3 / 3, 2 * q * p**2, p**2),
        ]


@dataclass(frozen=True)
class SampleSpace(Form):
    """The kernel of the GGN's R = N C rows and its Cholesky factor: P enters linearly only. Exact,
    refined in float64. With `iterate` the kernel is not factored but iterated with, about ten
    products of 2 R² operations a query instead of R³/3 once: for queries far fewer than rows, and
    for a `tolerance` of 1e-5 or more, which needs no float64 (see `influence`).

    `drop` leaves out the examples with the smallest rows while together they hold at most so much
    of the trace of C, (1/N) Σ ‖row‖²; the result says how many, and what that can change. Either
    way it goes on until the residual of every query is below `tolerance`, or no longer falls.
    """

    drop: float = 0.0
    iterate: bool = False
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        _require_tolerance(self.tolerance)
        kinds.number(self.drop, "drop")
        kinds.flag(self.iterate, "iterate")

    def operator(self, problem: Problem) -> tuple[Operator, str]:
        n = len(problem.train)
        every = concatenate(list(FisherPass(problem, Type2())))
        rows, gone, trace = without_small(every, n, self.drop)
        if gone == n and trace > 0:
            raise InputError(
                f"drop={self.drop:g} leaves out every example: the trace of the GGN is "
                f"{trace:.3g}, of which drop should be a small part"
            )
        operator = SampleSpaceOperator(
            rows,
            n,
            gone,
            trace,
            rank=Type2().rank(problem),
            tolerance=self.tolerance,
            iterate=self.iterate,
        )
        return operator, self._rule(operator.count)

    def _rule(self, count: int) -> str:
        by = ", by iteration" if self.iterate else ""
        return f"exact, in the space of {count:,} samples{by}"

    def refusal(self, problem: Problem) -> str | None:
        if problem.varied and problem.loss.positions is not None:
            return "examples of several lengths have no one number of rows: use another form"
        return None

    def rule(self, problem: Problem) -> str:
        return self._rule(len(problem.train) * _columns(problem))

    def operations(self, problem: Problem, queries: int) -> float:
        layout = discover(problem)
        n, c = len(problem.train), _columns(problem)
        r, p = n * c, problem.parameters.count
        widths = 0.0
        for layer in layout.layers:
            size = layer.in_features * layer.out_features
            widths += size if layer.shared else layer.out_features + layer.in_features / c**2
        widths += sum(problem.theta[name].numel() for name in layout.others)
        solves = 2.0 * ITERATIONS * queries * r**2 + 4.0 * r * LARGEST**2
        return r**2 * widths + (solves if self.iterate else r**3 / 3) + 12.0 * queries * n * p

    def elements(self, problem: Problem, queries: int) -> float:
        n, c = len(problem.train), _columns(problem)
        rows = n * discover(problem).elements(c)
        beside = float(n * c) * LARGEST if self.iterate else 0.0
        return float(n * c) ** 2 + beside + rows + 10.0 * _solved(queries, problem)

    def stages(self, work: Workload) -> list[Stage]:
        operations = self.operations(work.problem, work.queries)
        elements = self.elements(work.problem, work.queries)
        solved = "iteration" if self.iterate else "factor and refinement"
        return [
            work.passed("pass over the data", _columns(work.problem)),
            work.products(f"kernel, {solved}", operations, elements),
        ]


@dataclass(frozen=True)
class ConjugateGradients(Form):
    """Block conjugate gradients on exact products, all queries at once, no matrix. The residual of
    every query is reported; stops where all are below `tolerance` or after `max_iterations`.

    `preconditioner` is any lower rung (by default EK-FAC), or None for none. Directions are held,
    to stay conjugate (`block_conjugate_gradients`).
    """

    preconditioner: Rung | None = EKFAC()  # noqa: RUF009 - a frozen value
    tolerance: float = 1e-4
    max_iterations: int = 200

    def __post_init__(self) -> None:
        _require_tolerance(self.tolerance)
        kinds.count(self.max_iterations, "max_iterations")
        if self.preconditioner is not None and not isinstance(self.preconditioner, Rung):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"preconditioner must be a rung such as EKFAC(), or None; seen "
                f"{self.preconditioner!r}"
            )

    def operator(self, problem: Problem, kind: Kind = "GGN") -> tuple[Operator, str]:
        """(the GGN or the Hessian by its products, by which path). Its trace, the unit of a
        relative damping, is the GGN's by `Diagonal` (a sampled one where the loss has many
        columns)."""
        rung = self.preconditioner
        lower = None if rung is None else fit(problem, rung)
        operator = IterativeOperator(
            CurvatureProduct(problem, kind),
            None if lower is None else lambda r_qp, damping: lower.solve(r_qp, Absolute(damping)),
            _mean_by_diagonal(problem, Type2().rank(problem) if kind == "GGN" else None),
            self.max_iterations,
            0 if lower is None else lower.cost.nbytes,
            self.tolerance,
        )
        return operator, self._rule("none" if lower is None else lower.name)

    def _rule(self, by: str) -> str:
        return f"exact products, conjugate gradients (by {by})"

    def rule(self, problem: Problem) -> str:
        return self._rule("none" if self.preconditioner is None else self.preconditioner.name)

    def operations(self, problem: Problem, queries: int) -> float:
        positions = max((layer.positions for layer in discover(problem).layers), default=1)
        each = 8.0 * len(problem.train) * positions * problem.parameters.count
        return queries * each * self.max_iterations / 4

    def elements(self, problem: Problem, queries: int) -> float:
        solved = _solved(queries, problem)
        return 8.0 * solved + _directions(problem, self.max_iterations * solved)

    def stages(self, work: Workload) -> list[Stage]:
        """As many iterations as allowed: how many are needed is known only when they are done."""
        problem, rung = work.problem, self.preconditioner
        columns = min(_columns(problem), TYPE2_LIMIT)
        each = 2 * work.queries * row_operations(problem, work.layout, columns)
        return [
            *([] if rung is None else rung.stages(work)),
            work.products(
                f"up to {self.max_iterations} iterations",
                each * self.max_iterations,
                self.elements(problem, work.queries),
            ),
        ]


@dataclass(frozen=True)
class SelectedRows(Form):
    """Block conjugate gradients on exact products, preconditioned by an exact inverse on the
    `count` rows of Z of the largest zᵀD⁻¹z, D = diag(w) + λ; no matrix. By default 1,000 rows,
    four times as many, up to `most` as memory allows, while ten products leave a residual above a
    tenth.

    In a fitted model few examples hold most of the GGN, and the norms of rows say which: where they
    do, a few products are enough for a residual of 1e-3; where curvature is spread over all rows (a
    model hardly trained, a language model) they spare some of many products. Stops where the
    residual of every query is below `tolerance`, or after `max_products`; the result says how many
    there were, and which residuals are left. Needs w + λ > 0. Of an example with more than 64
    columns (a sequence has T (V − 1)) 4 to 32 rows that hold much of its own are looked at
    (`LeadingRows`). Memory: R rows, R² and 6 Q P numbers.
    """

    count: int = 1000
    tolerance: float = 1e-4
    max_products: int = 100
    most: int = 8000

    def __post_init__(self) -> None:
        _require_tolerance(self.tolerance)
        kinds.count(self.count, "count")
        kinds.count(self.most, "most")
        kinds.count(self.max_products, "max_products")

    def hessian(self, problem: Problem, *, turned: bool) -> tuple[Operator, str]:
        """(the Hessian by its products, by which path): H + diag(w) + λ as it is, by MINRES, or
        with `turned` |H + diag(w)| + λ, see `SelectedRowsHessian`."""
        operator = SelectedRowsHessian(
            CurvatureProduct(problem, "Hessian"),
            *_largest_rows(problem, None),  # a relative damping is in units of the GGN's trace
            self.count,
            self.max_products,
            self.tolerance,
            most=min(self.most, _most_rows(problem)),
            exact=CurvatureProduct(problem.to(torch.float64), "Hessian") if turned else None,
            turned=turned,
        )
        return operator, self.hessian_rule(turned=turned)

    def hessian_rule(self, *, turned: bool) -> str:
        by = "block conjugate gradients, negative eigenpairs turned over" if turned else "MINRES"
        return f"exact products, {by} (by the GGN's largest rows)"

    def operator(self, problem: Problem) -> tuple[Operator, str]:
        product = CurvatureProduct(problem)
        operator = SelectedRowsOperator(
            product,
            *_largest_rows(problem, Type2().rank(problem), product.rows),
            self.count,
            self.max_products,
            self.tolerance,
            most=min(self.most, _most_rows(problem)),
        )
        return operator, self.rule(problem)

    def rule(self, problem: Problem) -> str:
        return "exact products, block conjugate gradients (by the largest rows)"

    def operations(self, problem: Problem, queries: int) -> float:
        """With about ten products."""
        p, n = problem.parameters.count, len(problem.train)
        r = min(self.count, n * looked_at(problem, self.count))
        each = 4.0 * n * p * max(1, _positions(problem)) + 4.0 * r * p
        return queries * 10 * each + r**3 / 3

    def elements(self, problem: Problem, queries: int) -> float:
        r = min(self.count, len(problem.train) * looked_at(problem, self.count))
        solved = _solved(queries, problem)
        held = float(r) ** 2 + r * _row(problem) + 8.0 * solved
        return held + _directions(problem, 10 * solved)  # of ten products

    def stages(self, work: Workload) -> list[Stage]:
        problem = work.problem
        return [
            self.passed(work),
            work.products(
                "about 10 products",
                self.operations(problem, work.queries),
                self.elements(problem, work.queries) + work.cached(Type2()),
            ),
        ]

    def passed(self, work: Workload) -> Stage:
        """The pass that makes the rows of which the largest are selected."""
        columns = looked_at(work.problem, self.count) * (3 if many(work.problem) else 1)
        return work.passed("pass over the data", columns)


def _largest_rows(
    problem: Problem, rank: int | None, rows: FisherPass | None = None
) -> tuple[Selecting, Callable[[], MeanEigenvalue]]:
    """How the largest rows of Z are found, among `rows` where these are there; and the mean
    eigenvalue of the GGN, by a pass."""
    if many(problem):
        return of_largest(problem), partial(_mean_by_diagonal, problem, rank)
    found = FisherPass(problem, Type2(), again=True) if rows is None else rows
    return of_largest(problem, found), partial(_mean_by_rows, found, len(problem.train), rank)


def _mean_by_rows(rows: FisherPass, n: int, rank: int | None) -> MeanEigenvalue:
    sums = accumulate(rows, lambda some, sums: sums.add_("squares", some.squares()))
    return of_definite(sums.pop("squares").div_(n), rank)


def _mean_by_diagonal(problem: Problem, rank: int | None) -> MeanEigenvalue:
    diagonal = fit(problem, Diagonal())
    return of_parts([block.operator.mean_eigenvalue() for block in diagonal.blocks], rank)


def _directions(problem: Problem, made: float) -> float:
    """Numbers that are held of so many numbers of directions, and of products with them."""
    return min(2.0 * made, most_directions(problem.device, problem.dtype))


def _require_tolerance(tolerance: float) -> None:
    if not 0 < kinds.number(tolerance, "tolerance") < 1:
        raise InputError(f"tolerance must lie between 0 and 1; seen {tolerance}")


def _most_rows(problem: Problem) -> int:
    """Half of all rows, or as many as take a quarter of the memory in R² numbers and R rows."""
    room = machine.memory(problem.device) / 4 / problem.dtype.itemsize
    row = _row(problem)
    by_memory = int((row * row / 4 + room) ** 0.5 - row / 2)
    every = len(problem.train) * _columns(problem)
    return min(by_memory, every // 2)


def _row(problem: Problem) -> int:
    """Numbers of a selected row: a and s, or the matrix of a layer where that is fewer."""
    layout = discover(problem)
    others = sum(problem.theta[name].numel() for name in layout.others)
    return others + sum(min(layer.factored(1), layer.width) for layer in layout.layers)


def _positions(problem: Problem) -> int:
    return max((layer.positions for layer in discover(problem).layers), default=1)


def _columns(problem: Problem) -> int:
    return problem.loss.columns(problem.n_outputs)


def matrix_operations(problem: Problem) -> float:
    """Of the GGN as a matrix: by pairs of layers, or the Gram of the rows."""
    paired = by_pairs(discover(problem))
    rows = len(problem.train) * (1 if paired else 2 * _columns(problem))
    return rows * float(problem.parameters.count) ** 2


def _solved(queries: int, problem: Problem) -> float:
    """Numbers of the queries that are solved for at a time."""
    p = problem.parameters.count
    return float(max(p, min(queries * p, budget.QUERIES)))


def cheapest(problem: Problem, queries: int = 0) -> Form:
    """The form with the fewest operations of those that fit half the memory of the device."""
    queries = queries or len(problem.queries)
    room = machine.memory(problem.device) / 2
    # of a sequence, say: a sketch of its rows costs as much as many products with a few queries
    selected = () if many(problem) else (SelectedRows(),)
    fits: list[Form] = [
        form
        for form in (
            Matrix(),
            SampleSpace(),
            SampleSpace(iterate=True),
            *selected,
            ConjugateGradients(),
        )
        if form.elements(problem, queries) * problem.dtype.itemsize <= room
        and form.refusal(problem) is None
    ]
    if SelectedRows() in fits:  # 2 to 8 products where EK-FAC before the iteration takes 100
        fits.remove(ConjugateGradients())
    if not fits:
        return ConjugateGradients()
    return min(fits, key=lambda form: form.operations(problem, queries))
