"""An eigen-solver that does not converge: a sturdier one, and the result says so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import curvfluence as cf
from curvfluence.curvature.operators import low_rank_search
from curvfluence.curvature.operators.decomposed import eigh, eigh_of_rank, share
from curvfluence.curvature.operators.low_rank import LowRank
from curvfluence.errors import CurvfluenceWarning, SingularError
from curvfluence.jacobian.terms import blas
from curvfluence.runtime import eigen_solver
from curvfluence.runtime.eigen_solver import FAILED, eigvalsh, pinv, svd
from curvfluence.runtime.said import noted, say
from curvfluence.study import StudySpec, run_study
from tests.problems import chain_problem, mlp

SOLVERS = {name: getattr(torch.linalg, name) for name in ("eigh", "eigvalsh")}


def failing(monkeypatch: pytest.MonkeyPatch, *dtypes: torch.dtype) -> None:
    for name, solver in SOLVERS.items():

        def failed(matrix: Tensor, own: Any = solver) -> object:
            if matrix.dtype in dtypes:
                raise FAILED("the algorithm failed to converge")
            return own(matrix)

        monkeypatch.setattr(torch.linalg, name, failed)
    by_numpy = np.linalg.eigh

    def not_found(matrix: Any) -> object:
        if torch.from_numpy(matrix).dtype in dtypes:
            raise np.linalg.LinAlgError("Eigenvalues did not converge")
        return by_numpy(matrix)

    monkeypatch.setattr(np.linalg, "eigh", not_found)


def symmetric(dtype: torch.dtype) -> Tensor:
    x = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x + x.T).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_that_are_not_finite(dtype: torch.dtype) -> None:
    """Which torch finds out at some sizes: no other way does better."""
    matrix = symmetric(dtype)
    matrix[0, 0] = torch.nan
    for solve in (eigh, eigvalsh):
        with noted() as said, pytest.raises(SingularError, match=r"12 × 12 .* is not finite"):
            solve(matrix)
        assert not said


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

    monkeypatch.setattr("curvfluence.runtime.eigen_solver.scipy_eigh", failed)
    with pytest.raises(SingularError, match="nor by QR iteration"):
        eigh(symmetric(torch.float32))


@pytest.mark.parametrize("failed", [(torch.float32,), (torch.float32, torch.float64)])
def test_each_of_a_batch(failed: tuple[torch.dtype, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    one = symmetric(torch.float32)
    batch = torch.stack([one, 2 * one, -one, one @ one, one + 1, 0 * one]).view(2, 3, 12, 12)
    wanted = torch.linalg.eigvalsh(batch)
    failing(monkeypatch, *failed)
    with noted() as said:
        values, vectors = eigen_solver.eigh(batch)
        only = eigvalsh(batch)
    torch.testing.assert_close(values, wanted, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(only, values)
    torch.testing.assert_close(
        (vectors * values[..., None, :]) @ vectors.mT, batch, atol=1e-4, rtol=1e-5
    )
    assert len(said) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(12, 12), (2, 3, 4, 5), (2, 5, 4)])
def test_pseudoinverses(
    dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of matrices of a rank that is not full, by the sturdier way as by torch's own."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    matrix[..., -1] = matrix[..., 0] - matrix[..., 1]
    wanted = pinv(matrix)

    def failed(*_: object, **__: object) -> Tensor:
        raise FAILED("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "pinv", failed)
    atol = 1e-4 if dtype is torch.float32 else 1e-12
    torch.testing.assert_close(pinv(matrix), wanted, atol=atol, rtol=0)
    monkeypatch.setattr(torch.linalg, "svd", failed)
    with noted() as said:
        torch.testing.assert_close(pinv(matrix), wanted, atol=atol, rtol=0)
    assert said
    with pytest.raises(SingularError, match="is not finite"):
        pinv(matrix * torch.nan)


def test_nobody_asks_the_fast_one_alone() -> None:
    """But where NumPy is quicker and torch comes after it."""
    source = Path(cf.__file__).parent
    found = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if re.search(r"linalg\.(eig|svd|pinv)", path.read_text())
    }
    assert found == {"runtime/eigen_solver.py", "curvature/operators/decomposed.py"}


@pytest.mark.parametrize(
    ("options", "rung"),
    [
        ({"leverage": True}, cf.KFAC()),
        ({}, cf.GGN(cf.inversion.SelectedRows(20))),
        ({}, cf.GGN(cf.inversion.ConjugateGradients())),
    ],
    ids=str,
)
def test_small_ones_on_the_way(
    options: dict[str, Any], rung: cf.Rung, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of leverages, of the columns of an example, of searched directions."""

    def own(o: Tensor, t: Tensor) -> Tensor:
        return cross_entropy(o, t, reduction="none")

    def scored() -> cf.Scores:
        torch.manual_seed(0)
        x, y = torch.randn(34, 5).double(), torch.randint(3, (34,))
        model = mlp(5, 4, 3).double()
        problem = cf.Problem(model, cf.CustomLoss(own), (x[:30], y[:30]), (x[30:], y[30:]))
        return cf.influence(problem, rung, damping=cf.Absolute(0.1), **options)

    wanted = scored()
    failing(monkeypatch, torch.float32, torch.float64)
    with noted() as said:  # by what is made once the fit is there
        found = scored()
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-6, atol=1e-9)
    assert any("did not converge" in note for note in (*found.notes, *said))


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


class TestByNumPy:
    """Where torch and NumPy have one thread each and NumPy multiplies faster."""

    @pytest.fixture(autouse=True)
    def _one_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blas, "_is_faster", lambda: True)
        monkeypatch.setattr(blas, "one_thread", lambda: True)

    def wide(self, n: int = 256) -> Tensor:
        x = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return x + x.T

    def test_which(self) -> None:
        assert blas.is_quicker(self.wide())
        assert not blas.is_quicker(self.wide(255))
        assert not blas.is_quicker(self.wide().float())  # NumPy would do it in float64
        assert not blas.is_quicker(self.wide().to("meta"))

    def test_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        matrix = self.wide()
        kept = matrix.clone()
        wanted = torch.linalg.eigvalsh(matrix)
        monkeypatch.setattr(torch.linalg, "eigh", None)  # not called
        values, vectors = eigh(matrix)
        assert torch.equal(matrix, kept)
        torch.testing.assert_close(values, wanted, rtol=0, atol=1e-11)
        torch.testing.assert_close((vectors * values) @ vectors.T, matrix, rtol=0, atol=1e-11)
        eye = torch.eye(256, dtype=torch.float64)
        torch.testing.assert_close(vectors.T @ vectors, eye, rtol=0, atol=1e-12)

    def test_where_it_does_not_converge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        failing(monkeypatch, torch.float64)
        matrix = self.wide()
        with noted() as said:
            values, _ = eigh(matrix)
        (note,) = said
        assert "256 × 256 did not converge in float64" in note
        torch.testing.assert_close(values, SOLVERS["eigvalsh"](matrix), rtol=0, atol=1e-11)


class TestThin:
    def test_share(self) -> None:
        """1 where the whole is decomposed, 1.3 of the share of its rank else."""
        assert share(256, 2) == pytest.approx(1.3 * 10 / 256)
        assert share(1000, 392) == pytest.approx(1.3 * 0.4)  # 400 of 1000: not above
        assert share(1000, 393) == share(255, 2) == share(300, 300) == 1.0

    def test_the_same_twice(self) -> None:
        """What is drawn for the range is the same, whatever torch's own generator is at."""
        half = torch.randn(300, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        matrix = half @ half.T
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = eigh_of_rank(matrix, 5, 1e-12)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        for a, b in zip(first, eigh_of_rank(matrix, 5, 1e-12), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize(("n", "most"), [(256, 90), (300, 112), (256, 95), (255, 3)])
    def test_where_it_begins(self, n: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """From 256 rows up, of at most two fifths of them with the margin."""
        sizes: list[int] = []

        def seen(matrix: Tensor) -> tuple[Tensor, Tensor]:
            sizes.append(len(matrix))
            return SOLVERS["eigh"](matrix)

        monkeypatch.setattr("curvfluence.curvature.operators.decomposed.eigh", seen)
        half = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        eigh_of_rank(half @ half.T, most, 1e-10)
        thin = n >= 256 and most + 8 <= 0.4 * n
        assert sizes == [most + 8 if thin else n]

    def test_of_float32(self) -> None:
        half = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
        values, vectors = eigh_of_rank(half @ half.T, 5, 1e-5)
        assert values.dtype == vectors.dtype == torch.float32
        for kept in (eigh(half @ half.T), eigh((half @ half.T).double())):
            assert kept[0].dtype == kept[1].dtype


def test_why_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """What LAPACK said is the cause of the error."""
    failing(monkeypatch, torch.float32, torch.float64)

    def never(*_: object, **__: object) -> None:
        raise scipy.linalg.LinAlgError

    monkeypatch.setattr("curvfluence.runtime.eigen_solver.scipy_eigh", never)
    for solve in (eigh, eigvalsh):
        for dtype in ("float32", "float64"):
            with pytest.raises(SingularError, match=f"did not converge in {dtype}, nor") as caught:
                solve(symmetric(getattr(torch, dtype)))
            assert isinstance(caught.value.__cause__, FAILED)


class TestSingularValues:
    @pytest.fixture
    def failed(self, monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
        dtypes: set[torch.dtype] = set()
        own = torch.linalg.svd

        def failing(matrix: Tensor, **named: Any) -> Any:
            if matrix.dtype in dtypes:
                raise FAILED("the algorithm failed to converge")
            return own(matrix, **named)

        monkeypatch.setattr(torch.linalg, "svd", failing)
        return dtypes

    @pytest.mark.parametrize("shape", [(7, 4), (3, 4, 6)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("double", [False, True])
    def test_the_same_by_a_sturdier_way(
        self, shape: tuple[int, ...], dtype: torch.dtype, *, double: bool, failed: set[torch.dtype]
    ) -> None:
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
        wanted = torch.linalg.svd(matrix.double(), full_matrices=False)
        failed |= {torch.float32, torch.float64} if double else {torch.float32}
        with noted() as said:
            u, sigma, vh = svd(matrix)
        assert [one.shape for one in (u, sigma, vh)] == [one.shape for one in wanted]
        tolerance = 100 * torch.finfo(dtype).eps
        assert torch.allclose(sigma.double(), wanted[1], rtol=tolerance, atol=tolerance)
        assert torch.allclose(u * sigma[..., None, :] @ vh, matrix, atol=10 * tolerance)
        assert all("did not converge" in text for text in said)
        assert bool(said) == (double or dtype == torch.float32)

    def test_where_it_is_used(self, failed: set[torch.dtype]) -> None:
        failed |= {torch.float32, torch.float64}
        x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        with noted() as said:
            thin = LowRank.of(x, 1e-9)
            low_rank_search._truncated(x[0], 2)
        assert thin.rank == 4
        assert thin.error < 1e-9
        assert ["5 × 4" in said[0], "4 × 4" in said[1]] == [True, True]

    def test_none_converges(
        self, failed: set[torch.dtype], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failed |= {torch.float32, torch.float64}

        def no(*_: object, **__: object) -> None:
            raise scipy.linalg.LinAlgError("SVD did not converge")

        monkeypatch.setattr(eigen_solver, "scipy_svd", no)
        with pytest.raises(SingularError, match="of 3 × 2 did not converge in float32, nor by QR"):
            svd(torch.ones(3, 2))
