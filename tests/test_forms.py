"""The forms of a curvature over all parameters: the same system, however it is held and solved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.estimate.products import CurvatureProduct
from curvfluence.curvature.inversion import cheapest
from curvfluence.curvature.operators.cholesky import Cholesky
from curvfluence.curvature.operators.iterative import IterativeOperator
from curvfluence.curvature.operators.sample_space import SampleSpaceOperator
from tests import oracles
from tests.problems import make, mlp, seeded
from tests.zoo import CASES, zoo_problem

ZOO = [
    "mlp",
    "linear over positions",
    "cnn with groups",
    "embedding",
    "layer norm",
    "multi-head attention",
    "tied transformer",
    "one module twice",
]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


class TestCholesky:
    @pytest.mark.parametrize("block", [1, 7, 10, 30, 2048])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_in_place_against_torch(self, dtype: torch.dtype, block: int) -> None:
        seeded()
        z = torch.randn(30, 40, dtype=torch.float64)
        full = z @ z.T + torch.eye(30)
        b = torch.randn(3, 30, dtype=dtype)
        given = full.to(dtype).tril()
        where = given.data_ptr()
        factor = Cholesky.of(given, "it", block)
        assert factor.factor.data_ptr() == where
        wanted = torch.linalg.solve(full, b.double().T).T
        assert relative(factor.solve(b, block).double(), wanted) <= 1e3 * torch.finfo(dtype).eps

    @pytest.mark.parametrize("block", [1, 2, 2048])
    def test_not_positive_definite(self, block: int) -> None:
        with pytest.raises(
            cf.errors.SingularError, match=r"it is not positive definite.*order 2 of 3"
        ):
            Cholesky.of(torch.diag(torch.tensor([1.0, -1.0, 1.0])), "it", block)


class TestProducts:
    @pytest.mark.parametrize("name", ZOO)
    @pytest.mark.parametrize("kind", ["GGN", "Hessian"])
    def test_against_dense(self, name: str, kind: str) -> None:
        problem = zoo_problem(name)
        dense = oracles.dense_ggn(problem) if kind == "GGN" else oracles.dense_hessian(problem)
        v = torch.randn(3, problem.parameters.count, dtype=torch.float64)
        for examples in (256, 3):
            product = CurvatureProduct(problem, kind, examples=examples)  # pyright: ignore[reportArgumentType]
            assert relative(product(v), v @ dense) <= 1e-9

    @pytest.mark.parametrize("name", ["mlp", "tied transformer", "multi-head attention"])
    def test_through_the_model_and_through_rows_alike(self, name: str) -> None:
        problem = zoo_problem(name)
        v = torch.randn(3, problem.parameters.count, dtype=torch.float64)
        by_rows = CurvatureProduct(problem, "GGN")
        through = CurvatureProduct(problem, "GGN")
        through._rows = None
        assert relative(through(v), by_rows(v)) <= 1e-10

    def test_a_loss_that_is_not_convex(self) -> None:
        def bent(output: Tensor, target: Tensor) -> Tensor:
            return ((output - target).square() / (1 + (output - target).square())).sum(-1)

        loss = cf.CustomLoss(bent, clip_negative=True)
        problem = make(mlp(5, 4, 3), loss)
        v = torch.randn(3, problem.parameters.count, dtype=torch.float64)
        wanted = v @ oracles.dense_hessian(problem)
        assert relative(CurvatureProduct(problem, "Hessian")(v), wanted) <= 1e-9

    def test_what_cannot_be_differentiated_twice(self) -> None:
        problem = zoo_problem("embedding bag mean")
        v = torch.randn(1, problem.parameters.count, dtype=torch.float64)
        hooks = [len(m._forward_pre_hooks) for m in problem.model.modules()]
        with pytest.raises(
            cf.errors.InputError, match=r"\(EmbeddingBag\) cannot be .* twice.*EKFAC"
        ):
            CurvatureProduct(problem, "Hessian")(v)
        assert [len(m._forward_pre_hooks) for m in problem.model.modules()] == hooks
        assert relative(CurvatureProduct(problem, "GGN")(v), v @ oracles.dense_ggn(problem)) <= 1e-9


FORMS: dict[str, cf.inversion.Form] = {
    "matrix": cf.inversion.Matrix(),
    "sample space": cf.inversion.SampleSpace(),
    "sample space by iteration": cf.inversion.SampleSpace(iterate=True, tolerance=1e-11),
    "conjugate gradients": cf.inversion.ConjugateGradients(tolerance=1e-11, max_iterations=3000),
    "without a preconditioner": cf.inversion.ConjugateGradients(None, 1e-11, 3000),
    "by K-FAC": cf.inversion.ConjugateGradients(cf.KFAC(), 1e-11, 3000),
    "rows": cf.inversion.SelectedRows(5, 1e-11, 3000),
    "by blocks": cf.inversion.ConjugateGradients(cf.BlockGGN(), 1e-11, 3000),
}


class TestForms:
    @pytest.mark.parametrize("name", ZOO)
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("decay", [0.01, "uneven"])
    def test_every_form_solves_the_same_system(
        self, name: str, form: str, decay: float | str
    ) -> None:
        problem = zoo_problem(name)
        if decay == "uneven":
            names = problem.parameters.names
            by_name = {n: 0.0 if n.endswith("bias") else 0.02 for n in names}
            problem = cf.Problem(
                problem.model,
                problem.loss,
                problem.train,
                problem.queries,
                weight_decay=by_name,
            )
        dense = oracles.dense_ggn(problem)
        damped = dense + problem.decay.diag() + 1e-2 * torch.eye(len(dense), dtype=torch.float64)
        fitted = cf.fit(problem, cf.GGN(form=FORMS[form]))
        v = torch.randn(3, len(dense), dtype=torch.float64)
        x = fitted.solve(v, cf.Absolute(1e-2))
        assert float((x @ damped - v).norm()) <= 1e-9 * float(v.norm())
        assert relative(fitted.matvec(v), v @ dense) <= 1e-9
        assert relative(fitted.to_dense(), dense) <= 1e-9
        mean = fitted.blocks[0].operator.mean_eigenvalue()
        assert abs(mean.total - float(dense.trace())) <= 1e-9 * float(dense.trace())
        rows = len(problem.train) * problem.loss.columns(problem.n_outputs)
        assert mean.count == min(rows, int((dense.diagonal() > 1e-13 * dense.max()).sum()))

    def test_sample_space_in_float32_is_refined(self) -> None:
        """Where D⁻¹g and the rest cancel: λ = 1e-4 next to eigenvalues of order 1."""
        seeded()
        exact = make(mlp(5, 20, 20, 3), cf.CrossEntropy(), n=25, weight_decay=0.0)
        single = cf.Problem(
            mlp(5, 20, 20, 3),
            cf.CrossEntropy(),
            (exact.train.inputs.float(), exact.train.targets),
            (exact.queries.inputs.float(), exact.queries.targets),
            weights={n: v.float() for n, v in exact.theta.items()},
        )
        dense = oracles.dense_ggn(exact)
        damped = dense + 1e-4 * torch.eye(len(dense), dtype=torch.float64)
        g = oracles.query_gradients(exact)
        fitted = cf.fit(single, cf.GGN(form=cf.inversion.SampleSpace()))
        x = fitted.solve(g.float(), cf.Absolute(1e-4)).double()
        residual = (x @ damped - g).norm(dim=1) / g.norm(dim=1)
        assert float(residual.max()) <= 1e-4
        operator = fitted.blocks[0].operator
        assert isinstance(operator, SampleSpaceOperator)
        shift = torch.full((len(dense),), 1e-4)
        plain = operator.direct(
            g.float(), shift, Cholesky.of(operator.kernel(shift), "kernel")
        ).double()
        unrefined = (plain @ damped - g).norm(dim=1) / g.norm(dim=1)
        assert float(unrefined.max()) > 3 * float(residual.max())

    def test_the_last_factor_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A certificate, or more queries, at the same λ costs no second factor; another λ does."""
        problem = zoo_problem("mlp")
        fitted = cf.fit(problem, cf.GGN(form=cf.inversion.SampleSpace()))
        made: list[float] = []
        kernel = SampleSpaceOperator.kernel

        def counted(self: SampleSpaceOperator, shift: Tensor) -> Tensor:
            made.append(float(shift[0]))
            return kernel(self, shift)

        monkeypatch.setattr(SampleSpaceOperator, "kernel", counted)
        v = torch.randn(3, problem.parameters.count, dtype=torch.float64)
        first = fitted.solve(v, cf.Absolute(0.1))
        scores = cf.influence(problem, fitted, damping=cf.Absolute(0.1))
        assert scores.certificate().worst <= 1e-9
        assert len(made) == 1
        fitted.solve(v, cf.Absolute(0.2))
        assert len(made) == 2
        assert torch.equal(fitted.solve(v, cf.Absolute(0.1)), first)

    def test_a_drop_of_everything(self) -> None:
        with pytest.raises(cf.errors.InputError, match="leaves out every example: the trace"):
            cf.fit(zoo_problem("mlp"), cf.GGN(form=cf.inversion.SampleSpace(drop=1e9)))

    def test_dropped_rows_are_counted_and_bounded(self) -> None:
        problem = zoo_problem("mlp", n=12)
        dense = oracles.dense_ggn(problem)
        drop = 0.1 * float(dense.trace())
        fitted = cf.fit(problem, cf.GGN(form=cf.inversion.SampleSpace(drop=drop)))
        operator = fitted.blocks[0].operator
        assert isinstance(operator, SampleSpaceOperator)
        assert 0 < operator.dropped < 12
        assert 0 < operator.dropped_trace <= drop
        lost = dense - fitted.to_dense()
        assert abs(float(lost.trace()) - operator.dropped_trace) <= 1e-12
        assert float(torch.linalg.eigvalsh(lost)[0]) >= -1e-12
        scores = cf.influence(
            problem, cf.GGN(form=cf.inversion.SampleSpace(drop=drop)), damping=cf.Absolute(0.1)
        )
        note = next(n for n in scores.notes if "dropped" in n)
        assert f"{operator.dropped} of 12 examples" in note
        # ‖(M + E)⁻¹ v − M⁻¹ v‖ ≤ (‖E‖/λ) ‖M⁻¹ v‖
        exact = cf.fit(problem, cf.GGN(form=cf.inversion.Matrix()))
        v = torch.randn(4, len(dense), dtype=torch.float64)
        a, b = exact.solve(v, cf.Absolute(0.1)), fitted.solve(v, cf.Absolute(0.1))
        assert float((a - b).norm()) <= operator.dropped_trace / 0.1 * float(b.norm())

    def test_eigenvalues_in_sample_space(self) -> None:
        problem = zoo_problem("mlp")
        wanted = torch.linalg.eigvalsh(oracles.dense_ggn(problem))
        found = cf.fit(problem, cf.GGN(form=cf.inversion.SampleSpace())).eigenvalues()
        assert torch.allclose(found, wanted, atol=1e-12)

    def test_the_hessian_by_conjugate_gradients(self) -> None:
        problem = zoo_problem("mlp")
        dense = oracles.dense_hessian(problem)
        low = float(torch.linalg.eigvalsh(dense)[0])
        form = cf.inversion.ConjugateGradients(tolerance=1e-11, max_iterations=3000)
        fitted = cf.fit(problem, cf.Hessian(cf.hessian.Plain(), form=form))
        v = torch.randn(3, len(dense), dtype=torch.float64)
        damping = 0.5 - min(0.0, low)
        x = fitted.solve(v, cf.Absolute(damping))
        damped = dense + problem.decay.diag() + damping * torch.eye(len(dense)).double()
        assert relative(x @ damped, v) <= 1e-9
        with pytest.raises(cf.errors.InputError, match="no eigenvalues to treat"):
            cf.Hessian(form=form)
        assert low < -1e-3
        with pytest.raises(cf.errors.SingularError, match="not positive definite"):
            cf.fit(problem, cf.Hessian(cf.hessian.Plain(), form=form)).solve(
                torch.linalg.eigh(dense)[1][:, :1].T.contiguous(), cf.Absolute(1e-6)
            )

    def test_the_residual_of_every_query_is_reported(self) -> None:
        problem = zoo_problem("mlp")
        rung = cf.GGN(form=cf.inversion.ConjugateGradients(None, tolerance=1e-10, max_iterations=2))
        with pytest.warns(cf.errors.CurvfluenceWarning, match="residual"):
            scores = cf.influence(problem, rung, damping=cf.Absolute(1e-2))
        assert scores.residuals is not None
        assert len(scores.residuals) == len(problem.queries)
        assert max(scores.residuals) > 1e-10
        assert any("residual" in note for note in scores.notes)
        exact = cf.influence(problem, cf.GGN(cf.inversion.Matrix()), damping=cf.Absolute(1e-2))
        assert exact.residuals is None

    def test_bad_settings(self) -> None:
        with pytest.raises(cf.errors.InputError, match="drop"):
            cf.inversion.SampleSpace(drop=-1.0)
        with pytest.raises(cf.errors.InputError, match="tolerance"):
            cf.inversion.ConjugateGradients(tolerance=0.0)
        with pytest.raises(cf.errors.InputError, match="max_iterations"):
            cf.inversion.ConjugateGradients(max_iterations=0)
        with pytest.raises(cf.errors.InputError, match="form must be"):
            cf.GGN(form="dense")  # pyright: ignore[reportArgumentType]
        problem = zoo_problem("mlp", weight_decay=0.0)
        with pytest.raises((cf.errors.InputError, cf.errors.SingularError)):
            cf.influence(problem, cf.GGN(form=cf.inversion.SampleSpace()), damping=cf.Absolute(0.0))


class TestCostModel:
    def test_small_nets_take_a_matrix_and_wide_ones_the_sample_space(self) -> None:
        seeded()
        many = make(mlp(5, 4, 3), cf.CrossEntropy(), n=400)
        assert isinstance(cheapest(many), cf.inversion.Matrix)
        wide = make(mlp(5, 150, 150, 3), cf.CrossEntropy(), n=20)
        assert isinstance(cheapest(wide), cf.inversion.SampleSpace)
        assert isinstance(cf.fit(wide, cf.GGN()).blocks[0].operator, SampleSpaceOperator)

    def test_no_room_for_a_kernel_leaves_selected_rows(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seeded()
        problem = make(mlp(5, 150, 150, 3), cf.CrossEntropy(), n=1000)
        monkeypatch.setattr("curvfluence.runtime.device.memory", lambda _: 2 * 3 * 2**23)
        assert isinstance(cheapest(problem), cf.inversion.SelectedRows)

    def test_no_room_leaves_conjugate_gradients(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seeded()
        problem = make(mlp(5, 150, 150, 3), cf.CrossEntropy(), n=200)
        monkeypatch.setattr("curvfluence.runtime.device.memory", lambda _: 2**23)
        assert isinstance(cheapest(problem), cf.inversion.ConjugateGradients)
        operator = cf.fit(problem, cf.GGN()).blocks[0].operator
        assert isinstance(operator, IterativeOperator)


def test_every_case_of_the_zoo_has_a_product() -> None:
    for name in CASES:
        problem = zoo_problem(name)
        v = torch.randn(2, problem.parameters.count, dtype=torch.float64)
        assert relative(CurvatureProduct(problem, "GGN")(v), v @ oracles.dense_ggn(problem)) <= 1e-9
