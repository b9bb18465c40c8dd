"""A trained model and the questions to it: what is asked of, without training it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.problem.problem import Problem
from curvfluence.problem.source import Source
from curvfluence.study.problems.built_in import BUILT_IN
from curvfluence.study.problems.isolation import Executed, execute
from curvfluence.study.problems.own import named
from curvfluence.study.problems.problem import Display, StudyProblem
from curvfluence.truth import Run, train

# (inputs, target) of one example, as the problem has them, to what a person sees of it.
Show: TypeAlias = "Callable[[Any, Any], object]"


@dataclass(frozen=True, eq=False)
class Given:
    """`problem` at its trained weights and how a person sees its examples.

    `show` is the file's own function, `display` what a built-in problem shows; where neither is
    there, examples are shown by their shape. `flipped` and `flipped_from` are known for
    `digits-noisy` alone, or where a file names them. `appended` are examples behind the training
    set that an index has too.
    """

    name: str
    title: str
    problem: Problem
    show: Show | None = None
    display: Display | None = None
    class_names: tuple[str, ...] = ()
    flipped: tuple[int, ...] | None = None
    flipped_from: tuple[int, ...] | None = None
    appended: tuple[Source, ...] = ()


def given(name: str) -> Given:
    """The problem of a Python file, or a built-in one trained once by its recipe.

    A file defines `problem`, and may define `name`, a title; `show(inputs, target)`, what a person
    sees of an example; `class_names`; `flipped`, indices of training examples whose labels are
    known to be wrong; `appended`, a list of further examples for an index. It needs no recipe:
    nothing is trained.

    Errors: `InputError` with the file and the line, for what is missing or of another kind.
    """
    if name in BUILT_IN:
        return trained_once(BUILT_IN[name]())
    if name.endswith(".py") or Path(name).exists():
        return _of_file(execute(Path(name)))
    raise InputError(
        f"there is no problem {name!r}; built in are {', '.join(BUILT_IN)}. A problem of your own "
        "is a Python file that defines `problem`, a cf.Problem at its trained weights"
    )


def trained_once(study: StudyProblem, run: Run | None = None) -> Given:
    """A study's problem at the weights that one run of its recipe gives."""
    run = Run(0, 0) if run is None else run
    recipe, found = study.recipe, train(study.recipe, study.train, [run])
    dtype = next(iter(found.theta.values())).dtype
    problem = Problem(
        recipe.build(run.init_seed, dtype).eval(),
        recipe.loss,
        study.train.to(study.train.device, dtype),
        study.queries.to(study.train.device, dtype),
        measurement=study.measurement,
        weight_decay=recipe.weight_decay,
        decoupled_decay=recipe.optimizer.decoupled,
        weights=found.weights(0),
        unmodelled=study.unmodelled,
        decay_in_inverse=study.decay_in_inverse,
        forward=recipe.forward,
        output=recipe.output,
    )
    return Given(
        study.name,
        study.display.title,
        problem,
        display=study.display,
        class_names=study.display.class_names,
        flipped=_numbers(study.flipped),
        flipped_from=_numbers(study.flipped_from),
    )


def _numbers(values: Tensor | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(int(v) for v in values.tolist())


def _of_file(file: Executed) -> Given:
    path = file.source.path
    problem = named(file, "problem", Problem)
    show = file.names.get("show")
    if show is not None and not callable(show):
        raise InputError(
            f"{path}: `show` must be a function of (inputs, target) of one example; seen {show!r}"
        )
    return Given(
        path.stem,
        named(file, "name", str, path.stem, lambda name: bool(name.strip())),
        problem,
        show=show,
        display=named(file, "display", Display) if "display" in file.names else None,
        class_names=_names_of(file),
        flipped=_flipped_of(file, len(problem.train)),
        appended=_appended_of(file),
    )


def _names_of(file: Executed) -> tuple[str, ...]:
    found: Any = file.names.get("class_names", ())
    if isinstance(found, str) or not all(isinstance(name, str) for name in found):
        raise InputError(
            f"{file.source.path}: `class_names` must be a list of strings, one a class; seen "
            f"{found!r}"
        )
    return tuple(found)


def _appended_of(file: Executed) -> tuple[Source, ...]:
    found: Any = file.names.get("appended", ())
    if not isinstance(found, list | tuple):
        raise InputError(
            f"{file.source.path}: `appended` must be a list of sources of examples, each as "
            f"(inputs, targets) say; seen {type(found).__name__}"
        )
    return tuple(found)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _flipped_of(file: Executed, count: int) -> tuple[int, ...] | None:
    found: Any = file.names.get("flipped")
    if found is None:
        return None
    rows = kinds.counts(found, f"{file.source.path}: flipped")
    if any(n >= count for n in rows):
        raise InputError(
            f"{file.source.path}: `flipped` must be numbers of training examples, 0 to "
            f"{count - 1}; seen {rows}"
        )
    return tuple(rows)
