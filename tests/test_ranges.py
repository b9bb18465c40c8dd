"""Gradients of the ranges that processes share out: the same rows, made once."""

from __future__ import annotations

import pytest
import torch

import curvfluence as cf
from curvfluence.jacobian import gradients, passes
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import forget_gradients, range_gradients, training_gradients
from curvfluence.jacobian.rows import concatenate
from curvfluence.runtime import budget
from curvfluence.runtime.ranks import GROUPS
from tests.problems import make, mlp, seeded

N = 70


@pytest.fixture
def problem() -> cf.Problem:
    seeded()
    return make(mlp(5, 4, 3), cf.CrossEntropy(), n=N)


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
    """A range has its share of what a problem may remember, and keeps its first chunks."""
    seeded()
    given = make(mlp(5, 4, 3), cf.CrossEntropy(), n=N, remember=0)
    for _ in range(2):
        whole(given, again=True)
    assert len(made) == 2 * GROUPS


def test_as_many_examples_are_run_alone_as_in_one_go(
    problem: cf.Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ranges 0, 1, 2, 4 and 8 where each is a chunk; of more where a range is several."""
    found, real = list[int](), vars(passes)["_require_alone"]

    def require_alone(*given: object) -> None:
        found.append(int(str(given[-1])))
        real(*given)

    monkeypatch.setattr(passes, "_require_alone", require_alone)
    whole(problem, again=False)
    assert found == [N * number // GROUPS for number in (0, 1, 2, 4, 8)]
    found.clear()
    monkeypatch.setattr(budget, "EXAMPLES", 2)
    whole(problem, again=False)
    assert {0, N // GROUPS, N * 2 // GROUPS} <= set(found)
    assert len(found) < 2 * GROUPS
