"""The private copy of a model's modules: the user's own are never called or changed."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.problem.structure import Structure
from tests.problems import mlp, seeded

N, Q = 20, 3


def problem(net: nn.Module, **options: Any) -> cf.Problem:
    torch.manual_seed(7)
    x, y = torch.randn(N, 4).double(), torch.randint(3, (N,))
    return cf.Problem(net, cf.CrossEntropy(), (x, y), (x[:Q], y[:Q]), **options)


class Remembers(nn.Module):
    """Stores what it computes, as old models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.hidden: Tensor | None = None
        self.seen: list[Tensor] = []
        self.parts: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = torch.tanh(self.first(x))
        self.seen.append(self.hidden)
        self.parts = {"hidden": self.hidden}
        return self.last(self.hidden)


def test_what_a_module_stores_is_stored_in_the_copy() -> None:
    net = Remembers().double()
    given = problem(net)
    cf.influence(given, cf.EKFAC())
    assert net.hidden is None
    assert net.seen == []
    assert net.parts == {}
    copy.deepcopy(net)


def test_a_model_that_holds_what_it_computed_is_taken() -> None:
    """A tensor with a history cannot be deep-copied: the copy takes its values."""
    seeded()
    net = Remembers().double()
    wanted = cf.influence(problem(net), cf.GGN()).values
    net(torch.randn(2, 4).double())
    torch.testing.assert_close(cf.influence(problem(net), cf.GGN()).values, wanted)
    assert net.hidden is not None
    assert net.hidden.requires_grad


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_an_old_weight_norm_holds_no_other_checkpoint() -> None:
    net = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 3))).double()
    held = net[0].weight
    other = {name: 2 * value for name, value in net.state_dict().items()}
    cf.influence(problem(net, weights=other), cf.EKFAC())
    assert net[0].weight is held


def test_threads_see_their_own_checkpoint() -> None:
    """While scores of one checkpoint are made, the model itself is called and copied elsewhere."""
    seeded()
    net = mlp(4, 3).double()
    x = torch.randn(5, 4).double()
    own, wanted = net(x).detach(), {n: v.clone() for n, v in net.state_dict().items()}
    other = {name: value + 1 for name, value in net.state_dict().items()}
    given, stop, wrong = problem(net, weights=other), threading.Event(), []

    def score() -> None:
        while not stop.is_set():
            cf.influence(given, cf.Diagonal())

    worker = threading.Thread(target=score)
    worker.start()
    try:
        for _ in range(300):
            if not torch.equal(net(x), own):
                wrong.append("output")
            held = problem(net)
            wrong += [n for n, v in {**held.theta, **held.state}.items() if not v.equal(wanted[n])]
    finally:
        stop.set()
        worker.join()
    assert wrong == []


def test_the_copy_takes_no_memory_for_values() -> None:
    structure = Structure(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    assert all(tensor.is_meta for tensor in structure.tensors.values())


def test_a_lock_is_shared() -> None:
    net = mlp(4, 3).double()
    lock: Any = threading.Lock()
    net.lock = lock
    assert Structure(net).modules.lock is lock
    cf.influence(problem(net), cf.KFAC())


def test_a_forward_that_holds_the_users_own_modules_is_refused() -> None:
    net = mlp(4, 3).double()
    before: Callable[[Tensor], Tensor] = net.forward
    net.forward = lambda x: 2 * before(x)
    with pytest.raises(cf.errors.InputError, match=r"still uses the model's own 0\.weight"):
        problem(net)


def test_a_patched_method_is_copied_with_its_module() -> None:
    seeded()
    net, twice = mlp(4, 3).double(), mlp(4, 3).double()
    twice.load_state_dict(net.state_dict())

    def doubled(self: nn.Sequential, x: Tensor) -> Tensor:
        return 2 * nn.Sequential.forward(self, x)

    twice.forward = doubled.__get__(twice)
    x = torch.randn(3, 4).double()
    given = problem(twice)
    assert torch.equal(given.forward(x), 2 * net(x))


class TestCompiled:
    """`torch.compile` wraps modules: the copy takes them out, and names stay those of the model."""

    @pytest.mark.parametrize("whole", [True, False])
    def test_it_is_the_module_inside(self, whole: bool) -> None:
        seeded()
        net = mlp(4, 3).double()
        wanted = cf.influence(problem(net), cf.EKFAC())
        wrapped: Any = torch.compile(net) if whole else copy.copy(net)
        if not whole:
            wrapped = nn.Sequential(*[torch.compile(part) for part in net])  # pyright: ignore
        given = problem(wrapped, weights=wrapped.state_dict())
        assert given.parameters == problem(net).parameters
        found = cf.influence(given, cf.EKFAC())
        assert found.lambdas == wanted.lambdas
        assert torch.equal(found.values, wanted.values)


class TestOneCode:
    """torch runs other code with and without gradients; a problem and a truth run one."""

    @staticmethod
    def padded() -> nn.Module:
        class Padded(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
                self.encoder = nn.TransformerEncoder(layer, 2)
                self.head = nn.Linear(4, 3)

            def forward(self, x: Tensor) -> Tensor:
                length = (2 * x[:, 0, 0].abs()).long().clamp(1, 5)
                padding = torch.arange(5) >= length[:, None]
                return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))

        return Padded().double().eval()

    def data(self) -> tuple[Tensor, Tensor]:
        return torch.randn(12, 5, 4).double(), torch.randint(3, (12,))

    def test_padding_in_an_encoder(self) -> None:
        seeded()
        net, (x, y) = self.padded(), self.data()
        wanted = net(x).detach()
        with torch.no_grad():
            assert not torch.allclose(net(x), wanted), "torch has one code here: drop the guard"
        given = cf.Problem(net, cf.CrossEntropy(), (x, y), (x[:3], y[:3]))
        torch.testing.assert_close(given.outputs(given.train, "x"), wanted)
        cf.influence(given, cf.EKFAC())

    @pytest.mark.parametrize("path", [None, cf.truth.Path.PROCESSES])
    def test_the_truth_is_that_of_the_trained_function(self, path: cf.truth.Path | None) -> None:
        seeded()
        x, y = self.data()
        recipe = cf.truth.Recipe(
            self.padded, cf.CrossEntropy(), cf.truth.sgd(0.1), batch_size=4, epochs=2
        )
        data, runs = cf.Examples(x, y), cf.truth.grid([0], [0])
        trained = cf.truth.train(recipe, data, runs, path=path)
        found = cf.truth.measure(recipe, trained, data, cf.LogProbability())
        net = self.padded()
        net.load_state_dict(trained.weights(0), strict=False)
        logits = net(x).log_softmax(-1)
        torch.testing.assert_close(found[0], logits.gather(1, y[:, None])[:, 0].detach())
        losses = nn.functional.cross_entropy(net(x), y)
        assert float(trained.final_loss[0]) == pytest.approx(float(losses), rel=1e-9)
