"""`Problem.from_lightning` on an imitation of a trainer; make test-models has the real one."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import curvfluence as cf
from tests.problems import seeded

N, Q = 12, 3


class Module(nn.Module):
    """As Lightning's: it holds on to its trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)
        self._trainer: Any = None

    def forward(self, x: Tensor) -> Tensor:
        assert self._trainer is None, "the copy that is called has no trainer"
        return self.net(x)

    def configure_optimizers(self) -> None: ...


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(N + Q, 4, generator=generator).double()
    return x, torch.randint(0, 3, (N + Q,), generator=generator)


def trainer(kind: Any = torch.optim.SGD, **options: Any) -> Any:
    seeded()
    module = Module().double()
    x, y = data()
    groups = [
        {"params": [module.net.weight], "weight_decay": 0.1},
        {"params": [module.net.bias], "weight_decay": 0.0},
    ]
    made = SimpleNamespace(
        lightning_module=module,
        train_dataloader=DataLoader(TensorDataset(x[:N], y[:N]), batch_size=5, shuffle=True),
        optimizers=[kind(groups, lr=0.1)],
        precision="32-true",
        gradient_clip_val=None,
        limit_train_batches=1.0,
        callbacks=[],
        lock=threading.Lock(),  # nothing that could be copied
    )
    module._trainer = made
    for key, value in options.items():
        setattr(made, key, value)
    return made


def problem(made: Any, **options: Any) -> cf.Problem:
    x, y = data()
    queries = TensorDataset(x[N:], y[N:])
    return cf.Problem.from_lightning(made, queries, loss=cf.CrossEntropy(), **options)


def test_it_is_the_problem_by_hand() -> None:
    made = trainer()
    found = problem(made)
    assert made.lightning_module._trainer is made
    assert made.lightning_module.training
    x, y = data()
    by_hand = cf.Problem(
        made.lightning_module.net, cf.CrossEntropy(), (x[:N], y[:N]), (x[N:], y[N:]),
        weight_decay={"weight": 0.1},
    )  # fmt: skip
    assert dict(found.weight_decay) == {"net.weight": 0.1, "net.bias": 0.0}
    scores, wanted = (cf.influence(p, cf.GGN()).values for p in (found, by_hand))
    assert torch.allclose(scores, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("kind", "decoupled"),
    [
        (torch.optim.SGD, False),
        (torch.optim.Adam, False),
        (torch.optim.RMSprop, False),
        (torch.optim.AdamW, True),
    ],
)
def test_the_kind_of_decay(kind: Any, decoupled: bool) -> None:
    assert problem(trainer(kind)).decoupled_decay is decoupled


class Lion(torch.optim.SGD):
    """Whoever wrote it knows what it does with its decay."""


class OwnAdamW(torch.optim.AdamW):
    pass


def test_an_optimiser_that_is_not_torchs() -> None:
    assert problem(trainer(OwnAdamW)).decoupled_decay
    with pytest.raises(cf.errors.InputError, match="Lion adds its weight decay to the"):
        problem(trainer(Lion))
    assert problem(trainer(Lion), decoupled_decay=True).decoupled_decay
    assert not problem(trainer(Lion), decoupled_decay=False).decoupled_decay
    made = trainer(Lion)
    made.optimizers[0].param_groups[0]["weight_decay"] = 0.0  # then it does not matter
    assert not problem(made).decoupled_decay


def test_two_optimisers() -> None:
    made = trainer()
    net = made.lightning_module.net
    made.optimizers = [
        torch.optim.SGD([net.weight], lr=0.1, weight_decay=0.2),
        torch.optim.SGD([net.bias], lr=0.1, weight_decay=0.3),
    ]
    assert dict(problem(made).weight_decay) == {"net.weight": 0.2, "net.bias": 0.3}
    made.optimizers[1] = torch.optim.AdamW([net.bias], lr=0.1, weight_decay=0.3)
    with pytest.raises(cf.errors.InputError, match="one kind or the other"):
        problem(made)


def test_what_training_had_besides() -> None:
    made = trainer(
        gradient_clip_val=0.5,
        limit_train_batches=0.25,
        precision="16-mixed",
        callbacks=[type("StochasticWeightAveraging", (), {})(), object()],
    )
    assert problem(made).unmodelled == (
        "float16 passes of training",
        "gradients clipped at 0.5",
        "limit_train_batches=0.25 of training: some examples may not have been seen",
        "StochasticWeightAveraging of training",
    )
    assert problem(trainer()).unmodelled == ()
    full = trainer(precision="bf16-mixed")
    full.lightning_module.float()
    x, y = data()
    full.train_dataloader = DataLoader(TensorDataset(x[:N].float(), y[:N]), batch_size=5)
    made = cf.Problem.from_lightning(full, (x[N:].float(), y[N:]), loss=cf.CrossEntropy())
    assert made.autocast is torch.bfloat16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lightning_module": None}, r"after trainer\.fit"),
        ({"optimizers": []}, r"after trainer\.fit"),
        ({"train_dataloader": {"a": None}}, "come from a dict, not from one DataLoader"),
    ],
)
def test_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(cf.errors.InputError, match=said):
        problem(trainer(**options))


def test_no_trainer() -> None:
    with pytest.raises(cf.errors.InputError, match="takes a lightning Trainer; seen int"):
        cf.Problem.from_lightning(3, None, loss=cf.CrossEntropy())
