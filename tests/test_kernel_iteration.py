"""The GGN's kernel in sample space, iterated with instead of factored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.inversion import cheapest
from curvfluence.curvature.operators import kernel_iteration
from curvfluence.curvature.operators.operator import Against
from curvfluence.curvature.operators.sample_space import SampleSpaceOperator
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients
from curvfluence.runtime import budget
from tests import oracles
from tests.test_selected_rows import fitted
from tests.zoo import zoo_problem

FORM = cf.inversion.SampleSpace(iterate=True)


def true_residuals(problem: cf.Problem, x_qp: Tensor, damping: float) -> Tensor:
    """‖g − (C + W + λI) x‖/‖g‖ with dense matrices in float64."""
    exact = problem.to(torch.float64)
    dense = oracles.dense_ggn(exact) + exact.decay.diag()
    dense.diagonal().add_(damping)
    g_qp = oracles.query_gradients(exact)
    return (g_qp - x_qp.double() @ dense).norm(dim=1) / g_qp.norm(dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-4])
@pytest.mark.parametrize("decay", [0.0, 1e-3, {"0.weight": 1e-2}])
def test_the_residuals_that_are_stated_are_the_true_ones(
    dtype: torch.dtype,
    tolerance: float,
    decay: float | dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also with few queries at a time, and with a preconditioner that is exact on few rows."""
    monkeypatch.setattr(kernel_iteration, "LARGEST", 20)
    monkeypatch.setattr(budget, "RIGHT_HAND_SIDES", 400)
    problem = fitted(dtype, weight_decay=decay)
    curvature, damping = cf.fit(problem, cf.GGN(FORM)).within(tolerance), cf.Absolute(1e-3)
    queries = query_gradients(problem, discover(problem))
    solved = curvature.solve_rows(queries, damping, against=Against(len(problem.train)))
    assert solved.residuals is not None
    stated = torch.tensor(solved.residuals, dtype=torch.float64)
    assert float(stated.max()) <= tolerance
    found = true_residuals(problem, solved.flat(), 1e-3)
    floor = 1e-9 if dtype == torch.float64 else 1e-5  # of products in float32, at κ = 1e3
    assert torch.allclose(found, stated, rtol=0.05, atol=floor), (found, stated)
    scores = cf.influence(problem, cf.GGN(FORM), damping=damping, tolerance=tolerance)
    assert scores.residuals == solved.residuals
    if tolerance == 1e-4 and dtype == torch.float64:
        wanted = cf.influence(
            problem, cf.GGN(cf.inversion.Matrix()), damping=cf.Absolute(1e-3)
        ).values
        error = (scores.values - wanted).norm(dim=1) / wanted.norm(dim=1)
        assert float(error.max()) <= 1e-2


@pytest.mark.filterwarnings("ignore::curvfluence.errors.CurvfluenceWarning")
@pytest.mark.parametrize("damping", [1e4, 1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("twice", [1, 20])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_every_damping_in_float32(damping: float, twice: int, tolerance: float) -> None:
    """Where K is far below N, where rows are more than parameters or there again and again; what is
    stated is what is left of the x that is returned, whether it is what was wanted or not."""
    one = fitted(torch.float32)
    x, y = one.train.inputs.repeat(twice, 1), one.train.targets.repeat(twice)
    problem = cf.Problem(one.model, one.loss, (x, y), one.queries)
    curvature, at = cf.fit(problem, cf.GGN(FORM)).within(tolerance), cf.Absolute(damping)
    queries = query_gradients(problem, discover(problem))
    solved = curvature.solve_rows(queries, at, against=Against(len(x)))
    stated = torch.tensor(solved.residuals, dtype=torch.float64)
    # by the rows that the solve had: a pass in float64 would have others
    rows = curvature.blocks[0].operator.rows.to(torch.float64).to_dense().flatten(0, 1)  # type: ignore[attr-defined]
    g_qp, x_qp = queries.to_dense()[:, 0].double(), solved.flat().double()
    left = g_qp - (x_qp @ rows.T) @ rows / len(x) - damping * x_qp
    true = left.norm(dim=1) / g_qp.norm(dim=1)
    assert torch.allclose(stated, true, rtol=0.05, atol=3e-7 if tolerance == 1e-6 else 2e-5)
    if damping >= 1e-2:
        assert float(true.max()) <= max(tolerance, 2e-6)
    wanted = cf.fit(problem, cf.GGN(cf.inversion.SampleSpace())).solve(g_qp.float(), at).double()
    left = g_qp - (wanted @ rows.T) @ rows / len(x) - damping * wanted
    factored = float((left.norm(dim=1) / g_qp.norm(dim=1)).max())
    assert float(true.max()) <= max(tolerance, 3 * factored)


@pytest.mark.parametrize("damping", [1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("decay", [0.0, {"0.weight": 1e-6}])
def test_a_small_damping_in_float32(damping: float, decay: float | dict[str, float]) -> None:
    """D⁻¹ (v − Zᵀ y) formed anew is rounded by ε‖C‖/λ: what was wanted is reached all the same, by
    steps that are added, and what is stated is within the rounding of a product in float32."""
    problem = fitted(torch.float32, weight_decay=decay)
    curvature, at = cf.fit(problem, cf.GGN(FORM)).within(1e-3), cf.Absolute(damping)
    queries = query_gradients(problem, discover(problem))
    solved = curvature.solve_rows(queries, at, against=Against(len(problem.train)))
    operator = curvature.blocks[0].operator
    assert isinstance(operator, SampleSpaceOperator)
    rows = operator.rows.to(torch.float64).to_dense().flatten(0, 1)
    g_qp, x_qp = queries.to_dense()[:, 0].double(), solved.flat().double()
    left = g_qp - (x_qp @ rows.T) @ rows / len(problem.train) - curvature.shift(at).double() * x_qp
    true = left.norm(dim=1) / g_qp.norm(dim=1)
    assert float(true.max()) <= 1e-3
    stated = torch.tensor(solved.residuals, dtype=torch.float64)
    assert torch.allclose(stated, true, rtol=0.05, atol=1e-4)


def test_float32_in_full() -> None:
    """Without a tolerance it is that of a factor: products are in float64."""
    problem = fitted(torch.float32)
    solved = {}
    for form in (FORM, cf.inversion.SampleSpace()):
        curvature = cf.fit(problem, cf.GGN(form))
        g_qp = oracles.query_gradients(problem.to(torch.float64)).float()
        x = curvature.solve(g_qp, cf.Absolute(1e-3))
        solved[form] = float(true_residuals(problem, x, 1e-3).max())
    assert solved[FORM] <= max(1e-6, 2 * solved[cf.inversion.SampleSpace()])


@pytest.mark.parametrize("name", ["mlp", "cnn with groups", "tied transformer", "embedding"])
def test_solved_rows_are_solved_vectors(name: str) -> None:
    problem = zoo_problem(name)
    scores = cf.influence(problem, cf.GGN(FORM), damping=cf.Absolute(1e-2), tolerance=1e-11)
    wanted = cf.influence(problem, cf.GGN(cf.inversion.Matrix()), damping=cf.Absolute(1e-2))
    assert torch.allclose(scores.values, wanted.values, rtol=1e-8, atol=1e-12)
    assert any("products with the kernel" in note for note in scores.notes)
    assert scores.certificate().worst <= 1e-9


def test_a_query_without_a_gradient() -> None:
    problem = fitted()
    g_qp = oracles.query_gradients(problem)
    g_qp[1] = 0
    x = cf.fit(problem, cf.GGN(FORM)).solve(g_qp, cf.Absolute(1e-3))
    assert bool((x[1] == 0).all())
    assert bool(x.isfinite().all())


def test_gradients_of_any_size() -> None:
    """Squares of small numbers would be 0 in float32, those of large ones infinite."""
    problem = fitted(torch.float32)
    g_qp = oracles.query_gradients(problem.to(torch.float64)).float()
    curvature = cf.fit(problem, cf.GGN(FORM)).within(1e-3)
    wanted = curvature.solve(g_qp, cf.Absolute(1e-3))
    for scale in (1e-25, 1e20):
        found = curvature.solve(g_qp * scale, cf.Absolute(1e-3)) / scale
        assert torch.allclose(found, wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))


def test_one_kernel_for_every_solve_at_a_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    products = SampleSpaceOperator.products

    def counted(self: SampleSpaceOperator, shift: Tensor) -> Tensor:
        made.append(float(shift[0]))
        return products(self, shift)

    monkeypatch.setattr(SampleSpaceOperator, "products", counted)
    curvature = cf.fit(fitted(), cf.GGN(FORM))
    scores = cf.influence(fitted(), curvature, damping=cf.Absolute(0.1))
    scores.certificate()
    assert made == [0.1]


def test_it_is_chosen_where_queries_are_few_and_the_kernel_is_large() -> None:
    """Nothing is computed: a net of which the kernel has 9,000 rows, and 400,000 parameters."""
    model = nn.Sequential(nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 10))
    x, y = torch.zeros(1000, 784), torch.arange(1000) % 10
    problem = cf.Problem(model, cf.CrossEntropy(), (x, y), (x[:10], y[:10]))
    assert cheapest(problem, 10) == cf.inversion.SampleSpace(iterate=True)
    assert cheapest(problem, 2000) == cf.inversion.SampleSpace()


def test_bad_input() -> None:
    with pytest.raises(cf.errors.InputError, match="iterate"):
        cf.inversion.SampleSpace(iterate="yes")  # type: ignore[arg-type]
    with pytest.raises(cf.errors.InputError, match="tolerance must lie between"):
        cf.inversion.SampleSpace(tolerance=0.0)
    with pytest.raises(cf.errors.InputError, match=r"w \+ λ > 0"):
        cf.influence(fitted(), cf.GGN(FORM), damping=cf.Absolute(0.0))
