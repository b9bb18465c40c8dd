"""Operations of a piece of work, whichever library takes them."""

from __future__ import annotations

from typing import cast

import pytest
import torch

import curvfluence as cf
from curvfluence.curvature.operators.decomposed import quickest
from curvfluence.jacobian.terms import blas, gram
from curvfluence.study.needs import needs
from tests.problems import make, mlp


@pytest.fixture(params=[False, True], ids=["torch", "NumPy"])
def by_numpy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    taken = cast(bool, request.param)
    monkeypatch.setattr(blas, "_is_faster", lambda: taken)
    monkeypatch.setattr(blas, "one_thread", lambda: taken)
    return taken


def test_products_and_factorisations(by_numpy: bool) -> None:
    x, y = torch.randn(5, 300, 200), torch.randn(200, 100)
    assert needs(lambda: blas.matmul(x, y)).flops == 2 * 5 * 300 * 200 * 100
    wide = torch.randn(300, 300, dtype=torch.float64)
    assert needs(lambda: quickest(wide + wide.T)).flops == 9 * 300**3
    rows = torch.randn(50, 80)
    assert needs(lambda: gram(rows)).flops == (1 if by_numpy else 2) * 50 * 80**2


def test_a_fit(by_numpy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many, but for Gram matrices by symmetry, which are made as narrow ones here."""
    monkeypatch.setattr(blas, "SMALL", 0)
    monkeypatch.setitem(gram.__globals__, "NARROW", 10_000)
    problem = make(mlp(300, 20, 4), cf.CrossEntropy(), shape=(300,), outputs=4, n=160)
    cf.fit(problem, cf.KFAC(cf.Empirical()))  # the first tries the model
    found = needs(lambda: cf.fit(problem, cf.KFAC(cf.Empirical()))).flops
    assert found > 9 * (301**3 + 21**3 + 20**3 + 4**3) + 2 * 160 * (301**2 + 21**2)
    assert blas.takes(torch.randn(3)) == by_numpy
    monkeypatch.setattr(blas, "one_thread", lambda: False)
    assert needs(lambda: cf.fit(problem, cf.KFAC(cf.Empirical()))).flops == found


def test_nothing_is_counted_outside() -> None:
    with blas.counting() as outer:
        blas.taken(3)
        with blas.counting() as inner:
            blas.taken(5)
        blas.taken(4)
    blas.taken(100)
    assert (outer, inner) == ([7], [5])
