"""Every rung against the dense matrix in float64: one abstract case, ten lines a rung."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.operators.dense import Dense
from curvfluence.curvature.operators.kronecker import KroneckerEigen
from curvfluence.curvature.rung import Rung
from curvfluence.runtime import budget
from tests import oracles
from tests.problems import all_problems, chain_problem, make, mixed_problem, mlp, seeded

PROBLEMS = all_problems()
TOLERANCE = 1e-10  # float64; the bar for matvec and to_dense


def close(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == wanted.shape
    error = float((found - wanted).abs().max())
    assert error <= tolerance * max(1.0, float(wanted.abs().max())), error


class CurvatureCase:
    """What holds of any rung; a subclass names the rung and its dense oracle."""

    rungs: tuple[Rung, ...]

    def oracle(self, problem: cf.Problem, rung: Rung) -> Tensor:
        raise NotImplementedError

    def inverse(self, problem: cf.Problem, rung: Rung, damping: float) -> Tensor:
        """The dense matrix that `solve` inverts, at one λ."""
        dense = self.oracle(problem, rung) + torch.diag(problem.decay)
        return dense + damping * torch.eye(len(dense), dtype=dense.dtype)

    @pytest.fixture(params=PROBLEMS, ids=str)
    def problem(self, request: pytest.FixtureRequest) -> cf.Problem:
        return PROBLEMS[request.param]

    def test_is_the_dense_oracle(self, problem: cf.Problem) -> None:
        for rung in self.rungs:
            close(cf.fit(problem, rung).to_dense(), self.oracle(problem, rung))

    def test_matvec(self, problem: cf.Problem) -> None:
        v = torch.randn(2, 3, problem.parameters.count, dtype=torch.float64)
        for rung in self.rungs:
            wanted = v @ self.oracle(problem, rung)
            close(cf.fit(problem, rung).matvec(v), wanted)

    def test_solve_inverts_at_absolute_damping(self, problem: cf.Problem) -> None:
        v = torch.randn(3, problem.parameters.count, dtype=torch.float64)
        for rung in self.rungs:
            x = cf.fit(problem, rung).solve(v, cf.Absolute(0.01))
            residual = (x @ self.inverse(problem, rung, 0.01) - v).norm() / v.norm()
            assert residual <= 1e-10

    def test_eigenvalues(self, problem: cf.Problem) -> None:
        for rung in self.rungs:
            wanted = torch.linalg.eigvalsh(self.oracle(problem, rung))
            close(cf.fit(problem, rung).eigenvalues(), wanted)

    def test_every_parameter_is_covered_once(self, problem: cf.Problem) -> None:
        for rung in self.rungs:
            curvature = cf.fit(problem, rung)
            index = torch.cat([block.index for block in curvature.blocks])
            assert torch.equal(index.sort().values, torch.arange(problem.parameters.count))
            names = [name for line in curvature.coverage for name in line.parameters]
            assert sorted(names) == sorted(problem.parameters.names)
            assert not any(line.fallback for line in curvature.coverage)


class RelativeCase(CurvatureCase):
    """Rungs of one or more blocks whose λ follows their mean eigenvalue."""

    def groups(self, problem: cf.Problem, rung: Rung) -> list[Tensor]:
        raise NotImplementedError

    def test_solve_at_relative_damping(self, problem: cf.Problem) -> None:
        v = torch.randn(3, problem.parameters.count, dtype=torch.float64)
        for rung in self.rungs:
            dense = self.oracle(problem, rung)
            damped = dense + torch.diag(problem.decay)
            for index in self.groups(problem, rung):
                # mean of the block's eigenvalues that are not 0, before w is added
                block = dense[index[:, None], index]
                sizes = torch.linalg.eigvalsh(block).abs()
                damped[index, index] += 0.1 * sizes.sum() / self.count(problem, rung, block, sizes)
            damped = self.treated(damped, dense, problem, rung)
            x = cf.fit(problem, rung).solve(v, cf.Relative(0.1))
            assert (x @ damped - v).norm() / v.norm() <= 1e-10

    def count(self, problem: cf.Problem, rung: Rung, block: Tensor, sizes: Tensor) -> int:
        """Eigenvalues above rounding: where they are not 0 in exact arithmetic, far above."""
        return int((sizes > 1e-11 * sizes.max()).sum())

    def treated(self, damped: Tensor, dense: Tensor, problem: cf.Problem, rung: Rung) -> Tensor:
        return damped


def joint_groups(problem: cf.Problem, rung: Rung) -> list[Tensor]:
    indices = [index for _, index in oracles.layer_indices(problem).values()]
    if getattr(rung, "joint_bias", True):
        return [index.flatten() for index in indices]
    return [torch.arange(place.start, place.stop) for place in problem.parameters.slices.values()]


class TestIdentity(CurvatureCase):
    rungs = (cf.Identity(),)

    def oracle(self, problem: cf.Problem, rung: Rung) -> Tensor:
        return torch.zeros(problem.parameters.count, problem.parameters.count).double()

    def inverse(self, problem: cf.Problem, rung: Rung, damping: float) -> Tensor:
        return torch.eye(problem.parameters.count, dtype=torch.float64)  # λ = 1, w ignored


class TestDiagonal(RelativeCase):
    rungs = (cf.Diagonal(), cf.Diagonal(joint_bias=False), cf.Diagonal(fisher=cf.Empirical()))

    def oracle(self, problem: cf.Problem, rung: Rung) -> Tensor:
        empirical = getattr(rung, "fisher", None) == cf.Empirical()
        full = (oracles.dense_empirical if empirical else oracles.dense_ggn)(problem)
        return torch.diag(full.diagonal())

    def groups(self, problem: cf.Problem, rung: Rung) -> list[Tensor]:
        return joint_groups(problem, rung)


class TestKFAC(RelativeCase):
    rungs = (cf.KFAC(), cf.KFAC(joint_bias=False))

    def oracle(self, problem: cf.Problem, rung: Rung) -> Tensor:
        assert isinstance(rung, cf.KFAC)
        dense = torch.zeros(problem.parameters.count, problem.parameters.count).double()
        for name, (layer, index) in oracles.layer_indices(problem).items():
            a, b = oracles.kronecker_factors(problem, name)
            places = index.flatten()
            if rung.joint_bias or layer.bias is None:
                dense[places[:, None], places] = torch.kron(b, a)
            else:
                weight, bias = index[:, :-1].flatten(), index[:, -1]
                dense[weight[:, None], weight] = torch.kron(b, a[:-1, :-1].contiguous())
                dense[bias[:, None], bias] = b
        return dense

    def groups(self, problem: cf.Problem, rung: Rung) -> list[Tensor]:
        return joint_groups(problem, rung)

    def test_exact_for_one_datum(self) -> None:
        """With N = 1 and one column, C = s sᵀ ⊗ a aᵀ = B ⊗ A on every layer block."""
        seeded()
        problem = make(mlp(5, 4, 2), cf.CrossEntropy(), outputs=2, n=1)
        close(cf.fit(problem, cf.KFAC()).to_dense(), cf.fit(problem, cf.BlockGGN()).to_dense())

    def test_exact_for_a_deep_linear_net_under_mse(self) -> None:
        """S and ∂f/∂z do not depend on the example, so the mean of the product factorises."""
        seeded()
        problem = make(mlp(5, 4, 6, 3, activation=torch.nn.Identity), cf.MSE())
        close(cf.fit(problem, cf.KFAC()).to_dense(), cf.fit(problem, cf.BlockGGN()).to_dense())

    def test_is_not_exact_elsewhere(self) -> None:
        problem = chain_problem()
        difference = (
            cf.fit(problem, cf.KFAC()).to_dense() - cf.fit(problem, cf.BlockGGN()).to_dense()
        )
        assert difference.norm() > 1e-3

    def test_factored_damping(self) -> None:
        """(A + π√λ I) ⊗ (B + √λ/π I), Martens & Grosse 2015, with λ + w in place of λ."""
        problem = chain_problem()
        curvature = cf.fit(problem, cf.KFAC(factored_damping=True))
        v = torch.randn(3, problem.parameters.count, dtype=torch.float64)
        x = curvature.solve(v, cf.Absolute(0.03))
        for name, (_, index) in oracles.layer_indices(problem).items():
            a, b = oracles.kronecker_factors(problem, name)
            total = 0.03 + 0.01
            pi = ((a.trace() / len(a)) / (b.trace() / len(b))).sqrt()
            a = a + pi * total**0.5 * torch.eye(len(a)).double()
            b = b + total**0.5 / pi * torch.eye(len(b)).double()
            places = index.flatten()
            close(x[:, places], v[:, places] @ torch.kron(b, a).inverse())

    def test_factored_damping_refuses_a_bias_with_its_own_decay(self) -> None:
        problem = PROBLEMS["bias without decay"]
        v = torch.ones(problem.parameters.count, dtype=torch.float64)
        with pytest.raises(cf.errors.InputError, match="joint_bias=False"):
            cf.fit(problem, cf.KFAC(factored_damping=True)).solve(v, cf.Absolute(0.1))
        apart = cf.KFAC(factored_damping=True, joint_bias=False)
        assert cf.fit(problem, apart).solve(v, cf.Absolute(0.1)).isfinite().all()


class TestEKFAC(RelativeCase):
    rungs = (cf.EKFAC(), cf.EKFAC(joint_bias=False))

    def basis(self, problem: cf.Problem, rung: Rung) -> Tensor:
        """U, [P, P]: the eigenbasis that the fitted value names (ties make it not unique)."""
        dense = torch.zeros(problem.parameters.count, problem.parameters.count).double()
        for block in cf.fit(problem, rung).blocks:
            operator = block.operator
            assert isinstance(operator, KroneckerEigen)
            dense[block.index[:, None], block.index] = torch.kron(
                operator.out_basis.contiguous(), operator.in_basis.contiguous()
            )
        return dense

    def oracle(self, problem: cf.Problem, rung: Rung) -> Tensor:
        """U diag(Uᵀ (GGN block) U) Uᵀ."""
        u = self.basis(problem, rung)
        mask = oracles.block_mask(problem, joint_groups(problem, rung))
        blocks = oracles.dense_ggn(problem) * mask
        return u @ torch.diag((u.T @ blocks @ u).diagonal()) @ u.T

    def groups(self, problem: cf.Problem, rung: Rung) -> list[Tensor]:
        return joint_groups(problem, rung)

    def test_basis_diagonalises_kfac(self, problem: cf.Problem) -> None:
        u = self.basis(problem, cf.EKFAC())
        rotated = u.T @ TestKFAC().oracle(problem, cf.KFAC()) @ u
        close(rotated, torch.diag(rotated.diagonal()))

    def test_never_further_from_the_block_than_kfac(self, problem: cf.Problem) -> None:
        block = cf.fit(problem, cf.BlockGGN()).to_dense()
        corrected = (cf.fit(problem, cf.EKFAC()).to_dense() - block).norm()
        plain = (cf.fit(problem, cf.KFAC()).to_dense() - block).norm()
        assert corrected <= plain * (1 + 1e-12) + 1e-12

    @pytest.mark.parametrize("seed", range(5))
    def test_never_further_with_sampled_labels_either(self, seed: int) -> None:
        """The argument is that of the exact case with the sampled columns in place of S."""
        problem = chain_problem()
        fisher = cf.MonteCarlo(2, seed=seed)
        with pytest.warns(cf.errors.CurvfluenceWarning, match="surprising labels"):
            dense = [
                cf.fit(problem, rung(fisher=fisher)).to_dense()
                for rung in (cf.BlockGGN, cf.EKFAC, cf.KFAC)
            ]
        assert (dense[1] - dense[0]).norm() <= (dense[2] - dense[0]).norm()


class ExactCase(RelativeCase):
    """Rungs of exact blocks, whose eigenvalues are not at hand."""

    def count(self, problem: cf.Problem, rung: Rung, block: Tensor, sizes: Tensor) -> int:
        """Rows that are not 0, and no more than the data make."""
        assert len(problem.train.inputs.unique(dim=0)) == len(problem.train)
        empirical = getattr(rung, "fisher", None) == cf.Empirical()
        columns = 1 if empirical else problem.loss.columns(problem.n_outputs)
        return min(int((block.diagonal() > 0).sum()), len(problem.train) * columns)


class TestBlockGGN(ExactCase):
    rungs = (
        cf.BlockGGN(),
        cf.BlockGGN(joint_bias=False),
        cf.BlockGGN(fisher=cf.Empirical()),
    )

    def oracle(self, problem: cf.Problem, rung: Rung) -> Tensor:
        empirical = getattr(rung, "fisher", None) == cf.Empirical()
        full = (oracles.dense_empirical if empirical else oracles.dense_ggn)(problem)
        return full * oracles.block_mask(problem, joint_groups(problem, rung))

    def groups(self, problem: cf.Problem, rung: Rung) -> list[Tensor]:
        return joint_groups(problem, rung)


class TestGGN(ExactCase):
    rungs = (cf.GGN(),)

    def oracle(self, problem: cf.Problem, rung: Rung) -> Tensor:
        return oracles.dense_ggn(problem)

    def groups(self, problem: cf.Problem, rung: Rung) -> list[Tensor]:
        return [torch.arange(problem.parameters.count)]


class TestHessian(RelativeCase):
    rungs = (
        cf.Hessian(),
        cf.Hessian(cf.hessian.Plain()),
        cf.Hessian(cf.hessian.Clip()),
    )

    def oracle(self, problem: cf.Problem, rung: Rung) -> Tensor:
        return oracles.dense_hessian(problem)

    def inverse(self, problem: cf.Problem, rung: Rung, damping: float) -> Tensor:
        dense = self.oracle(problem, rung) + torch.diag(problem.decay)
        mu, q = torch.linalg.eigh(dense)
        assert isinstance(rung, cf.Hessian)
        if isinstance(rung.treatment, cf.hessian.Abs):
            mu = mu.abs()
        elif isinstance(rung.treatment, cf.hessian.Clip):
            mu = mu.clamp_min(0)
        return q @ torch.diag(mu + damping) @ q.T

    def groups(self, problem: cf.Problem, rung: Rung) -> list[Tensor]:
        return [torch.arange(problem.parameters.count)]

    def treated(self, damped: Tensor, dense: Tensor, problem: cf.Problem, rung: Rung) -> Tensor:
        sizes = torch.linalg.eigvalsh(dense).abs()
        mean = float(sizes.sum()) / self.count(problem, rung, dense, sizes)
        return self.inverse(problem, rung, 0.1 * mean)

    def test_truncate(self) -> None:
        problem = chain_problem()
        mu, q = torch.linalg.eigh(oracles.dense_hessian(problem) + torch.diag(problem.decay))
        kept = mu + 0.01 > 0.025  # the null space lies at w + λ = 0.02
        assert kept.any()
        assert not kept.all()
        wanted = q @ torch.diag(torch.where(kept, 1 / (mu + 0.01), 0.0)) @ q.T
        curvature = cf.fit(problem, cf.Hessian(cf.hessian.Truncate(0.025)))
        assert curvature.name == "Hessian(truncate(0.025))"
        eye = torch.eye(len(mu), dtype=torch.float64)
        close(curvature.solve(eye, cf.Absolute(0.01)), wanted)

    def test_negative_eigenvalues_are_named(self) -> None:
        curvature = cf.fit(chain_problem(), cf.Hessian())
        assert any("are negative" in note for note in curvature.notes)

    def test_a_pole_is_refused(self) -> None:
        problem = chain_problem()
        mu = torch.linalg.eigvalsh(oracles.dense_hessian(problem) + torch.diag(problem.decay))
        v = torch.ones(problem.parameters.count, dtype=torch.float64)
        with pytest.raises(cf.errors.SingularError, match="block all"):
            cf.fit(problem, cf.Hessian(cf.hessian.Plain())).solve(v, cf.Absolute(float(-mu[0])))


class TestPivots:
    """When a Cholesky factor in float32 is trusted."""

    @staticmethod
    def _ill(dead: int) -> torch.Tensor:
        """C of rank 30 in 400 dimensions with `dead` rows of zeros, eigenvalues up to about 1."""
        rows = torch.randn(30, 400, generator=torch.Generator().manual_seed(0))
        rows[:, :dead] = 0.0
        return rows.T @ rows / torch.linalg.matrix_norm(rows, 2) ** 2

    @pytest.mark.parametrize("dead", [0, 3])
    @pytest.mark.parametrize("damping", [1e-2, 1e-3, 1e-4, 3e-5])
    def test_what_is_solved_is_right(self, dead: int, damping: float) -> None:
        c = self._ill(dead)
        none = torch.zeros(400)
        v = torch.randn(5, 400, generator=torch.Generator().manual_seed(1))
        exact = torch.linalg.solve(c.double() + damping * torch.eye(400), v.double().T).T
        found = Dense(c).solve(v, none, damping).double()
        # a relative error of eps times the condition number, 1/λ
        assert float((found - exact).norm() / exact.norm()) < 1.2e-7 / damping

    def test_a_dead_row_needs_no_more_damping_than_its_own(self) -> None:
        c = 1e6 * self._ill(3)
        v = torch.eye(400)[:3]
        damping = 1.0  # 1e-6 of the norm of C, and exact in the rows where C is zero
        c.diagonal()[3:].add_(1e3)
        assert torch.equal(Dense(c).solve(v, torch.zeros(400), damping), v)

    @pytest.mark.parametrize("dead", [0, 3])
    def test_every_damping_is_right_or_refused(self, dead: int) -> None:
        """What is not refused is within 10%: twice what a step of refinement may move."""
        c, none = self._ill(dead), torch.zeros(400)
        v = torch.randn(20, 400, generator=torch.Generator().manual_seed(2))
        refused = 0
        for damping in torch.logspace(-9, -3, 49).tolist():
            try:
                found = Dense(c).solve(v, none, damping).double()
            except cf.errors.SingularError:
                refused += 1
                continue
            exact = torch.linalg.solve(c.double() + damping * torch.eye(400), v.double().T).T
            assert float((found - exact).norm() / exact.norm()) < 0.1
        assert 0 < refused < 30
        with pytest.raises(cf.errors.SingularError, match="larger damping"):
            Dense(c).solve(v, none, 1e-9)


class TestAnyModel:
    """Parameters outside unshared Linear layers: exact at the top, a listed fallback below."""

    def test_ggn_and_hessian_are_exact(self) -> None:
        problem = mixed_problem()
        close(cf.fit(problem, cf.GGN()).to_dense(), oracles.dense_ggn(problem))
        close(cf.fit(problem, cf.Hessian()).to_dense(), oracles.dense_hessian(problem))

    def test_diagonal_is_exact(self) -> None:
        problem = mixed_problem()
        wanted = torch.diag(oracles.dense_ggn(problem).diagonal())
        curvature = cf.fit(problem, cf.Diagonal())
        close(curvature.to_dense(), wanted)
        assert curvature.fallback_share == 0

    def test_block_ggn_takes_modules_as_blocks(self) -> None:
        problem = mixed_problem()
        slices = problem.parameters.slices
        modules: dict[str, list[Tensor]] = {}
        for name, place in slices.items():
            key = name.rpartition(".")[0]
            modules.setdefault(key, []).append(torch.arange(place.start, place.stop))
        mask = oracles.block_mask(problem, [torch.cat(parts) for parts in modules.values()])
        curvature = cf.fit(problem, cf.BlockGGN())
        close(curvature.to_dense(), oracles.dense_ggn(problem) * mask)
        assert curvature.fallback_share == 0

    @pytest.mark.parametrize("rung", [cf.KFAC(), cf.EKFAC()], ids=lambda rung: rung.name)
    def test_fallbacks_are_exact_blocks_and_listed(self, rung: Rung) -> None:
        problem = mixed_problem()
        curvature = cf.fit(problem, rung)
        lines = {line.block: line for line in curvature.coverage}
        assert not lines["first"].fallback
        assert not lines["head"].fallback
        assert not lines["twice"].fallback
        assert not lines["positions"].fallback
        for name, reason in {"norm": "LayerNorm", "model": "has no rule"}.items():
            assert lines[name].fallback
            assert reason in lines[name].rule
        ggn = oracles.dense_ggn(problem)
        for block in curvature.blocks:
            if block.fallback:
                close(block.operator.to_dense(), ggn[block.index[:, None], block.index])
        assert ("fallbacks for" in curvature.name) == (curvature.fallback_share > 0.05)
        with pytest.raises(cf.errors.CoverageError, match=r"norm\.weight"):
            cf.fit(problem, rung, strict=True)

    def test_a_large_block_falls_back_to_its_diagonal(self) -> None:
        seeded()

        class Wide(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = torch.nn.Parameter(torch.randn(5, 500))
                self.head = torch.nn.Linear(500, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(torch.tanh(torch.einsum("bi,io->bo", x, self.table)))

        problem = make(Wide(), cf.CrossEntropy(), n=3, q=1)
        rows = oracles.jacobians(problem, problem.train.inputs)
        h = oracles.output_hessians(problem)
        wanted = torch.einsum("nkp,nkl,nlp->p", rows, h, rows)[:2500] / 3
        for rung in (cf.EKFAC(), cf.BlockGGN()):
            curvature = cf.fit(problem, rung)
            block = next(b for b in curvature.blocks if b.name == "model")
            assert block.fallback
            assert block.rule.startswith("diagonal")
            close(block.operator.eigenvalues(), wanted)

    def test_a_weight_used_outside_its_module_has_no_rule(self) -> None:
        seeded()

        class Tied(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = torch.nn.Linear(5, 3)

            def forward(self, x: Tensor) -> Tensor:
                inner = self.inner
                return self.inner(x) @ torch.einsum("oi,pi->op", inner.weight, inner.weight)

        problem = make(Tied(), cf.CrossEntropy())
        close(cf.fit(problem, cf.GGN()).to_dense(), oracles.dense_ggn(problem))
        line = cf.fit(problem, cf.EKFAC()).coverage[0]
        assert line.fallback
        assert "not that of its own calls alone" in line.rule

    def test_shared_parameters_are_one_layer(self) -> None:
        seeded()
        model = mlp(5, 5, 5, 3)
        model[2].weight = model[0].weight
        problem = make(model, cf.CrossEntropy())
        close(cf.fit(problem, cf.GGN()).to_dense(), oracles.dense_ggn(problem))
        close(cf.fit(problem, cf.Hessian()).to_dense(), oracles.dense_hessian(problem))
        lines = {c.block: c for c in cf.fit(problem, cf.EKFAC()).coverage}
        assert "expand" in lines["0"].rule
        assert "a bias alone" in lines["0.bias"].rule  # each of them is added once
        assert "a bias alone" in lines["2"].rule

    def test_one_module_used_twice_keeps_its_parameters(self) -> None:
        seeded()
        shared = torch.nn.Linear(5, 5)
        model = torch.nn.Sequential(shared, torch.nn.Tanh(), shared, torch.nn.Linear(5, 3))
        problem = make(model, cf.CrossEntropy())
        close(cf.fit(problem, cf.GGN()).to_dense(), oracles.dense_ggn(problem))
        close(cf.fit(problem, cf.Hessian()).to_dense(), oracles.dense_hessian(problem))
        assert all(isinstance(p, torch.nn.Parameter) for p in shared.parameters())
        assert cf.fit(problem, cf.KFAC()).coverage[0].rule == "Kronecker, expand"

    def test_frozen_parameters_are_no_part_of_theta(self) -> None:
        seeded()
        model = mlp(5, 4, 6, 3)
        model[0].requires_grad_(False)
        model[2].bias.requires_grad_(False)
        problem = make(model, cf.CrossEntropy())
        assert problem.parameters.frozen == ("0.weight", "0.bias", "2.bias")
        close(cf.fit(problem, cf.GGN()).to_dense(), oracles.dense_ggn(problem))
        close(cf.fit(problem, cf.Hessian()).to_dense(), oracles.dense_hessian(problem))

    def test_in_place_activations(self) -> None:
        seeded()
        inplace = torch.nn.Sequential(
            torch.nn.Linear(5, 4), torch.nn.ReLU(inplace=True), torch.nn.Linear(4, 3)
        )
        problem = make(inplace, cf.CrossEntropy())
        close(cf.fit(problem, cf.GGN()).to_dense(), oracles.dense_ggn(problem))
        close(cf.fit(problem, cf.Hessian()).to_dense(), oracles.dense_hessian(problem))


class TestFisher:
    def test_mc_is_unbiased(self) -> None:
        """The mean over seeds approaches type2 at the Monte Carlo rate: within five standard
        errors, entry by entry."""
        problem = chain_problem()
        exact = cf.fit(problem, cf.BlockGGN()).to_dense()
        with pytest.warns(cf.errors.CurvfluenceWarning):
            draws = torch.stack(
                [
                    cf.fit(problem, cf.BlockGGN(fisher=cf.MonteCarlo(4, seed=s))).to_dense()
                    for s in range(200)
                ]
            )
        error = draws.std(0) / 200**0.5
        assert ((draws.mean(0) - exact).abs() <= 5 * error + 1e-12).all()
        assert (draws.mean(0) - exact).norm() > 1e-6  # it is a sample

    def test_mc_is_reproducible_and_seeded(self) -> None:
        problem = chain_problem()

        def dense(seed: int) -> Tensor:
            with pytest.warns(cf.errors.CurvfluenceWarning):
                return cf.fit(problem, cf.EKFAC(fisher=cf.MonteCarlo(1, seed=seed))).to_dense()

        assert torch.equal(dense(3), dense(3))
        assert not torch.equal(dense(3), dense(4))

    def test_mc_names_the_expected_number_of_surprising_labels(self) -> None:
        problem = chain_problem()
        p = problem.outputs(problem.train, "x").softmax(-1)
        expected = float((1 - p.max(-1).values).sum()) * 3
        with pytest.warns(cf.errors.CurvfluenceWarning, match="nearly zero"):
            curvature = cf.fit(problem, cf.KFAC(fisher=cf.MonteCarlo(3, seed=7)))
        assert curvature.fisher == "mc(3)"
        assert any(f"seed 7: {expected:.3g} surprising" in note for note in curvature.notes)

    def test_default_is_type2_up_to_64_columns(self) -> None:
        seeded()
        few = make(mlp(5, 65), cf.CrossEntropy(), outputs=65)
        many = make(mlp(5, 70, 66), cf.CrossEntropy(), outputs=66)
        narrow = make(mlp(5, 66), cf.CrossEntropy(), outputs=66)  # 5 of them are carried
        assert cf.fit(few, cf.KFAC()).fisher == cf.fit(narrow, cf.KFAC()).fisher == "type2"
        curvature = cf.fit(many, cf.KFAC())  # 12 examples, nearly uniform: about 94 surprises
        assert curvature.fisher == "mc(8)"
        assert any("by default" in note for note in curvature.notes)


class TestPoliteness:
    RUNGS = (
        cf.Identity(),
        cf.Diagonal(),
        cf.KFAC(),
        cf.EKFAC(),
        cf.BlockGGN(),
        cf.GGN(),
        cf.Hessian(),
    )

    @pytest.mark.parametrize("make_problem", [chain_problem, mixed_problem])
    def test_the_model_is_left_as_found(self, make_problem: object) -> None:
        problem = make_problem()  # pyright: ignore[reportCallIssue]
        model = problem.model
        model.train()
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        rng = torch.get_rng_state()
        for rung in self.RUNGS:
            cf.influence(problem, rung)
        assert torch.equal(rng, torch.get_rng_state())
        assert model.training
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert all(bool((p.grad == 3.0).all()) for p in model.parameters())
        assert all(p.requires_grad for p in model.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    def test_the_model_is_left_as_found_after_a_failure(self) -> None:
        problem = chain_problem()
        with torch.no_grad():
            problem.theta["2.weight"][0, 0] = float("nan")
        with pytest.raises(cf.errors.NonFiniteError, match="example 0"):
            cf.influence(problem, cf.EKFAC())
        assert not any(m._forward_hooks for m in problem.model.modules())
        assert all(p.grad is None for p in problem.model.parameters())


class TestValues:
    """Eigenvalues that are estimated under a Fisher type of their own."""

    @pytest.mark.parametrize("rung", [cf.EKFAC, cf.EShampoo])
    def test_results_name_both(self, rung: type[cf.EKFAC] | type[cf.EShampoo]) -> None:
        problem = chain_problem()
        with pytest.warns(cf.errors.CurvfluenceWarning, match="nearly zero"):
            sampled = cf.fit(problem, rung(cf.Type2(), values=cf.MonteCarlo(1)))
        assert sampled.fisher == "type2, values mc(1)"
        assert any("surprising labels" in note for note in sampled.notes)
        assert cf.fit(problem, rung(cf.Type2(), values=cf.Type2())).fisher == "type2"
        empirical = cf.fit(problem, rung(cf.Type2(), values=cf.Empirical()))
        assert empirical.fisher == "type2, values empirical"

    @pytest.mark.parametrize("rung", [cf.EKFAC, cf.EShampoo])
    def test_a_name_is_no_fisher(self, rung: type[cf.EKFAC] | type[cf.EShampoo]) -> None:
        with pytest.raises(cf.errors.InputError, match=r"values must be Type2"):
            rung(values="type2")  # pyright: ignore[reportArgumentType]


class TestValue:
    """A curvature is a value: what is read from it is the reader's own."""

    @pytest.mark.parametrize("rung", [cf.GGN(), cf.Hessian(), cf.BlockGGN(), cf.Diagonal()])
    def test_the_dense_matrix_is_a_copy(self, rung: cf.Rung) -> None:
        problem = chain_problem()
        curvature = cf.fit(problem, rung)
        before = cf.influence(problem, curvature).values
        curvature.to_dense().fill_(7.0)
        curvature.eigenvalues().fill_(7.0)
        assert torch.equal(cf.influence(problem, curvature).values, before)


def test_layers_on_one_input_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their A is one tensor: a sum that grew in its memory would grow once for each of them."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.head = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.q(x)) * self.k(x))

    seeded()
    problem = make(Two(), cf.CrossEntropy(), n=40)
    rungs = (cf.KFAC(), cf.EKFAC(), cf.Shampoo(), cf.BlockGGN(), cf.GGN())
    wanted = [cf.fit(problem, rung).to_dense() for rung in rungs]
    monkeypatch.setattr(budget, "EXAMPLES", 7)
    for rung, dense in zip(rungs, wanted, strict=True):
        found = cf.fit(problem.at(problem.theta | problem.state), rung).to_dense()
        # Shampoo takes the root of an eigenvalue that is 0 but for rounding
        root = isinstance(rung, cf.Shampoo)
        rtol, atol = (1e-6, 1e-7 * float(dense.abs().max())) if root else (1e-10, 1e-15)
        torch.testing.assert_close(found, dense, rtol=rtol, atol=atol)


class TestHybridsRoom:
    def test_what_its_parts_need_is_asked_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = chain_problem()
        hybrid = cf.hybrids.Project(cf.GGN(), cf.KFAC())
        parts = (cf.GGN(), cf.KFAC())
        assert hybrid.elements(problem) == sum(rung.elements(problem) for rung in parts) > 0
        monkeypatch.setattr("curvfluence.runtime.device.memory", lambda _: 64)
        with pytest.raises(cf.errors.InputError, match="GiB for its matrices"):
            cf.fit(problem, hybrid)

    def test_a_class_is_no_rung(self) -> None:
        with pytest.raises(cf.errors.InputError, match="matrix must be a rung"):
            cf.hybrids.Project(cf.GGN, cf.KFAC)  # pyright: ignore[reportArgumentType]


def test_settings_are_equal_where_they_say_the_same() -> None:
    for rung in (cf.KFAC(), cf.EKFAC(), cf.Shampoo(), cf.TKFAC(), cf.EShampoo()):
        assert pickle.loads(pickle.dumps(rung)) == rung
    assert cf.KFAC(sharing=cf.Expand()) == cf.KFAC()
    assert cf.KFAC(sharing=cf.Reduce()) != cf.KFAC()


class TestDecayInInverse:
    """`decay_in_inverse=False` inverts C + λI of a net that was trained with weight decay."""

    @pytest.mark.parametrize(
        "rung", [cf.KFAC(), cf.EKFAC(), cf.BlockGGN(), cf.GGN(), cf.Hessian()], ids=repr
    )
    def test_scores_are_those_without_w(self, rung: Rung) -> None:
        given = all_problems()["bias without decay"]
        x = given.model, given.loss, given.train, given.queries
        left_out = cf.Problem(*x, weight_decay=dict(given.weight_decay), decay_in_inverse=False)
        without = cf.Problem(*x)
        found, wanted = (
            cf.influence(p, rung, damping=cf.Absolute(0.1)) for p in (left_out, without)
        )
        assert torch.equal(found.values, wanted.values)
        assert any("left out of the inverse" in note for note in found.notes)
        assert not any("left out of the inverse" in note for note in wanted.notes)
        assert left_out.weight_decay == given.weight_decay
        assert not bool(left_out.to(torch.float32).decay.any())
        ours = cf.influence(given, rung, damping=cf.Absolute(0.1))
        assert not torch.equal(ours.values, found.values)
        against = "Hessian" if isinstance(rung, cf.Hessian) else "GGN"
        assert found.certificate(against).residuals == wanted.certificate(against).residuals
        assert found.certificate(against).matrix == "A + λI"
        assert ours.certificate(against).matrix == "A + W + λI"
        assert f"{against} + W + λI" in str(ours.certificate(against))

    def test_it_is_part_of_what_a_curvature_is_fitted_on(self) -> None:
        given = all_problems()["mse"]
        x = given.model, given.loss, given.train, given.queries
        fitted = cf.fit(given, cf.EKFAC())
        other = cf.Problem(*x, weight_decay=dict(given.weight_decay), decay_in_inverse=False)
        with pytest.raises(cf.errors.InputError, match="differs in the weight decay: fit"):
            cf.influence(other, fitted)
