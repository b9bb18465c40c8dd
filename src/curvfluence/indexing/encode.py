"""φ of examples, a shard at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Curvature, Solved
from curvfluence.curvature.damping import Damping
from curvfluence.curvature.operators.operator import Against
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.indexing.extremes import Extremes
from curvfluence.indexing.landmarks import Landmarks
from curvfluence.indexing.records import IndexRecord
from curvfluence.indexing.shards import SHARD, Made
from curvfluence.jacobian.columns import of_gradient
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.passes import rows_in_chunks
from curvfluence.jacobian.rows import Rows, concatenate
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data
from curvfluence.runtime import budget, ranks
from curvfluence.runtime import device as machine

SHARE = 4  # of the memory, one in so many: what solved landmarks may take


@dataclass(frozen=True, eq=False)
class Encoder:
    """A⁻¹ g of landmarks, and behind them of sample queries, whose exact scores are kept."""

    problem: Problem
    layout: Layout
    landmarks: Landmarks
    solved: tuple[Solved, ...]

    @staticmethod
    def of(
        problem: Problem,
        layout: Layout,
        curvature: Curvature,
        damping: Damping,
        landmarks: Landmarks,
        rows: Rows,
        sample: Rows | None = None,
    ) -> Encoder:
        """`rows` are the landmarks' gradients. Errors: `InputError` where the solutions would take
        more than a quarter of the memory."""
        rows = rows if sample is None else concatenate([rows, sample])
        count = curvature.parameters.count
        wanted = len(rows) * count * problem.dtype.itemsize
        if wanted > machine.memory(problem.device) / SHARE / ranks.on_this_machine():
            raise InputError(
                f"{len(rows)} solved landmarks and queries of {count:,} parameters would take "
                f"{wanted / 2**30:.1f} GiB, more than a quarter of the memory that a process has: "
                "take a smaller dimension"
            )
        step = max(1, budget.SOLVED // count)
        against = Against(len(problem.train))
        solved = tuple(
            curvature.solve_rows(rows[k : k + step], damping, against=against)
            for k in range(0, len(rows), step)
        )
        return Encoder(problem, layout, landmarks, solved)

    def products(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """(⟨g_l, A⁻¹ g_n⟩ of the landmarks [d, n], the same of sample queries [S, n])."""
        found = torch.cat([part.inner(rows)[..., 0] for part in self.solved]).cpu()
        count = len(self.landmarks)
        return found[:count], found[count:]

    def of_queries(self, rows: Rows) -> Tensor:
        """⟨g_l, A⁻¹ g_q⟩ of the sample queries with the landmarks' `rows`, [d, S]."""
        return self.products(rows)[1].T


def encoded(
    encoder: Encoder, data: Data, ids: Tensor, record: IndexRecord, *, first: int = 0, k: int = 0
) -> Iterator[Made]:
    """Shards of φ of `data` from example `first` on, as `record` keeps it; with `k` each with the
    exact scores of the sample queries that are the highest and lowest there."""
    problem, dtype = encoder.problem, getattr(torch, record.dtype)
    parts: list[Tensor] = []
    ends, begun, start = Extremes(k), first, machine.clock(problem.device)
    columns = of_gradient("training set")
    for at, rows in rows_in_chunks(problem, encoder.layout, data[first:], columns, first=first):
        products_dn, exact_qn = encoder.products(rows)
        phi = (encoder.landmarks.coordinates(products_dn) / record.scale).to(dtype)
        _require_held(phi, at)
        parts.append(phi)
        if k:
            ends.add(at, exact_qn / record.examples)
        done = at + len(rows)
        if done - begun >= SHARD or done == len(data):
            seconds = machine.clock(problem.device) - start
            yield Made(torch.cat(parts), ids[begun:done].cpu(), ends if k else None, seconds)
            parts, ends, begun, start = [], Extremes(k), done, machine.clock(problem.device)


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
