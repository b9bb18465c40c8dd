"""Scores whose inverse is solved ever closer, until no error bound is above what was asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.ggn import GGN
from curvfluence.curvature.rung import Rung
from curvfluence.errors import CurvfluenceWarning, InputError
from curvfluence.score.scores import Scores

ATTEMPTS = 4
CLOSER = 0.1  # of the last tolerance, at most


def require_boundable(wanted: float | None, rung: Rung | Curvature, *, plain: bool) -> None:
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


def within_bounds(
    score: Callable[[Curvature], Scores], curvature: Curvature, wanted: float
) -> Scores:
    """The scores with `bounds` of at most `wanted`, or the closest of a few attempts with a warning
    that says what was reached and what it would take. A bound goes with the residual, so the next
    tolerance is the last one times what is missing."""
    tolerance = curvature.tolerance
    attempt = 1
    while True:
        scores = score(curvature)
        bounds = scores.error_bounds()
        worst = float(bounds.values.max())
        scores = replace(scores, bounds=bounds)
        if worst <= wanted:
            return scores
        reached = max(scores.residuals or (0.0,))
        if tolerance is None or attempt == ATTEMPTS or reached > 2 * tolerance:
            return _short(scores, worst, wanted, tolerance)
        tolerance *= min(CLOSER, wanted / worst / 2)
        curvature = curvature.within(tolerance)
        attempt += 1


def _short(scores: Scores, worst: float, wanted: float, tolerance: float | None) -> Scores:
    if tolerance is None:
        why = "the inverse is direct, and what is left is rounding: use problem.to(torch.float64)"
    else:
        residual = max(scores.residuals or (tolerance,))
        why = (
            f"the largest residual is {residual:.2g}, and about {residual * wanted / worst:.1g} "
            "would do: allow more products (max_products), or use problem.to(torch.float64)"
        )
    text = f"the bound of a score is up to {worst:.2g} {scores.unit}, wanted {wanted:g}: {why}"
    warnings.warn(text, CurvfluenceWarning, stacklevel=6)
    return replace(scores, notes=(*scores.notes, text))
