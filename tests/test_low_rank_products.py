"""Which rows take how many ranks, which side is rotated, and how much is formed at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from curvfluence.curvature.operators import low_rank_inverse as module
from curvfluence.curvature.operators.low_rank_inverse import Grades, LowRankInverse, Merged
from curvfluence.jacobian.terms import Outer
from curvfluence.runtime import budget

OUT, IN, RANK = 4, 3, 2


def sized(*sizes: float) -> Outer:
    """Rows of these sizes."""
    a = torch.zeros(len(sizes), IN, dtype=torch.float64)
    a[:, 0] = torch.tensor(sizes, dtype=torch.float64)
    s = torch.zeros(len(sizes), 1, OUT, dtype=torch.float64)
    s[:, 0, 1] = 1.0
    return Outer(a, s)


def rows(n: int, columns: int = 1) -> Any:
    """Terms stand for rows, see `rotations`."""
    made = torch.Generator().manual_seed(n)
    a = torch.randn(n, IN, generator=made, dtype=torch.float64)
    return Outer(a, torch.randn(n, columns, OUT, generator=made, dtype=torch.float64))


def as_it_is(_part: object, term: Outer) -> Outer:
    return term


def listed(parts: Any) -> list[tuple[int, Any]]:
    return [(rank, at.tolist() if isinstance(at, Tensor) else at) for rank, at in parts]


class TestGrades:
    def test_a_size_for_each_fall_of_the_rank(self) -> None:
        found = Grades.of(1.0, (1.0, 2.0, 4.0, 8.0), (9, 9, 5, 5))
        assert found == Grades((0.25,), (5, 9))

    def test_as_many_ranks_as_slacks(self) -> None:
        with pytest.raises(ValueError, match="shorter"):
            Grades.of(1.0, (1.0, 2.0, 4.0), (9, 8))

    def test_as_many_ranks_as_sizes_and_one_above(self) -> None:
        with pytest.raises(ValueError, match="longer"):
            Grades((1.0,), (2,)).parts(sized(0.5, 2.0))

    def test_a_row_by_itself(self) -> None:
        """In the order of sizes, without an empty part at either end."""
        grades = Grades((1.0, 10.0), (2, 4, 6))
        assert listed(grades.parts(sized(100.0, 0.5, 5.0))) == [(2, [1]), (4, [2]), (6, [0])]
        assert listed(grades.parts(sized(5.0, 5.0))) == [(4, [0, 1])]
        assert listed(grades.parts(sized(0.5))) == [(2, [0])]

    def test_few_rows_take_the_ranks_of_larger_ones(self) -> None:
        grades = Grades((1.0, 10.0), (2, 4, 6))
        given = sized(0.5, 5.0, 5.0, 100.0)
        assert listed(grades.parts(given, 2)) == [(4, [0, 1, 2]), (6, [3])]
        assert listed(grades.parts(given, 4)) == [(6, [0, 1, 2, 3])]
        six = sized(0.5, 0.5, 0.5, 5.0, 100.0, 100.0)
        assert listed(grades.parts(six, 3)) == [(2, [0, 1, 2]), (6, [3, 4, 5])]

    def test_rows_of_a_size_stay_in_their_order(self) -> None:
        found = Grades((1.0,), (2, 4)).parts(sized(*[5.0, 0.5] * 200))
        assert listed(found) == [(2, list(range(1, 400, 2))), (4, list(range(0, 400, 2)))]

    def test_one_grade_needs_no_sizes(self) -> None:
        assert listed(Grades((), (3,)).parts(sized(1.0, 2.0))) == [(3, slice(0, 2))]
        assert listed(Grades((1.0,), (2, 4)).parts(sized())) == [(4, slice(0, 0))]


@pytest.fixture
def rotations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows are rotated, each time; rows are terms themselves."""
    seen: list[int] = []
    rotated = Outer.rotated

    def watched(term: Outer, *bases: Tensor) -> Outer:
        seen.append(term.n)
        return rotated(term, *bases)

    monkeypatch.setattr(Outer, "rotated", watched)
    monkeypatch.setattr(module, "outer_of", as_it_is)
    return seen


def inverse(*, held: bool = False, fewest: int = 1) -> LowRankInverse:
    given: Any = None
    made = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    out, into = (torch.linalg.qr(random(k, k)).Q for k in (OUT, IN))
    ranks = random(OUT, RANK), random(IN, RANK)
    grades = Grades((1.0,), (1, RANK))
    return LowRankInverse(given, out, into, *ranks, grades, None, False, given, held, fewest)


def wanted(made: LowRankInverse, queries: Outer, term: Outer, rank: int) -> Tensor:
    """gᵀ U (Σ_r u_r v_rᵀ ∘ ŝ_q ⊗ â_q), [Q, N, C], with as many ranks for all rows."""
    s_qo, a_qi = queries.s[:, 0] @ made.out_basis, queries.a @ made.in_basis
    x_qoi = (made.u_or[:, :rank] @ made.v_ir[:, :rank].T) * s_qo[:, :, None] * a_qi[:, None]
    s_nco, a_ni = term.s @ made.out_basis, term.a @ made.in_basis
    return torch.einsum("qoi,nco,ni->qnc", x_qoi, s_nco, a_ni)


@pytest.mark.parametrize(("n", "there"), [(2 * RANK - 1, True), (2 * RANK, False)])
def test_whichever_are_fewer_are_rotated(n: int, *, there: bool, rotations: list[int]) -> None:
    made = inverse(fewest=n)
    solved = made.of(rows(2))
    assert rotations == [2]
    found = solved.inner(term := rows(n, columns=2))
    assert rotations == ([2, n] if there else [2])
    torch.testing.assert_close(found, wanted(made, rows(2), term, RANK))


@pytest.mark.usefixtures("rotations")
def test_as_few_rows_as_are_told() -> None:
    """One small row among large ones takes their ranks unless one is enough for a GEMM."""
    term: Any = Outer(torch.cat([rows(5).a, 1e-3 * rows(1).a]), rows(6).s)
    for fewest, rank in ((1, 1), (2, RANK)):
        made = inverse(fewest=fewest)
        small = made.of(rows(3)).inner(term)[:, 5]
        torch.testing.assert_close(small, wanted(made, rows(3), term, rank)[:, 5])


@pytest.mark.usefixtures("rotations")
@pytest.mark.parametrize("held", [False, True])
def test_queries_stay_merged_where_they_are_held(*, held: bool) -> None:
    solved = inverse(held=held).of(rows(3))
    assert isinstance(solved, Merged)
    for term in (rows(2), rows(9)):
        torch.testing.assert_close(
            solved.inner(term), inverse(held=not held).of(rows(3)).inner(term), rtol=0, atol=0
        )
    assert ("_held" in vars(solved)) is held


@pytest.mark.usefixtures("rotations")
@pytest.mark.parametrize(("formed", "several"), [(1, 1), (2 * RANK * (OUT + IN), 2), (10**9, 5)])
def test_queries_are_merged_some_at_a_time(
    formed: int, several: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "FORMED", formed)
    made = inverse()
    solved = made.of(rows(5))
    assert isinstance(solved, Merged)
    parts = list(solved._merged())  # pyright: ignore[reportPrivateUsage]
    starts = range(0, 5, several) if formed < 10**9 else (0,)
    assert [at.start for at, _, _ in parts] == list(starts)
    sizes = [(s.shape[1], a.shape[1]) for _, s, a in parts]
    assert sizes == [(min(several, 5 - first),) * 2 for first in starts]
    found = solved.inner(term := rows(30))
    monkeypatch.setattr(budget, "FORMED", 10**9)
    torch.testing.assert_close(found, solved.inner(term))


@pytest.mark.parametrize(("merged", "steps"), [(1, 2), (64 * 3 * RANK, 2), (128 * 3 * RANK, 1)])
def test_examples_are_taken_some_at_a_time(
    merged: int, steps: int, rotations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many that their products with all ranks of all queries are as many numbers as fit."""
    monkeypatch.setattr(budget, "MERGED", merged)
    made, seen = inverse(fewest=128), list[tuple[int, ...]]()
    product = module.matmul

    def watched(one: Tensor, other: Tensor) -> Tensor:
        seen.append((*one.shape, *other.shape))
        return product(one, other)

    solved = made.of(rows(3))
    monkeypatch.setattr(module, "matmul", watched)
    found = solved.inner(term := rows(128))
    n = 128 // steps
    both = [(3 * RANK, OUT, OUT, n), (3 * RANK, IN, IN, n)]
    assert [one for one in seen if one[0] == 3 * RANK] == both * steps
    torch.testing.assert_close(found, wanted(made, rows(3), term, RANK))
    assert rotations == [3]
