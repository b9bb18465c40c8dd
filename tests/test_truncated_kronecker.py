"""Kronecker bases of which the leading columns are held, against complete ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.operators import diagonal as diagonals
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.decomposed import leading_eigh
from curvfluence.curvature.operators.kronecker import Kronecker, KroneckerEigen
from curvfluence.curvature.operators.operator import Against
from curvfluence.curvature.operators.truncated_kronecker import TruncatedKronecker, leading_basis
from curvfluence.curvature.places import LayerPart
from curvfluence.errors import InputError, SingularError
from curvfluence.runtime import budget
from tests import oracles
from tests.operators import LAMBDA, dense, drawn, problem_of, rows_of
from tests.problems import make, mlp, seeded

HELD = 2
FISHERS: dict[str, cf.Fisher] = {
    "type2": cf.Type2(),
    "mc": cf.MonteCarlo(40, seed=3),
    "empirical": cf.Empirical(),
}


@cache
def fitted(problem: str, rung: type[Any], fisher: str, joint: bool, held: int) -> cf.Curvature:
    made = rung(FISHERS[fisher], joint, eigenvectors=held)
    return cf.fit(problem_of(problem), made)


def truncated(curvature: cf.Curvature) -> Iterator[tuple[Block, TruncatedKronecker, Tensor]]:
    for block in curvature.blocks:
        if isinstance(block.operator, TruncatedKronecker):
            yield block, block.operator, block.places.take(curvature.decay)


def named(curvature: cf.Curvature, like: Block) -> Block:
    (found,) = (block for block in curvature.blocks if block.name == like.name)
    return found


def orthonormal(n: int, k: int) -> Tensor:
    return torch.linalg.qr(drawn(n, n)).Q[:, :k]


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


SHAPES = [(5, 4, 2, 3), (5, 4, 5, 2), (5, 4, 1, 4), (3, 6, 2, 5), (2, 2, 1, 1)]  # o, i, k_o, k_i


@pytest.mark.parametrize(("o", "i", "out", "inp"), SHAPES)
@pytest.mark.parametrize("lookup", [False, True])
class TestOperator:
    def made(self, o: int, i: int, out: int, inp: int, *, lookup: bool) -> TruncatedKronecker:
        if lookup:
            if out == o:
                pytest.skip("all of it is held")
            values = drawn(out + 1, i).square() + 0.1
            return TruncatedKronecker(orthonormal(o, out), None, values)
        values = drawn(out + (out < o), inp + (inp < i)).square() + 0.1
        return TruncatedKronecker(orthonormal(o, out), orthonormal(i, inp), values)

    def test_as_in_complete_bases(self, o: int, i: int, out: int, inp: int, lookup: bool) -> None:
        """Products, solutions and all that is told of the spectrum."""
        operator = self.made(o, i, out, inp, lookup=lookup)
        complete = operator.eigenbasis()
        assert operator.shape == (o, i)
        assert operator.size == o * i
        for basis in (complete.out_basis, complete.in_basis):
            if basis is not None:
                same(basis.T @ basis, torch.eye(len(basis), dtype=torch.float64))
        m = complete.to_dense()
        same(dense(operator), m)
        same(operator.to_dense(), m)
        v, decay = drawn(3, o * i), torch.full((o * i,), 0.2, dtype=torch.float64)
        same(operator @ v, v @ m)
        eye = torch.eye(o * i, dtype=torch.float64)
        wanted = torch.linalg.solve(m + (0.2 + LAMBDA) * eye, v.T).T
        same(operator.solve(v, decay, LAMBDA), wanted)
        same(operator.solve(v[0], decay, LAMBDA), wanted[0])
        same(operator.inverted(wanted, decay, LAMBDA), v)
        same(operator.eigenvalues().sort().values, torch.linalg.eigvalsh(m))
        mean = operator.mean_eigenvalue()
        assert (mean.value, mean.count) == (pytest.approx(float(m.trace()) / (o * i)), o * i)
        assert operator.squared_norm() == pytest.approx(float(m.square().sum()))
        same(operator.diagonal_entries(), m.diagonal())
        assert operator.diagonalised() is operator

    def test_a_bias_of_another_decay(
        self, o: int, i: int, out: int, inp: int, lookup: bool
    ) -> None:
        """Where its unit vector lies in what is held; refused where it does not."""
        if lookup:
            return
        held = torch.linalg.qr(torch.cat([torch.eye(i).double()[:, -1:], drawn(i, i)], dim=1)).Q
        turn = orthonormal(inp, inp)
        values = self.made(o, i, out, inp, lookup=False).values
        operator = TruncatedKronecker(orthonormal(o, out), held[:, :inp] @ turn, values)
        decay = torch.full((o, i), 0.2, dtype=torch.float64)
        decay[:, -1] = 0.7
        v, shift = drawn(3, o * i), torch.diag(decay.flatten() + LAMBDA)
        wanted = torch.linalg.solve(dense(operator) + shift, v.T).T
        same(operator.solve(v, decay.flatten(), LAMBDA), wanted)
        if inp < i:
            outside = TruncatedKronecker(operator.out_basis, held[:, 1 : inp + 1], values)
            with pytest.raises(InputError, match="do not span it"):
                outside.solve(v, decay.flatten(), LAMBDA)

    def test_what_rounding_would_move_is_refused(
        self, o: int, i: int, out: int, inp: int, lookup: bool
    ) -> None:
        """As with complete bases, by the same measure."""
        operator = self.made(o, i, out, inp, lookup=lookup)
        values = operator.values.clone()
        values[0, 0] = 1e12
        if lookup:
            values[0] = 1e12
        coarse = TruncatedKronecker(
            operator.out_basis.float(),
            None if operator.in_basis is None else operator.in_basis.float(),
            values.float(),
        )
        complete = coarse.eigenbasis()
        v, decay = drawn(3, o * i).float(), torch.zeros(o * i)
        if values.numel() == 1:
            return
        for each in (coarse, complete):
            with pytest.raises(SingularError, match="rounding moves"):
                each.solve(v, decay, 1e-3)

    def test_not_positive(self, o: int, i: int, out: int, inp: int, lookup: bool) -> None:
        operator = self.made(o, i, out, inp, lookup=lookup)
        with pytest.raises(SingularError, match="cannot be inverted"):
            operator.solve(drawn(o * i), torch.zeros(o * i).double(), -100.0)


class TestLeadingBasis:
    def factor(self, n: int, decay: float = 1.0) -> Tensor:
        u = torch.linalg.qr(drawn(n, n)).Q
        return u * (1 / (1 + torch.arange(n).double()) ** decay) @ u.T

    @pytest.mark.parametrize(("n", "count"), [(30, 4), (300, 5), (300, 100), (300, 150)])
    def test_pairs(self, n: int, count: int) -> None:
        """Orthonormal, no larger than the eigenvalues, and with as much of the trace."""
        factor = self.factor(n, 2.0)
        values, vectors = leading_eigh(factor, count)
        assert values.shape == (count,)
        same(vectors.T @ vectors, torch.eye(count, dtype=torch.float64))
        same((vectors.T @ factor @ vectors).diagonal(), values)
        exact = torch.linalg.eigvalsh(factor)[-count:]
        assert bool((values <= exact * (1 + 1e-12)).all())
        assert float(values.sum()) >= (1 - 1e-3) * float(exact.sum())
        # Not to rounding: a third power has some of what is beyond the count and its margin, about
        # (3/14)²ˣ⁵ where eigenvalue k is 1/k².
        torch.testing.assert_close(values[-3:], exact[-3:], rtol=1e-6, atol=0)

    def test_the_same_twice(self) -> None:
        factor = self.factor(300)
        state = torch.get_rng_state()
        first = leading_eigh(factor, 9)
        assert torch.equal(state, torch.get_rng_state())
        torch.manual_seed(5)
        for a, b in zip(first, leading_eigh(factor, 9), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("n", [7, 300])
    def test_trace_and_bias(self, n: int) -> None:
        factor = self.factor(n)
        values, vectors = leading_basis(factor, n, 3, bias=False)
        assert (len(values), vectors.shape) == (4, (n, 3))
        total = values[:-1].sum() + (n - 3) * values[-1]
        torch.testing.assert_close(total, factor.trace())
        more, with_unit = leading_basis(factor, n, 3, bias=True)
        assert with_unit.shape == (n, 4)
        same(with_unit[-1].square().sum(), torch.tensor(1.0, dtype=torch.float64))
        same(with_unit.T @ with_unit, torch.eye(4, dtype=torch.float64))
        same((with_unit.T @ factor @ with_unit).diagonal(), more[:-1])
        torch.testing.assert_close(more[:-1].sum() + (n - 4) * more[-1], factor.trace())

    def test_all_of_it(self) -> None:
        """As a whole decomposition, in as many numbers."""
        factor = self.factor(6)
        for held, bias in ((6, False), (5, True), (9, False)):
            values, vectors = leading_basis(factor, 6, held, bias=bias)
            assert (len(values), vectors.shape) == (6, (6, 6))
            same(vectors * values @ vectors.T, factor)

    def test_of_nothing_and_of_a_bias_that_is_held(self) -> None:
        values, vectors = leading_basis(torch.zeros(5, 5), 5, 2, bias=True)
        assert vectors.dtype == values.dtype == torch.float32
        assert not values.any()
        unit = torch.diag(torch.tensor([0.1, 0.2, 0.3, 0.4, 5.0], dtype=torch.float64))
        values, vectors = leading_basis(unit, 5, 2, bias=True)
        same(values, torch.tensor([0.3, 0.4, 5.0, 0.15], dtype=torch.float64))
        assert vectors.shape == (5, 3)

    @pytest.mark.parametrize("n", [6, 300])
    @pytest.mark.parametrize("scale", [1e-3, 1e-5, 1e-7, 1e-11, 0.0])
    def test_a_bias_that_is_nearly_held(self, scale: float, n: int) -> None:
        """Small inputs: the leading eigenvector is nearly the unit vector, but not to rounding."""
        a = torch.cat([scale * drawn(20, n - 1), torch.ones(20, 1).double()], dim=1)
        values, vectors = leading_basis(a.T @ a / 20, n, 2, bias=True)
        assert (len(values), vectors.shape) == (4, (n, 3))
        same(vectors.T @ vectors, torch.eye(3, dtype=torch.float64))
        assert abs(1 - float(vectors[-1].square().sum())) < 1e-14


CASES = [
    ("chain", True),
    ("chain", False),
    ("embedding", True),
    ("conv2d", True),
    ("conv2d", False),
    ("embedding bag weighted", True),
    ("linear over positions", True),
    ("cnn with groups", True),
    ("one module twice", True),
    ("tied transformer", True),
]


@pytest.mark.parametrize(("name", "joint"), CASES)
@pytest.mark.parametrize("fisher", FISHERS)
class TestRungs:
    def test_kfac(self, name: str, joint: bool, fisher: str) -> None:
        """In complete bases the factors' own eigenvalues, and the mean of those not held."""
        wanted = cf.fit(problem_of(name), cf.KFAC(FISHERS[fisher], joint))
        found = fitted(name, cf.KFAC, fisher, joint, HELD)
        met = 0
        for block, operator, _ in truncated(found):
            met += 1
            whole = named(wanted, block).operator
            assert isinstance(whole, KroneckerEigen)
            assert isinstance(block.places, LayerPart)
            (o, i), (out, inp) = operator.shape, operator.held
            assert out == min(o, HELD)
            assert inp == (i if block.places.lookup else min(i, HELD + block.places.with_bias))
            basis, c = operator.eigenbasis(), whole.to_dense()
            same(c.trace(), operator.to_dense().trace())
            a = whole.to_dense().reshape(o, i, o, i)
            b_oo, a_ii = torch.einsum("ajbj->ab", a), torch.einsum("jajb->ab", a)
            out_values = (basis.out_basis.T @ b_oo @ basis.out_basis).diagonal().clone()
            in_basis = torch.eye(i).double() if basis.in_basis is None else basis.in_basis
            in_values = (in_basis.T @ a_ii @ in_basis).diagonal().clone()
            if out < o:
                out_values[out:] = out_values[out:].mean()
            if inp < i:
                in_values[inp:] = in_values[inp:].mean()
            trace = out_values.sum()
            expected = torch.outer(out_values, in_values) / torch.where(trace > 0, trace, 1.0)
            same(basis.values, expected)
        assert met

    def test_ekfac(self, name: str, joint: bool, fisher: str) -> None:
        """Λ is the diagonal of the exact block in the basis; of what is not held, its mean."""
        found = fitted(name, cf.EKFAC, fisher, joint, HELD)
        exact = cf.fit(problem_of(name), cf.BlockGGN(FISHERS[fisher], joint))
        met = 0
        for block, operator, _ in truncated(found):
            met += 1
            (o, i), (out, inp) = operator.shape, operator.held
            c = named(exact, block).operator.to_dense()
            best = operator.eigenbasis().diagonal_of(c).reshape(o, i)
            best[out:, :inp] = best[out:, :inp].mean(0) if out < o else best[out:, :inp]
            best[:out, inp:] = best[:out, inp:].mean(1, keepdim=True)
            best[out:, inp:] = best[out:, inp:].mean()
            same(operator.eigenbasis().values, best)
            same(operator.to_dense().trace(), c.trace())
            assert "eigenvectors" in block.rule
        assert met

    def test_scores(self, name: str, joint: bool, fisher: str) -> None:
        """Of pairs and of examples themselves, by the dense matrix."""
        problem = problem_of(name)
        for rung in (cf.KFAC, cf.EKFAC):
            found = fitted(name, rung, fisher, joint, HELD)
            n, p = len(problem.train), problem.parameters.count
            c = found.to_dense() + torch.diag(found.decay) + LAMBDA * torch.eye(p).double()
            g_n, g_q = oracles.example_gradients(problem), oracles.query_gradients(problem)
            solved = torch.linalg.solve(c, g_q.T).T
            at = cf.Absolute(LAMBDA)
            same(cf.influence(problem, found, damping=at).values, solved @ g_n.T / n)
            own = (g_n * torch.linalg.solve(c, g_n.T).T).sum(1) / n
            same(cf.self_influence(problem, found, damping=at), own)


def test_rows_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quadratic forms of rows whatever is formed at a time, and solutions as any operator's."""
    found = fitted("conv2d", cf.EKFAC, "type2", True, HELD)
    queries, rows = rows_of("conv2d")
    for block, operator, decay in truncated(found):
        places = block.places
        r = places.dense(rows)[:, 0]
        wanted = (r * operator.solve(r, decay, LAMBDA)).sum(1)
        for numbers in (1, 2 * operator.size, 2**22):
            monkeypatch.setattr(budget, "FORMED", numbers)
            same(operator.quadratic(places, rows, decay, LAMBDA), wanted)
        solved = operator.solve_rows(places, queries, decay, LAMBDA, Against(len(rows)))
        x = operator.solve(places.dense(queries)[:, 0], decay, LAMBDA)
        same(solved.flat(), x)
        same(solved.inner(rows)[..., 0], x @ r.T)


@pytest.mark.parametrize("rung", [cf.KFAC, cf.EKFAC, cf.Shampoo, cf.TKFAC, cf.EShampoo])
def test_with_enough_it_is_the_rung_itself(rung: type[Any]) -> None:
    for name in ("chain", "conv2d", "embedding"):
        problem = problem_of(name)
        wanted, found = cf.fit(problem, rung()), cf.fit(problem, rung(eigenvectors=10_000))
        assert [b.rule for b in wanted.blocks] == [b.rule for b in found.blocks]
        for one, other in zip(wanted.blocks, found.blocks, strict=True):
            assert type(one.operator) is type(other.operator)
            if isinstance(one.operator, Kronecker) and isinstance(other.operator, Kronecker):
                assert torch.equal(one.operator.values, other.operator.values)
                assert one.operator.rank == other.operator.rank


@pytest.mark.parametrize("rung", [cf.Shampoo, cf.TKFAC, cf.EShampoo])
def test_other_rungs_on_an_eigenbasis(rung: type[Any]) -> None:
    """Their traces, and the best diagonal where that is what they have."""
    problem = problem_of("chain")
    found = cf.fit(problem, rung(eigenvectors=HELD))
    exact = cf.fit(problem, cf.BlockGGN())
    for block, operator, _ in truncated(found):
        if rung is not cf.Shampoo:
            c = named(exact, block).operator.to_dense()
            same(operator.to_dense().trace(), c.trace())
        assert bool((operator.values >= 0).all())
    assert len(list(truncated(found))) == 3


@pytest.mark.parametrize("held", [1, 2, 5, 8])
def test_relative_damping_is_that_of_all_eigenvectors(held: int) -> None:
    """Of few examples, whose factors have fewer eigenvalues than rows: the mean of those that are
    not held is one of zeros too, which are no part of the unit of λ."""
    seeded()
    problem = make(mlp(20, 16, 3), cf.MSE(), shape=(20,), n=4)
    for rung in (cf.KFAC, cf.EKFAC):
        whole, some = cf.fit(problem, rung()), cf.fit(problem, rung(eigenvectors=held))
        for one, other in zip(whole.blocks, some.blocks, strict=True):
            mean, found = one.operator.mean_eigenvalue(), other.operator.mean_eigenvalue()
            assert found.count == mean.count
            assert found.value == pytest.approx(mean.value)
            of_basis = other.operator.eigenbasis().mean_eigenvalue()
            assert (of_basis.count, of_basis.value) == (found.count, pytest.approx(found.value))


class TwoOnOne(nn.Module):
    """A layer with a bias, and one without on the same inputs and a 1: the same A."""

    def __init__(self, *, bias_first: bool) -> None:
        super().__init__()
        parts = {"biased": nn.Linear(4, 3), "plain": nn.Linear(5, 3, bias=False)}
        for name in sorted(parts, reverse=not bias_first):
            self.add_module(name, parts[name])

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones_like(x[:, :1])
        return torch.tanh(self.biased(x)) + self.plain(torch.cat([x, ones], dim=1))


@pytest.mark.parametrize("bias_first", [True, False])
@pytest.mark.parametrize("held", [1, 2, 4])
def test_layers_on_the_same_inputs(bias_first: bool, held: int) -> None:
    """Each holds what it says: one column more where there is a bias, of whatever decay."""
    seeded()
    decay = {"biased.weight": 0.1, "biased.bias": 0.5, "plain.weight": 0.2}
    model = TwoOnOne(bias_first=bias_first)
    problem = make(model, cf.CrossEntropy(), shape=(4,), weight_decay=decay)
    for rung in (cf.KFAC, cf.EKFAC):
        found = cf.fit(problem, rung(eigenvectors=held))
        for block in found.blocks:
            operator = block.operator
            if isinstance(operator, TruncatedKronecker):
                (o, i), (out, inp) = operator.shape, operator.held
                assert inp == min(i, held + (block.name == "biased"))
                assert f"{out} of {o} and {inp} of {i} eigenvectors" in block.rule
        p = problem.parameters.count
        a = found.to_dense() + torch.diag(found.decay) + LAMBDA * torch.eye(p).double()
        v = drawn(2, p)
        same(found.solve(v, cf.Absolute(LAMBDA)) @ a, v)


@pytest.mark.parametrize("scale", [1e-4, 1e-6, 1e-9, 0.0])
def test_small_inputs(scale: float) -> None:
    """A bias of its own decay is inverted exactly where the leading column is nearly its own."""
    seeded()
    decay = {"0.weight": 1.0, "0.bias": 1e-3}
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = scale * drawn(12, 6), torch.randint(3, (12,))
    decay["2.weight"] = 0.1
    problem = cf.Problem(model, cf.CrossEntropy(), (x, y), (x, y), weight_decay=decay)
    found = cf.fit(problem, cf.EKFAC(eigenvectors=2))
    p = problem.parameters.count
    a = found.to_dense() + torch.diag(found.decay) + 1e-3 * torch.eye(p).double()
    v = drawn(2, p)
    same(found.solve(v, cf.Absolute(1e-3)) @ a, v)


def test_saved(tmp_path: Path) -> None:
    problem = problem_of("chain")
    for rung in (cf.KFAC, cf.EKFAC):
        made = fitted("chain", rung, "type2", True, HELD)
        made.save(tmp_path / rung.__name__)
        read = cf.Curvature.load(tmp_path / rung.__name__, problem)
        at = cf.Absolute(LAMBDA)
        a, b = (cf.influence(problem, c, damping=at).values for c in (made, read))
        assert torch.equal(a, b)


def test_a_distance_from_a_diagonal_forms_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fitted("chain", cf.EKFAC, "type2", True, 1)
    _, operator, _ = next(truncated(found))
    diagonal = diagonals.DiagonalOperator(drawn(operator.size).square())
    wanted = float((operator.to_dense() - diagonal.to_dense()).square().sum())
    monkeypatch.setattr(diagonals, "SMALL", 0)
    monkeypatch.setattr(TruncatedKronecker, "to_dense", None)
    assert operator.squared_distance(diagonal) == pytest.approx(wanted)


def test_less_is_held() -> None:
    problem = problem_of("chain")
    whole, some = cf.fit(problem, cf.EKFAC()), fitted("chain", cf.EKFAC, "type2", True, 1)
    assert some.cost.nbytes < whole.cost.nbytes
    assert (whole.name, some.name) == ("EKFAC", "EKFAC(eigenvectors=1)")
    assert cf.influence(problem, some, damping=cf.Absolute(LAMBDA)).rung == some.name


def test_what_is_left_is_told() -> None:
    """By the trace of the exact block outside of the columns that are held."""
    found = fitted("chain", cf.EKFAC, "type2", True, 1)
    exact = cf.fit(problem_of("chain"), cf.BlockGGN(cf.Type2(), True))
    outside: dict[str, float] = {}
    for block, operator, _ in truncated(found):
        (o, i), (out, inp) = operator.shape, operator.held
        c = named(exact, block).operator.to_dense()
        best = operator.eigenbasis().diagonal_of(c).reshape(o, i)
        outside[block.name] = 1 - float(best[:out, :inp].sum() / best.sum())
        assert operator.outside == pytest.approx(outside[block.name])
    most = max(outside, key=outside.__getitem__)
    said = f"{min(outside.values()):.2g} to {outside[most]:.2g} of a block's trace lies there"
    (note,) = (note for note in found.notes if "eigenvectors held" in note)
    assert said in note
    assert note.split("block ")[-1].startswith(f"{most}.")
    whole = cf.fit(problem_of("chain"), cf.EKFAC())
    assert not any("eigenvectors held" in note for note in whole.notes)
    operator = TruncatedKronecker(torch.eye(3)[:, :1], torch.eye(2)[:, :1], torch.zeros(2, 2))
    assert operator.outside == 0  # of nothing


def test_a_certificate_tells_what_it_costs() -> None:
    """Of the solution that the scores were made with, against the exact GGN."""
    problem = problem_of("chain")
    found = fitted("chain", cf.EKFAC, "type2", True, 1)
    scores = cf.influence(problem, found, damping=cf.Absolute(LAMBDA))
    p = problem.parameters.count
    a = oracles.dense_ggn(problem) + torch.diag(found.decay) + LAMBDA * torch.eye(p).double()
    g = oracles.query_gradients(problem)
    x = found.solve(g, cf.Absolute(LAMBDA))
    wanted = ((x @ a - g).norm(dim=1) / g.norm(dim=1)).tolist()
    assert scores.certificate().residuals == pytest.approx(wanted)


@pytest.mark.parametrize("value", [0, -1, 2.5, "many", True])
def test_bad_numbers(value: object) -> None:
    with pytest.raises(InputError, match="eigenvectors"):
        cf.EKFAC(eigenvectors=value)  # pyright: ignore[reportArgumentType]


def test_factored_damping_has_all() -> None:
    with pytest.raises(InputError, match="factored damping is of all eigenvectors"):
        cf.KFAC(factored_damping=True, eigenvectors=3)


@pytest.mark.parametrize("rung", [cf.EKFAC, cf.KFAC])
def test_memory_is_told_of_what_is_held(rung: type[cf.EKFAC | cf.KFAC]) -> None:
    seeded()
    model = nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 3))
    problem = make(model, cf.CrossEntropy(), shape=(300,))
    whole = cf.fit(problem, rung())
    elements = [rung(eigenvectors=held).elements(problem) for held in (8, 32)]
    assert elements[0] < elements[1] < 0.7 * rung().elements(problem)
    for held in (8, 32):
        some = cf.fit(problem, rung(eigenvectors=held))
        factors = 301**2 + 200**2 + 201**2 + 3**2
        assert some.cost.nbytes < 0.25 * whole.cost.nbytes
        told = rung(eigenvectors=held)._held_elements
        parts = rung(eigenvectors=held).parts(problem)
        assert some.cost.nbytes == 8 * sum(map(told, parts))
        assert rung(eigenvectors=held).elements(problem) > factors + some.cost.nbytes / 8
        less, all_of_it = (
            next(s.bytes for s in cf.plan(problem, one).stages if s.name == "eigendecompositions")
            for one in (rung(eigenvectors=held), rung())
        )
        assert less < 0.8 * all_of_it


@pytest.mark.parametrize("held", [2, 4])
def test_inputs_of_a_lookup_are_apart(held: int) -> None:
    """One whose eigenvalues are all small is solved for; in a basis they are rounding's."""
    seeded()
    values = torch.tensor([[3.0, 3e-20], [2.0, 2e-20], [1.0, 1e-20], [0.5, 5e-21], [0.1, 1e-21]])
    values = values[: held + (held < 4)].double()
    lookup = TruncatedKronecker(orthonormal(4, held), None, values)
    v, none = drawn(3, 8), torch.zeros(8).double()
    found = lookup.solve(v, none, 0.0)
    torch.testing.assert_close(found @ lookup.to_dense(), v, rtol=1e-9, atol=1e-9)
    turned = TruncatedKronecker(orthonormal(4, held), orthonormal(2, 2), values)
    with pytest.raises(SingularError, match="rounding moves a solution"):
        turned.solve(v, none, 0.0)


@pytest.mark.parametrize("held", [(2, 3), (4, 3), (2, 5), (4, 5)])
@pytest.mark.parametrize("place", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_what_rounding_moves_is_seen_where_it_is(
    held: tuple[int, int], place: tuple[int, int]
) -> None:
    """In what is held and in what is not, of one vector and of several in any shape."""
    seeded()
    (o, i), (out, inp) = (4, 5), held
    table = 100 + torch.rand(out + (out < o), inp + (inp < i)).double()
    table[0, 0] = 1e15  # of which rounding leaves .2: 0.2% of most others, and 22% of
    table[place] = 1.0
    operator = TruncatedKronecker(orthonormal(o, out), orthonormal(i, inp), table)
    small = operator._spectrum().flatten() == 1
    basis = operator.eigenbasis().eigenvectors(torch.arange(o * i))
    none, y = torch.zeros(o * i).double(), drawn(6, o * i)
    y[:, 0] = 0
    v = (y * ~small) @ basis.T
    found = operator.solve(v, none, 0.0)
    wanted = ((y * ~small) / operator._spectrum().flatten()) @ basis.T
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(operator.solve(v[0], none, 0.0), found[0])
    torch.testing.assert_close(operator.solve(v.view(2, 3, -1), none, 0.0).flatten(0, 1), found)
    v[2] = (y[2] * small) @ basis.T
    for rows in (v, v[2], v.view(2, 3, -1)):
        with pytest.raises(SingularError, match="rounding moves a solution by about 2"):
            operator.solve(rows, none, 0.0)
