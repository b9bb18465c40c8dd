"""Solved queries against dense ones: at low rank, by low-rank inverses, in either coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.kronecker import (
    KroneckerEigen,
    Rotated,
)
from curvfluence.curvature.operators.low_rank import LowRank
from curvfluence.curvature.operators.low_rank_inverse import Grades, LowRankInverse
from curvfluence.curvature.operators.low_rank_search import Sample, Search
from curvfluence.curvature.operators.operator import (
    Against,
    Operator,
)
from curvfluence.curvature.operators.paired import FEW_ROWS, Paired
from curvfluence.curvature.operators.solution import AtLowRank, InLayer, Solution
from curvfluence.curvature.places import LayerPart, Places
from curvfluence.errors import InputError, SingularError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.drawn import DRAWN, Drawn
from curvfluence.jacobian.gradients import query_gradients, training_gradients
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Outer, SharedOuter
from tests.operators import LAMBDA, blocks, curvature_of, drawn, inverted, rows_of
from tests.problems import chain_problem

SEARCH = "curvfluence.curvature.operators.low_rank_search"


def each(rows: Rows) -> Drawn:
    """All of them, each for itself."""
    return Drawn(rows, torch.ones(len(rows), dtype=torch.float64))


def low_rank_inverse(
    operator: Operator, places: Places, queries: Rows, decay: Tensor, damping: float, sample: Sample
) -> LowRankInverse | None:
    """What its search finds, where it is one."""
    found = operator.low_rank_inverse(places, queries, decay, damping, sample)
    return found.inverse(found.run()) if isinstance(found, Search) else found


class TestLowRankInverse:
    """The inverse as few products, on nets small enough to form it, whatever it is worth."""

    @pytest.fixture(autouse=True)
    def always(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place = "curvfluence.curvature.operators.low_rank_search"
        monkeypatch.setattr(f"{place}.LEAST", 0.0)
        monkeypatch.setattr(f"{place}.WORTH", 8.0)

    def sample(self, share: float, name: str = "chain") -> Sample:
        """Errors of so much of each query's scores are allowed."""
        queries, train = rows_of(name)

        def allowed() -> Tensor:
            g_q, g_n = queries.to_dense()[:, 0], train.to_dense()[:, 0]
            return share * (g_q @ g_n.T).norm(dim=1)

        return Sample(len(train), lambda: queries, lambda: each(train), allowed)

    def found(
        self, share: float, name: str = "chain", rung: str = "EKFAC"
    ) -> Iterator[tuple[Block, Tensor, LowRankInverse | None]]:
        queries, _ = rows_of(name)
        for block, decay in blocks(name, rung):
            inverse = low_rank_inverse(
                block.operator, block.places, queries, decay, LAMBDA, self.sample(share, name)
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
                less = replace(
                    inverse,
                    u_or=inverse.u_or[:, :-1],
                    v_ir=inverse.v_ir[:, :-1],
                    grades=Grades((), (inverse.rank - 1,)),
                )
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
            inverse = low_rank_inverse(
                flat, block.places, queries, decay, LAMBDA, self.sample(1e-9)
            )
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

        def zeros() -> Tensor:
            return torch.zeros(len(queries), dtype=torch.float64)

        def tiny() -> Tensor:
            return torch.full((len(queries),), 1e-300, dtype=torch.float64)

        for sample in (
            replace(whole, rows=lambda: None),
            replace(whole, allowed=None),
            replace(whole, allowed=zeros),
            replace(whole, allowed=tiny),
        ):
            given = (block.places, queries, decay, LAMBDA, sample)
            assert low_rank_inverse(block.operator, *given) is None
        for block, decay, inverse in self.found(0.1, "conv2d"):
            places = block.places
            if isinstance(places, LayerPart) and not places.shared:
                assert isinstance(inverse, LowRankInverse), decay

    def test_too_short_a_product_is_not_worth_a_search(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = "curvfluence.curvature.operators.low_rank_search"
        monkeypatch.setattr(f"{place}.LEAST", 2.0**35)
        assert all(inverse is None for *_, inverse in self.found(0.1))

    def test_one_query_that_has_none_is_not_asked(self) -> None:
        """A query that may have no error bounds no rank where others may."""
        queries, _ = rows_of("chain")
        block, decay = next(blocks("chain", "EKFAC"))
        whole = self.sample(0.05)

        def some() -> Tensor:
            assert whole.allowed is not None
            allowed = whole.allowed().clone()
            allowed[0] = 0
            return allowed

        found = low_rank_inverse(
            block.operator, block.places, queries, decay, LAMBDA, replace(whole, allowed=some)
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

        def allowed() -> Tensor:
            return torch.full((len(queries),), 1e9)

        sample = Sample(len(train), lambda: queries, lambda: each(train), allowed)
        inverse = low_rank_inverse(operator, block.places, queries, nothing, 0.1, sample)
        assert isinstance(inverse, LowRankInverse)
        assert inverse.u_or.dtype == inverse.v_ir.dtype == torch.float32
        for attempt in (
            lambda: low_rank_inverse(rough, block.places, queries, nothing, 0.0, sample),
            lambda: rough.solve_rows(block.places, queries, nothing, 0.0, Against(9)),
            lambda: rough.quadratic(block.places, train, nothing, 0.0),
        ):
            with pytest.raises(SingularError, match="inverted in float32"):
                attempt()
        for factor in (1e-12, 1e-3, 1e3):  # a share of each by itself, however small or large it is
            some = replace(train, terms=tuple(outer(t, factor) for t in train.terms))
            with pytest.raises(SingularError, match="inverted in float32"):
                rough.quadratic(block.places, some, nothing, 0.0)
            asked = replace(queries, terms=tuple(outer(t, factor) for t in queries.terms))
            few = replace(sample, queries=lambda asked=asked: asked)
            with pytest.raises(SingularError, match="inverted in float32"):
                low_rank_inverse(rough, block.places, asked, nothing, 0.0, few)
        none = replace(queries, terms=tuple(outer(t, 0.0) for t in queries.terms))
        few = replace(sample, queries=lambda: none)
        assert isinstance(
            low_rank_inverse(rough, block.places, none, nothing, 0.0, few), LowRankInverse
        )
        empty = queries[torch.arange(0)]
        assert len(rough.quadratic(block.places, empty, nothing, 0.0)) == 0
        zero = replace(train, terms=tuple(outer(t, 0.0) for t in train.terms))
        assert not bool(rough.quadratic(block.places, zero, nothing, 0.0).any())


def outer(term: object, factor: float) -> Outer:
    assert isinstance(term, Outer)
    return replace(term, s=factor * term.s)


def inverse_of(block: Block, decay: Tensor) -> Tensor:
    return inverted(block.operator, decay, LAMBDA)


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

    def test_squares_that_overflow(self) -> None:
        """Nothing tells what a rank loses, so all of them are kept."""
        x = 1e25 * drawn(2, 4, 3).float()
        low = LowRank.of(x, 0.9)
        assert low.rank == 3
        torch.testing.assert_close(low.left @ low.right.mT, x, rtol=1e-4, atol=1e19)

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


class TestPaired:
    """What is solved for few rows, of which products are taken by pairs."""

    def solved(
        self, rung: str, name: str, rows: Rows, examples: int
    ) -> Iterator[tuple[Block, Solution]]:
        for block, decay in blocks(name, rung):
            against = Against(examples)
            yield block, block.operator.solve_rows(block.places, rows, decay, LAMBDA, against)

    @pytest.mark.parametrize("merged", [1, 300, 2**20])
    @pytest.mark.parametrize("rung", ["EKFAC", "KFAC"])
    def test_is_the_inverse(self, rung: str, merged: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bias of another decay too, however many pairs at a time; as without pairs, where any
        solution counts as small."""
        queries, train = rows_of("chain")
        several = [x for _, x in self.solved(rung, "chain", queries, 0)]
        assert not any(isinstance(x, Paired) for x in several)
        monkeypatch.setattr("curvfluence.runtime.budget.FORMED", 0)
        monkeypatch.setattr("curvfluence.runtime.budget.MERGED", merged)
        if merged == 1:  # some rows at a time, too
            monkeypatch.setattr("curvfluence.curvature.operators.paired.FEW_ROWS", 5)
        seen = 0
        found = self.solved(rung, "chain", queries, FEW_ROWS)
        for (_, paired), wanted in zip(found, several, strict=True):
            assert isinstance(paired, Paired)
            seen += 1
            torch.testing.assert_close(paired.inner(train), wanted.inner(train))
            torch.testing.assert_close(paired.flat(), wanted.flat())
            assert paired.inner(train[:0]).shape == (len(queries), 0, 1)
        assert seen

    def test_of_many_rows_it_is_formed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("curvfluence.runtime.budget.FORMED", 0)
        queries, _ = rows_of("chain")
        for _, x in self.solved("EKFAC", "chain", queries, FEW_ROWS + 1):
            assert not isinstance(x, Paired)

    @pytest.mark.parametrize("name", ["conv2d", "embedding"])
    def test_what_is_no_outer_product_is_formed(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("curvfluence.runtime.budget.FORMED", 0)
        queries, _ = rows_of(name)
        seen = 0
        for block, x in self.solved("EKFAC", name, queries, 1):
            assert isinstance(block.places, LayerPart)
            if not isinstance(block.places.term(queries), Outer):
                seen += 1
                assert not isinstance(x, Paired)
        assert seen

    def test_where_rounding_may_matter_a_bias_of_its_own_decay_is_formed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What rounding moves may be all that such a solution keeps, which shows in it alone."""
        monkeypatch.setattr("curvfluence.runtime.budget.FORMED", 0)
        monkeypatch.setattr(f"{SEARCH}.LEAST", 0.0)
        monkeypatch.setattr(f"{SEARCH}.WORTH", 8.0)
        (place,) = [b.places for b, _ in blocks("chain", "EKFAC") if b.name == "0"]
        assert isinstance(place, LayerPart)
        o, i = place.shape
        values = torch.full((o, i), 1e-6, dtype=torch.float64)
        values[:, 0], values[:, 1] = 1.0, 1e-15
        operator = KroneckerEigen(torch.eye(o).double(), torch.eye(i).double(), values)
        decay = torch.zeros(o, i, dtype=torch.float64)
        decay[:, -1] = 1.0
        queries, _ = rows_of("chain")
        small = [0.0, 1e-15, *[0.0] * (i - 2)]  # the ones of the bias beside it
        term = place.term(queries)
        assert isinstance(term, Outer)
        data = torch.tensor([small]).double().expand(len(queries), i).clone()
        data[:, -1] = 1e-3
        layer = replace(term, data=data)
        rows = replace(queries, terms=(layer, *queries.terms[1:]))
        with pytest.raises(SingularError, match="moves a solution"):
            operator.solve_rows(place, rows, decay.flatten(), 0.0, Against(1))
        sample = Sample(4, lambda: rows, lambda: each(rows), lambda: torch.ones(len(rows)))
        assert operator.low_rank_inverse(place, rows, decay.flatten(), 0.0, sample) is None

    def test_samples_are_few_rows(self) -> None:
        """Ranks are checked without a solution of every query."""
        assert DRAWN <= FEW_ROWS

    def test_a_solution_is_formed_some_queries_at_a_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("curvfluence.runtime.budget.FORMED", 0)
        queries, _ = rows_of("chain")
        curvature = curvature_of("chain", "EKFAC")
        damping = cf.Absolute(LAMBDA)
        few = curvature.solve_rows(queries, damping, against=Against(1))
        assert all(isinstance(part, Paired) for part in few.parts.values())
        many = curvature.solve_rows(queries, damping, against=Against(FEW_ROWS + 1))
        torch.testing.assert_close(few.flat(), many.flat())

    def test_what_rounding_moves_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("curvfluence.runtime.budget.FORMED", 0)
        queries, _ = rows_of("chain")
        for block, decay in blocks("chain", "EKFAC"):
            operator = block.operator
            assert isinstance(operator, KroneckerEigen)
            values = torch.full_like(operator.values, 1e-17)
            values[0, 0] = 1.0
            rough = replace(operator, values=values)
            with pytest.raises(SingularError, match="moves a solution"):
                rough.solve_rows(block.places, queries, 0 * decay, 0.0, Against(1))
