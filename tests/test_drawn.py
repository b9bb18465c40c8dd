"""Gradients of a few training examples: which they are, by sizes of gradients that are plain."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.jacobian.discovery import discover
from curvfluence.problem.problem import Problem
from curvfluence.runtime import budget, ranks
from curvfluence.runtime.ranks import Ranks
from curvfluence.score.drawn import DRAWN, drawn_gradients
from tests import oracles
from tests.problems import make, mlp


@pytest.fixture(params=["alone", "together"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    """By itself, and as the one process of several that work together."""
    if request.param == "together":

        def alone(every: list[Any], own: object) -> None:
            every[:] = [own]

        monkeypatch.setattr("curvfluence.runtime.ranks.dist.all_gather_object", alone)
        token = ranks._TEAM.set(Ranks(0, 1))
        yield request.param
        ranks._TEAM.reset(token)
    else:
        yield request.param


def problem(n: int, none: int, scale: float = 1.0) -> tuple[Problem, Tensor]:
    """With `none` examples that have no weight, here and there; and the weights."""
    weights = torch.full((n,), scale).double()
    weights[torch.randperm(n, generator=torch.Generator().manual_seed(1))[:none]] = 0
    return make(mlp(5, 4, 3), cf.CrossEntropy(), n=n, sample_weight=weights), weights


def wanted(given: Problem, weights: Tensor) -> Tensor:
    """The sample of Efraimidis and Spirakis (2006) by ‖v_n ∇ℓ_n‖, the largest first."""
    g_np = oracles.example_gradients(given) * weights[:, None]
    sizes = g_np.norm(dim=1)
    drawn = torch.rand(len(g_np), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys = torch.where(sizes > 0, drawn.log() / sizes, -torch.inf)
    chosen = [int(n) for n in keys.argsort(descending=True)[:DRAWN] if sizes[n] > 0]
    return g_np[sorted(chosen, key=lambda n: -float(sizes[n]))]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("scale", [1.0, 1e-9])
@pytest.mark.parametrize("chunk", [7, 50, 1000])
@pytest.mark.parametrize(
    ("n", "none"), [(120, 0), (120, 30), (120, 90), (DRAWN, 0), (DRAWN + 1, 1), (9, 5), (4, 0)]
)
def test_which_they_are(
    n: int, none: int, chunk: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "EXAMPLES", chunk)
    given, weights = problem(n, none, scale)
    rows = drawn_gradients(given, discover(given))
    assert rows is not None
    expected = wanted(given, weights)
    assert len(expected) == min(DRAWN, n - none)
    torch.testing.assert_close(rows.to_dense()[:, 0], expected, rtol=1e-9, atol=1e-30)


@pytest.mark.usefixtures("way")
def test_too_few() -> None:
    given, _ = problem(20, 17)
    assert drawn_gradients(given, discover(given)) is None
