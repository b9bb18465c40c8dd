"""The proximal Bregman response against closed forms, scipy, autograd and damped GGN influence."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.errors import InputError, SingularError
from curvfluence.fidelity import SubsetTruth
from curvfluence.problem.losses import Loss
from curvfluence.runtime import budget
from curvfluence.truth import BregmanResponse, bregman_response
from curvfluence.truth.minimise import minimise
from tests.oracles import dense_ggn, flat, outputs_at
from tests.problems import Mixed, make, mlp, seeded


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost these little products more than they gain, and much more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def groups(n: int, *sizes: int, seed: int = 1) -> Tensor:
    """Weights [m, N]: as many random examples as `sizes` say, each left out altogether."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(len(sizes), n, dtype=torch.float64)
    for row, size in zip(rows, sizes, strict=True):
        row[torch.randperm(n, generator=generator)[:size]] = 1.0
    return rows


def objective(
    problem: cf.Problem, theta: Tensor, left_out_n: Tensor, damping: float, epsilon: float
) -> Tensor:
    """F as it is written in the definition, by autograd all the way."""
    loss, y = problem.loss, problem.train.targets
    f_s = outputs_at(problem, flat(problem), problem.train.inputs).detach().requires_grad_(True)
    l_s = loss.values(f_s, y)
    (g_s,) = torch.autograd.grad(l_s.sum(), f_s)
    f = outputs_at(problem, theta, problem.train.inputs)
    values = loss.values(f, y)
    divergence = values - l_s.detach() - (g_s * (f - f_s.detach())).sum(1)
    shift = theta - flat(problem)
    removed = epsilon * (left_out_n * values).mean()
    return divergence.mean() - removed + 0.5 * ((problem.decay + damping) * shift**2).sum()


def gradient(problem: cf.Problem, theta: Tensor, *settings: object) -> tuple[float, Tensor]:
    leaf = theta.detach().clone().requires_grad_(True)
    value = objective(problem, leaf, *settings)  # pyright: ignore[reportArgumentType]
    return float(value.detach()), torch.autograd.grad(value, leaf)[0]


def by_scipy(problem: cf.Problem, *settings: object) -> Tensor:
    def fun(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = gradient(problem, torch.from_numpy(theta), *settings)
        return value, slope.numpy()

    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-16, "gtol": 1e-10, "maxcor": 50}
    start = flat(problem).numpy()
    return torch.from_numpy(minimize(fun, start, jac=True, method="L-BFGS-B", options=options).x)


def at_minimum(problem: cf.Problem, kept_n: Tensor | None = None) -> Tensor:
    """The minimiser of J, or of J without some examples (normaliser N), for a linear model."""
    kept_n = torch.ones(len(problem.train)).double() if kept_n is None else kept_n
    theta = flat(problem).clone().requires_grad_(True)
    lbfgs = torch.optim.LBFGS(
        [theta],
        max_iter=2000,
        tolerance_grad=1e-13,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        lbfgs.zero_grad()
        out = outputs_at(problem, theta, problem.train.inputs)
        values = problem.loss.values(out, problem.train.targets)
        j = (kept_n * values).mean() + 0.5 * (problem.decay * theta**2).sum()
        j.backward()
        return j

    lbfgs.step(closure)  # pyright: ignore[reportArgumentType]
    return theta.detach()


def measured(problem: cf.Problem, theta: Tensor) -> Tensor:
    out = outputs_at(problem, theta, problem.queries.inputs)
    return problem.measurement.values(out, problem.queries.targets)


NETS = {
    "cross-entropy": lambda: make(mlp(5, 4, 6, 3), cf.CrossEntropy(), n=40),
    "mse, tanh": lambda: make(mlp(5, 4, 3, activation=nn.Tanh), cf.MSE(), n=40),
    "decay by parameter": lambda: make(
        mlp(5, 4, 3), cf.CrossEntropy(), n=40, weight_decay={"0.weight": 0.02, "2.weight": 0.005}
    ),
    "margin": lambda: make(mlp(5, 4, 3), cf.CrossEntropy(), n=40, measurement=cf.Margin()),
    "mixed": lambda: make(Mixed(), cf.CrossEntropy(), n=40),
}


@pytest.fixture(params=list(NETS))
def net(request: pytest.FixtureRequest) -> cf.Problem:
    seeded()
    return NETS[request.param]()


def test_linear_squared_error_is_the_closed_form() -> None:
    seeded()
    problem = make(mlp(5, 3), cf.MSE(), n=40, weight_decay={"0.weight": 0.05})
    left_out, damping, epsilon = groups(40, 1, 5, 20), 0.01, 0.7
    found = bregman_response(problem, left_out, damping=damping, epsilon=epsilon, tolerance=1e-12)
    assert found.converged.all()
    # F is a quadratic: its Hessian weights example n by 1 − ε left_out_n, ∇F(θˢ) = −(ε/N) Σ g_n.
    x = torch.cat([problem.train.inputs, torch.ones(40, 1).double()], dim=1)
    f = outputs_at(problem, flat(problem), problem.train.inputs)
    for row, theta in zip(left_out, found.theta, strict=True):
        shift = problem.parameters.unflatten(theta - flat(problem))
        shift_oi = torch.cat([shift["0.weight"], shift["0.bias"][:, None]], dim=1)
        pull = torch.tensor([0.05] * 5 + [0.0], dtype=torch.float64) + damping
        hessian = (2 / 3) * (x.T * (1 - epsilon * row)) @ x / 40 + torch.diag(pull)
        right = (2 / 3) * epsilon * ((f - problem.train.targets).T * row) @ x / 40
        torch.testing.assert_close(
            shift_oi, torch.linalg.solve(hessian, right.T).T, rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("loss", [cf.CrossEntropy(), cf.MSE()])
def test_linear_model_at_its_minimum_is_retrained(loss: Loss) -> None:
    """There F is J without the group, up to a constant: the response at ε = 1 is retraining."""
    seeded()
    problem = make(mlp(5, 3), loss, n=40, weight_decay=0.05)
    problem = problem.at(problem.parameters.unflatten(at_minimum(problem)))
    left_out = groups(40, 1, 4, 12)
    found = bregman_response(problem, left_out, damping=0.0, epsilon=1.0, tolerance=1e-9)
    assert found.converged.all()
    for row, theta, change in zip(left_out, found.theta, found.change, strict=True):
        retrained = at_minimum(problem, 1 - row)
        torch.testing.assert_close(theta, retrained, rtol=0, atol=1e-7)
        expected = measured(problem, retrained) - measured(problem, flat(problem))
        torch.testing.assert_close(change, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", [cf.CrossEntropy(label_smoothing=0.1), cf.BinaryCrossEntropy()])
def test_linear_model_anywhere_against_scipy(loss: Loss) -> None:
    seeded()
    problem = make(mlp(5, 2), loss, outputs=2, n=30, weight_decay=0.01)
    left_out = groups(30, 2, 10) * 0.8
    found = bregman_response(problem, left_out, damping=0.01, epsilon=1.0, tolerance=1e-9)
    assert found.converged.all()
    for row, theta in zip(left_out, found.theta, strict=True):
        expected = by_scipy(problem, row, 0.01, 1.0)
        torch.testing.assert_close(theta, expected, rtol=0, atol=1e-6)


def test_net_against_scipy(net: cf.Problem) -> None:
    left_out = groups(40, 3)
    found = bregman_response(net, left_out, damping=0.01, epsilon=0.1, tolerance=1e-8)
    assert found.converged.all()
    expected = by_scipy(net, left_out[0], 0.01, 0.1)
    torch.testing.assert_close(found.theta[0], expected, rtol=0, atol=1e-5)


def test_derivative_is_damped_ggn_influence(net: cf.Problem) -> None:
    """change/ε − Σ I[q, n] shrinks as ε: at a tenth of ε to a tenth, as no other sign would."""
    left_out, damping = groups(40, 1, 4, 10) * torch.linspace(0.5, 1, 40).double(), 0.01
    predicted = cf.influence(net, cf.GGN(), damping=cf.Absolute(damping)).for_group(left_out).T
    errors: list[float] = []
    for epsilon in (1e-2, 1e-3):
        found = bregman_response(net, left_out, damping=damping, epsilon=epsilon, tolerance=1e-8)
        assert found.converged.all()
        errors.append(float((found.change / epsilon - predicted).norm() / predicted.norm()))
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)


def test_reports_the_objective_and_gradient_it_reached(net: cf.Problem) -> None:
    left_out, damping, epsilon = groups(40, 1, 6), 0.02, 0.3
    found = bregman_response(net, left_out, damping=damping, epsilon=epsilon, tolerance=1e-5)
    matrix = dense_ggn(net) + torch.diag(net.decay + damping)
    for k, row in enumerate(left_out):
        before, slope = gradient(net, flat(net), row, damping, epsilon)
        after, end = gradient(net, found.theta[k], row, damping, epsilon)
        assert float(found.objective[k]) == pytest.approx(after - before, rel=1e-6)
        assert after < before
        norms = [float(g @ torch.linalg.solve(matrix, g)) ** 0.5 for g in (slope, end)]
        assert float(found.gradient_norm[k]) == pytest.approx(norms[1] / norms[0], rel=1e-3)
        assert norms[1] <= 1e-5 * norms[0]
        expected = measured(net, found.theta[k]) - measured(net, flat(net))
        torch.testing.assert_close(found.change[k], expected, rtol=1e-9, atol=1e-15)


def test_an_unbounded_group_is_flagged_and_the_others_do_not_notice() -> None:
    """Cubic outputs outgrow the proximal term once nothing but the removed loss is left."""
    seeded()
    problem = make(mlp(5, 4, 4, 2), cf.MSE(), outputs=2, n=30)
    small = groups(30, 1, 2)
    left_out = torch.cat([small[:1], torch.ones(1, 30).double(), small[1:]])
    settings = {"damping": 0.1, "epsilon": 1.0, "tolerance": 1e-9}
    together = bregman_response(problem, left_out, **settings)
    alone = bregman_response(problem, small, **settings)
    assert together.converged.tolist() == [True, False, True]
    assert float(together.gradient_norm[1]) > 1e-3
    assert float(together.objective[1]) < -1
    assert together.change[1].isfinite().all()
    torch.testing.assert_close(together.change[[0, 2]], alone.change, rtol=1e-9, atol=1e-12)
    assert torch.equal(together.steps[[0, 2]], alone.steps)


def test_too_few_steps_are_flagged() -> None:
    seeded()
    problem = NETS["cross-entropy"]()
    found = bregman_response(problem, groups(40, 10), damping=1e-3, epsilon=1.0, max_steps=2)
    assert found.steps.tolist() == [2]
    assert not found.converged.any()
    assert float(found.gradient_norm) > 1e-6
    assert found.change.abs().max() > 0


def test_nothing_left_out_changes_nothing() -> None:
    found = bregman_response(NETS["cross-entropy"](), torch.zeros(1, 40), damping=0.01, epsilon=1.0)
    assert found.converged.all()
    assert not found.change.any()
    assert found.steps.tolist() == [0]


def test_chunks_and_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded()
    problem = NETS["cross-entropy"]()
    left_out = groups(40, 1, 2, 3, 4, 5)
    settings = {"damping": 0.01, "epsilon": 0.2, "tolerance": 1e-8}
    whole = bregman_response(problem, left_out, **settings)
    monkeypatch.setattr(budget, "RESPONSES", 30 * problem.parameters.count * 2)  # two groups
    monkeypatch.setattr(budget, "MODEL_INPUTS", 5 * 2 * 17)  # 17 examples
    seen: list[int] = []
    parts = bregman_response(problem, left_out, progress=seen.append, **settings)
    torch.testing.assert_close(parts.change, whole.change, rtol=1e-9, atol=1e-12)
    assert seen == sorted(seen)
    assert seen[-1] == 5
    assert whole.values is whole.change
    assert SubsetTruth(left_out, whole.values).judge(whole.change) == (1.0, 1.0)


class Branching(nn.Module):
    """Control flow on a weight's value, which torch.func cannot stack."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(5, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if self.body[0].weight.sum() < 100 else x[:, :3]


def test_a_model_that_torch_func_cannot_stack() -> None:
    seeded()
    branching = make(Branching(), cf.CrossEntropy(), n=20)
    plain = make(deepcopy(branching.model.body), cf.CrossEntropy(), n=20)
    left_out = groups(20, 1, 3)
    a, b = (
        bregman_response(p, left_out, damping=0.01, epsilon=0.5, tolerance=1e-9)
        for p in (branching, plain)
    )
    torch.testing.assert_close(a.change, b.change, rtol=1e-8, atol=1e-12)


def test_single_precision_problems_are_answered_in_double() -> None:
    seeded()
    double = NETS["cross-entropy"]()
    single = cf.Problem(
        deepcopy(double.model).float(),
        double.loss,
        (double.train.inputs.float(), double.train.targets),
        (double.queries.inputs.float(), double.queries.targets),
        weight_decay=0.01,
    )
    rounded = cf.Problem(
        double.model,
        double.loss,
        (single.train.inputs.double(), double.train.targets),
        (single.queries.inputs.double(), double.queries.targets),
        weight_decay=0.01,
        weights={name: value.double() for name, value in single.theta.items()},
    )
    found: list[BregmanResponse] = [
        bregman_response(p, groups(40, 2, 5), damping=0.01, epsilon=0.5) for p in (single, rounded)
    ]
    assert found[0].change.dtype == torch.float64
    torch.testing.assert_close(found[0].change, found[1].change, rtol=1e-10, atol=1e-14)


def test_model_and_random_state_are_left_as_found() -> None:
    seeded()
    problem = NETS["mixed"]()
    model = problem.model.train()
    model.scale.grad = torch.ones(5).double()
    before = deepcopy(model.state_dict())
    state = torch.get_rng_state()
    bregman_response(problem, groups(40, 3), damping=0.01, epsilon=0.1)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.is_leaf and isinstance(p, nn.Parameter) for p in model.parameters())
    assert torch.equal(model.scale.grad, torch.ones(5).double())
    assert all(p.grad is None for name, p in model.named_parameters() if name != "scale")
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": 1.5}, "epsilon"),
        ({"damping": -1e-3}, "damping"),
        ({"damping": float("nan")}, "damping"),
        ({"damping": 0.0}, "w \\+ λ is 0"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"max_steps": 0}, "max_steps"),
        ({"left_out": torch.ones(2, 11)}, "\\[m, 12\\]"),
        ({"left_out": torch.ones(12)}, "\\[m, 12\\]"),
        ({"left_out": torch.ones(0, 12)}, "\\[m, 12\\]"),
        ({"left_out": torch.full((1, 12), 1.5)}, "1.5"),
        ({"left_out": torch.full((1, 12), -0.5)}, "-0.5"),
        ({"left_out": torch.full((1, 12), torch.nan)}, "nan"),
    ],
)
def test_errors(changed: dict[str, object], words: str) -> None:
    problem = make(mlp(5, 3), cf.MSE(), weight_decay=0.0)
    settings = {"left_out": torch.ones(1, 12), "damping": 0.1, "epsilon": 0.1, **changed}
    with pytest.raises(InputError, match=words):
        bregman_response(problem, **settings)  # pyright: ignore[reportArgumentType]


def test_singular_curvature_is_named() -> None:
    problem = make(mlp(5, 9, 3), cf.MSE(), n=4, weight_decay={"2.bias": 0.1})
    with pytest.raises(SingularError, match="GGN"):
        bregman_response(problem, torch.ones(1, 4), damping=0.0, epsilon=0.1)


def test_minimise_ends_each_search_by_itself() -> None:
    """A quadratic, a quartic valley (two minima), one unbounded below, and a constant."""

    def functions(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            a, b = leaf[:, 0], leaf[:, 1]
            each = [
                (a - 1) ** 2 + 3 * (b + 2) ** 2,
                (a**2 - 1) ** 2 + a + b**2,
                a - b**3 - b,
                torch.full_like(a, 7.0),
            ]
            values = torch.stack(each)[which, torch.arange(len(which))]
        return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]

    like = torch.zeros(4, 2, dtype=torch.float64)
    found = minimise(functions, like, tolerance=1e-9, max_steps=200)
    assert found.converged.tolist() == [True, True, False, True]
    torch.testing.assert_close(found.x[0], torch.tensor([1.0, -2.0]).double())
    assert 4 * float(found.x[1, 0]) * (float(found.x[1, 0]) ** 2 - 1) + 1 == pytest.approx(
        0, abs=1e-8
    )
    assert float(found.value[0]) == pytest.approx(-13)
    assert float(found.gradient_norm[2]) > 1e6
    assert found.steps[3] == 0
