"""The same code on every device that is present, against float64 on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.problem.losses import Loss
from curvfluence.truth import Path as TrainingPath
from curvfluence.truth import bregman_response
from tests.problems import make, mlp
from tests.test_full_precision import GIVEN, kept_settings
from tests.zoo import CASES, zoo_problem

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
OTHERS = DEVICES[1:]  # what is compared with the CPU in float64 says nothing on the CPU itself
RUNGS = {
    "Identity": cf.Identity(),
    "Diagonal": cf.Diagonal(),
    # EK-FAC under Reduce() is left out: where Ā lacks rank its basis is any, and Λ depends on it
    "KFAC": cf.KFAC(sharing=cf.Reduce()),
    "EKFAC": cf.EKFAC(),
    "Shampoo": cf.Shampoo(),
    "TKFAC": cf.TKFAC(),
    "EShampoo": cf.EShampoo(),
    "BlockGGN": cf.BlockGGN(),
    "GGN": cf.GGN(cf.inversion.Matrix()),
    "GGN in sample space": cf.GGN(cf.inversion.SampleSpace()),
    "GGN by conjugate gradients": cf.GGN(cf.inversion.ConjugateGradients(tolerance=1e-6)),
    "GGN by its largest rows": cf.GGN(cf.inversion.SelectedRows(20, tolerance=1e-6)),
    "Hessian": cf.Hessian(),
}
DAMPING = cf.Absolute(0.05)


def relative(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found.cpu().double() - wanted.cpu().double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["mlp", "cnn with groups", "embedding", "multi-head attention"])
@pytest.mark.parametrize("rung", RUNGS)
def test_float32_on_every_device(device: str, name: str, rung: str) -> None:
    exact = cf.influence(zoo_problem(name), RUNGS[rung], damping=DAMPING).values
    problem = zoo_problem(name).to(torch.float32, device)
    assert problem.device.type == device
    scores = cf.influence(problem, RUNGS[rung], damping=DAMPING)
    assert relative(scores.values, exact) <= 1e-3


@pytest.mark.parametrize("device", OTHERS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rung", RUNGS)
def test_every_net_in_float64(device: str, name: str, rung: str) -> None:
    if rung == "EKFAC" and name == "conv1d circular":
        pytest.skip("its A has equal eigenvalues, and EK-FAC is of a basis that is not unique")
    if rung == "Hessian" and "bag" in name:
        with pytest.raises(cf.errors.InputError, match="cannot be differentiated twice"):
            cf.fit(zoo_problem(name).to(device=device), RUNGS[rung])
        return  # torch has that derivative on the CPU only
    wanted = cf.influence(zoo_problem(name), RUNGS[rung], damping=DAMPING)
    found = cf.influence(zoo_problem(name).to(device=device), RUNGS[rung], damping=DAMPING)
    assert [(c.parameters, c.rule) for c in found.coverage] == [
        (c.parameters, c.rule) for c in wanted.coverage
    ]
    # conjugate gradients end at a tolerance of their own
    limit = 1e-5 if rung == "GGN by conjugate gradients" else 1e-9
    assert relative(found.values, wanted.values) <= limit


@pytest.mark.parametrize("device", OTHERS)
def test_a_curvature_of_another_device_is_refused(device: str) -> None:
    curvature = cf.fit(zoo_problem("mlp"), cf.EKFAC())
    with pytest.raises(cf.errors.InputError, match=r"curvature is on cpu, the problem on cuda"):
        cf.influence(zoo_problem("mlp").to(device), curvature, damping=DAMPING)


@pytest.mark.parametrize("device", DEVICES)
def test_moves_and_casts(device: str) -> None:
    problem = zoo_problem("mlp")
    moved = problem.to(device)
    assert (moved.device.type, moved.dtype) == (device, torch.float64)
    assert moved.train.inputs.device.type == moved.queries.targets.device.type == device
    cast = moved.to(torch.float32)
    assert (cast.device.type, cast.dtype) == (device, torch.float32)
    assert cast.to(torch.device("cpu")).device.type == "cpu"
    with pytest.raises(cf.errors.InputError, match="takes a dtype and a device"):
        problem.to(device, device)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("device", OTHERS)
def test_a_model_that_is_there_itself(device: str) -> None:
    wanted = cf.influence(zoo_problem("cnn with groups"), cf.EKFAC(), damping=DAMPING)
    problem = zoo_problem("cnn with groups")
    model = problem.model.to(device)
    train, queries = problem.train, problem.queries  # on the CPU: they are moved
    there = cf.Problem(
        model,
        problem.loss,
        (train.inputs, train.targets),
        (queries.inputs, queries.targets),
        weight_decay=problem.weight_decay,
    )
    found = cf.influence(there, cf.EKFAC(), damping=DAMPING)
    assert relative(found.values, wanted.values) <= 1e-9
    assert found.values.device.type == "cpu"


FISHERS = {"empirical": cf.Empirical(), "mc": cf.MonteCarlo(3, seed=1), "type-2": cf.Type2()}


@pytest.mark.filterwarnings("ignore:Fisher mc:curvfluence.errors.CurvfluenceWarning")
@pytest.mark.parametrize("device", OTHERS)
@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("name", ["mlp", "tied transformer", "conv2d"])
def test_every_fisher(device: str, fisher: str, name: str) -> None:
    """Labels are drawn by the CPU, so they are the same."""
    rung = cf.EKFAC(FISHERS[fisher])
    wanted = cf.influence(zoo_problem(name), rung, damping=DAMPING)
    found = cf.influence(zoo_problem(name).to(device=device), rung, damping=DAMPING)
    assert relative(found.values, wanted.values) <= 1e-9


LOSSES: dict[str, Loss] = {
    "mse": cf.MSE(),
    "binary": cf.BinaryCrossEntropy(),
    "smoothed": cf.CrossEntropy(label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 0.5])),
    "custom": cf.CustomLoss(
        lambda f, y: F.smooth_l1_loss(f, y.to(f), reduction="none", beta=10.0).sum(-1)
    ),
}


@pytest.mark.filterwarnings("ignore:Fisher mc:curvfluence.errors.CurvfluenceWarning")
@pytest.mark.parametrize("device", OTHERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fisher", FISHERS)
def test_every_loss(device: str, loss: str, fisher: str) -> None:
    def scores(place: str) -> cf.Scores:
        torch.manual_seed(0)
        weights = torch.arange(1.0, 13.0)
        problem = make(mlp(5, 4, 3), LOSSES[loss], sample_weight=weights).to(device=place)
        if fisher == "mc" and loss == "custom":
            pytest.skip("a custom loss has no labels to draw")
        return cf.influence(problem, cf.KFAC(FISHERS[fisher]), damping=DAMPING)

    assert relative(scores(device).values, scores("cpu").values) <= 1e-9


@pytest.mark.parametrize("device", DEVICES)
def test_scores_of_other_kinds(device: str, tmp_path: Path) -> None:
    limit = 1e-3
    exact, problem = zoo_problem("mlp"), zoo_problem("mlp").to(torch.float32, device)
    rung = cf.EKFAC()
    wanted = cf.influence(exact, rung, damping=DAMPING)
    own = cf.self_influence(problem, rung, damping=DAMPING)
    assert relative(own, cf.self_influence(exact, rung, damping=DAMPING)) <= limit
    groups = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    grouped = cf.group_influence(problem, rung, groups, damping=DAMPING)
    assert relative(grouped, cf.group_influence(exact, rung, groups, damping=DAMPING)) <= limit
    blocks = cf.influence(problem, rung, damping=DAMPING, by_block=True).blocks
    assert blocks is not None
    assert relative(sum(blocks.values(), torch.zeros(())), wanted.values) <= limit
    assert {part.device.type for part in (own, grouped, *blocks.values())} == {"cpu"}
    out = tmp_path / "scores.npy"
    streamed = cf.influence(problem, rung, damping=DAMPING, out=out)
    assert relative(torch.as_tensor(streamed.values), wanted.values) <= limit
    newton = cf.influence(problem, cf.GGN(), damping=DAMPING, leverage=True)
    exact_newton = cf.influence(exact, cf.GGN(), damping=DAMPING, leverage=True)
    assert relative(newton.values, exact_newton.values) <= limit
    worst = cf.influence(exact, rung, damping=DAMPING).certificate().worst
    assert streamed.certificate().worst == pytest.approx(worst, rel=limit)
    assert cf.plan(problem, rung).fits


@pytest.mark.parametrize("device", DEVICES)
def test_tokens_and_compression(device: str) -> None:
    exact = zoo_problem("untied transformer")
    problem = zoo_problem("untied transformer").to(torch.float32, device)
    rung = cf.EKFAC(cf.Empirical())
    wanted = cf.token_influence(exact, rung, damping=DAMPING)
    found = cf.token_influence(problem, rung, damping=DAMPING)
    assert relative(found, wanted) <= 1e-3
    wanted = cf.influence(exact, rung, damping=DAMPING).values
    compressed = cf.influence(problem, rung, damping=DAMPING, compress=1e-3)
    assert relative(compressed.values, wanted) <= 2e-3


HYBRIDS: dict[str, cf.Rung] = {
    "absolute Hessian": cf.Hessian(cf.hessian.Abs()),
    "truncated Hessian": cf.Hessian(cf.hessian.Truncate(0.025)),
    "Hessian by conjugate gradients": cf.Hessian(
        cf.hessian.Plain(), form=cf.inversion.ConjugateGradients(tolerance=1e-9)
    ),
    "projected": cf.hybrids.Project(cf.BlockGGN(), cf.KFAC()),
    "sorted": cf.hybrids.Sorted(cf.KFAC(), cf.BlockGGN()),
    "trace matched": cf.hybrids.TraceMatched(cf.KFAC(), cf.BlockGGN()),
    "preconditioned": cf.GGN(
        cf.inversion.ConjugateGradients(tolerance=1e-9, preconditioner=cf.KFAC())
    ),
    "apart": cf.KFAC(joint_bias=False),
}


@pytest.mark.parametrize("device", OTHERS)
@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrids(device: str, name: str) -> None:
    damping = cf.Absolute(3.0)  # above the Hessian's most negative eigenvalue
    wanted = cf.influence(zoo_problem("layer norm"), HYBRIDS[name], damping=damping)
    problem = zoo_problem("layer norm").to(device=device)
    found = cf.influence(problem, HYBRIDS[name], damping=damping)
    assert relative(found.values, wanted.values) <= 1e-6
    curvature = cf.fit(problem, HYBRIDS[name])
    v = torch.ones(problem.parameters.count, dtype=torch.float64, device=device)
    dense = curvature.to_dense()
    assert dense.device.type == device
    assert relative(curvature.matvec(v), dense @ v) <= 1e-8


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", TrainingPath)
def test_retraining(device: str, path: TrainingPath) -> None:
    exact = zoo_problem("mlp", n=20)
    recipe = cf.truth.Recipe(
        lambda: mlp(6, 4, 3, activation=nn.Tanh),
        cf.CrossEntropy(),
        cf.truth.sgd(0.1),
        epochs=3,
        batch_size=8,
    )
    subsets = cf.truth.random_subsets(20, keep=0.5, count=6, seed=0)
    runs = [cf.truth.Run(init_seed=0, order_seed=0, subset=k) for k in range(6)]

    def measured(place: str) -> Tensor:
        train = exact.train.to(torch.device(place), torch.float64)
        queries = exact.queries.to(torch.device(place), torch.float64)
        trained = cf.truth.train(recipe, train, runs, subsets, path=path, threads=1)
        assert trained.path is path
        values = cf.truth.measure(recipe, trained, queries, exact.measurement)
        assert next(iter(trained.theta.values())).device.type == place
        return values

    assert relative(measured(device), measured("cpu")) <= 1e-9


@pytest.mark.parametrize("device", DEVICES)
def test_noise_of_training_is_seeded(device: str) -> None:
    """Dropout draws from the device's own generator: the same masks again, and it as found."""
    exact = zoo_problem("mlp", n=20)
    train = exact.train.to(torch.device(device), torch.float32)
    recipe = cf.truth.Recipe(
        lambda: nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 3)),
        cf.CrossEntropy(),
        cf.truth.sgd(0.1),
        epochs=2,
        batch_size=8,
    )
    torch.randn(1, device=device)  # the generator is in use
    before = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    first = cf.truth.train(recipe, train, [cf.truth.Run(init_seed=0, order_seed=0)], threads=1)
    again = cf.truth.train(recipe, train, [cf.truth.Run(init_seed=0, order_seed=0)], threads=1)
    other = cf.truth.train(recipe, train, [cf.truth.Run(init_seed=0, order_seed=1)], threads=1)
    assert all(torch.equal(first.theta[n], again.theta[n]) for n in first.theta)
    assert not all(torch.equal(first.theta[n], other.theta[n]) for n in first.theta)
    after = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    assert torch.equal(before, after)


class Noisy(nn.Module):
    """Random without a module that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.dropout(x, 0.5, training=True))


@pytest.mark.parametrize("device", DEVICES)
def test_a_random_model_is_refused_and_the_generator_kept(device: str) -> None:
    problem = zoo_problem("mlp")
    train, queries = problem.train, problem.queries
    noisy = cf.Problem(
        Noisy().double().to(device),
        problem.loss,
        (train.inputs, train.targets),
        (queries.inputs, queries.targets),
    )
    torch.randn(1, device=device)
    before = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    with pytest.raises(cf.errors.InputError, match="random"):
        cf.influence(noisy, cf.EKFAC(), damping=DAMPING)
    after = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    assert torch.equal(before, after)


@pytest.mark.parametrize("device", OTHERS)
def test_the_bregman_response(device: str) -> None:
    problem = zoo_problem("mlp")
    left_out = torch.eye(7, dtype=torch.float64)[:3]

    def change(place: str) -> Tensor:
        found = bregman_response(
            problem.to(device=place), left_out, damping=0.1, epsilon=0.1, tolerance=1e-8
        )
        assert bool(found.converged.all())
        return found.change

    assert relative(change(device), change("cpu")) <= 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_the_best_damping(device: str) -> None:
    """Chosen on the device by a truth that lies on the CPU."""
    subsets = cf.truth.random_subsets(7, keep=0.6, count=8, seed=0)
    truth = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = cf.BestOf(
        (cf.Absolute(0.01), cf.Absolute(1.0)), cf.fidelity.SubsetTruth(subsets.left_out, truth)
    )
    wanted = cf.influence(zoo_problem("mlp"), cf.EKFAC(), damping=best)
    found = cf.influence(zoo_problem("mlp").to(device=device), cf.EKFAC(), damping=best)
    assert found.damping == wanted.damping
    assert relative(found.values, wanted.values) <= 1e-9


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_passes(device: str) -> None:
    wanted = cf.influence(zoo_problem("mlp"), cf.EKFAC(), damping=DAMPING).values
    single = zoo_problem("mlp").to(torch.float32, device)
    low = cf.Problem(
        single.model.float(),
        single.loss,
        (single.train.inputs, single.train.targets),
        (single.queries.inputs, single.queries.targets),
        weight_decay=single.weight_decay,
        weights=single.theta,
        autocast=torch.bfloat16,
    )
    found = cf.influence(low, cf.EKFAC(), damping=DAMPING).values
    assert relative(found, wanted) <= 0.05


@pytest.mark.parametrize("device", OTHERS)
@pytest.mark.parametrize("name", GIVEN)
def test_float32_is_float32(device: str, name: str) -> None:
    """A convolution in TF32 is off by 1e-3, more than the checks of an example alone allow."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(4608, 10)
    )
    x, y = torch.randn(40, 3, 16, 16), torch.randint(0, 10, (40,))
    problem = cf.Problem(model, cf.CrossEntropy(), (x, y), (x[:5], y[:5]))
    rung = cf.EKFAC(cf.Empirical())
    wanted = cf.influence(problem.to(torch.float64), rung, damping=DAMPING)
    with kept_settings():
        GIVEN[name]()
        found = cf.influence(problem.to(device=device), rung, damping=DAMPING)
    assert relative(found.values, wanted.values) <= 1e-4
