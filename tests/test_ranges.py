"""Gradients of the ranges that processes share out: the same rows, made once."""

from __future__ import annotations

import pytest
import torch

import curvfluence as cf
from curvfluence.jacobian import gradients, passes
from curvfluence.jacobian.cache import GRADIENTS, row_cache
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import (
    forget_gradients,
    gradient_rows,
    range_gradients,
    training_gradients,
)
from curvfluence.jacobian.rows import concatenate
from curvfluence.runtime import budget, ranks
from curvfluence.runtime.ranks import GROUPS
from tests.problems import make, mlp, seeded

N = 70


def of_examples(n: int, **settings: int) -> cf.Problem:
    seeded()
    return make(mlp(5, 4, 3), cf.CrossEntropy(), n=n, **settings)


@pytest.fixture
def problem() -> cf.Problem:
    return of_examples(N)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first example of each call for rows."""
    found, real = list[int](), gradients.rows_in_chunks

    def rows_in_chunks(*given: object, first: int = 0, **more: object) -> object:
        found.append(first)
        return real(*given, first=first, **more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(gradients, "rows_in_chunks", rows_in_chunks)
    return found


def whole(problem: cf.Problem, *, again: bool) -> torch.Tensor:
    layout, parts = discover(problem), []
    for number in range(GROUPS):
        for start, rows in range_gradients(problem, layout, number, again=again):
            assert start == sum(map(len, parts))
            parts.append(rows)
    return concatenate(parts).to_dense()


@pytest.mark.parametrize("again", [False, True])
def test_are_made_once(problem: cf.Problem, made: list[int], again: bool) -> None:
    """Or twice, where nobody said that they would be asked for again."""
    wanted = training_gradients(problem, discover(problem)).to_dense()
    made.clear()
    for times in (1, 1 if again else 2, 1 if again else 2):
        torch.testing.assert_close(whole(problem, again=again), wanted)
        assert len(made) == times * GROUPS
    forget_gradients(problem, discover(problem))
    torch.testing.assert_close(whole(problem, again=True), wanted)
    assert made[-GROUPS:] == [N * number // GROUPS for number in range(GROUPS)]


def test_other_weights_are_other_gradients(problem: cf.Problem, made: list[int]) -> None:
    before = whole(problem, again=True)
    with torch.no_grad():
        problem.theta["0.weight"].mul_(2.0)
    made.clear()
    after = whole(problem, again=True)
    assert len(made) == GROUPS
    assert not torch.allclose(before, after)


def test_what_there_is_no_room_for_is_made_anew(made: list[int]) -> None:
    given = of_examples(N, remember=0)
    for _ in range(2):
        whole(given, again=True)
    assert len(made) == 2 * GROUPS


def test_ranges_share_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the other processes of a machine; and what is remembered otherwise goes, as they go for
    it."""
    given = of_examples(N, remember=16_000)
    layout = discover(given)
    cache = row_cache(given, layout)
    list(gradient_rows(given, layout, again=True))
    held = cache.of(GRADIENTS).count
    assert held
    found = cache.of_range(GRADIENTS, 3)
    assert found.room == 1_000
    assert cache.of(GRADIENTS).count == 0
    assert cache.of_range(GRADIENTS, 3) is not found
    cache.forget(GRADIENTS)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    token = ranks._TEAM.set(ranks.Ranks(1, 4))  # pyright: ignore[reportPrivateUsage]
    try:
        found = cache.of_range(GRADIENTS, 5)
        assert cache.of(GRADIENTS).count == 0
        assert cache.of_range(GRADIENTS, 5) is found
    finally:
        ranks._TEAM.reset(token)  # pyright: ignore[reportPrivateUsage]
    assert found.room == 1_000


def test_goes_on_where_a_chunk_begins(
    problem: cf.Problem, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing made, read or kept of what comes before."""
    layout = discover(problem)
    monkeypatch.setattr(budget, "EXAMPLES", 2)
    begin, end = ranks.bounds(N, 7)
    for _ in range(2):
        found = list(range_gradients(problem, layout, 7, again=True, first=begin + 2))
        assert [start for start, _ in found] == list(range(begin + 2, end, 2))
    assert made == [begin + 2] * 2
    assert not row_cache(problem, layout).of_range(GRADIENTS, 7).chunks


def test_nothing_is_read_where_works_must_not_hang_on_it(
    problem: cf.Problem, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curvfluence.runtime.journal.steady", lambda: True)
    for _ in range(2):
        whole(problem, again=True)
    assert len(made) == 2 * GROUPS


@pytest.mark.parametrize(
    ("n", "wanted"), [(N, (0, 1, 2, 4, 8)), (20, (3, 7, 11)), (2 * GROUPS, (0, 1, 2, 4, 8))]
)
def test_as_many_examples_are_run_alone_as_in_one_go(
    n: int, wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ranges 0, 1, 2, 4 and 8 of those with several examples where each is a chunk; of more
    where a range is several."""
    problem = of_examples(n)
    found, real = list[int](), vars(passes)["_require_alone"]

    def require_alone(*given: object) -> None:
        found.append(int(str(given[-1])))
        real(*given)

    monkeypatch.setattr(passes, "_require_alone", require_alone)
    whole(problem, again=False)
    assert found == [n * number // GROUPS for number in wanted]
    found.clear()
    monkeypatch.setattr(budget, "EXAMPLES", 2)
    whole(problem, again=False)
    assert {n * number // GROUPS for number in wanted[:3]} <= set(found)
    assert len(found) < 2 * GROUPS
