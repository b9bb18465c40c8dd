"""How well an inverse solves the exact system: the residual of every query, by one product."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Damping
from curvfluence.curvature.estimate.products import CurvatureProduct
from curvfluence.curvature.operators.operator import Against
from curvfluence.errors import CurvfluenceWarning, InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.parts import another
from curvfluence.problem.problem import Problem
from curvfluence.runtime import budget, journal, precision
from curvfluence.score.bounds import ErrorBounds, error_bounds


@dataclass(frozen=True)
class Certificate:
    """`residuals[q]` = ‖(A + diag(w) + λI) x_q − g_q‖/‖g_q‖ with A the exact `against`, x_q the
    rung's own solution. 0 is exact; 1 is no better than x = 0. A query without
    a gradient has 0 with x = 0. `matrix` names what the solve inverted: A + W + λI, or A + λI where
    no weight decay is in it. `bounds`, where they were asked for, has a proven bound on the error
    of every score, see `ErrorBounds`."""

    rung: str
    against: str
    residuals: tuple[float, ...]
    dtype: str
    matrix: str = "A + W + λI"
    bounds: ErrorBounds | None = None

    @property
    def worst(self) -> float:
        return max(self.residuals)

    def __str__(self) -> str:
        ordered = sorted(self.residuals)
        middle = ordered[len(ordered) // 2]
        proven = "" if self.bounds is None else f"; {self.bounds.said}"
        return (
            f"{self.rung} against the exact {self.against} ({self.dtype} product, "
            f"{self.matrix.replace('A', self.against)}): relative residual of {len(ordered)} "
            f"queries, median {middle:.2g}, largest {ordered[-1]:.2g}{proven}"
        )


@precision.full()
def certify(
    problem: Problem,
    curvature: Curvature,
    damping: Damping,
    against: str = "GGN",
    dtype: torch.dtype | None = None,
    compress: float | None = None,
) -> Certificate:
    """The certificate of a rung's inverse at one damping; with `compress` of its solutions at low
    rank, as `influence` takes it: within that error of the same x, though where many queries come
    in other batches not the same numbers, since queries of a batch share their rank.

    `dtype` is that of the product and of g, by default the problem's, without its autocast;
    torch.float64 makes it independent of the rounding of the solution's own arithmetic. Rounding of
    the training examples' own gradients, of which scores are made too, is not in it. Each block
    keeps the λ that it was solved with.
    Cost: a solve for Q vectors and one product with A, see `CurvatureProduct`.
    """
    kinds.text(against, "against")
    if against not in ("GGN", "Hessian"):
        raise InputError(f"a certificate is against 'GGN' or 'Hessian'; seen {against!r}")
    if curvature.fixed_damping is not None:
        raise InputError(f"{curvature.rung} approximates no curvature: there is nothing to certify")
    other = another(curvature.fitted_on, curvature.parts, problem)
    if other is not None:
        raise InputError(
            f"the problem was changed since the scores were made: they are of {other}, and a "
            "certificate would be of another system. Score again"
        )
    queries = query_gradients(problem, discover(problem))
    exact = problem.exact if dtype is None else problem.to(dtype)
    wanted = queries if exact is problem else query_gradients(exact, discover(exact))
    product = CurvatureProduct(exact, against)
    shift = curvature.shift(damping).to(exact.dtype)
    residuals: list[float] = []
    count = curvature.parameters.count
    with journal.scope(lambda: f"certificate {damping} {against} {dtype} {curvature.coverage}"):
        for given, part in zip(_batches(queries, count), _batches(wanted, count), strict=True):
            if compress is None:
                x_qp = curvature.solve(given.to_dense()[:, 0], damping)
            else:
                against_all = Against(len(problem.train))
                solved = curvature.solve_rows(
                    given, damping, against=against_all, compress=compress
                )
                x_qp = solved.flat()
            x_qp = x_qp.to(exact.dtype)
            residuals += _relative(product(x_qp) + shift * x_qp, part.to_dense()[:, 0])
    name = str(exact.dtype).removeprefix("torch.")
    matrix = "A + W + λI" if bool(curvature.decay.any()) else "A + λI"
    return Certificate(curvature.name, against, tuple(residuals), name, matrix)


class Certifier:
    """Makes the certificate of a set of scores when it is asked for."""

    def __init__(
        self, problem: Problem, curvature: Curvature, damping: Damping, compress: float | None
    ) -> None:
        self._problem, self._curvature, self._damping = problem, curvature, damping
        self._compress = compress

    def bounds(self, values_qn: Tensor, rows: int) -> ErrorBounds:
        """Bounds on the errors of these scores."""
        return error_bounds(self._problem, self._curvature, self._damping, values_qn, rows)

    def __call__(self, against: str, dtype: torch.dtype | None) -> Certificate:
        return certify(
            self._problem, self._curvature, self._damping, against, dtype, self._compress
        )


def own_residuals(
    curvature: Curvature, x_qp: Tensor, g_qp: Tensor, damping: Damping
) -> tuple[float, ...]:
    """‖(C + diag(w) + λI) x − g‖/‖g‖ of every query with C the curvature itself, as its solve
    inverts it."""
    step = max(1, budget.RIGHT_HAND_SIDES // x_qp.shape[1])
    return tuple(
        value
        for x, g in zip(x_qp.split(step), g_qp.split(step), strict=True)
        for value in _relative(curvature.inverted(x, damping), g)
    )


def said_of_residuals(residuals: tuple[float, ...], wanted: float) -> str:
    """What a result says of an inverse by iteration; warns where it stopped short."""
    worst = max(residuals)
    text = (
        f"solved by iteration: the largest relative residual ‖(C + diag(w) + λI)x − g‖/‖g‖ of a "
        f"query is {worst:.2g}, wanted {wanted:g}"
    )
    if worst > 2 * wanted:
        warnings.warn(text, CurvfluenceWarning, stacklevel=5)  # past the decorator
    return text


def _batches(queries: Rows, count: int) -> list[Rows]:
    step = max(1, budget.RIGHT_HAND_SIDES // count)
    return [queries[start : start + step] for start in range(0, len(queries), step)]


def _relative(product_qp: Tensor, wanted_qp: Tensor) -> list[float]:
    size = wanted_qp.double().norm(dim=1)  # small gradients have squares that float32 has not
    gap = (product_qp - wanted_qp).double().norm(dim=1)
    exact = torch.where(gap > 0, torch.inf, 0.0)  # where g is 0, so x must be
    return torch.where(size > 0, gap / size, exact).tolist()
