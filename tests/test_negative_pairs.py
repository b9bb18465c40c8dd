"""The negative eigenpairs of a matrix by its products, against its eigendecomposition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curvfluence.curvature.operators import negative_pairs as module
from curvfluence.curvature.operators.negative_pairs import (
    ACCURATE,
    FIRST,
    ROUND,
    ROUNDS,
    WANTED,
    NegativePairs,
    negative_pairs,
)
from curvfluence.errors import InputError
from tests.test_iterated_hessian import symmetric


@pytest.mark.parametrize("count", [0, 3, 20])
def test_all_below(count: int) -> None:
    values = [
        *(-0.01 - 0.1 * k for k in range(count)),
        *torch.linspace(-1e-4, 30, 180).tolist(),
    ]
    a = symmetric(values)
    found = negative_pairs(lambda x: x @ a, lambda r: r, a[0], spared=5e-3, most=64)
    wanted = torch.tensor(sorted(v for v in values if v < -5e-3), dtype=torch.float64)
    torch.testing.assert_close(found.values, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        found.vectors @ found.vectors.T, torch.eye(count).double(), rtol=0, atol=1e-8
    )
    assert found.residual < 5e-4


def test_too_many() -> None:
    a = symmetric([*(-1.0 - 0.01 * k for k in range(40)), *torch.linspace(1, 2, 260).tolist()])
    with pytest.raises(InputError, match="more than 16 eigenvalues"):
        negative_pairs(lambda x: x @ a, lambda r: r, a[0], spared=1e-2, most=16)


def test_no_convergence_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND", 1)
    monkeypatch.setattr(module, "ROUNDS", 2)
    a = symmetric([-0.2, -0.1, *torch.linspace(0, 1e4, 198).tolist()])
    with pytest.raises(InputError, match="did not converge in 2 iterations"):
        negative_pairs(lambda x: x @ a, lambda r: r, a[0], spared=1e-3, most=64)


def test_a_flat_bulk_next_to_zero_is_no_hindrance() -> None:
    bulk = (1e-5 * torch.randn(300, generator=torch.Generator().manual_seed(0))).tolist()
    a = symmetric([-1.0, -0.5, -0.2, *bulk, *torch.linspace(0.1, 30, 200).tolist()])
    shifted = torch.linalg.inv(a + 1.1 * torch.eye(len(a)))
    found = negative_pairs(lambda x: x @ a, lambda r: r @ shifted, a[0], spared=1e-3, most=64)
    wanted = torch.tensor([-1.0, -0.5, -0.2], dtype=torch.float64)
    torch.testing.assert_close(found.values, wanted, rtol=0, atol=1e-6)
    assert found.products < 2000


SPARED = 0.25


class TestSmall:
    """A block that is no small part of the space: an eigendecomposition."""

    @pytest.mark.parametrize("n", [5 * FIRST, 5 * FIRST + 1])
    def test_which_are_small(self, n: int) -> None:
        """Those need no preconditioner, and a product with each unit vector."""
        a = symmetric([-2.0, -0.5, *torch.linspace(1, 3, n - 2).tolist()])
        preconditioned = 0

        def precondition(r: Tensor) -> Tensor:
            nonlocal preconditioned
            preconditioned += 1
            return r

        found = negative_pairs(lambda x: x @ a, precondition, a[0], spared=SPARED, most=64)
        torch.testing.assert_close(
            found.values, torch.tensor([-2.0, -0.5]).double(), rtol=0, atol=1e-4
        )
        assert (preconditioned > 0) == (n > 5 * FIRST)
        assert (found.products == n) == (n <= 5 * FIRST)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_pairs(self, dtype: torch.dtype) -> None:
        """Of a product that rounding leaves not quite symmetric; one of −`spared` is spared."""
        diagonal = torch.tensor([2.0, -0.25, -3.0, 0.0, -0.5], dtype=dtype)
        skew = torch.zeros(5, 5, dtype=dtype)
        skew[0, 2], skew[2, 0] = 1e-3, -1e-3
        found = negative_pairs(
            lambda x: x * diagonal + x @ skew, lambda r: r, diagonal, spared=SPARED, most=64
        )
        assert torch.equal(found.values, torch.tensor([-3.0, -0.5], dtype=dtype))
        assert found.values.dtype == found.vectors.dtype == dtype
        assert torch.equal(found.vectors.abs(), torch.eye(5, dtype=dtype)[[2, 4]])
        assert found.residual == pytest.approx(1e-3)
        assert (found.spared, found.products) == (SPARED, 5)

    def test_none(self) -> None:
        found = negative_pairs(lambda x: 0 * x, lambda r: r, torch.ones(4), spared=0.1, most=64)
        assert found.values.shape == (0,)
        assert found.vectors.shape == (0, 4)
        assert found.residual == 0.0


def test_in_the_dtype_of_what_it_is_for() -> None:
    """float32 in and out, and every product with a vector is counted."""
    a = symmetric([-2.0, -0.5, *torch.linspace(1, 3, 98).tolist()]).float()
    asked: list[int] = []

    def product(x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        asked.append(len(x))
        return x @ a

    found = negative_pairs(product, lambda r: r, a[0], spared=SPARED, most=64)
    assert found.values.dtype == found.vectors.dtype == torch.float32
    assert found.products == sum(asked)
    torch.testing.assert_close(
        found.vectors @ a @ found.vectors.T, found.values.diag(), atol=1e-3, rtol=0
    )
    wide = found.to(a[0].double())
    assert wide.values.dtype == wide.vectors.dtype == torch.float64
    assert torch.equal(wide.vectors.float(), found.vectors)
    assert (wide.residual, wide.products) == (found.residual, found.products)


class Iterations:
    """Stands for LOBPCG: the lowest pairs of a diagonal matrix, in no order, with values that are
    off by `errors` in the first calls, pair by pair; with what it was given."""

    def __init__(self, diagonal: Tensor, errors: list[dict[int, float]]) -> None:
        self.diagonal, self.errors = diagonal, errors
        self.starts: list[np.ndarray] = []
        self.settings: list[dict[str, Any]] = []

    def __call__(
        self, a: Callable[[np.ndarray], np.ndarray], start: np.ndarray, **settings: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        call, count = len(self.starts), start.shape[1]
        self.starts.append(start)
        self.settings.append({"a": a, **settings})
        values, order = self.diagonal.sort()
        values, vectors = values[:count].clone(), torch.eye(len(values)).double()[:, order[:count]]
        for pair, error in (self.errors[call] if call < len(self.errors) else {}).items():
            values[pair] += error
        return values.flip(0).numpy(), vectors.flip(1).numpy()


def iterated(
    negative: int,
    errors: list[dict[int, float]],
    monkeypatch: pytest.MonkeyPatch,
    most: int = 64,
) -> tuple[NegativePairs, Iterations]:
    """Of the diagonal matrix of so many values −1, −1.1, … and of 0, 1, 2, …"""
    values = [*torch.arange(300.0 - negative), *(-1.0 - 0.1 * k for k in range(negative))]
    fake = Iterations(torch.tensor(values, dtype=torch.float64), errors)
    monkeypatch.setattr("scipy.sparse.linalg.lobpcg", fake)
    found = negative_pairs(
        lambda x: x * fake.diagonal, lambda r: 2 * r, fake.diagonal, spared=SPARED, most=most
    )
    return found, fake


class TestIterations:
    def test_what_is_iterated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found, fake = iterated(2, [], monkeypatch)
        (given,) = fake.settings
        assert given["largest"] is False
        assert given["tol"] == WANTED * SPARED
        assert given["maxiter"] == ROUND
        x = np.random.default_rng(1).standard_normal((300, 3))
        for some in (x, x[:, 0]):
            diagonal = fake.diagonal.numpy()[(...,) + (None,) * (some.ndim - 1)]
            np.testing.assert_allclose(given["a"](some), diagonal * some)
            np.testing.assert_allclose(given["M"](some), 2 * some)
        assert np.linalg.matrix_rank(fake.starts[0]) == FIRST
        assert found.products == FIRST  # of the residuals
        assert torch.equal(found.values, torch.tensor([-1.1, -1.0], dtype=torch.float64))
        assert found.residual == 0.0
        assert found.spared == SPARED

    def test_what_is_drawn_is_the_same_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one, other = (iterated(20, [], monkeypatch)[1].starts for _ in range(2))
        assert len(one) == len(other) == 3
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)

    @pytest.mark.parametrize(
        ("negative", "widths"), [(7, [8]), (8, [8, 16]), (20, [8, 16, 32]), (40, [8, 16, 32, 41])]
    )
    def test_more_pairs_until_one_is_spared(
        self, negative: int, widths: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From those that are there, with new directions; one more than the most that there may be
        tells that there are no more."""
        found, fake = iterated(negative, [], monkeypatch, most=40)
        assert [start.shape[1] for start in fake.starts] == widths
        assert torch.equal(found.values, fake.diagonal.sort().values[:negative])
        assert torch.equal(found.vectors * fake.diagonal, found.values[:, None] * found.vectors)
        assert found.products == sum(widths)
        order = fake.diagonal.argsort()
        for before, start in zip(widths, fake.starts[1:], strict=False):
            known = torch.eye(300, dtype=torch.float64)[:, order[:before]]
            np.testing.assert_array_equal(start[:, :before], known.numpy())
            assert np.linalg.matrix_rank(start) == start.shape[1]

    def test_more_than_there_may_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(InputError, match=r"more than 40 eigenvalues .* below -0.25"):
            iterated(41, [], monkeypatch, most=40)
        with pytest.raises(InputError, match="more than 3 eigenvalues"):
            iterated(5, [], monkeypatch, most=3)

    @pytest.mark.parametrize(
        ("pair", "error", "rounds"),
        [
            (0, 0.99 * ACCURATE * SPARED, 1),
            (0, 1.01 * ACCURATE * SPARED, 2),
            (1, -1.01 * ACCURATE * SPARED, 2),
            (2, -0.49 * SPARED, 1),  # the next one may be off by no more than it is above
            (2, -0.51 * SPARED, 2),
            (2, -0.5 * SPARED, 2),
            (3, 0.9, 1),  # of one above it nothing hangs on
        ],
    )
    def test_what_is_accurate_enough(
        self, pair: int, error: float, rounds: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else it goes on from the vectors that it has."""
        found, fake = iterated(2, [{pair: error}], monkeypatch)
        assert len(fake.starts) == rounds
        assert found.products == rounds * FIRST
        assert len(found.values) == 2
        if rounds == 1:
            assert found.residual == pytest.approx(abs(error) if pair < 2 else 0.0)
        else:
            order = fake.diagonal.argsort()[:FIRST]
            known = torch.eye(300, dtype=torch.float64)[:, order]
            np.testing.assert_array_equal(fake.starts[1], known.numpy())

    def test_as_often_as_allowed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A residual of what does not decide is not told."""
        off = [{0: 0.1, 2: -0.2, 3: 0.9}] * (ROUNDS - 1)
        _, fake = iterated(2, off, monkeypatch)
        assert len(fake.starts) == ROUNDS
        with pytest.raises(InputError, match=rf"in {ROUND * ROUNDS} iter.* is 0.2 where 0.25 dec"):
            iterated(2, [*off, *off[:1]], monkeypatch)

    def test_so_often_again_for_more_pairs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Seven rounds do not tell the eighth pair from those above, and then it is one more."""
        hidden, off = [{7: 0.9}] * (ROUNDS - 1), [{0: 0.1}] * (ROUNDS - 1)
        found, fake = iterated(8, [*hidden, {}, *off], monkeypatch)
        assert len(fake.starts) == 2 * ROUNDS
        assert len(found.values) == 8
