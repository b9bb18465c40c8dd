"""Every operator against its own dense matrix: products, inverses, spectra, bases, distances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.denominator import Denominator
from curvfluence.curvature.operators.dense import Dense
from curvfluence.curvature.operators.diagonal import DiagonalOperator
from curvfluence.curvature.operators.eigen import Eigen, Scaled
from curvfluence.curvature.operators.kronecker import (
    FactoredKronecker,
    InputBases,
    Kronecker,
    KroneckerEigen,
    Rotated,
    basis_of,
)
from curvfluence.curvature.operators.low_rank import LowRank
from curvfluence.curvature.operators.low_rank_inverse import LowRankInverse, Sample
from curvfluence.curvature.operators.mean_eigenvalue import (
    MeanEigenvalue,
    of_definite,
    of_parts,
    of_spectrum,
)
from curvfluence.curvature.operators.operator import (
    Against,
    Diagonalised,
    Operator,
    require_definite_eigenvalues,
    require_positive,
    squared,
)
from curvfluence.curvature.operators.solution import AtLowRank, InLayer, Solution
from curvfluence.curvature.operators.solve import cholesky_solve
from curvfluence.curvature.operators.symmetric import Symmetric
from curvfluence.curvature.places import LayerPart
from curvfluence.errors import InputError, SingularError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients, training_gradients
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Outer, SharedOuter
from curvfluence.runtime.said import noted
from tests.problems import chain_problem, make, mlp, seeded
from tests.zoo import zoo_problem

LAMBDA = 0.3
RUNGS: dict[str, cf.Rung] = {
    "EKFAC": cf.EKFAC(),
    "EKFAC apart": cf.EKFAC(joint_bias=False),
    "KFAC": cf.KFAC(),
    "factored": cf.KFAC(factored_damping=True, joint_bias=False),
    "Shampoo": cf.Shampoo(),
    "BlockGGN": cf.BlockGGN(),
    "Diagonal": cf.Diagonal(),
    "GGN": cf.GGN(form=cf.inversion.Matrix()),
    "Hessian": cf.Hessian(),
    "Hessian plain": cf.Hessian(cf.hessian.Plain()),
    "Hessian clip": cf.Hessian(cf.hessian.Clip()),
    "Hessian truncate": cf.Hessian(cf.hessian.Truncate(0.05)),
}
PROBLEMS = ("chain", "one decay", "embedding", "conv2d", "embedding bag weighted")


@cache
def problem_of(name: str) -> cf.Problem:
    if name == "chain":  # a bias with a decay of its own
        seeded()
        decay = {"0.weight": 0.02, "0.bias": 0.2, "2.weight": 0.01, "4.bias": 0.3}
        return make(mlp(5, 4, 6, 3), cf.CrossEntropy(), weight_decay=decay)
    return chain_problem() if name == "one decay" else zoo_problem(name, n=9)


@cache
def curvature_of(name: str, rung: str) -> cf.Curvature:
    return cf.fit(problem_of(name), RUNGS[rung])


@cache
def rows_of(name: str) -> tuple[Rows, Rows]:
    """∇m of the queries and ∇ℓ of the training examples."""
    problem = problem_of(name)
    layout = discover(problem)
    return query_gradients(problem, layout), training_gradients(problem, layout)


def cases() -> Iterator[tuple[str, str]]:
    for name in PROBLEMS:
        for rung in RUNGS:
            if not (rung.startswith("Hessian") and "bag" in name):  # no second derivative
                yield name, rung


every = pytest.mark.parametrize(("name", "rung"), list(cases()))


def blocks(name: str, rung: str) -> Iterator[tuple[Block, Tensor]]:
    """Each block with its part of the weight decay."""
    curvature = curvature_of(name, rung)
    for block in curvature.blocks:
        yield block, block.places.take(curvature.decay)


def dense(operator: Operator) -> Tensor:
    """M, column by column, by its products alone."""
    return (operator @ torch.eye(operator.size, dtype=torch.float64)).T


def inverse(operator: Operator, decay: Tensor, damping: float) -> Tensor:
    """(M + diag(w) + λ)⁻¹, or what stands in its place, by definition."""
    size = torch.eye(operator.size, dtype=torch.float64)
    if isinstance(operator, Symmetric):
        values, vectors = torch.linalg.eigh(dense(operator) + torch.diag(decay))
        return vectors * operator.treatment.inverse(values, damping) @ vectors.T
    if not isinstance(operator, FactoredKronecker):
        return torch.linalg.inv(dense(operator) + torch.diag(decay) + damping * size)
    a = operator.in_basis
    first = torch.diag(operator.in_values) if a is None else a * operator.in_values @ a.T
    second = operator.out_basis * operator.out_values @ operator.out_basis.T
    pi = ((first.trace() / len(first)) / (second.trace() / len(second))).sqrt()
    root = (float(decay[0]) + damping) ** 0.5
    one = first + pi * root * torch.eye(len(first), dtype=torch.float64)
    two = second + root / pi * torch.eye(len(second), dtype=torch.float64)
    return torch.linalg.inv(torch.kron(two, one))


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


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
                wanted = v @ inverse(operator, decay, damping)
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
        m = inverse(operator, decay, LAMBDA)
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
        v = drawn(2, 3, n)
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
        assert single.decay_of_weight_and_bias(decay) == pytest.approx((0.1, 0.3))

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
        assert operator.decay_of_weight_and_bias(decay.flatten()) == (0.1, 0.0)
        decay[:, -1] = 0.3
        assert operator.decay_of_weight_and_bias(decay.flatten()) == pytest.approx((0.1, 0.2))
        for row, column in ((0, 0), (o - 1, 0), (o - 1, i - 1), (0, i - 2)):
            odd = decay.clone()
            odd[row, column] += 1
            with pytest.raises(InputError, match="one weight decay for its weight"):
                operator.decay_of_weight_and_bias(odd.flatten())
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


def no_sample() -> Sample:
    def none() -> None:
        return None

    def never() -> Rows:
        raise AssertionError

    return Sample(9, never, none, None)


def _bias_apart(operator: Kronecker) -> Tensor:
    decay = torch.full_like(operator.values, 0.1)
    decay[:, -1] = 0.4
    return decay.flatten()


class TestLowRankInverse:
    """The inverse as few products, on nets small enough to form it, whatever it is worth."""

    @pytest.fixture(autouse=True)
    def always(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place = "curvfluence.curvature.operators.low_rank_inverse"
        monkeypatch.setattr(f"{place}.LEAST", 0.0)
        monkeypatch.setattr(f"{place}.WORTH", 8.0)

    def sample(self, share: float, name: str = "chain") -> Sample:
        """Errors of so much of each query's scores are allowed."""
        queries, train = rows_of(name)

        def allowed(rows: Rows) -> Tensor:
            g_q, g_n = queries.to_dense()[:, 0], rows.to_dense()[:, 0]
            return share * (g_q @ g_n.T).norm(dim=1)

        return Sample(len(train), lambda: queries, lambda: train, allowed)

    def found(
        self, share: float, name: str = "chain", rung: str = "EKFAC"
    ) -> Iterator[tuple[Block, Tensor, LowRankInverse | None]]:
        queries, _ = rows_of(name)
        for block, decay in blocks(name, rung):
            inverse = block.operator.low_rank_inverse(
                block.places, queries, decay, LAMBDA, self.sample(share, name)
            )
            yield block, decay, inverse

    @pytest.mark.parametrize("share", [1e-6, 0.05, 0.5])
    def test_within_what_is_allowed(self, share: float) -> None:
        """Scores of each query are off by no more than was allowed, with a bias of another decay
        (whose term stays exact), and the least rank was taken."""
        queries, train = rows_of("chain")
        ranks: list[int] = []
        for block, decay, inverse in self.found(share):
            assert isinstance(inverse, LowRankInverse)
            assert not inverse.exact
            ranks.append(inverse.rank)
            g_q, g_n = (block.places.dense(rows)[:, 0] for rows in (queries, train))
            wanted = g_q @ inverse_of(block, decay) @ g_n.T
            near = inverse.of(queries).inner(train)[..., 0]
            allowed = share * (queries.to_dense()[:, 0] @ train.to_dense()[:, 0].T).norm(dim=1)
            gap = (near - wanted).norm(dim=1)
            assert bool((gap <= allowed * (1 + 1e-9)).all())
            solved = inverse.of(queries).flat()
            torch.testing.assert_close(solved, g_q @ inverse_of(block, decay))
            if inverse.rank > 1:
                less = replace(inverse, u_or=inverse.u_or[:, :-1], v_ir=inverse.v_ir[:, :-1])
                gap = (less.of(queries).inner(train)[..., 0] - wanted).norm(dim=1)
                assert bool((gap > allowed).any())
        assert len(ranks) == 3

    def test_a_bias_with_a_decay_of_its_own_is_exact(self) -> None:
        """Where the inverse is of rank one but for the bias: Λ alike everywhere."""
        queries, train = rows_of("chain")
        for block, decay in blocks("chain", "EKFAC"):
            operator = block.operator
            assert isinstance(operator, KroneckerEigen)
            flat = replace(operator, values=torch.full_like(operator.values, 0.7))
            inverse = flat.low_rank_inverse(block.places, queries, decay, LAMBDA, self.sample(1e-9))
            assert isinstance(inverse, LowRankInverse)
            assert inverse.rank == 1
            assert (inverse.correction is None) == bool((decay == decay[0]).all())
            g_q, g_n = (block.places.dense(rows)[:, 0] for rows in (queries, train))
            near = inverse.of(queries).inner(train)[..., 0]
            matrix = torch.diag(0.7 + decay + LAMBDA)
            torch.testing.assert_close(near, g_q @ torch.linalg.solve(matrix, g_n.T))

    def test_none(self) -> None:
        """Of shared layers and lookups, without rows to measure on, where nothing is allowed, and
        where no rank does."""
        for name in ("conv2d", "embedding"):
            for block, _, inverse in self.found(0.1, name):
                places = block.places
                if isinstance(places, LayerPart) and (places.shared or places.lookup):
                    assert inverse is None, block.name
        queries, _ = rows_of("chain")
        block, decay = next(blocks("chain", "EKFAC"))
        whole = self.sample(0.1)

        def zeros(rows: Rows) -> Tensor:
            return torch.zeros(len(queries), dtype=torch.float64)

        def tiny(rows: Rows) -> Tensor:
            return torch.full((len(queries),), 1e-300, dtype=torch.float64)

        for sample in (
            replace(whole, rows=lambda: None),
            replace(whole, allowed=None),
            replace(whole, allowed=zeros),
            replace(whole, allowed=tiny),
        ):
            given = (block.places, queries, decay, LAMBDA, sample)
            assert block.operator.low_rank_inverse(*given) is None
        for block, decay, inverse in self.found(0.1, "conv2d"):
            places = block.places
            if isinstance(places, LayerPart) and not places.shared:
                assert isinstance(inverse, LowRankInverse), decay

    def test_one_query_that_has_none_is_not_asked(self) -> None:
        """A query that may have no error bounds no rank where others may."""
        queries, _ = rows_of("chain")
        block, decay = next(blocks("chain", "EKFAC"))
        whole = self.sample(0.05)

        def some(rows: Rows) -> Tensor:
            assert whole.allowed is not None
            allowed = whole.allowed(rows).clone()
            allowed[0] = 0
            return allowed

        found = block.operator.low_rank_inverse(
            block.places, queries, decay, LAMBDA, replace(whole, allowed=some)
        )
        assert isinstance(found, LowRankInverse)

    def test_untrusted(self) -> None:
        """In float32 the same is refused as of solved queries."""
        problem = chain_problem().to(torch.float32)
        layout = discover(problem)
        queries, train = query_gradients(problem, layout), training_gradients(problem, layout)
        curvature = cf.fit(problem, cf.EKFAC())
        block = curvature.blocks[0]
        operator = block.operator
        assert isinstance(operator, KroneckerEigen)
        values = torch.full_like(operator.values, 1e-9)
        values[-1, -1] = 1.0
        rough = replace(operator, values=values)
        nothing = torch.zeros(block.size)

        def allowed(rows: Rows) -> Tensor:
            return torch.full((len(queries),), 1e9)

        sample = Sample(len(train), lambda: queries, lambda: train, allowed)
        assert isinstance(
            operator.low_rank_inverse(block.places, queries, nothing, 0.1, sample), LowRankInverse
        )
        for attempt in (
            lambda: rough.low_rank_inverse(block.places, queries, nothing, 0.0, sample),
            lambda: rough.solve_rows(block.places, queries, nothing, 0.0, Against(9)),
            lambda: rough.quadratic(block.places, train, nothing, 0.0),
        ):
            with pytest.raises(SingularError, match="inverted in float32"):
                attempt()
        for factor in (1e-3, 1e3):  # a share of each by itself, however small or large it is
            some = replace(train, terms=tuple(outer(t, factor) for t in train.terms))
            with pytest.raises(SingularError, match="inverted in float32"):
                rough.quadratic(block.places, some, nothing, 0.0)
            asked = replace(queries, terms=tuple(outer(t, factor) for t in queries.terms))
            few = replace(sample, queries=lambda asked=asked: asked)
            with pytest.raises(SingularError, match="inverted in float32"):
                rough.low_rank_inverse(block.places, asked, nothing, 0.0, few)
        none = replace(queries, terms=tuple(outer(t, 0.0) for t in queries.terms))
        few = replace(sample, queries=lambda: none)
        assert isinstance(
            rough.low_rank_inverse(block.places, none, nothing, 0.0, few), LowRankInverse
        )
        empty = queries[torch.arange(0)]
        assert len(rough.quadratic(block.places, empty, nothing, 0.0)) == 0
        zero = replace(train, terms=tuple(outer(t, 0.0) for t in train.terms))
        assert not bool(rough.quadratic(block.places, zero, nothing, 0.0).any())


def outer(term: object, factor: float) -> Outer:
    assert isinstance(term, Outer)
    return replace(term, s=factor * term.s)


def inverse_of(block: Block, decay: Tensor) -> Tensor:
    return inverse(block.operator, decay, LAMBDA)


class TestCoordinates:
    """Solved queries meet rows wherever that takes fewer operations."""

    def test_cheaper(self) -> None:
        for name in ("chain", "conv2d", "embedding"):
            queries, _ = rows_of(name)
            for block, decay in blocks(name, "EKFAC"):
                operator, places = block.operator, block.places
                if not isinstance(operator, KroneckerEigen) or not isinstance(places, LayerPart):
                    continue
                (o, i), inner = places.shape, operator.in_basis is not None
                back = len(queries) * o * i * (o + i * inner)
                a_row = places.layer.positions * (o * o + i * i * inner)
                even = back / a_row
                for examples in (max(0, int(even) - 1), int(even), int(even) + 1, int(even) + 2):
                    x = operator.solve_rows(places, queries, decay, LAMBDA, Against(examples))
                    kind = InLayer if back <= examples * a_row else Rotated
                    assert type(x) is kind, (name, block.name, examples)

    def test_rows_that_a_fit_left_in_the_eigenbasis(self) -> None:
        """They are rotated back where the solutions are, and need nothing where those stay."""
        queries, train = rows_of("conv2d")
        seen = 0
        for block, decay in blocks("conv2d", "EKFAC"):
            operator, places = block.operator, block.places
            if not isinstance(operator, KroneckerEigen) or not isinstance(places, LayerPart):
                continue
            basis = operator.out_basis, operator.in_basis
            formed = train.formed({places.position: basis})
            if not places.shared or formed.factored:
                continue
            seen += 1
            (o, i), n = places.shape, len(train)
            against = Against(n + 3, (formed, train))
            assert count_within(operator, places, against) == n
            back = (len(queries) + n) * o * i * (o + i)
            forth = 3 * places.layer.positions * (o * o + i * i)
            x = operator.solve_rows(places, queries, decay, LAMBDA, against)
            assert type(x) is (InLayer if back <= forth else Rotated)
            other = replace(operator, out_basis=operator.out_basis.flip(1))
            assert count_within(other, places, against) == 0
        assert seen


def count_within(operator: KroneckerEigen, places: LayerPart, against: Against) -> int:
    return operator._count_within(places, against)  # pyright: ignore[reportPrivateUsage]


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


class TestTrust:
    """What rounding leaves of solutions in float32 is looked at, and refused above a bound."""

    def near_singular(self) -> Tensor:
        """Two rows nearly alike, of which (1, 0.3) is solved badly and (1, 1) well; and two apart
        that are solved exactly."""
        block = torch.tensor([[1.0, 1 - 2.4e-7], [1 - 2.4e-7, 1.0]])
        return torch.block_diag(block, torch.eye(2))

    good, bad = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 0.3, 0.0, 0.0])

    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("scale", [1.0, 2.0**-30])
    def test_one_bad_of_few(self, place: int, scale: float) -> None:
        v = self.good.expand(3, 4).clone()
        assert bool(cholesky_solve(self.near_singular(), scale * v).isfinite().all())
        v[place] = self.bad
        with pytest.raises(SingularError, match="rounding moves a solution by about 7% of itself"):
            cholesky_solve(self.near_singular(), scale * v)

    def test_beside_a_large_one(self) -> None:
        """Each is held to its own size."""
        large = torch.tensor([0.0, 0.0, 1e9, 0.0])
        with pytest.raises(SingularError, match="7%"):
            cholesky_solve(self.near_singular(), torch.stack([large, self.bad]))
        mild = torch.block_diag(torch.tensor([[1.0, 1 - 1e-3], [1 - 1e-3, 1.0]]), torch.eye(2))
        moved = torch.stack([1e9 * self.bad, torch.tensor([0.0, 0.0, 1e-3, 0.0])])
        assert bool(cholesky_solve(mild, moved).isfinite().all())

    def test_nothing_to_solve(self) -> None:
        for v in (torch.zeros(2, 4), torch.zeros(0, 4)):
            assert torch.equal(cholesky_solve(self.near_singular(), v), v)

    def test_eight_of_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A check costs a few solves, whatever the number of right-hand sides."""
        seen: list[int] = []
        real = torch.cholesky_solve

        def counted(v: Tensor, factor: Tensor) -> Tensor:
            seen.append(v.shape[1])
            return real(v, factor)

        monkeypatch.setattr(torch, "cholesky_solve", counted)
        cholesky_solve(torch.eye(4), torch.ones(100, 4))
        assert seen == [100, 8]

    def test_eigenvalues(self) -> None:
        """A small one is no fault where nothing lies along it."""
        basis = Eigen(torch.eye(2), torch.tensor([1.0, 0.0]))
        decay = torch.zeros(2)
        found = basis.solve(torch.tensor([[1.0, 0.0]]), decay, 1e-8)
        torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]]))
        with pytest.raises(SingularError, match="damped eigenvalues cannot be inverted in float32"):
            basis.solve(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), decay, 1e-8)

    def test_a_uniform_decay_takes_no_factor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*_: Tensor) -> Tensor:
            raise AssertionError

        monkeypatch.setattr("curvfluence.curvature.operators.eigen.cholesky_solve", never)
        for n in (1, 3):
            basis = Eigen(torch.eye(n).double(), torch.ones(n).double())
            decay = torch.full((n,), 0.5, dtype=torch.float64)
            v = torch.ones(1, n, dtype=torch.float64)
            torch.testing.assert_close(basis.solve(v, decay, 0.5), v / 2)
        assert Dense(torch.eye(3).double(), rank=1).mean_eigenvalue().count == 1


class TestDenominator:
    eps = torch.finfo(torch.float32).eps

    def test_whose_rounding_matters(self) -> None:
        """Below 10 ε of the largest; of a lookup, of the largest of its own input."""
        assert Denominator.of(torch.tensor([1.0, 11 * self.eps])).error is None
        error = Denominator.of(torch.tensor([1.0, 9 * self.eps])).error
        torch.testing.assert_close(error, torch.tensor([self.eps, 1 / 9]))
        apart = torch.tensor([[1.0, 1e-9], [2.0, 2e-9]])
        assert Denominator.of(apart, by_input=True).error is None
        assert Denominator.of(apart).error is not None
        mixed = torch.tensor([[1.0, 1e-9], [2.0, 1e-18]])
        error = Denominator.of(mixed, by_input=True).error
        wanted = self.eps * torch.tensor([[2.0, 1.0], [1.0, 1e9]])
        torch.testing.assert_close(error, wanted)

    def test_however_far_apart(self) -> None:
        Denominator.of(torch.tensor([1e30, 1e-30]))
        for bad in (0.0, -1e-30):
            with pytest.raises(SingularError, match="cannot be inverted"):
                Denominator.of(torch.tensor([1.0, bad]))

    def test_each_solution_by_its_own_size(self) -> None:
        """x's share that rounding moves: 1/9 of what lies along the small one."""
        denominator = Denominator.of(torch.tensor([1.0, 9 * self.eps]))
        along, across = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
        denominator.require_trusted(torch.stack([across, 1e-6 * across, 0 * across]))
        denominator.require_trusted(torch.stack([across, across + 0.8 * along]))
        denominator.require_trusted(torch.zeros(0, 2))
        for scale in (1e-6, 1.0, 1e6):
            with pytest.raises(SingularError, match=r"inverted in float32: .*about 11% of itself"):
                denominator.require_trusted(torch.stack([1e9 * across, scale * along]))
        # a small one is not held to what a large one was moved by
        large = 1e9 * (across + 0.5 * along)
        denominator.require_trusted(torch.stack([large, 1e-6 * across]))
        table = Denominator.of(torch.tensor([[1.0, 9 * self.eps], [1.0, 1.0]]))
        bad = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
        table.require_trusted(bad[1:])
        with pytest.raises(SingularError, match="about 11%"):
            table.require_trusted(bad)
        # with more axes before them: one bad among good ones of the same batch
        both = torch.stack([across, along + 1e-9 * across])
        denominator.require_trusted(across.expand(2, 3, 2))
        for batch in (both[None], both[:, None], both.expand(3, 2, 2)):
            with pytest.raises(SingularError, match="about 11%"):
                denominator.require_trusted(batch)
        mixed = torch.stack([1e9 * across, 1e-3 * across + 5e8 * along])
        denominator.require_trusted(mixed[:1, None].expand(1, 2, 2))

    def test_shares(self) -> None:
        denominator = Denominator(torch.ones(2, dtype=torch.float64), None)
        denominator.require_small(torch.zeros(0))
        denominator.require_small(torch.tensor([0.0999]))
        denominator.require_trusted(torch.full((1, 2), torch.nan))  # nothing was asked of it
        for share in (0.101, torch.nan):
            with pytest.raises(SingularError, match="cannot be inverted in float64"):
                denominator.require_small(torch.tensor([0.0, share]))


class TestMeanEigenvalue:
    def test_of_parts(self) -> None:
        parts = [MeanEigenvalue(2.0, 3), MeanEigenvalue(0.0, 0), MeanEigenvalue(0.5, 4)]
        assert of_parts(parts, None) == MeanEigenvalue(8 / 7, 7)
        assert of_parts(parts, 9) == MeanEigenvalue(8 / 7, 7)
        assert of_parts(parts, 2) == MeanEigenvalue(4.0, 2)
        assert of_parts(parts[1:2], None) == MeanEigenvalue(0.0, 0)
        assert of_parts(parts, 0) == MeanEigenvalue(0.0, 0)

    def test_rounding_is_not_counted(self) -> None:
        """n ε of float64 in every dtype, or what is left of a row that is 0, squared."""
        eps64, eps32 = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps
        values = torch.tensor([1.0, 1.9 * eps64], dtype=torch.float64)
        assert of_spectrum(values).count == 1
        assert of_spectrum(torch.tensor([1.0, 2.1 * eps64], dtype=torch.float64)).count == 2
        floor = (10 * eps32) ** 2
        assert of_spectrum(torch.tensor([1.0, 0.9 * floor])).count == 1
        assert of_spectrum(torch.tensor([1.0, 1.1 * floor])).count == 2
        found = of_spectrum(torch.tensor([-3.0, 1.0, 0.0], dtype=torch.float64))
        assert found == MeanEigenvalue(2.0, 2)
        assert of_definite(torch.tensor([4.0, 2.0, 0.0]).double(), 1) == MeanEigenvalue(6.0, 1)


class TestHelpers:
    def test_stopped_short(self) -> None:
        """Said above twice what was wanted, by operators that iterate alone."""

        class Iterated(DiagonalOperator):
            tolerance = 0.01

        operator = Iterated(torch.ones(2))
        for residuals, said in (
            ([0.0, 0.0199], False), ([0.5, 0.021], True), ([0.025], True),
            ([torch.nan], True), ([], False),
        ):  # fmt: skip
            with noted() as notes:
                operator.tell_short(torch.tensor(residuals))
            assert bool(notes) == said
            if said:
                assert "0.01 was wanted" in notes[0]
        with noted() as notes:
            DiagonalOperator(torch.ones(2)).tell_short(torch.tensor([9.0]))
        assert not notes

    def test_squares_by_slices(self) -> None:
        a, b = drawn(1200, 3), drawn(1200, 3) + 1
        assert squared(a) == pytest.approx(float(a.square().sum()))
        assert squared(a, b) == pytest.approx(float((a - b).square().sum()))
        with pytest.raises(ValueError, match="zip"):
            squared(a, b[:512])

    def test_how_much_more_damping(self) -> None:
        """The floor is n ε of the largest: what lies below it says how much more would do."""
        require_positive(2.1, 1.0, n=2, eps=1.0, what="M")
        with pytest.raises(SingularError, match=r"M cannot .* pivot\) is 1.5 next to 4.*: 6 more"):
            require_positive(1.5, 4.0, n=2, eps=1.0, what="M")
        with pytest.raises(SingularError, match=r"is 0 next to 0\. Use a larger damping, or"):
            require_positive(0.0, 0.0, n=2, eps=1.0, what="M")
        with pytest.raises(SingularError, match=r"is nan next to 1\. Use a larger damping, or"):
            require_positive(torch.nan, 1.0, n=0, eps=1.0, what="M")
        eps = torch.finfo(torch.float64).eps
        require_definite_eigenvalues(torch.tensor([1.0, 10.1 * eps], dtype=torch.float64))
        with pytest.raises(SingularError, match="the damped eigenvalues"):
            require_definite_eigenvalues(torch.tensor([1.0, 9.9 * eps], dtype=torch.float64))

    def test_either_may_know_the_distance(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("curvfluence.curvature.operators.diagonal.SMALL", 0)
        full = Dense(torch.eye(3, dtype=torch.float64) + 1)

        def never(self: Dense) -> Tensor:
            raise AssertionError

        diagonal = DiagonalOperator(torch.ones(3, dtype=torch.float64))
        wanted = float((full.matrix - torch.eye(3)).square().sum())
        monkeypatch.setattr(DiagonalOperator, "to_dense", never)
        assert full.squared_distance(diagonal) == pytest.approx(wanted)
        assert diagonal.squared_distance(full) == pytest.approx(wanted)


class TestLowRank:
    def test_within(self) -> None:
        x = drawn(4, 6, 5)
        x[1] *= 1e-9  # each is held to its own size, however small
        x[3] *= 0.01
        x[2] = 0
        for tolerance in (1e-6, 0.1, 0.5):
            low = LowRank.of(x, tolerance)
            size = x.flatten(1).norm(dim=1).clamp_min(1e-300)
            gap = (low.left @ low.right.mT - x).flatten(1).norm(dim=1) / size
            assert float(gap.max()) <= tolerance
            assert low.error == pytest.approx(float(gap.max()), abs=1e-12)
            less = low.rank - 1
            u, s, vh = torch.linalg.svd(x, full_matrices=False)
            fewer = (u[:, :, :less] * s[:, None, :less]) @ vh[:, :less]
            assert float(((fewer - x).flatten(1).norm(dim=1) / size).max()) > tolerance
            assert low.left.shape == (4, 6, low.rank)
            assert low.right.shape == (4, 5, low.rank)
        for bad in (0.0, 1.0, 1.5, -0.1):
            with pytest.raises(InputError, match="compress must lie between 0 and 1"):
                LowRank.of(x, bad)

    def test_no_rank_is_enough(self) -> None:
        """Beside rounding: all of them are kept."""
        x = drawn(2, 4, 3).float()
        assert LowRank.of(x, 1e-12).rank == 3

    def test_compressed_solutions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of shared layers where that is smaller, against rows as a and s, a few at a time, and
        against formed ones."""
        queries, train = rows_of("conv2d")
        seen = 0
        for block, decay in blocks("conv2d", "EKFAC"):
            places = block.places
            if not isinstance(places, LayerPart):
                continue
            x = block.operator.solve_rows(places, queries, decay, LAMBDA, Against(9))
            few = x.compressed(0.6)
            if not places.shared:
                assert few is x
                continue
            if few is x:
                continue
            seen += 1
            assert isinstance(few, AtLowRank)
            assert few.error == few.x.error
            assert few.x.nbytes < x.flat().nbytes
            g_n = places.dense(train)[:, 0]
            torch.testing.assert_close(few.flat(), (few.x.left @ few.x.right.mT).flatten(1))
            for held in (1, 2**24):
                monkeypatch.setattr("curvfluence.runtime.budget.LOW_RANK", held)
                torch.testing.assert_close(few.inner(train)[..., 0], few.flat() @ g_n.T)
            term = places.term(train)
            assert isinstance(term, SharedOuter)
            found = few.x.inner(term.formed(None, None))[..., 0]
            torch.testing.assert_close(found, few.flat() @ g_n.T)
        assert seen

    def test_layouts(self) -> None:
        """Solutions of shared layers have o last in memory, as rows are formed; others stay."""
        for name in ("conv2d", "chain"):
            for block, _ in blocks(name, "EKFAC"):
                if isinstance(block.places, LayerPart):
                    o, i = block.places.shape
                    x = drawn(2, o, i)
                    laid = InLayer.laid_out(block.places, x)
                    assert torch.equal(laid.x_qoi, x)
                    if block.places.layer.shared:
                        assert laid.x_qoi.mT.is_contiguous()
                    else:
                        assert laid.x_qoi is x


def test_every_basis_is_one() -> None:
    """Whatever says that it has its eigenvectors is looked at above."""
    seen = {
        type(block.operator.eigenbasis())
        for name, rung in cases()
        for block, _ in blocks(name, rung)
    }
    assert seen == {KroneckerEigen, Eigen, DiagonalOperator}
    assert all(issubclass(kind, Diagonalised) for kind in seen)
