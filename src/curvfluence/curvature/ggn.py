"""The generalised Gauss-Newton matrix."""

from __future__ import annotations

from dataclasses import dataclass

from curvfluence.curvature.coverage import CoverageLine, over_everything
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.inversion import Form, cheapest
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.places import Whole
from curvfluence.curvature.rung import Rung
from curvfluence.curvature.workload import Workload
from curvfluence.errors import InputError
from curvfluence.jacobian.fisher import Type2
from curvfluence.jacobian.fisher_pass import loss_notes
from curvfluence.problem.problem import Problem
from curvfluence.runtime.stage import Stage


@dataclass(frozen=True)
class GGN(Rung):
    """(1/N) Σ_n J_nᵀ S_n S_nᵀ J_n over all parameters, exact expectation over labels.

    `form` says how it is held: `inversion.Matrix()`, `SampleSpace()`, `SelectedRows()`,
    `ConjugateGradients()`, by default the one with the fewest operations of those that fit half the
    memory. As a matrix: where unshared layers hold every parameter one Khatri-Rao GEMM a pair of
    layers, about N P² operations; otherwise the Gram of the rows, 2 C times that; 2 P² numbers.
    Errors: `InputError` for a matrix above 30,000 parameters.
    """

    form: Form | None = None

    def __post_init__(self) -> None:
        if self.form is not None and not isinstance(self.form, Form):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                "form must be Matrix(), SampleSpace(), SelectedRows() or "
                f"ConjugateGradients(); seen {self.form!r}"
            )

    def form_of(self, problem: Problem, queries: int = 0) -> Form:
        return cheapest(problem, queries) if self.form is None else self.form

    def for_solves(self, problem: Problem, count: int) -> GGN:
        return GGN(self.form_of(problem, count))

    def build(self, problem: Problem) -> Curvature:
        operator, rule = self.form_of(problem).operator(problem)
        return Curvature(
            rung=self.name,
            parameters=problem.parameters,
            blocks=(
                Block("all", problem.parameters.names, Whole(problem.parameters), operator, rule),
            ),
            decay=problem.decay,
            fisher=Type2().name,
            notes=loss_notes(problem),
        )

    def coverage(self, problem: Problem) -> tuple[CoverageLine, ...]:
        return over_everything(problem, self.form_of(problem).rule(problem))

    def rank(self, problem: Problem) -> int | None:
        return Type2().rank(problem)

    def elements(self, problem: Problem) -> float:
        form = self.form_of(problem)
        if form.refusal(problem) is not None:
            return 0.0  # refused by name
        return form.elements(problem, len(problem.queries))

    def refusal(self, problem: Problem) -> str | None:
        return self.form_of(problem).refusal(problem)

    def stages(self, work: Workload) -> list[Stage]:
        return self.form_of(work.problem, work.queries).stages(work)
