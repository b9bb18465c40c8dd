"""The least rank of an inverse as few products, whether it is looked for, and how directions weigh:
against singular values in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from curvfluence.curvature.operators import low_rank_search
from curvfluence.curvature.operators.low_rank_inverse import Grades
from curvfluence.curvature.operators.low_rank_search import (
    LEAST,
    Sample,
    low_rank,
    most_ranks,
    spread_of,
    worth_a_search,
)
from curvfluence.jacobian.terms import Outer
from tests.operators import drawn

OUT, IN, Q, N = 9, 7, 4, 11


def rows(count: int, seed: int) -> Outer:
    """Single-column rows s ⊗ a of an o × i layer."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(count, IN, generator=generator, dtype=torch.float64)
    return Outer(a, torch.randn(count, 1, OUT, generator=generator, dtype=torch.float64))


def scores(inverse_oi: Tensor) -> Tensor:
    """Σ_oi ŝ_q â_q ŝ_n â_n / Λ of all queries and rows, [Q, N]."""
    of_queries, of_rows = rows(Q, 0).dense()[:, 0], rows(N, 1).dense()[:, 0]
    return torch.einsum("qoi,oi,noi->qn", of_queries, inverse_oi, of_rows)


def truncated(inverse_oi: Tensor, spread: tuple[Tensor, Tensor], rank: int) -> Tensor:
    """The nearest matrix of that rank, where entries weigh as the spread says."""
    weight_oi = spread[0][:, None] * spread[1]
    u, sigma, vh = torch.linalg.svd(weight_oi * inverse_oi)
    return (u[:, :rank] * sigma[:rank]) @ vh[:rank] / weight_oi


@pytest.fixture
def inverse_oi() -> Tensor:
    """Of eigenvalues that are no outer product."""
    return 1 / (drawn(OUT, IN).square() + torch.linspace(0.1, 1, IN, dtype=torch.float64))


@pytest.fixture
def spread() -> tuple[Tensor, Tensor]:
    return drawn(OUT).abs() + 0.5, drawn(IN).abs() + 0.5


class TestLeastRank:
    @pytest.fixture(autouse=True)
    def any_rank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(low_rank_search, "WORTH", 8.0)

    def found(
        self,
        inverse_oi: Tensor,
        spread: tuple[Tensor, Tensor],
        allowed_q: Tensor,
        *slacks: float,
    ) -> tuple[Tensor, Tensor, tuple[int, ...]] | None:
        return low_rank(inverse_oi, spread, rows(Q, 0), rows(N, 1), allowed_q, (1.0, *slacks))

    @pytest.mark.parametrize("share", [2.0, 0.5, 0.1, 1e-2, 1e-10])
    @pytest.mark.parametrize("ranks", [(64,), (1, 2, 3, 8), (5, 6)])
    def test_it_is_the_first_from_which_all_do(
        self,
        inverse_oi: Tensor,
        spread: tuple[Tensor, Tensor],
        share: float,
        ranks: tuple[int, ...],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(low_rank_search, "RANKS", ranks)
        exact_qn = scores(inverse_oi)
        allowed_q = share * exact_qn.norm(dim=1)
        found = self.found(inverse_oi, spread, allowed_q)
        near = [truncated(inverse_oi, spread, rank) for rank in range(1, IN + 1)]
        good = [bool(((scores(x) - exact_qn).norm(dim=1) <= allowed_q).all()) for x in near]
        wanted = next(
            (
                rank
                for count in ranks
                for rank in range(1, min(count, IN) + 1)
                if all(good[rank - 1 : min(count, IN)])
            ),
            None,
        )
        if wanted is None:
            assert found is None
            return
        assert found is not None
        assert found[0].shape[1] == found[1].shape[1] == wanted
        assert found[2] == (wanted,)
        assert found[1].is_contiguous() or wanted < IN
        torch.testing.assert_close(found[0] @ found[1].T, near[wanted - 1])

    def test_queries_that_may_have_no_error_are_left_out(
        self, inverse_oi: Tensor, spread: tuple[Tensor, Tensor]
    ) -> None:
        """And one that may have less than rounding leaves is met by no rank."""
        allowed_q = 0.2 * scores(inverse_oi).norm(dim=1)
        whole = self.found(inverse_oi, spread, allowed_q)
        allowed_q[0] = 0.0
        some = self.found(inverse_oi, spread, allowed_q)
        assert whole is not None
        assert some is not None
        assert some[0].shape[1] <= whole[0].shape[1]
        allowed_q[0] = 1e-300
        assert self.found(inverse_oi, spread, allowed_q) is None

    def test_ranks_of_larger_errors(
        self, inverse_oi: Tensor, spread: tuple[Tensor, Tensor]
    ) -> None:
        """As found by themselves; one of them is less than the first."""
        allowed_q = 1e-2 * scores(inverse_oi).norm(dim=1)
        slacks = (3.0, 10.0, 100.0)
        found = self.found(inverse_oi, spread, allowed_q, *slacks)
        assert found is not None
        assert found[0].shape[1] == found[2][0]
        assert found[2][-1] < found[2][0]
        for slack, rank in zip((1.0, *slacks), found[2], strict=True):
            alone = self.found(inverse_oi, spread, slack * allowed_q)
            assert alone is not None
            assert alone[2] == (rank,)

    def test_no_more_than_are_worth_it(
        self,
        inverse_oi: Tensor,
        spread: tuple[Tensor, Tensor],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        allowed_q = 1e-10 * scores(inverse_oi).norm(dim=1)
        found = self.found(inverse_oi, spread, allowed_q)
        assert found is not None
        assert found[0].shape[1] == IN
        for worth, most in ((1.7, 6), (1.8, 7)):
            monkeypatch.setattr(low_rank_search, "WORTH", worth)
            assert most_ranks(OUT, IN) == most
            found = self.found(inverse_oi, spread, allowed_q)
            assert (found is not None) == (most == IN)

    @pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
    def test_directions_that_no_row_has(
        self, inverse_oi: Tensor, spread: tuple[Tensor, Tensor], scale: float
    ) -> None:
        """Are divided by nothing, and stay 0: those that are nothing beside the largest."""
        out, inp = (scale * weight for weight in spread)
        out[2], inp[4] = 0.0, 1e-20 * scale
        found = self.found(inverse_oi, (out, inp), torch.full((Q,), 1e9, dtype=torch.float64))
        assert found is not None
        u_or, v_ir, _ = found
        assert u_or[2].tolist() == [0.0] * u_or.shape[1]
        assert v_ir[4].tolist() == [0.0] * v_ir.shape[1]
        assert int((u_or == 0).all(1).sum()) == int((v_ir == 0).all(1).sum()) == 1

    def test_of_a_wide_matrix_the_largest(self) -> None:
        """By a random range: as near as the singular values themselves are."""
        matrix = drawn(60, 50) @ torch.diag(0.7 ** torch.arange(50.0).double()) @ drawn(50, 80)
        for rank in (3, 10):
            left, right = low_rank_search._truncated(matrix, rank)  # pyright: ignore[reportPrivateUsage]
            assert (left.shape, right.shape) == ((60, rank), (80, rank))
            u, sigma, vh = torch.linalg.svd(matrix)
            best = (u[:, :rank] * sigma[:rank]) @ vh[:rank]
            assert float((left @ right.T - best).norm()) <= 1e-6 * float(matrix.norm())
            again = low_rank_search._truncated(matrix, rank)  # pyright: ignore[reportPrivateUsage]
            assert torch.equal(again[0], left)


class TestGrades:
    def test_of_falling_ranks(self) -> None:
        """A row of a typical size over f takes the rank of f times the error; equal ones are one,
        from the larger size on."""
        grades = Grades.of(8.0, (1.0, 2.0, 4.0, 8.0, 16.0), (9, 7, 7, 5, 5))
        assert grades == Grades((1.0, 4.0), (5, 7, 9))
        assert Grades.of(8.0, (1.0,), (9,)) == Grades((), (9,))

    @pytest.mark.parametrize("columns", [1, 3])
    def test_parts(self, columns: int) -> None:
        """Every row once, by its size over all of its columns, at the limit below it."""
        term = rows(N, 1)
        term = Outer(term.a, term.s.expand(-1, columns, -1))
        size_n = term.dense().flatten(1).norm(dim=1)
        limits = size_n.sort().values[[2, 6]].tolist()
        grades = Grades(tuple(x * (1 + 1e-9) for x in limits), (1, 2, 4))
        found = grades.parts(Outer(term.a, term.s))
        assert [rank for rank, _ in found] == [1, 2, 4]
        order = size_n.argsort().tolist()
        sets = [set(at.tolist()) for _, at in found if isinstance(at, Tensor)]
        assert sets[1:] == [set(order[3:7]), set(order[7:])]
        assert sets[0] == set(order[:3])

    @pytest.mark.parametrize(
        ("fewest", "wanted"),
        [
            (1, [(1, 2), (2, 1), (4, 3)]),
            (2, [(1, 2), (4, 4)]),
            (3, [(2, 3), (4, 3)]),
            (7, [(4, 6)]),
        ],
    )
    def test_too_few_take_the_ranks_of_larger_ones(
        self, fewest: int, wanted: list[tuple[int, int]]
    ) -> None:
        """However few the largest are."""
        size_n = torch.tensor([0.5, 9.0, 1.5, 9.0, 0.5, 9.0])
        term = Outer(size_n[:, None], torch.ones(6, 1, 1))
        found = Grades((1.0, 2.0, 3.0), (1, 2, 3, 4)).parts(term, fewest)
        assert [(rank, len(at)) for rank, at in found if isinstance(at, Tensor)] == wanted
        assert sorted(k for _, at in found if isinstance(at, Tensor) for k in at.tolist()) == [
            *range(6)
        ]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_what_no_row_takes(self, dtype: torch.dtype) -> None:
        """Nor are rows small because their squares are 0 in float32."""
        term = rows(N, 1).to(dtype)
        tiny, huge = Outer(1e-15 * term.a, 1e-15 * term.s), Outer(1e9 * term.a, term.s)
        grades = Grades((0.1, 1.0), (1, 2, 4))
        for some, wanted in ((tiny, 1), (huge, 4)):
            ((rank, at),) = grades.parts(some)
            assert rank == wanted
            assert isinstance(at, Tensor)
            assert at.tolist() == list(range(N))
        small = Grades((1e-32, 1e-31), (1, 2, 4)).parts(tiny)
        assert [rank for rank, _ in small] == [4]
        assert grades.parts(rows(0, 1)) == [(4, slice(0, 0))]
        assert Grades((), (3,)).parts(term) == [(3, slice(0, N))]

    @pytest.mark.parametrize(
        ("slack", "wanted"), [(1.0, 1), (3.1, 1), (3.17, 2), (9.99, 2), (10.0, 3), (100.0, 5)]
    )
    def test_slacks(self, slack: float, wanted: int) -> None:
        """Two in each decade, none beyond what is said."""
        sample = Sample(1, lambda: pytest.fail("asked"), lambda: None, None, slack)
        assert sample.slacks == pytest.approx([10.0 ** (k / 2) for k in range(wanted)])


@dataclass
class Part:
    """A layer's shape."""

    shape: tuple[int, int]


class TestWorth:
    def worth(self, shape: tuple[int, int], queries: int, examples: int, allowed: bool) -> bool:
        part: Any = Part(shape)
        given: Any = range(queries)
        sample = Sample(
            examples, lambda: given, lambda: None, (lambda: torch.ones(1)) if allowed else None
        )
        return worth_a_search(part, given, sample)

    def test_a_product_as_long_as_the_least(self) -> None:
        n = int(LEAST) // (2 * 4 * 64 * 64)
        assert 2 * 4 * n * 64 * 64 == LEAST
        assert self.worth((64, 64), 4, n, True)
        assert not self.worth((64, 64), 4, n - 1, True)
        assert not self.worth((64, 64), 4, n, False)

    def test_ranks_enough_to_choose_from(self) -> None:
        """Eight, that together take no more than 0.7 of the product."""
        assert most_ranks(23, 23) == 8
        assert most_ranks(22, 22) == 7
        assert most_ranks(200, 10) == 6
        assert self.worth((23, 23), 1, 10**12, True)
        assert not self.worth((22, 22), 1, 10**12, True)


class TestSpread:
    @pytest.mark.parametrize("scale", [1e-3, 1.0])
    def test_by_definition(self, scale: float) -> None:
        values, queries, some = scale * drawn(OUT, IN), rows(Q, 0), rows(N, 1)
        some = Outer(scale * some.a, scale * some.s)
        kept = values.clamp_min(0)
        for found, of_queries, of_rows, sums in zip(
            spread_of(values, queries, some),
            (queries.s[:, 0], queries.a),
            (some.s[:, 0], some.a),
            (kept.sum(1), kept.sum(0)),
            strict=True,
        ):
            square = of_rows.square().mean(0)
            wanted = of_queries.square().mean(0) * (square / square.sum() + sums / sums.sum())
            torch.testing.assert_close(found, wanted.sqrt())

    def test_nothing_weighs_nothing(self) -> None:
        empty = Outer(torch.zeros(N, IN).double(), torch.zeros(N, 1, OUT).double())
        for found in spread_of(torch.zeros(OUT, IN).double(), rows(Q, 0), empty):
            assert not bool(found.any())

    def test_in_float64(self) -> None:
        values, queries, some = drawn(OUT, IN), rows(Q, 0), rows(N, 1)
        wanted = spread_of(values, queries, some)
        single = spread_of(values.float(), queries.to(torch.float32), some.to(torch.float32))
        for found, one in zip(single, wanted, strict=True):
            assert found.dtype == torch.float64
            torch.testing.assert_close(found, one, rtol=1e-5, atol=0)
