"""In which form a curvature over all parameters is held and inverted, and which one is cheapest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from curvfluence.curvature.block_ggn import DENSE_LIMIT
from curvfluence.curvature.ekfac import EKFAC
from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.problem.problem import Problem
from curvfluence.runtime import device as machine

HELD = 2**26  # numbers of queries that are solved for at a time, of which copies are held


class Form(ABC):
    """How C + diag(w) + λI is solved; every form solves the same system."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def operations(self, problem: Problem, queries: int) -> float:
        """Floating-point operations of a fit and one solve for so many vectors, roughly."""

    @abstractmethod
    def elements(self, problem: Problem, queries: int) -> float:
        """Numbers held at the peak of it."""


@dataclass(frozen=True)
class Matrix(Form):
    """A dense P × P matrix and its Cholesky factor. Exact; up to 30,000 parameters."""

    def operations(self, problem: Problem, queries: int) -> float:
        p = problem.parameters.count
        layout = discover(problem)
        columns = problem.loss.columns(problem.n_outputs)
        paired = layout.unshared and not layout.others
        rows = len(problem.train) * (1 if paired else 2 * columns)
        return rows * p**2 + p**3 / 3 + 2.0 * queries * p**2

    def elements(self, problem: Problem, queries: int) -> float:
        return 2.0 * problem.parameters.count**2


@dataclass(frozen=True)
class SampleSpace(Form):
    """The kernel of the GGN's R = N C rows and its Cholesky factor: P enters linearly only. Exact,
    refined in float64.

    `drop` leaves out the examples with the smallest rows while together they hold at most so much
    of the trace of C, (1/N) Σ ‖row‖²; the result says how many, and what that can change.
    """

    drop: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.drop < float("inf"):
            raise InputError(f"drop must be finite and >= 0; seen {self.drop}")

    def operations(self, problem: Problem, queries: int) -> float:
        layout = discover(problem)
        n, c = len(problem.train), problem.loss.columns(problem.n_outputs)
        r, p = n * c, problem.parameters.count
        widths = 0.0
        for layer in layout.layers:
            size = layer.in_features * layer.out_features
            widths += size if layer.shared else layer.out_features + layer.in_features / c**2
        widths += sum(problem.theta[name].numel() for name in layout.others)
        return r**2 * widths + r**3 / 3 + 12.0 * queries * n * p

    def elements(self, problem: Problem, queries: int) -> float:
        layout = discover(problem)
        n, c = len(problem.train), problem.loss.columns(problem.n_outputs)
        p = problem.parameters.count
        return float(n * c) ** 2 + n * layout.elements(c) + 10.0 * _held(queries, p)


@dataclass(frozen=True)
class ConjugateGradients(Form):
    """Conjugate gradients on exact products, all queries at once, no matrix. The residual of every
    query is reported; stops where all are below `tolerance` or after `max_iterations`.

    `preconditioner` is any lower rung (by default EK-FAC), or None for none.
    """

    preconditioner: Rung | None = EKFAC()  # noqa: RUF009 - a frozen value
    tolerance: float = 1e-4
    max_iterations: int = 200

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance must lie between 0 and 1; seen {self.tolerance}")
        if self.max_iterations < 1:
            raise InputError(f"max_iterations must be at least 1; seen {self.max_iterations}")

    def operations(self, problem: Problem, queries: int) -> float:
        positions = max((layer.positions for layer in discover(problem).layers), default=1)
        each = 8.0 * len(problem.train) * positions * problem.parameters.count
        return queries * each * self.max_iterations / 4

    def elements(self, problem: Problem, queries: int) -> float:
        return 8.0 * _held(queries, problem.parameters.count)


def _held(queries: int, p: int) -> float:
    """Numbers of the queries that are solved for at a time."""
    return float(max(p, min(queries * p, HELD)))


def cheapest(problem: Problem, queries: int = 0) -> Form:
    """The form with the fewest operations of those that fit half the memory of the device."""
    queries = queries or len(problem.queries)
    room = machine.memory(problem.device) / 2
    itemsize = 8 if problem.dtype.itemsize == 8 else 4
    fits: list[Form] = [
        form
        for form in (Matrix(), SampleSpace(), ConjugateGradients())
        if form.elements(problem, queries) * itemsize <= room
        and not (isinstance(form, Matrix) and problem.parameters.count > DENSE_LIMIT)
    ]
    if not fits:
        return ConjugateGradients()
    return min(fits, key=lambda form: form.operations(problem, queries))
