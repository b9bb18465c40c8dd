"""Scores whose inverse is solved ever closer, until no error bound is above what was asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.ggn import GGN
from curvfluence.curvature.rung import Rung
from curvfluence.errors import CurvfluenceWarning, InputError
from curvfluence.problem.problem import Problem, require_problem
from curvfluence.score.scores import Scores

ATTEMPTS = 4
CLOSER = 0.1  # of the last tolerance, at most
LEAST_EPS = 4.0  # ε, below which no residual is asked for


def require_boundable(
    wanted: float | None, problem: Problem, rung: Rung | Curvature, *, plain: bool
) -> None:
    """Refuse what a smaller residual would not bring to any bound, before work."""
    if wanted is None:
        return
    if not kinds.number(wanted, "bound_tolerance") > 0:
        raise InputError(f"bound_tolerance must be above 0; seen {wanted}")
    name = rung.rung if isinstance(rung, Curvature) else getattr(rung, "name", rung)
    if name != GGN().name:
        raise InputError(
            f"bound_tolerance is of the distance to the exact GGN, which no residual of {name} "
            "changes: use GGN(), or ask scores.error_bounds() how far this rung is"
        )
    if not plain:
        raise InputError("bounds are of plain scores in memory: without leverage, by_block, out")
    require_problem(problem)


def within_bounds(
    score: Callable[[Curvature], Scores], curvature: Curvature, wanted: float
) -> Scores:
    """The scores with `bounds` of at most `wanted`, or the closest of a few attempts with a warning
    that says what was reached and what it would take. A bound goes with the residual, so the next
    tolerance is the last one times what is missing, as long as that is above rounding."""
    least = LEAST_EPS * torch.finfo(curvature.decay.dtype).eps
    tolerance = curvature.tolerance
    attempt = 1
    while True:
        scores = score(curvature)
        bounds = scores.error_bounds()
        worst = float(bounds.values.max())
        scores = replace(scores, bounds=bounds)
        if worst <= wanted:
            return scores
        closer = 0.0 if tolerance is None else tolerance * min(CLOSER, wanted / worst / 2)
        arrived = tolerance is not None and max(scores.residuals or (0.0,)) <= 2 * tolerance
        if attempt == ATTEMPTS or not arrived or closer < least:
            return _short(scores, worst, wanted, closer if closer >= least else None)
        tolerance = closer
        curvature = curvature.within(tolerance)
        attempt += 1


def _short(scores: Scores, worst: float, wanted: float, needed: float | None) -> Scores:
    """`needed`: the residual that would do; None where that is below rounding."""
    if needed is not None:
        why = f"a residual of about {needed:.1g} would do: allow the form more products"
    elif scores.values.dtype == torch.float64:
        why = "what is left is rounding, and more rows in error_bounds(rows=...) bound it closer"
    else:
        why = "what is left is rounding: use problem.to(torch.float64)"
    reached = max(scores.residuals or (0.0,))
    text = (
        f"the bound of a score is up to {worst:.2g} {scores.unit}, wanted {wanted:g}; the largest "
        f"residual is {reached:.2g}, and {why}"
    )
    warnings.warn(text, CurvfluenceWarning, stacklevel=5)
    return replace(scores, notes=(*scores.notes, text))
