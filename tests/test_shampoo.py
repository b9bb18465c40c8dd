"""Shampoo, TKFAC and EShampoo against the partial traces of dense GGN blocks, and what is known of
how near they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.operators.kronecker import Kronecker, KroneckerEigen
from curvfluence.curvature.places import LayerPart
from tests import oracles
from tests.problems import make, mlp, seeded
from tests.test_architectures import CASES, TOLERANCE, close, problem_of

RUNGS = (cf.Shampoo, cf.TKFAC, cf.EShampoo)


def partial_traces(block: Tensor, shape: tuple[int, int], *, lookup: bool) -> tuple[Tensor, Tensor]:
    """L_oo' = Σ_i C[(o, i), (o', i)] and R_ii' = Σ_o C[(o, i), (o, i')]: with C = (1/N) Σ vec(G)
    vec(G)ᵀ they are (1/N) Σ G Gᵀ and (1/N) Σ Gᵀ G, whatever columns C is the sum of."""
    o, i = shape
    c_oioi = block.view(o, i, o, i)
    right = torch.einsum("aiaj->ij", c_oioi)
    left = torch.einsum("aibi->ab", c_oioi)
    return left, right.diagonal().diag() if lookup else right


def blocks_of(problem: cf.Problem, rung: cf.Rung) -> list[tuple[LayerPart, Kronecker, Tensor]]:
    """(place, operator, the dense GGN's block) of every layer."""
    ggn = oracles.dense_ggn(problem)
    found: list[tuple[LayerPart, Kronecker, Tensor]] = []
    for block in cf.fit(problem, rung).blocks:
        if isinstance(block.places, LayerPart):
            assert isinstance(block.operator, Kronecker)
            own = ggn[block.index[:, None], block.index]
            found.append((block.places, block.operator, own))
        else:
            assert block.fallback
    assert found
    return found


def largest_rank(problem: cf.Problem, part: LayerPart) -> int:
    """The largest rank of a G = (∂f_k/∂W) of the layer in any combination of columns: at most the
    rank of a random one, almost surely."""
    j_nkp = oracles.jacobians(problem, problem.train.inputs)
    mixed = torch.einsum("nkp,ck->ncp", j_nkp, torch.randn(3, j_nkp.shape[1]).double())
    g_ncoi = part.take(mixed).unflatten(-1, part.shape)
    return int(torch.linalg.matrix_rank(g_ncoi).max())


def least_eigenvalue(a: Tensor) -> float:
    return float(torch.linalg.eigvalsh(a)[0])


@pytest.mark.parametrize("name", CASES)
class TestEveryLayer:
    @pytest.mark.parametrize("joint", [True, False], ids=["joint", "apart"])
    def test_shampoo_is_the_root_of_the_product_of_partial_traces(
        self, name: str, joint: bool
    ) -> None:
        """The positive semi-definite one, of which there is one; squared, so that an eigenvalue of
        0 that is found as ε does not cost √ε."""
        for part, operator, own in blocks_of(problem_of(name), cf.Shampoo(joint_bias=joint)):
            found = operator.to_dense()
            left, right = partial_traces(own, part.shape, lookup=part.lookup)
            close(found @ found, torch.kron(left, right))
            close(found, found.mT)
            assert least_eigenvalue(found) >= -TOLERANCE * float(found.trace())

    @pytest.mark.parametrize("joint", [True, False], ids=["joint", "apart"])
    def test_tkfac_is_the_product_of_partial_traces_with_the_blocks_trace(
        self, name: str, joint: bool
    ) -> None:
        for part, operator, own in blocks_of(problem_of(name), cf.TKFAC(joint_bias=joint)):
            left, right = partial_traces(own, part.shape, lookup=part.lookup)
            close(operator.to_dense(), torch.kron(left, right) / own.trace())
            close(operator.to_dense().trace(), own.trace())

    def test_shampoo_times_the_rank_is_above_the_block(self, name: str) -> None:
        """Gupta, Koren & Singer 2018, lemma 8: G of rank r at most gives block ⪯ r L^½ ⊗ R^½."""
        problem = problem_of(name)
        seeded()
        for part, operator, own in blocks_of(problem, cf.Shampoo()):
            if not part.lookup:
                above = largest_rank(problem, part) * operator.to_dense() - own
                assert least_eigenvalue(above) >= -1e-7 * float(own.trace())

    def test_eshampoo_is_the_nearest_in_its_basis(self, name: str) -> None:
        problem = problem_of(name)
        others = [blocks_of(problem, rung()) for rung in (cf.Shampoo, cf.TKFAC)]
        for k, (part, operator, own) in enumerate(blocks_of(problem, cf.EShampoo())):
            assert isinstance(operator, KroneckerEigen)
            basis = oracles.kronecker_basis(operator)
            close(operator.values.flatten(), (basis.T @ own @ basis).diagonal())
            left, right = partial_traces(own, part.shape, lookup=part.lookup)
            for u, gram in ((operator.out_basis, left), (operator.in_basis, right)):
                turned = gram if u is None else u.T @ gram @ u
                close(turned, turned.diagonal().diag())
            ours, rounding = float((operator.to_dense() - own).norm()), 1e-14 * float(own.norm())
            for blocks in others:
                assert ours <= float((blocks[k][1].to_dense() - own).norm()) + rounding


def single_row() -> cf.Problem:
    """A block of rank one: one example, one output."""
    seeded()
    return make(mlp(5, 3, 1), cf.MSE(), outputs=1, n=1)


@pytest.mark.parametrize("rung", RUNGS)
def test_exact_for_a_single_row(rung: type) -> None:
    for _, operator, own in blocks_of(single_row(), rung()):
        found = operator.to_dense()
        close(found @ found, own @ own)


@pytest.mark.parametrize("rung", [cf.TKFAC, cf.EShampoo, cf.KFAC])
def test_exact_where_the_block_is_a_kronecker_product(rung: type) -> None:
    """A deep linear net under MSE. The roots of Shampoo's (tr A) B and (tr B) A do not give it."""
    seeded()
    problem = make(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), cf.MSE(), n=12)
    for _, operator, own in blocks_of(problem, rung()):
        close(operator.to_dense(), own)
    far = [float((o.to_dense() - own).norm()) for _, o, own in blocks_of(problem, cf.Shampoo())]
    assert min(far) > 1e-3


def test_a_layer_that_nothing_reaches() -> None:
    """No curvature: a trace of 0 divides nothing, and a damping alone is inverted."""
    seeded()
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    nn.init.zeros_(net[2].weight)  # pyright: ignore[reportArgumentType]
    problem = make(net, cf.CrossEntropy(), n=9, weight_decay=0.0)
    v = torch.randn(2, problem.parameters.count, dtype=torch.float64)
    for rung in RUNGS:
        fitted = cf.fit(problem, rung())
        assert bool((fitted.blocks[0].operator.to_dense() == 0).all())
        assert bool(fitted.solve(v, cf.Absolute(0.1)).isfinite().all())
        with pytest.raises(cf.errors.SingularError, match="has no curvature"):
            fitted.solve(v, cf.Relative(0.1))


def test_correcting_tkfac_is_eshampoo() -> None:
    """They have one eigenbasis, so one corrected diagonal."""
    problem = problem_of("mlp")
    of_tkfac = blocks_of(problem, cf.TKFAC())
    for (_, tkfac, own), (_, corrected, _) in zip(
        of_tkfac, blocks_of(problem, cf.EShampoo()), strict=True
    ):
        assert isinstance(tkfac, KroneckerEigen)
        basis = oracles.kronecker_basis(tkfac)
        by_hand = basis @ (basis.T @ own @ basis).diagonal().diag() @ basis.T
        close(corrected.to_dense(), by_hand)


@pytest.mark.parametrize("rung", RUNGS)
def test_sampled_factors(rung: type) -> None:
    """With as many draws as it takes the sampled Fisher is near the exact one; its own exactly."""
    problem = problem_of("mlp")
    exact = cf.fit(problem, rung()).to_dense()
    sampled = cf.fit(problem, rung(cf.MonteCarlo(2000, seed=1))).to_dense()
    assert 0 < float((sampled - exact).norm()) <= 0.1 * float(exact.norm())


@pytest.mark.parametrize("scale", [1e-22, 1e-12, 1.0, 1e12, 1e20])
@pytest.mark.parametrize("rung", [cf.Shampoo(), cf.TKFAC(), cf.EShampoo(), cf.KFAC()])
def test_the_scale_of_a_loss_in_float32(rung: cf.Rung, scale: float) -> None:
    """The product of two traces is beyond float32 long before either is."""
    seeded()
    x, y = torch.randn(30, 5), torch.randint(3, (30,))
    net = mlp(5, 4, 3).float()

    def problem(dtype: torch.dtype) -> cf.Problem:
        loss = cf.CustomLoss(
            lambda f, t: scale * torch.nn.functional.cross_entropy(f, t, reduction="none")
        )
        return cf.Problem(net, loss, (x, y), (x[:3], y[:3])).to(dtype)

    found = cf.fit(problem(torch.float32), rung).eigenvalues().sum()
    wanted = cf.fit(problem(torch.float64), rung).eigenvalues().sum()
    assert float(found) == pytest.approx(float(wanted), rel=1e-4)
