"""Spearman against scipy, the cross-fit against the obvious loop, and what it protects from."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from curvfluence.errors import InputError, NonFiniteError
from curvfluence.fidelity import Sweep, lds, query_halves, spearman, undefined

D, J, M, Q = 4, 3, 12, 7
GRID = (1e-3, 1e-2, 1e-1, 1.0)


def example(seed=0, ties=False):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(J, M, Q))
    predicted = truth + rng.normal(size=(D, J, M, Q)) * rng.uniform(0.5, 2, size=(D, 1, 1, Q))
    if ties:
        truth, predicted = np.round(truth), np.round(predicted)
    return Sweep(GRID, predicted), truth


def test_spearman_is_scipys_with_ties():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, size=(3, 4, 15)).astype(float)
    y = x + rng.integers(0, 4, size=(3, 4, 15))
    expected = [[stats.spearmanr(x[i, j], y[i, j]).statistic for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(spearman(x, y), expected, atol=1e-14)
    assert not undefined(x, y).any()


def test_a_constant_side_counts_as_zero_and_is_named():
    x = np.array([[1.0, 1, 1], [1, 2, 3], [1, 2, 3]])
    y = np.array([[1.0, 2, 3], [0.1, 0.1, 0.1], [1, 2, 4]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert spearman(x, y).tolist() == [0.0, 0.0, 1.0]
    assert undefined(x, y).tolist() == [True, True, False]


def test_spearman_broadcasts_over_leading_axes():
    sweep, truth = example()
    x, y = np.moveaxis(sweep.predicted, 2, 3), np.moveaxis(truth, 1, 2)
    assert spearman(x, y).shape == (D, J, Q)
    assert spearman(x, y)[2, 1, 3] == spearman(x[2, 1, 3], y[1, 3])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_are_named(bad):
    x = np.zeros((2, 5))
    x[1, 3] = bad
    with pytest.raises(NonFiniteError, match=r"predicted .*\(1, 3\)"):
        spearman(x, np.ones((2, 5)))
    sweep, truth = example()
    truth[2, 1, 4] = bad
    with pytest.raises(NonFiniteError, match=r"truth .*\(2, 1, 4\)"):
        lds(sweep, truth, query_halves(Q, 0))


def slow_lds(sweep, truth, halves):
    """(value, damping of the first half, damping of the second), one correlation at a time."""
    rho = np.zeros((D, J, Q))
    for d in range(D):
        for j in range(J):
            for q in range(Q):
                rho[d, j, q] = stats.spearmanr(
                    sweep.predicted[d, j, :, q], truth[j, :, q]
                ).statistic
    models, chosen = [], []
    for half in (halves, ~halves):
        others = [rho[d][:, ~half].mean() for d in range(D)]
        chosen.append(int(np.argmax(others)))
    for j in range(J):
        queries = [rho[chosen[0] if halves[q] else chosen[1], j, q] for q in range(Q)]
        models.append(np.mean(queries))
    return np.mean(models), GRID[chosen[0]], GRID[chosen[1]]


@pytest.mark.parametrize("seed", range(6))
def test_lds_is_the_obvious_loop(seed):
    sweep, truth = example(seed, ties=seed % 2 == 1)
    halves = query_halves(Q, seed)
    result = lds(sweep, truth, halves)
    value, first, second = slow_lds(sweep, truth, halves)
    assert result.value == pytest.approx(value, abs=1e-13)
    assert result.dampings == (first, second)
    assert result.on_edge == any(d in (GRID[0], GRID[-1]) for d in (first, second))
    assert result.per_query.shape == (J, Q)
    assert result.value == pytest.approx(result.per_query.mean(), abs=1e-14)


def test_the_halves_choose_for_each_other():
    """Damping 0 is right for the first half alone and damping 1 for the second: each half must get
    the damping that is right for the other, and so score −1."""
    truth = np.arange(6.0)[None, :, None] * np.ones((1, 6, 4))
    halves = np.array([True, True, False, False])
    predicted = np.where(halves, 1.0, -1.0) * truth[None] * np.array([1, -1])[:, None, None, None]
    result = lds(Sweep((0.1, 1.0), predicted), truth, halves)
    assert result.dampings == (1.0, 0.1)
    assert result.value == -1.0
    assert result.sweep == ((0.1, 0.0), (1.0, 0.0))


def test_choosing_on_the_judged_queries_would_flatter_noise():
    """Predictions unrelated to the truth have LDS 0. The best of 30 dampings on the same queries
    looks better than .1; the cross-fit stays at 0 (its standard error here is .015)."""
    naive, crossed = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=(1, 20, 6))
        sweep = Sweep(tuple(range(1, 31)), rng.normal(size=(30, 1, 20, 6)))
        result = lds(sweep, truth, query_halves(6, seed))
        naive.append(max(value for _, value in result.sweep))
        crossed.append(result.value)
    assert np.mean(naive) > 0.1
    assert abs(np.mean(crossed)) < 0.05


def test_undefined_correlations_are_counted():
    sweep, truth = example()
    predicted = sweep.predicted.copy()
    predicted[:, 1, :, 2] = 0.3  # at every damping
    predicted[0] = 0.0  # the first damping predicts nothing at all
    result = lds(Sweep(GRID, predicted), truth, query_halves(Q, 0))
    assert result.undefined == 1
    assert result.per_query[1, 2] == 0.0
    assert result.sweep_undefined == (J * Q, 1, 1, 1)
    assert result.sweep[0] == (GRID[0], 0.0)


def test_one_damping_has_no_edge_and_needs_no_second_half():
    sweep, truth = example()
    single = Sweep((None,), sweep.predicted[:1, :, :, :1])
    result = lds(single, truth[:, :, :1], query_halves(1, 0))
    assert result.dampings == (None, None)
    assert not result.on_edge
    assert result.value == pytest.approx(result.sweep[0][1], abs=1e-15)


def test_tied_dampings_go_to_the_smallest():
    sweep, truth = example()
    tied = Sweep(GRID, np.repeat(sweep.predicted[:1], D, axis=0) ** 3)
    assert lds(tied, truth, query_halves(Q, 0)).dampings == (GRID[0], GRID[0])


@pytest.mark.parametrize("seed", range(10))
def test_rounding_breaks_no_tie(seed):
    """All queries share one truth, and each damping deals the same predictions to the queries of a
    half in another order: the means are equal but for rounding."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.normal(size=(1, 11, 1)), 10, axis=2)
    halves = query_halves(10, seed)
    predicted = truth + rng.normal(size=(1, 11, 10))
    dealt = np.repeat(predicted[None], D, axis=0)
    for d in range(1, D):
        for half in (halves, ~halves):
            columns = np.flatnonzero(half)
            dealt[d][:, :, columns] = predicted[:, :, rng.permutation(columns)]
    assert lds(Sweep(GRID, dealt), truth, halves).dampings == (GRID[0], GRID[0])


def test_halves_are_halves_and_fixed_by_the_seed():
    assert query_halves(180, 3).sum() == 90
    assert query_halves(7, 3).sum() == 4
    assert (query_halves(180, 3) == query_halves(180, 3)).all()
    assert (query_halves(180, 3) != query_halves(180, 4)).any()


def test_what_does_not_fit_is_refused():
    sweep, truth = example()
    halves = query_halves(Q, 0)
    with pytest.raises(InputError, match="increase strictly"):
        Sweep((1e-3, 1e-1, 1e-2, 1.0), sweep.predicted)
    with pytest.raises(InputError, match="increase strictly"):
        Sweep((None, 1e-1, 1e-2, 1.0), sweep.predicted)
    with pytest.raises(InputError, match=r"\[D, J, m, Q\]"):
        Sweep(GRID[:3], sweep.predicted)
    with pytest.raises(InputError, match=r"\[J, m, Q\]"):
        lds(sweep, truth[:, :-1], halves)
    with pytest.raises(InputError, match="one half"):
        lds(sweep, truth, np.ones(Q, bool))
    with pytest.raises(InputError, match="halves"):
        lds(sweep, truth, halves[:-1])
    with pytest.raises(InputError, match="two or more subsets"):
        spearman(np.ones((3, 1)), np.ones((3, 1)))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    ties=st.booleans(),
    power=st.sampled_from([1, 3]),
    low=st.floats(0.01, 1),
)
def test_lds_sees_order_only_and_lies_in_its_range(seed, ties, power, low):
    sweep, truth = example(seed, ties)
    halves = query_halves(Q, seed)
    result = lds(sweep, truth, halves)
    assert -1.0 <= result.value <= 1.0
    assert np.abs(result.per_query).max() <= 1.0

    rng = np.random.default_rng(seed)
    scale_q, shift_q = rng.uniform(low, 100, size=Q), rng.normal(size=Q)
    monotone = Sweep(GRID, scale_q * (4 * np.sign(sweep.predicted) + sweep.predicted**power))
    assert lds(monotone, truth, halves).value == result.value
    assert lds(sweep, 4 * truth + 8 * np.round(shift_q), halves).value == result.value

    order = rng.permutation(M)
    shuffled = lds(Sweep(GRID, sweep.predicted[:, :, order]), truth[:, order], halves)
    assert shuffled.value == pytest.approx(result.value, abs=1e-14)
    flipped = lds(Sweep(GRID[:1], -sweep.predicted[:1]), truth, halves)
    assert flipped.value == pytest.approx(-result.sweep[0][1], abs=1e-14)


def test_two_subsets_are_the_fewest():
    np.testing.assert_array_equal(spearman([[1.0, 2.0]], [[4.0, 5.0]]), [1.0])
    np.testing.assert_array_equal(spearman([1, 2], [5, 4]), -1.0)
    for x, y in (([1.0], [1.0]), (3.0, [1.0, 2.0]), ([1.0, 2.0], 3.0), ([1.0, 2.0], [1.0, 2, 3])):
        with pytest.raises(InputError, match="the same two or more subsets"):
            spearman(np.array(x), np.array(y))


@pytest.mark.parametrize("grid", [(1.0, 0.1), (1.0, 1.0), (None, 1.0), (0.1, 1.0, 1.0)])
def test_dampings_increase_strictly(grid):
    with pytest.raises(InputError, match="must increase strictly"):
        Sweep(grid, np.zeros((len(grid), 1, 3, 2)))


def test_a_grid_of_two_is_all_edge_and_needs_both_halves():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(1, 9, 6))
    sweep = Sweep((0.1, 1.0), np.stack([truth, rng.normal(size=truth.shape)]))
    assert lds(sweep, truth, query_halves(6, 0)).on_edge
    for halves in (np.ones(6, dtype=bool), np.zeros(6, dtype=bool)):
        with pytest.raises(InputError, match="in one half"):
            lds(sweep, truth, halves)


def test_predictions_are_kept_as_floats_and_halves_may_be_zeros_and_ones():
    halves = [1, 0, 1, 0, 1, 0]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, 9, size=(1, 8, 6))
        sweep = Sweep((0.1, 1.0), rng.integers(0, 9, size=(2, 1, 8, 6)).tolist())
        assert sweep.predicted.dtype == np.float64
        given, plain = lds(sweep, truth, halves), lds(sweep, truth, np.array(halves, dtype=bool))
        np.testing.assert_array_equal(given.per_query, plain.per_query)


def test_no_queries_have_halves_too():
    assert query_halves(0, 0).shape == (0,)
    with pytest.raises(InputError, match="count must be"):
        query_halves(-1, 0)
    with pytest.raises(InputError, match="seed must be"):
        query_halves(3, -1)
