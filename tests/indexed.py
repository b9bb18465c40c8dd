"""What the tests of an index share."""

from __future__ import annotations

import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.indexing.index import Index
from curvfluence.problem.stream import Data

DAMPING = cf.Absolute(0.05)


def coordinates(index: Index) -> Tensor:
    """φ [N, d], as they were before they were scaled."""
    return index.record.scale * torch.cat(index.shards.phi).double()


def held(data: Data) -> cf.Examples:
    assert isinstance(data, cf.Examples)
    return data


def more(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (count,), generator=generator)
