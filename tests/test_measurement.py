"""Measurements and the finer points of scores: labels, precision, damping by a truth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

import curvfluence as cf
from curvfluence.problem.measurement import Measurement
from tests import oracles
from tests.problems import chain_problem, log_cosh, make, mixed_problem, mlp, seeded

MEASUREMENTS = {
    "margin": cf.Margin(),
    "own": cf.LogProbability(),
    "class 2": cf.LogProbability(2),
    "custom": cf.CustomMeasurement(lambda f, y: f.square().sum(-1), lower_is_better=True),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_gradient(name: str) -> None:
    measurement = MEASUREMENTS[name]
    f = torch.randn(5, 4, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 1])
    wanted = jacobian(lambda g: measurement.values(g, y).sum(), f)
    assert torch.allclose(measurement.gradient(f, y), wanted, rtol=1e-10, atol=1e-14)


def test_values() -> None:
    f = torch.randn(5, 4, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 1])
    p = f.softmax(-1)
    own = p[torch.arange(5), y]
    assert torch.allclose(cf.LogProbability().values(f, y), own.log())
    assert torch.allclose(cf.LogProbability(2).values(f, y), p[:, 2].log())
    assert torch.allclose(cf.Margin().values(f, y), (own / (1 - own)).log())


def test_log_probability_of_a_saturated_query_in_float32() -> None:
    f = torch.tensor([[28.0, 0.0, -1.0]])
    y = torch.tensor([0])
    found = cf.LogProbability().gradient(f, y).double()
    exact = -f.double().softmax(-1)
    exact[0, 0] = -exact[0, 1:].sum()
    assert torch.allclose(found, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("measurement", [cf.Margin(), cf.LogProbability()])
def test_needs_labels(measurement: Measurement) -> None:
    seeded()
    with pytest.raises(cf.errors.InputError, match="class labels"):
        make(mlp(5, 4, 3), cf.MSE(), measurement=measurement)


def test_a_class_outside_the_outputs() -> None:
    seeded()
    with pytest.raises(cf.errors.InputError, match=r"class 7 is outside 0\.\.2"):
        make(mlp(5, 4, 3), cf.CrossEntropy(), measurement=cf.LogProbability(7))


def test_another_checkpoint_keeps_the_measurement() -> None:
    seeded()
    problem = make(mlp(5, 4, 3), cf.CrossEntropy(), measurement=cf.Margin())
    assert problem.at(problem.theta).measurement is problem.measurement


class TestBinaryPrecision:
    """Saturated logits in float32: neither gradient nor factor rounds to 0."""

    f = torch.tensor([[30.0], [-30.0], [30.0], [-30.0]])
    y = torch.tensor([[1.0], [0.0], [0.0], [1.0]])

    def test_gradient_and_factor(self) -> None:
        loss = cf.BinaryCrossEntropy()
        small = float(torch.tensor(-30.0, dtype=torch.float64).sigmoid())
        wanted = torch.tensor([[-small], [small], [1.0], [-1.0]], dtype=torch.float64)
        assert torch.allclose(loss.gradient(self.f, self.y).double(), wanted, rtol=1e-5, atol=0)
        curve = loss.factor(self.f, self.y).double().square()[:, 0, 0]
        assert torch.allclose(curve, torch.full((4,), small).double(), rtol=1e-5, atol=0)

    def test_coordinates_stay_finite_where_they_can(self) -> None:
        f = torch.tensor([[200.0], [-200.0]])
        y = torch.tensor([[1.0], [0.0]])
        assert cf.BinaryCrossEntropy().coordinates(f, y).isfinite().all()


class SplitJudge:
    """A truth whose validation and held-out queries prefer different dampings."""

    def __init__(self, scores: dict[float, tuple[float, float]], sizes: dict[float, float]) -> None:
        self.left_out = torch.eye(12, dtype=torch.float64)[:3]
        self.scores = scores
        self.sizes = sizes

    def judge(self, predicted_mq: Tensor) -> tuple[float, float]:
        norm = float(predicted_mq.norm())
        nearest = min(self.sizes, key=lambda d: abs(self.sizes[d] - norm))
        return self.scores[nearest]


class TestBestOf:
    DAMPINGS = (1.0, 0.001, 0.1)

    def judge(self, scores: dict[float, tuple[float, float]], problem: cf.Problem) -> SplitJudge:
        groups = torch.eye(12, dtype=torch.float64)[:3]
        sizes = {
            d: float(
                cf.influence(problem, cf.GGN(), damping=cf.Absolute(d)).for_group(groups).norm()
            )
            for d in self.DAMPINGS
        }
        return SplitJudge(scores, sizes)

    @pytest.mark.parametrize("make_problem", [chain_problem, mixed_problem])
    def test_chooses_on_validation_and_reports_held_out(self, make_problem: object) -> None:
        problem = make_problem()  # pyright: ignore[reportCallIssue]
        judge = self.judge({1.0: (0.1, 0.9), 0.001: (0.2, 0.1), 0.1: (0.8, 0.3)}, problem)
        best = cf.BestOf(tuple(map(cf.Absolute, self.DAMPINGS)), truth=judge)
        scores = cf.influence(problem, cf.GGN(), damping=best)
        assert scores.damping == cf.Absolute(0.1)
        note = next(n for n in scores.notes if "validation" in n)
        assert "0.800 on validation" in note
        assert "0.300 on held-out" in note
        assert "edge" not in note  # 0.1 lies between the others, wherever it is listed

    def test_an_edge_is_one_of_size_not_of_place(self) -> None:
        problem = chain_problem()
        judge = self.judge({1.0: (0.1, 0.9), 0.001: (0.9, 0.1), 0.1: (0.8, 0.3)}, problem)
        best = cf.BestOf(tuple(map(cf.Absolute, self.DAMPINGS)), truth=judge)
        notes = cf.influence(problem, cf.GGN(), damping=best).notes
        assert any("edge" in note for note in notes)

    def test_a_truth_without_a_number_is_refused(self) -> None:
        problem = chain_problem()
        judge = self.judge(dict.fromkeys(self.DAMPINGS, (float("nan"), 0.0)), problem)
        best = cf.BestOf(tuple(map(cf.Absolute, self.DAMPINGS)), truth=judge)
        with pytest.raises(cf.errors.InputError, match="not finite"):
            cf.influence(problem, cf.GGN(), damping=best)

    def test_identity_has_nothing_to_choose(self) -> None:
        problem = chain_problem()
        judge = self.judge(dict.fromkeys(self.DAMPINGS, (0.5, 0.0)), problem)
        best = cf.BestOf(tuple(map(cf.Absolute, self.DAMPINGS)), truth=judge)
        scores = cf.influence(problem, cf.Identity(), damping=best)
        assert scores.damping == cf.Absolute(1.0)
        assert scores.notes == ()


class TestInfluence:
    def test_self_influence_uses_its_damping(self) -> None:
        problem = chain_problem()
        g = oracles.example_gradients(problem)
        for damping in (0.01, 1.0):
            total = oracles.dense_ggn(problem) + (0.01 + damping) * torch.eye(g.shape[1]).double()
            wanted = (g * torch.linalg.solve(total, g.T).T).sum(1) / 12
            found = cf.self_influence(problem, cf.GGN(), damping=cf.Absolute(damping))
            assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-13)

    def test_leverage_of_one_is_refused(self) -> None:
        """Without decay, one example more than enough: its own removal leaves no minimum."""
        seeded()
        x = torch.eye(3, dtype=torch.float64)
        y = torch.ones(3, 1, dtype=torch.float64)
        problem = cf.Problem(nn.Linear(3, 1, bias=False).double(), cf.MSE(), (x, y), (x, y))
        with pytest.raises(cf.errors.SingularError, match="leverage"):
            cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.0), leverage=True)

    def test_identity_has_no_leverage(self) -> None:
        with pytest.raises(cf.errors.InputError, match="no units"):
            cf.influence(chain_problem(), cf.Identity(), leverage=True)

    def test_a_curvature_of_other_weights_or_decay_is_refused(self) -> None:
        problem = chain_problem()
        curvature = cf.fit(problem, cf.EKFAC())
        other = make(problem.model, problem.loss, weight_decay=0.5)
        moved = problem.at({name: value + 0.1 for name, value in problem.theta.items()})
        for at, what in ((other, "the weight decay"), (moved, "the weights")):
            with pytest.raises(cf.errors.InputError, match=f"differs in {what}: fit"):
                cf.influence(at, curvature)
            with pytest.raises(cf.errors.InputError, match=f"differs in {what}: fit"):
                cf.self_influence(at, curvature)

    def test_scores_carry_no_graph(self) -> None:
        seeded()
        x = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
        y = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
        problem = cf.Problem(mlp(5, 4, 3).double(), cf.MSE(), (x, y), (x, y))
        for rung in (cf.Identity(), cf.EKFAC(), cf.Hessian()):
            assert not cf.influence(problem, rung).values.requires_grad

    def test_damping_where_a_block_has_no_curvature(self) -> None:
        seeded()
        net = mlp(5, 4, 3, activation=nn.ReLU)
        with torch.no_grad():
            net[0].bias.fill_(-100.0)  # dead units: the first layer has no gradient
        problem = make(net, cf.CrossEntropy(), weight_decay=0.0)
        with pytest.raises(
            cf.errors.SingularError, match=r"block 0: it has no curvature.*Absolute"
        ):
            cf.influence(problem, cf.EKFAC())
        for rung in (cf.EKFAC(), cf.KFAC(factored_damping=True)):
            found = cf.influence(problem, rung, damping=cf.Absolute(0.1)).values
            assert found.isfinite().all()

    def test_truncation_is_named_and_never_total(self) -> None:
        problem = chain_problem()
        scores = cf.influence(
            problem, cf.Hessian(cf.hessian.Truncate(0.025)), damping=cf.Absolute(0.01)
        )
        assert any("directions set to 0: truncate(0.025)" in note for note in scores.notes)
        with pytest.raises(cf.errors.SingularError, match="leaves nothing"):
            cf.influence(problem, cf.Hessian(cf.hessian.Truncate(1e3)))

    def test_the_rank_speaks_only_where_it_bounds(self) -> None:
        """K-FAC of 6 examples is not of rank 18: it can be inverted without damping."""
        seeded()
        problem = make(mlp(5, 4, 3), cf.MSE(), weight_decay=0.0, n=8)
        for rung in (cf.Diagonal(), cf.KFAC(), cf.EKFAC()):
            found = cf.influence(problem, rung, damping=cf.Absolute(0.0)).values
            assert found.isfinite().all()
        with pytest.raises(cf.errors.SingularError, match="rank of at most 24"):
            cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.0))


class TestNonConvexLoss:
    @staticmethod
    def cauchy(f: Tensor, y: Tensor) -> Tensor:
        return torch.log1p((f - y).square()).sum(-1)

    @pytest.mark.parametrize("clip", [True, False])
    def test_the_hessian_keeps_the_negative_curvature(self, clip: bool) -> None:
        seeded()
        loss = cf.CustomLoss(self.cauchy, clip_negative=clip)
        problem = make(mlp(5, 4, 2, activation=nn.Tanh), loss, outputs=2)
        found = cf.fit(problem, cf.Hessian())
        assert torch.allclose(found.to_dense(), oracles.dense_hessian(problem), atol=1e-12)
        assert not any("set to 0" in note for note in found.notes)

    def test_one_example_does_not_hide_anothers_sign(self) -> None:
        loss = cf.CustomLoss(lambda f, y: (y * f.square()).sum(-1))
        f = torch.ones(2, 1, dtype=torch.float64)
        with pytest.raises(cf.errors.CurvfluenceError, match="not convex"):
            loss.factor(f, torch.tensor([[1e7], [-1.0]], dtype=torch.float64))

    def test_a_convex_custom_loss_takes_the_same_path(self) -> None:
        seeded()
        problem = make(mlp(5, 4, 2), cf.CustomLoss(log_cosh), outputs=2)
        found = cf.fit(problem, cf.Hessian()).to_dense()
        assert torch.allclose(found, oracles.dense_hessian(problem), atol=1e-12)


class TestBadArguments:
    """Each is refused with what to write instead, not with a traceback from inside."""

    @pytest.mark.parametrize(
        ("rung", "damping", "said"),
        [
            (cf.EKFAC(), 0.1, r"Relative\(0\.1\)"),
            (cf.EKFAC, cf.Relative(0.1), r"EKFAC\(\)"),
            ("ekfac", cf.Relative(0.1), r"EKFAC\(\)"),
        ],
    )
    def test_influence(self, rung: object, damping: object, said: str) -> None:
        with pytest.raises(cf.errors.InputError, match=said):
            cf.influence(chain_problem(), rung, damping=damping)  # pyright: ignore

    def test_rungs(self) -> None:
        with pytest.raises(cf.errors.InputError, match=r"Type2\(\)"):
            cf.KFAC(fisher="mc")  # pyright: ignore
        with pytest.raises(cf.errors.InputError, match=r"Type2\(\)"):
            cf.KFAC(fisher=cf.Empirical)  # pyright: ignore
        with pytest.raises(cf.errors.InputError, match=r"Abs\(\)"):
            cf.Hessian("abs")  # pyright: ignore

    def test_problem(self) -> None:
        x, y = torch.randn(6, 5), torch.randint(0, 3, (6,))
        net = mlp(5, 4, 3)

        def build(loss: object = None, inputs: Tensor = x, **options: object) -> cf.Problem:
            chosen = cf.CrossEntropy() if loss is None else loss
            return cf.Problem(net, chosen, (inputs, y), (inputs, y), **options)  # pyright: ignore

        with pytest.raises(cf.errors.InputError, match="CustomLoss"):
            build(nn.L1Loss())
        with pytest.raises(cf.errors.InputError, match="CustomMeasurement"):
            build(measurement=lambda f, y: f[:, 0])
        with pytest.raises(cf.errors.InputError, match=r"one example of shape \(4,\)"):
            build(inputs=x[:, :4])
        with pytest.raises(cf.errors.InputError, match="uint8"):
            build(inputs=x.to(torch.uint8))
        with pytest.raises(cf.errors.InputError, match="must be a finite number"):
            build(weight_decay=None)
        with pytest.raises(cf.errors.InputError, match=r"unknown \['0\.bais'\]"):
            build(weights={**net.state_dict(), "0.bais": x})
        with pytest.raises(cf.errors.InputError, match="bfloat16"):
            cf.Problem(mlp(5, 3).bfloat16(), cf.CrossEntropy(), (x, y), (x, y))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
    def test_labels_of_any_integer_kind(self, dtype: torch.dtype) -> None:
        seeded()
        x, y = torch.randn(6, 5), torch.randint(0, 3, (6,))
        net = mlp(5, 4, 3)
        wanted = cf.influence(cf.Problem(net, cf.CrossEntropy(), (x, y), (x, y)), cf.EKFAC())
        narrow = cf.Problem(net, cf.CrossEntropy(), (x, y.to(dtype)), (x, y.to(dtype)))
        assert torch.equal(cf.influence(narrow, cf.EKFAC()).values, wanted.values)

    def test_vectors_of_the_wrong_length(self) -> None:
        curvature = cf.fit(chain_problem(), cf.KFAC())
        with pytest.raises(cf.errors.InputError, match="length 3"):
            curvature.matvec(torch.ones(3))
