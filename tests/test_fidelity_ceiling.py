"""The ceiling where reliability is known: truth = signal + noise, both normal."""

from __future__ import annotations

import numpy as np
import pytest

from curvfluence.errors import InputError, NonFiniteError
from curvfluence.fidelity import reliability, spearman, spearman_brown


def simulated(noise, repeats, models=2, subsets=1500, queries=8, seed=0):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(models, subsets, queries))
    units = signal[:, None] + noise * rng.normal(size=(models, repeats, subsets, queries))
    return units, signal


def rank_correlation(pearson):
    """Spearman's of two normal variables whose Pearson correlation is given."""
    return 6 / np.pi * np.arcsin(np.asarray(pearson) / 2)


@pytest.mark.parametrize(("noise", "repeats"), [(0.5, 2), (1.0, 4), (2.0, 5), (1.5, 10)])
def test_reliability_is_what_theory_says(noise, repeats):
    """Pearson: signal 1 against noise²/r. Spearman's is lower by up to .02 (next test); sampling
    error with 1500 subsets × 16 is below .01. Together .03."""
    units, signal = simulated(noise, repeats)
    found = reliability(units)
    assert found.repeats == repeats
    assert found.reliability == pytest.approx(1 / (1 + noise**2 / repeats), abs=0.03)
    truth = np.moveaxis(units.mean(1), 1, 2)
    best = spearman(np.moveaxis(signal, 1, 2), truth).mean()
    assert found.best_lds == pytest.approx(best, abs=0.02)


def test_spearman_brown_is_nearly_exact_for_ranks_of_normal_variables():
    half = np.linspace(0.01, 0.99, 99)
    for factor in (2.0, 2.2, 7 / 3, 2.5, 3.0):
        stepped = [spearman_brown(float(r), factor) for r in rank_correlation(half)]
        full = [spearman_brown(float(r), factor) for r in half]
        np.testing.assert_allclose(full, [factor * r / (1 + (factor - 1) * r) for r in half])
        assert np.abs(np.array(stepped) - full).max() < 0.0165
        assert np.abs(stepped - rank_correlation(full)).max() < 0.004
        excess = np.sqrt(stepped) - rank_correlation(np.sqrt(full))
        assert excess.min() > 0
        assert excess.max() < 0.01


def test_two_repeats_by_hand():
    units, _ = simulated(1.0, 2, models=1, subsets=9, queries=3)
    half = spearman(units[0, 0].T, units[0, 1].T).mean()
    found = reliability(units)
    assert found.splits == 1
    assert found.half == pytest.approx(half, abs=1e-15)
    assert found.reliability == pytest.approx(2 * half / (1 + half), abs=1e-15)


def test_all_splits_while_they_are_few():
    units, _ = simulated(1.0, 7, models=1, subsets=9, queries=3)
    assert reliability(units[:, :4]).splits == 3
    assert reliability(units[:, :3]).splits == 3  # halves of one, the third sits out
    assert reliability(units[:, :6]).splits == 10
    assert reliability(units, splits=70).splits == 70  # 7!/(3! 3! 1!)/2
    assert reliability(units).splits == 50
    # All splits use every repeat alike, so their order cannot matter; nor can the seed.
    shuffled = reliability(units[:, ::-1], splits=70, seed=9)
    assert shuffled.half == pytest.approx(reliability(units, splits=70).half, abs=1e-13)
    assert reliability(units, seed=1) == reliability(units, seed=1)
    assert reliability(units, seed=1) != reliability(units, seed=2)


def test_noise_alone_has_no_ceiling():
    units = np.random.default_rng(0).normal(size=(2, 6, 400, 10))
    assert abs(reliability(units).reliability) < 0.05
    opposed = np.stack([np.arange(9.0), -np.arange(9.0)])[None, :, :, None]
    found = reliability(opposed)
    assert found.reliability == -1.0
    assert found.best_lds == 0.0


def test_a_constant_query_counts_as_zero_and_is_counted():
    units, _ = simulated(0.1, 4, models=1, subsets=20, queries=2)
    units[..., 1] = 3.0
    found = reliability(units)
    assert found.undefined == 3
    assert found.half == pytest.approx(reliability(units[..., :1]).half / 2, abs=1e-12)


def test_what_cannot_be_answered_is_refused():
    units, _ = simulated(1.0, 2, subsets=5)
    with pytest.raises(InputError, match=r"hold 1 repeat of each.*two repeats or more"):
        reliability(units[:, :1])
    with pytest.raises(InputError, match=r"\[J, r, m, Q\]"):
        reliability(units[0])
    with pytest.raises(InputError, match="splits"):
        reliability(units, splits=0)
    units[1, 0, 2, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"\(1, 0, 2, 3\)"):
        reliability(units)


def test_one_split_is_enough_and_the_seed_is_zero():
    units, _ = simulated(1.0, 8, models=1, subsets=9, queries=3)
    assert reliability(units, splits=1).splits == 1
    assert reliability(units, splits=5) == reliability(units, splits=5, seed=0)
    assert reliability(units, splits=5) != reliability(units, splits=5, seed=1)
    with pytest.raises(InputError, match="give one or more"):
        reliability(units, splits=0)
