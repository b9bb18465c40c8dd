"""Spectra of the rungs side by side: eigenvalues, effective dimension, shared eigenspaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Curvature
from curvfluence.errors import InputError


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of C, descending, over all parameters and block by block."""

    eigenvalues: Tensor
    blocks: tuple[tuple[str, Tensor], ...]

    @property
    def negative(self) -> Tensor:
        """The eigenvalues below 0 beyond rounding (−1e-6 of the largest in float32)."""
        floor = 10 * torch.finfo(self.eigenvalues.dtype).eps * float(self.eigenvalues.abs().max())
        return self.eigenvalues[self.eigenvalues < -floor]

    @property
    def negative_share(self) -> float:
        """Σ |negative| / Σ |all|."""
        total = float(self.eigenvalues.abs().sum())
        return float(self.negative.abs().sum()) / total if total else 0.0

    def effective_dimension(self, damping: float) -> float:
        """Σ_i max(μ_i, 0) / (max(μ_i, 0) + λ): how many directions stand above λ > 0."""
        if not damping > 0:
            raise InputError(f"the effective dimension needs a damping > 0; seen {damping}")
        positive = self.eigenvalues.double().clamp_min(0)
        return float((positive / (positive + damping)).sum())

    def condition(self, damping: float) -> float:
        """(max |μ| + λ) / (min |μ| + λ): of the damped matrix, |μ| for an indefinite one."""
        sizes = self.eigenvalues.double().abs()
        return float((sizes.max() + damping) / (sizes.min() + damping))


def diagonalised(curvature: Curvature) -> Curvature:
    """The same matrix and inverse with the eigenvectors of each block at hand, for whoever asks
    for them more than once. Cost: an eigendecomposition of each dense block."""
    blocks = (replace(b, operator=b.operator.diagonalised()) for b in curvature.blocks)
    return replace(curvature, blocks=tuple(blocks))


def spectrum(curvature: Curvature) -> Spectrum:
    """All P eigenvalues. Cost: an eigendecomposition (values only) of each dense block."""
    blocks = tuple(
        (block.name, block.operator.eigenvalues().sort(descending=True).values)
        for block in curvature.blocks
    )
    every = torch.cat([values for _, values in blocks]).sort(descending=True).values
    return Spectrum(every, blocks)


@dataclass(frozen=True, eq=False)
class Leading:
    """The `count` largest eigenvalues of C or of one of its blocks, descending, and their
    eigenvectors: orthonormal columns, [size, count]."""

    eigenvalues: Tensor
    vectors: Tensor


def leading_by_block(curvature: Curvature, count: int) -> dict[str, Leading]:
    """Of each block by its name, `count` of them or as many as it has.

    Cost: an eigendecomposition of each dense block.
    """
    return {
        block.name: Leading(*block.operator.eigenbasis().leading(min(count, block.size)))
        for block in curvature.blocks
    }


def leading_space(curvature: Curvature, by_block: Mapping[str, Leading], count: int) -> Tensor:
    """Eigenvectors of the `count` largest eigenvalues of C, [P, count], from those of its blocks
    (`leading_by_block`, of as many)."""
    size = curvature.parameters.count
    columns: list[Tensor] = []
    for block in curvature.blocks:
        vectors = by_block[block.name].vectors
        full = vectors.new_zeros(size, vectors.shape[1])
        full[block.index] = vectors
        columns.append(full)
    values = torch.cat([by_block[block.name].eigenvalues for block in curvature.blocks])
    return torch.cat(columns, dim=1)[:, values.argsort(descending=True)[:count]]


def overlap(a_pk: Tensor, b_pk: Tensor, ranks: Sequence[int]) -> tuple[float, ...]:
    """‖A_kᵀ B_k‖²/k for each rank k: 1 where the leading k-dimensional eigenspaces agree, about
    k/P where they have nothing to do with each other."""
    gram = (a_pk.T @ b_pk).double().square()
    return tuple(float(gram[:k, :k].sum()) / k for k in ranks)
