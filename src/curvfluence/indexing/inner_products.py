"""⟨g, A⁻¹ g'⟩ of examples with others in a stated memory: solved for some blocks of C at a time.

Between two blocks of C stands nothing, so an inner product in A⁻¹ is the sum of the blocks' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Curvature, Solved
from curvfluence.curvature.damping import Damping
from curvfluence.curvature.operators.operator import Against
from curvfluence.errors import InputError
from curvfluence.jacobian.columns import of_gradient
from curvfluence.jacobian.gradients import gradients_of
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.passes import rows_in_chunks
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data
from curvfluence.runtime import budget, ranks
from curvfluence.runtime import device as machine

SHARE = 4  # of the memory, one in so many: what solved landmarks may take


@dataclass(frozen=True, eq=False)
class Gradients:
    """Of some training examples, the first of number `first`: held as a and s, or computed anew
    whenever they are read."""

    problem: Problem
    layout: Layout
    examples: Data
    held: Rows | None = None
    first: int = 0

    @staticmethod
    def of(problem: Problem, layout: Layout, examples: Data, room: int) -> Gradients:
        """Held where they take no more than `room` bytes."""
        columns = of_gradient("training set")
        dense = sum(problem.theta[name].numel() for name in layout.others)
        needed = len(examples) * (columns.elements(layout) + columns.dense_elements(dense))
        fits = needed * problem.dtype.itemsize <= room
        held = gradients_of(problem, layout, examples) if fits else None
        return Gradients(problem, layout, examples, held)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, part: slice) -> Gradients:
        held = None if self.held is None else self.held[part]
        first = self.first + part.indices(len(self))[0]
        return replace(self, examples=self.examples[part], held=held, first=first)

    def chunks(self, most: int) -> Iterator[Rows]:
        """Those of successive examples, at most so many at a time."""
        if self.held is not None:
            yield from in_chunks(self.held, most)
            return
        columns = of_gradient("training set")
        given = rows_in_chunks(
            self.problem,
            self.layout,
            self.examples,
            columns,
            chunk=most,
            first=self.first,
            alone=False,  # as the fit has looked at
        )
        yield from (rows for _, rows in given)


def in_chunks(rows: Rows, most: int) -> Iterator[Rows]:
    """Successive ones, at most so many at a time."""
    for start in range(0, len(rows), most):
        yield rows[start : start + most]


def room_of(problem: Problem, memory: int | None) -> int:
    """Bytes that solutions may take: `memory`, at most a quarter of what a process has."""
    quarter = int(machine.memory(problem.device) / SHARE / ranks.on_this_machine())
    return quarter if memory is None else min(memory, quarter)


def grouped(
    blocks: Sequence[tuple[str, int]], vectors: int, itemsize: int, room: int
) -> list[list[str]]:
    """Successive blocks (name, parameters) side by side, of which so many solutions take at most
    `room` bytes. Errors: `InputError` naming a block that is larger by itself."""
    groups: list[list[str]] = []
    left = 0.0
    for name, count in blocks:
        needed = vectors * count * itemsize
        if needed > room:
            raise InputError(
                f"{vectors} solved landmarks and queries of block {name} ({count:,} parameters) "
                f"take {needed / 2**30:.2g} GiB, and there is room for {room / 2**30:.2g}, at most "
                "a quarter of the memory that a process has: take a smaller dimension, or a larger "
                "memory"
            )
        if needed > left or not groups:
            groups.append([])
            left = room
        groups[-1].append(name)
        left -= needed
    return groups


def parts_of(curvature: Curvature, vectors: int, room: int) -> tuple[Curvature, ...]:
    """The curvature as successive blocks of which so many solutions take at most `room` bytes."""
    sizes = [(block.name, block.size) for block in curvature.blocks]
    groups = grouped(sizes, vectors, curvature.decay.dtype.itemsize, room)
    if len(groups) == 1:
        return (curvature,)
    by_name = {block.name: block for block in curvature.blocks}
    return tuple(
        replace(curvature, blocks=tuple(by_name[name] for name in group)) for group in groups
    )


def solutions(
    part: Curvature, damping: Damping, left: Sequence[Rows | Gradients], against: int
) -> Iterator[Solved]:
    """A⁻¹ g in the blocks of a part, of all on the left, to meet so many others."""
    most = max(1, budget.SOLVED // sum(block.size for block in part.blocks))
    for given in left:
        for rows in in_chunks(given, most) if isinstance(given, Rows) else given.chunks(most):
            yield part.solve_rows(rows, damping, against=Against(against))


def inner_products(
    parts: Sequence[Curvature],
    damping: Damping,
    left: Sequence[Rows | Gradients],
    right: Gradients,
) -> Tensor:
    """⟨g, A⁻¹ g'⟩ of all on the left with each on the right, [L, R]. The solutions of one part of
    the curvature are held at a time, while the right is read once. Cost: the solutions and 2 L R P
    operations; gradients that are not held are computed once for each part."""
    found = torch.zeros(sum(map(len, left)), len(right), dtype=parts[0].decay.dtype)
    for part in parts:
        held, start = tuple(solutions(part, damping, left, len(right))), 0
        for rows in right.chunks(len(right)):
            inner = torch.cat([solved.inner(rows)[..., 0] for solved in held]).cpu()
            found[:, start : start + len(rows)] += inner
            start += len(rows)
        del held  # before the next ones are there
    return found
