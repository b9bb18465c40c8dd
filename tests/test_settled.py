"""Eigenvectors of equal eigenvalues: a basis that the matrix alone decides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvfluence.curvature.operators.decomposed import BEYOND_FLOAT64, narrowed, settled
from curvfluence.curvature.operators.kronecker import rowwise_eigh
from curvfluence.curvature.operators.truncated_kronecker import leading_basis
from tests.operators import drawn

VALUES = torch.tensor([0.0, 0.0, 0.0, 0.3, 1.0, 1.0, 1.0 + 1e-3, 2.0], dtype=torch.float64)
APART = 1e-9


def basis(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(len(VALUES), len(VALUES), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(square).Q


def turned(vectors: Tensor) -> Tensor:
    """Another basis of the spaces of equal eigenvalues, which is as right."""
    blocks = [torch.linalg.qr(drawn(k, k)).Q for k in (3, 1, 2, 1, 1)]
    return vectors @ torch.block_diag(*blocks)


def test_any_basis_gives_the_same() -> None:
    """Up to signs, of the whole matrix and of no other."""
    vectors = basis()
    found, again = (settled(VALUES, x, APART) for x in (vectors, turned(vectors)))
    torch.testing.assert_close((found.T @ again).abs(), torch.eye(len(VALUES)).double())
    torch.testing.assert_close(found.T @ found, torch.eye(len(VALUES)).double())
    for x in (vectors, found):
        torch.testing.assert_close((found * VALUES) @ found.T, (x * VALUES) @ x.T)


def test_what_is_apart_stays() -> None:
    vectors = basis()
    found = settled(VALUES, vectors, APART)
    for k in (3, 6, 7):
        assert torch.equal(found[:, k], vectors[:, k])
    assert not torch.allclose(found[:, 4], vectors[:, 4])
    torch.testing.assert_close(settled(VALUES, vectors, 0.0)[:, 3:4], vectors[:, 3:4])
    assert torch.equal(settled(VALUES, basis(), -1.0), vectors)  # nothing is alike


def test_a_chain_of_small_steps_is_one_space() -> None:
    """Each no further than that from the next, however far the first is from the last."""
    values = torch.linspace(0, 7 * APART, 8, dtype=torch.float64)
    found, again = (settled(values, x, 1.01 * APART) for x in (basis(), basis(1)))
    torch.testing.assert_close((found.T @ again).abs(), torch.eye(8).double())


@pytest.mark.parametrize("moved", [0.0, 1e-16])
def test_of_factors(moved: float) -> None:
    """Of a factor in float64, by rounding of its trace; in float32 rounding has told them apart."""
    vectors = basis()
    matrix = (vectors * VALUES) @ vectors.T
    other = matrix + moved * (drawn(8, 8) + drawn(8, 8).T)
    (_, found), (_, again) = (rowwise_eigh(x, len(x)) for x in (matrix, other))
    assert found.is_contiguous()
    torch.testing.assert_close((found.T @ again).abs(), torch.eye(8).double(), rtol=0, atol=1e-10)
    wanted = settled(VALUES, vectors, APART)
    torch.testing.assert_close((found.T @ wanted).abs(), torch.eye(8).double(), atol=1e-10, rtol=0)
    single = rowwise_eigh(matrix.float(), 8)[1]
    assert single.dtype == torch.float32
    assert not torch.allclose((single.double().T @ wanted).abs(), torch.eye(8).double(), atol=0.1)


class TestNarrowed:
    """Eigenvectors of inputs that hardly any example has."""

    def test_what_float64_cannot_tell_is_nothing(self) -> None:
        vectors = torch.tensor([[1.0, 2.0**-56, -(2.0**-58)], [-(2.0**-56), 0.5, 1e-30]]).double()
        wanted = torch.tensor([[1.0, 2.0**-56, 0.0], [-(2.0**-56), 0.5, 0.0]])
        found = narrowed(vectors.T.contiguous().T, torch.float32)
        assert found.is_contiguous()
        assert torch.equal(found, wanted)
        assert torch.equal(narrowed(vectors, torch.float64), vectors)

    @pytest.mark.parametrize("leading", [False, True])
    def test_no_product_of_coordinates_is_subnormal(self, leading: bool) -> None:
        """Of pictures with pixels that are dark but for a trace in one of them."""
        x = torch.relu(drawn(40, 12)).float()
        x[:, 8:] = 0
        for k in range(8, 12):
            x[k, k] = 10.0 ** (7 - 2 * k)  # 1e-9 to 1e-15
        factor = x.T @ x / len(x)
        found = leading_basis(factor, 12, 9, bias=True) if leading else rowwise_eigh(factor, 12)
        basis = found[1]
        assert basis.dtype == torch.float32
        assert bool(((basis == 0) | (basis.abs() >= BEYOND_FLOAT64)).all())
