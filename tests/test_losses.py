"""Each loss against autograd in float64: values as torch's, gradient, S Sᵀ, t, and sampling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

import curvfluence as cf
from curvfluence.problem.losses import Loss
from tests.problems import huber, log_cosh, targets_for

WEIGHT = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
LOSSES: dict[str, Loss] = {
    "cross-entropy": cf.CrossEntropy(),
    "smoothed": cf.CrossEntropy(label_smoothing=0.2),
    "weighted": cf.CrossEntropy(weight=WEIGHT),
    "smoothed and weighted": cf.CrossEntropy(label_smoothing=0.2, weight=WEIGHT),
    "mse": cf.MSE(),
    "binary": cf.BinaryCrossEntropy(),
    "custom": cf.CustomLoss(log_cosh),
}


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> Loss:
    return LOSSES[request.param]


def batch(loss: Loss, n: int = 6, k: int = 4, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    f = scale * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return f, targets_for(loss, n, k, generator)


def second_derivatives(loss: Loss, f: Tensor, y: Tensor) -> Tensor:
    return torch.stack(
        [
            hessian(lambda g, t=t: loss.values(g[None], t[None])[0], row)
            for row, t in zip(f, y, strict=True)
        ]
    )


def test_gradient(loss: Loss) -> None:
    f, y = batch(loss)
    wanted = jacobian(lambda g: loss.values(g, y).sum(), f)
    assert torch.allclose(loss.gradient(f, y), wanted, rtol=1e-12, atol=1e-14)


def test_factor(loss: Loss) -> None:
    f, y = batch(loss)
    s = loss.factor(f, y)
    assert s.shape == (6, 4, loss.columns(4))
    assert torch.allclose(s @ s.mT, second_derivatives(loss, f, y), rtol=1e-12, atol=1e-14)


def test_coordinates_solve_the_gradient(loss: Loss) -> None:
    f, y = batch(loss)
    t = loss.coordinates(f, y)
    assert t.shape == (6, loss.columns(4))
    found = (loss.factor(f, y) @ t[:, :, None])[:, :, 0]
    assert torch.allclose(found, loss.gradient(f, y), rtol=1e-9, atol=1e-13)


def test_labels_are_drawn_from_the_model() -> None:
    """As often as p says, whatever the dtype, and never where p is 0."""
    f = torch.tensor([[0.0, 1.0, -torch.inf, 2.0], [-torch.inf, -torch.inf, 0.0, -torch.inf]])
    y = torch.tensor([0, 2])
    p = f.double().softmax(-1)

    def drawn(output: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        s = cf.CrossEntropy().sample(output, y, draws=20000, generator=generator) * 20000**0.5
        return (output.softmax(-1)[:, :, None] - s).round()  # one-hot of each label

    found = drawn(f)
    assert torch.equal(found.double(), drawn(f.double()))
    error = found.double().mean(2) - p
    assert float(error.abs().max()) <= 5 * (0.25 / 20000) ** 0.5
    assert bool((found.sum(2)[p == 0] == 0).all())


def test_samples_have_the_curvature_as_second_moment(loss: Loss) -> None:
    """Within five standard errors of the mean over 4,000 draws, entry by entry."""
    f, y = batch(loss, scale=1.0)
    generator = torch.Generator().manual_seed(1)
    s = loss.sample(f, y, draws=4000, generator=generator) * 4000**0.5
    outer = s.permute(0, 2, 1)[..., :, None] * s.permute(0, 2, 1)[..., None, :]
    error = outer.std(1) / 4000**0.5
    difference = (outer.mean(1) - second_derivatives(loss, f, y)).abs()
    assert (difference <= 5 * error + 1e-12).all()


def test_values_are_torchs() -> None:
    f, y = batch(LOSSES["cross-entropy"])
    for name, options in {
        "cross-entropy": {},
        "smoothed": {"label_smoothing": 0.2},
        "weighted": {"weight": WEIGHT},
        "smoothed and weighted": {"label_smoothing": 0.2, "weight": WEIGHT},
    }.items():
        wanted = F.cross_entropy(f, y, reduction="none", **options)
        assert torch.equal(LOSSES[name].values(f, y), wanted)
    y = torch.randn_like(f)
    assert torch.allclose(cf.MSE().values(f, y).mean(), F.mse_loss(f, y))
    y = torch.rand_like(f)
    wanted = F.binary_cross_entropy_with_logits(f, y)
    assert torch.allclose(cf.BinaryCrossEntropy().values(f, y).mean(), wanted)


def test_one_output_takes_flat_targets() -> None:
    f, y = torch.randn(5, 1), torch.rand(5)
    for loss in (cf.MSE(), cf.BinaryCrossEntropy()):
        loss.check(1, y)
        assert torch.equal(loss.values(f, y), loss.values(f, y[:, None]))
        assert loss.gradient(f, y).shape == (5, 1)


@settings(deadline=None, max_examples=60)
@given(
    logits=st.lists(st.floats(-60, 60), min_size=2, max_size=6),
    label=st.integers(0, 5),
    smoothing=st.sampled_from([0.0, 0.1]),
)
def test_cross_entropy_at_any_logits(logits: list[float], label: int, smoothing: float) -> None:
    """The residual sums to zero, S has K − 1 columns and p's row sums, at any saturation."""
    k = len(logits)
    f = torch.tensor([logits], dtype=torch.float64)
    y = torch.tensor([label % k])
    loss = cf.CrossEntropy(label_smoothing=smoothing)
    p = f.softmax(-1)[0]
    s = loss.factor(f, y)[0]
    assert s.shape == (k, k - 1)
    assert torch.allclose(s @ s.T, torch.diag(p) - torch.outer(p, p), rtol=1e-8, atol=1e-15)
    assert abs(float(loss.gradient(f, y).sum())) <= 1e-15
    t = loss.coordinates(f, y)[0]
    assert torch.allclose(s @ t, loss.gradient(f, y)[0], rtol=1e-7, atol=1e-14)


def test_surprise_is_one_minus_the_largest_probability() -> None:
    f, y = batch(cf.CrossEntropy())
    p = f.softmax(-1)
    assert torch.allclose(cf.CrossEntropy().surprise(f, y), 1 - p.max(-1).values)
    p = f.sigmoid()
    wanted = torch.minimum(p, 1 - p).sum(-1)
    assert torch.allclose(cf.BinaryCrossEntropy().surprise(f, y), wanted)
    assert cf.MSE().surprise(f, y) is None


def concave(output: Tensor, target: Tensor) -> Tensor:
    return -(output - target).square().sum(-1)


class TestCustom:
    def test_negative_curvature_raises(self) -> None:
        f, y = torch.zeros(3, 2).double(), torch.ones(3, 2).double()
        with pytest.raises(cf.errors.CurvfluenceError, match="not convex"):
            cf.CustomLoss(concave).factor(f, y)

    def test_or_is_clipped_and_named(self) -> None:
        f, y = torch.zeros(3, 2).double(), torch.ones(3, 2).double()
        loss = cf.CustomLoss(concave, clip_negative=True)
        assert (loss.factor(f, y) == 0).all()
        assert "negative eigenvalues of ∂²ℓ/∂f² set to 0: 6," in loss.notes(f, y)[0]
        with pytest.raises(cf.errors.CurvfluenceError, match="outside the span"):
            loss.coordinates(f, y)

    def test_a_loss_that_reduces_is_refused(self) -> None:
        with pytest.raises(cf.errors.InputError, match="one value an example"):
            cf.CustomLoss(lambda f, y: (f - y).mean()).values(torch.ones(3, 2), torch.zeros(3, 2))

    def test_a_piecewise_linear_loss_has_no_curvature(self) -> None:
        loss = cf.CustomLoss(lambda f, y: (f - y).abs().sum(-1))
        f, y = torch.zeros(3, 2).double(), torch.ones(3, 2).double()
        assert (loss.factor(f, y) == 0).all()

    def test_huber_matches_mse_inside_its_quadratic_zone(self) -> None:
        f, y = torch.randn(4, 2).double(), torch.randn(4, 2).double()
        s = cf.CustomLoss(huber).factor(f, y)
        assert torch.allclose(s @ s.mT, torch.eye(2).double() / 10)


class TestBadTargets:
    @pytest.mark.parametrize(
        ("loss", "outputs", "target", "said"),
        [
            (cf.CrossEntropy(), 3, torch.tensor([0, 3]), "label 3 of example 1"),
            (cf.CrossEntropy(), 3, torch.tensor([-1, 0]), "label -1 of example 0"),
            (cf.CrossEntropy(), 3, torch.tensor([0.0, 1.0]), "integer label"),
            (cf.CrossEntropy(), 3, torch.tensor([[0], [1]]), "integer label"),
            (cf.CrossEntropy(), 1, torch.tensor([0, 0]), "BinaryCrossEntropy"),
            (cf.CrossEntropy(weight=torch.ones(2)), 3, torch.tensor([0, 1]), "class weights"),
            (cf.MSE(), 3, torch.zeros(2, 2), "3 target values"),
            (cf.MSE(), 3, torch.zeros(2), "3 target values"),
            (cf.BinaryCrossEntropy(), 2, torch.tensor([[0.0, 1.0], [0.0, 2.0]]), "example 1"),
        ],
    )
    def test_are_refused(self, loss: Loss, outputs: int, target: Tensor, said: str) -> None:
        with pytest.raises(cf.errors.InputError, match=said):
            loss.check(outputs, target)

    def test_bad_settings(self) -> None:
        with pytest.raises(cf.errors.InputError, match="label_smoothing"):
            cf.CrossEntropy(label_smoothing=1.0)
        with pytest.raises(cf.errors.InputError, match="class weights"):
            cf.CrossEntropy(weight=torch.tensor([1.0, -1.0]))


SOFT = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)).double().softmax(-1)
CROSS = {name: one for name, one in LOSSES.items() if isinstance(one, cf.CrossEntropy)}


@pytest.mark.parametrize("name", CROSS)
class TestSoftTargets:
    """Cross-entropy against rows of probabilities."""

    def test_against_autograd(self, name: str) -> None:
        loss = CROSS[name]
        f, _ = batch(loss)
        loss.check(4, SOFT)
        wanted = F.cross_entropy(
            f, SOFT, loss.weight, reduction="none", label_smoothing=loss.label_smoothing
        )
        assert torch.allclose(loss.values(f, SOFT), wanted, rtol=1e-12)
        slope = jacobian(lambda g: loss.values(g, SOFT).sum(), f)
        assert torch.allclose(loss.gradient(f, SOFT), slope, rtol=1e-12, atol=1e-14)
        curve = second_derivatives(loss, f, SOFT)
        s = loss.factor(f, SOFT)
        assert torch.allclose(s @ s.mT, curve, rtol=1e-12, atol=1e-14)
        v = torch.linspace(-1, 1, 4).double().expand(6, -1)
        product = (curve @ v[:, :, None])[:, :, 0]
        assert torch.allclose(loss.hessian_product(f, SOFT, v), product, rtol=1e-12, atol=1e-14)
        t = loss.coordinates(f, SOFT)
        assert torch.allclose((s @ t[:, :, None])[:, :, 0], slope, rtol=1e-9, atol=1e-13)
        drawn = loss.sample(f, SOFT, draws=40000, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(drawn @ drawn.mT, curve, atol=0.03)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
    def test_one_hot_rows_are_labels(self, name: str, dtype: torch.dtype) -> None:
        loss = CROSS[name]
        f, y = batch(loss, scale=20.0)  # where p − y cancels
        hot = F.one_hot(y, 4).to(dtype)
        loss.check(4, hot)
        for part in ("values", "gradient", "factor", "coordinates"):
            found, wanted = getattr(loss, part)(f, hot), getattr(loss, part)(f, y)
            assert torch.allclose(found, wanted, rtol=1e-12, atol=0), part


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (torch.full((3, 4), 0.3), "targets of example 0 are no distribution.*they sum to 1.2"),
        (torch.tensor([[1.5, -0.5, 0, 0]]), "the least is -0.5"),
        (torch.ones(3, 5), "one integer label an example, or 4 probabilities; seen"),
    ],
)
def test_no_distribution(target: Tensor, said: str) -> None:
    with pytest.raises(cf.errors.InputError, match=said):
        cf.CrossEntropy().check(4, target)


def test_soft_targets_over_positions() -> None:
    """Positions with a distribution each: the sum over them by hand."""
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(3, 5 * 4, generator=generator, dtype=torch.float64)
    y = torch.rand(3, 5, 4, generator=generator, dtype=torch.float64).softmax(-1)
    loss = cf.Positions(cf.CrossEntropy()).bound((5, 4), [(y, None)])
    loss.check(20, y)
    each = F.cross_entropy(f.view(15, 4), y.view(15, 4), reduction="none").view(3, 5)
    assert torch.allclose(loss.values(f, y), each.sum(1) / 5, rtol=1e-12)
    wanted = jacobian(lambda g: loss.values(g, y).sum(), f)
    assert torch.allclose(loss.gradient(f, y), wanted, rtol=1e-12, atol=1e-14)
