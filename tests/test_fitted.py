"""The curvature that scores rest on: which rung is fitted, how strictly, what is refused before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.errors import CoverageError, SingularError
from curvfluence.problem.problem import Problem
from curvfluence.score.fitted import fitted
from tests.problems import make, mlp, seeded

AT = cf.Absolute(0.1)


@pytest.fixture
def problem() -> Problem:
    return make(mlp(5, 4, 3), cf.CrossEntropy())


def test_the_form_is_that_for_so_many_solves(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Problem, int]] = []

    def for_solves(_: cf.GGN, given: Problem, count: int) -> cf.Rung:
        asked.append((given, count))
        return cf.KFAC()

    monkeypatch.setattr(cf.GGN, "for_solves", for_solves)
    assert fitted(problem, cf.GGN(), AT, strict=False).rung == "GGN"
    assert asked == []
    assert fitted(problem, cf.GGN(), AT, strict=False, solves=77).rung == "KFAC"
    assert asked == [(problem, 77)]


class Scaled(nn.Module):
    """With a number for all outputs, which no rule is of."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(5, 3), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale.exp()


def test_strict() -> None:
    seeded()
    given = make(Scaled(), cf.CrossEntropy())
    assert any(line.fallback for line in fitted(given, cf.EKFAC(), AT, strict=False).coverage)
    with pytest.raises(CoverageError):
        fitted(given, cf.EKFAC(), AT, strict=True)


@pytest.mark.parametrize("more", [0, 1])
def test_as_many_bare_parameters_as_the_rank(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """May be of full rank; one more cannot, which is known before any work."""
    given = make(mlp(5, 4, 3), cf.CrossEntropy(), weight_decay=0.0)
    monkeypatch.setattr(cf.GGN, "rank", lambda _, given: given.parameters.count - more)
    none = cf.Absolute(0.0)
    if more:
        with pytest.raises(SingularError, match="cannot be inverted: 39 parameters"):
            fitted(given, cf.GGN(), none, strict=False)
    else:
        assert fitted(given, cf.GGN(), none, strict=False).rung == "GGN"
    assert fitted(given, cf.GGN(), AT, strict=False).rung == "GGN"
