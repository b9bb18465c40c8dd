"""The error of an inverse against the exact Hessian, by dense float64 algebra for every rung."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.operators.dense import Dense
from curvfluence.errors import InputError
from curvfluence.fidelity.inverse_error import (
    Spectral,
    Yardstick,
    damped_errors,
    inverse_errors,
)
from tests import oracles
from tests.problems import seeded
from tests.zoo import zoo_problem

RUNGS: dict[str, cf.Rung] = {
    "Identity": cf.Identity(),
    "Diagonal": cf.Diagonal(),
    "KFAC": cf.KFAC(),
    "KFAC factored": cf.KFAC(factored_damping=True),
    "EKFAC": cf.EKFAC(cf.Empirical()),
    "Shampoo": cf.Shampoo(),
    "TKFAC": cf.TKFAC(),
    "EShampoo": cf.EShampoo(),
    "BlockGGN": cf.BlockGGN(),
    "GGN": cf.GGN(cf.inversion.Matrix()),
    "Hessian": cf.Hessian(),
}
TAU = 1e-4


def bare(name: str) -> cf.Problem:
    """A net of the zoo without weight decay, as the error has it."""
    given = zoo_problem(name)
    return cf.Problem(given.model, given.loss, given.train, given.queries)


@pytest.fixture(scope="module", params=["mlp", "tied transformer", "linear"])
def problem(request: pytest.FixtureRequest) -> cf.Problem:
    return bare(request.param)


def pseudo_inverse(matrix: Tensor, *, signed: bool) -> Tensor:
    mu, u = torch.linalg.eigh(matrix)
    keep = (mu if signed else mu.abs()) > TAU
    return (u * torch.where(keep, 1 / mu, 0.0)) @ u.T


@pytest.mark.parametrize("name", RUNGS)
class TestAgainstDense:
    def parts(self, problem: cf.Problem, name: str) -> tuple[cf.Curvature, Tensor, Tensor]:
        fitted = cf.fit(problem, RUNGS[name])
        dense = fitted.to_dense() if name != "Identity" else torch.eye(len(problem.decay)).double()
        return fitted, dense, oracles.example_gradients(problem)

    @pytest.mark.parametrize("signed", [False, True])
    def test_of_the_pseudo_inverse(self, problem: cf.Problem, name: str, signed: bool) -> None:
        fitted, dense, v = self.parts(problem, name)
        exact, h = Spectral(cf.fit(problem, cf.Hessian())), oracles.dense_hessian(problem)
        found = inverse_errors(exact, Spectral(fitted), v, threshold=TAU, signed=signed)
        x = v if name == "Identity" else v @ pseudo_inverse(dense, signed=signed)
        wanted = (x @ h - v).square().sum(1) / v.square().sum(1)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("plain", [False, True])
    def test_of_the_damped_inverse(self, problem: cf.Problem, name: str, plain: bool) -> None:
        fitted, dense, v = self.parts(problem, name)
        h = oracles.dense_hessian(problem)
        mu, u = torch.linalg.eigh(h)
        top = h if plain else (u * mu.abs()) @ u.T
        exact = Spectral(cf.fit(problem, cf.Hessian()))
        found = damped_errors(exact, Spectral(fitted), v, 0.01, plain=plain)
        treated = (u * mu.abs()) @ u.T if name == "Hessian" else dense
        eye = torch.eye(len(h), dtype=torch.float64)
        x = v if name == "Identity" else torch.linalg.solve(treated + 0.01 * eye, v.T).T
        if name == "KFAC factored":  # not the inverse of C + λI, but what its solve makes
            x = fitted.solve(v, cf.Absolute(0.01))
        wanted = (x @ (top + 0.01 * eye) - v).square().sum(1) / v.square().sum(1)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def test_the_hessian_inverts_itself() -> None:
    """What is left is the part of v in the directions that were dropped."""
    problem = bare("mlp")
    exact, h = Spectral(cf.fit(problem, cf.Hessian())), oracles.dense_hessian(problem)
    v = oracles.example_gradients(problem)
    mu, u = torch.linalg.eigh(h)
    dropped = u[:, mu.abs() <= TAU]
    wanted = (v @ dropped).square().sum(1) / v.square().sum(1)
    torch.testing.assert_close(inverse_errors(exact, exact, v), wanted, rtol=1e-6, atol=1e-10)
    zero = damped_errors(exact, exact, v, 0.01)
    assert float(zero.max()) <= 1e-20


def test_what_makes_no_error() -> None:
    problem = bare("mlp")
    exact, v = Spectral(cf.fit(problem, cf.Hessian())), oracles.example_gradients(problem)
    ggn = Spectral(cf.fit(problem, cf.GGN(cf.inversion.Matrix())))
    with pytest.raises(InputError, match=r"GGN: the threshold 1e\+06 drops every eigenvalue"):
        inverse_errors(exact, ggn, v, threshold=1e6)
    with pytest.raises(InputError, match="float64"):
        inverse_errors(exact, exact, v.float())
    with pytest.raises(InputError, match="threshold must be a finite number"):
        inverse_errors(exact, exact, v, threshold="a")  # type: ignore[arg-type]


def test_a_linear_net_under_squared_error_has_none() -> None:
    """There GGN is H, and K-FAC its block (one layer, one output column)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 1).double()
    problem = cf.Problem(model, cf.MSE(), (x, y), (x[:3], y[:3]))
    exact, v = Spectral(cf.fit(problem, cf.Hessian())), oracles.example_gradients(problem)
    for rung in (cf.GGN(cf.inversion.Matrix()), cf.BlockGGN(), cf.KFAC()):
        fitted = Spectral(cf.fit(problem, rung))
        assert float(inverse_errors(exact, fitted, v).max()) <= 1e-20
    assert exact.values.shape == (4,)


@pytest.mark.parametrize("name", RUNGS)
def test_all_at_once_is_one_by_one(problem: cf.Problem, name: str) -> None:
    exact, v = Spectral(cf.fit(problem, cf.Hessian())), oracles.example_gradients(problem)
    fitted, dampings = Spectral(cf.fit(problem, RUNGS[name])), (1e-3, 0.1)
    found = Yardstick(exact, v).errors(fitted, dampings, threshold=TAU)
    close = {"rtol": 1e-7, "atol": 1e-12}
    for seen, signed in ((found.cut, False), (found.signed, True)):
        one = inverse_errors(exact, fitted, v, threshold=TAU, signed=signed)
        torch.testing.assert_close(seen, one, **close)
    for k, damping in enumerate(dampings):
        for seen, plain in ((found.damped, False), (found.plain, True)):
            one = damped_errors(exact, fitted, v, damping, plain=plain)
            torch.testing.assert_close(seen[k], one, **close)


def test_where_there_is_no_inverse_there_is_no_error() -> None:
    """A threshold above every eigenvalue, and a damping that does not make a singular matrix one
    that can be inverted: NaN, and the others stand."""
    problem = bare("mlp")
    exact, v = Spectral(cf.fit(problem, cf.Hessian())), oracles.example_gradients(problem)
    ggn = Spectral(cf.fit(problem, cf.GGN(cf.inversion.Matrix())))
    found = Yardstick(exact, v).errors(ggn, (0.0, 0.1), threshold=1e6)
    assert bool(found.cut.isnan().all())
    assert bool(found.signed.isnan().all())
    for each in (found.damped, found.plain):
        assert bool(each[0].isnan().all())
        assert bool(each[1].isfinite().all())
    with pytest.raises(InputError, match="float64"):
        Yardstick(exact, v.float())


class TestSpectral:
    def test_coordinates_of_several_blocks(self) -> None:
        """Σ μ (Uᵀv)² = vᵀ C v, block by block."""
        problem = bare("mlp")
        fitted, v = cf.fit(problem, cf.BlockGGN()), oracles.example_gradients(problem)
        assert len(fitted.blocks) > 1
        spectral = Spectral(fitted)
        found = spectral.coordinates(v)
        assert found.shape == v.shape
        wanted = ((v @ fitted.to_dense()) * v).sum(1)
        torch.testing.assert_close((found.square() * spectral.values).sum(1), wanted)

    def test_the_cut_is_by_size_unless_asked_by_sign(self) -> None:
        problem = bare("mlp")
        fitted = cf.fit(problem, cf.Hessian())
        dense, eye = fitted.to_dense(), torch.eye(len(problem.decay), dtype=torch.float64)
        by_size, by_sign = (pseudo_inverse(dense, signed=signed) for signed in (False, True))
        assert not torch.allclose(by_size, by_sign)
        torch.testing.assert_close(Spectral(fitted).pseudo_inverse(eye, TAU), by_size)
        found = Spectral(fitted).pseudo_inverse(eye, TAU, signed=True)
        torch.testing.assert_close(found, by_sign)

    def test_what_lies_at_the_threshold_is_dropped(self) -> None:
        problem = bare("mlp")
        fitted = cf.fit(problem, cf.Diagonal())
        entries = fitted.to_dense().diagonal()
        at = float(entries.sort().values[len(entries) // 2])
        found = Spectral(fitted).pseudo_inverse(torch.ones_like(entries)[None], at)[0]
        torch.testing.assert_close(found, torch.where(entries > at, 1 / entries, 0.0))
        assert found[entries == at].tolist() == [0.0]

    def test_a_block_that_is_dropped_whole(self) -> None:
        """Wherever it stands, the others' inverse is the one."""
        problem = bare("mlp")
        fitted, v = cf.fit(problem, cf.BlockGGN()), oracles.example_gradients(problem)
        sizes = [float(block.operator.eigenvalues().max()) for block in fitted.blocks]
        for low, high in ((0, 1), (1, 0)):
            scaled = [1.0, 1.0]
            scaled[low] = 1e-9 * sizes[high] / sizes[low]
            blocks = [
                replace(block, operator=Dense(factor * block.operator.to_dense()))
                for block, factor in zip(fitted.blocks, scaled, strict=True)
            ]
            curvature = replace(fitted, blocks=tuple(blocks))
            found = Spectral(curvature).pseudo_inverse(v, 1e-6 * sizes[high])
            wanted = torch.linalg.pinv(curvature.to_dense(), rtol=1e-6, hermitian=True)
            torch.testing.assert_close(found, v @ wanted, rtol=1e-6, atol=1e-9)


class TestNoInverse:
    """NaN where a threshold leaves nothing."""

    def test_of_one_cut_alone(self) -> None:
        """No eigenvalue of a concave loss is above 0: none is left by sign, and by size all."""
        seeded()
        x = torch.randn(9, 3, dtype=torch.float64)
        loss = cf.CustomLoss(lambda f, y: -(f - y).square().sum(-1))
        model = nn.Linear(3, 1).double()
        problem = cf.Problem(model, loss, (x, x[:, :1]), (x[:2], x[:2, :1]))
        exact, v = Spectral(cf.fit(problem, cf.Hessian())), oracles.example_gradients(problem)
        found = Yardstick(exact, v).errors(exact, (0.1,), threshold=TAU)
        assert bool(found.signed.isnan().all())
        assert float(found.cut.max()) <= 1e-20

    def test_of_eigenvalues_at_the_threshold(self) -> None:
        problem = bare("mlp")
        exact, v = Spectral(cf.fit(problem, cf.Hessian())), oracles.example_gradients(problem)
        diagonal = Spectral(cf.fit(problem, cf.Diagonal()))
        largest = float(diagonal.values.max())
        found = Yardstick(exact, v).errors(diagonal, (0.1,), threshold=largest)
        assert bool(found.cut.isnan().all())
        assert found.cut.shape == (len(v),)
        below = Yardstick(exact, v).errors(diagonal, (0.1,), threshold=0.999 * largest)
        assert bool(below.cut.isfinite().all())
