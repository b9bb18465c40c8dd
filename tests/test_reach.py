"""Predictions that are larger than any label could make them: how many, and the worst."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from curvfluence.runtime import ranks
from curvfluence.runtime.ranks import Ranks
from curvfluence.score.reach import Reach

MEASUREMENT = SimpleNamespace(
    least_reach=lambda _: 0.5, name="loss", unit="nats", bound="the loss of the least likely label"
)


def reach_of(of_query: Tensor | None) -> Reach:
    problem: Any = SimpleNamespace(measurement=MEASUREMENT, n_outputs=3)
    made = Reach(problem)
    made.__dict__["of_query"] = of_query
    return made


def looked(made: Reach, values: Tensor, rows: int, columns: int) -> Reach:
    for row in range(0, len(values), rows):
        for column in range(0, values.shape[1], columns):
            made.look(values[row : row + rows, column : column + columns], row, column)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (5, 7), (3, 7)])
@pytest.mark.parametrize("seed", range(4))
def test_how_many_and_which(
    rows: int, columns: int, sign: int, seed: int, dtype: torch.dtype
) -> None:
    """As one by one, in whatever pieces; those that just reach it do not count."""
    generator = torch.Generator().manual_seed(seed)
    reach = 0.5 + torch.rand(5, generator=generator, dtype=torch.float64)
    reach = reach.to(dtype).double()
    values = (0.8 * torch.randn(5, 7, generator=generator)).abs().to(dtype) * sign
    values[2, 3] = sign * reach[2]
    values[1] = sign * 0.4  # none of this query
    found = looked(reach_of(reach), values, rows, columns)
    ratios = {
        (q, n): abs(float(values[q, n])) / float(reach[q]) for q in range(5) for n in range(7)
    }
    over = {at: ratio for at, ratio in ratios.items() if ratio > 1}
    assert found.count == len(over) > 2
    q, n = max(over, key=lambda at: over[at])
    assert found.worst == (float(values[q, n]), float(reach[q]), q, n)
    (note,) = found.notes()
    assert note.startswith(f"{len(over)} predictions are larger than the loss can move")
    assert f"leaving out example {n} is to change query {q} by {float(values[q, n]):.3g}" in note


def test_a_query_that_nothing_can_move() -> None:
    """Any change of it is too large, however small; of several the first."""
    values = torch.tensor([[0.9, 0.6], [0.0, 1e-6], [1e-9, 0.0]]).double()
    found = looked(reach_of(torch.tensor([0.5, 0.0, 0.0]).double()), values, 3, 2)
    assert found.count == 4
    assert found.worst == (float(values[1, 1]), 0.0, 1, 1)


@pytest.mark.parametrize("size", [0.2, 0.5])
def test_outputs_are_not_made_for_what_any_label_allows(size: float) -> None:
    class Made(Reach):
        @property
        def of_query(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
            raise AssertionError("it was made")

    problem: Any = SimpleNamespace(measurement=MEASUREMENT, n_outputs=3)
    found = Made(problem)
    found.look(torch.tensor([[size, -size]]), 0, 0)
    assert found.notes() == ()
    with pytest.raises(AssertionError, match="it was made"):
        found.look(torch.tensor([[size, -0.6]]), 0, 0)


def test_a_measurement_without() -> None:
    found = reach_of(None)
    found.look(torch.tensor([[9.0, -9.0]]), 0, 0)
    assert (found.count, found.notes()) == (0, ())


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (2, (1.2, 1.0, 0, 3)), (3, (1.0, 0.5, 1, 9))
    found = reach_of(torch.ones(2))
    (found.count, found.worst), other = (ours, theirs)[rank], (ours, theirs)[1 - rank]

    def both(every: list[Any], own: Any) -> None:
        every[:] = [own, {1 - rank: other}]

    found.gather()  # alone nothing is added
    assert found.count == (2, 3)[rank]
    monkeypatch.setattr("curvfluence.runtime.ranks.dist.all_gather_object", both)
    token = ranks._TEAM.set(Ranks(rank, 2))
    found.gather()
    ranks._TEAM.reset(token)
    assert (found.count, found.worst) == (5, theirs[1])
