"""The stacked and functional paths against plain torch, and what must not depend on company."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn

from curvfluence.errors import InputError
from curvfluence.problem.data import Examples
from curvfluence.problem.losses import MSE, BinaryCrossEntropy, CrossEntropy, CustomLoss
from curvfluence.truth import (
    Constant,
    Cosine,
    Optimizer,
    Path,
    Recipe,
    Run,
    adam,
    adamw,
    choose_path,
    random_subsets,
    sgd,
    train,
    train_one,
)

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU,
    nn.GELU,
    lambda: nn.GELU(approximate="tanh"),
    nn.Tanh,
    nn.Sigmoid,
    nn.SiLU,
    lambda: nn.ELU(0.7),
    lambda: nn.LeakyReLU(0.2),
    lambda: nn.Softplus(2.0, 3.0),
    nn.ReLU6,
    lambda: nn.Hardtanh(-0.3, 0.4),
    nn.Identity,
]


def examples(n: int = 77, d: int = 12, k: int = 4, dtype: torch.dtype = torch.float32) -> Examples:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, d, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, k, (n,), generator=generator)
    return Examples(inputs.to(dtype), labels)


def mlp(
    *widths: int, activation: Callable[[], nn.Module] = nn.GELU, bias: bool = True
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        modules: list[nn.Module] = []
        for i, o in pairwise(widths):
            modules += [nn.Linear(i, o, bias=bias), activation()]
        return nn.Sequential(nn.Flatten(), nn.Sequential(*modules[:-1]))

    return build


def assert_close(recipe: Recipe, data: Examples, path: Path, tolerance: float) -> None:
    runs = [Run(0, 0), Run(0, 1), Run(1, 0, 0), Run(1, 0, 2)]
    subsets = random_subsets(len(data), keep=0.6, count=3, seed=0)
    trained = train(recipe, data, runs, subsets, path=path, threads=1)
    assert trained.path is path
    for m, run in enumerate(runs):
        alone = train_one(recipe, data, run, subsets)
        assert float(trained.final_loss[m]) == pytest.approx(alone.final_loss, abs=tolerance)
        for name, expected in alone.theta.items():
            torch.testing.assert_close(trained.theta[name][m], expected, rtol=0, atol=tolerance)


RECIPES = {
    "momentum": Recipe(mlp(12, 7, 5, 4), CrossEntropy(), sgd(0.1, 0.9), 16, epochs=2),
    "nesterov": Recipe(
        mlp(12, 7, 4), CrossEntropy(), sgd(0.1, 0.9, nesterov=True), 16, epochs=2, clip_norm=0.05
    ),
    "decay by name": Recipe(
        mlp(12, 7, 5, 4),
        CrossEntropy(label_smoothing=0.1),
        sgd(0.1, 0.9),
        20,
        epochs=2,
        schedule=Cosine(0.1),
        weight_decay={"1.0.weight": 0.3, "1.2.weight": 0.1, "1.2.bias": 0.1},
        clip_norm=0.5,
    ),
    "adam": Recipe(
        mlp(12, 7, 4), CrossEntropy(), adam(0.01), 33, epochs=2, weight_decay=0.1, clip_norm=1.0
    ),
    "adamw": Recipe(
        mlp(12, 7, 4), CrossEntropy(), adamw(0.01), 16, steps=7, weight_decay={"1.0.weight": 0.5}
    ),
    "rmsprop": Recipe(
        mlp(12, 4), CrossEntropy(), Optimizer(torch.optim.RMSprop, {"lr": 0.01}), 500, epochs=3
    ),
    "no bias": Recipe(mlp(12, 3, 4, bias=False), CrossEntropy(), sgd(0.1), 16, epochs=1),
}


@pytest.mark.parametrize("path", [Path.STACKED, Path.FUNCTIONAL])
@pytest.mark.parametrize("name", RECIPES)
def test_equals_sequential_training(name: str, path: Path) -> None:
    assert_close(RECIPES[name], examples(dtype=torch.float64), path, 1e-12)


@pytest.mark.parametrize("path", [Path.STACKED, Path.FUNCTIONAL])
def test_equals_sequential_training_in_float32(path: Path) -> None:
    assert_close(RECIPES["decay by name"], examples(), path, 1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: Callable[[], nn.Module]) -> None:
    recipe = Recipe(mlp(12, 5, 4, activation=activation), CrossEntropy(), sgd(0.5), 16, epochs=1)
    assert_close(recipe, examples(dtype=torch.float64), Path.STACKED, 1e-12)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (MSE(), torch.randn(40, 2, dtype=torch.float64)),
        (MSE(), torch.randn(40, 2)),
        (BinaryCrossEntropy(), torch.rand(40, 2, dtype=torch.float64)),
        (CustomLoss(lambda f, y: (f - y).cosh().log().sum(-1)), torch.zeros(40, 2).double()),
    ],
)
def test_every_loss(loss: MSE, targets: torch.Tensor) -> None:
    data = Examples(examples(40, dtype=torch.float64).inputs, targets)
    recipe = Recipe(mlp(12, 5, 2), loss, sgd(0.1), 16, epochs=2)
    assert_close(recipe, data, Path.STACKED, 1e-12)
    assert_close(recipe, data, Path.FUNCTIONAL, 1e-12)


def test_one_output_and_images() -> None:
    data = Examples(torch.randn(30, 2, 3, 2, dtype=torch.float64), torch.randn(30))
    recipe = Recipe(mlp(12, 3, 1), MSE(), sgd(0.1), 8, epochs=2)
    assert_close(recipe, data, Path.STACKED, 1e-12)
    assert_close(recipe, data, Path.FUNCTIONAL, 1e-12)


@pytest.mark.parametrize(
    ("widths", "batch", "optimizer", "activation"),
    [
        ((12, 7, 4), 16, sgd(0.1, 0.9), nn.GELU),
        ((12, 7, 5, 4), 20, adam(0.01), nn.Tanh),
        ((12, 1, 4), 9, adamw(0.01), nn.Sigmoid),
        ((12, 33, 17, 3), 32, sgd(0.1), nn.SiLU),
        ((12, 16, 10), 100, sgd(0.1, 0.9), nn.Softplus),
        ((12, 13, 2), 48, Optimizer(torch.optim.Adamax, {"lr": 0.01}), nn.ELU),
    ],
)
def test_bitwise_alone_or_among_256(
    widths: tuple[int, ...],
    batch: int,
    optimizer: Optimizer,
    activation: Callable[[], nn.Module],
) -> None:
    data = examples(k=widths[-1])
    recipe = Recipe(
        mlp(*widths, activation=activation),
        CrossEntropy(),
        optimizer,
        batch,
        epochs=2,
        weight_decay=0.01,
        clip_norm=0.7,
    )
    subsets = random_subsets(len(data), keep=0.5, count=3, seed=0)
    runs = [Run(i % 5, i, i % 3) for i in range(256)]
    among = train(recipe, data, runs, subsets, path=Path.STACKED, chunk=256, threads=1)
    few = train(recipe, data, runs[:7], subsets, path=Path.STACKED, chunk=3, threads=2)
    for m in (0, 6):
        alone = train(recipe, data, [runs[m]], subsets, path=Path.STACKED)
        assert torch.equal(alone.final_loss[0], among.final_loss[m])
        for name, value in alone.theta.items():
            assert torch.equal(value[0], among.theta[name][m])
            assert torch.equal(value[0], few.theta[name][m])


class Residual(nn.Module):
    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 5), nn.Linear(5, 4)
        self.register_buffer("shift", torch.randn(5))
        self.first.weight.requires_grad_(not frozen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.last(h + torch.tanh(h + self.shift))


@pytest.mark.parametrize("frozen", [False, True])
def test_functional_with_buffers_and_frozen_parameters(frozen: bool) -> None:
    recipe = Recipe(lambda: Residual(frozen), CrossEntropy(), sgd(0.1, 0.9), 16, epochs=2)
    data = examples(dtype=torch.float64)
    assert choose_path(recipe, data).path is Path.FUNCTIONAL
    assert_close(recipe, data, Path.FUNCTIONAL, 1e-12)
    trained = train(recipe, data, [Run(0, 0), Run(3, 0)], threads=1)
    assert set(trained.state) == {"shift"} | ({"first.weight"} if frozen else set())
    assert not torch.equal(*trained.state["shift"])
    recipe.build(0).load_state_dict(trained.weights(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x).tanh()))


def repeated() -> nn.Module:
    twice = nn.Linear(12, 12)
    return nn.Sequential(twice, nn.Tanh(), twice, nn.Linear(12, 4))


@pytest.mark.parametrize("build", [Tied, repeated])
def test_functional_with_shared_parameters(build: Callable[[], nn.Module]) -> None:
    recipe = Recipe(build, CrossEntropy(), sgd(0.1, 0.9), 16, epochs=2, weight_decay=0.1)
    data = examples(dtype=torch.float64)
    assert choose_path(recipe, data).path is Path.FUNCTIONAL
    assert_close(recipe, data, Path.FUNCTIONAL, 1e-12)
    trained = train(recipe, data, [Run(0, 0), Run(1, 0)], threads=1)
    model = recipe.build(0, torch.float64)
    model.load_state_dict(trained.weights(1), strict=False)
    expected = CrossEntropy().values(model(data.inputs), data.targets).mean()
    torch.testing.assert_close(trained.final_loss[1], expected.detach(), rtol=0, atol=1e-12)


class Centred(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


def test_choice_of_path_and_its_reason() -> None:
    def choose(build: Callable[[], nn.Module]) -> tuple[Path, str]:
        data = Examples(torch.randn(8, 3, 4, 4), torch.randint(0, 4, (8,)))
        choice = choose_path(Recipe(build, CrossEntropy(), sgd(0.1), 4, epochs=1), data)
        return choice.path, choice.reason

    flat = nn.Flatten
    assert choose(lambda: nn.Sequential(flat(), nn.Linear(48, 4)))[0] is Path.STACKED
    path, reason = choose(lambda: nn.Sequential(nn.Conv2d(3, 2, 2), flat(), nn.Linear(18, 4)))
    assert path is Path.FUNCTIONAL
    assert "module 0 (Conv2d) is no Linear" in reason
    path, reason = choose(lambda: nn.Sequential(flat(), nn.Dropout(0.5), nn.Linear(48, 4)))
    assert path is Path.PROCESSES
    assert "module 1 (Dropout) is random" in reason
    path, reason = choose(lambda: nn.Sequential(nn.BatchNorm2d(3), flat(), nn.Linear(48, 4)))
    assert path is Path.PROCESSES
    assert "BatchNorm2d" in reason
    path, reason = choose(lambda: nn.Sequential(flat(), Centred(), nn.Linear(48, 4)))
    assert path is Path.PROCESSES
    assert "depends on the others in its batch" in reason
    shared = nn.Linear(48, 48)
    path, reason = choose(lambda: nn.Sequential(flat(), shared, shared, nn.Linear(48, 4)))
    assert path is Path.FUNCTIONAL
    assert "shared" in reason
    rprop = Optimizer(torch.optim.Rprop, {"lr": 0.1})
    recipe = Recipe(mlp(12, 4), CrossEntropy(), rprop, 4, epochs=1, schedule=Constant())
    assert choose_path(recipe).path is Path.PROCESSES


def test_a_path_that_cannot_be_is_refused() -> None:
    recipe = Recipe(Residual, CrossEntropy(), sgd(0.1), 16, epochs=1)
    with pytest.raises(InputError, match="stacked path cannot train this"):
        train(recipe, examples(), [Run(0, 0)], path=Path.STACKED)
