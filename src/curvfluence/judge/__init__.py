"""What scores that any library made are worth, against retraining.

The module is called as its function is: `cf.judge(scores, "digits", positive="helps")`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from curvfluence.judge.baselines import Trak
from curvfluence.judge.given import Meaning
from curvfluence.judge.records import Judgement, Method, Removed, read_judgement
from curvfluence.judge.run import Beside, judge
from curvfluence.judge.subject import Settings, model_of, problem_of
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


class _Callable(ModuleType):
    """`cf.judge` is one object, whichever of module and function was imported first."""

    def __call__(self, *args: Any, **settings: Any) -> Judgement:
        return judge(*args, **settings)


sys.modules[__name__].__class__ = _Callable
