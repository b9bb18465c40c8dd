"""What a study is about: built-in problems, and files of one's own."""

from curvfluence.study.problems.built_in import BUILT_IN
from curvfluence.study.problems.by_name import load
from curvfluence.study.problems.nets import MLP
from curvfluence.study.problems.own import load_file
from curvfluence.study.problems.prepare import (
    SPLIT_SEED,
    principal_components,
    require_disjoint,
    split,
    standardise,
)
from curvfluence.study.problems.problem import Display, StudyProblem
from curvfluence.study.problems.template import write_template

__all__ = [
    "BUILT_IN",
    "SPLIT_SEED",
    "Display",
    "StudyProblem",
    "load",
    "load_file",
    "MLP",
    "principal_components",
    "require_disjoint",
    "split",
    "standardise",
    "write_template",
]
