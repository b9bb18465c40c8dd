"""Ever closer solutions until bounds are as asked: which residuals are asked for, and when it ends.

The scores are made up: a bound is so many times the residual, as those of a real solution are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.errors import CurvfluenceWarning, InputError
from curvfluence.score.within_bounds import require_boundable, within_bounds
from tests.zoo import zoo_problem


@dataclass(frozen=True)
class Made:
    values: Tensor
    residuals: tuple[float, ...] | None
    factor: float
    bounds: Any = None
    notes: tuple[str, ...] = ("own",)
    unit: str = "nats"

    def error_bounds(self) -> Any:
        worst = self.factor * max(self.residuals or (1e-3,))
        return SimpleNamespace(values=torch.tensor([[worst / 3, worst]]).double())


@dataclass
class Solver:
    """Residuals of `reaches` times the tolerance; bounds of `factor` times the residual."""

    factor: float
    reaches: float = 1.0
    dtype: torch.dtype = torch.float64
    told: bool = True
    asked: list[float | None] = field(default_factory=list)

    def at(self, tolerance: float | None) -> Any:
        decay = torch.zeros(1, dtype=self.dtype)
        return SimpleNamespace(decay=decay, tolerance=tolerance, within=self.at)

    def __call__(self, curvature: Any) -> Any:
        self.asked.append(curvature.tolerance)
        at = 1e-3 if curvature.tolerance is None else curvature.tolerance
        residuals = (at * self.reaches / 2, at * self.reaches) if self.told else None
        return Made(torch.zeros(1, 2, dtype=self.dtype), residuals, self.factor)


def found(solver: Solver, tolerance: float | None, wanted: float) -> tuple[Made, Sequence[str]]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        made: Any = within_bounds(solver, solver.at(tolerance), wanted)
    assert all(one.category is CurvfluenceWarning for one in seen)
    said = [str(one.message) for one in seen]
    assert made.notes == ("own", *said)
    assert float(made.bounds.values.max()) == float(made.error_bounds().values.max())
    return made, said


@pytest.mark.parametrize("factor", [1.0, 2.0, 30.0, 3e3])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_what_is_asked_for(factor: float, tolerance: float) -> None:
    """A tenth of the residual, or half of what the last bound says would do, whichever is less."""
    solver, wanted = Solver(factor), 1e-5
    made, said = found(solver, tolerance, wanted)
    assert not said
    expected = [tolerance]
    while factor * expected[-1] > wanted:
        expected.append(expected[-1] * min(0.1, wanted / (factor * expected[-1]) / 2))
    assert solver.asked == pytest.approx(expected, rel=1e-12)
    assert len(expected) <= 2
    assert made.residuals is not None
    assert made.residuals[-1] == pytest.approx(expected[-1])


def test_a_bound_that_is_just_as_asked() -> None:
    solver = Solver(2.0)
    made, said = found(solver, 0.5, 1.0)
    assert (solver.asked, said, made.notes) == ([0.5], [], ("own",))


class Slow(Solver):
    """Of which a bound falls by a tenth alone, whatever the residual."""

    def __call__(self, curvature: Any) -> Any:
        made = super().__call__(curvature)
        return replace(made, factor=0.9 ** len(self.asked) / made.residuals[-1])


def test_four_attempts() -> None:
    solver = Slow(1.0)
    made, said = found(solver, 1e-2, 1e-1)
    assert len(solver.asked) == 4
    (text,) = said
    assert made.residuals is not None
    assert f"bound of a score is up to {0.9**4:.2g} nats, wanted 0.1" in text
    assert f"the largest residual is {made.residuals[-1]:.2g}" in text
    needed = made.residuals[-1] * 0.1 / 0.9**4 / 2
    assert f"a residual of about {needed:.1g} would do" in text


@pytest.mark.parametrize(("reaches", "attempts"), [(2.0, 2), (2.2, 1), (3.0, 1)])
def test_residuals_that_stay_behind(reaches: float, attempts: int) -> None:
    """Of a form that was given too few products: no smaller one is asked for."""
    solver = Solver(1e3, reaches)
    _, said = found(solver, 2.0**-7, 1.0)
    assert len(solver.asked) == attempts
    assert len(said) == (attempts == 1)
    assert all("allow the form more products" in text for text in said)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_exact_already(dtype: torch.dtype) -> None:
    solver = Solver(10.0, dtype=dtype)
    _, said = found(solver, None, 1e-3)
    assert solver.asked == [None]
    (text,) = said
    single = dtype == torch.float32
    assert "what is left is rounding" in text
    assert ("use problem.to(torch.float64)" in text) == single
    assert ("more rows in error_bounds(rows=...)" in text) != single


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("above", "attempts"), [(1.0, 2), (0.99, 1)])
def test_the_least_residual(above: float, attempts: int, dtype: torch.dtype) -> None:
    """Four ε of the dtype; just that is asked for once more."""
    least = 4 * torch.finfo(dtype).eps
    solver = Solver(1.0, dtype=dtype)
    wanted = 2 * least * above  # of a residual of four times that, the next one: half of it
    _, said = found(solver, 2.0**10 * least, wanted)
    assert len(solver.asked) == attempts
    assert solver.asked[1:] == [least] * (attempts - 1)
    assert len(said) == (attempts == 1)
    assert all("rounding" in text for text in said)


def test_a_form_that_tells_no_residual() -> None:
    solver = Solver(10.0, told=False)
    _, said = found(solver, 1e-3, 1e-3)
    assert len(solver.asked) == 4
    assert "the largest residual is 0," in said[0]


def test_of_which_rung() -> None:
    problem = zoo_problem("mlp")
    require_boundable(1.0, problem, cf.fit(problem, cf.GGN()), plain=True)
    for rung in (cf.EKFAC(), cf.fit(problem, cf.EKFAC())):
        with pytest.raises(InputError, match="no residual of EKFAC changes"):
            require_boundable(1.0, problem, rung, plain=True)
    drawn = cf.fit(problem, cf.EKFAC(cf.Empirical()))
    with pytest.raises(InputError, match="no residual of EKFAC changes"):
        require_boundable(1.0, problem, drawn, plain=True)
    for wanted in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="bound_tolerance must be"):
            require_boundable(wanted, problem, cf.GGN(), plain=True)
    for other in ("GNN", None):
        with pytest.raises(InputError, match=f"no residual of {other} changes"):
            require_boundable(1.0, problem, other, plain=True)  # pyright: ignore[reportArgumentType]
