"""Passes over examples that make their rows Jᵀs, a chunk of examples at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvfluence.errors import counted_from
from curvfluence.jacobian.agreement import Sketch, drawn, require_alike, require_sum
from curvfluence.jacobian.capture import capture
from curvfluence.jacobian.columns import Columns
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.unruled import rows_without_rule
from curvfluence.problem.data import Examples, require_finite
from curvfluence.problem.losses import Loss
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data
from curvfluence.problem.tree import Batched
from curvfluence.runtime import budget
from curvfluence.runtime import device as machine


def rows_in_chunks(
    problem: Problem,
    layout: Layout,
    examples: Data,
    columns: Columns,
    *,
    chunk: int | None = None,
    first: int = 0,
) -> Iterator[tuple[int, Rows]]:
    """(start, rows) of successive chunks of examples, in order; `first` is the number of the first
    example. Memory: the activations, a and s of `pass_examples` examples, or of `chunk` if fewer.

    One example of chunks 0, 1, 2, 4, 8, … is also run alone, and must have the same row. Where the
    graph of the probe did not prove that the traced calls are all, the rows of each chunk are also
    added up and must agree with an ordinary backward pass.

    Errors: `NonFiniteError` names the first example whose output or row is not finite, `InputError`
    what these checks find.
    """
    size = _chunk_size(problem, layout, columns.width, chunk)
    for number, (place, part) in enumerate(examples.chunks(size)):
        start = first + place
        made = _made(problem, layout, part, columns, start)
        if not layout.proved:
            _require_whole(problem, layout, part, made, start)
        if len(part) > 1 and number & (number - 1) == 0:
            at = (7919 * number + len(part) // 3) % len(part)
            versions = made.rows.versions
            _require_alone(problem, layout, part, made, at, start)
            if made.rows.versions != versions:  # the model keeps its activations in its own memory
                made = _made(problem, layout, part, made.again(), start)
        yield start, made.rows


def _chunk_size(problem: Problem, layout: Layout, width: int, chunk: int | None) -> int:
    dense = sum(problem.theta[name].numel() for name in layout.others)
    sizes = (
        budget.EXAMPLES if chunk is None else chunk,
        budget.DENSE_ROWS // max(1, dense * width),
        pass_examples(problem.device, layout.elements(width)),
        budget.EXAMPLES if layout.proved else budget.UNPROVED,
    )
    return max(1, min(sizes))


def pass_examples(device: torch.device, elements: int) -> int:
    """How many examples of so many numbers in a and s a pass takes at a time: `budget.PASS` of
    those, up to twice as many where that is less than 32 examples (products of fewer rows are
    slow); on a CUDA device `budget.DEVICE_PASS`, at most a 256th of its memory in float32."""
    room = budget.PASS
    if device.type == "cuda":
        room = max(room, min(budget.DEVICE_PASS, machine.memory(device) // 2**10))
    count = room // max(1, elements)
    return max(1, count, min(budget.FEWEST, 2 * room // max(1, elements)))


@dataclass(frozen=True, eq=False)
class _Made:
    """Rows, the outputs and columns that they were made of, and what an ordinary backward pass
    gives for the sum of their first columns, where that is to be compared."""

    rows: Rows
    output: Tensor
    columns: Columns
    columns_bkc: Tensor
    summed: Tensor | None

    def again(self, part: slice = slice(None)) -> Columns:
        """The same columns, of some of the examples."""

        def make(loss: Loss, output: Tensor, target: Batched) -> Tensor:
            return self.columns_bkc[part]

        return replace(self.columns, make=make)


def _made(problem: Problem, layout: Layout, part: Examples, columns: Columns, start: int) -> _Made:
    x, y, what = part.inputs, part.targets, columns.what
    seen = capture(problem, layout, x, y)
    output = seen.output.detach()
    require_finite(output, f"model output for {what}", start)
    with counted_from(start):
        columns_bkc = columns.make(problem.loss_of(part), output, y)
    require_finite(columns_bkc, f"output gradient of {what}", start)
    terms, small, total = seen.pullback(
        columns_bkc, summed=not layout.proved and problem.exact is problem
    )
    dense = rows_without_rule(problem, layout, x, columns_bkc, small)
    for rows in (*(term.s for term in terms), dense):
        require_finite(rows, f"gradient of {what}", start)
    rest = tuple(layout.others)
    rows = Rows(problem.parameters, layout.layers, terms, rest, dense, part.weights)
    summed = None if total is None else problem.parameters.flatten(total)
    return _Made(rows, output, columns, columns_bkc, summed)


def _require_whole(
    problem: Problem, layout: Layout, part: Examples, made: _Made, start: int
) -> None:
    """The rows add up to what an ordinary backward pass gives."""
    if problem.exact is not problem:  # autocast's rounding would hide a use
        made = _made(problem.exact, layout, part, made.again(), start)
    assert made.summed is not None
    require_sum(made.rows, made.summed, made.columns.what)


def _require_alone(
    problem: Problem, layout: Layout, part: Examples, made: _Made, at: int, start: int
) -> None:
    """Example `at` of the chunk has the same output and row when it is run by itself."""
    one, number = slice(at, at + 1), start + at
    x_1p = drawn(made.rows, number)
    together = Sketch.of(made.rows[one], made.output[one], x_1p)
    single = _made(problem, layout, part[one], made.again(one), number)
    alone = Sketch.of(single.rows, single.output, x_1p)
    require_alike(together, alone, problem.autocast, number, made.columns.what)
