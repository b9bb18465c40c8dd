"""Passes over examples that make their rows Jᵀs, a chunk of examples at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.jacobian.agreement import Sketch, drawn, require_alike, require_sum
from curvfluence.jacobian.capture import capture
from curvfluence.jacobian.columns import Pulling
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.data import Examples, require_finite
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data
from curvfluence.runtime import budget
from curvfluence.runtime import device as machine


def rows_in_chunks(
    problem: Problem,
    layout: Layout,
    examples: Data,
    columns: Pulling,
    *,
    chunk: int | None = None,
    first: int = 0,
    before: int = 0,
    alone: bool = True,
) -> Iterator[tuple[int, Rows]]:
    """(start, rows) of successive chunks of examples, in order; `first` is the number of the first
    example. Memory: the activations, a and s of `pass_examples` examples, or of `chunk` if fewer.

    One example of chunks 0, 1, 2, 4, 8, …, counted from `before` on, is also run alone (unless
    `alone` is False: where a pass is timed and its rows are of no use), and must have the same row.
    Where the graph of the probe did not prove that the traced calls are all, the rows of each chunk
    are also added up and must agree with an ordinary backward pass.

    Errors: `NonFiniteError` names the first example whose output or row is not finite, `InputError`
    what these checks find.
    """
    size = _chunk_size(problem, layout, columns, chunk)
    for number, (place, part) in enumerate(examples.chunks(size), before):
        start = first + place
        made = _made(problem, layout, part, columns, start)
        if not layout.proved:
            _require_whole(problem, layout, part, made, start)
        if alone and len(part) > 1 and number & (number - 1) == 0:
            at = (7919 * number + len(part) // 3) % len(part)
            versions = made.rows.versions
            _require_alone(problem, layout, part, made, at, start)
            if made.rows.versions != versions:  # the model keeps its activations in its own memory
                made = _made(problem, layout, part, made.again(slice(None)), start)
        yield start, made.rows


def _chunk_size(problem: Problem, layout: Layout, columns: Pulling, chunk: int | None) -> int:
    dense = sum(problem.theta[name].numel() for name in layout.others)
    sizes = (
        budget.EXAMPLES if chunk is None else chunk,
        budget.DENSE_ROWS // max(1, columns.dense_elements(dense)),
        pass_examples(problem.device, columns.elements(layout)),
        budget.EXAMPLES if layout.proved else budget.UNPROVED,
    )
    return max(1, min(sizes))


def pass_examples(device: torch.device, elements: int) -> int:
    """How many examples of so many numbers in a and s a pass takes at a time: `budget.PASS` of
    those, up to four times as many where that is fewer than `budget.FEWEST` (products of few rows
    are slow); on a CUDA device `budget.DEVICE_PASS`, at most a 256th of its memory in float32."""
    room = budget.PASS
    if device.type == "cuda":
        room = max(room, min(budget.DEVICE_PASS, machine.memory(device) // 2**10))
    count = room // max(1, elements)
    return max(1, count, min(budget.FEWEST, 4 * room // max(1, elements)))


@dataclass(frozen=True, eq=False)
class _Made:
    """Rows, the outputs that they were made of, and what an ordinary backward pass gives for the
    sum of their first columns, where that is to be compared."""

    rows: Rows
    output: Tensor
    what: str
    again: Callable[[slice], Pulling]  # the same columns, of some of the examples
    summed: Tensor | None


def _made(problem: Problem, layout: Layout, part: Examples, columns: Pulling, start: int) -> _Made:
    seen = capture(problem, layout, part.inputs, part.targets)
    output = seen.output.detach()
    require_finite(output, f"model output for {columns.what}", start)
    summed = not layout.proved and problem.exact is problem
    pulled = columns.pulled(problem, layout, part, seen, start, summed=summed)
    rest = tuple(layout.others)
    rows = Rows(
        problem.parameters,
        layout.layers,
        pulled.terms,
        rest,
        pulled.dense,
        part.weights,
        columns.by_layer,
    )
    total = None if pulled.summed is None else problem.parameters.flatten(pulled.summed)
    return _Made(rows, output, columns.what, pulled.again, total)


def _require_whole(
    problem: Problem, layout: Layout, part: Examples, made: _Made, start: int
) -> None:
    """The rows add up to what an ordinary backward pass gives."""
    if problem.exact is not problem:  # autocast's rounding would hide a use
        made = _made(problem.exact, layout, part, made.again(slice(None)), start)
    assert made.summed is not None
    require_sum(made.rows, made.summed, made.what)


def _require_alone(
    problem: Problem, layout: Layout, part: Examples, made: _Made, at: int, start: int
) -> None:
    """Example `at` of the chunk has the same output and row when it is run by itself."""
    one, number = slice(at, at + 1), start + at
    x_1p = drawn(made.rows, number)
    together = Sketch.of(made.rows[one], made.output[one], x_1p)
    single = _made(problem, layout, part[one], made.again(one), number)
    alone = Sketch.of(single.rows, single.output, x_1p)

    def beside() -> float:
        return float(made.rows.to(torch.float64).column_norms().max())

    require_alike(together, alone, problem.autocast, number, made.what, beside)
