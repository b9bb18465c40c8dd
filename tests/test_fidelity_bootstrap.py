"""The bootstrap against a loop that really repeats the drawn subsets, models and queries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from curvfluence.errors import InputError
from curvfluence.fidelity import (
    Axes,
    Interval,
    Resamples,
    Sweep,
    bootstrap_lds,
    interval,
    intervals,
    lds,
    paired_difference,
    percentile,
    query_halves,
    resamples,
)
from curvfluence.runtime import budget

D, J, M, Q = 4, 3, 14, 9
GRID = (1e-3, 1e-2, 1e-1, 1.0)
HALVES = query_halves(Q, 5)


def example(seed=0, ties=False):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(J, M, Q))
    predicted = truth + rng.normal(size=(D, J, M, Q)) * 1.5
    if ties:
        truth, predicted = np.round(truth), np.round(predicted)
    return Sweep(GRID, predicted), truth


def slow_replicate(sweep, truth, halves, models_j, subsets_m, queries_q):
    """Rank once, repeat what was drawn as often as it was drawn, then plain Pearson and means."""
    kept = np.repeat(np.arange(M), subsets_m)
    rho = np.zeros((D, J, Q))
    for d, j, q in np.ndindex(D, J, Q):
        x = rankdata(sweep.predicted[d, j, :, q])[kept]
        y = rankdata(truth[j, :, q])[kept]
        if np.ptp(x) > 0 and np.ptp(y) > 0:
            rho[d, j, q] = np.corrcoef(x, y)[0, 1]
    rows = np.repeat(np.arange(J), models_j)
    columns = {
        h: [q for q in range(Q) if halves[q] == h for _ in range(queries_q[q])] for h in (0, 1)
    }
    score = {h: [rho[d][np.ix_(rows, columns[h])].mean() for d in range(D)] for h in (0, 1)}
    judged = [rho[np.argmax(score[1 - h])][np.ix_(rows, columns[h])].ravel() for h in (0, 1)]
    return np.concatenate(judged).mean()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "axes", [Axes.CROSSED, Axes.SUBSETS, Axes.QUERIES, Axes.MODELS, Axes.SUBSETS | Axes.MODELS]
)
def test_replicates_are_the_obvious_loop(axes, ties):
    sweep, truth = example(3, ties)
    drawn = resamples(J, M, halves=HALVES, replicates=8, seed=1, axes=axes)
    expected = [
        slow_replicate(sweep, truth, HALVES, *counts)
        for counts in zip(drawn.models, drawn.subsets, drawn.queries, strict=True)
    ]
    assert np.std(expected) > 0
    np.testing.assert_allclose(
        bootstrap_lds(sweep, truth, HALVES, drawn).draws, expected, atol=1e-12
    )


def test_the_damping_is_chosen_again_in_each_replicate():
    """With the full sample's dampings held fixed, some draws would differ."""
    sweep, truth = example(3)
    drawn = resamples(J, M, halves=HALVES, replicates=50, seed=1)
    dampings = lds(sweep, truth, HALVES).dampings
    fixed = np.where(
        HALVES,
        sweep.predicted[GRID.index(dampings[0])],
        sweep.predicted[GRID.index(dampings[1])],
    )
    held = bootstrap_lds(Sweep((None,), fixed[None]), truth, HALVES, drawn)
    again = bootstrap_lds(sweep, truth, HALVES, drawn)
    assert held.value == pytest.approx(again.value, abs=1e-14)
    assert np.abs(held.draws - again.draws).max() > 0.01


@pytest.mark.parametrize("seed", range(5))
def test_counts_of_one_give_the_lds_itself(seed):
    sweep, truth = example(seed, ties=seed % 2 == 0)
    predicted = sweep.predicted.copy()
    predicted[:, 0, :, 1] = 7.0  # a constant side is 0 in both
    sweep = Sweep(GRID, predicted)
    ones = Resamples(*(np.ones((3, size), dtype=np.int64) for size in (J, M, Q)))
    found = bootstrap_lds(sweep, truth, HALVES, ones)
    value = lds(sweep, truth, HALVES).value
    assert found.value == value
    np.testing.assert_allclose(found.draws, value, atol=1e-12, rtol=0)


def test_chunks_change_nothing(monkeypatch):
    sweep, truth = example(2)
    drawn = resamples(J, M, halves=HALVES, replicates=20, seed=4)
    whole = bootstrap_lds(sweep, truth, HALVES, drawn).draws
    monkeypatch.setattr(budget, "REPLICATES", 3 * J * Q)
    np.testing.assert_allclose(bootstrap_lds(sweep, truth, HALVES, drawn).draws, whole, atol=1e-13)


def test_draws_keep_their_sizes_and_both_halves():
    drawn = resamples(J, M, halves=HALVES, replicates=200, seed=0)
    assert (drawn.models.sum(1) == J).all()
    assert (drawn.subsets.sum(1) == M).all()
    assert (drawn.queries[:, HALVES].sum(1) == HALVES.sum()).all()
    assert (drawn.queries[:, ~HALVES].sum(1) == (~HALVES).sum()).all()
    for half in (HALVES, ~HALVES):
        assert len(np.unique(drawn.queries[:, half], axis=0)) > 1
    alone = resamples(J, M, halves=HALVES, replicates=200, seed=0, axes=Axes.SUBSETS)
    assert (alone.models == 1).all()
    assert (alone.queries == 1).all()
    assert (alone.subsets == drawn.subsets).all()


def test_halves_of_numbers_and_a_half_without_queries():
    drawn = resamples(J, M, halves=HALVES, replicates=5, seed=0)
    assert resamples(J, M, halves=HALVES.astype(int).tolist(), replicates=5, seed=0).same_as(drawn)
    whole = resamples(J, M, halves=np.ones(Q, dtype=bool), replicates=5, seed=0)
    assert whole.queries.shape == (5, Q)
    assert (whole.queries.sum(1) == Q).all()


def test_the_same_draws_are_the_same_on_every_axis():
    counts = {
        "models": np.ones((2, J), int),
        "subsets": np.ones((2, M), int),
        "queries": np.ones((2, Q), int),
    }
    drawn = Resamples(**counts)
    assert drawn.same_as(Resamples(**{name: one.copy() for name, one in counts.items()}))
    for name, one in counts.items():
        assert not drawn.same_as(Resamples(**{**counts, name: 2 * one}))


def test_there_are_500_replicates_of_95_percent():
    sweep, truth = example(1)
    drawn = resamples(J, M, halves=HALVES, seed=3)
    assert len(drawn) == 500
    found = bootstrap_lds(sweep, truth, HALVES, drawn)
    first = intervals(sweep, truth, HALVES, seed=3)
    assert first.crossed == interval(found) == percentile(found.draws) == interval(found, 0.95)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_every_interval_is_of_the_level_and_draws_that_were_asked_for(level):
    sweep, truth = example(1)
    drawn = {
        name: resamples(J, M, halves=HALVES, seed=3, replicates=60, axes=axes)
        for name, axes in (
            ("crossed", Axes.CROSSED), ("subsets", Axes.SUBSETS), ("queries", Axes.QUERIES)
        )
    }  # fmt: skip
    found = intervals(sweep, truth, HALVES, seed=3, replicates=60, level=level)
    for name, one in drawn.items():
        draws = bootstrap_lds(sweep, truth, HALVES, one).draws
        wanted = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        assert getattr(found, name) == pytest.approx(wanted)
    worse = Sweep(GRID, sweep.predicted + np.random.default_rng(0).normal(size=(D, J, M, Q)))
    a, b = (bootstrap_lds(each, truth, HALVES, drawn["crossed"]) for each in (sweep, worse))
    wanted = np.quantile(a.draws - b.draws, [(1 - level) / 2, (1 + level) / 2])
    assert paired_difference(a, b, level).interval == pytest.approx(wanted)


def test_an_interval_of_the_other_sign():
    assert -Interval(-1.0, 3.0) == Interval(-3.0, 1.0)


def test_a_seed_fixes_the_intervals():
    sweep, truth = example(1)
    first = intervals(sweep, truth, HALVES, seed=3, replicates=60)
    assert first == intervals(sweep, truth, HALVES, seed=3, replicates=60)
    assert first != intervals(sweep, truth, HALVES, seed=4, replicates=60)
    for found in (first.crossed, first.subsets, first.queries):
        assert found.low < lds(sweep, truth, HALVES).value < found.high
    assert first.crossed.high - first.crossed.low > first.queries.high - first.queries.low


def test_the_interval_is_made_of_quantiles():
    sweep, truth = example(1)
    drawn = resamples(J, M, halves=HALVES, replicates=201, seed=3)
    found = bootstrap_lds(sweep, truth, HALVES, drawn)
    low, high = interval(found, 0.9)
    ordered = np.sort(found.draws)
    assert (low, high) == (pytest.approx(ordered[10]), pytest.approx(ordered[190]))
    for level in (95, 1.5, 1.0, 0.0):
        with pytest.raises(InputError, match="level"):
            interval(found, level)


def test_differences_are_paired():
    """A rung against itself plus a little error: paired, far tighter than two intervals apart."""
    sweep, truth = example(1)
    rng = np.random.default_rng(0)
    worse = Sweep(GRID, sweep.predicted + 0.1 * rng.normal(size=sweep.predicted.shape))
    drawn = resamples(J, M, halves=HALVES, seed=3)
    a, b = (bootstrap_lds(s, truth, HALVES, drawn) for s in (sweep, worse))
    same = paired_difference(a, a)
    assert (same.value, same.interval) == (0.0, (0.0, 0.0))
    found = paired_difference(a, b)
    assert found.value == a.value - b.value
    assert found.interval.low <= found.value <= found.interval.high
    assert found.interval.high - found.interval.low < 0.5 * (interval(a).high - interval(a).low)
    other = resamples(J, M, halves=HALVES, seed=4)
    with pytest.raises(InputError, match="paired"):
        paired_difference(a, bootstrap_lds(worse, truth, HALVES, other))


def test_one_model_and_one_damping():
    sweep, truth = example(1)
    single = Sweep((None,), sweep.predicted[:1, :1])
    drawn = resamples(1, M, halves=HALVES, seed=3, replicates=50)
    assert (drawn.models == 1).all()
    assert np.ptp(bootstrap_lds(single, truth[:1], HALVES, drawn).draws) > 0


def test_what_does_not_fit_is_refused():
    sweep, truth = example()
    with pytest.raises(InputError, match="make them for this sweep"):
        bootstrap_lds(sweep, truth, HALVES, resamples(J, M + 1, halves=HALVES, seed=0))
    for bad in ({"replicates": 0}, {"models": 0}, {"subsets": 0}, {"halves": HALVES[:0]}):
        with pytest.raises(InputError, match="one of each at least"):
            resamples(**{"models": J, "subsets": M, "halves": HALVES, "seed": 0, **bad})
    with pytest.raises(InputError, match=r"\[B, J\]"):
        Resamples(*(np.ones((b, 3), dtype=np.int64) for b in (2, 2, 3)))
