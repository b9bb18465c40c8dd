"""Factors of fewer outer products than they are wide: decomposed in their range alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.operators import decomposed
from curvfluence.curvature.operators.decomposed import eigh_of_rank

WIDE, RANK = 300, 40


def deficient(rank: int = RANK, n: int = WIDE) -> Tensor:
    """Eigenvalues over twelve decades."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(n, rank, generator=generator, dtype=torch.float64)).Q
    values = torch.logspace(2, -10, rank, dtype=torch.float64)
    return (basis * values) @ basis.T


@pytest.mark.parametrize("most", [RANK, 2 * RANK])
def test_is_the_decomposition(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = deficient()
    sizes = list[int]()
    own = decomposed.quickest

    def watched(one: Tensor) -> object:
        sizes.append(len(one))
        return own(one)

    monkeypatch.setattr(decomposed, "quickest", watched)
    values, vectors = eigh_of_rank(matrix, most, 1e-14)
    assert max(sizes) < WIDE / 2  # nothing of the whole
    eye = torch.eye(WIDE, dtype=torch.float64)
    assert torch.allclose(vectors.T @ vectors, eye, atol=1e-13)
    assert torch.allclose((vectors * values) @ vectors.T, matrix, atol=1e-12)
    assert bool((values.diff() >= 0).all())
    assert torch.allclose(values, own(matrix)[0], atol=1e-12)
    assert int((values == 0).sum()) >= WIDE - most - decomposed.MARGIN


def test_more_than_was_said_is_seen() -> None:
    """The bound on the rank rests on the examples that were probed: others may have more."""
    matrix = deficient() + 1e-3 * torch.eye(WIDE, dtype=torch.float64)
    values, vectors = eigh_of_rank(matrix, RANK, 1e-14)
    assert torch.equal(values, decomposed.quickest(matrix)[0])
    assert torch.allclose((vectors * values) @ vectors.T, matrix, atol=1e-12)


def wide(dtype: torch.dtype) -> cf.Problem:
    """A convolution of 288 inputs over 9 examples of 4 positions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(32, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3))
        x = torch.randn(12, 32, 4, 4)
    y = torch.arange(12) % 3
    x, model = x.to(dtype), model.to(dtype)
    return cf.Problem(model, cf.CrossEntropy(), (x[:9], y[:9]), (x[9:], y[9:]), weight_decay=1e-3)


RUNGS: dict[str, cf.Rung] = {
    "K-FAC": cf.KFAC(),
    "EK-FAC": cf.EKFAC(),
    "reduce": cf.KFAC(sharing=cf.Reduce()),
    # Rows leave the range of their merged factor, where Λ is another in each basis: in float64 that
    # is one of the space's own, and in float32 rounding's.
    "EK-FAC reduce": cf.EKFAC(sharing=cf.Reduce()),
    "Shampoo": cf.Shampoo(),
    "sampled": cf.EKFAC(cf.MonteCarlo(1), values=cf.Type2()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RUNGS)
def test_scores_are_those_of_whole_decompositions(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "EK-FAC reduce" and dtype == torch.float32:
        pytest.skip("rounding decides")
    damping = cf.Absolute(1e-2)
    thin = list[int]()
    qr = torch.linalg.qr

    def watched(one: Tensor, mode: str = "reduced") -> object:
        if mode == "complete":  # of a range
            thin.append(len(one))
        return qr(one, mode=mode)

    monkeypatch.setattr(torch.linalg, "qr", watched)
    with pytest.warns() if name == "sampled" else monkeypatch.context():
        found = cf.influence(wide(dtype), RUNGS[name], damping=damping).values
    assert thin  # 289 inputs of rank 36 or 9
    monkeypatch.setattr(decomposed, "THIN", 0.0)
    thin.clear()
    with pytest.warns() if name == "sampled" else monkeypatch.context():
        wanted = cf.influence(wide(dtype), RUNGS[name], damping=damping).values
    assert not thin
    close = 1e-4 if dtype == torch.float32 else 1e-10
    assert float((found - wanted).norm() / wanted.norm()) <= close
