"""A warning is told of the user's own line, past decorators and functions of the package.

By themselves: what makes mutants of a function adds a frame to every call.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

import curvfluence as cf
from curvfluence.errors import CurvfluenceWarning
from curvfluence.score import tokens
from tests.test_scores import Doubled
from tests.zoo import zoo_problem


def by_positions() -> None:
    plain = zoo_problem("untied transformer")
    model = Doubled(plain.model, plain.train.inputs[6], "wrong factor")
    made = cf.Problem(model, plain.loss, plain.train, plain.queries)
    cf.token_influence(made, cf.Identity())


def out_of_bounds() -> None:
    problem = zoo_problem("mlp")
    cf.influence(problem, cf.GGN(), damping=cf.Absolute(1e-3), bound_tolerance=1e-300)


@pytest.mark.parametrize("call", [by_positions, out_of_bounds])
def test_the_line_is_ours(call: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "DIRECTIONS", 0.0)
    with pytest.warns(CurvfluenceWarning) as seen:
        call()
    assert {one.filename for one in seen} == {__file__}
