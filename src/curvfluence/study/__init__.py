"""The study: specification, stages, results."""

from curvfluence.study.problems import BUILT_IN, Display, StudyProblem, load
from curvfluence.study.run import Study, run_study
from curvfluence.study.spec import GRID, LADDER, StudySpec

__all__ = [
    "BUILT_IN",
    "GRID",
    "LADDER",
    "Display",
    "Study",
    "StudyProblem",
    "StudySpec",
    "load",
    "run_study",
]
