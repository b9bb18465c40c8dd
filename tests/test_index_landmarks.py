"""Landmarks of an index and the ends of its lists, by small exact cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.errors import InputError
from curvfluence.indexing import landmarks as way
from curvfluence.indexing.extremes import Extremes
from curvfluence.indexing.landmarks import (
    Chosen,
    Landmarks,
    candidates,
    choose,
    randomly_pivoted,
    sample_size,
)
from curvfluence.jacobian.columns import of_gradient
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.drawn import keys_by
from curvfluence.runtime import budget
from tests.indexed import DAMPING
from tests.oracles import example_gradients
from tests.problems import chain_problem

SEEDS = range(40)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def kernel(size: int, rank: int, number: int = 0) -> Tensor:
    half = torch.randn(size, rank, generator=seed(number), dtype=torch.float64)
    return half @ half.T


class TestCoordinates:
    def test_of_some_landmarks(self) -> None:
        """L⁻¹ products, in float64; of fewer landmarks the first coordinates."""
        k = kernel(7, 9)
        factor = torch.linalg.cholesky(k[:4, :4])
        few = Landmarks(torch.tensor([5, 1, 6, 0]), factor)
        products = torch.randn(4, 3, generator=seed(1)).float()
        found = few.coordinates(products)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, torch.linalg.solve(factor, products.double()).T)
        less = few.first(2)
        assert (len(few), len(less), less.numbers.tolist()) == (4, 2, [5, 1])
        torch.testing.assert_close(less.coordinates(products[:2]), found[:, :2])

    @pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200])
    def test_errors_of_so_many(self, scale: float) -> None:
        """‖Φ_q Φᵀ − exact‖/‖exact‖, whatever the size of scores."""
        k = kernel(9, 12)
        picked = torch.tensor([3, 7, 0])
        factor = torch.linalg.cholesky(k[picked][:, picked])
        phi = torch.linalg.solve_triangular(factor, k[picked], upper=False).T
        rows: Any = None
        chosen = Chosen(Landmarks(picked, factor), rows, phi, picked)
        exact = k[4:6] + 0.1
        products = k[picked, 4:6]
        found = chosen.errors(scale * exact, scale * products, [1, 2, 3])
        for count, error in zip((1, 2, 3), found, strict=True):
            some = picked[:count]
            near = k[4:6][:, some] @ torch.linalg.solve(k[some][:, some], k[some])
            assert error == pytest.approx(float((near - exact).norm() / exact.norm()))
        assert chosen.errors(0 * exact, products, [1, 3]) == [0.0, 0.0]


def accepted(gap: Tensor, left: Tensor, spent: list[bool], draws: list[float]) -> list[int]:
    """One after the other: each with the chance that what those before it leave of it has."""
    kept: list[int] = []
    for k, draw in enumerate(draws):
        own = float(gap[k, k])
        if kept:
            at = gap[k, kept]
            own -= float(at @ torch.linalg.solve(gap[kept][:, kept], at))
        if not spent[k] and own > way.SPENT * float(left[k]) and draw * float(left[k]) < own:
            kept.append(k)
    return kept


def one_by_one(k: Tensor, most: int, generator: torch.Generator) -> list[int]:
    """The pivots, with the same draws."""
    picked: list[int] = []
    while len(picked) < most:
        rest = k - k[:, picked] @ torch.linalg.solve(k[picked][:, picked], k[picked])
        left = rest.diagonal() * (rest.diagonal() > way.SPENT * k.diagonal())
        left[picked] = 0
        if not left.any():
            break
        proposed = torch.multinomial(left, way.BLOCK, replacement=True, generator=generator)
        draws = torch.rand(way.BLOCK, generator=generator, dtype=torch.float64)
        gap, none = rest[proposed][:, proposed], [False] * way.BLOCK
        kept = accepted(gap, left[proposed], none, draws.tolist())
        picked += proposed[kept].tolist()
    return picked[:most]


class TestPivots:
    @pytest.mark.parametrize("number", SEEDS)
    def test_proposals_are_taken_one_after_the_other(self, number: int) -> None:
        """A proposal that is there twice is taken once."""
        k = kernel(6, 8, number)
        proposed = torch.randint(6, (9,), generator=seed(number))
        gap, draws = k[proposed][:, proposed], torch.rand(9, generator=seed(number + 1)).double()
        left = k.diagonal()[proposed] * 1.05
        spent = torch.rand(9, generator=seed(number + 2)) < 0.2
        skew = torch.randn(9, 9, generator=seed(number + 3), dtype=torch.float64)
        found = way._accepted(gap + 1e-3 * (skew - skew.T), left, spent, draws)  # pyright: ignore[reportPrivateUsage]
        assert found == accepted(gap, left, spent.tolist(), draws.tolist())
        assert len(set(proposed[found].tolist())) == len(found)

    def test_what_is_left_of_rounding_is_not_taken(self) -> None:
        """Even where the draw is the smallest there is; and a draw of all that is left is none."""
        take, none = way._accepted, torch.zeros(1).double()  # pyright: ignore[reportPrivateUsage]
        one, no = torch.ones(1).double(), torch.tensor([False])
        assert take(one[None], one, no, none) == [0]
        assert take(one[None], one, ~no, none) == []
        assert take(way.SPENT * one[None], one, no, none) == []
        assert take(1.01 * way.SPENT * one[None], one, no, none) == [0]
        assert take(0.5 * one[None], one, no, 0.5 * one) == []
        assert take(0.5 * one[None], one, no, 0.49 * one) == [0]

    @pytest.mark.parametrize("number", range(5))
    @pytest.mark.parametrize("most", [1, 7, 40, 80])
    def test_as_many_as_asked_or_as_there_are(self, number: int, most: int) -> None:
        k = kernel(60, 40, number)
        asked: list[Tensor] = []

        def products(at: Tensor) -> Tensor:
            asked.append(at)
            return k[:, at]

        picked, phi = randomly_pivoted(k.diagonal().clone(), products, most, seed(number))
        assert len(picked) == min(most, 40) == len(set(picked.tolist()))
        assert (phi.shape, phi.dtype) == ((60, len(picked)), torch.float64)
        own = phi[picked]
        torch.testing.assert_close(own, own.tril(), rtol=0, atol=1e-9)
        torch.testing.assert_close(phi @ own.T, k[:, picked], rtol=1e-8, atol=1e-8)
        assert {len(at) for at in asked} == {way.BLOCK}
        assert set(picked.tolist()) <= {one for at in asked for one in at.tolist()}

    @pytest.mark.parametrize("number", range(8))
    @pytest.mark.parametrize("most", [3, 30, 50])
    def test_against_a_dense_remainder(self, number: int, most: int) -> None:
        """The same pivots as with what is left of K formed anew for every block."""
        k = kernel(60, 45, number)
        picked, _ = randomly_pivoted(k.diagonal().clone(), lambda at: k[:, at], most, seed(number))
        assert picked.tolist() == one_by_one(k, most, seed(number))

    def test_what_the_diagonal_alone_has_left_is_spent(self) -> None:
        """Two that are alike, with a diagonal that is too large by a thousandth, and a third one
        that is proposed only once nothing is left of them."""
        k = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1e-9]]).double()
        norms = torch.tensor([1.001, 1.001, 1e-9]).double()
        for number in range(5):
            picked, phi = randomly_pivoted(norms, lambda at: k[:, at], 3, seed(number))
            assert picked.tolist() in ([0, 2], [1, 2])
            torch.testing.assert_close(phi @ phi.T, k, rtol=1e-9, atol=1e-15)

    def test_of_nothing(self) -> None:
        picked, phi = randomly_pivoted(torch.zeros(4).double(), lambda at: at, 3, seed(0))
        assert (picked.tolist(), picked.dtype) == ([], torch.int64)
        assert (phi.shape, phi.dtype) == ((4, 0), torch.float64)

    def test_however_small_beside_others(self) -> None:
        """What is left of each is held against its own size; and 0 is never proposed."""
        sizes = torch.tensor([1.0, 1e-12, 0.0, 1e-24, 0.0], dtype=torch.float64)
        proposed: set[int] = set()

        def products(at: Tensor) -> Tensor:
            proposed.update(at.tolist())
            return sizes.diag()[:, at]

        norms = sizes.clone()
        picked, phi = randomly_pivoted(norms, products, 5, seed(0))
        assert picked.tolist() == [0, 1, 3]
        assert proposed == {0, 1, 3}
        torch.testing.assert_close(phi @ phi.T, sizes.diag(), rtol=1e-12, atol=0)
        assert torch.equal(norms, sizes), "what was given is left as it is"

    def test_of_alike_ones_one_is_enough(self) -> None:
        """Also where rounding has products a little above and below."""
        k = torch.ones(30, 30, dtype=torch.float64)
        noise = 1e-7 * torch.randn(30, 30, generator=seed(3), dtype=torch.float64)
        for number in range(5):
            picked, _ = randomly_pivoted(
                k.diagonal().clone(), lambda at: (k + noise)[:, at], 9, seed(number)
            )
            assert len(picked) == 1

    def test_unspent(self) -> None:
        norms = torch.tensor([1.0, 1.0, 1e9, 1e-9], dtype=torch.float64)
        left = norms * torch.tensor([1.0, 1e-5, 2e-5, 0.9e-5], dtype=torch.float64)
        found = way._unspent(left, norms)  # pyright: ignore[reportPrivateUsage]
        assert torch.equal(found > 0, torch.tensor([True, False, True, False]))
        assert torch.equal(found[[0, 2]], left[[0, 2]])


def drawn(problem: cf.Problem, size: int, number: int) -> Tensor:
    return way._drawn(problem, discover(problem), size, seed(number))  # pyright: ignore[reportPrivateUsage]


class TestDrawn:
    @pytest.mark.parametrize("number", range(5))
    @pytest.mark.parametrize("size", [1, 4, 11])
    def test_the_largest_keys_of_all_chunks(
        self, size: int, number: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(budget, "EXAMPLES", 5)
        problem, generator = chain_problem(), seed(number)
        norms = example_gradients(problem).norm(dim=1)
        keys = torch.cat([keys_by(part, generator) for part in norms.split(5)])
        found = drawn(problem, size, number)
        assert found.tolist() == sorted(keys.topk(size).indices.tolist())

    def test_all_where_there_are_no_more(self) -> None:
        for size in (12, 13):
            assert drawn(chain_problem(), size, 0).tolist() == list(range(12))

    def test_none_without_a_gradient(self) -> None:
        """However many are asked for."""
        problem = with_zeros()
        assert drawn(problem, 9, 0).tolist() == [2, 5, 6]

    def test_how_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As many as may be held, at most SAMPLE, at least twice as many as are to be chosen, and
        no more than there are."""
        problem = chain_problem()
        layout = discover(problem)
        each = of_gradient("training set").elements(layout)
        assert each > 1
        assert sample_size(problem, layout, 3) == 12
        monkeypatch.setattr(way, "SAMPLE", 8)
        assert [sample_size(problem, layout, most) for most in (1, 4, 5, 6, 7)] == [
            8,
            8,
            10,
            12,
            12,
        ]
        monkeypatch.setattr(budget, "SOLVED", 6 * each + each - 1)
        assert [sample_size(problem, layout, most) for most in (1, 3, 4)] == [6, 6, 8]
        x = torch.randn(10, 2, generator=seed(0))
        one = cf.Problem(Scaled(), cf.MSE(), (x, x), (x[:1], x[:1]))
        assert of_gradient("training set").elements(discover(one)) == 0
        monkeypatch.setattr(budget, "SOLVED", 6)
        assert sample_size(one, discover(one), 1) == 6


class Scaled(nn.Module):
    """One number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def with_zeros(size: float = 1.0) -> cf.Problem:
    """Of ten examples three have gradients: one output, and residuals of the others 0."""
    model = nn.Linear(4, 1, bias=False).double()
    x = torch.randn(10, 4, generator=seed(0), dtype=torch.float64)
    y = model(x).detach()
    y[[2, 5, 6]] += size * torch.tensor([[1.0], [2.0], [-3.0]])
    return cf.Problem(model, cf.MSE(), (x, y), (x[:1], y[:1]))


def chosen(problem: cf.Problem, curvature: cf.Curvature, *, most: int, number: int) -> Chosen:
    """Landmarks among examples that are drawn, by one generator."""
    layout, generator = discover(problem), seed(number)
    numbers = candidates(problem, layout, most, generator)
    return choose(problem, layout, curvature, DAMPING, numbers, most=most, generator=generator)


class TestChoose:
    @pytest.mark.parametrize("sample", [100, 7])
    def test_against_the_dense_kernel(self, sample: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of all examples, and of some that are drawn."""
        monkeypatch.setattr(way, "SAMPLE", sample)
        problem = chain_problem()
        layout, curvature = discover(problem), cf.fit(problem, cf.EKFAC())
        numbers = drawn(problem, sample_size(problem, layout, 3), 4)
        assert len(numbers) == min(sample, 12)
        g = example_gradients(problem)[numbers]
        k = g @ curvature.solve(g, DAMPING).T
        found = chosen(problem, curvature, most=3, number=4)
        own, factor = found.places, found.landmarks.factor
        assert len(found.landmarks) == 3
        assert torch.equal(found.landmarks.numbers, numbers[own])
        assert found.sample.held is not None
        torch.testing.assert_close(found.sample.held.to_dense()[:, 0], g)
        assert torch.equal(factor, factor.tril())
        torch.testing.assert_close(factor @ factor.T, k[own][:, own])
        wanted = torch.linalg.solve_triangular(factor, k[own], upper=False).T
        torch.testing.assert_close(found.coordinates, wanted)

    def test_the_same_by_the_same_seed(self) -> None:
        problem = chain_problem()
        curvature = cf.fit(problem, cf.EKFAC())
        found = [chosen(problem, curvature, most=4, number=k) for k in (1, 1, 2, 3)]
        by = [one.landmarks.numbers.tolist() for one in found]
        assert by[0] == by[1]
        assert len({tuple(one) for one in by}) > 1

    def test_nothing_to_project_on(self) -> None:
        model = nn.Linear(4, 1, bias=False).double()
        x = torch.randn(10, 4, generator=seed(0), dtype=torch.float64)
        y = model(x).detach()
        problem = cf.Problem(model, cf.MSE(), (x, y), (x[:1], y[:1]))
        with pytest.raises(InputError, match="the gradients of 10 training examples drawn"):
            chosen(problem, cf.fit(problem, cf.EKFAC()), most=4, number=0)
        for size in (1.0, 1e-9):
            some = with_zeros(size)
            found = chosen(some, cf.fit(some, cf.EKFAC()), most=9, number=0)
            assert set(found.landmarks.numbers.tolist()) == {2, 5, 6}


class TestExtremes:
    @pytest.mark.parametrize("k", [1, 4, 30])
    @pytest.mark.parametrize("width", [1, 3, 20])
    def test_of_tiles(self, k: int, width: int) -> None:
        """Fewer than k where there are no more, whatever the tiles."""
        values = torch.randn(3, 20, generator=seed(k), dtype=torch.float64)
        found = Extremes(k)
        for start in range(0, 20, width):
            found.add(start, values[:, start : start + width])
            if start + width == 3:
                assert found.values.shape == (2, 3, min(k, 3))
        for end, largest in enumerate((True, False)):
            wanted = values.topk(min(k, 20), largest=largest)
            assert torch.equal(found.values[end], wanted.values)
            assert torch.equal(found.indices[end], wanted.indices)
        assert found.indices.dtype == torch.int64

    def test_of_nothing(self) -> None:
        assert Extremes(3).values.shape == Extremes(3).indices.shape == (2, 0, 0)
        assert Extremes(3).indices.dtype == torch.int64
