"""Training as a function of recipe, data and seeds; what it measures; what it refuses."""

from __future__ import annotations

import copy
import json
from functools import partial
from math import ceil

import pytest
import torch
from torch import nn

from curvfluence.errors import InputError, NonFiniteError
from curvfluence.problem.data import Examples
from curvfluence.problem.losses import MSE, CrossEntropy
from curvfluence.problem.measurement import CustomMeasurement, LossMeasurement, Margin
from curvfluence.truth import (
    Constant,
    Cosine,
    Kept,
    Optimizer,
    Path,
    Recipe,
    Run,
    Subsets,
    Trained,
    Weighted,
    adam,
    adamw,
    choose_path,
    down_weight,
    grid,
    leave_one_out,
    measure,
    random_subsets,
    sgd,
    train,
    train_one,
)
from curvfluence.truth.run import batches, epoch_order, share, stacked_batches


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * self.gate(x).sigmoid()


def noisy() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def examples(n: int = 50, dtype: torch.dtype = torch.float64) -> Examples:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return Examples(x.to(dtype), torch.randint(0, 3, (n,), generator=generator))


RECIPE = Recipe(net, CrossEntropy(), sgd(0.1, 0.9), 16, epochs=3, weight_decay=0.01)


def same(a: Trained, b: Trained) -> bool:
    return all(torch.equal(a.theta[name], b.theta[name]) for name in a.theta)


def test_minibatches_are_the_runs_own_and_the_last_may_be_partial() -> None:
    subsets = random_subsets(50, keep=0.7, count=2, seed=0)
    own = share(Run(0, 7, 1), examples(), subsets)
    seen = list(batches(RECIPE, own))
    assert [len(index) for index, _ in seen] == [16, 16, 3] * 3
    kept = set(subsets.weights[1].nonzero().flatten().tolist())
    for epoch in range(3):
        drawn = torch.cat([index for index, _ in seen[3 * epoch : 3 * epoch + 3]]).tolist()
        assert set(drawn) == kept
        assert len(drawn) == len(kept)
    assert not torch.equal(seen[0][0], seen[3][0])
    others = [share(Run(1, 7, 0), examples(), subsets), own]
    for (index, weight), (index_mb, scale_mb) in zip(
        seen, stacked_batches(RECIPE, others, examples().inputs), strict=True
    ):
        assert index_mb.shape == (2, 16)
        assert torch.equal(index_mb[1, : len(index)], index)
        torch.testing.assert_close(scale_mb[1, : len(index)], weight / len(index))
        assert not scale_mb[:, len(index) :].any()


def test_order_depends_on_order_seed_and_epoch_only() -> None:
    assert torch.equal(epoch_order(1, 2, 40), epoch_order(1, 2, 40))
    assert not torch.equal(epoch_order(1, 2, 40), epoch_order(2, 1, 40))
    full = share(Run(0, 4), examples(), None)
    without = share(Run(9, 4, 0), examples(), leave_one_out(50, [11]))
    for (a, _), (b, weight) in zip(batches(RECIPE, full), batches(RECIPE, without), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(weight == 0, a == 11)


@pytest.mark.parametrize("path", list(Path))
def test_weights_of_one_are_training_on_everything(path: Path) -> None:
    ones = torch.ones(1, 50)
    results = [
        train(RECIPE, examples(), [Run(0, 0, s)], subsets, path=path, threads=1)
        for s, subsets in ((0, Subsets(ones, Kept())), (0, Subsets(ones, Weighted())), (None, None))
    ]
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.parametrize("build", [net, Gated, noisy])
def test_weighted_runs_equal_sequential_training(build: type[nn.Module]) -> None:
    recipe = Recipe(build, CrossEntropy(), sgd(0.1, 0.9), 16, epochs=2)
    subsets = down_weight(50, [[1, 2, 3], [4]], 0.4)
    runs = [Run(0, 0, 0), Run(1, 1, 1), Run(0, 1)]
    trained = train(recipe, examples(), runs, subsets, threads=1)
    for m, run in enumerate(runs):
        alone = train_one(recipe, examples(), run, subsets)
        assert float(trained.final_loss[m]) == pytest.approx(alone.final_loss, abs=1e-12)
        for name, value in alone.theta.items():
            torch.testing.assert_close(trained.theta[name][m], value, rtol=0, atol=1e-12)


def test_a_step_on_a_weighted_batch_is_the_closed_form() -> None:
    # One full-batch step of least squares from θ₀: θ₀ − lr ((2/N) Xᵀ diag(s) (Xθ₀ − y) + w θ₀).
    data = Examples(examples().inputs, torch.randn(50, dtype=torch.float64))
    linear = lambda: nn.Sequential(nn.Linear(6, 1, bias=False))  # noqa: E731
    recipe = Recipe(linear, MSE(), sgd(0.2), 50, steps=1, weight_decay=0.3)
    subsets = leave_one_out(50, [7])
    start = recipe.initial(5, torch.float64)["0.weight"][0]
    residual = (data.inputs @ start - data.targets) * subsets.weights[0]
    expected = start - 0.2 * (2 / 50 * data.inputs.T @ residual + 0.3 * start)
    trained = train(recipe, data, [Run(5, 0, 0)], subsets)
    torch.testing.assert_close(trained.theta["0.weight"][0, 0], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("build", [net, Gated, noisy])
def test_a_run_is_pure(build: type[nn.Module]) -> None:
    recipe = Recipe(build, CrossEntropy(), adam(0.01), 16, epochs=2)
    subsets = random_subsets(50, keep=0.5, count=3, seed=0)
    runs = grid([0, 1], [0, 1], 3)
    torch.manual_seed(123)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = train(recipe, examples(), runs, subsets, threads=1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    torch.manual_seed(5)
    second = train(recipe, examples(), runs[::-1], subsets, threads=1, chunk=5)
    for name, value in first.theta.items():
        tolerance = 1e-12 if first.path is Path.FUNCTIONAL else 0.0
        torch.testing.assert_close(value, second.theta[name].flip(0), rtol=0, atol=tolerance)
    distinct = {tuple(row.tolist()) for row in next(iter(first.theta.values())).flatten(1)}
    assert len(distinct) == len(runs)


@pytest.mark.parametrize("path", list(Path))
def test_a_module_shared_between_calls_is_left_alone(path: Path) -> None:
    backbone = nn.Linear(6, 5)
    before = copy.deepcopy(backbone.state_dict())
    recipe = Recipe(
        lambda: nn.Sequential(backbone, nn.Tanh(), nn.Linear(5, 3)),
        CrossEntropy(),
        sgd(0.5),
        16,
        epochs=1,
    )
    trained = train(recipe, examples(), grid([0, 1], [0]), path=path, threads=1)
    assert not torch.equal(trained.theta["0.weight"][0].float(), before["weight"])
    for name, value in backbone.state_dict().items():
        assert value.dtype is torch.float32
        assert torch.equal(value, before[name])
    assert backbone.weight.grad is None


def test_epochs_follow_the_subset_and_steps_do_not() -> None:
    by_epochs = Recipe(net, CrossEntropy(), sgd(0.1), 16, epochs=4)
    by_steps = Recipe(net, CrossEntropy(), sgd(0.1), 16, steps=10)
    for n in (50, 16, 17, 3):
        own = share(Run(0, 0), examples(n), None)
        assert len(list(batches(by_epochs, own))) == 4 * ceil(n / 16)
        assert len(list(batches(by_steps, own))) == 10
    subsets = Subsets(torch.tensor([[1] * 50, [1] * 20 + [0] * 30, [1] * 3 + [0] * 47]))
    runs = [Run(0, 0, s) for s in (2, 0, 1)]
    for recipe in (by_epochs, by_steps):  # different sizes in one call
        trained = train(recipe, examples(), runs, subsets, threads=1)
        for m, run in enumerate(runs):
            for name, value in train_one(recipe, examples(), run, subsets).theta.items():
                torch.testing.assert_close(trained.theta[name][m], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", list(Path))
def test_divergence_names_the_run(path: Path) -> None:
    data = Examples(examples().inputs, torch.randn(50))
    linear = partial(nn.Linear, 6, 1)
    recipe = Recipe(lambda: nn.Sequential(linear()), MSE(), sgd(5.0), 16, steps=2000)
    before = torch.get_num_threads()
    with pytest.raises(NonFiniteError, match=r"run 0 \(Run\(init_seed=4, order_seed=2"):
        train(recipe, data, [Run(4, 2)], path=path, threads=1)
    assert torch.get_num_threads() == before


def test_progress_counts_runs() -> None:
    seen: list[int] = []
    train(RECIPE, examples(), grid([0], range(7)), chunk=3, threads=1, progress=seen.append)
    assert seen == [3, 6, 7]


@pytest.mark.parametrize("build", [net, Gated, noisy])
def test_measure_is_the_models_own_forward(build: type[nn.Module]) -> None:
    recipe = Recipe(build, CrossEntropy(), sgd(0.1), 16, epochs=1)
    trained = train(recipe, examples(), grid([0, 1, 2], [0]), threads=1)
    queries = Examples(examples(37).inputs.float(), examples(37).targets)
    for measurement in (LossMeasurement(CrossEntropy()), Margin()):
        value_mq = measure(recipe, trained, queries, measurement, chunk=2)
        assert value_mq.shape == (3, 37)
        for m in range(3):
            model = recipe.build(0, torch.float64).eval()
            model.load_state_dict(trained.weights(m), strict=False)
            with torch.no_grad():
                output = model(queries.inputs.double())
            expected = measurement.values(output, queries.targets)
            torch.testing.assert_close(value_mq[m], expected, rtol=0, atol=1e-12)


def test_measure_names_run_and_query_of_a_nan() -> None:
    trained = train(RECIPE, examples(), grid([0, 1], [0]))
    broken = CustomMeasurement(lambda f, y: torch.where(y == 1, f[:, 0] / 0, 1.0), True)
    with pytest.raises(NonFiniteError, match=r"query \d+ is .* under run 0 \(Run"):
        measure(RECIPE, trained, examples(), broken)


def test_initial_parameters_leave_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two, other = RECIPE.initial(1), RECIPE.initial(1, torch.float64), RECIPE.initial(2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    expected = dict(net().named_parameters())
    for name, value in one.items():
        assert torch.equal(value, expected[name].detach())
        assert torch.equal(two[name], value.double())
        assert not torch.equal(other[name], value)


def test_schedules() -> None:
    assert Constant().factor(3, 10) == 1
    assert Cosine().factor(0, 10) == 1
    assert Cosine().factor(5, 10) == pytest.approx(0.5)
    assert Cosine(0.2).factor(10, 10) == pytest.approx(0.2)


def test_recipe_describes_itself_in_json() -> None:
    recipe = Recipe(
        net, CrossEntropy(weight=torch.ones(3)), adamw(0.1), 8, steps=4, schedule=Cosine()
    )
    described = json.loads(json.dumps(recipe.describe()))
    assert described["optimizer"]["lr"] == 0.1
    assert "AdamW" in described["optimizer"]["kind"]
    assert described["loss"]["weight"] == [1, 1, 1]
    assert described["schedule"] == {"kind": "Cosine", "final": 0.0}
    assert "GELU" in described["architecture"]
    assert described != RECIPE.describe()
    assert adamw(0.1).decoupled
    assert not adam(0.1).decoupled
    assert not sgd(0.1).decoupled


def test_settings_that_make_no_run() -> None:
    make = partial(Recipe, net, CrossEntropy(), sgd(0.1))
    for message, attempt in {
        "exactly one of epochs and steps": lambda: make(8),
        "seen epochs=1, steps=1": lambda: make(8, epochs=1, steps=1),
        "batch_size must be": lambda: make(0, epochs=1),
        "steps must be": lambda: make(8, steps=0),
        "clip_norm": lambda: make(8, epochs=1, clip_norm=0.0),
        "weight_decay must be": lambda: make(8, epochs=1, weight_decay=-1.0),
        "finite lr > 0": lambda: sgd(0.0),
        "no settings": lambda: Optimizer(torch.optim.SGD, {"lr": 0.1, "beta": 0.1}),
        "belongs to the Recipe": lambda: Optimizer(
            torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}
        ),
        "needs a closure": lambda: Optimizer(torch.optim.LBFGS, {"lr": 0.1}),
        "fresh model": lambda: Recipe(net(), CrossEntropy(), sgd(0.1), 8, epochs=1),
    }.items():
        with pytest.raises(InputError, match=message):
            attempt()


def test_requests_that_do_not_fit() -> None:
    data, subsets = examples(), random_subsets(40, keep=0.5, count=2, seed=0)
    with pytest.raises(InputError, match="no subsets were given"):
        train(RECIPE, data, [Run(0, 0, 0)])
    with pytest.raises(InputError, match="there are 2"):
        train(RECIPE, data, [Run(0, 0, 2)], subsets)
    with pytest.raises(InputError, match="of 40 examples, the training set has 50"):
        train(RECIPE, data, [Run(0, 0, 1)], subsets)
    with pytest.raises(InputError, match="nothing to train"):
        train(RECIPE, data, [])
    with pytest.raises(InputError, match="label 3"):
        train(RECIPE, Examples(data.inputs, data.targets + 1), [Run(0, 0)])
    named = Recipe(net, CrossEntropy(), sgd(0.1), 8, epochs=1, weight_decay={"nowhere": 0.1})
    with pytest.raises(InputError, match="nowhere"):
        train(named, data, [Run(0, 0)])
    rprop = Optimizer(torch.optim.Rprop, {"lr": 0.1})
    decayed = Recipe(net, CrossEntropy(), rprop, 8, epochs=1, weight_decay=0.1)
    with pytest.raises(InputError, match="has no weight decay"):
        train(decayed, data, [Run(0, 0)], threads=1)


@pytest.mark.slow
def test_processes_train_what_one_process_trains() -> None:
    # A lambda and a local class: what standard pickling refuses.
    recipe = Recipe(lambda: noisy(), CrossEntropy(), sgd(0.1, 0.9), 16, epochs=2)
    assert choose_path(recipe, examples()).path is Path.PROCESSES
    subsets = random_subsets(50, keep=0.5, count=5, seed=0)
    runs = grid([0, 1], [0], 5)
    here = train(recipe, examples(), runs, subsets, threads=1)
    there = train(recipe, examples(), runs, subsets, threads=2)
    assert there.path is Path.PROCESSES
    assert same(here, there)
    assert torch.equal(here.state["1.running_mean"], there.state["1.running_mean"])
    assert here.state["1.num_batches_tracked"].tolist() == [4] * 10
