"""Scores by block, by group, by token, compressed, streamed, certified: all against plain ones."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.operators.kronecker import Rotated
from curvfluence.curvature.operators.low_rank import LowRank
from curvfluence.curvature.operators.operator import Against
from curvfluence.curvature.operators.solution import AtLowRank, InLayer
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients
from curvfluence.jacobian.terms import SharedOuter
from curvfluence.runtime import budget
from curvfluence.score import tokens
from tests import oracles
from tests.problems import make, mlp, seeded
from tests.zoo import zoo_problem

ZOO = ["mlp", "cnn with groups", "embedding", "multi-head attention", "untied transformer"]
DAMPING = cf.Absolute(1e-2)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).norm()) <= tolerance * float(wanted.norm())


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("rung", [cf.EKFAC(), cf.BlockGGN(), cf.GGN()], ids=lambda r: r.name)
class TestParts:
    def test_blocks_add_up(self, name: str, rung: cf.Rung) -> None:
        problem = zoo_problem(name)
        plain = cf.influence(problem, rung, damping=DAMPING)
        split = cf.influence(problem, rung, damping=DAMPING, by_block=True)
        assert plain.blocks is None
        assert split.blocks is not None
        assert list(split.blocks) == [block for block, _ in split.lambdas]
        close(torch.stack(list(split.blocks.values())).sum(0), plain.values)
        close(split.values, plain.values)

    def test_groups(self, name: str, rung: cf.Rung) -> None:
        problem = zoo_problem(name)
        values = cf.influence(problem, rung, damping=DAMPING).values
        labels = torch.tensor([0, 2, 1, 0, 2, 2, 1])
        wanted = torch.stack([values[:, labels == k].sum(1) for k in range(3)], dim=1)
        close(cf.group_influence(problem, rung, labels, damping=DAMPING), wanted)
        weights = torch.rand(4, 7, dtype=torch.float64)
        close(cf.group_influence(problem, rung, weights, damping=DAMPING), values @ weights.T)

    def test_streamed_to_a_file(self, name: str, rung: cf.Rung, tmp_path: Path) -> None:
        problem = zoo_problem(name)
        plain = cf.influence(problem, rung, damping=DAMPING)
        path = tmp_path / "scores.npy"
        streamed = cf.influence(problem, rung, damping=DAMPING, out=path)
        assert torch.equal(streamed.values, plain.values)
        assert np.array_equal(np.load(path), plain.values.numpy())
        assert torch.equal(streamed.top(3).indices, plain.top(3).indices)
        with pytest.raises(cf.errors.InputError, match="exists"):
            cf.influence(problem, rung, damping=DAMPING, out=path)


def test_queries_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = zoo_problem("cnn with groups", q=5)
    wanted = cf.influence(problem, cf.EKFAC(), damping=DAMPING)
    monkeypatch.setattr(budget, "SOLVED", 2 * problem.parameters.count)
    found = cf.influence(problem, cf.EKFAC(), damping=DAMPING, by_block=True)
    close(found.values, wanted.values, 1e-12)
    assert found.blocks is not None
    close(torch.stack(list(found.blocks.values())).sum(0), wanted.values)


FAULTS = ["refuses", "loses the graph", "wrong factor", "wrong factor at one example"]


class Doubled(torch.nn.Module):
    """Twice the outputs of a model, by a function whose double backward has a fault."""

    def __init__(self, model: torch.nn.Module, one: Tensor, fault: str | None) -> None:
        super().__init__()
        self.model, self.fault = model, fault
        self.register_buffer("one", one)

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        if self.fault is None:
            return 2 * out
        same = (x == self.one).flatten(1).all(1).view(-1, *[1] * (out.ndim - 1))
        everywhere = not self.fault.endswith("one example")
        return _Double.apply(out, same | everywhere, self.fault)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Tensor, fault: str) -> Tensor:
        ctx.where, ctx.fault = where, fault
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        if ctx.fault == "loses the graph":
            return 2 * g.detach(), None, None
        return torch.where(ctx.where, _Again.apply(g, ctx.fault), 2 * g), None, None


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, fault: str) -> Tensor:
        ctx.fault = fault
        return 2 * g

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        if ctx.fault == "refuses":
            raise NotImplementedError
        return 3 * g, None


class Large(torch.nn.Module):
    """A million times the outputs where the inputs are the ones."""

    def __init__(self, model: torch.nn.Module, one: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("one", one)

    def forward(self, x: Tensor) -> Tensor:
        here = (x == self.one).flatten(1).all(1)
        return self.model(x) * torch.where(here, 1e12, 1.0)[:, None, None].double()


class TestTokens:
    @pytest.fixture(autouse=True, params=["along queries", "by positions"])
    def way(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        """Both ways to the same numbers."""
        monkeypatch.setattr(tokens, "DIRECTIONS", 0.0 if request.param == "along queries" else 1e9)
        return request.param

    def problem(self) -> cf.Problem:
        return zoo_problem("untied transformer")

    def test_the_way_is_the_one(self, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
        taken: list[str] = []
        for name in ("rows_in_chunks", "_by_directions"):
            own = getattr(tokens, name)

            def watched(*args: object, own: Any = own, name: str = name) -> object:
                taken.append(name)
                return own(*args)

            monkeypatch.setattr(tokens, name, watched)
        cf.token_influence(self.problem(), cf.Identity())
        assert ("_by_directions" in taken) is (way == "along queries")

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_model_that_cannot_be_differentiated_twice(self, way: str, fault: str) -> None:
        """Its numbers are those of passes by position, whatever its double backward does, and
        wherever: every chunk is looked at, not the first examples alone."""
        found: list[Tensor] = []
        for one in (fault, None):
            plain = self.problem()
            model = Doubled(plain.model, plain.train.inputs[6], one)
            made = cf.Problem(model, plain.loss, plain.train, plain.queries)
            seen = one is not None and way == "along queries"
            with pytest.warns(match="a pass for each") if seen else nullcontext():
                found.append(cf.token_influence(made, cf.Identity()))
        close(found[0], found[1])

    def test_a_query_without_a_gradient(self) -> None:
        """Nothing is what adds up to nothing, without a warning."""
        problem = self.problem()
        none = torch.zeros(2, problem.parameters.count).double()
        with warnings.catch_warnings():
            warnings.simplefilter("error", cf.errors.CurvfluenceWarning)
            parts = tokens._by_directions(problem, problem.train, none)
        assert parts is not None
        assert all(bool((part == 0).all()) for part in parts)

    @pytest.mark.parametrize(("chunk", "first"), [(1, 6), (4, 4)])
    def test_the_warning_names_the_chunk(
        self, way: str, chunk: int, first: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = self.problem()
        model = Doubled(plain.model, plain.train.inputs[6], "wrong factor at one example")
        made = cf.Problem(model, plain.loss, plain.train, plain.queries)
        monkeypatch.setattr(tokens, "_chunk", lambda _: chunk)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            cf.token_influence(made, cf.Identity())
        ours = [one for one in seen if issubclass(one.category, cf.errors.CurvfluenceWarning)]
        if way == "by positions":
            assert not ours
            return
        (one,) = ours
        assert f"at examples from {first} on" in str(one.message)

    def test_a_gradient_that_is_not_finite(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Is no matter of the way: it is raised at once, with the number of the example."""

        class Steep(cf.CrossEntropy):
            def gradient(self, output: Tensor, target: Any) -> Tensor:
                found = super().gradient(output, target)
                return torch.where(output.detach().abs() > 1e6, torch.nan, found)

        plain = self.problem()
        model = Large(plain.model, plain.train.inputs[5])
        made = cf.Problem(model, cf.Positions(Steep()), plain.train, plain.queries)
        monkeypatch.setattr(tokens, "_chunk", lambda _: 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error", cf.errors.CurvfluenceWarning)
            with pytest.raises(cf.errors.NonFiniteError, match=r"training set.* example 5 "):
                cf.token_influence(made, cf.Identity())

    def test_forecast(self, way: str) -> None:
        names = [stage.name for stage in cf.plan(self.problem(), cf.KFAC(), tokens=True).stages]
        along = "positions, along queries" in names
        assert along is (way == "along queries")
        assert along is not ("passes, one a position" in names)
        with pytest.raises(cf.errors.InputError, match="Positions"):
            cf.plan(zoo_problem("mlp"), cf.KFAC(), tokens=True)

    def test_they_add_up_to_the_example(self) -> None:
        problem = self.problem()
        found = cf.token_influence(problem, cf.EKFAC(), damping=DAMPING)
        assert found.shape == (2, 7, 4)
        close(found.sum(2), cf.influence(problem, cf.EKFAC(), damping=DAMPING).values)
        ignored = problem.train.targets == -100
        assert int(ignored.sum()) == 3
        assert bool((found[:, ignored] == 0).all())

    def test_against_autograd(self) -> None:
        problem = self.problem()
        loss = problem.loss
        assert isinstance(loss, cf.Positions)
        dense = cf.fit(problem, cf.GGN()).to_dense()
        damped = dense + problem.decay.diag() + 1e-2 * torch.eye(len(dense)).double()
        x = torch.linalg.solve(damped, oracles.query_gradients(problem).T).T

        def each(theta: Tensor) -> Tensor:
            out = oracles.outputs_at(problem, theta, problem.train.inputs).view(28, -1)
            y = problem.train.targets.flatten()
            values = torch.nn.functional.cross_entropy(out, y, reduction="none")
            return values / loss.mean_count

        g = torch.autograd.functional.jacobian(each, oracles.flat(problem)).view(7, 4, -1)
        wanted = torch.einsum("qp,ntp->qnt", x, g) / 7
        close(cf.token_influence(problem, cf.GGN(), damping=DAMPING), wanted, 1e-9)

    def test_a_loss_without_positions_is_refused(self) -> None:
        with pytest.raises(cf.errors.InputError, match="Positions"):
            cf.token_influence(zoo_problem("mlp"), cf.EKFAC())


@pytest.mark.parametrize(("queries", "along"), [(1, True), (6, True), (7, False), (700, False)])
def test_which_way_is_cheaper(queries: int, along: bool) -> None:
    """As many products as 0.6 of the positions, four here; none under autocast, or without."""
    problem = zoo_problem("untied transformer")
    assert problem.loss.positions == 4
    assert tokens.along_queries(problem, queries) is along
    assert not tokens.along_queries(zoo_problem("mlp"), queries)
    single = deepcopy(problem.model).float()
    rounded = cf.Problem(
        single, problem.loss, problem.train, problem.queries, autocast=torch.bfloat16
    )
    assert not tokens.along_queries(rounded, queries)


def test_a_pass_for_each_where_both_cost_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "DIRECTIONS", 0.5)
    problem = zoo_problem("untied transformer")
    assert [tokens.along_queries(problem, queries) for queries in (7, 8, 9)] == [True, False, False]


@pytest.mark.parametrize(("room", "examples"), [(0, 1), (5.9, 5), (1e9, 256)])
def test_examples_at_a_time(room: float, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the numbers of their rows are in the room of a pass."""
    problem = zoo_problem("untied transformer")
    each = 4 * discover(problem).elements(1)
    monkeypatch.setattr(budget, "PASS", int(room * each))
    assert tokens._chunk(problem) == examples
    assert isinstance(tokens._chunk(problem), int)


class TestCompression:
    def test_the_error_is_as_stated(self) -> None:
        seeded()
        x = torch.randn(4, 7, 3, dtype=torch.float64) @ torch.randn(4, 3, 9, dtype=torch.float64)
        exact = LowRank.of(x, 1e-10)
        assert exact.rank == 3
        assert exact.error <= 1e-12
        rough = LowRank.of(x, 0.5)
        assert rough.rank < 3
        gap = (x - rough.left @ rough.right.mT).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
        assert abs(float(gap.max()) - rough.error) <= 1e-12
        assert rough.error <= 0.5
        term = SharedOuter(
            torch.randn(6, 5, 9, dtype=torch.float64), torch.randn(6, 2, 5, 7, dtype=torch.float64)
        )
        close(exact.inner(term), term.inner(x))

    def test_scores(self) -> None:
        problem = zoo_problem("cnn with groups")
        plain = cf.influence(problem, cf.EKFAC(), damping=DAMPING)
        for tolerance in (1e-9, 0.3):
            found = cf.influence(problem, cf.EKFAC(), damping=DAMPING, compress=tolerance)
            told = "relative error up to" if tolerance > 0.1 else "compress changed nothing"
            assert any(told in note for note in found.notes)
            close(found.values, plain.values, 10 * tolerance)
        queries = query_gradients(problem, discover(problem))
        fitted = cf.fit(problem, cf.EKFAC())
        solved = fitted.solve_rows(queries, DAMPING, against=Against(7), compress=0.3)
        assert any(isinstance(part, AtLowRank) for part in solved.parts.values())
        assert 0 < solved.compression_error <= 0.3
        with pytest.raises(cf.errors.InputError, match="compress"):
            cf.influence(problem, cf.EKFAC(), compress=2.0)


def test_both_coordinates_give_the_same() -> None:
    """Few training examples: rows are rotated. Many: the solved queries are."""
    problem = make(mlp(5, 8, 3), cf.CrossEntropy(), n=40)
    curvature = cf.fit(problem, cf.EKFAC())
    queries = query_gradients(problem, discover(problem))
    few = curvature.solve_rows(queries, DAMPING, against=Against(1))
    many = curvature.solve_rows(queries, DAMPING, against=Against(10**6))
    assert all(isinstance(part, Rotated) for part in few.parts.values())
    assert all(isinstance(part, InLayer) for part in many.parts.values())
    close(few.inner(queries), many.inner(queries), 1e-12)


class TestCertificate:
    @pytest.mark.parametrize("against", ["GGN", "Hessian"])
    @pytest.mark.parametrize("name", ["mlp", "untied transformer"])
    def test_it_is_the_residual(self, against: str, name: str) -> None:
        problem = zoo_problem(name)
        exact = oracles.dense_ggn(problem) if against == "GGN" else oracles.dense_hessian(problem)
        g = oracles.query_gradients(problem)
        for rung in (cf.EKFAC(), cf.Diagonal(), cf.GGN()):
            fitted = cf.fit(problem, rung)
            scores = cf.influence(problem, fitted, damping=cf.Relative(0.1))
            shift = problem.decay.clone()
            for block, value in zip(fitted.blocks, fitted.lambdas(cf.Relative(0.1)), strict=True):
                shift[block.index] += value
            x = fitted.solve(g, cf.Relative(0.1))
            wanted = (x @ exact + shift * x - g).norm(dim=1) / g.norm(dim=1)
            found = scores.certificate(against)
            residuals = torch.tensor(found.residuals, dtype=torch.float64)
            assert torch.allclose(residuals, wanted, rtol=1e-6, atol=1e-12)
            assert found.rung == scores.rung
            assert against in str(found)
        assert scores.certificate("GGN").worst <= 1e-10

    def test_better_rungs_have_smaller_residuals(self) -> None:
        problem = make(mlp(5, 8, 3), cf.CrossEntropy(), n=60)
        worst = [
            cf.influence(problem, rung, damping=DAMPING).certificate().worst
            for rung in (cf.GGN(), cf.BlockGGN(), cf.Diagonal())
        ]
        assert worst == sorted(worst)

    def test_in_another_dtype(self) -> None:
        exact = zoo_problem("mlp")
        single = exact.to(torch.float32)
        scores = cf.influence(single, cf.GGN(cf.inversion.Matrix()), damping=DAMPING)
        found = scores.certificate(dtype=torch.float64)
        assert found.dtype == "float64"
        assert 1e-9 < found.worst < 1e-4

    def test_refused(self) -> None:
        problem = zoo_problem("mlp")
        with pytest.raises(cf.errors.InputError, match="'GGN' or 'Hessian'"):
            cf.influence(problem, cf.EKFAC()).certificate("Fisher")
        with pytest.raises(cf.errors.InputError, match="nothing to certify"):
            cf.influence(problem, cf.Identity()).certificate()


def test_bad_groups() -> None:
    problem = zoo_problem("mlp")
    for groups in (torch.rand(7), torch.arange(6), torch.rand(2, 6), torch.tensor([-1] * 7)):
        with pytest.raises(cf.errors.InputError, match="group"):
            cf.group_influence(problem, cf.EKFAC(), groups)
    weights = torch.rand(5, 7).double()
    weights[2, 4], weights[4, :] = torch.nan, torch.inf
    with pytest.raises(cf.errors.InputError, match="weights of group 2 hold a NaN"):
        cf.group_influence(problem, cf.EKFAC(), weights)


def test_a_query_without_a_gradient_hides_no_residual() -> None:
    seeded()
    x = torch.randn(12, 5, dtype=torch.float64)
    net = mlp(5, 6, 3).double()
    y = net(x).detach() + 0.3 * torch.randn(12, 3, dtype=torch.float64)
    qy = y[:2].clone()
    qy[0] = net(x[:2]).detach()[0]
    problem = cf.Problem(net, cf.MSE(), (x, y), (x[:2], qy))
    rung = cf.GGN(cf.inversion.ConjugateGradients(None, max_iterations=1))
    with pytest.warns(cf.errors.CurvfluenceWarning, match="residual"):
        scores = cf.influence(problem, rung, damping=cf.Absolute(1e-3))
    assert scores.residuals is not None
    assert scores.residuals[0] == 0.0
    assert scores.residuals[1] > 0.01
