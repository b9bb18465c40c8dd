"""φ of examples, a shard at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Curvature, Solved
from curvfluence.curvature.damping import Damping
from curvfluence.errors import NonFiniteError
from curvfluence.indexing.extremes import Extremes
from curvfluence.indexing.inner_products import (
    Gradients,
    inner_products,
    parts_of,
    room_of,
    solutions,
)
from curvfluence.indexing.landmarks import Landmarks
from curvfluence.indexing.records import IndexRecord
from curvfluence.indexing.shards import SHARD, Made
from curvfluence.jacobian.columns import of_gradient
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.passes import rows_in_chunks
from curvfluence.jacobian.rows import Rows, concatenate
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data
from curvfluence.runtime import device as machine


@dataclass(frozen=True, eq=False)
class Encoder:
    """What makes φ of examples, and their exact scores on sample queries: A⁻¹ g of landmarks and
    queries, all of it held where there is one part of the curvature, else a part of it at a time.
    """

    problem: Problem
    layout: Layout
    landmarks: Landmarks
    damping: Damping
    parts: tuple[Curvature, ...]
    rows: Gradients  # of landmarks
    sample: Rows | None  # gradients of queries
    held: tuple[Solved, ...]

    @staticmethod
    def of(
        curvature: Curvature,
        damping: Damping,
        landmarks: Landmarks,
        rows: Gradients,
        sample: Rows | None = None,
        *,
        memory: int | None = None,
    ) -> Encoder:
        """`rows` are the landmarks' gradients. What is held at a time takes `memory` bytes, at most
        a quarter of what there is. Errors: `InputError` for a block that needs more by itself."""
        count = len(rows) + (0 if sample is None else len(sample))
        parts = parts_of(curvature, count, room_of(rows.problem, memory))
        made = Encoder(rows.problem, rows.layout, landmarks, damping, parts, rows, sample, ())
        if made.in_parts:
            return made
        against = len(rows.problem.train)
        return replace(made, held=tuple(solutions(parts[0], damping, made.left, against)))

    @property
    def in_parts(self) -> bool:
        return len(self.parts) > 1

    @property
    def left(self) -> tuple[Rows | Gradients, ...]:
        """Gradients of landmarks and of queries behind them."""
        if self.sample is None:
            return (self.rows,)
        if self.rows.held is None:
            return (self.rows, self.sample)
        return (concatenate([self.rows.held, self.sample]),)

    def split(self, products: Tensor) -> tuple[Tensor, Tensor]:
        """(those of the landmarks [d, n], of sample queries [S, n])."""
        count = len(self.landmarks)
        return products[:count], products[count:]

    def products(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """(⟨g_l, A⁻¹ g_n⟩ of the landmarks [d, n], the same of sample queries [S, n]), from what is
        held."""
        found = torch.cat([part.inner(rows)[..., 0] for part in self.held]).cpu()
        return self.split(found)

    def of_queries(self) -> Tensor:
        """⟨g_l, A⁻¹ g_q⟩ of the sample queries, [d, S]."""
        assert self.sample is not None
        if not self.in_parts and self.rows.held is not None:
            return self.products(self.rows.held)[1].T
        return inner_products(self.parts, self.damping, (self.sample,), self.rows).T


def encoded(
    encoder: Encoder, data: Data, ids: Tensor, record: IndexRecord, *, first: int = 0, k: int = 0
) -> Iterator[Made]:
    """Shards of φ of `data` from example `first` on, as `record` keeps it; with `k` each with the
    exact scores of the sample queries that are the highest and lowest there."""
    start = machine.clock(encoder.problem.device)
    chunks = _in_parts if encoder.in_parts else _in_one_go
    parts: list[Tensor] = []
    ends, begun = Extremes(k), first
    for at, products_dn, exact_qn in chunks(encoder, data, first):
        phi = encoder.landmarks.coordinates(products_dn) / record.scale
        phi = phi.to(getattr(torch, record.dtype))
        _require_held(phi, at)
        parts.append(phi)
        if k:
            ends.add(at, exact_qn / record.examples)
        done = at + len(phi)
        if done - begun >= SHARD or done == len(data):
            seconds = machine.clock(encoder.problem.device) - start
            yield Made(torch.cat(parts), ids[begun:done].cpu(), ends if k else None, seconds)
            parts, ends, begun = [], Extremes(k), done
            start = machine.clock(encoder.problem.device)


# (the first example, products of landmarks [d, n], of queries [S, n])
_Chunks: TypeAlias = Iterator[tuple[int, Tensor, Tensor]]


def _in_one_go(encoder: Encoder, data: Data, first: int) -> _Chunks:
    columns = of_gradient("training set")
    given = data[first:]
    for at, rows in rows_in_chunks(encoder.problem, encoder.layout, given, columns, first=first):
        yield at, *encoder.products(rows)


def _in_parts(encoder: Encoder, data: Data, first: int) -> _Chunks:
    """A shard at a time, in as many passes over it as there are parts. Landmarks are solved for in
    each anew, 4 d (i + o) operations for each parameter of an o × i layer, where a pass over a
    shard of 65,536 examples takes 6 T and more of each of them."""
    problem, layout = encoder.problem, encoder.layout
    for begin, end in side_by_side(first, len(data)):
        shard = Gradients(problem, layout, data[begin:end], first=begin)
        found = inner_products(encoder.parts, encoder.damping, encoder.left, shard)
        yield begin, *encoder.split(found)


def side_by_side(first: int, n: int) -> list[tuple[int, int]]:
    """The examples of the shards from `first` on, [begin, end) each, that may be made in any
    order."""
    return [(begin, min(begin + SHARD, n)) for begin in range(first, n, SHARD)]


def _require_held(phi: Tensor, at: int) -> None:
    bad = (~phi.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        raise NonFiniteError(
            f"the coordinates of example {at + int(bad[0])} are beyond {phi.dtype} "
            f"({len(bad)} such examples): its gradient is that much larger than others. "
            + ("Use dtype=torch.float32, or a" if phi.dtype == torch.float16 else "Use a")
            + " larger damping, or look at the example"
        )
