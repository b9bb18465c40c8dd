"""What training examples are behind some answers of a model, and what speaks for believing it."""

from curvfluence.explore.answers import Answer, Answers, answer, companion, companion_named
from curvfluence.explore.believed import Believed, believed
from curvfluence.explore.kept import going_on

__all__ = [
    "Answer",
    "Answers",
    "Believed",
    "answer",
    "believed",
    "companion",
    "companion_named",
    "going_on",
]
