"""Calibration against numpy's fit, and against ridge regression, where the slope is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvfluence.errors import InputError, NonFiniteError
from curvfluence.fidelity import calibrate, calibrate_queries


def pairs(seed=0, shape=(30, 4)):
    rng = np.random.default_rng(seed)
    predicted = rng.normal(size=shape) + 3
    return predicted, 1.7 * predicted - 0.4 + rng.normal(size=shape)


def test_it_is_numpys_fit():
    predicted, true = pairs()
    found = calibrate(predicted, true)
    slope, intercept = np.polyfit(predicted.ravel(), true.ravel(), 1)
    assert found.slope == pytest.approx(slope, rel=1e-10)
    assert found.intercept == pytest.approx(intercept, rel=1e-10)
    assert found.r == pytest.approx(np.corrcoef(predicted.ravel(), true.ravel())[0, 1], rel=1e-12)
    assert found.n == 120


def test_each_query_has_its_line():
    predicted, true = pairs()
    predicted[:, 2] = 0.25
    found = calibrate_queries(predicted, true)
    assert found[2] is None
    for q in (0, 1, 3):
        line = found[q]
        assert line is not None
        expected = np.polyfit(predicted[:, q], true[:, q], 1)
        assert (line.slope, line.intercept) == pytest.approx(tuple(expected), rel=1e-9)
        assert line.n == 30


def test_the_slope_of_ridge_regression_grows_with_what_is_left_out():
    """Influence is the exact first-order change: slope near 1 for one example left out of many,
    about 1/α when subsets keep α of them."""
    rng = np.random.default_rng(0)
    n, dim, decay = 400, 5, 0.1
    x, noise = rng.normal(size=(n, dim)), rng.normal(size=n)
    y, query = x @ np.ones(dim) + noise, rng.normal(size=dim)
    hessian = x.T @ x / n + decay * np.eye(dim)
    theta = np.linalg.solve(hessian, x.T @ y / n)
    influence = query @ np.linalg.solve(hessian, (x * (x @ theta - y)[:, None]).T) / n

    def change(left_out):
        kept = np.ones(n)
        kept[left_out] = 0
        system = (x.T * kept) @ x / n + decay * np.eye(dim)
        return query @ (np.linalg.solve(system, x.T @ (kept * y) / n) - theta)

    ones = [[k] for k in range(n)]
    halves = [rng.permutation(n)[: n // 2] for _ in range(200)]
    for groups, low, high in ((ones, 1.0, 1.05), (halves, 1.8, 2.2)):
        predicted = np.array([influence[g].sum() for g in groups])
        found = calibrate(predicted, np.array([change(g) for g in groups]))
        assert low < found.slope < high
        assert found.r > 0.9


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(1e-200, 1e200),
    slope=st.floats(-5, 5).filter(lambda s: abs(s) > 1e-3),
)
def test_units_move_slope_and_intercept_alone(seed, scale, slope):
    predicted, true = pairs(seed)
    found, scaled = calibrate(predicted, true), calibrate(predicted * scale, true * scale)
    assert scaled.slope == pytest.approx(found.slope, rel=1e-9)
    assert scaled.intercept == pytest.approx(found.intercept * scale, rel=1e-7)
    assert scaled.r == pytest.approx(found.r, rel=1e-9)
    exact = calibrate(predicted, slope * predicted + 2)
    assert (exact.slope, exact.intercept) == pytest.approx((slope, 2.0), rel=1e-6, abs=1e-9)
    assert abs(exact.r) == pytest.approx(1.0, abs=1e-9)


def test_a_constant_truth_has_slope_and_correlation_zero():
    found = calibrate(np.arange(4.0), np.full(4, 2.5))
    assert (found.slope, found.intercept, found.r) == (0.0, 2.5, 0.0)


def test_what_cannot_be_answered_is_refused():
    predicted, true = pairs()
    with pytest.raises(InputError, match="no slope"):
        calibrate(np.ones(5), np.arange(5.0))
    with pytest.raises(InputError, match="one shape"):
        calibrate(predicted, true[:-1])
    with pytest.raises(InputError, match=r"\[m, Q\]"):
        calibrate_queries(predicted, true[:-1])
    true[3, 1] = np.inf
    with pytest.raises(NonFiniteError, match=r"\(3, 1\)"):
        calibrate(predicted, true)


def test_two_pairs_make_a_line():
    found = calibrate(np.array([1.0, 3.0]), np.array([2.0, 8.0]))
    assert (found.slope, found.intercept, found.n) == pytest.approx((3.0, -1.0, 2))
    with pytest.raises(InputError, match="two pairs or more"):
        calibrate(np.array([1.0]), np.array([2.0]))
