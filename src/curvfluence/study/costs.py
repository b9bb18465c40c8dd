"""Forecasts of a study's rungs, at untrained weights: costs do not depend on what they are."""

from __future__ import annotations

from curvfluence.errors import InputError
from curvfluence.forecast import LADDER, Plan, plans
from curvfluence.problem.problem import Problem
from curvfluence.study.asked import prepared
from curvfluence.study.problems import load
from curvfluence.study.spec import DTYPES, StudySpec


def forecasts(
    name: str, rungs: tuple[str, ...] | None, *, queries: int | None, dtype: str
) -> tuple[Plan, ...]:
    """The plan of each rung (by default of the whole ladder) on a built-in problem or a file's."""
    spec = StudySpec(problem=name, subsets=3, dtype=dtype)
    loaded = prepared(load(name), spec.plan, DTYPES[dtype])
    known = {type(rung).__name__: rung for rung in LADDER}
    chosen = tuple(known) if rungs is None else rungs
    unknown = [rung for rung in chosen if rung not in known]
    if unknown:
        raise InputError(f"there is no rung {unknown[0]!r}; the ladder is {', '.join(known)}")
    if queries is not None and queries < 1:
        raise InputError(f"queries must be at least 1; seen {queries}")
    recipe = loaded.recipe
    problem = Problem(
        recipe.build(0, recipe.dtype(loaded.train)).eval(),
        recipe.loss,
        loaded.train,
        loaded.queries,
        measurement=loaded.measurement,
        weight_decay=recipe.weight_decay,
        decoupled_decay=recipe.optimizer.decoupled,
        forward=recipe.forward,
        output=recipe.output,
    )
    return plans(problem, [known[rung] for rung in chosen], queries=queries)
