"""An index over the training set: the examples behind a new query without a pass over them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature, Solved
from curvfluence.curvature.damping import Damping
from curvfluence.curvature.operators.operator import Against
from curvfluence.errors import InputError
from curvfluence.indexing.encode import Encoder, encoded
from curvfluence.indexing.extremes import Extremes
from curvfluence.indexing.found import Found, Took
from curvfluence.indexing.inner_products import Gradients
from curvfluence.indexing.landmarks import Landmarks
from curvfluence.indexing.records import INDEX, IndexRecord
from curvfluence.indexing.shards import Shards, write_shard
from curvfluence.jacobian.gradients import gradients_of, query_gradients
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.problem import Problem
from curvfluence.problem.source import Source, data_of
from curvfluence.problem.stream import Data
from curvfluence.runtime import budget, precision, ranks
from curvfluence.runtime import device as machine
from curvfluence.score.certificate import Certifier
from curvfluence.score.fitted import fitted
from curvfluence.score.influence import require_finite_scores, unit_of
from curvfluence.score.scores import Ranked
from curvfluence.store.folder import writing
from curvfluence.store.lock import held
from curvfluence.store.records import read, write

TOGETHER = 16  # queries whose candidates are scored at a time
SCORED = 256  # candidates whose gradients are held at a time


@dataclass(frozen=True, eq=False)
class Index:
    """φ of every training example, and of those that were appended, in `folder`: what `query`
    searches, and the curvature by which it scores what it finds. Made by `cf.index`, read back by
    `cf.load_index`."""

    folder: Path
    problem: Problem
    curvature: Curvature
    damping: Damping
    record: IndexRecord
    shards: Shards
    landmarks: Landmarks
    layout: Layout = field(repr=False)
    rows: Gradients = field(repr=False)  # of the landmarks
    versions: tuple[tuple[int, ...], ...] = field(repr=False)  # of the data, appended ones too
    appended: tuple[Data, ...] = ()
    memory: int | None = None  # bytes that solved landmarks may take at a time

    def __len__(self) -> int:
        """Examples, the appended ones too."""
        return self.record.held

    def __repr__(self) -> str:
        record = self.record
        return (
            f"Index({str(self.folder)!r}: {len(self):,} examples by {record.dimension} "
            f"coordinates, {record.rung}, damping {self.damping})"
        )

    @property
    def ids(self) -> Tensor:
        """A number for the content of each example, [N] int64; two alike are there twice."""
        return torch.cat(self.shards.ids)

    @precision.full()
    def query(
        self,
        queries: Source | Sequence[int] | None = None,
        k: int = 10,
        *,
        candidates: int = 200,
        by: Curvature | None = None,
    ) -> Found:
        """The k most helpful and the k most harmful examples of each query, with exact influences.

        Queries are numbers of the problem's own, others as `Problem` takes them (inputs, targets),
        or all of the problem's. First the `candidates` highest and lowest φ(g_q)·φ(g_n) are found
        by products, then these examples' gradients are computed anew and scored as `cf.influence`
        does, under the index's curvature or `by` another one of the same problem (the exact GGN,
        say).

        Cost: a backward pass and a solve a query; 2 Q N d operations and reading φ (4 N d bytes,
        half of it in float16); 2 Q `candidates` backward passes of single examples at most.
        Errors: `InputError` where queries do not fit the problem, `candidates` is less than k, or
        data were changed in place since the index was made.
        """
        self._require_unchanged()
        problem = self._asked(queries)
        k = kinds.count(k, "k")
        wanted = kinds.count(candidates, "candidates")
        if not k <= min(wanted, len(self)):
            raise InputError(
                f"k must be at most candidates ({wanted}) and the {len(self)} examples; seen {k}"
            )
        scoring = self.curvature
        if by is not None:
            scoring = fitted(self.problem, by, self.damping, strict=False)
        clock = [0.0, 0.0, 0.0]
        tops: list[Tensor] = []
        values: list[Tensor] = []
        step = max(1, min(TOGETHER, budget.SOLVED // self.problem.parameters.count))
        for first in range(0, len(problem.queries), step):
            part = problem.asking(range(first, min(first + step, len(problem.queries))))
            best = self._answered(part, scoring, k, min(wanted, len(self)), first, clock)
            tops.append(best.indices)
            values.append(best.values)
        indices, scores = torch.cat(tops, 1), torch.cat(values, 1) / self.record.examples
        high, low = (Ranked(indices[end], scores[end]) for end in (0, 1))
        measurement, recall = self.problem.measurement, self.record.recall
        notes = list(scoring.notes_at(self.damping))
        measured = self.record.rung, self.record.measurement
        if (scoring.name, measurement.name) != measured:
            recall = None
            notes.append(
                f"what the first stage misses was measured for {measured[0]} and the "
                f"{measured[1]}, not for {scoring.name} and the {measurement.name}: more "
                "candidates miss less"
            )
        return Found(
            top=high if measurement.lower_is_better else low,
            bottom=low if measurement.lower_is_better else high,
            rung=scoring.name,
            measurement=measurement.name,
            unit=unit_of(scoring, measurement),
            candidates=min(wanted, len(self)),
            searched=len(self),
            trained=self.record.examples,
            recall=recall,
            took=Took(*clock),
            notes=tuple(notes),
            certifier=Certifier(problem, scoring, self.damping, None),
        )

    def append(self, examples: Source) -> Index:
        """The index with more examples behind those that it has: as `Problem` takes training
        examples, without weights. Nothing is fitted or projected again: they are scored at the same
        weights, curvature and landmarks, which know nothing of them.

        Cost: a backward pass over them and 2 n d P operations or less. Errors: `InputError` where
        they do not fit the problem, or another command writes to the folder.
        """
        problem = self.problem
        return self.with_data(data_of(examples, "examples").to(problem.device, problem.dtype))

    @precision.full()
    def with_data(self, data: Data) -> Index:
        """`append` of what is read and placed."""
        if ranks.here() is not None:
            raise InputError(
                "examples are appended by one process: call append() outside of together()"
            )
        self._require_unchanged()
        problem = self.problem
        if data.weights is not None:
            raise InputError("appended examples have weight 1 each: leave their weights out")
        problem.require_examples(data)
        if read(self.folder / INDEX, IndexRecord) is None:
            raise InputError(f"there is no index in {self.folder} any more")
        with held(self.folder), writing(self.folder):
            if read(self.folder / INDEX, IndexRecord) != self.record:
                raise InputError(
                    f"the index in {self.folder} has other examples than this one, which something "
                    "was appended to since: take what append() gave, or load it again"
                )
            encoder = self.encoder()
            record = self.record
            for made in encoded(encoder, data, data.contents, record):
                number = len(record.shards)
                shard = write_shard(self.folder, number, made, record.key)
                record = structs.replace(record, shards=(*record.shards, shard))
            write(self.folder / INDEX, record)
        shards = Shards.opened(self.folder, record, verify=False)
        return replace(self, record=record, shards=shards).knowing(data)

    def encoder(self, sample: Rows | None = None) -> Encoder:
        """What makes φ, and with a `sample` of queries' gradients their exact scores."""
        given = self.curvature, self.damping, self.landmarks, self.rows
        return Encoder.of(*given, sample, memory=self.memory)

    def knowing(self, data: Data) -> Index:
        """With examples at hand whose φ the folder has already."""
        return replace(
            self,
            appended=(*self.appended, data),
            versions=(*self.versions, data.versions),
        )

    def _require_unchanged(self) -> None:
        """Errors: `InputError` where examples were changed in place since the index was made or
        read, by torch; what every pass reads anew is held to its sums there."""
        for data, version in zip((self.problem.train, *self.appended), self.versions, strict=True):
            if data.versions != version:
                raise InputError(
                    "training data were changed since the index was made: make it again in another "
                    "folder"
                )

    def _asked(self, queries: Source | Sequence[int] | None) -> Problem:
        if queries is None:
            return self.problem
        given: Any = queries
        if isinstance(given, range | list) and all(isinstance(one, int) for one in given):
            return self.problem.asking(given)
        return self.problem.with_queries(queries)  # pyright: ignore[reportArgumentType]

    def _answered(
        self, problem: Problem, scoring: Curvature, k: int, wanted: int, at: int, clock: list[float]
    ) -> Extremes:
        """Exact scores of the best candidates, times N; what it takes is added to `clock`."""
        times = [machine.clock(problem.device)]
        g_q = query_gradients(problem, self.layout)
        x_q = self.curvature.solve_rows(g_q, self.damping, against=Against(wanted))
        chunks = self.rows.chunks(len(self.rows))
        products_qd = torch.cat([x_q.inner(rows)[..., 0] for rows in chunks], 1)
        phi_qd = self.landmarks.coordinates(products_qd.T.cpu())
        times.append(machine.clock(problem.device))
        first = self.shards.search(phi_qd, wanted)
        times.append(time.perf_counter())
        if scoring is not self.curvature:
            x_q = scoring.solve_rows(g_q, self.damping, against=Against(wanted))
        best = self._scored(x_q, first, k, scoring.rung, at)
        times.append(machine.clock(problem.device))
        for stage in range(3):
            clock[stage] += times[stage + 1] - times[stage]
        return best

    def _scored(self, x_q: Solved, first: Extremes, k: int, rung: str, at: int) -> Extremes:
        numbers = first.indices.unique()
        tiles = [
            x_q.inner(rows)[..., 0].cpu()
            for part in numbers.split(SCORED)
            for rows in self._gradients(part)
        ]
        exact_qu = torch.cat(tiles, 1)
        require_finite_scores(exact_qu, rung, at, 0)
        places = torch.searchsorted(numbers, first.indices)
        own = torch.stack([exact_qu.gather(1, end) for end in places])
        best = Extremes(k)
        best.merge(own, first.indices)
        return best

    def _gradients(self, numbers: Tensor) -> list[Rows]:
        """Of some examples, in order, from the training set and from what was appended."""
        found: list[Rows] = []
        start = 0
        for data in (self.problem.train, *self.appended):
            own = numbers[(numbers >= start) & (numbers < start + len(data))] - start
            if len(own):
                few = data.take(own.to(self.problem.device))
                found.append(gradients_of(self.problem, self.layout, few))
            start += len(data)
        return found
