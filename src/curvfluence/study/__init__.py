"""The study: specification, stages, results."""

from curvfluence.study.problems import BUILT_IN, Display, StudyProblem, load
from curvfluence.study.results import Results
from curvfluence.study.run import run_study
from curvfluence.study.spec import GRID, LADDER, StudySpec
from curvfluence.study.study import Study, read_study

__all__ = [
    "BUILT_IN",
    "GRID",
    "LADDER",
    "Display",
    "Results",
    "Study",
    "StudyProblem",
    "StudySpec",
    "load",
    "read_study",
    "run_study",
]
