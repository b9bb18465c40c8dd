"""Every operator against its own dense matrix: products, inverses, spectra, bases, distances."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.operators.dense import Dense
from curvfluence.curvature.operators.diagonal import DiagonalOperator
from curvfluence.curvature.operators.eigen import Eigen, Scaled
from curvfluence.curvature.operators.kronecker import (
    FactoredKronecker,
    InputBases,
    Kronecker,
    KroneckerEigen,
    basis_of,
    two_decays,
)
from curvfluence.curvature.operators.low_rank_inverse import LowRankInverse
from curvfluence.curvature.operators.low_rank_search import Sample
from curvfluence.curvature.operators.mean_eigenvalue import (
    of_spectrum,
)
from curvfluence.curvature.operators.operator import (
    Against,
    Diagonalised,
    Operator,
)
from curvfluence.curvature.operators.solution import Solution
from curvfluence.curvature.operators.symmetric import Symmetric
from curvfluence.curvature.places import LayerPart
from curvfluence.errors import InputError, SingularError
from curvfluence.jacobian.rows import Rows
from curvfluence.runtime import budget
from tests.operators import LAMBDA, PROBLEMS, blocks, cases, dense, drawn, inverted, rows_of

every = pytest.mark.parametrize(("name", "rung"), list(cases()))


@every
def test_products(name: str, rung: str) -> None:
    for block, _ in blocks(name, rung):
        operator, n = block.operator, block.size
        assert operator.size == n
        matrix = dense(operator)
        torch.testing.assert_close(matrix, matrix.T)
        torch.testing.assert_close(operator.to_dense(), matrix)
        for shape in ((n,), (3, n), (2, 3, n)):
            v = drawn(*shape)
            torch.testing.assert_close(operator @ v, v @ matrix)
        held = {
            (value.data_ptr(), value.shape): value.nbytes
            for value in vars(operator).values()
            if isinstance(value, Tensor)
        }
        assert operator.nbytes == sum(held.values())


@every
def test_inverses(name: str, rung: str) -> None:
    for block, decay in blocks(name, rung):
        operator, n = block.operator, block.size
        for shape in ((n,), (3, n), (2, 3, n)):
            v = drawn(*shape)
            found = list(operator.solve_many(v, decay, (LAMBDA, 3.0)))
            for damping, x in zip((LAMBDA, 3.0), found, strict=True):
                wanted = v @ inverted(operator, decay, damping)
                torch.testing.assert_close(x, wanted)
                torch.testing.assert_close(operator.solve(v, decay, damping), wanted)
            if not isinstance(operator, FactoredKronecker | Symmetric):
                again = operator.inverted(found[0], decay, LAMBDA)
                torch.testing.assert_close(again, v)


@every
def test_rows(name: str, rung: str) -> None:
    """Solved queries against rows of examples, whole, compressed, and as a quadratic."""
    queries, train = rows_of(name)
    for block, decay in blocks(name, rung):
        operator, places = block.operator, block.places
        g_q, g_n = (places.dense(rows)[:, 0] for rows in (queries, train))
        m = inverted(operator, decay, LAMBDA)
        for examples in (1, len(train), 10**6):  # in whichever coordinates are cheaper
            for cached in ((), (train,)):
                x = operator.solve_rows(places, queries, decay, LAMBDA, Against(examples, cached))
                torch.testing.assert_close(x.flat(), g_q @ m)
                torch.testing.assert_close(x.inner(train)[..., 0], g_q @ m @ g_n.T)
                few = x.compressed(1e-3)
                assert few.error <= 1e-3
                gap = (few.flat() - g_q @ m).norm(dim=1)
                assert bool((gap <= 1.001e-3 * (g_q @ m).norm(dim=1)).all())
        found = operator.quadratic(places, train, decay, LAMBDA)
        torch.testing.assert_close(found, ((g_n @ m) * g_n).sum(1))


@every
def test_rows_that_are_solved_some_after_others(
    name: str, rung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, train = rows_of(name)
    for block, decay in blocks(name, rung):
        operator, places = block.operator, block.places
        for against in (Against(1), Against(10**6)):
            whole = operator.solve_rows(places, queries, decay, LAMBDA, against)
            with monkeypatch.context() as patch:
                patch.setattr(budget, "FORMED", 1)
                patch.setattr("curvfluence.curvature.operators.kronecker.FEW_ROWS", 0)
                found = operator.solve_rows(places, queries, decay, LAMBDA, against)
            assert type(found) is type(whole)
            torch.testing.assert_close(found.flat(), whole.flat())
            torch.testing.assert_close(found.inner(train), whole.inner(train))


@every
def test_spectra(name: str, rung: str) -> None:
    for block, _ in blocks(name, rung):
        operator = block.operator
        matrix = dense(operator)
        wanted = torch.linalg.eigvalsh(matrix)
        scale = float(wanted.abs().max())
        found = operator.eigenvalues().sort().values
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12 * scale)
        torch.testing.assert_close(
            torch.tensor(operator.squared_norm()), matrix.square().sum(), check_dtype=False
        )
        torch.testing.assert_close(operator.diagonal_entries(), matrix.diagonal())
        mean = operator.mean_eigenvalue()
        assert mean.total == pytest.approx(float(wanted.abs().sum()))
        # Shampoo's are square roots, and so is what rounding leaves of zeros
        rounding = 1e-6 if rung == "Shampoo" else 1e-9
        assert mean.count >= int((wanted.abs() > rounding * scale).sum())


@every
def test_bases(name: str, rung: str) -> None:
    """U and Λ of `eigenbasis`, and what is read in it."""
    for block, _ in blocks(name, rung):
        operator, n = block.operator, block.size
        basis = operator.eigenbasis()
        vectors = basis.eigenvectors(torch.arange(n))
        torch.testing.assert_close(vectors @ vectors.T, torch.eye(n, dtype=torch.float64))
        matrix = vectors * basis.eigenvalues() @ vectors.T
        torch.testing.assert_close(matrix, dense(operator))
        some = torch.tensor([n - 1, 0])
        torch.testing.assert_close(basis.eigenvectors(some), vectors[:, some])
        for shape in ((), (3,), (2, 3)):
            v = drawn(*shape, n)
            torch.testing.assert_close(basis.coordinates(v), v @ vectors)
        other = drawn(n, n)
        other = other @ other.T
        torch.testing.assert_close(
            basis.diagonal_of(other), (vectors.T @ other @ vectors).diagonal()
        )
        changed = basis.with_eigenvalues(torch.arange(1.0, n + 1, dtype=torch.float64))
        numbered = vectors * torch.arange(1.0, n + 1, dtype=torch.float64) @ vectors.T
        torch.testing.assert_close(dense(changed), numbered)
        assert changed.mean_eigenvalue() == of_spectrum(changed.eigenvalues())
        values, leading = basis.leading(2)
        torch.testing.assert_close(values, basis.eigenvalues().sort(descending=True).values[:2])
        torch.testing.assert_close(dense(operator) @ leading, leading * values)
        whole = operator.diagonalised()
        torch.testing.assert_close(dense(whole), dense(operator))
        assert basis.eigenbasis() is basis
        assert basis.diagonalised() is basis


@every
def test_the_inverse_of_a_basis(name: str, rung: str) -> None:
    """An eigenbasis is inverted exactly, whatever its operator did."""
    for block, decay in blocks(name, rung):
        basis = block.operator.eigenbasis()
        if isinstance(block.operator, Symmetric):
            continue  # indefinite
        v = drawn(3, block.size)
        torch.testing.assert_close(
            basis.solve(v, decay, LAMBDA),
            torch.linalg.solve(dense(basis) + torch.diag(decay + LAMBDA), v.T).T,
        )


@pytest.mark.parametrize("small", [0, 2048])
@pytest.mark.parametrize("name", PROBLEMS[:4])
def test_distances(name: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """‖M − M'‖² between all operators of a block, also where no dense matrix is made."""
    monkeypatch.setattr("curvfluence.curvature.operators.diagonal.SMALL", small)
    by_block: dict[str, list[Operator]] = {}
    for rung in ("EKFAC", "KFAC", "Shampoo", "BlockGGN", "Diagonal"):
        for block, _ in blocks(name, rung):
            found = by_block.setdefault(block.name, [])
            found += [block.operator, block.operator.eigenbasis()]
            found += [Scaled(block.operator, 1.7)]
    for operators in by_block.values():
        for a in operators:
            for b in operators:
                if a.size == b.size:
                    wanted = float((dense(a) - dense(b)).square().sum())
                    found = a.squared_distance(b)
                    scale = a.squared_norm() + b.squared_norm()
                    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12 * scale)


class TestScaled:
    @pytest.mark.parametrize("rung", ["EKFAC", "BlockGGN", "Diagonal", "Hessian"])
    def test_against_dense(self, rung: str) -> None:
        for block, decay in blocks("chain", rung):
            if isinstance(block.operator, Symmetric):
                continue  # is decomposed with its decay
            scaled = Scaled(block.operator, 2.5)
            matrix = 2.5 * dense(block.operator)
            torch.testing.assert_close(dense(scaled), matrix)
            torch.testing.assert_close(scaled.to_dense(), matrix)
            v = drawn(2, block.size)
            torch.testing.assert_close(
                scaled.solve(v, decay, LAMBDA),
                torch.linalg.solve(matrix + torch.diag(decay + LAMBDA), v.T).T,
            )
            torch.testing.assert_close(
                scaled.eigenvalues().sort().values, torch.linalg.eigvalsh(matrix),
                rtol=1e-9, atol=1e-12,
            )  # fmt: skip
            torch.testing.assert_close(dense(scaled.eigenbasis()), matrix)
            own, mean = block.operator.mean_eigenvalue(), scaled.mean_eigenvalue()
            assert mean == replace(own, value=2.5 * own.value)
            assert scaled.nbytes == block.operator.nbytes
            assert scaled.size == block.size


class TestKronecker:
    def kronecker(self, name: str = "chain", rung: str = "EKFAC") -> Kronecker:
        return next(b.operator for b, _ in blocks(name, rung) if isinstance(b.operator, Kronecker))

    def test_rank(self) -> None:
        """A known rank bounds what is counted, until the eigenvalues are others."""
        operator = self.kronecker()
        one = replace(operator, rank=1)
        assert one.mean_eigenvalue().count == 1
        assert one.eigenbasis().mean_eigenvalue().count == 1
        values = operator.eigenvalues()
        assert one.with_eigenvalues(values).mean_eigenvalue().count == int((values > 0).sum())

    def test_rank_of_a_factored_one(self) -> None:
        """Its eigenbasis has the rank that it was given."""
        one = replace(self.kronecker("one decay", "factored"), rank=1)
        assert isinstance(one, FactoredKronecker)
        assert one.eigenbasis().mean_eigenvalue().count == 1

    def test_one_output(self) -> None:
        single = KroneckerEigen(
            torch.ones(1, 1).double(), torch.eye(3).double(), torch.ones(1, 3).double()
        )
        decay = torch.tensor([0.1, 0.1, 0.4]).double()
        assert two_decays(decay, single.values.shape) == pytest.approx((0.1, 0.3))

    def test_thin_factors(self) -> None:
        """From 256 rows up a factor of a known rank is decomposed in its range: the other
        eigenvalues are 0, not what rounding leaves of them."""
        half = drawn(300, 5)
        factor = half @ half.T
        values, vectors = basis_of(factor, 5)
        assert vectors is not None
        assert int((values == 0).sum()) == 300 - 5 - 8
        torch.testing.assert_close(vectors * values @ vectors.T, factor)
        assert torch.equal(InputBases().of(factor, 5)[0], values)
        more, _ = basis_of(factor, 250)
        assert int((more == 0).sum()) < 100
        noisy = factor + 1e-3 * torch.diag(drawn(300).square())  # not of that rank: all of it
        values, vectors = basis_of(noisy, 5)
        assert vectors is not None
        torch.testing.assert_close(vectors * values @ vectors.T, noisy)
        rough, _ = basis_of(factor.float(), 5)
        assert int((rough == 0).sum()) == 300 - 5 - 8

    def test_shared_bases(self) -> None:
        a = self.kronecker()
        same = replace(a, out_basis=a.out_basis.clone(), values=2 * a.values)
        assert a.shares_basis(same)
        assert a.squared_distance(same) == pytest.approx(a.squared_norm())
        turned = replace(a, out_basis=a.out_basis.flip(1))
        assert not a.shares_basis(turned)
        assert a.in_basis is not None
        assert a.shares_basis(replace(a, in_basis=a.in_basis.clone()))
        assert not a.shares_basis(replace(a, in_basis=a.in_basis.flip(1)))
        lookup = self.kronecker("embedding")
        assert lookup.in_basis is None
        assert lookup.shares_basis(replace(lookup, values=lookup.values + 1))
        assert not lookup.shares_basis(replace(lookup, out_basis=lookup.out_basis.flip(1)))
        o, i = lookup.values.shape
        full = KroneckerEigen(
            lookup.out_basis, torch.eye(i, dtype=torch.float64), torch.ones(o, i).double()
        )
        assert not lookup.shares_basis(full)
        assert not full.shares_basis(lookup)

    def test_decays_that_are_not_of_weight_and_bias(self) -> None:
        operator = self.kronecker()
        o, i = operator.values.shape
        decay = torch.full((o, i), 0.1, dtype=torch.float64)
        assert two_decays(decay.flatten(), operator.values.shape) == (0.1, 0.0)
        decay[:, -1] = 0.3
        assert two_decays(decay.flatten(), operator.values.shape) == pytest.approx((0.1, 0.2))
        for row, column in ((0, 0), (o - 1, 0), (o - 1, i - 1), (0, i - 2)):
            odd = decay.clone()
            odd[row, column] += 1
            with pytest.raises(InputError, match="one weight decay for its weight"):
                two_decays(odd.flatten(), operator.values.shape)
        with pytest.raises(InputError, match="the same weight decay for a layer's weight and bias"):
            self.kronecker("one decay", "factored").solve(
                drawn(self.kronecker("one decay", "factored").size),
                _bias_apart(self.kronecker("one decay", "factored")),
                0.1,
            )

    def test_pi_of_a_factor_that_is_zero(self) -> None:
        """π is 1 where a factor is 0."""
        a = self.kronecker("one decay", "factored")
        assert isinstance(a, FactoredKronecker)
        for zero in ("in_values", "out_values"):
            empty = replace(a, **{zero: torch.zeros_like(getattr(a, zero))})
            out, inp = empty._factors(torch.full((a.size,), 0.05).double(), 0.2)  # pyright: ignore[reportPrivateUsage]
            torch.testing.assert_close(out, empty.out_values + 0.5)
            torch.testing.assert_close(inp, empty.in_values + 0.5)

    def test_a_lookup_without_damping(self) -> None:
        """Counts are divided by as they are: one that is 0 is singular, a small one is not."""
        operator = self.kronecker("embedding", "factored")
        assert isinstance(operator, FactoredKronecker)
        assert operator.in_basis is None
        nothing = torch.zeros(operator.size, dtype=torch.float64)
        some = replace(operator, in_values=torch.full_like(operator.in_values, 1e-14))
        some = replace(some, out_values=torch.ones_like(operator.out_values))
        assert some.solve(drawn(operator.size), nothing, 0.0).isfinite().all()
        empty = replace(some, in_values=some.in_values.clone().index_fill_(0, torch.tensor(0), 0))
        with pytest.raises(SingularError, match="counts of a lookup"):
            empty.solve(drawn(operator.size), nothing, 0.0)

    def test_a_factored_inverse_is_of_rank_one(self) -> None:
        """And exact: its scores are those of solved queries."""
        queries, train = rows_of("one decay")
        for block, decay in blocks("one decay", "factored"):
            operator, places = block.operator, block.places
            assert isinstance(places, LayerPart)
            assert isinstance(operator, FactoredKronecker)
            found = operator.low_rank_inverse(places, queries, decay, LAMBDA, no_sample())
            assert isinstance(found, LowRankInverse)
            assert (found.rank, found.exact) == (1, True)
            x: Solution = found.of(queries)
            solved = operator.solve_rows(places, queries, decay, LAMBDA, Against(9))
            torch.testing.assert_close(x.inner(train), solved.inner(train))
            torch.testing.assert_close(x.flat(), solved.flat())
        for name in ("embedding", "conv2d"):
            queries, _ = rows_of(name)
            for block, decay in blocks(name, "factored"):
                operator = block.operator
                if isinstance(operator, FactoredKronecker) and isinstance(block.places, LayerPart):
                    shared = block.places.shared or block.places.lookup
                    found = operator.low_rank_inverse(
                        block.places, queries, decay, LAMBDA, no_sample()
                    )
                    assert (found is None) == shared, block.name

    def test_bases_of_factors(self) -> None:
        """In float64 inside, of a known rank in its range, one for layers on the same inputs."""
        half = drawn(7, 3)
        factor = half @ half.T
        values, vectors = basis_of(factor, 3)
        assert vectors is not None
        assert vectors.is_contiguous()
        torch.testing.assert_close(vectors * values @ vectors.T, factor)
        assert int((values > 1e-12).sum()) == 3
        single, basis = basis_of(factor.float(), 7)
        assert basis is not None
        assert single.dtype == basis.dtype == torch.float32
        counts = torch.arange(4.0)
        diagonal, nothing = basis_of(counts, 4)
        assert diagonal is counts
        assert nothing is None
        bases = InputBases()
        first = bases.of(factor, 3)
        assert bases.of(factor.clone(), 3) is first
        assert bases.of(factor + torch.eye(7, dtype=torch.float64), 7) is not first


def _bias_apart(operator: Kronecker) -> Tensor:
    decay = torch.full_like(operator.values, 0.1)
    decay[:, -1] = 0.4
    return decay.flatten()


class TestSingular:
    def test_said(self) -> None:
        """Without damping or decay a matrix with an eigenvalue of 0 is refused, not inverted."""
        nothing = torch.zeros(4, dtype=torch.float64)
        basis, values = torch.eye(2, dtype=torch.float64), torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        for operator in (
            DiagonalOperator(values.double().flatten()),
            KroneckerEigen(basis, basis, values.double()),
        ):
            with pytest.raises(SingularError, match="cannot be inverted"):
                operator.solve(torch.ones(4, dtype=torch.float64), nothing, 0.0)

    def test_a_decay_of_each_parameter(self) -> None:
        """Eigenvectors say nothing of M + diag(w) then: a Cholesky factor."""
        half = drawn(5, 5)
        matrix, decay = half @ half.T, torch.arange(1.0, 6.0, dtype=torch.float64)
        v = drawn(2, 5)
        found = Eigen.of(matrix).solve(v, decay, 0.5)
        torch.testing.assert_close(
            found, torch.linalg.solve(matrix + torch.diag(decay + 0.5), v.T).T
        )


class TestDiagonal:
    def test_entries_are_divided_by_as_they_are(self) -> None:
        """However far apart; what is 0 or less is singular."""
        operator = DiagonalOperator(torch.tensor([1e30, 1e-30]))
        found = operator.solve(torch.ones(2), torch.zeros(2), 0.0)
        torch.testing.assert_close(found, torch.tensor([1e-30, 1e30]))

    def test_no_negative_distance(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A difference of squares that rounding makes negative is 0, and no matrix is formed."""
        monkeypatch.setattr("curvfluence.curvature.operators.diagonal.SMALL", 2)

        class Rounded(Dense):
            def squared_norm(self) -> float:
                return 2.9

            def to_dense(self) -> Tensor:
                raise AssertionError

            def diagonal_entries(self) -> Tensor:
                return torch.ones(3, dtype=torch.float64)

        other = Rounded(torch.eye(3, dtype=torch.float64))
        twos = DiagonalOperator(torch.full((3,), 2.0, dtype=torch.float64))
        assert twos.squared_distance_of(other) == pytest.approx(3.0)
        two = DiagonalOperator(torch.ones(2, dtype=torch.float64))
        assert two.squared_distance_of(Dense(torch.eye(2, dtype=torch.float64))) is None


class TestTreatments:
    mu = torch.tensor([-2.0, -0.25, 0.0, 0.5, 3.0], dtype=torch.float64)

    def test_inverses(self) -> None:
        for treatment, wanted in (
            (cf.hessian.Abs(), 1 / (self.mu.abs() + 0.5)),
            (cf.hessian.Plain(), 1 / (self.mu + 0.5)),
            (cf.hessian.Clip(), 1 / (self.mu.clamp(min=0) + 0.5)),
            (
                cf.hessian.Truncate(0.5),
                torch.tensor([0, 0, 0, 1, 1 / 3.5], dtype=torch.float64),
            ),
        ):
            torch.testing.assert_close(treatment.inverse(self.mu, 0.5), wanted)
            assert (treatment.note(self.mu, 0.5) is None) == (treatment.name[:5] != "trunc")
        assert cf.hessian.Truncate(0.5).note(self.mu, 0.5) == (
            "3 of 5 directions set to 0: truncate(0.5)"
        )
        assert cf.hessian.Truncate(0.5).note(self.mu, 5.0) is None
        with pytest.raises(InputError, match="threshold > 0; seen 0"):
            cf.hessian.Truncate(0)

    def test_poles(self) -> None:
        """A value is told from 0 beside the largest: at 10 ε of it, not nearer."""
        eps = torch.finfo(torch.float64).eps
        for size in (1e-6, 1.0, 1e6):
            near = torch.tensor([1.0, 9.9 * eps], dtype=torch.float64) * size
            with pytest.raises(SingularError, match="has 1 values that cannot be told from 0"):
                cf.hessian.Plain().inverse(near, 0.0)
            off = torch.tensor([1.0, 10.1 * eps], dtype=torch.float64) * size
            assert bool(cf.hessian.Plain().inverse(off, 0.0).isfinite().all())

    def test_a_note_of_an_operator(self) -> None:
        matrix = torch.diag(self.mu)
        operator = Symmetric.of(matrix, torch.full((5,), 0.1).double(), cf.hessian.Truncate(0.5))
        assert operator.note(0.3) == "3 of 5 directions set to 0: truncate(0.5)"
        assert operator.note(5.0) is None

    def test_its_own_eigenvectors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A uniform decay shifts every eigenvalue and leaves the vectors: nothing is decomposed
        again. One by one no less."""
        made = Symmetric.of(torch.diag(self.mu), torch.full((5,), 0.1).double(), cf.hessian.Abs())

        def never(*_: Tensor) -> Tensor:
            raise AssertionError

        monkeypatch.setattr("curvfluence.curvature.operators.symmetric.eigvalsh", never)
        monkeypatch.setattr("curvfluence.curvature.operators.eigen.eigh", never)
        torch.testing.assert_close(made.eigenvalues(), self.mu)
        torch.testing.assert_close(dense(made.eigenbasis()), torch.diag(self.mu))
        single = Symmetric(
            torch.ones(1, 1).double(),
            torch.full((1,), 0.5).double(),
            torch.full((1,), 1.5).double(),
            torch.ones(1, 1).double(),
            cf.hessian.Abs(),
        )
        torch.testing.assert_close(single.eigenvalues(), torch.ones(1).double())


def test_every_basis_is_one() -> None:
    """Whatever says that it has its eigenvectors is looked at above."""
    seen = {
        type(block.operator.eigenbasis())
        for name, rung in cases()
        for block, _ in blocks(name, rung)
    }
    assert seen == {KroneckerEigen, Eigen, DiagonalOperator}
    assert all(issubclass(kind, Diagonalised) for kind in seen)


def no_sample() -> Sample:
    def none() -> None:
        return None

    def never() -> Rows:
        raise AssertionError

    return Sample(9, never, none, None)
