"""Terms: rows that are held as matrices against the same rows as a and s; Gram matrices."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor

from curvfluence.jacobian.terms import (
    Formed,
    Memo,
    Outer,
    SharedOuter,
    bias_alone,
    blas,
    gram,
    joined,
    with_bias,
)
from curvfluence.jacobian.terms.gram import _by_halves, _by_numpy
from curvfluence.jacobian.terms.products import raised, shared
from curvfluence.runtime import budget
from tests.operators import PROBLEMS, rows_of
from tests.problems import seeded

N, T, INPUTS, OUTPUTS, Q = 6, 5, 3, 4, 2
TINY = 1e-25


def orthogonal(k: int) -> Tensor:
    return torch.linalg.qr(torch.randn(k, k, dtype=torch.float64)).Q


def shared_rows(*, ones: bool) -> SharedOuter:
    """Rows of a weight; with `ones`, of one that has a bias."""
    a = torch.randn(N, T, INPUTS, dtype=torch.float64)
    s = torch.randn(N, 1, T, OUTPUTS, dtype=torch.float64)
    data = torch.cat([a, torch.ones(N, T, 1, dtype=torch.float64)], dim=2) if ones else a
    return SharedOuter(data, s, ones=ones)


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("budgeted", [1, 2**22])
def test_norms_by_pairs_of_positions(
    columns: int, budgeted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few positions, in float64: those of the rows, and of none below 0."""
    monkeypatch.setattr(budget, "FORMED", budgeted)
    seeded()
    a = torch.randn(N, 2, 9, dtype=torch.float64)
    s = torch.randn(N, columns, 2, 8, dtype=torch.float64)
    a[1, 1], s[1, :, 1] = a[1, 0], -s[1, :, 0]  # terms that cancel
    for k, left in enumerate((1e-4, 1e-9, 1e-11), start=2):  # and that do all but for so much
        a[k, 1], s[k, :, 1] = a[k, 0], -(1 + left) * s[k, :, 0]
    term = SharedOuter(a, s)
    wanted = term.dense().square().sum((2, 3))
    torch.testing.assert_close(term.squared_norms(), wanted, rtol=1e-9, atol=0)
    assert bool((term.squared_norms() >= 0).all())
    assert torch.equal(term.to(torch.float32).squared_norms()[1], torch.zeros(columns))


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("budgeted", [1, 2**22])
def test_norms_of_what_has_no_square_in_float32(
    name: str, budgeted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows in float32, biases and what belongs to no layer too; of a layer's alone."""
    monkeypatch.setattr(budget, "FORMED", budgeted)
    rows, _ = rows_of(name)
    tiny = replace(
        rows.to(torch.float32),
        terms=tuple(replace(x.to(torch.float32), s=(TINY * x.s).float()) for x in rows.terms),
        dense=(TINY * rows.dense).float(),
    )
    wanted = tiny.to_dense().double()
    found = tiny.exact_norms()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted.norm(dim=2), rtol=1e-6, atol=0)
    assert tiny[:0].exact_norms().shape == (0, wanted.shape[1])
    for term in tiny.terms:
        of_layer = term.to(torch.float64).dense().flatten(2).norm(dim=2)
        torch.testing.assert_close(term.exact_norms(), of_layer, rtol=1e-9, atol=0)


def test_a_gradient_of_rounding_does_not_count() -> None:
    """Whether a position that the loss ignores counts must not depend on the kernel that ran."""
    seeded()
    term = shared_rows(ones=False)
    counted = torch.ones(N, T, dtype=torch.bool)
    counted[:, :2] = False
    term.s[:, :, 0] = 0  # the second ignored position has a gradient by way of others
    exact = replace(term, counted=counted)
    s = term.s + 1e-16 * torch.randn(term.s.shape, dtype=torch.float64)
    rounded = replace(exact, s=s)
    assert exact.positions() == rounded.positions() == N * (T - 1)
    assert torch.equal(exact.input_gram(), rounded.input_gram())
    same(exact.input_gram(), torch.einsum("nti,ntj->ij", term.a[:, 1:], term.a[:, 1:]))


BASES = {
    "own": lambda i: (None, None),
    "both": lambda i: (orthogonal(OUTPUTS), orthogonal(i)),
    "outputs": lambda i: (orthogonal(OUTPUTS), None),
}


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("ones", [False, True])
class TestFormed:
    """Every sum of `Formed` in a basis against that of a and s, with and without the bias."""

    def both(self, kind: str, ones: bool) -> list[tuple[SharedOuter, Formed]]:
        seeded()
        weight = shared_rows(ones=ones)
        whole = with_bias(weight) if ones else weight
        formed = whole.formed(*BASES[kind](INPUTS + ones))
        pairs = [(whole, formed)]
        if ones:
            rows = Formed(formed.held_nio, formed.out_basis, formed.in_basis, ones=True)
            pairs += [(weight, rows)]
        return pairs

    def test_rows_and_their_sums(self, kind: str, ones: bool) -> None:
        for term, formed in self.both(kind, ones):
            o, i = term.shape
            assert (formed.shape, formed.n, formed.c) == (term.shape, term.n, term.c)
            same(formed.dense(), term.dense())
            same(formed.squared_norms(), term.squared_norms())
            same(formed[1:4].dense(), term[1:4].dense())
            w = torch.rand(o, i, dtype=torch.float64)
            same(formed.weighted_squares(w), term.weighted_squares(w))
            same(formed.contracted(w), term.contracted(w))
            assert bool((formed.norms() >= term.squared_norms()[:, 0].sqrt() - 1e-12).all())
            if ones:
                same(formed.summed(), term.summed())

    @pytest.mark.parametrize("queries", [Q, N + 3], ids=["x is turned", "rows are"])
    def test_inner_and_its_adjoint(self, kind: str, ones: bool, queries: int) -> None:
        for term, formed in self.both(kind, ones):
            x = torch.randn(queries, *term.shape, dtype=torch.float64)
            same(formed.inner(x), term.inner(x))
            same(formed.inner(x.mT.contiguous().mT), term.inner(x))
            y = torch.randn(queries, N, 1, dtype=torch.float64)
            same(formed.adjoint(y), term.adjoint(y))

    def test_in_another_basis(self, kind: str, ones: bool) -> None:
        for term, formed in self.both(kind, ones):
            u_b, u_a = orthogonal(OUTPUTS), orthogonal(term.shape[1])
            same(formed.rotated(u_b, u_a).dense(), term.rotated(u_b, u_a).dense())
            same(formed.rotated(u_b, None).dense(), term.rotated(u_b, None).dense())

    def test_in_its_own_basis_nothing_is_computed(self, kind: str, ones: bool) -> None:
        term, formed = self.both(kind, ones)[0]
        u_b, u_a = formed.out_basis, formed.in_basis
        assert formed.within(u_b, u_a)
        turned = formed.rotated(u_b, u_a)
        assert turned.held_nio is formed.held_nio
        same(formed.squares(u_b, u_a), term.squares(u_b, u_a))
        assert not formed.within(orthogonal(OUTPUTS), u_a)
        same(turned.dense()[:, 0], formed.held_nio.mT)

    def test_what_is_held_is_not_written_to(self, kind: str, ones: bool) -> None:
        for _, formed in self.both(kind, ones):
            before = formed.held_nio.clone()
            formed.dense().zero_()
            formed.weighted_squares(torch.ones(formed.shape, dtype=torch.float64))
            formed.squared_norms()
            formed.squares(None, None)
            assert torch.equal(formed.held_nio, before)

    def test_put_together(self, kind: str, ones: bool) -> None:
        """With rows in the same basis, in another one, and with those that are a and s still."""
        for term, formed in self.both(kind, ones):
            whole = with_bias(term) if ones else term
            other = whole.formed(orthogonal(OUTPUTS), orthogonal(INPUTS + ones))
            other = Formed(other.held_nio, other.out_basis, other.in_basis, formed.biased, ones)
            for second in (formed, other, term):
                found = joined([formed[:2], second[2:]])
                assert isinstance(found, Formed)
                same(found.dense(), term.dense())

    def test_bias_alone_and_dtype(self, kind: str, ones: bool) -> None:
        for term, formed in self.both(kind, ones):
            if ones:
                same(bias_alone(formed).dense(), bias_alone(term).dense())
                same(with_bias(formed).dense(), with_bias(term).dense())
            single = formed.to(torch.float32)
            assert single.dense().dtype == torch.float32
            torch.testing.assert_close(single.dense(), term.dense().float(), rtol=1e-5, atol=1e-5)


def test_rows_are_formed_where_that_is_not_much_larger() -> None:
    a, s = torch.zeros(1, 2, 40), torch.zeros(1, 1, 2, 40)
    assert not SharedOuter(a, s).compact  # 1,600 numbers instead of 160
    assert SharedOuter(a[:, :, :4], s[:, :, :, :4]).compact
    assert not SharedOuter(a[:, :, :4], s[:, :, :, :4].expand(1, 3, 2, 4)).compact  # three columns


class TestGram:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("n", "k"), [(0, 3), (1, 4), (7, 1), (300, 300), (40, 513)])
    def test_is_the_product(self, dtype: torch.dtype, n: int, k: int) -> None:
        rows = torch.randn(n, k + 5, dtype=dtype)[:, :k]
        wanted = (rows.double().T @ rows.double()).to(dtype)
        assert torch.equal(_by_numpy(rows), _by_numpy(rows).T)
        for made in (_by_numpy(rows), _by_halves(rows)):
            assert made.shape == (k, k)
            eps = torch.finfo(dtype).eps
            size = float(rows.square().sum()) + 1
            assert float((made - wanted).abs().max()) <= 4 * eps * size

    @pytest.mark.parametrize("blas", [1, 2])
    @pytest.mark.parametrize("threads", [1, 2])
    def test_numpy_where_both_have_one_thread(
        self, monkeypatch: pytest.MonkeyPatch, threads: int, blas: int
    ) -> None:
        """So nobody's number of threads is changed."""
        module = sys.modules["curvfluence.jacobian.terms.gram"]
        calls: list[int] = []
        by_numpy = _by_numpy

        def counted(rows: Tensor) -> Tensor:
            calls.append(rows.shape[1])
            return by_numpy(rows)

        monkeypatch.setattr(module, "_by_numpy", counted)
        rows = torch.randn(300, 270, dtype=torch.float64)
        was = torch.get_num_threads()
        with threadpool_limits(blas, user_api="blas"):
            before = threadpool_info()
            try:
                torch.set_num_threads(threads)
                torch.testing.assert_close(gram(rows), rows.T @ rows)
                gram(rows[:, :64])  # narrow: torch's product is as fast
                gram(rows.bfloat16())
            finally:
                torch.set_num_threads(was)
            assert [one["num_threads"] for one in threadpool_info()] == [
                one["num_threads"] for one in before
            ]
        assert calls == ([270] if threads == blas == 1 else [])


PRODUCTS: dict[str, tuple[Tensor, Tensor]] = {
    "plain": (torch.randn(7, 5), torch.randn(5, 3)),
    "transposed": (torch.randn(5, 7).T, torch.randn(3, 5).T),
    "with gaps": (torch.randn(7, 9)[:, :5], torch.randn(5, 8)[:, :3]),
    "of each example": (torch.randn(4, 5, 7).mT, torch.randn(4, 5, 3)),
    "one factor for all": (torch.randn(4, 7, 5), torch.randn(5, 3)),
    "float64": (torch.randn(7, 5).double(), torch.randn(5, 3).double()),
    "no rows": (torch.randn(0, 5), torch.randn(5, 3)),
}
NOT_FOR_NUMPY: dict[str, tuple[Tensor, Tensor]] = {
    "spread": (torch.randn(14, 10)[::2, ::2], torch.randn(5, 3)),
    "bfloat16": (torch.randn(7, 5).bfloat16(), torch.randn(5, 3).bfloat16()),
    "with a graph": (torch.randn(7, 5, requires_grad=True), torch.randn(5, 3)),
}


class TestMatmul:
    def found(
        self, monkeypatch: pytest.MonkeyPatch, x: Tensor, y: Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """The product as on an AMD processor, and how often NumPy was asked."""
        calls: list[object] = []

        def counted(*arrays: object, **settings: object) -> object:
            calls.append(arrays)
            return np.matmul(*arrays, **settings)

        monkeypatch.setattr(blas, "np", SimpleNamespace(matmul=counted))
        monkeypatch.setattr(blas, "SMALL", -1)
        monkeypatch.setattr(blas, "_is_faster", lambda: True)
        with threadpool_limits(1, user_api="blas"):
            return blas.matmul(x, y, out), len(calls)

    @pytest.mark.parametrize("kind", PRODUCTS)
    def test_is_the_product(self, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        x, y = PRODUCTS[kind]
        made, calls = self.found(monkeypatch, x, y)
        torch.testing.assert_close(made, x @ y)
        assert calls == 1
        out = made.new_zeros(*made.shape[:-1], 16)[..., : made.shape[-1]]
        made, calls = self.found(monkeypatch, x, y, out)
        assert made is out
        assert calls == 1
        torch.testing.assert_close(out, x @ y)

    @pytest.mark.parametrize("kind", NOT_FOR_NUMPY)
    def test_what_is_not_for_numpy_is_torch_s(
        self, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        x, y = NOT_FOR_NUMPY[kind]
        made, calls = self.found(monkeypatch, x, y)
        assert torch.equal(made, x @ y)
        assert calls == 0

    def test_small_ones_and_several_threads_are_torch_s(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blas, "_is_faster", lambda: True)
        monkeypatch.setattr(blas, "np", None)  # raises if it is asked
        with threadpool_limits(1, user_api="blas"):
            blas.matmul(torch.ones(100, 100), torch.ones(100, 100))
        with threadpool_limits(2, user_api="blas"):
            blas.matmul(torch.ones(300, 300), torch.ones(300, 300))


class TestShared:
    """What terms on the same memory share while a chunk is worked on."""

    def test_once_for_the_same_memory_and_key(self) -> None:
        a = torch.randn(3, 2)
        memo: Memo = {}
        first = shared(memo, "gram", a, lambda: a.T @ a)
        assert shared(memo, "gram", a[:], lambda: a.T @ a) is first
        assert shared(memo, "other", a, lambda: a.T @ a) is not first
        assert shared(memo, "gram", a.clone(), lambda: a.T @ a) is not first
        assert shared(memo, "gram", a[:2], lambda: a.T @ a) is not first
        assert shared(None, "gram", a, lambda: a.T @ a) is not first

    def test_two_bases_on_the_same_inputs(self) -> None:
        seeded()
        term, memo = shared_rows(ones=False), {}
        for u_a in (orthogonal(INPUTS), orthogonal(INPUTS)):
            u_b = orthogonal(OUTPUTS)
            wanted = term.dense()
            same(term.formed(u_b, u_a, memo).dense(), wanted)
            same(term.squares(u_b, u_a, memo), term.squares(u_b, u_a))


class TestSmallSquares:
    """Squares of numbers so small that float32 has no normal number for them."""

    @pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e6])
    def test_raising_is_exact(self, size: float) -> None:
        seeded()
        x = torch.randn(7, 5) * size
        found, up = raised(x)
        assert torch.equal(found * 2.0**-up, x)
        assert float(found.abs().max()) < 2.0**24
        assert up == 30 or float(found.abs().max()) >= 2.0**23
        assert -30 <= up <= 30

    def test_what_stays_as_it_is(self) -> None:
        for x in (
            torch.ones(2).double(),
            torch.zeros(2),
            torch.empty(0),
            torch.tensor([torch.nan]),
        ):
            found, up = raised(x)
            assert found is x
            assert up == 0

    def test_the_same_bits(self) -> None:
        """As of the squares themselves, where these are normal numbers."""
        seeded()
        s, a = torch.randn(50, 3, 8) * 1e-6, torch.randn(50, 6) * 100
        wanted = s.square().sum(1).T @ a.square()
        assert torch.equal(Outer(a, s, biased=False).squares(None, None), wanted)

    @pytest.mark.parametrize(("of_s", "of_a"), [(1e5, 1e-21), (1e-21, 1e5)])
    def test_against_float64(self, of_s: float, of_a: float) -> None:
        """In float32 a square of 1e-42 has three digits of its own left."""
        seeded()
        s, a = torch.randn(50, 1, 8) * of_s, torch.randn(50, 6) * of_a
        exact = s.double().square().sum(1).T @ a.double().square()
        found = Outer(a, s, biased=False).squares(None, None)
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)

    def test_no_overflow_on_the_way(self) -> None:
        """The squares of one are beyond float32, their products with the other's are not."""
        s, a = torch.full((4, 1, 2), 1e20), torch.full((4, 3), 1e-15)
        found = Outer(a, s, biased=False).squares(None, None)
        torch.testing.assert_close(found, torch.full((2, 3), 4e10))


def test_no_examples() -> None:
    none = shared_rows(ones=False)[:0].formed(None, None)
    assert none.dense().shape == (0, 1, OUTPUTS, INPUTS)
    assert none.inner(torch.zeros(Q, OUTPUTS, INPUTS, dtype=torch.float64)).shape == (Q, 0, 1)
