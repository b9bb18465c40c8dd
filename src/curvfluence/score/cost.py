"""What scores cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScoreCost:
    """Seconds of wall clock of the fit and of the scores; bytes the curvature holds."""

    fit_seconds: float
    score_seconds: float
    nbytes: int
