"""Subsets, and the questions that a grid of retrainings answers."""

from __future__ import annotations

from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvfluence.errors import InputError
from curvfluence.truth import (
    Kept,
    Run,
    Subsets,
    Weighted,
    down_weight,
    grid,
    independent,
    independent_repeats,
    leave_one_out,
    matched,
    matched_repeats,
    random_subsets,
    very_run,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 60), st.floats(0.2, 0.8), st.integers(0, 10))
def test_random_subsets_keep_their_share(n: int, keep: float, seed: int) -> None:
    subsets = random_subsets(n, keep=keep, count=4, seed=seed)
    assert subsets.weights.shape == (4, n)
    assert (subsets.weights.sum(1) == round(keep * n)).all()
    assert len({tuple(row) for row in subsets.weights.tolist()}) == 4
    assert torch.equal(subsets.left_out, 1 - subsets.weights.double())
    again = random_subsets(n, keep=keep, count=4, seed=seed)
    assert torch.equal(subsets.weights, again.weights)
    assert isinstance(subsets.way, Kept)


def test_random_subsets_differ_by_seed_and_cover_small_spaces() -> None:
    one, two = (random_subsets(50, keep=0.5, count=3, seed=s).weights for s in (0, 1))
    assert not torch.equal(one, two)
    assert len(random_subsets(5, keep=0.6, count=10, seed=0)) == 10
    with pytest.raises(InputError, match="there are 10"):
        random_subsets(5, keep=0.6, count=11, seed=0)
    for keep in (0.0, 1.1, 0.01):
        with pytest.raises(InputError, match="keep must"):
            random_subsets(5, keep=keep, count=1, seed=0)


def test_leave_one_out_and_down_weight() -> None:
    one = leave_one_out(4, [2, 0])
    assert isinstance(one.way, Weighted)
    assert one.left_out.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    less = down_weight(4, [[0, 3], [1]], 0.25)
    torch.testing.assert_close(
        less.left_out, torch.tensor([[0.25, 0, 0, 0.25], [0, 0.25, 0, 0]], dtype=torch.float64)
    )
    assert torch.equal(down_weight(4, [2, 0], 1.0).left_out, one.left_out)
    with pytest.raises(InputError, match="example 4 is outside"):
        leave_one_out(4, [4])
    with pytest.raises(InputError, match="example -1 is outside"):
        down_weight(4, [-1], 0.1)
    with pytest.raises(InputError, match="epsilon"):
        down_weight(4, [1], 0.0)


def test_subsets_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="0 or 1"):
        Subsets(torch.tensor([[0.5, 1.0]]))
    with pytest.raises(InputError, match="subset 1 holds no example"):
        Subsets(torch.tensor([[1, 1], [0, 0]]))
    with pytest.raises(InputError, match="finite"):
        Subsets(torch.tensor([[float("nan"), 1.0]]), Weighted())
    with pytest.raises(InputError, match=r"\[m, N\]"):
        Subsets(torch.ones(3))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 200))
def test_no_more_different_ones_than_there_are(n: int, size: int, count: int) -> None:
    size = min(size, n)
    if count <= comb(n, size):
        drawn = random_subsets(n, keep=size / n, count=count, seed=0).weights
        assert len({tuple(row) for row in drawn.tolist()}) == count
    else:
        with pytest.raises(InputError, match=f"cannot draw {count} .* there are {comb(n, size)}$"):
            random_subsets(n, keep=size / n, count=count, seed=0)


def test_more_examples_than_there_is_room_for() -> None:
    """At once, however many subsets of them there are."""
    for make in (
        lambda n: random_subsets(n, keep=0.5, count=4, seed=0),
        lambda n: leave_one_out(n, [1]),
        lambda n: down_weight(n, [1], 0.1),
    ):
        with pytest.raises(InputError, match=r"of 1000000000000 examples take .* GiB"):
            make(10**12)
        with pytest.raises(InputError, match=r"n must be below 2\*\*63"):
            make(10**30)
    for n in (10, 10**12):
        with pytest.raises(InputError, match=r"keep must lie in \(0, 1\].*; seen 1e\+300 of 10"):
            random_subsets(n, keep=1e300, count=4, seed=0)


def test_grid_is_inits_by_orders_by_subsets() -> None:
    runs = grid([5, 6], [0, 1, 2], 4)
    assert len(runs) == 24
    assert runs[1 * 12 + 2 * 4 + 3] == Run(6, 2, 3)
    assert grid([5], [0, 1]) == [Run(5, 0), Run(5, 1)]
    with pytest.raises(InputError, match="init_seed must be a whole number >= 0"):
        Run(-1, 0)


def test_questions() -> None:
    values = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(matched(values)[1], (values[1, 0] + values[1, 1]) / 2)
    expected = (values[0] + values[2]).sum(0) / 4
    torch.testing.assert_close(independent(values)[1], expected)
    assert matched_repeats(values).shape == (3, 2, 4, 5)
    repeats = independent_repeats(values)
    assert repeats.shape == (3, 2, 4, 5)
    torch.testing.assert_close(repeats[1, 1], values[2].mean(0))
    torch.testing.assert_close(repeats[2, 0], values[0].mean(0))
    assert torch.equal(very_run(values)[3], values[1, 1])
    with pytest.raises(InputError, match="at least 2"):
        independent(values[:1])
    with pytest.raises(InputError, match="inits, orders, subsets, queries"):
        matched(values[0])
