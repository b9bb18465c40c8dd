"""Every rung on every kind of layer, against dense matrices by plain autograd in float64."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.estimate.factors import Sharing
from curvfluence.curvature.operators.kronecker import KroneckerEigen
from curvfluence.jacobian.discovery import discover
from tests import oracles
from tests.oracles import kronecker_basis
from tests.problems import seeded
from tests.zoo import CASES, zoo_problem

TOLERANCE = 1e-9
RUNGS: dict[str, cf.Rung] = {
    "Diagonal": cf.Diagonal(),
    "KFAC": cf.KFAC(),
    "KFAC reduce": cf.KFAC(sharing=cf.Reduce()),
    "EKFAC": cf.EKFAC(),
    "EKFAC reduce": cf.EKFAC(sharing=cf.Reduce()),
    "EKFAC apart": cf.EKFAC(joint_bias=False),
    "Shampoo": cf.Shampoo(),
    "TKFAC apart": cf.TKFAC(joint_bias=False),
    "EShampoo": cf.EShampoo(),
    "BlockGGN": cf.BlockGGN(),
    "BlockGGN apart": cf.BlockGGN(joint_bias=False),
    "GGN": cf.GGN(),
}


@cache
def problem_of(name: str) -> cf.Problem:
    return zoo_problem(name)


def close(found: Tensor, wanted: Tensor) -> None:
    """Equal to 1e-9 of the largest entry."""
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= TOLERANCE * max(1e-3, float(wanted.abs().max()))


@pytest.mark.parametrize("name", CASES)
class TestEveryLayer:
    def test_coverage_is_as_stated(self, name: str) -> None:
        """Every parameter is in a layer or has a reason; none of the nets needs a dense fallback
        but where the case says so."""
        problem = problem_of(name)
        layout = discover(problem)
        ruled = {w for layer in layout.layers for w in (layer.weight, layer.bias) if w}
        assert ruled | set(layout.others) == set(problem.parameters.names)
        assert not ruled & set(layout.others)
        assert bool(layout.others) == CASES[name].fallbacks

    def test_every_parameter_counts(self, name: str) -> None:
        """No gradient is so small beside the others that an error in it would not show."""
        rows_np = oracles.example_gradients(problem_of(name))
        for parameter, place in problem_of(name).parameters.slices.items():
            size = float(rows_np[:, place].norm())
            if parameter.endswith("k.bias"):  # adds the same to all scores of a query: no effect
                assert size <= 1e-12
            else:
                assert size >= 1e-3 * float(rows_np.norm()), (parameter, size)

    def test_example_gradients(self, name: str) -> None:
        problem = problem_of(name)
        wanted = oracles.query_gradients(problem) @ oracles.example_gradients(problem).T
        close(cf.influence(problem, cf.Identity()).values, wanted / len(problem.train))

    @pytest.mark.parametrize("joint", [True, False])
    def test_dense_rungs(self, name: str, joint: bool) -> None:
        problem = problem_of(name)
        ggn = oracles.dense_ggn(problem)
        close(cf.fit(problem, cf.GGN()).to_dense(), ggn)
        close(cf.fit(problem, cf.Diagonal(joint_bias=joint)).to_dense(), ggn.diagonal().diag())
        blocks = cf.fit(problem, cf.BlockGGN(joint_bias=joint)).blocks
        for block in blocks:
            close(block.operator.to_dense(), ggn[block.index[:, None], block.index])
        together = torch.cat([block.index for block in blocks]).sort().values
        assert torch.equal(together, torch.arange(problem.parameters.count))

    @pytest.mark.parametrize("sharing", [cf.Expand(), cf.Reduce()], ids=lambda s: s.name)
    def test_ekfac_is_the_diagonal_in_its_basis(self, name: str, sharing: Sharing) -> None:
        """Λ = diag(Uᵀ (GGN block) U) with U as it stands, so the sum over t is in the square; and
        never further from the block than K-FAC in the same basis."""
        problem = problem_of(name)
        ggn = oracles.dense_ggn(problem)
        kfac = cf.fit(problem, cf.KFAC(sharing=sharing))
        ekfac = cf.fit(problem, cf.EKFAC(sharing=sharing))
        for block, below in zip(ekfac.blocks, kfac.blocks, strict=True):
            own = ggn[block.index[:, None], block.index]
            if not isinstance(block.operator, KroneckerEigen):
                assert block.fallback
                close(block.operator.to_dense(), own)
                continue
            basis = kronecker_basis(block.operator)
            close(basis.T @ basis, torch.eye(len(own), dtype=torch.float64))
            close(block.operator.values.flatten(), (basis.T @ own @ basis).diagonal())
            ours = float((block.operator.to_dense() - own).norm())
            assert ours <= float((below.operator.to_dense() - own).norm()) * (1 + 1e-9)

    @pytest.mark.parametrize("rung", RUNGS)
    def test_products_and_inverses(self, name: str, rung: str) -> None:
        problem = problem_of(name)
        fitted = cf.fit(problem, RUNGS[rung])
        dense = fitted.to_dense()
        v = torch.randn(3, problem.parameters.count, dtype=torch.float64)
        close(fitted.matvec(v), v @ dense)
        damped = dense + problem.decay.diag() + 1e-2 * torch.eye(len(dense), dtype=torch.float64)
        x = fitted.solve(v, cf.Absolute(1e-2))
        assert float((x @ damped - v).norm()) <= TOLERANCE * float(v.norm())

    def test_hessian(self, name: str) -> None:
        problem = problem_of(name)
        if "bag" in name:  # torch has no second derivative of it
            with pytest.raises(
                cf.errors.InputError, match=r"\(EmbeddingBag\) cannot be differentiated twice"
            ):
                cf.fit(problem, cf.Hessian())
            return
        close(cf.fit(problem, cf.Hessian()).to_dense(), oracles.dense_hessian(problem))

    @pytest.mark.parametrize("rung", ["EKFAC", "GGN"])
    def test_influence_from_end_to_end(self, name: str, rung: str) -> None:
        problem = problem_of(name)
        dense = cf.fit(problem, RUNGS[rung]).to_dense()
        damped = dense + problem.decay.diag() + 1e-2 * torch.eye(len(dense), dtype=torch.float64)
        g_qp, g_np = oracles.query_gradients(problem), oracles.example_gradients(problem)
        wanted = g_qp @ torch.linalg.solve(damped, g_np.T) / len(problem.train)
        close(cf.influence(problem, RUNGS[rung], damping=cf.Absolute(1e-2)).values, wanted)
        own = cf.self_influence(problem, RUNGS[rung], damping=cf.Absolute(1e-2))
        close(own, (g_np * torch.linalg.solve(damped, g_np.T).T).sum(1) / len(problem.train))

    def test_the_model_is_left_as_it_was(self, name: str) -> None:
        problem = zoo_problem(name)
        before = {n: v.clone() for n, v in problem.model.state_dict().items()}
        modes = [m.training for m in problem.model.modules()]
        rng = torch.get_rng_state()
        cf.influence(problem, cf.EKFAC())
        for n, v in problem.model.state_dict().items():
            assert torch.equal(v, before[n])
        assert all(p.grad is None for p in problem.model.parameters())
        assert modes == [m.training for m in problem.model.modules()]
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in problem.model.modules())
        assert torch.equal(rng, torch.get_rng_state())


class TestSharing:
    """What `expand` and `reduce` mean, by problems where they are plain K-FAC of another one."""

    def net(self) -> nn.Sequential:
        seeded()
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()

    def test_expand_is_kfac_of_positions_as_examples(self) -> None:
        net, n, t = self.net(), 5, 4
        x, y = torch.randn(n, t, 3, dtype=torch.float64), torch.randint(0, 3, (n, t))
        loss = cf.Positions(cf.CrossEntropy(), reduction="sum")
        shared = cf.Problem(net, loss, (x, y), (x[:1], y[:1]))
        flat = (x.flatten(0, 1), y.flatten())
        plain = cf.Problem(net, cf.CrossEntropy(), flat, (flat[0][:1], flat[1][:1]))
        for rung in (cf.KFAC(), cf.EKFAC(), cf.Diagonal(), cf.GGN()):
            close(cf.fit(shared, rung).to_dense(), t * cf.fit(plain, rung).to_dense())

    def test_ignored_positions_are_as_if_they_were_not_there(self) -> None:
        net = self.net()
        x, y = torch.randn(5, 4, 3, dtype=torch.float64), torch.randint(0, 3, (5, 4))
        y[1, 2:] = -100
        y[4, 0] = -100
        kept = y != -100
        for reduction, scale in (("sum", 5), ("token_mean", int(kept.sum()))):
            loss = cf.Positions(cf.CrossEntropy(), reduction=reduction)
            shared = cf.Problem(net, loss, (x, y), (x[:1], y[:1]))
            flat = (x[kept], y[kept])
            plain = cf.Problem(net, cf.CrossEntropy(), flat, (flat[0][:1], flat[1][:1]))
            for rung in (cf.KFAC(), cf.EKFAC(), cf.Diagonal(), cf.GGN()):
                wanted = cf.fit(plain, rung).to_dense() * (len(flat[1]) / scale)
                close(cf.fit(shared, rung).to_dense(), wanted)

    def test_reduce_is_kfac_of_the_mean_over_positions(self) -> None:
        """Of a linear layer under a mean over positions: z̄ = W x̄, exactly."""

        class Pooled(nn.Module):
            def __init__(self, net: nn.Sequential) -> None:
                super().__init__()
                self.net = net

            def forward(self, x: Tensor) -> Tensor:
                return self.net[2](torch.tanh(self.net[0](x).mean(1)))

        net = self.net()
        x, y = torch.randn(6, 4, 3, dtype=torch.float64), torch.randint(0, 3, (6,))
        pooled = cf.Problem(Pooled(net), cf.CrossEntropy(), (x, y), (x[:1], y[:1]))
        means = x.mean(1)
        plain = cf.Problem(net, cf.CrossEntropy(), (means, y), (means[:1], y[:1]))
        for rung, below in (
            (cf.KFAC(sharing=cf.Reduce()), cf.KFAC()),
            (cf.EKFAC(sharing=cf.Reduce()), cf.EKFAC()),
        ):
            close(cf.fit(pooled, rung).to_dense(), cf.fit(plain, below).to_dense())

    def test_a_lookup_keeps_a_diagonal_factor(self) -> None:
        problem = zoo_problem("embedding")
        for sharing in (cf.Expand(), cf.Reduce()):
            fitted = cf.fit(problem, cf.KFAC(sharing=sharing))
            operator = fitted.blocks[0].operator
            assert isinstance(operator, KroneckerEigen)
            assert operator.in_basis is None
            assert "expand" in fitted.coverage[0].rule

    def test_a_lookup_is_expand_on_unit_vectors(self) -> None:
        """The same net with one-hot inputs to a Linear of the transposed weight."""
        seeded()
        table = nn.Embedding(5, 3)
        top = nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(12, 3))
        ids, y = torch.randint(0, 5, (7, 4)), torch.randint(0, 3, (7,))
        linear = nn.Linear(5, 3, bias=False)
        linear.weight.data = table.weight.data.T.clone()
        one_hot = nn.functional.one_hot(ids, 5).double()
        first = cf.Problem(
            nn.Sequential(table, top).double(), cf.CrossEntropy(), (ids, y), (ids[:1], y[:1])
        )
        second = cf.Problem(
            nn.Sequential(linear, top).double(),
            cf.CrossEntropy(),
            (one_hot, y),
            (one_hot[:1], y[:1]),
        )
        for rung in (cf.KFAC(), cf.Diagonal(), cf.BlockGGN(), cf.GGN()):
            a, b = cf.fit(first, rung).to_dense(), cf.fit(second, rung).to_dense()
            size, rest = 15, 39
            turn = torch.arange(size).view(5, 3).T.flatten()  # (d, V) order of the (V, d) places
            order = torch.cat([turn, torch.arange(size, size + rest)])
            close(a[order[:, None], order], b)

    def test_a_fused_projection_is_one_layer(self) -> None:
        layout = discover(zoo_problem("multi-head attention"))
        assert [layer.name for layer in layout.layers] == [
            "embed",
            "attention.in_proj_weight",
            "attention.out_proj",
            "head",
        ]
