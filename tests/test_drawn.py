"""Gradients of a few training examples: which they are, by sizes of gradients that are plain."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.jacobian import drawn
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.drawn import DRAWN, SURE, drawn_gradients, gradient_sizes
from curvfluence.jacobian.terms import Outer
from curvfluence.problem.problem import Problem
from curvfluence.runtime import budget, ranks
from curvfluence.runtime.ranks import Ranks
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


def wanted(given: Problem, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The sample of Efraimidis and Spirakis (2006), half by ‖v_n ∇ℓ_n‖ and half alike, the largest
    first; and 1 over the chance of each, given the key that comes after them."""
    g_np = oracles.example_gradients(given) * weights[:, None]
    sizes = g_np.norm(dim=1)
    likely = torch.where(sizes > 0, sizes / sizes[sizes > 0].mean() + 1, 0)
    u = torch.rand(len(g_np), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys = torch.where(sizes > 0, u.log() / likely, -torch.inf)
    order = [int(n) for n in keys.argsort(descending=True) if sizes[n] > 0]
    chosen = sorted(order[:DRAWN], key=lambda n: -float(sizes[n]))
    if len(order) <= DRAWN:
        return g_np[chosen], torch.ones(len(chosen)).double()
    return g_np[chosen], 1 / (1 - (likely[chosen] * keys[order[DRAWN]]).exp())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("scale", [1.0, 1e-9])
@pytest.mark.parametrize("chunk", [7, 50, 1000])
@pytest.mark.parametrize(
    ("n", "none"),
    [(300, 0), (300, 30), (300, 250), (DRAWN, 0), (DRAWN + 1, 1), (DRAWN + 1, 0), (9, 5), (4, 0)],
)
def test_which_they_are(
    n: int, none: int, chunk: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "EXAMPLES", chunk)
    given, weights = problem(n, none, scale)
    found = drawn_gradients(given, discover(given))
    assert found is not None
    rows, counts = wanted(given, weights)
    assert len(found) == len(rows) == min(DRAWN, n - none)
    torch.testing.assert_close(found.rows.to_dense()[:, 0], rows, rtol=1e-9, atol=1e-30)
    torch.testing.assert_close(found.counts, counts)


@pytest.mark.usefixtures("way")
def test_too_few() -> None:
    given, _ = problem(20, 17)
    assert drawn_gradients(given, discover(given)) is None


def test_sums_are_those_over_all_in_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 300 draws of 40 examples out of 200, of sizes that are ten thousand times apart: how
    many there are, and squares of products, each within four standard errors."""
    weights = torch.logspace(-4, 0, 200).double()
    given = make(mlp(5, 4, 3), cf.CrossEntropy(), n=200, sample_weight=weights)
    layout, x = discover(given), torch.randn(3, given.parameters.count, dtype=torch.float64)
    true = (x @ (oracles.example_gradients(given) * weights[:, None]).T).norm(dim=1)
    monkeypatch.setattr(drawn, "DRAWN", 40)
    whole = torch.Generator().manual_seed(7)
    monkeypatch.setattr(drawn.torch, "Generator", lambda: Seeded(whole))
    sizes = gradient_sizes(given, layout)
    monkeypatch.setattr(drawn, "gradient_sizes", lambda problem, layout: sizes)
    found: list[Tensor] = []
    for _ in range(300):
        some = drawn_gradients(given, layout)
        assert some is not None
        squares = some.norms(some.rows.inner(x)[..., 0]).square() / true.square()
        found.append(torch.cat([squares, some.counts.sum()[None] / 200]))
    each = torch.stack(found)
    error = each.std(dim=0) / len(each) ** 0.5
    assert bool((error < 0.1).all())
    assert bool(((each.mean(0) - 1).abs() < 4 * error).all())


@dataclass(frozen=True)
class Seeded:
    """A generator that goes on where it was."""

    whole: torch.Generator

    def manual_seed(self, _: int) -> torch.Generator:
        return self.whole


@pytest.mark.parametrize("heavy", [1.0, 1e4])
def test_halves_stand_for_all_in_expectation(heavy: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 examples of which one may be all that sums are made of: it is in both, once."""
    weights = torch.ones(200).double()
    weights[31] = heavy
    given = make(mlp(5, 4, 3), cf.CrossEntropy(), n=200, sample_weight=weights)
    layout, x = discover(given), torch.randn(3, given.parameters.count, dtype=torch.float64)
    true = (x @ (oracles.example_gradients(given) * weights[:, None]).T).norm(dim=1)
    monkeypatch.setattr(drawn, "DRAWN", 40)
    whole = torch.Generator().manual_seed(7)
    sizes = gradient_sizes(given, layout)
    monkeypatch.setattr(drawn.torch, "Generator", lambda: Seeded(whole))
    monkeypatch.setattr(drawn, "gradient_sizes", lambda problem, layout: sizes)
    for which in (0, 1):
        found: list[Tensor] = []
        for _ in range(300):
            some = drawn_gradients(given, layout)
            assert some is not None
            half = some.half(which)
            found.append(half.norms(half.rows.inner(x)[..., 0]).square() / true.square())
        each = torch.stack(found)
        error = each.std(dim=0) / len(each) ** 0.5
        assert bool((error < 0.1).all())
        assert bool(((each.mean(0) - 1).abs() < 4 * error + 1e-5).all())


@pytest.mark.parametrize("n", [300, 90])
def test_parts_of_them(n: int) -> None:
    """Halves stand for all, rows weigh as they count, and the typical size is √E ‖·‖²."""
    given, _ = problem(n, 0)
    found = drawn_gradients(given, discover(given))
    assert found is not None
    halves = [found.half(which) for which in (0, 1)]
    g_np = found.rows.to_dense()[:, 0]
    places = [(g_np[:, None] == h.rows.to_dense()[:, 0]).all(2).nonzero()[:, 0] for h in halves]
    at = [numbers.tolist() for numbers in places]
    sure = {n for n in range(len(found)) if found.counts[n] <= SURE}
    sure = set[int]() if len(sure) == len(found) else sure  # where all are, halves of them
    assert set(at[0]) | set(at[1]) == set(range(len(found)))
    assert set(at[0]) & set(at[1]) == sure
    assert abs(len(at[0]) - len(at[1])) <= 1
    for which, half in enumerate(halves):
        mine = sorted(at[which])
        wanted = [1.0 if n in sure else 2 * float(found.counts[n]) for n in mine]
        assert half.counts.tolist() == pytest.approx(wanted)
    term = found.rows.terms[0]
    assert isinstance(term, Outer)
    g_noi, counts = term.dense()[:, 0], found.counts
    weighted = found.weighted(term).dense()[:, 0]
    torch.testing.assert_close(weighted.square().sum(0), torch.tensordot(counts, g_noi.square(), 1))
    wanted = (counts @ g_noi.square().sum((1, 2)) / counts.sum()).sqrt()
    assert found.typical(term) == pytest.approx(float(wanted))
