"""The GGN in sample space against dense rows: its kernel, its refinement and what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.inversion import SampleSpace
from curvfluence.curvature.operators import sample_space
from curvfluence.curvature.operators.cholesky import Cholesky
from curvfluence.curvature.operators.kernel_iteration import KernelIteration
from curvfluence.curvature.operators.operator import Against
from curvfluence.curvature.operators.sample_space import REFINEMENTS, SINGLE, SampleSpaceOperator
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients
from curvfluence.runtime import budget
from curvfluence.runtime.said import noted
from tests import oracles
from tests.test_selected_rows import ZOO, fitted, shift_of
from tests.zoo import zoo_problem

DAMPING = 0.05
ITERATED = SampleSpace(iterate=True)


def operator_of(problem: cf.Problem, form: SampleSpace) -> SampleSpaceOperator:
    operator = cf.fit(problem, cf.GGN(form=form)).blocks[0].operator
    assert isinstance(operator, SampleSpaceOperator)
    return operator


def vectors(problem: cf.Problem) -> Tensor:
    """Of three different sizes."""
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(3, problem.parameters.count, generator=generator, dtype=torch.float64)
    return v * torch.tensor([[1.0], [1.5], [0.3]], dtype=torch.float64)


class TestKernel:
    @pytest.mark.parametrize("name", ZOO)
    @pytest.mark.parametrize("numbers", [1, 200, 2**22])
    def test_against_dense_rows(
        self, name: str, numbers: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many of its rows are made at a time."""
        problem = zoo_problem(name)
        operator, shift = operator_of(problem, SampleSpace()), shift_of(problem)
        monkeypatch.setattr(budget, "FORMED", numbers)
        monkeypatch.setattr(budget, "KERNEL", numbers)
        z_rp = operator.rows.to_dense().flatten(0, 1)
        wanted = (z_rp / shift) @ z_rp.T
        wanted.diagonal().add_(len(problem.train))
        torch.testing.assert_close(operator.kernel(shift).tril(), wanted.tril())

    @pytest.mark.parametrize("step", [1, 3, 7, 10])
    def test_products_of_some_rows_at_a_time(self, step: int) -> None:
        z = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        total = torch.ones(7, 7, dtype=torch.float64)
        sample_space._add_gram(total, z, step)  # pyright: ignore[reportPrivateUsage]
        torch.testing.assert_close(total.tril(), (1 + z @ z.T).tril())


@pytest.mark.parametrize("form", [SampleSpace(), ITERATED])
def test_without_rows(form: SampleSpace) -> None:
    """Every row is 0, and goes: C is 0, and D has a decay of its own for each tensor."""
    x = torch.zeros(4, 3, dtype=torch.float64)
    x[3] = 1.0  # a query
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    decay = {"0.weight": 0.1, "1.weight": 0.4}
    data, asked = (x[:3], x[:3, :2]), (x[3:], x[3:, :2])
    problem = cf.Problem(model, cf.MSE(), data, asked, weight_decay=decay)
    operator = operator_of(problem, form)
    assert operator.count == 0
    v = vectors(problem)
    assert torch.equal(operator @ v[None], torch.zeros_like(v[None]))
    torch.testing.assert_close(operator.solve(v, problem.decay, 0.3), v / (problem.decay + 0.3))
    assert torch.equal(operator.eigenvalues(), torch.zeros(10, dtype=torch.float64))


@pytest.mark.parametrize("n", [4, 30])
def test_eigenvalues(n: int) -> None:
    """Of fewer rows than parameters, and of more."""
    problem = zoo_problem("mlp", n=n)
    wanted = torch.linalg.eigvalsh(oracles.dense_ggn(problem))
    found = operator_of(problem, SampleSpace()).eigenvalues().sort().values
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", [SampleSpace(), ITERATED])
class TestEitherWay:
    def test_solved_rows(self, form: SampleSpace, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the coordinates of the parameters, few at a time, one of them without a gradient and
        others small; an iteration states what it leaves."""
        problem = zoo_problem("mlp")
        monkeypatch.setattr(budget, "RIGHT_HAND_SIDES", 2 * problem.parameters.count)
        curvature = cf.fit(problem, cf.GGN(form=form)).within(1e-10)
        queries = query_gradients(problem, discover(problem))
        g = queries.to_dense()[:, 0]
        solved = curvature.solve_rows(queries, cf.Absolute(DAMPING), against=Against(7))
        dense = oracles.dense_ggn(problem) + problem.decay.diag()
        matrix = dense + DAMPING * torch.eye(len(dense), dtype=torch.float64)
        torch.testing.assert_close(solved.flat() @ matrix, g, rtol=0, atol=1e-9)
        assert (solved.residuals is None) == (not form.iterate)
        small = 1e-3 * g
        small[1] = 0
        x = curvature.solve(small, cf.Absolute(DAMPING))
        left = (x @ matrix - small).norm(dim=1)
        assert bool((left <= 1e-10 * small.norm(dim=1)).all())

    def test_what_is_made_of_a_damping_is_kept(
        self, form: SampleSpace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[float] = []
        products = SampleSpaceOperator.products

        def counted(self: SampleSpaceOperator, shift: Tensor) -> Tensor:
            made.append(float(shift[0]))
            return products(self, shift)

        monkeypatch.setattr(SampleSpaceOperator, "products", counted)
        problem = zoo_problem("mlp", weight_decay=0.0)
        operator, v = operator_of(problem, form), vectors(problem)
        for damping in (0.1, 0.1, 0.2, 0.1):
            operator.solve(v, problem.decay, damping)
        operator.within(0.5).solve(v, problem.decay, 0.1)
        assert made == [pytest.approx(one) for one in (0.1, 0.2, 0.1)]

    def test_no_damping(self, form: SampleSpace) -> None:
        problem = zoo_problem("mlp", weight_decay=0.0)
        with pytest.raises(InputError, match=r"needs w \+ λ > 0"):
            operator_of(problem, form).solve(vectors(problem), problem.decay, 0.0)


class TestRefinement:
    @pytest.mark.parametrize(
        ("share", "solved", "left"), [(1.0, 1, 0.0), (0.6, REFINEMENTS + 1, 0.4**6), (0.4, 2, 0.36)]
    )
    def test_while_it_halves_what_is_left(
        self, share: float, solved: int, left: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of an inverse that gives a share of the solution: how often it is taken, what x is then,
        and what is said of each vector relative to its own size."""
        problem = zoo_problem("mlp")
        v, operator = vectors(problem), operator_of(problem, SampleSpace())
        dense = oracles.dense_ggn(problem) + problem.decay.diag()
        inverse = torch.linalg.inv(dense + DAMPING * torch.eye(len(dense), dtype=torch.float64))
        times = 0

        def direct(
            self: SampleSpaceOperator, v_qp: Tensor, shift: Tensor, factor: Cholesky
        ) -> Tensor:
            nonlocal times
            times += 1
            return share * v_qp @ inverse

        monkeypatch.setattr(SampleSpaceOperator, "direct", direct)
        with noted() as said:
            x = operator.solve(v, problem.decay, DAMPING)
        assert times == solved
        torch.testing.assert_close(x, (1 - left) * v @ inverse)
        assert [one.split(", ")[0] for one in said] == [
            f"an inverse by iteration stopped at a relative residual of {left:.2g}"
        ] * (left > 0)


class TestIteration:
    @pytest.mark.parametrize(
        ("tolerance", "dtype"), [(SINGLE, torch.float32), (0.9 * SINGLE, torch.float64)]
    )
    def test_products_are_in_float64_where_float32_is_not_trusted(
        self, tolerance: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        problem = fitted(torch.float32)
        seen: list[torch.dtype] = []
        inner = SampleSpaceOperator._inner  # pyright: ignore[reportPrivateUsage]

        def of(self: SampleSpaceOperator, x_qp: Tensor) -> Tensor:
            seen.append(x_qp.dtype)
            return inner(self, x_qp)

        monkeypatch.setattr(SampleSpaceOperator, "_inner", of)
        operator = operator_of(problem, ITERATED).within(tolerance)
        operator.solve(vectors(problem).float(), problem.decay, 1.0)
        assert seen[0] == dtype

    def test_every_product_is_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Over several improvements; the most of all solves is noted."""
        problem = fitted(torch.float32)
        made: list[int] = []
        improve = KernelIteration.improve

        def counted(
            self: KernelIteration, y: Tensor, rho: Tensor, size: Tensor, to: float, shift: Tensor
        ) -> int:
            assert to == 1e-6 / 2
            made.append(improve(self, y, rho, size, to, shift))
            return made[-1]

        monkeypatch.setattr(KernelIteration, "improve", counted)
        operator = operator_of(problem, ITERATED).within(1e-6)
        with noted():
            operator.solve(vectors(problem).float(), problem.decay, 1e-4)
        assert len(made) > 1
        said = f"{sum(made)} products with the kernel of {operator.count:,} rows"
        assert operator.note(1e-4) == said

    @pytest.mark.parametrize(
        ("dtype", "errors", "times", "kept"),
        [
            (torch.float64, [1e-2, 1e-3, 1e-2], 3, 1e-3),  # the last step led away
            (torch.float64, [1e-2, 8e-3, 1e-4], 2, 8e-3),
            (torch.float64, [1e-2, 4e-3, 1e-3, 4e-4, 1e-4, 1e-5], REFINEMENTS, 1e-4),
            (torch.float64, [1e-2, 1e-13, 1e-14], 2, 1e-13),
            # the second led away and is taken back, the third is followed by x formed anew
            (torch.float32, [1e-2, 2e-2, 8e-3, 7e-3], 4, 7e-3),
            (torch.float32, [10 * 0.4**k for k in range(11)], 2 * REFINEMENTS, 10 * 0.4**9),
            # by products in float64 after the second, formed anew after the third
            (torch.float32, [1e-2, 9e-3, 8e-3, 1e-4, 9e-5], 5, 9e-5),
            (torch.float32, [1e-2, 9e-3, 8e-3, 7e-3], 4, 7e-3),
            (torch.float32, [1e-2, 9e-3, 8e-3, 1e-1], 4, 8e-3),
        ],
    )
    def test_while_it_halves_what_is_left(
        self,
        dtype: torch.dtype,
        errors: list[float],
        times: int,
        kept: float,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Of steps after which y is in error by so much: how many there are, and the best y of all
        is what x is of; with a decay of its own for each tensor."""
        problem = fitted(dtype, weight_decay={"0.weight": 1e-2})
        tolerance = 1e-9 if dtype == torch.float64 else SINGLE
        operator = operator_of(problem, ITERATED).within(tolerance)
        v, shift = vectors(problem).to(dtype), problem.decay + DAMPING
        z_rp = operator.rows.to(torch.float64).to_dense().flatten(0, 1)
        matrix = z_rp.T @ z_rp / operator.n + shift.double().diag()
        exact = torch.linalg.solve(matrix, v.double().T).T @ z_rp.T / operator.n
        kernel = z_rp / shift.double() @ z_rp.T + operator.n * torch.eye(len(z_rp))
        left, made = iter(errors), 0

        def improve(self: KernelIteration, step: Tensor, rho: Tensor, *_: object) -> int:
            """From wherever y is now, which ρ tells."""
            nonlocal made
            made += 1
            step.copy_(exact * next(left) + torch.linalg.solve(kernel, rho.T).T)
            return 1

        monkeypatch.setattr(KernelIteration, "improve", improve)
        with noted() as said:
            x = operator.solve(v, problem.decay, DAMPING)
        assert made == times
        wanted = (v.double() - (1 + kept) * exact @ z_rp) / shift.double()
        close = 1e-9 if dtype == torch.float64 else 1e-5
        assert float((x.double() - wanted).norm() / wanted.norm()) <= close
        true = (v.double() - x.double() @ matrix).norm(dim=1) / v.double().norm(dim=1)
        told = [float(one.split(" residual of ")[1].split(",")[0]) for one in said]
        assert told == ([] if kept < 1e-9 else [pytest.approx(float(true.max()), rel=0.05)])

    def test_squares_that_vanish_in_float32(self) -> None:
        """As many products as those of vectors of an ordinary size."""
        problem = fitted(torch.float32)
        notes: list[str | None] = []
        for size in (1.0, 1e-25):
            operator = operator_of(problem, ITERATED).within(SINGLE)
            operator.solve(size * vectors(problem).float(), problem.decay, 0.01)
            notes.append(operator.note(0.01))
        assert notes[0] == notes[1]

    def test_each_vector_has_the_better_of_both(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first one is solved before x is formed anew for the others, and is lost by that."""
        problem = fitted(torch.float32)
        operator = operator_of(problem, ITERATED).within(SINGLE)
        v, shift = vectors(problem).float(), problem.decay + DAMPING
        z_rp = operator.rows.to(torch.float64).to_dense().flatten(0, 1)
        kernel = z_rp / shift.double() @ z_rp.T + operator.n * torch.eye(len(z_rp))
        exact = torch.linalg.solve(kernel, z_rp @ (v.double() / shift.double()).T).T
        steps = iter([[1e-2] * 3, [9e-3] * 3, [1e-7, 8e-3, 8e-3], [2e-3, 7e-3, 7e-3]])

        def improve(self: KernelIteration, step: Tensor, rho: Tensor, *_: object) -> int:
            errors = torch.tensor(next(steps), dtype=torch.float64)[:, None]
            step.copy_(exact * errors + torch.linalg.solve(kernel, rho.T).T)
            return 1

        monkeypatch.setattr(KernelIteration, "improve", improve)
        with noted():
            x = operator.solve(v, problem.decay, DAMPING).double()
        left = v.double() - (x @ z_rp.T) @ z_rp / operator.n - shift.double() * x
        relative = left.norm(dim=1) / v.double().norm(dim=1)
        assert float(relative[0]) <= 1e-5
        assert float(relative[1:].min()) > 1e-4

    def test_in_float64_once_float32_gains_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And with x in float64 from the start, where more is asked than float32 has."""
        problem = fitted(torch.float32)
        inner, seen = SampleSpaceOperator._inner, list[torch.dtype]()  # pyright: ignore[reportPrivateUsage]

        def looked(self: SampleSpaceOperator, x: Tensor) -> Tensor:
            seen.append(x.dtype)
            return inner(self, x)

        monkeypatch.setattr(SampleSpaceOperator, "_inner", looked)
        monkeypatch.setattr(KernelIteration, "improve", lambda *_: 1)  # which gains nothing
        single, double = torch.float32, torch.float64
        for tolerance, wanted in ((1e-3, [single] * 2 + [double] * 5), (1e-6, [double] * 3)):
            seen.clear()
            with noted():
                operator = operator_of(problem, ITERATED).within(tolerance)
                operator.solve(vectors(problem).float(), problem.decay, DAMPING)
            assert seen == wanted

    def test_a_model_without_layers(self) -> None:
        """Of whose rows there is no outer product."""

        class Raw(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))

            def forward(self, x: Tensor) -> Tensor:
                return x.tanh() @ self.w.sin()

        torch.manual_seed(0)
        x, y = torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,))
        problem = cf.Problem(Raw(), cf.CrossEntropy(), (x, y), (x[:2], y[:2]))
        forms = (ITERATED, SampleSpace(), cf.inversion.Matrix())
        at = cf.Absolute(DAMPING)
        a, b, c = (cf.influence(problem, cf.GGN(f), damping=at).values for f in forms)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(b, c)

    def test_the_few_that_are_looked_at(self) -> None:
        """The largest in either way, once each."""
        many = torch.arange(20.0)
        found = sample_space._largest(many, (many - 9.6).abs())  # pyright: ignore[reportPrivateUsage]
        assert found.tolist() == [0, 1, 16, 17, 18, 19]
        assert sample_space._largest(many[:2], many[:2]).tolist() == [0, 1]  # pyright: ignore[reportPrivateUsage]

    def test_products_in_float64_by_slices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of rows in float32: of vectors with them, and of them with vectors."""
        operator = operator_of(fitted(torch.float32), ITERATED)
        monkeypatch.setattr(budget, "EXACT_ROWS", 500)
        z_rp = operator.rows.to(torch.float64).to_dense().flatten(0, 1)
        v = vectors(fitted())
        found = operator._inner(v)  # pyright: ignore[reportPrivateUsage]
        torch.testing.assert_close(found, v @ z_rp.T)
        back = operator._adjoint(found)  # pyright: ignore[reportPrivateUsage]
        torch.testing.assert_close(back, found @ z_rp)

    def test_vectors_take_as_many_products_as_rows(self) -> None:
        problem = zoo_problem("mlp")
        queries = query_gradients(problem, discover(problem))
        by_rows = cf.fit(problem, cf.GGN(form=ITERATED))
        solved = by_rows.solve_rows(queries, cf.Absolute(DAMPING), against=Against(7)).flat()
        operator = operator_of(problem, ITERATED)
        x = operator.solve(queries.to_dense()[:, 0], problem.decay, DAMPING)
        torch.testing.assert_close(x, solved)
        assert operator.note(DAMPING) == by_rows.blocks[0].operator.note(DAMPING)


def test_what_was_dropped_is_said() -> None:
    """A share of the inverse is bounded by the trace over λ, whatever the decay."""
    problem = zoo_problem("mlp", n=12)
    drop = 0.1 * float(oracles.dense_ggn(problem).trace())
    operator = operator_of(problem, SampleSpace(drop=drop))
    for damping in (0.0, 0.5, 4.0):
        bound = operator.dropped_trace / damping if damping else float("inf")
        said = operator.note(damping)
        assert said is not None
        assert said.endswith(f"changes an inverse by at most {bound:.2g} of itself")
    whole = operator_of(problem, SampleSpace())
    assert whole.note(0.5) is None
    assert (whole.dropped, whole.dropped_trace) == (0, 0.0)
