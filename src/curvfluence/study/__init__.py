"""The study: specification, stages, results."""

from curvfluence.study.problems import BUILT_IN, StudyProblem, load
from curvfluence.study.run import Study, run_study
from curvfluence.study.spec import GRID, LADDER, StudySpec

__all__ = ["BUILT_IN", "GRID", "LADDER", "Study", "StudyProblem", "StudySpec", "load", "run_study"]
