"""The exact Hessian of the data term."""

from __future__ import annotations

from dataclasses import dataclass

from curvfluence.curvature.coverage import CoverageLine, over_everything
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.dense_limit import require_dense, too_large
from curvfluence.curvature.estimate.ggn import by_pairs
from curvfluence.curvature.estimate.hessian import hessian_matrix, path
from curvfluence.curvature.inversion import (
    ConjugateGradients,
    Matrix,
    SelectedRows,
    matrix_operations,
)
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.operator import Operator
from curvfluence.curvature.operators.symmetric import (
    Abs,
    Clip,
    Plain,
    Symmetric,
    Treatment,
    Truncate,
)
from curvfluence.curvature.places import Whole
from curvfluence.curvature.rung import Rung
from curvfluence.curvature.workload import Workload
from curvfluence.errors import InputError
from curvfluence.problem.problem import Problem
from curvfluence.runtime.stage import Stage

ITERATED, EIGEN = 30, 4000  # products that a forecast counts
HELD = 17 * 64  # vectors in float64 that the search for 64 pairs holds

__all__ = ["Abs", "Clip", "Hessian", "Plain", "Treatment", "Truncate"]


@dataclass(frozen=True)
class Hessian(Rung):
    """(1/N) Σ_n ∇²ℓ_n, inverted through the eigenvalues of H + diag(w) as `treatment` says.

    H = GGN + (1/N) Σ_n Σ_k (∂ℓ_n/∂f_k) ∇²f_k: the second part is the Hessian of δᵀf with δ = ∂ℓ/∂f
    held fixed, so a saturated loss loses nothing to cancellation. Chains of Linear layers take
    GEMMs; any other model takes vmapped Hessian-vector products, P of them. A `CustomLoss` that is
    not convex in f keeps its negative curvature here.
    With a form no matrix is formed. `SelectedRows()` takes `Plain()` by MINRES, whatever the signs,
    and `Abs()` by turning over every negative eigenpair that an eigensolver finds, up to 256;
    `ConjugateGradients()` takes `Plain()`, and raises `SingularError` where H + diag(w) + λI is not
    positive definite.
    Cost: 2 N P² and an eigendecomposition, about 10 P³; memory 4 P² numbers.
    """

    treatment: Treatment = Abs()  # noqa: RUF009 - a frozen value
    form: ConjugateGradients | SelectedRows | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.treatment, Treatment):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"treatment must be Abs(), Plain(), Clip() or Truncate(τ); seen {self.treatment!r}"
            )
        if isinstance(self.form, SelectedRows):
            if not isinstance(self.treatment, Abs | Plain):
                raise InputError(
                    f"selected rows take abs and plain, not {self.treatment.name}: the eigenvalues "
                    "are not at hand. Use Hessian(form=SelectedRows())"
                )
        elif self.form is not None and not isinstance(self.treatment, Plain):
            raise InputError(
                f"conjugate gradients know no eigenvalues to treat by {self.treatment.name}: use "
                "Hessian(form=SelectedRows()), or Hessian(Plain(), form=ConjugateGradients())"
            )

    @property
    def name(self) -> str:
        return f"Hessian({self.treatment.name})"

    def build(self, problem: Problem) -> Curvature:
        problem = problem.exact  # second derivatives of a rounded function are none
        operator, rule, notes = self._operator(problem)
        return Curvature(
            rung=self.name,
            parameters=problem.parameters,
            blocks=(
                Block("all", problem.parameters.names, Whole(problem.parameters), operator, rule),
            ),
            decay=problem.decay,
            notes=notes,
        )

    def _operator(self, problem: Problem) -> tuple[Operator, str, tuple[str, ...]]:
        if isinstance(self.form, SelectedRows):
            return *self.form.hessian(problem, turned=self._turned), ()
        if self.form is not None:
            return *self.form.operator(problem, "Hessian"), ()
        require_dense(self.name, problem.parameters.count, "the model")
        matrix, rule = hessian_matrix(problem)
        operator = Symmetric.of(matrix, problem.decay, self.treatment)
        return operator, rule, self._of_negative(operator)

    def _of_negative(self, operator: Symmetric) -> tuple[str, ...]:
        negative = int((operator.values < 0).sum())
        if not negative:
            return ()
        return (
            f"{negative} of {operator.size} eigenvalues of H + diag(w) are negative, the lowest "
            f"{float(operator.values[0]):.3g}: {self.treatment.name}",
        )

    def coverage(self, problem: Problem) -> tuple[CoverageLine, ...]:
        if self.form is None:
            rule = path(problem)
        elif isinstance(self.form, SelectedRows):
            rule = self.form.hessian_rule(turned=self._turned)
        else:
            rule = self.form.rule(problem)
        return over_everything(problem, rule)

    @property
    def _turned(self) -> bool:
        return isinstance(self.treatment, Abs)

    def elements(self, problem: Problem) -> float:
        if self.form is not None or too_large(problem.parameters.count):
            return 0.0  # no matrix, or refused by name
        return 4.0 * problem.parameters.count**2

    def refusal(self, problem: Problem) -> str | None:
        return (Matrix() if self.form is None else self.form).refusal(problem)

    def stages(self, work: Workload) -> list[Stage]:
        if isinstance(self.form, SelectedRows):
            return self._iterated_stages(work, self.form)
        if self.form is not None:
            return self.form.stages(work)
        problem, p = work.problem, float(work.problem.parameters.count)
        name, vectors = "second derivatives", 0.0 if by_pairs(work.layout) else p
        products = work.products(name, 2 * matrix_operations(problem), 4 * p**2, fresh=6 * p**2)
        return [
            work.passed("pass over the data", problem.loss.columns(problem.n_outputs)),
            work.double_backward(name, vectors, products),
            work.eigendecompositions("eigendecomposition", p**3, 5 * p**2, exact=False),
        ]

    def _iterated_stages(self, work: Workload, form: SelectedRows) -> list[Stage]:
        """How many products are needed is known only when they are done; these are about right
        where the GGN's largest rows hold most of the curvature."""
        problem, p = work.problem, float(work.problem.parameters.count)
        held = form.elements(problem, work.queries)
        stages = [form.passed(work)]
        if self._turned:
            searched = work.products("", 0.0, held + 2 * HELD * p)
            name = f"about {EIGEN} products for eigenpairs"
            stages.append(work.double_backward(name, EIGEN, searched))
        count = float(ITERATED * work.queries)
        solved = work.products("", 12 * count * p, held)
        return [*stages, work.double_backward(f"about {ITERATED} products a query", count, solved)]
