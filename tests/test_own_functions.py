"""A user's loss, measurement and model are tried before they are believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import curvfluence as cf
from tests.problems import mlp, seeded

InputError = cf.errors.InputError
RUNGS = (cf.Identity(), cf.EKFAC(cf.Empirical()), cf.GGN(), cf.Hessian())


def ce(f: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(f, y, reduction="none")


def classes(loss: cf.Loss, dtype: torch.dtype = torch.float64, **options: Any) -> cf.Problem:
    seeded()
    x, y = torch.randn(30, 4).to(dtype), torch.randint(3, (30,))
    return cf.Problem(mlp(4, 3).to(dtype), loss, (x, y), (x[:5], y[:5]), **options)


def regression(function: Callable[[Tensor, Tensor], Tensor]) -> cf.Problem:
    seeded()
    x, y = torch.randn(30, 4).double(), torch.randn(30).double()
    return cf.Problem(mlp(4, 1).double(), cf.CustomLoss(function), (x, y), (x[:5], y[:5]))


MIXING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "over the batch's length": lambda f, y: ce(f, y) / len(y),
    "in-batch negatives": lambda f, y: -(f @ f.T).log_softmax(1).diagonal(),
    "less the batch's mean": lambda f, y: ce(f, y) - ce(f, y).mean() / 2,
    "the next one's": lambda f, y: ce(f, y) + 0.1 * ce(f, y).roll(1, 0),
    "standardised": lambda f, y: ce((f - f.mean(0)) / f.std(0, correction=0).clamp_min(0.1), y),
}


class TestLoss:
    @pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
    @pytest.mark.parametrize("name", MIXING)
    def test_one_that_mixes_examples_is_refused(self, name: str, rung: cf.Rung) -> None:
        with pytest.raises(InputError, match="depends on the others"):
            cf.influence(classes(cf.CustomLoss(MIXING[name])), rung)

    def test_shapes_that_broadcast(self) -> None:
        with pytest.raises(InputError, match=r"depends on the others.*shapes that broadcast"):
            cf.influence(
                regression(lambda f, y: F.mse_loss(f, y, reduction="none").mean(1)), cf.GGN()
            )

    @pytest.mark.parametrize("random", [torch.rand, torch.randn])
    def test_a_random_one_is_refused(self, random: Callable[[int], Tensor]) -> None:
        loss = cf.CustomLoss(lambda f, y: ce(f, y) * random(len(y)).to(f))
        with pytest.raises(InputError, match="another each time"):
            cf.influence(classes(loss), cf.GGN())

    def test_dropout_in_it_is_refused(self) -> None:
        loss = cf.CustomLoss(lambda f, y: ce(F.dropout(f, 0.3), y))
        with pytest.raises(InputError, match="another each time"):
            cf.influence(classes(loss), cf.KFAC())

    def test_over_positions(self) -> None:
        seeded()
        x, y = torch.randn(20, 5, 4).double(), torch.randint(3, (20, 5))
        loss = cf.Positions(cf.CustomLoss(MIXING["less the batch's mean"]))
        given = cf.Problem(mlp(4, 3).double(), loss, (x, y), (x[:2], y[:2]))
        with pytest.raises(InputError, match="depends on the others"):
            cf.influence(given, cf.GGN())

    def test_where_the_model_fits(self) -> None:
        """Losses of 0 lend nothing to each other: outputs are tried with other targets too."""
        net, y = nn.Linear(3, 3, bias=False).double(), torch.arange(3).repeat(10)
        with torch.no_grad():
            net.weight.copy_(200 * torch.eye(3))
        x = F.one_hot(y, 3).double()
        given = cf.Problem(
            net, cf.CustomLoss(MIXING["over the batch's length"]), (x, y), (x[:3], y[:3])
        )
        with pytest.raises(InputError, match="depends on the others"):
            cf.influence(given, cf.Identity())

    @pytest.mark.parametrize(
        ("function", "said"),
        [
            (lambda f, y: ce(f.detach(), y), "as far as autograd sees"),
            (
                lambda f, y: F.cross_entropy(f, y, torch.ones(3).double(), reduction="none"),
                "raised",
            ),
            (
                lambda f, y: ce(f, y) * torch.ones(1).double(),
                "float64 for outputs of torch.float32",
            ),
            (lambda f, y: ce(f, y).mean(), "one value an example"),
            (lambda f, y: float(ce(f, y).mean()), "seen float"),
            (lambda f, y: 1 / 0, "raised ZeroDivisionError"),
        ],
    )
    @pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
    def test_others_get_the_right_message(
        self, function: Callable[[Tensor, Tensor], Any], said: str, rung: cf.Rung
    ) -> None:
        with pytest.raises(InputError, match=said):
            cf.influence(classes(cf.CustomLoss(function), torch.float32), rung)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        "function",
        [
            lambda f, y: ce(f, y) + (ce(f, y).mean() - ce(f, y).mean().detach()),
            lambda f, y: ce(f, y) * ce(f, y).detach(),
            lambda f, y: ce(f + ((4 * f).round() / 4 - f).detach(), y),
        ],
    )
    def test_one_whose_gradient_is_not_that_of_its_values(
        self, function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
    ) -> None:
        with pytest.raises(InputError, match="as autograd says"):
            cf.influence(classes(cf.CustomLoss(function), dtype), cf.Diagonal())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        "function",
        [
            lambda f, y: (f[:, 0] - y).abs(),
            lambda f, y: (1 - f[:, 0] * y.sign()).clamp_min(0),
            lambda f, y: F.smooth_l1_loss(f[:, 0], y, reduction="none", beta=0.1),
        ],
    )
    def test_one_with_kinks_is_taken(
        self, function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
    ) -> None:
        given = regression(function).to(dtype)
        cf.influence(given, cf.KFAC(cf.Empirical()))

    def test_what_it_raised_is_the_cause(self) -> None:
        with pytest.raises(InputError) as caught:
            classes(cf.CustomLoss(lambda f, y: 1 / 0))  # pyright: ignore[reportArgumentType]
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    @pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
    @pytest.mark.parametrize("wrap", [False, True])
    def test_one_that_is_not_finite_names_its_example(self, rung: cf.Rung, wrap: bool) -> None:
        """By its number in the training set, beyond the first chunk too."""
        seeded()
        x, y = torch.randn(600, 4).double(), torch.randint(3, (600,))
        x[517] = 0

        def root(f: Tensor, y: Tensor) -> Tensor:
            return ce(f, y) + (f * f).sum(-1).sqrt()  # no derivative at f = 0

        net = nn.Sequential(nn.Linear(4, 3, bias=False)).double()
        if wrap:
            x, y = x[:, None], y[:, None]
        loss = cf.Positions(cf.CustomLoss(root)) if wrap else cf.CustomLoss(root)
        given = cf.Problem(net, loss, (x, y), (x[:3], y[:3]))
        with pytest.raises(cf.errors.NonFiniteError, match="example 517 "):
            cf.influence(given, rung)

    def test_one_that_is_not_convex_names_its_example(self) -> None:
        given = classes(cf.CustomLoss(lambda f, y: ce(f, y) - 0.3 * (f[:, 0] > 1) * f[:, 0] ** 2))
        first = int((given.outputs(given.train, "x")[:, 0] > 1).nonzero()[0])
        with pytest.raises(cf.errors.CurvfluenceError, match=f"not convex.*example {first} "):
            cf.fit(given, cf.GGN())

    def test_those_of_single_examples_are_taken(self) -> None:
        given = classes(cf.CustomLoss(lambda f, y: ce(f, y) + 0.1 * f.square().sum(-1)))
        cf.influence(given, cf.GGN())
        cf.influence(regression(lambda f, y: F.huber_loss(f[:, 0], y, reduction="none")), cf.KFAC())

    def test_a_subclass_whose_derivative_is_not_that_of_its_values(self) -> None:
        @dataclass(frozen=True)
        class Doubled(cf.MSE):
            def values(self, output: Tensor, target: Tensor) -> Tensor:
                return 2 * super().values(output, target)

        seeded()
        x, y = torch.randn(30, 4).double(), torch.randn(30, 2).double()
        given = cf.Problem(mlp(4, 2).double(), Doubled(), (x, y), (x[:5], y[:5]))
        with pytest.raises(InputError, match="another derivative than autograd"):
            cf.influence(given, cf.GGN())

    def test_training_refuses_it_too(self) -> None:
        recipe = cf.truth.Recipe(
            lambda: mlp(4, 3),
            cf.CustomLoss(MIXING["less the batch's mean"]),
            cf.truth.sgd(0.1),
            batch_size=4,
            epochs=1,
        )
        data = cf.Examples(torch.randn(20, 4), torch.randint(3, (20,)))
        with pytest.raises(InputError, match="depends on the others"):
            cf.truth.train(recipe, data, cf.truth.grid([0], [0]))


class TestMeasurement:
    @pytest.mark.parametrize(
        "function",
        [
            lambda f, y: f[:, 0] - f[:, 0].mean(),
            lambda f, y: f[:, 0] - f.logsumexp(0)[0],
            lambda f, y: f[:, 0] / len(f),
        ],
    )
    def test_one_that_mixes_queries_is_refused(
        self, function: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        measurement = cf.CustomMeasurement(function, lower_is_better=True)
        given = classes(cf.CrossEntropy(), measurement=measurement)
        with pytest.raises(InputError, match="depends on the others"):
            cf.influence(given, cf.KFAC())
        recipe = cf.truth.Recipe(
            lambda: mlp(4, 3), cf.CrossEntropy(), cf.truth.sgd(0.1), batch_size=4, epochs=1
        )
        trained = cf.truth.train(recipe, given.train, cf.truth.grid([0], [0]))
        with pytest.raises(InputError, match="depends on the others"):
            cf.truth.measure(recipe, trained, given.queries, measurement)

    def test_a_random_one_is_refused(self) -> None:
        noisy = cf.CustomMeasurement(
            lambda f, y: f[:, 0] * torch.rand(len(f)).to(f), lower_is_better=True
        )
        with pytest.raises(InputError, match="another each time"):
            cf.influence(classes(cf.CrossEntropy(), measurement=noisy), cf.KFAC())


class Round(nn.Module):
    """A straight-through estimator."""

    def forward(self, x: Tensor) -> Tensor:
        return x + ((4 * x).round() / 4 - x).detach()


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return g / 2


class Halving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Halved.apply(x)  # pyright: ignore[reportReturnType]


class Detached(nn.Module):
    """One weight used twice, once without its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(self.first(x).detach())))


class Words(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(7, 4, **options), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(x)).mean(1))


class TestDerivative:
    """Autograd's derivative of the model is compared with differences."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        ("make", "named"),
        [
            (
                lambda: nn.Sequential(nn.Linear(4, 8), Round(), nn.Linear(8, 3)),
                r"0.weight \(Linear",
            ),
            (lambda: nn.Sequential(nn.Linear(4, 8), Halving(), nn.Linear(8, 3)), "0.bias"),
            (Detached, r"first.weight \(Linear\)"),
        ],
    )
    def test_another_than_autograds_is_refused(
        self, make: Callable[[], nn.Module], named: str, dtype: torch.dtype
    ) -> None:
        seeded()
        x, y = torch.randn(30, 4).to(dtype), torch.randint(3, (30,))
        given = cf.Problem(make().to(dtype), cf.CrossEntropy(), (x, y), (x[:5], y[:5]))
        with pytest.raises(InputError, match=f"as autograd says.*{named}"):
            cf.influence(given, cf.KFAC())

    def test_frequencies_in_an_embedding(self) -> None:
        seeded()
        x, y = torch.randint(7, (30, 5)), torch.randint(3, (30,))
        given = cf.Problem(
            Words(scale_grad_by_freq=True), cf.CrossEntropy(), (x, y), (x[:5], y[:5])
        )
        with pytest.raises(InputError, match=r"words.weight \(Embedding\)"):
            cf.influence(given, cf.GGN())
        plain = cf.Problem(Words(), cf.CrossEntropy(), (x, y), (x[:5], y[:5]))
        cf.influence(plain, cf.GGN())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_kink_is_no_fault(self, dtype: torch.dtype) -> None:
        """Half of all units stand at ReLU(0), where autograd takes one of the slopes."""
        seeded()
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
        nn.init.zeros_(net[0].bias)  # pyright: ignore[reportArgumentType]
        x, y = torch.randn(30, 4).to(dtype), torch.randint(3, (30,))
        x[::2] = 0
        cf.influence(cf.Problem(net, cf.CrossEntropy(), (x, y), (x[:5], y[:5])), cf.KFAC())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("shape", [(3, 4), (), (5,)])
    def test_gradients_that_are_one_tensor(
        self, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        """Autograd gives two weights that are added up the same memory for a gradient, and one that
        is summed up a single number for all of its."""

        class Added(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(4, 3)
                self.a, self.b = (nn.Parameter(torch.randn(shape)) for _ in range(2))

            def forward(self, x: Tensor) -> Tensor:
                added = self.a + self.b
                if shape == (3, 4):
                    return self.head(x) + F.linear(x, added)
                return self.head(x) + added.sum()

        seeded()
        x, y = torch.randn(30, 4).to(dtype), torch.randint(3, (30,))
        given = cf.Problem(Added().to(dtype), cf.CrossEntropy(), (x, y), (x[:5], y[:5]))
        cf.influence(given, cf.KFAC(), damping=cf.Absolute(0.1))

    def test_weights_without_a_gradient_are_constants(self) -> None:
        class Frozen(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

            def forward(self, x: Tensor) -> Tensor:
                with torch.no_grad():
                    x = torch.tanh(self.first(x))
                return self.last(x)

        seeded()
        x, y = torch.randn(30, 4).double(), torch.randint(3, (30,))
        given = cf.Problem(Frozen().double(), cf.CrossEntropy(), (x, y), (x[:5], y[:5]))
        scores = cf.influence(given, cf.EKFAC(), damping=cf.Absolute(0.1))
        assert any("without a gradient" in str(line) for line in scores.coverage)
