"""The truth by which a damping is chosen: half of the queries choose, the other half reports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from curvfluence.errors import InputError
from curvfluence.fidelity import SubsetTruth
from curvfluence.fidelity.lds import query_halves


@pytest.mark.parametrize("shape", [(3, 2), (3, 9), (8, 2), (10, 7)])
@pytest.mark.parametrize("seed", [0, 3])
def test_judge(shape: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth, predicted = (torch.randn(shape, generator=generator) for _ in range(2))
    found = SubsetTruth(torch.ones(shape[0], 5), truth, seed).judge(predicted)
    each = [spearmanr(predicted[:, q], truth[:, q]).statistic for q in range(shape[1])]
    halves = query_halves(shape[1], seed)
    for got, half in zip(found, (halves, ~halves), strict=True):
        wanted = sum(r for r, own in zip(each, half, strict=True) if own) / half.sum()
        assert got == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("left_out", "values", "said"),
    [
        (torch.ones(4), torch.ones(4, 3), "left_out must be a matrix"),
        (torch.ones(4, 5), torch.ones(4), "values must be a matrix"),
        ([[1.0]], torch.ones(4, 3), "left_out must be a matrix .* seen list"),
        (torch.ones(4, 5), torch.ones(5, 3), "4 groups were left out, .* values for 5"),
        (torch.ones(2, 5), torch.ones(2, 3), "at least 3 groups .* seen 2 and 3"),
        (torch.ones(4, 5), torch.ones(4, 1), "2 queries .* seen 4 and 1"),
    ],
)
def test_what_is_none(left_out: Any, values: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        SubsetTruth(left_out, values)
