"""Spectra of a whole curvature and of its blocks, against dense eigenvalues."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.fidelity.spectra import diagonalised, leading_by_block, spectrum
from tests.zoo import zoo_problem

RUNGS = [cf.Diagonal(), cf.KFAC(), cf.EKFAC(), cf.BlockGGN(), cf.GGN(), cf.Hessian()]


def block_of(curvature: cf.Curvature, k: int) -> Tensor:
    index = curvature.blocks[k].index
    return curvature.to_dense()[index][:, index]


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_of_the_whole_and_of_each_block(rung: cf.Rung) -> None:
    curvature = cf.fit(zoo_problem("mlp"), rung)
    found = spectrum(curvature)
    every = torch.linalg.eigvalsh(curvature.to_dense()).flip(0)
    torch.testing.assert_close(found.eigenvalues, every, rtol=1e-9, atol=1e-12)
    assert [name for name, _ in found.blocks] == [block.name for block in curvature.blocks]
    for k, (_, values) in enumerate(found.blocks):
        wanted = torch.linalg.eigvalsh(block_of(curvature, k)).flip(0)
        torch.testing.assert_close(values, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_with_eigenvectors_at_hand(rung: cf.Rung) -> None:
    """The same matrix and inverse; of each block what it says its eigenvectors are."""
    curvature = cf.fit(zoo_problem("mlp"), rung)
    found = diagonalised(curvature)
    assert len(found.blocks) == len(curvature.blocks)
    torch.testing.assert_close(found.to_dense(), curvature.to_dense(), rtol=1e-9, atol=1e-12)
    v = torch.randn(3, curvature.parameters.count, generator=torch.Generator().manual_seed(0))
    at = cf.Absolute(1.0)
    solved = [one.solve(v.double(), at) for one in (found, curvature)]
    torch.testing.assert_close(solved[0], solved[1], rtol=1e-8, atol=1e-10)
    for block in found.blocks:  # no further decomposition
        assert block.operator.diagonalised() is block.operator


@pytest.mark.parametrize("count", [1, 3, 10_000])
def test_the_leading_ones_of_each_block(count: int) -> None:
    curvature = cf.fit(zoo_problem("mlp"), cf.BlockGGN())
    for k, block in enumerate(curvature.blocks):
        found = leading_by_block(curvature, count)[block.name]
        size = min(count, block.size)
        assert found.vectors.shape == (block.size, size)
        assert found.eigenvalues.shape == (size,)
        dense = block_of(curvature, k)
        torch.testing.assert_close(
            dense @ found.vectors, found.vectors * found.eigenvalues, rtol=1e-8, atol=1e-10
        )
        wanted = torch.linalg.eigvalsh(dense).flip(0)[:size]
        torch.testing.assert_close(found.eigenvalues, wanted, rtol=1e-9, atol=1e-12)
