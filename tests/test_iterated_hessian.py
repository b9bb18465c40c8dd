"""The Hessian without a matrix, plain and abs, against its eigendecomposition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.hessian import Abs, Clip, Plain
from curvfluence.curvature.inversion import ConjugateGradients, SampleSpace, SelectedRows
from curvfluence.curvature.operators.block_conjugate_gradients import BlockSolution
from curvfluence.curvature.operators.minimal_residual import minimal_residual
from curvfluence.curvature.operators.selected_rows_hessian import SPARED
from curvfluence.errors import InputError
from tests.problems import chain_problem, make, mlp, seeded

EXACT = SelectedRows(count=20, tolerance=1e-9, max_products=2000)


def symmetric(values: list[float], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (q * torch.tensor(values, dtype=torch.float64)) @ q.T


class TestMinimalResidual:
    @pytest.mark.parametrize("preconditioned", [False, True])
    def test_indefinite_systems(self, preconditioned: bool) -> None:
        a = symmetric([-3.0, -0.5, *torch.linspace(0.1, 9, 28).tolist()])
        m = (
            symmetric(torch.linspace(1, 4, 30).tolist(), 1)
            if preconditioned
            else torch.eye(30).double()
        )
        b = torch.randn(5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        b[3] = 0
        found = minimal_residual(
            lambda x: x @ a,
            b,
            precondition=lambda r: torch.linalg.solve(m, r.T).T,
            enough_q=1e-11 * b.norm(dim=1),
            max_products=200,
        )
        torch.testing.assert_close(found.x, torch.linalg.solve(a, b.T).T, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(found.residual, b - found.x @ a, rtol=0, atol=1e-9)
        assert bool((found.x[3] == 0).all())

    @pytest.mark.parametrize("scale", [1e-6, 1e6])
    def test_what_is_small_is_solved_alike(self, scale: float) -> None:
        a = symmetric([-3.0, -0.5, *torch.linspace(0.1, 9, 28).tolist()])
        b = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

        def solved(b: Tensor) -> Tensor:
            enough = 1e-10 * b.norm(dim=1)
            return minimal_residual(
                lambda x: x @ a, b, precondition=lambda r: r, enough_q=enough, max_products=100
            ).x

        torch.testing.assert_close(solved(scale * b) / scale, solved(b), rtol=1e-9, atol=1e-10)

    def test_squares_of_small_numbers_in_float32(self) -> None:
        a = symmetric([-3.0, *torch.linspace(1, 4, 29).tolist()]).float()
        b = torch.randn(2, 30, generator=torch.Generator().manual_seed(2)) * 1e-25
        enough = 1e-4 * b.double().norm(dim=1)
        found = minimal_residual(
            lambda x: x @ a, b, precondition=lambda r: r, enough_q=enough, max_products=100
        )
        assert found.x.dtype == torch.float32
        left = (b - found.x @ a).double().norm(dim=1) / b.double().norm(dim=1)
        assert float(left.max()) < 2e-4

    @pytest.mark.parametrize(("enough", "most"), [(1e-9, 0), (1e9, 50)])
    def test_nothing_to_do(self, enough: float, most: int) -> None:
        b = torch.randn(2, 3, dtype=torch.float64)
        found = minimal_residual(
            lambda x: x, b, precondition=lambda r: r, enough_q=torch.full((2,), enough),
            max_products=most,
        )  # fmt: skip
        assert found.products == 0
        assert torch.equal(found.x, torch.zeros_like(b))
        assert torch.equal(found.residual, b)

    def test_residuals_never_rise_and_it_stops_where_asked(self) -> None:
        a = symmetric([-3.0, -0.5, *torch.linspace(0.1, 9, 28).tolist()])
        b = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

        def after(k: int) -> Tensor:
            found = minimal_residual(
                lambda x: x @ a, b, precondition=lambda r: r, enough_q=0 * b.norm(dim=1),
                max_products=k,
            )  # fmt: skip
            assert found.products == k
            return (b - found.x @ a).norm(dim=1)

        norms = torch.stack([after(k) for k in range(1, 25)])
        assert bool((norms[1:] <= norms[:-1] * (1 + 1e-12)).all())

    @pytest.mark.parametrize("b", [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    def test_at_a_pole_x_stays_finite(self, b: list[float]) -> None:
        a, rows = torch.diag(torch.tensor([0.0, 1.0, 2.0]).double()), torch.tensor([b]).double()
        found = minimal_residual(
            lambda x: x @ a, rows, precondition=lambda r: r, enough_q=torch.full((1,), 1e-10),
            max_products=10,
        )  # fmt: skip
        assert bool(found.x.isfinite().all())
        assert float(found.residual[0, 0]) == 1.0
        assert float(found.residual[0, 1].abs()) < 1e-9

    def test_patience(self) -> None:
        """It stops after so many products where a row is still above what was hoped for, with what
        it has."""
        a = symmetric([-3.0, -0.5, *torch.linspace(0.1, 9, 28).tolist()])
        b = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

        def after(hoped: Tensor) -> BlockSolution:
            return minimal_residual(
                lambda x: x @ a, b, precondition=lambda r: r, enough_q=1e-9 * b.norm(dim=1),
                max_products=80, patience=(4, hoped),
            )  # fmt: skip

        early, whole = after(1e-3 * b.norm(dim=1)), after(b.norm(dim=1))
        assert (early.slow, early.products, early.vectors) == (True, 4, 8)
        torch.testing.assert_close(early.residual, b - early.x @ a, rtol=0, atol=1e-9)
        assert not whole.slow
        assert whole.products > 4
        one = torch.stack([b[0].norm(), 1e-3 * b[1].norm()])
        assert after(one).slow

    def test_few_eigenvalues_need_few_products(self) -> None:
        a = symmetric([-2.0] * 10 + [1.0] * 10 + [5.0] * 10)
        b = torch.randn(4, 30, dtype=torch.float64)
        found = minimal_residual(
            lambda x: x @ a, b, precondition=lambda r: r, enough_q=1e-10 * b.norm(dim=1),
            max_products=50,
        )  # fmt: skip
        assert found.products == 3


def vectors(problem: cf.Problem, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(count, problem.parameters.count, generator=generator, dtype=problem.dtype)


def spectrum(problem: cf.Problem) -> tuple[Tensor, Tensor]:
    h = cf.fit(problem, cf.Hessian()).to_dense() + problem.decay.diag()
    return torch.linalg.eigh(h)


def problems() -> dict[str, cf.Problem]:
    seeded()
    wide = make(mlp(5, 30, 3), cf.CrossEntropy(), outputs=3)
    shared = make(
        nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3), nn.Tanh(), nn.Flatten(),
                      nn.Linear(12, 3)),
        cf.CrossEntropy(),
        outputs=3,
    )  # fmt: skip
    return {"chain": chain_problem(), "wide": wide, "shared": shared}


@pytest.mark.parametrize("name", ["chain", "wide", "shared"])
@pytest.mark.parametrize("damping", [1e-3, 1e-2, 0.3])
class TestHessian:
    def test_plain(self, name: str, damping: float) -> None:
        problem, at = problems()[name], cf.Absolute(damping)
        v = vectors(problem)
        curvature = cf.fit(problem, cf.Hessian(Plain(), form=EXACT))
        values, u = spectrum(problem)
        wanted = ((v @ u) / (values + damping)) @ u.T
        found = curvature.solve(v, at)
        assert float((found - wanted).norm() / wanted.norm()) < 1e-5
        torch.testing.assert_close(curvature.inverted(found, at), v, rtol=0, atol=1e-7)

    def test_abs(self, name: str, damping: float) -> None:
        problem, at = problems()[name], cf.Absolute(damping)
        v = vectors(problem)
        curvature = cf.fit(problem, cf.Hessian(form=EXACT))
        values, u = spectrum(problem)
        below = values < -SPARED * damping
        assert bool(below.any())
        mu = torch.where(below, values.abs(), values)
        wanted = ((v @ u) / (mu + damping)) @ u.T
        found = curvature.solve(v, at)
        assert float((found - wanted).norm() / wanted.norm()) < 1e-5
        torch.testing.assert_close(curvature.inverted(found, at), v, rtol=0, atol=1e-7)
        exact = ((v @ u) / (values.abs() + damping)) @ u.T
        assert float((found - exact).norm() / exact.norm()) < 2 * SPARED


def test_scores_say_what_was_done() -> None:
    seeded()
    problem = problems()["wide"]
    at = cf.Absolute(1e-2)
    scores = cf.influence(problem, cf.Hessian(form=SelectedRows(count=20)), damping=at)
    wanted = cf.influence(problem, cf.Hessian(), damping=at).values
    assert float((scores.values - wanted).norm() / wanted.norm()) < 0.02
    assert scores.rung == "Hessian(abs)"
    assert scores.residuals is not None
    assert max(scores.residuals) < 1e-4
    assert any("eigenvalues of H + diag(w) below −λ/100, the lowest" in n for n in scores.notes)
    rows = SelectedRows(count=20, max_products=2000)
    plain = cf.influence(problem, cf.Hessian(Plain(), form=rows), damping=at)
    assert plain.residuals is not None
    assert max(plain.residuals) < 1e-4
    assert "MINRES" in cf.fit(problem, cf.Hessian(Plain(), form=SelectedRows())).coverage[0].rule


def test_a_pole_is_left_as_a_residual() -> None:
    """At λ = −μ plain has no inverse: MINRES gets as near as one can, and it is said."""
    problem = problems()["chain"]
    values, _ = spectrum(problem)
    at = cf.Absolute(-float(values[0]))
    rung = cf.Hessian(Plain(), form=SelectedRows(count=20, max_products=300))
    with pytest.warns(cf.errors.CurvfluenceWarning, match="largest relative residual"):
        scores = cf.influence(problem, rung, damping=at)
    assert scores.residuals is not None
    assert bool(scores.values.isfinite().all())


@pytest.mark.parametrize("treatment", [Plain(), Abs()])
def test_a_loss_without_curvature_of_its_own(treatment: Plain | Abs) -> None:
    """The rows are all 0, and H is not."""
    seeded()
    problem = make(mlp(5, 8, 3), cf.CustomLoss(_linear), outputs=3)
    rung = cf.Hessian(treatment, form=SelectedRows(tolerance=1e-9, max_products=2000))
    v, at = vectors(problem), cf.Absolute(0.05)
    found, wanted = (cf.fit(problem, r).solve(v, at) for r in (rung, cf.Hessian(treatment)))
    assert float((found - wanted).norm() / wanted.norm()) < 2 * SPARED


def _linear(output: Tensor, target: Tensor) -> Tensor:
    return (output * torch.arange(output.shape[-1])).sum(-1)


def test_float32_finds_pairs_of_a_larger_net() -> None:
    """By products in float64: those of float32 lose what a pair is told by."""
    seeded()
    problem = make(mlp(30, 24, 4), cf.CrossEntropy(), shape=(30,), outputs=4).to(torch.float32)
    at = cf.Absolute(0.1)
    found = cf.influence(problem, cf.Hessian(form=SelectedRows(tolerance=1e-4)), damping=at)
    wanted = cf.influence(problem, cf.Hessian(), damping=at).values
    assert float((found.values - wanted).norm() / wanted.norm()) < 0.02


SHORT = {
    "hessian by rows": cf.Hessian(Plain(), form=SelectedRows(count=20, max_products=2)),
    "ggn by rows": cf.GGN(SelectedRows(count=1, max_products=1)),
    "conjugate gradients": cf.GGN(ConjugateGradients(None, max_iterations=1)),
    "sample space": cf.GGN(SampleSpace(tolerance=1e-17)),
    "sample space, by iteration": cf.GGN(SampleSpace(iterate=True, tolerance=1e-11)),
}


@pytest.mark.parametrize("name", SHORT)
def test_what_stops_short_is_said_without_residuals_too(name: str) -> None:
    """After few iterations, or where rounding leaves more than was wanted; a self-influence has no
    place for residuals."""
    problem = problems()["chain"].to(torch.float32)
    with pytest.warns(cf.errors.CurvfluenceWarning, match="stopped at a relative residual"):
        cf.self_influence(problem, SHORT[name], damping=cf.Absolute(1e-3))


def test_losses_and_outputs_that_it_does_not_take() -> None:
    seeded()

    def wavy(output: Tensor, target: Tensor) -> Tensor:
        return 1 - torch.cos(output + 2).mean(-1)

    problem = make(mlp(5, 8, 3), cf.CustomLoss(wavy), outputs=3)
    with pytest.raises(InputError, match="before the iteration that are clipped"):
        cf.fit(problem, cf.Hessian(Plain(), form=SelectedRows())).solve(
            vectors(problem), cf.Absolute(0.1)
        )
    many = make(mlp(5, 8, 70), cf.CustomLoss(wavy), outputs=70)  # few of whose rows are looked at
    with pytest.raises(InputError, match="before the iteration that are clipped"):
        cf.fit(many, cf.Hessian(Plain(), form=SelectedRows())).solve(
            vectors(many), cf.Absolute(0.1)
        )


def test_other_treatments_are_refused() -> None:
    with pytest.raises(InputError, match="selected rows take abs and plain, not clip"):
        cf.Hessian(Clip(), form=SelectedRows())
    with pytest.raises(InputError, match=r"use Hessian\(form=SelectedRows\(\)\)"):
        cf.Hessian(Abs(), form=ConjugateGradients())
    with pytest.raises(InputError, match="needs λ > 0"):
        cf.fit(chain_problem(), cf.Hessian(form=SelectedRows())).solve(
            vectors(chain_problem()), cf.Absolute(0.0)
        )


def test_float32_to_the_tolerance_that_is_asked() -> None:
    problem = problems()["wide"].to(torch.float32)
    rung = cf.Hessian(form=SelectedRows(count=20, tolerance=1e-3))
    scores = cf.influence(problem, rung, damping=cf.Absolute(1e-2))
    assert scores.residuals is not None
    assert max(scores.residuals) < 1e-3
