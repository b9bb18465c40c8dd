"""float32 against float64 on a well-fitted model, where p − y would cancel."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

import curvfluence as cf
from curvfluence.jacobian.discovery import discover
from tests.digits import well_fitted
from tests.problems import seeded
from tests.zoo import CASES, zoo_problem

RUNGS = (
    cf.Identity(),
    cf.Diagonal(),
    cf.KFAC(),
    cf.EKFAC(),
    cf.BlockGGN(),
    cf.GGN(),
    cf.Shampoo(),
    cf.TKFAC(),
    cf.EShampoo(),
    cf.Hessian(),
)


@pytest.mark.parametrize("damping", [1e-3, 1e-2, 1e-1])
@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_scores_in_float32(rung: cf.Rung, damping: float) -> None:
    """Relative Frobenius error <= 1e-3 and per-query Spearman >= .999 (the issue's bars)."""
    single, double, loss = well_fitted()
    assert loss < 1e-3
    low = cf.influence(single, rung, damping=cf.Absolute(damping)).values.double()
    high = cf.influence(double, rung, damping=cf.Absolute(damping)).values
    assert (low - high).norm() / high.norm() <= 1e-3
    worst = min(spearmanr(a, b).statistic for a, b in zip(low, high, strict=True))
    assert worst >= 0.999


def test_gradients_of_saturated_examples_keep_their_relative_precision() -> None:
    """p_y = 1 − 1e-12 rounds to 1 in float32; the residual must not round to 0."""
    loss = cf.CrossEntropy()
    f = torch.tensor([[28.0, 0.0, -1.0], [0.0, 60.0, 2.0]])
    y = torch.tensor([0, 1])
    found = loss.gradient(f, y).double()
    wanted = torch.autograd.functional.jacobian(lambda g: loss.values(g, y).sum(), f.double())
    # float64 autograd itself cancels at 1e-16 / 1e-12; the exact row is minus the others' sum
    exact = f.double().softmax(-1)
    exact[0, 0] = -(exact[0, 1] + exact[0, 2])
    exact[1, 1] = -(exact[1, 0] + exact[1, 2])
    assert torch.allclose(found, exact, rtol=1e-5, atol=0)
    assert torch.allclose(exact, wanted, rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("top", [0, 1, 2])
def test_factor_of_saturated_examples(top: int) -> None:
    """S Sᵀ entry by entry to relative precision, whichever class dominates."""
    loss = cf.CrossEntropy()
    f = torch.zeros(1, 3)
    f[0, top] = 24.0
    s = loss.factor(f, torch.tensor([0])).double()[0]
    p = f.double().softmax(-1)[0]
    wanted = torch.diag(p) - torch.outer(p, p)
    others = [k for k in range(3) if k != top]
    wanted[top, top] = p[top] * p[others].sum()  # p (1 − p) without cancellation
    assert torch.allclose(s @ s.T, wanted, rtol=1e-4, atol=0)


class TestBfloat16:
    """Forward and backward passes in bfloat16, everything made of them in float32."""

    @staticmethod
    def pair(name: str) -> tuple[cf.Problem, cf.Problem]:
        """(autocast, float64) at the same weights."""
        seeded()
        single = zoo_problem(name).to(torch.float32)
        low = cf.Problem(
            single.model,
            single.loss,
            single.train,
            single.queries,
            weight_decay=0.01,
            weights={**single.theta, **single.state},
            autocast=torch.bfloat16,
        )
        return low, single.to(torch.float64)

    # Eigenvalues of its A coincide, so EK-FAC depends on the basis that LAPACK picks.
    @pytest.mark.parametrize("name", [name for name in CASES if name != "conv1d circular"])
    def test_every_layer(self, name: str) -> None:
        low, high = self.pair(name)
        for rung in (cf.Diagonal(), cf.EKFAC(), cf.BlockGGN(), cf.GGN(cf.inversion.Matrix())):
            found = cf.influence(low, rung, damping=cf.Absolute(0.1)).values
            wanted = cf.influence(high, rung, damping=cf.Absolute(0.1)).values
            assert found.dtype == torch.float32
            # bfloat16 rounds by up to 2⁻⁸ = .004; an error of its rounding and not of a rule
            gap = float((found.double() - wanted).norm() / wanted.norm())
            assert 1e-5 < gap < 2e-2

    def test_coverage_is_that_of_float32(self) -> None:
        low, high = self.pair("tied transformer")
        assert discover(low).layers == discover(high).layers
        assert discover(low).others == discover(high).others

    def test_other_ways_to_score(self) -> None:
        low, high = self.pair("untied transformer")
        damping = cf.Absolute(0.1)
        for score in (cf.self_influence, cf.token_influence):
            found, wanted = (score(p, cf.KFAC(), damping=damping).double() for p in (low, high))
            assert float((found - wanted).norm() / wanted.norm()) < 2e-2
        hessian = cf.influence(low, cf.Hessian(), damping=damping).values.double()
        wanted = cf.influence(high, cf.Hessian(), damping=damping).values
        assert float((hessian - wanted).norm() / wanted.norm()) < 2e-2

    def test_the_certificate_can_be_exact(self) -> None:
        """A residual shows what bfloat16 costs the inverse and the query's gradient."""
        low, _ = self.pair("mlp")
        scores = cf.influence(low, cf.GGN(cf.inversion.Matrix()), damping=cf.Absolute(0.1))
        found = [scores.certificate(dtype=dtype).worst for dtype in (None, torch.float64)]
        assert all(1e-4 < residual < 2e-2 for residual in found)
        exact = cf.influence(low.exact, cf.GGN(cf.inversion.Matrix()), damping=cf.Absolute(0.1))
        assert exact.certificate(dtype=torch.float64).worst < 1e-5

    def test_is_named_and_leaves_no_trace(self) -> None:
        low, _ = self.pair("mlp")
        scores = cf.influence(low, cf.EKFAC())
        assert any("bfloat16" in note for note in scores.notes)
        assert low.fingerprint != low.exact.fingerprint
        assert low.at(low.theta).autocast is torch.bfloat16
        assert low.exact.exact is low.exact
        doubled = {name: 2 * value for name, value in low.theta.items()}
        moved = cf.influence(low.at(doubled), cf.EKFAC(), damping=cf.Absolute(0.1)).values
        again = cf.influence(low, cf.EKFAC(), damping=cf.Absolute(0.1)).values
        assert not torch.allclose(moved, again, rtol=0.1)
        assert not torch.is_autocast_enabled("cpu")

    def test_refused(self) -> None:
        net, rows = torch.nn.Linear(5, 3), (torch.randn(4, 5), torch.zeros(4, dtype=torch.long))
        with pytest.raises(cf.errors.InputError, match="float16 gradients underflow"):
            cf.Problem(net, cf.CrossEntropy(), rows, rows, autocast=torch.float16)
        with pytest.raises(cf.errors.InputError, match=r"its parameters are torch\.float64"):
            cf.Problem(net.double(), cf.CrossEntropy(), rows, rows, autocast=torch.bfloat16)
        with pytest.raises(cf.errors.InputError, match=r"model.float\(\), with autocast"):
            cf.Problem(net.bfloat16(), cf.CrossEntropy(), rows, rows)

    def test_conjugate_gradients_of_many_outputs(self) -> None:
        """Products by double backward are without autocast: rounded ones would not be linear."""
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 70))
        rows = (torch.randn(40, 5), torch.randint(0, 70, (40,)))
        low = cf.Problem(net, cf.CrossEntropy(), rows, rows, autocast=torch.bfloat16)
        rung = cf.GGN(cf.inversion.ConjugateGradients(tolerance=1e-4))
        found = cf.influence(low, rung, damping=cf.Absolute(0.01))
        assert found.residuals is not None
        assert max(found.residuals) <= 1e-4
        wanted = cf.influence(low.to(torch.float64), rung, damping=cf.Absolute(0.01)).values
        assert float((found.values.double() - wanted).norm() / wanted.norm()) < 3e-2
