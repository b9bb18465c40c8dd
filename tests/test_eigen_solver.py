"""An eigen-solver that does not converge: a sturdier one, and the result says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import scipy.linalg
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.operators.decomposed import FAILED, eigh, eigvalsh
from curvfluence.errors import CurvfluenceWarning, SingularError
from curvfluence.runtime.said import noted, say
from curvfluence.study import StudySpec, run_study
from tests.problems import chain_problem

SOLVERS = {name: getattr(torch.linalg, name) for name in ("eigh", "eigvalsh")}


def failing(monkeypatch: pytest.MonkeyPatch, *dtypes: torch.dtype) -> None:
    for name, solver in SOLVERS.items():

        def failed(matrix: Tensor, own: Any = solver) -> object:
            if matrix.dtype in dtypes:
                raise FAILED("the algorithm failed to converge")
            return own(matrix)

        monkeypatch.setattr(torch.linalg, name, failed)


def symmetric(dtype: torch.dtype) -> Tensor:
    x = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x + x.T).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("failed", [(torch.float32,), (torch.float32, torch.float64)])
def test_the_same_by_a_sturdier_way(
    dtype: torch.dtype, failed: tuple[torch.dtype, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = symmetric(dtype)
    wanted = torch.linalg.eigvalsh(matrix.double())
    failing(monkeypatch, *failed)
    with noted() as said:
        values, vectors = eigh(matrix)
        only = eigvalsh(matrix)
    atol = 1e-5 if dtype is torch.float32 else 1e-12
    torch.testing.assert_close(values.double(), wanted, atol=atol, rtol=0)
    torch.testing.assert_close(only, values)
    torch.testing.assert_close((vectors * values) @ vectors.T, matrix, atol=atol, rtol=0)
    assert values.dtype == vectors.dtype == dtype
    if dtype not in failed:
        assert not said
    else:
        way = "QR iteration in float64" if torch.float64 in failed else "float64"
        (note,) = said
        assert "12 × 12 did not converge" in note
        assert note.endswith(f"done by {way}" if "QR" in way else f"done in {way}")


def test_where_none_converges(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, torch.float32, torch.float64)

    def failed(*_: object, **__: object) -> None:
        raise scipy.linalg.LinAlgError("eig algorithm did not converge")

    monkeypatch.setattr("curvfluence.curvature.operators.decomposed.scipy_eigh", failed)
    with pytest.raises(SingularError, match="nor by QR iteration"):
        eigh(symmetric(torch.float32))


@pytest.mark.parametrize("rung", [cf.EKFAC(), cf.Hessian(), cf.BlockGGN(), cf.Shampoo()], ids=str)
def test_scores_say_so(rung: cf.Rung, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = chain_problem()
    wanted = cf.influence(problem, rung).values
    failing(monkeypatch, torch.float32, torch.float64)
    found = cf.influence(problem, rung)
    torch.testing.assert_close(found.values, wanted, rtol=1e-4, atol=1e-9)
    if not isinstance(rung, cf.BlockGGN):  # which is inverted by Cholesky factors
        assert any("did not converge" in note for note in found.notes)


def test_said_where_nobody_listens() -> None:
    with pytest.warns(CurvfluenceWarning, match="a word"):
        say("a word")
    with noted() as notes:
        say("a word")
        say("a word")
    assert notes == ["a word"]


@pytest.mark.parametrize("protocol", ["clean", "table1"])
def test_a_study_says_so_of_every_rung(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of fits, and of decompositions that are made for spectra, inverses and sweeps."""
    failing(monkeypatch, torch.float32, torch.float64)
    spec = StudySpec(
        "wine",
        subsets=4,
        models=1,
        orders=1,
        replicates=200,
        rungs=("Hessian", "GGN", "BlockGGN", "KFAC"),
        protocol=protocol,
        bregman=False,
        costs=False,
        hybrids=False,
    )
    for rung in run_study(spec, tmp_path, threads=1).results.rungs:
        assert any("did not converge" in note for note in rung.notes), rung.name
