"""A problem of one's own: a Python file that defines `problem` and `recipe`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from curvfluence.errors import CurvfluenceWarning, InputError
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import in_memory
from curvfluence.problem.tree import Tree, column_names, table_of
from curvfluence.store.hashes import hash_json
from curvfluence.study.problems.isolation import Executed, execute
from curvfluence.study.problems.prepare import shared_rows
from curvfluence.study.problems.problem import SUBSETS, Display, StudyProblem
from curvfluence.study.problems.reproduce import (
    observed,
    one_step,
    require_reproduced,
    require_same_function,
    require_same_setting,
)
from curvfluence.truth import Recipe, Run

T = TypeVar("T")

_EXPECTED = {
    "problem": "the cf.Problem at its trained weights",
    "recipe": "the cf.truth.Recipe that gave those weights",
    "run": "a cf.truth.Run on the whole training set: cf.truth.Run(init_seed=0, order_seed=0)",
    "subsets": "how many random subsets to retrain on, a whole number of at least 3",
    "name": "a title, in a string",
    "display": "a Display, what a report shows of each example",
}


def load_file(path: Path) -> StudyProblem:
    """The problem that a Python file defines, once its recipe is known to give its weights.

    The file must define `problem`, the `cf.Problem` at its trained weights, and `recipe`, the
    `cf.truth.Recipe` that gave them. It may define `run`, which run of the recipe that was (by
    default `cf.truth.Run(0, 0)`); `subsets`, a whole number; `name`, a title; and `display`, a
    `Display`.

    Cost: the file's own work, and one training by the recipe.

    Errors: `InputError` with the file and the line or name: where it cannot be imported, lacks a
    name or has something else under it, where problem and recipe disagree, where the recipe cannot
    be retrained, and where it does not reproduce the weights. Warns of queries that are also
    training examples.
    """
    file = execute(path)
    problem, recipe = named(file, "problem", Problem), named(file, "recipe", Recipe)
    problem = problem.in_memory()  # which retraining needs
    run = named(file, "run", Run, Run(0, 0), lambda run: run.subset is None)
    subsets = named(file, "subsets", int, SUBSETS, lambda m: m >= 3)
    title = named(file, "name", str, path.stem, lambda name: bool(name.strip()))
    display = named(file, "display", Display, default_display(title, problem))
    with _checking(file, "recipe", "cannot build its model"):
        recipe.build(run.init_seed)
    with _checking(file, "problem", "does not go with `recipe`"):
        require_same_setting(problem, recipe)
    with _checking(file, "recipe", "cannot be retrained"):
        stepped = one_step(problem, recipe, run)
    with _checking(file, "problem", "does not go with `recipe`"):
        require_same_function(problem, stepped)
    with _checking(file, "recipe", "does not give the weights of `problem`"):
        require_reproduced(problem, recipe, run)
    _warn_of_shared(path, problem)
    with _checking(file, "display", "does not fit `problem`"):
        return StudyProblem(
            name=path.stem,
            train=in_memory(problem.train),
            queries=in_memory(problem.queries),
            recipe=recipe,
            measurement=problem.measurement,
            display=display,
            subsets=subsets,
            run=run,
            unmodelled=problem.unmodelled,
            source_hash=hash_json(
                {"file": file.source_hash, "seen": observed(problem, recipe, run, stepped)}
            ),
        )


def named(
    file: Executed,
    name: str,
    kind: type[T],
    default: T | None = None,
    fits: Callable[[T], bool] = lambda _: True,
) -> T:
    """What the file has under `name`, or the default where it has nothing."""
    if name not in file.names:
        if default is None:
            raise InputError(_missing(file, name))
        return default
    value = file.names[name]
    if not isinstance(value, kind) or not fits(value):
        shown = repr(value) if isinstance(value, bool | int | str | Run) else type(value).__name__
        raise InputError(
            f"{file.source.where(file.source.line_of_name(name))}: `{name}` must be "
            f"{_EXPECTED[name]}; seen {shown}"
        )
    return value


def _missing(file: Executed, name: str) -> str:
    """Expected, near misses, and what the file does define."""
    own = [
        other
        for other, value in file.names.items()
        if not other.startswith("_") and not isinstance(value, ModuleType)
    ]
    close = get_close_matches(name, own, n=1)
    hint = f" (`{close[0]}` is close)" if close else ""
    return (
        f"{file.source.path} defines no `{name}`{hint}: expected {_EXPECTED[name]}. It defines "
        f"{', '.join(own) or 'nothing'}"
    )


@contextmanager
def _checking(file: Executed, name: str, finding: str) -> Generator[None]:
    """Say of an error inside: where in the file it comes from, else where the name is bound."""
    try:
        yield
    except Exception as error:
        line = file.source.line_of(error) or file.source.line_of_name(name)
        raise InputError(
            f"{file.source.where(line)}: `{name}` {finding}: {file.source.reason(error)}"
        ) from None


def _warn_of_shared(path: Path, problem: Problem) -> None:
    shared = shared_rows(
        *(table_of(in_memory(x).inputs).cpu() for x in (problem.train, problem.queries))
    )
    if shared:
        q, n = shared[0]
        warnings.warn(
            f"{path}: {len(shared)} queries are also training examples (query {q} is example {n}): "
            "a copy of a query will look like its cause",
            CurvfluenceWarning,
            stacklevel=2,
        )


def default_display(title: str, problem: Problem) -> Display:
    """A container of inputs as rows of features by name. One tensor as images where it is [N, h, w]
    or [N, 1, h, w], stretched from its least value to its largest; else as rows of features x0, x1,
    … Labels are named by their numbers."""
    both = (in_memory(problem.train), in_memory(problem.queries))
    inputs = both[0].inputs
    train, queries = (table_of(rows.inputs).detach().cpu() for rows in both)
    if train.ndim == 4 and train.shape[1] == 1:
        train, queries = train[:, 0], queries[:, 0]
    names: tuple[str, ...] = ()
    if train.ndim == 3 and train.is_floating_point():
        low, high = float(train.min()), float(train.max())
        train, queries = (_ink(rows, low, high) for rows in (train, queries))
    else:
        train, queries = (rows.flatten(1).float() for rows in (train, queries))
        names = tuple(f"x{i}" for i in range(train.shape[1]))
        names = column_names(inputs) if isinstance(inputs, Tree) else names
    labelled = both[0].labels is not None
    return Display(
        title=title,
        description="",
        train=train,
        queries=queries,
        feature_names=names,
        class_names=tuple(map(str, range(problem.n_outputs))) if labelled else (),
    )


def _ink(rows: Tensor, low: float, high: float) -> Tensor:
    scaled = (rows - low) / (high - low if high > low else 1.0)
    return (scaled.clamp(0, 1) * 255).round().to(torch.uint8)
