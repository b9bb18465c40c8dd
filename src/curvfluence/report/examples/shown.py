"""Some examples of a problem, as a person sees each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.problem.data import Examples
from curvfluence.problem.stream import Data
from curvfluence.problem.tree import Batched, Tree, leaves, value_of
from curvfluence.report.examples.seen import Features, Picture, Seen, Text, Words, seen_as
from curvfluence.study.problems import Display
from curvfluence.study.problems.given import Given, Show

CHUNK = 4096  # examples of a stream that are read at a time
MOST = 200  # features that a row is shown with
SMALLEST = 4  # sides of what is taken for an image


@dataclass(frozen=True, eq=False)
class Range:
    """The least and the largest number of the training examples that were looked at: what images
    are stretched between."""

    low: float
    high: float


def shown(given: Given, which: str, rows: Sequence[int]) -> list[Seen]:
    """Training examples ("train") or queries ("queries") by number, as a person sees them: by the
    file's own `show`, by the built-in display, or by their shape.

    Errors: `InputError` with the example's number, where `show` raises or returns something else.
    """
    if given.show is None and given.display is not None:
        return [_displayed(given.display, which, n) for n in rows]
    data = given.problem.train if which == "train" else given.problem.queries
    held = given.problem.few
    ends = _range(held)
    found: list[Seen] = []
    for n, inputs, target in _each(data, rows):
        if given.show is not None:
            found.append(_by(given.show, which, n, inputs, target))
        else:
            found.append(by_shape(inputs, ends))
    return found


def targets_of(data: Data, rows: Sequence[int]) -> list[Batched]:
    """The target of each of some examples."""
    return [target for _, _, target in _each(data, rows)]


def _each(data: Data, rows: Sequence[int]) -> list[tuple[int, Batched, Batched]]:
    """(number, inputs, target) of some examples, each without its first axis. What is read in
    order is read once."""
    if isinstance(data, Examples):
        return [_one(data, n, n) for n in rows]
    wanted, found = set(rows), dict[int, tuple[int, Batched, Batched]]()
    for start, part in data.chunks(CHUNK):
        for n in sorted(wanted & set(range(start, start + len(part)))):
            found[n] = _one(part, n - start, n)
        if len(found) == len(wanted):
            break
    return [found[n] for n in rows]


def _one(part: Examples, at: int, n: int) -> tuple[int, Batched, Batched]:
    row = part[slice(at, at + 1)]
    return n, _first(row.inputs), _first(row.targets)


def _first(x: Batched) -> Batched:
    """The only example, detached and on the CPU."""
    return x.each(_unbatched) if isinstance(x, Tree) else _unbatched(x)


def _unbatched(leaf: Tensor) -> Tensor:
    return leaf[0].detach().cpu()


def _by(show: Show, which: str, n: int, inputs: Batched, target: Batched) -> Seen:
    what = "training example" if which == "train" else "query"
    try:
        found = show(value_of(inputs), value_of(target))
    except Exception as error:
        raise InputError(f"`show` failed on {what} {n}: {type(error).__name__}: {error}") from error
    try:
        return seen_as(found)
    except InputError as error:
        raise InputError(f"{what} {n}: {error}") from None


def _displayed(display: Display, which: str, n: int) -> Seen:
    row = (display.train if which == "train" else display.queries)[n]
    if display.kind == "image":
        return Picture(row.numpy())
    pairs = zip(display.feature_names, row.tolist(), strict=True)
    return Features(tuple((name, float(value)) for name, value in list(pairs)[:MOST]))


def _range(few: Examples) -> Range:
    numbers = [leaf.double() for leaf in leaves(few.inputs) if leaf.is_floating_point()]
    if not numbers:
        return Range(0.0, 1.0)
    return Range(min(float(x.min()) for x in numbers), max(float(x.max()) for x in numbers))


def by_shape(inputs: Batched, ends: Range) -> Seen:
    """One example by the shape of its inputs: an image, tokens as numbers, features; containers as
    one row of features, or as the tokens in them."""
    if isinstance(inputs, Tree):
        return _container(inputs)
    if inputs.ndim == 1 and not inputs.is_floating_point():
        return Words(tuple(str(int(token)) for token in inputs))
    if _like_image(inputs):
        span = ends.high - ends.low or 1.0
        stretched = ((inputs.double() - ends.low) / span).clamp(0, 1)
        return seen_as(stretched if inputs.ndim == 2 or inputs.shape[0] == 3 else stretched[0])
    flat = inputs.flatten()[:MOST].tolist()
    return Features(tuple((f"x{i}", _number(value)) for i, value in enumerate(flat)))


def named_values(path: str, leaf: Tensor) -> list[tuple[str, float | str]]:
    """The numbers of a tensor in a container, by name: a, or a[0], a[1], …; integers as `int`."""
    values = [_number(value) for value in leaf.flatten().tolist()]
    if len(values) == 1:
        return [(path, values[0])]
    return [(f"{path}[{k}]", value) for k, value in enumerate(values)]


def _number(value: object) -> float | str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return str(value)


def _like_image(x: Tensor) -> bool:
    plain = x.ndim == 2 or (x.ndim == 3 and x.shape[0] in (1, 3))
    return plain and x.is_floating_point() and min(x.shape[-2:]) >= SMALLEST


def _container(inputs: Tree) -> Seen:
    """Tokens where there are some by the name that models have for them, else every number."""
    for path, leaf in zip(inputs.paths, inputs.leaves, strict=True):
        if path.endswith("input_ids") and leaf.ndim == 1:
            return Words(tuple(str(int(token)) for token in leaf))
    values: list[tuple[str, float | str]] = []
    for path, leaf in zip(inputs.paths, inputs.leaves, strict=True):
        if leaf.numel() <= MOST:
            values += named_values(path, leaf)
        else:
            values.append((path, f"{leaf.dtype} {tuple(leaf.shape)}".removeprefix("torch.")))
    return Features(tuple(values[:MOST])) if values else Text("no tensors")


def is_label(target: Batched) -> bool:
    """Whether a target is one class of an example."""
    return isinstance(target, Tensor) and target.ndim == 0 and not target.is_floating_point()


def numbers_of(seen: Sequence[Seen]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation of each feature of floats over the examples that are shown; a
    mean of codes, such as categories have, would mean nothing."""
    columns: dict[str, list[float]] = {}
    for one in seen:
        for name, value in one.values if isinstance(one, Features) else ():
            if not isinstance(value, str) and isfinite(value):
                columns.setdefault(name, []).append(value)
    columns = {
        name: values
        for name, values in columns.items()
        if any(isinstance(value, float) for value in values)
    }
    mean = {name: float(np.mean(values)) for name, values in columns.items()}
    return mean, {name: float(np.std(values)) for name, values in columns.items()}
