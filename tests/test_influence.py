"""Sign, scale and units of I, against closed forms and real retraining."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

import curvfluence as cf
from tests import oracles
from tests.digits import digits
from tests.problems import all_problems, chain_problem, make, mixed_problem, mlp, seeded

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


def by_name(rung: cf.Rung) -> str:
    return rung.name


class TestFormula:
    @pytest.mark.parametrize("rung", RUNGS, ids=by_name)
    @pytest.mark.parametrize("name", ["cross-entropy", "mse", "bias without decay", "mixed"])
    def test_is_g_inverse_g_over_n(self, rung: cf.Rung, name: str) -> None:
        problem = mixed_problem() if name == "mixed" else all_problems()[name]
        scores = cf.influence(problem, rung, damping=cf.Absolute(0.02))
        curvature = cf.fit(problem, rung)
        g_q, g_n = oracles.query_gradients(problem), oracles.example_gradients(problem)
        eye = torch.eye(problem.parameters.count, dtype=torch.float64)
        inverse = curvature.solve(eye, cf.Absolute(0.02))
        wanted = g_q @ inverse @ g_n.T / len(problem.train)
        assert scores.values.shape == (len(problem.queries), len(problem.train))
        assert torch.allclose(scores.values, wanted, rtol=1e-9, atol=1e-12)

    def test_identity_is_the_gradient_dot_product_and_has_no_units(self) -> None:
        problem = chain_problem()
        scores = cf.influence(problem, cf.Identity(), damping=cf.Relative(3.0))
        wanted = oracles.query_gradients(problem) @ oracles.example_gradients(problem).T / 12
        assert torch.allclose(scores.values, wanted, rtol=1e-10, atol=1e-14)
        assert scores.damping == cf.Absolute(1.0)
        assert "none" in scores.unit

    def test_self_influence_is_the_diagonal_of_train_on_train(self) -> None:
        problem = chain_problem()
        train = problem.train
        both = cf.Problem(problem.model, problem.loss, train, train, weight_decay=0.01)
        wanted = cf.influence(both, cf.EKFAC()).values.diagonal()
        assert torch.allclose(cf.self_influence(problem, cf.EKFAC()), wanted, rtol=1e-10)

    def test_a_fitted_curvature_serves_again(self) -> None:
        problem = chain_problem()
        curvature = cf.fit(problem, cf.EKFAC())
        again = cf.influence(problem, curvature).values
        assert torch.equal(again, cf.influence(problem, cf.EKFAC()).values)

    def test_decoupled_decay_is_recorded_and_not_added(self) -> None:
        seeded()
        model = mlp(5, 4, 3)
        bare = make(model, cf.CrossEntropy(), weight_decay=0.0)
        adamw = make(model, cf.CrossEntropy(), weight_decay=0.1, decoupled_decay=True)
        scores = cf.influence(adamw, cf.GGN())
        assert torch.equal(scores.values, cf.influence(bare, cf.GGN()).values)
        assert any("AdamW" in note for note in scores.notes)


def ridge(k: int, seed: int = 0) -> tuple[cf.Problem, Tensor, Tensor, Tensor, float]:
    """Ridge regression at its optimum: (problem on the outputs, x, y, queries, w)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(15, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(15, k, generator=generator, dtype=torch.float64)
    xq = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    w = 0.3
    model = nn.Linear(4, k, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(ridge_solution(x, y, w, 15).T)
    first = cf.CustomMeasurement(lambda f, _: f[:, 0], lower_is_better=True, name="first output")
    yq = torch.zeros(3, k, dtype=torch.float64)
    problem = cf.Problem(model, cf.MSE(), (x, y), (xq, yq), weight_decay=w, measurement=first)
    return problem, x, y, xq, w


def ridge_solution(x: Tensor, y: Tensor, w: float, n: int) -> Tensor:
    """argmin (1/n) Σ mean_k (xθ − y)² + ½ w ‖θ‖², whatever the number of rows: [i, k]."""
    k = y.shape[1]
    gram = 2 / (n * k) * x.T @ x + w * torch.eye(x.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, 2 / (n * k) * x.T @ y)


class TestRidge:
    @pytest.mark.parametrize("k", [1, 3])
    @pytest.mark.parametrize("rung", [cf.GGN(), cf.Hessian()], ids=by_name)
    def test_leverage_corrected_leave_one_out_is_exact(self, rung: cf.Rung, k: int) -> None:
        problem, x, y, xq, w = ridge(k)
        scores = cf.influence(problem, rung, damping=cf.Absolute(0.0), leverage=True)
        everything = (xq @ ridge_solution(x, y, w, 15))[:, 0]
        for n in range(15):
            rest = [m for m in range(15) if m != n]
            without = (xq @ ridge_solution(x[rest], y[rest], w, 15))[:, 0]  # normaliser kept
            assert torch.allclose(scores.values[:, n], without - everything, rtol=1e-9, atol=1e-13)

    def test_uncorrected_influence_is_the_derivative_in_the_weight(self) -> None:
        problem, x, y, xq, w = ridge(1)
        scores = cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.0))
        eps = 1e-5
        for n in range(15):
            found = []
            for sign in (-1, 1):
                weight = torch.ones(15, 1, dtype=torch.float64)
                weight[n] = 1 - sign * eps
                scaled = weight.sqrt()
                found.append((xq @ ridge_solution(scaled * x, scaled * y, w, 15))[:, 0])
            slope = (found[1] - found[0]) / (2 * eps)
            assert torch.allclose(scores.values[:, n], slope, rtol=1e-7, atol=1e-9)

    def test_leverage_is_a_scalar_for_one_output(self) -> None:
        """I_lev = I / (1 − h_n) with h_n = (2/N) xᵀ (C + w)⁻¹ x, the textbook leverage."""
        problem, x, _, _, w = ridge(1)
        plain = cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.0)).values
        corrected = cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.0), leverage=True).values
        gram = 2 / 15 * x.T @ x + w * torch.eye(4, dtype=torch.float64)
        h = 2 / 15 * (x @ torch.linalg.inv(gram) * x).sum(1)
        assert torch.allclose(corrected, plain / (1 - h), rtol=1e-9)


def by_fives(monkeypatch: pytest.MonkeyPatch, problem: cf.Problem) -> None:
    """Leverages of five examples at a time, of two columns each."""
    held = 5 * 2 * problem.parameters.count
    monkeypatch.setattr("curvfluence.runtime.budget.LEVERAGE", held)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("rung", RUNGS[1:], ids=by_name)
def test_leverage_against_a_dense_newton_step(
    rung: cf.Rung, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(1/N) g_qᵀ (C − (1/N) ZₙᵀZₙ + W + λ)⁻¹ g_n: Woodbury undone, for any rung's C, and in
    several chunks of examples."""
    problem = chain_problem()
    n = len(problem.train)
    solved: list[tuple[int, ...]] = []
    real = cf.Curvature.solve

    def seen(self: cf.Curvature, v: Tensor, damping: cf.Absolute) -> Tensor:
        solved.append(tuple(v.shape))
        return real(self, v, damping)

    if several:
        by_fives(monkeypatch, problem)
        monkeypatch.setattr(cf.Curvature, "solve", seen)
    scores = cf.influence(problem, rung, damping=cf.Absolute(0.2), leverage=True)
    curvature = cf.fit(problem, rung)
    eye = torch.eye(problem.parameters.count, dtype=torch.float64)
    total = torch.linalg.inv(curvature.solve(eye, cf.Absolute(0.2)))
    jac, h = oracles.jacobians(problem, problem.train.inputs), oracles.output_hessians(problem)
    g_q, g_n = oracles.query_gradients(problem), oracles.example_gradients(problem)
    for k in range(n):
        own = jac[k].T @ h[k] @ jac[k] / n
        wanted = g_q @ torch.linalg.solve(total - own, g_n[k]) / n
        assert torch.allclose(scores.values[:, k], wanted, rtol=1e-8, atol=1e-12)
    if several:
        p = problem.parameters.count
        assert [shape for shape in solved if len(shape) == 3] == [(5, 2, p), (5, 2, p), (2, 2, p)]


def test_leverages_name_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its number among all, in whichever chunk it is."""
    problem = chain_problem()
    by_fives(monkeypatch, problem)
    curvature, damping = cf.fit(problem, cf.KFAC()), cf.Absolute(0.0)
    jac, h = oracles.jacobians(problem, problem.train.inputs), oracles.output_hessians(problem)
    first: dict[int, float] = {}
    for value in torch.logspace(-1, -5, 60).tolist():
        damping = cf.Absolute(value)
        inverse = curvature.solve(torch.eye(problem.parameters.count).double(), damping)
        largest = [
            float(torch.linalg.eigvals(jac[k].T @ h[k] @ jac[k] @ inverse / 12).real.max())
            for k in range(12)
        ]
        k = next((k for k, one in enumerate(largest) if one >= 1), None)
        if k is not None:
            first.setdefault(k, value)
    assert any(k >= 5 for k in first), "one of a later chunk"
    for k, value in first.items():
        with pytest.raises(cf.errors.SingularError, match=f"example {k} has a leverage of 1"):
            cf.influence(problem, curvature, damping=cf.Absolute(value), leverage=True)
    outputs, real = problem.outputs(problem.train, "x"), cf.CrossEntropy.coordinates

    def spoilt(self: cf.CrossEntropy, output: Tensor, target: Tensor) -> Tensor:
        found = real(self, output, target).clone()
        found[(output - outputs[8]).abs().sum(1) < 1e-12] = torch.nan
        return found

    monkeypatch.setattr(cf.CrossEntropy, "coordinates", spoilt)
    with pytest.raises(cf.errors.NonFiniteError, match=r"leverage coordinates .* of example 8 "):
        cf.influence(problem, curvature, damping=cf.Absolute(1.0), leverage=True)


def test_a_gradient_outside_the_span_names_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one example's loss is linear in f, whichever chunk it is in."""
    seeded()
    x = torch.randn(12, 5, dtype=torch.float64)
    curved = torch.ones(12, dtype=torch.float64)
    curved[8] = 0.0

    def bent(output: Tensor, target: Tensor) -> Tensor:
        return output.sum(-1) + target * output.square().sum(-1)

    problem = cf.Problem(mlp(5, 2).double(), cf.CustomLoss(bent), (x, curved), (x[:2], curved[:2]))
    by_fives(monkeypatch, problem)
    with pytest.raises(cf.errors.CurvfluenceError, match="example 8 lies outside the span"):
        cf.influence(problem, cf.KFAC(), damping=cf.Absolute(5.0), leverage=True)


def softmax_regression(decay: float) -> tuple[Tensor, ...]:
    x, y, xq, yq = digits(300, 40)
    return x, y, xq, yq, fit_softmax(x, y, torch.ones(300).double(), decay)


def fit_softmax(
    x: Tensor, y: Tensor, weights: Tensor, decay: float, start: np.ndarray | None = None
) -> Tensor:
    """argmin (1/N) Σ weight_n ℓ_n + ½ w ‖θ‖², to a gradient of about 1e-10, [10, 64]."""

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.tensor(flat.reshape(10, 64), requires_grad=True)
        losses = nn.functional.cross_entropy(x @ theta.T, y, reduction="none")
        total = (weights * losses).mean() + decay / 2 * theta.square().sum()
        (gradient,) = torch.autograd.grad(total, theta)
        return float(total.detach()), gradient.numpy().ravel()

    start = np.zeros(640) if start is None else start
    options = {"gtol": 1e-9, "ftol": 1e-16, "maxiter": 2000, "maxcor": 30}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    assert np.abs(found.jac).max() < 1e-7
    return torch.from_numpy(found.x.reshape(10, 64))


def test_down_weighting_a_converged_softmax_regression() -> None:
    """One example at weight 0.9: the true change of the queries' losses on the predicted one has
    slope .95–1.08 and r >= .999 (the issue's bar)."""
    decay = 1e-2
    x, y, xq, yq, theta = softmax_regression(decay)
    model = nn.Linear(64, 10, bias=False).double()
    problem = cf.Problem(
        model, cf.CrossEntropy(), (x, y), (xq, yq), weight_decay=decay, weights={"weight": theta}
    )
    predicted = 0.1 * cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.0)).values
    before = nn.functional.cross_entropy(xq @ theta.T, yq, reduction="none")
    chosen = list(range(0, 300, 25))
    changes = []
    for n in chosen:
        weights = torch.ones(300).double()
        weights[n] = 0.9
        found = fit_softmax(x, y, weights, decay, theta.numpy().ravel())
        changes.append(nn.functional.cross_entropy(xq @ found.T, yq, reduction="none") - before)
    true = torch.stack(changes, dim=1).flatten().numpy()
    guess = predicted[:, chosen].flatten().numpy()
    slope = float((true * guess).sum() / (guess * guess).sum())
    assert 0.95 <= slope <= 1.08, slope
    assert np.corrcoef(true, guess)[0, 1] >= 0.999


class TestMeasurement:
    def test_margin_ranks_the_same_helpers_as_the_loss_with_two_classes(self) -> None:
        """ℓ = log(1 + e^{−margin}), so ∇ℓ is a negative multiple of ∇margin for each query."""
        seeded()
        model = mlp(5, 4, 2)
        by_loss = cf.influence(make(model, cf.CrossEntropy(), outputs=2, n=30), cf.GGN())
        by_margin = cf.influence(
            make(model, cf.CrossEntropy(), outputs=2, n=30, measurement=cf.Margin()), cf.GGN()
        )
        assert by_loss.lower_is_better
        assert not by_margin.lower_is_better
        assert torch.equal(by_loss.top(30).indices, by_margin.top(30).indices)
        assert (by_loss.values.sign() == -by_margin.values.sign()).all()

    def test_log_probability_of_the_label_is_minus_the_loss(self) -> None:
        seeded()
        model = mlp(5, 4, 3)
        loss = cf.influence(make(model, cf.CrossEntropy()), cf.GGN()).values
        own = make(model, cf.CrossEntropy(), measurement=cf.LogProbability())
        assert torch.allclose(cf.influence(own, cf.GGN()).values, -loss, rtol=1e-9)

    def test_a_measurement_that_reduces_is_refused(self) -> None:
        mean = cf.CustomMeasurement(lambda f, _: f.mean(), lower_is_better=True)
        seeded()
        with pytest.raises(cf.errors.InputError, match="one value an example"):
            make(mlp(5, 4, 3), cf.CrossEntropy(), measurement=mean)


class TestScores:
    def scores(self) -> cf.Scores:
        return cf.influence(chain_problem(), cf.EKFAC())

    def test_top_and_bottom_rank_by_help(self) -> None:
        scores = self.scores()
        top, bottom = scores.top(3), scores.bottom(3)
        ordered = scores.values.sort(dim=1, descending=True)
        assert torch.equal(top.values, ordered.values[:, :3])
        assert torch.equal(bottom.values, ordered.values.flip(1)[:, :3])
        assert torch.equal(scores.values.gather(1, top.indices), top.values)

    def test_group_is_the_sum_however_it_is_named(self) -> None:
        scores = self.scores()
        wanted = scores.values[:, [1, 4, 7]].sum(1)
        mask = torch.zeros(12, dtype=torch.bool)
        mask[[1, 4, 7]] = True
        assert torch.allclose(scores.for_group([1, 4, 7]), wanted)
        assert torch.allclose(scores.for_group(mask), wanted)
        assert torch.allclose(scores.for_group(mask[None].double())[:, 0], wanted)

    @pytest.mark.parametrize("group", [[12], [-1], [1, 1], [0.5], [True, False]])
    def test_bad_groups(self, group: list[int]) -> None:
        with pytest.raises(cf.errors.InputError):
            self.scores().for_group(group)

    def test_leverage_refuses_groups(self) -> None:
        scores = cf.influence(chain_problem(), cf.GGN(), leverage=True)
        with pytest.raises(cf.errors.InputError, match="leverage"):
            scores.for_group([1, 2])

    @pytest.mark.parametrize("k", [0, 13])
    def test_bad_k(self, k: int) -> None:
        with pytest.raises(cf.errors.InputError, match=r"1\.\.12"):
            self.scores().top(k)

    def test_says_what_it_is(self) -> None:
        scores = self.scores()
        text = str(scores)
        for said in (
            "EKFAC",
            "type2",
            "nats",
            "lower is better",
            "Relative(0.1)",
            "0.weight",
        ):
            assert said in text
        assert scores.fisher == "type2"
        assert len(scores.lambdas) == 3
        assert scores.cost.fit_seconds > 0


class FixedJudge:
    """A truth that a known damping predicts without error."""

    def __init__(self, left_out: Tensor, truth_mq: Tensor) -> None:
        self.left_out = left_out
        self.truth = truth_mq

    def judge(self, predicted_mq: Tensor) -> tuple[float, float]:
        errors = -(predicted_mq - self.truth).square().mean(0)
        return float(errors[:2].sum()), float(errors[2:].sum())


class TestDamping:
    def test_best_of_finds_the_damping_behind_the_truth(self) -> None:
        problem = chain_problem()
        left_out = (torch.rand(6, 12, generator=torch.Generator().manual_seed(0)) < 0.5).double()
        for true in (0.001, 0.1, 10.0):
            planted = cf.influence(problem, cf.GGN(), damping=cf.Absolute(true))
            judge = FixedJudge(left_out, planted.for_group(left_out).T)
            best = cf.BestOf(tuple(map(cf.Absolute, (0.001, 0.1, 10.0))), truth=judge)
            scores = cf.influence(problem, cf.GGN(), damping=best)
            assert scores.damping == cf.Absolute(true)
            assert torch.equal(scores.values, planted.values)
            assert any("on the edge" in note for note in scores.notes) == (true != 0.1)

    @pytest.mark.parametrize(("candidates", "edge"), [((0.1,), False), ((0.1, 1.0), True)])
    def test_the_edge_of_few_candidates(self, candidates: tuple[float, ...], edge: bool) -> None:
        problem = chain_problem()
        left_out = torch.eye(12).double()[:6]
        planted = cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.1))
        judge = FixedJudge(left_out, planted.for_group(left_out).T)
        best = cf.BestOf(tuple(map(cf.Absolute, candidates)), truth=judge)
        scores = cf.influence(problem, cf.GGN(), damping=best)
        (note,) = (note for note in scores.notes if "chosen among" in note)
        assert f"chosen among {len(candidates)}" in note
        assert ("on the edge" in note) == edge

    def test_best_of_without_a_truth(self) -> None:
        with pytest.raises(cf.errors.InputError, match="without a truth"):
            cf.BestOf((cf.Absolute(0.1),))

    @pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
    def test_bad_amounts(self, value: float) -> None:
        for kind in (cf.Absolute, cf.Relative):
            with pytest.raises(cf.errors.InputError, match="finite"):
                kind(value)

    @pytest.mark.parametrize("rung", RUNGS[2:6], ids=by_name)
    def test_no_damping_and_no_decay_is_refused_before_work(self, rung: cf.Rung) -> None:
        seeded()
        problem = make(mlp(5, 4, 6, 3), cf.CrossEntropy(), weight_decay=0.0)
        with pytest.raises(
            cf.errors.SingularError, match=r"cannot be inverted|not positive definite"
        ):
            cf.influence(problem, rung, damping=cf.Absolute(0.0))

    def test_a_singular_matrix_is_found_where_the_rank_does_not_show_it(self) -> None:
        """Softmax outputs do not change when all logits do, so the GGN is singular at any N."""
        seeded()
        problem = make(mlp(5, 3), cf.CrossEntropy(), weight_decay=0.0, n=200)
        for rung in (cf.KFAC(), cf.EKFAC(), cf.BlockGGN(), cf.GGN(), cf.Hessian()):
            with pytest.raises(cf.errors.SingularError, match="damping"):
                cf.influence(problem, rung, damping=cf.Absolute(0.0))
