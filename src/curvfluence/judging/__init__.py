"""What scores that any library made are worth, against retraining."""

from __future__ import annotations

from curvfluence.judging.baselines import Trak
from curvfluence.judging.given import Meaning
from curvfluence.judging.records import Judgement, Method, Removed, read_judgement
from curvfluence.judging.run import Beside, judge
from curvfluence.judging.subject import Settings, model_of, problem_of
from curvfluence.study.questions.removal import Removal

__all__ = [
    "Beside",
    "Judgement",
    "Meaning",
    "Method",
    "Removal",
    "Removed",
    "Settings",
    "Trak",
    "judge",
    "model_of",
    "problem_of",
    "read_judgement",
]
