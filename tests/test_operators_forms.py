"""Operators over all parameters, by products and by rows: against dense matrices, and when their
iterations stop."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature import dense_limit
from curvfluence.curvature.hessian import Plain
from curvfluence.curvature.inversion import ConjugateGradients, SampleSpace, SelectedRows
from curvfluence.curvature.operators import selected_rows
from curvfluence.curvature.operators.block_conjugate_gradients import BlockSolution
from curvfluence.curvature.operators.iterative import IterativeOperator
from curvfluence.curvature.operators.operator import Operator
from curvfluence.curvature.operators.selected_rows import SelectedRowsOperator, select
from curvfluence.errors import InputError
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.runtime.said import noted
from tests import oracles
from tests.problems import make, mlp, seeded
from tests.zoo import zoo_problem

DAMPING = 0.05
FORMS: dict[str, cf.inversion.Form] = {
    "conjugate gradients": ConjugateGradients(None, 0.5, 3000),
    "rows": SelectedRows(5, 0.5, 3000),
    "sample space": SampleSpace(tolerance=0.5),
    "sample space by iteration": SampleSpace(iterate=True, tolerance=0.5),
}


def operator_of(problem: cf.Problem, form: cf.inversion.Form) -> Operator:
    return cf.fit(problem, cf.GGN(form=form)).blocks[0].operator


def rows_of(problem: cf.Problem, form: SelectedRows) -> SelectedRowsOperator:
    operator = operator_of(problem, form)
    assert isinstance(operator, SelectedRowsOperator)
    return operator


def damped(problem: cf.Problem, damping: float = DAMPING) -> Tensor:
    """C + diag(w) + λ."""
    dense = oracles.dense_ggn(problem) + problem.decay.diag()
    return dense + damping * torch.eye(len(dense), dtype=torch.float64)


def vectors(count: int, problem: cf.Problem) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = problem.parameters.count
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


def left(problem: cf.Problem, v: Tensor, x: Tensor) -> Tensor:
    """‖v − (C + diag(w) + λ) x‖/‖v‖."""
    return (v - x @ damped(problem)).norm(dim=1) / v.norm(dim=1)


@pytest.mark.parametrize("form", FORMS)
class TestEveryForm:
    def test_a_dense_matrix_of_many_parameters_is_refused(
        self, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        problem = zoo_problem("mlp")
        operator = operator_of(problem, FORMS[form])
        monkeypatch.setattr(dense_limit, "DENSE_LIMIT", problem.parameters.count - 1)
        said = f"^GGN would form a dense matrix for the model of {problem.parameters.count} param"
        with pytest.raises(InputError, match=said):
            operator.to_dense()

    def test_eigenbasis(self, form: str) -> None:
        problem = zoo_problem("mlp")
        basis = operator_of(problem, FORMS[form]).eigenbasis()
        dense = oracles.dense_ggn(problem)
        torch.testing.assert_close(basis.to_dense(), dense)
        wanted = torch.linalg.eigvalsh(dense)
        torch.testing.assert_close(basis.eigenvalues(), wanted, rtol=1e-9, atol=1e-12)

    def test_mean_eigenvalue_of_few_rows(self, form: str) -> None:
        """No more eigenvalues than there are rows, though no parameter is without curvature."""
        problem = make(mlp(5, 8, 3), cf.CrossEntropy(), n=3)
        mean = operator_of(problem, FORMS[form]).mean_eigenvalue()
        assert mean.count == 6
        assert mean.total == pytest.approx(float(oracles.dense_ggn(problem).trace()))

    def test_within_another_tolerance(self, form: str) -> None:
        problem = zoo_problem("mlp")
        v, operator = vectors(3, problem), operator_of(problem, FORMS[form])
        closer = operator.within(1e-9)
        assert (operator.tolerance, closer.tolerance) == (0.5, 1e-9)
        for one in (operator, closer):
            x = one.solve(v, problem.decay, DAMPING)
            assert float(left(problem, v, x).max()) <= (one.tolerance or 0.0)


class TestIterative:
    def test_a_preconditioner_that_is_the_inverse_leaves_one_iteration(self) -> None:
        problem = zoo_problem("mlp")
        inverse = torch.linalg.inv(damped(problem))
        operator = operator_of(problem, ConjugateGradients(None, 1e-9, 1))
        assert isinstance(operator, IterativeOperator)
        asked: list[float] = []

        def precondition(r_qp: Tensor, damping: float) -> Tensor:
            asked.append(damping)
            return r_qp @ inverse

        v = vectors(3, problem)
        x = replace(operator, precondition=precondition).solve(v, problem.decay, DAMPING)
        torch.testing.assert_close(x, v @ inverse)
        assert asked == [DAMPING]

    def test_rows_of_any_size_together(self) -> None:
        """Each is held to its own size, though the squares of one vanish beside the others'; a row
        of zeros is one."""
        problem = zoo_problem("mlp")
        operator = operator_of(problem, ConjugateGradients(None, 1e-10, 3000))
        sizes = torch.tensor([1.0, 1e-200, 1e150, 0.0], dtype=torch.float64)[:, None]
        v = vectors(4, problem)
        with noted() as said:
            x = operator.solve(sizes * v, problem.decay, DAMPING)
        assert said == []
        wanted = v @ torch.linalg.inv(damped(problem))
        torch.testing.assert_close(x[:3] / sizes[:3], wanted[:3], rtol=1e-7, atol=1e-9)
        assert not bool(x[3].any())

    def test_it_stops_and_says_how_far_it_came(self) -> None:
        problem = zoo_problem("mlp")
        operator, v = operator_of(problem, ConjugateGradients(None, 1e-12, 2)), vectors(3, problem)
        with noted() as said:
            x = operator.solve(v, problem.decay, DAMPING)
        worst = float(left(problem, v, x).max())
        assert worst > 1e-12
        assert len(said) == 1
        assert f"residual of {worst:.2g}, 1e-12 was wanted" in said[0]


class Iterations:
    """Stands for an iteration that solves for the first row that it is given, and for no other;
    with what it was given: how many rows, how many products, whether with patience."""

    def __init__(self, matrix: Tensor, products: int) -> None:
        self.matrix, self.products = matrix, products
        self.given: list[tuple[int, int, bool]] = []

    def __call__(
        self,
        product: Callable[[Tensor], Tensor],
        b_qn: Tensor,
        *,
        precondition: Callable[[Tensor], Tensor],
        enough_q: Tensor,
        max_products: int,
        patience: tuple[int, Tensor] | None = None,
    ) -> BlockSolution:
        self.given.append((len(b_qn), max_products, patience is not None))
        x = torch.zeros_like(b_qn)
        x[0] = torch.linalg.solve(self.matrix, b_qn[0])
        return BlockSolution(x, b_qn - x @ self.matrix, self.products, len(b_qn))


class TestSelectedRows:
    def test_rows_of_zero_are_not_selected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a pass that begins and ends with chunks of them."""
        monkeypatch.setattr("curvfluence.runtime.budget.EXAMPLES", 2)
        x = torch.zeros(9, 3, dtype=torch.float64)
        x[4:7] = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()
        model = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
        problem = cf.Problem(model, cf.MSE(), (x, x[:, :2]), (x[4:5], x[4:5, :2]))
        found = select(FisherPass(problem, cf.Type2()), torch.full((6,), 0.1).double(), 100)
        assert len(found.rows) == 6
        assert found.share == pytest.approx(1.0)

    def test_vectors_of_any_size_together(self) -> None:
        problem = zoo_problem("mlp")
        v = vectors(4, problem)
        v[2] = 0
        sizes = torch.tensor([1.0, 1e-200, 1.0, 1e150], dtype=torch.float64)[:, None]
        operator = rows_of(problem, SelectedRows(5, 1e-10, 3000))
        x = operator.solve(sizes * v, problem.decay, DAMPING) / sizes
        torch.testing.assert_close(x, torch.linalg.solve(damped(problem), v.T).T)
        assert torch.equal(x[2], torch.zeros_like(x[2]))
        small = operator.solve(1e-200 * v, problem.decay, DAMPING)
        torch.testing.assert_close(small / 1e-200, x)

    @pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
    def test_as_many_products_as_it_takes(self, tolerance: float) -> None:
        """Of vectors of large norms: one product fewer leaves a residual that is not half of the
        tolerance."""
        problem = zoo_problem("mlp")
        v = vectors(2, problem).sign()
        operator = rows_of(problem, SelectedRows(5, tolerance, 3000))
        assert float(left(problem, v, operator.solve(v, problem.decay, DAMPING)).max()) <= tolerance
        fewer = replace(operator, max_products=products_of(operator) - 1)
        with noted():
            before = fewer.solve(v, problem.decay, DAMPING)
        assert float(left(problem, v, before).max()) > tolerance / 2

    def test_what_is_left_is_solved_for_thrice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the rows that are not done alone, with the products that are left, and with patience
        while those are three times as many; what is left then is said."""
        problem = zoo_problem("mlp")
        fake = Iterations(damped(problem), 2)
        monkeypatch.setattr(selected_rows, "block_conjugate_gradients", fake)
        monkeypatch.setattr(selected_rows, "PATIENCE", 3)
        v = vectors(5, problem)
        v[0] = 0
        v[4] *= 100
        with noted() as said:
            x = rows_of(problem, SelectedRows(5, 1e-6, 9)).solve(v, problem.decay, DAMPING)
        assert fake.given == [(4, 9, True), (3, 7, False), (2, 5, False)]
        wanted = torch.linalg.solve(damped(problem), v.T).T
        torch.testing.assert_close(x[:4], wanted[:4])
        assert torch.equal(x[4], torch.zeros_like(x[4]))
        assert any("stopped at a relative residual of 1, 1e-06 was wanted" in one for one in said)

    def test_no_iteration_without_products(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = zoo_problem("mlp")
        fake = Iterations(damped(problem), 4)
        monkeypatch.setattr(selected_rows, "block_conjugate_gradients", fake)
        with noted():
            rows_of(problem, SelectedRows(5, 1e-6, 8)).solve(
                vectors(4, problem), problem.decay, DAMPING
            )
        assert fake.given == [(4, 8, False), (3, 4, False)]

    @pytest.mark.parametrize(("share", "counts"), [(1.01, [2]), (0.99, [2, 7])])
    def test_what_is_progress_enough(
        self, share: float, counts: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """More rows where a relative residual after `PATIENCE` products is above `PROGRESS`."""
        problem = zoo_problem("mlp")
        v = vectors(2, problem).sign()
        few = rows_of(problem, SelectedRows(2, 1e-9, 3, most=2))
        with noted():
            reached = float(left(problem, v, few.solve(v, problem.decay, DAMPING)).max())
        monkeypatch.setattr(selected_rows, "PATIENCE", 3)
        monkeypatch.setattr(selected_rows, "PROGRESS", share * reached)
        found = counted(monkeypatch)
        form = SelectedRows(2, 1e-9, 3000, most=7)
        rows_of(problem, form).solve(v, problem.decay, DAMPING)
        assert found == counts

    def test_there_are_no_more_rows_than_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are looked for once, and the iteration goes on with those that it has."""
        problem = zoo_problem("mlp")
        monkeypatch.setattr(selected_rows, "PATIENCE", 1)
        monkeypatch.setattr(selected_rows, "PROGRESS", 1e-9)
        found = counted(monkeypatch)
        rung = cf.Hessian(Plain(), form=SelectedRows(500, 1e-8, 400))
        operator = cf.fit(problem, rung).blocks[0].operator
        assert isinstance(operator, SelectedRowsOperator)
        v, operator = vectors(2, problem), replace(operator, most=100)
        x = operator.solve(v, problem.decay, 0.3)
        gap = operator.inverted(x, problem.decay, 0.3) - v
        assert float((gap.norm(dim=1) / v.norm(dim=1)).max()) <= 1e-8
        assert found == [500, 4 * 14]

    def test_without_rows_the_damping_alone_is_inverted(self) -> None:
        """H and its rows are 0: one product, with a decay of its own for each tensor."""
        seeded()
        decay = {"0.weight": 0.5, "0.bias": 0.0}
        problem = make(mlp(5, 3), cf.CustomLoss(linear), outputs=3, weight_decay=decay)
        curvature = cf.fit(problem, cf.Hessian(Plain(), form=SelectedRows(tolerance=1e-9)))
        v = vectors(3, problem)
        found = curvature.solve(v, cf.Absolute(DAMPING))
        torch.testing.assert_close(found, v / (problem.decay + DAMPING))
        note = curvature.blocks[0].operator.note(DAMPING)
        assert note is not None
        assert "0 selected rows" in note
        assert "; 1 products" in note


def linear(output: Tensor, target: Tensor) -> Tensor:
    return (output * torch.arange(output.shape[-1])).sum(-1)


def products_of(operator: SelectedRowsOperator) -> int:
    """As its note has it."""
    found = re.search(r"(\d+) products", operator.note(DAMPING) or "")
    assert found is not None
    return int(found[1])


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows are asked for, each time."""
    counts: list[int] = []
    once = selected_rows.select

    def select(chunks: object, shift: Tensor, count: int) -> selected_rows.Selection:
        counts.append(count)
        return once(chunks, shift, count)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(selected_rows, "select", select)
    monkeypatch.setattr(selected_rows, "ENOUGH", 32)
    return counts
