"""A bound on the error of every score, which holds whatever made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Damping
from curvfluence.curvature.estimate.leading_rows import DEPENDENT
from curvfluence.curvature.estimate.products import CurvatureProduct
from curvfluence.curvature.operators.sample_space import SampleSpaceOperator
from curvfluence.curvature.operators.selected_rows import looked_at, of_largest
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import gradient_rows, query_gradients
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.parts import another
from curvfluence.problem.problem import Problem
from curvfluence.runtime import budget, journal, precision

SUMMED = 64.0  # ε of float64 that a sum of P products may lose of ‖g_n‖‖x_q‖


@dataclass(frozen=True, eq=False)
class ErrorBounds:
    """|I[q, n] − I*[q, n]| ≤ `values[q, n]`, where I* is influence under the exact GGN at the same
    damping. `rows` were selected and hold `share` of tr(Z D⁻¹ Zᵀ), which where examples have more
    than 64 rows is `estimated`: more of them bound tighter."""

    rung: str
    values: Tensor
    unit: str
    rows: int
    share: float
    estimated: bool = False

    def of(self, queries: list[int]) -> ErrorBounds:
        """Of some queries."""
        return replace(self, values=self.values[queries])

    @property
    def worst(self) -> Tensor:
        """The largest of each query, [Q]."""
        return self.values.amax(1)

    def signs(self, values_qn: Tensor) -> Tensor:
        """Which of the scores have their sign proven, [Q, N]: those larger than their bound."""
        return values_qn.double().abs() > self.values.to(values_qn.device)

    @property
    def said(self) -> str:
        """What they say, without of which rung."""
        middle, most = float(self.values.median()), float(self.values.max())
        about = "about " if self.estimated else ""
        return (
            f"no score is off by more than {most:.2g} {self.unit}, half by no more than "
            f"{middle:.2g} ({self.rows:,} rows, {about}{self.share:.0%} of the trace)"
        )

    def __str__(self) -> str:
        return f"{self.rung} against the exact GGN: {self.said}"


@precision.full()
def error_bounds(
    problem: Problem,
    curvature: Curvature,
    damping: Damping,
    values_qn: Tensor,
    rows: int = 1000,
) -> ErrorBounds:
    """|ΔI[q, n]| ≤ |I[q, n] − g_nᵀx_q/N| + (1/N) √(g_nᵀP⁻¹g_n) √(r_qᵀP⁻¹r_q) of the scores
    `values_qn`, r_q = g_q − A x_q, P = Z_MᵀZ_M/N + D on the `rows` largest rows of Z.

    A = GGN + D with D = diag(w) + λ as the scores' own inverse has it, x_q its solution. Any part
    of the sum of z zᵀ leaves P ⪯ A, so A⁻¹ ⪯ P⁻¹, and Cauchy-Schwarz in that metric is the bound:
    it holds for whatever x_q, EK-FAC's as well. It asks for one or two decades more than the error.

    All of it is in float64: gradients, the product, the rows and the kernel, and the scores again
    from x_q: the first term is what rounding, compression and inverses at low rank did to those
    that are judged. Added is 64 ε ‖g_n‖‖x_q‖/N for the rounding of float64 itself. Cost: a solve,
    two passes, one product and the scores in float64, R²(R/3 + N). Memory: R² + N R + 4 Q P +
    2 Q N numbers in float64. Where an example has more than 64 rows, few that hold
    much of them are looked at (`LeadingRows`), and P holds less. Errors: `InputError` for a rung
    without an inverse, w + λ = 0.
    """
    kinds.count(rows, "rows")
    if curvature.fixed_damping is not None:
        raise InputError(f"{curvature.rung} approximates no curvature: it has no error to bound")
    other = another(curvature.fitted_on, curvature.parts, problem)
    if other is not None:
        raise InputError(
            f"the problem was changed since the scores were made: they are of {other}, and bounds "
            "would be of another system. Score again"
        )
    exact = problem.exact.to(torch.float64)
    shift = curvature.shift(damping).double()
    if not bool((shift > 0).all()):
        raise InputError("bounds need w + λ > 0 everywhere: use a damping > 0")
    n = len(problem.train)
    with journal.scope(lambda: f"bounds {damping} {rows} {curvature.coverage}"):
        x_qp, residual = _residual(problem, exact, curvature, damping, shift)
        selection = of_largest(exact)(shift, rows)
        metric = _Metric(selection.rows, n, shift)
        of_query = metric.of_vectors(residual)
        sizes = list(_of_examples(exact, metric, x_qp))
    of_example, norms_n, again_qn = (torch.cat(part, -1) for part in zip(*sizes, strict=True))
    # The rows are those of A to rounding: P − (their error) ⪯ A.
    eps, columns = torch.finfo(torch.float64).eps, looked_at(exact, rows)
    off = 8 * eps * columns * selection.trace / n
    if selection.estimated:  # of V orthonormal to ε / DEPENDENT: P − (their error) ⪯ (1 + δ) A
        off += 8 * columns * eps / DEPENDENT
    bound = (of_query.sqrt()[:, None] * of_example.sqrt()) * (
        torch.inf if off >= 1 else (1 - off) ** -0.5
    )
    rounding = SUMMED * eps * x_qp.norm(dim=1)[:, None] * norms_n
    gone_qn = (values_qn.double().to(again_qn) - again_qn / n).abs()
    values = ((bound + rounding) / n + gone_qn).cpu()
    return ErrorBounds(
        curvature.name,
        values,
        problem.measurement.unit,
        len(selection.rows),
        selection.share,
        selection.estimated,
    )


def _residual(
    problem: Problem, exact: Problem, curvature: Curvature, damping: Damping, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """(x_q, r_q = g_q − A x_q) in float64, [Q, P]."""
    x_qp = curvature.solve(query_gradients(problem, discover(problem)).to_dense()[:, 0], damping)
    x_qp = x_qp.double()
    g_qp = query_gradients(exact, discover(exact)).to_dense()[:, 0]
    product = CurvatureProduct(exact, "GGN")
    step = max(1, budget.RIGHT_HAND_SIDES // x_qp.shape[1])
    parts = [
        g - product(x).addcmul_(shift, x)
        for g, x in zip(g_qp.split(step), x_qp.split(step), strict=True)
    ]
    return x_qp, torch.cat(parts)


class _Metric:
    """v -> vᵀP⁻¹v = vᵀD⁻¹v − uᵀ(N I + K)⁻¹u with u = Z_M D⁻¹ v and K = Z_M D⁻¹ Z_Mᵀ, in float64."""

    def __init__(self, rows: Rows, n: int, shift: Tensor) -> None:
        self._rows, self._shift = rows, shift
        held = SampleSpaceOperator(rows, n, rank=len(rows))
        self._factor = held.factor(shift) if held.count else None

    def of_vectors(self, v_qp: Tensor) -> Tensor:
        """[Q]."""
        scaled = v_qp / self._shift
        return self._of((v_qp * scaled).sum(1), self._rows.inner(scaled)[:, :, 0])

    def of_rows(self, rows: Rows) -> Tensor:
        """[N] of single-column rows, which are not formed where no position is shared."""
        whole = rows.scaled_grams(self._shift)[:, 0, 0]
        return self._of(whole, self._rows.scaled_products(rows, self._shift)[:, :, 0].T)

    def _of(self, whole: Tensor, u_qr: Tensor) -> Tensor:
        if self._factor is None:  # every row is 0
            return whole
        within = (self._factor.solve(u_qr) * u_qr).sum(1)
        rounding = 1e2 * torch.finfo(torch.float64).eps * whole  # of a difference of the two
        return (whole - within).clamp_min(0) + rounding


def _of_examples(
    exact: Problem, metric: _Metric, x_qp: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(g_nᵀP⁻¹g_n, ‖g_n‖, g_nᵀx_q [Q, n]) of successive examples."""
    for _, rows in gradient_rows(exact, discover(exact)):
        norms = rows.squared_norms()[:, 0].sqrt()
        yield metric.of_rows(rows), norms, rows.inner(x_qp)[:, :, 0]
