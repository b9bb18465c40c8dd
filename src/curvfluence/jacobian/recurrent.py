"""Recurrent layers and cells as the products that they are made of, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

# x, weight, bias -> x Wᵀ + b, with the weight's use noted
Project: TypeAlias = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
State: TypeAlias = "tuple[Tensor, ...]"

CELLS = {
    torch.lstm_cell: "lstm",
    torch.gru_cell: "gru",
    torch.rnn_tanh_cell: "tanh",
    torch.rnn_relu_cell: "relu",
}
LAYERS = {torch.lstm: "lstm", torch.gru: "gru", torch.rnn_tanh: "tanh", torch.rnn_relu: "relu"}


def stepped(kind: str, given: Tensor, state: State, held: Tensor) -> State:
    """The next state: `given` is W_ih x + b_ih, `held` W_hh h + b_hh (torch's order of gates)."""
    if kind == "lstm":
        i, f, g, o = (given + held).chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if kind == "gru":
        (r_x, z_x, n_x), (r_h, z_h, n_h) = given.chunk(3, -1), held.chunk(3, -1)
        z = (z_x + z_h).sigmoid()
        n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
        return ((1 - z) * n + z * state[0],)
    return ((given + held).tanh() if kind == "tanh" else (given + held).relu(),)


def cell(project: Project, func: Any, *args: Any) -> Any:
    """One of torch's cells: (x, state, W_ih, W_hh, b_ih, b_hh)."""
    x, given_state, w_ih, w_hh, *biases = args
    b_ih, b_hh = biases or (None, None)
    kind = CELLS[func]
    state: State = tuple(given_state) if kind == "lstm" else (given_state,)
    found = stepped(kind, project(x, w_ih, b_ih), state, project(state[0], w_hh, b_hh))
    return found if kind == "lstm" else found[0]


def unrolled(project: Project, func: Any, *args: Any) -> Any | None:
    """One of torch's layers over time, or None for a form that is left as it is: packed or single
    sequences, projections of the hidden state, dropout in training."""
    if len(args) != 9 or not isinstance(args[3], bool) or args[0].ndim != 3:
        return None
    x, given_state, weights, biased, depth, dropout, training, both_ways, batch_first = args
    kind, ways = LAYERS[func], 2 if both_ways else 1
    per_way = 4 if biased else 2
    if len(weights) != depth * ways * per_way or (training and dropout > 0):
        return None
    start: State = tuple(given_state) if kind == "lstm" else (given_state,)
    time, ends = 1 if batch_first else 0, list[State]()
    for layer in range(depth):
        outputs: list[Tensor] = []
        for way in range(ways):
            k = layer * ways + way
            mine = weights[k * per_way : (k + 1) * per_way]
            output, end = _over_time(
                project, kind, x, tuple(s[k] for s in start), mine, time, backwards=way == 1
            )
            outputs.append(output)
            ends.append(end)
        x = torch.cat(outputs, -1) if both_ways else outputs[0]
    return (x, *(torch.stack(parts) for parts in zip(*ends, strict=True)))


def _over_time(
    project: Project,
    kind: str,
    x: Tensor,
    state: State,
    weights: Sequence[Tensor],
    time: int,
    *,
    backwards: bool,
) -> tuple[Tensor, State]:
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases or (None, None)
    given = project(x, w_ih, b_ih)
    outputs: list[Tensor] = []
    for t in _steps(x.shape[time], backwards=backwards):
        held = project(state[0], w_hh, b_hh)
        state = stepped(kind, given.select(time, t), state, held)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs, dim=time), state


def _steps(count: int, *, backwards: bool) -> Iterator[int]:
    return iter(range(count - 1, -1, -1) if backwards else range(count))
