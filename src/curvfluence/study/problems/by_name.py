"""A problem by its name, or from a file of one's own."""

from __future__ import annotations

from pathlib import Path

from curvfluence.errors import InputError
from curvfluence.study.problems.built_in import BUILT_IN
from curvfluence.study.problems.own import load_file
from curvfluence.study.problems.problem import StudyProblem


def load(name: str) -> StudyProblem:
    """The built-in problem of that name, or the one that a Python file defines.

    Anything that ends in .py or names an existing path is a file; see `load_file`. Errors:
    `InputError` lists the names, or says what the file lacks.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if name.endswith(".py") or Path(name).exists():
        return load_file(Path(name))
    raise InputError(
        f"there is no problem {name!r}; built in are {', '.join(BUILT_IN)}. A problem of your own "
        "is a Python file: `curvfluence init my_problem.py` writes an example"
    )
