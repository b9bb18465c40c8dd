"""Recurrent layers: their two matrices have rows over time, as autograd gives them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import training_gradients
from tests import oracles
from tests.problems import seeded

KINDS: dict[str, Any] = {
    "LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "two layers": {"num_layers": 2, "batch_first": True},
    "both ways": {"bidirectional": True},
    "both ways, two layers": {"bidirectional": True, "num_layers": 2, "batch_first": True},
    "no bias": {"bias": False},
}
T = 4


class Sequences(nn.Module):
    """A recurrent layer, read at its last step and on average."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.first = options.get("batch_first", False)
        self.rnn = KINDS[kind](3, 2, **options)
        self.head = nn.Linear(4 if options.get("bidirectional") else 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.rnn(x if self.first else x.transpose(0, 1))
        last = (state[0] if isinstance(state, tuple) else state)[-1]
        return self.head(out.mean(1 if self.first else 0)) + last.sum(-1, keepdim=True)


class Cells(nn.Module):
    def __init__(self, kind: str, bias: bool) -> None:
        super().__init__()
        self.cell = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}[kind](3, 2, bias)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def problem(net: nn.Module, t: int = T) -> cf.Problem:
    seeded()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.7)
    x, y = torch.randn(20, t, 3).double(), torch.randint(3, (20,))
    return cf.Problem(net.double(), cf.CrossEntropy(), (x, y), (x[:3], y[:3]))


def check(given: cf.Problem) -> None:
    layout = discover(given)
    assert not layout.others
    found = training_gradients(given, layout).to_dense()[:, 0]
    torch.testing.assert_close(found, oracles.example_gradients(given), rtol=1e-9, atol=1e-12)
    ggn = cf.fit(given, cf.GGN()).to_dense()
    torch.testing.assert_close(ggn, oracles.dense_ggn(given), rtol=1e-9, atol=1e-12)
    for rung in (cf.KFAC(), cf.EKFAC(), cf.Shampoo(), cf.BlockGGN()):
        assert not any(line.fallback for line in cf.fit(given, rung, strict=True).coverage)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_have_their_own_rows(kind: str, form: str) -> None:
    check(problem(Sequences(kind, **FORMS[form])))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_cells_have_their_own_rows(kind: str, bias: bool) -> None:
    check(problem(Cells(kind, bias)))


def test_as_many_steps_as_examples_of_the_probe() -> None:
    check(problem(Sequences("GRU"), t=8))


def test_what_is_left_as_it_is() -> None:
    """A projected LSTM has no rule, and the same scores under exact rungs."""

    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, proj_size=2, batch_first=True), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    given = problem(Projected())
    assert discover(given).others
    ggn = cf.fit(given, cf.GGN()).to_dense()
    torch.testing.assert_close(ggn, oracles.dense_ggn(given), rtol=1e-9, atol=1e-12)
