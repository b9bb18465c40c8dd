"""`cf.index`: φ of every training example, made once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from msgspec import structs
from torch import Tensor

from curvfluence import kinds
from curvfluence._version import __version__
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Absolute, Damping, Relative
from curvfluence.curvature.rung import Rung, require_rung, require_together
from curvfluence.curvature.saved import in_numbers
from curvfluence.errors import InputError
from curvfluence.indexing.encode import Encoder, encoded, side_by_side
from curvfluence.indexing.extremes import Extremes
from curvfluence.indexing.index import Index
from curvfluence.indexing.inner_products import grouped, inner_products, parts_of, room_of
from curvfluence.indexing.landmarks import Chosen, candidates, choose
from curvfluence.indexing.load import behind, curvature_in, damping_of, opened
from curvfluence.indexing.records import (
    BEGUN,
    CURVATURE,
    INDEX,
    Begun,
    IndexRecord,
    Recall,
    Shard,
)
from curvfluence.indexing.shards import Shards, read_ends, write_shard
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients
from curvfluence.problem.fingerprint import fingerprint
from curvfluence.problem.parts import parts_of_fit
from curvfluence.problem.problem import Problem, require_problem
from curvfluence.problem.source import Source
from curvfluence.runtime import precision, ranks
from curvfluence.runtime.log import logger
from curvfluence.score.fitted import fitted, told_apart
from curvfluence.score.influence import unit_of
from curvfluence.store.arrays import write_array
from curvfluence.store.files import inside
from curvfluence.store.folder import writing
from curvfluence.store.hashes import hash_code, hash_json
from curvfluence.store.lock import HeldError, held, own
from curvfluence.store.records import read, write

LOG = logger(__name__)
DIMENSIONS = (16, 32, 64, 128, 256, 512, 1024, 2048)  # of which errors are told
SAMPLED = 16  # queries that recall is measured on
RECALLED, AMONG = 10, 200  # so many of the best, among so many candidates
DTYPES = (torch.float32, torch.float16)
GROUPS = "number of groups of blocks"
ASKED_AGAIN = 1.0  # seconds until a folder that another command holds is asked for again
T = TypeVar("T")
# Who makes numbers what they are, to the last bit.
MAKERS: dict[str, Callable[[], str]] = {
    "code": hash_code,
    "torch": lambda: str(torch.__version__),
    "threads": lambda: str(torch.get_num_threads()),
    "order of sums": lambda: "in one go" if ranks.here() is None else "by ranges",
}


@precision.full()
def index(
    problem: Problem,
    rung: Rung | Curvature,
    *,
    out: str | Path,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    dimension: int = 256,
    error: float | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    appended: Sequence[Source] = (),
    memory: int | str | None = None,
    wait: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Index:
    """Make once, in the new folder `out`, what finds the examples behind any query without a pass
    over the training set; `Index.query` asks it.

    Of each example φ [d] is kept, the coordinates of its gradient's projection on those of d
    landmarks in the inner product of scores, gᵀ(C + diag(w) + λI)⁻¹g': φ(g_q)·φ(g_n)/N is the
    Nyström approximation of I[q, n]. Landmarks are training examples, see `landmarks.choose`. The
    fitted curvature goes into the folder too.

    `dimension` is d, at most; with `error` d is the least of 16, 32, 64, … below it at which the
    scores of sample queries over sample examples are off by no more, in norm, and what was not
    reached is said. What the first stage misses is measured over the whole set, for up to 16 of the
    problem's queries: `Index.record.recall`.

    `appended` are examples behind the training set, see `Index.append`; those that the folder has
    are held to what was kept of them, others are added. `progress` is told how many examples of the
    training set are done, and written. The same call goes on where it was killed, at the grain of a
    shard of 65,536 examples. With `wait` another one that writes to the folder is waited for.

    `memory` ("8GiB", or bytes; a quarter of what a process has unless said, and at most) bounds
    what solved landmarks and queries take, d + 16 of P numbers. Where that is more, a shard is done
    for some blocks of the curvature after others, in as many passes over its examples as there are
    groups of blocks, which the result says; and of the sample that landmarks are chosen among the
    whole Gram matrix is made.

    Cost: the fit, d solves, a scoring pass of d + 16 queries over the training set; N d numbers of
    `dtype` (float32 or float16) on disk, and d P in memory meanwhile. Inside of `together()`
    processes that see one folder share out the fit and the shards; the first one writes records,
    and tells `progress`.
    Errors: `InputError` for a curvature that is not positive semi-definite or is by products with
    the data, for a `BestOf` damping, for a folder that holds anything else, for a block that is
    larger than the memory by itself.
    """
    require_problem(problem)
    with ranks.alike():
        room = None if memory is None else kinds.memory(memory, "memory")
        folder = kinds.place(out, "out")
        dimension, seed = kinds.count(dimension, "dimension"), kinds.count(seed, "seed", least=0)
        sources = kinds.listed(appended, "appended")
        _require_asked(damping, error, dtype, progress)
        asked = _Asked(folder, problem, damping, dimension, error, seed, room)
        groups = _groups(asked, rung)
    made_of = {
        "problem": problem.fingerprint,
        "queries": str(problem.queries.checksum),
        "measurement": fingerprint(problem.measurement),
        "rung": told_apart(rung),
        "damping": str(damping),
        "dimension": str(dimension),
        "error": str(error),
        "dtype": str(dtype),
        "seed": str(seed),
        **{name: value() for name, value in MAKERS.items()},
    }
    if groups > 1:
        made_of[GROUPS] = str(groups)
    of_problem = {"problem", "queries", "measurement"}  # which are asked for part by part
    same = {f"the {name}": made_of[name] for name in made_of if name not in of_problem}
    same["the number of appended sources"] = str(len(sources))
    require_together(problem, **same, the_folder=folder)
    with _held_by_one(folder, wait=wait), writing(folder):
        record = _of_first(lambda: _held(folder, made_of))
        known = record is not None
        if record is None:
            curvature = fitted(problem, rung, damping, strict=False)
            _require_indexable(curvature)
            begun = _begun(problem, curvature, damping, made_of, dtype)
            record = _of_first(partial(_begin, folder, begun, curvature))
        else:
            with ranks.alike():
                curvature = curvature_in(folder, problem)
        if record.landmarks is None:
            record = _with_landmarks(asked, record, curvature)
        with ranks.alike():
            index = opened(folder, problem, record, curvature, verify=known, memory=room)
        if record.recall is None:
            index = _filled(index, progress)
    with ranks.alike():
        made, new = behind(index, sources)
        if new and ranks.here() is not None:
            raise InputError(
                f"{len(new)} appended sources are not in the index in {folder}: one process puts "
                "them there, by the same command without torchrun, or outside of together()"
            )
    for data in new:
        made = made.with_data(data)
    return made


@dataclass(frozen=True, eq=False)
class _Asked:
    """Which index, and where."""

    folder: Path
    problem: Problem
    damping: Damping
    dimension: int
    error: float | None
    seed: int
    memory: int | None

    @property
    def vectors(self) -> int:
        """That are solved for: landmarks, and sample queries."""
        return self.dimension + min(SAMPLED, len(self.problem.queries))


def _groups(asked: _Asked, rung: Rung | Curvature) -> int:
    """How many groups of blocks are solved for after one another, known before any work."""
    if isinstance(rung, Curvature):
        lines = rung.coverage
    else:
        require_rung(rung)
        lines = rung.coverage(asked.problem)
    room = room_of(asked.problem, asked.memory)
    blocks = [(line.block, line.count) for line in lines]
    return len(grouped(blocks, asked.vectors, asked.problem.dtype.itemsize, room))


def _require_asked(
    damping: object, error: float | None, dtype: torch.dtype, progress: object
) -> None:
    if error is not None and not 0 < kinds.number(error, "error") < 1:
        raise InputError(f"error must lie between 0 and 1; seen {error}")
    if kinds.dtype(dtype, "dtype") not in DTYPES:
        raise InputError(f"an index is in torch.float32 or torch.float16; seen {dtype}")
    if not isinstance(damping, Absolute | Relative):
        raise InputError("an index has one damping: Absolute(...) or Relative(...)")
    if progress is not None:
        kinds.function(progress, "progress")


def _of_first(make: Callable[[], T]) -> T:
    """What the first process makes, at all that work together; an error there is raised in all."""
    made: list[T] = []
    with ranks.alike():
        if ranks.leads():
            made.append(make())
    return ranks.of_first(made)[0]


@contextmanager
def _held_by_one(folder: Path, *, wait: bool) -> Generator[None]:
    """The folder is held against other commands, by the one of the processes that writes records.
    Those that work together ask again and again, since one of them waits for another only so long.
    """
    with ExitStack() as stack:
        while not _of_first(partial(_entered, stack, folder, wait=wait)):
            time.sleep(ASKED_AGAIN)
        yield


def _entered(stack: ExitStack, folder: Path, *, wait: bool) -> bool:
    try:
        stack.enter_context(held(folder, wait=wait and ranks.here() is None))
    except HeldError:
        if not wait:
            raise
        return False
    return True


def _begin(folder: Path, record: IndexRecord, curvature: Curvature) -> IndexRecord:
    write(folder / BEGUN, Begun(record.key))
    # of a call that was killed, see `_held`
    shutil.rmtree(inside(folder, CURVATURE), ignore_errors=True)
    curvature.save(folder / CURVATURE)
    write(folder / INDEX, record)
    (folder / BEGUN).unlink()
    return record


def _written(folder: Path, make: Callable[[], IndexRecord]) -> IndexRecord:
    """The record that the first process makes and writes, at all of them."""

    def made() -> IndexRecord:
        record = make()
        write(folder / INDEX, record)
        return record

    return _of_first(made)


def _held(folder: Path, made_of: dict[str, str]) -> IndexRecord | None:
    """The record of this very index, finished or not. Errors: `InputError` where the folder holds
    anything else, which nothing is taken out of."""
    record = read(folder / INDEX, IndexRecord)
    if record is not None:
        # who made a finished one does not matter: nothing is made again
        left_out = () if record.recall is None else (*MAKERS, GROUPS)
        other = [
            name
            for name in dict.fromkeys((*made_of, *record.made_of))
            if name not in left_out and record.made_of.get(name) != made_of.get(name)
        ]
        if other:
            how = (
                "go on with it as it was begun (torchrun or not, as many threads, as much memory, "
                "this release), "
                if set(other) <= {*MAKERS, GROUPS}
                else ""
            )
            raise InputError(
                f"{folder} holds an index of another {', '.join(other)}: {how}name another folder, "
                "or remove it"
            )
        return record
    begun = read(folder / BEGUN, Begun)
    mine = {BEGUN, CURVATURE} if begun is not None and begun.key == hash_json(made_of) else set()
    if {file.name for file in folder.iterdir() if not own(file)} - mine:
        raise InputError(f"{folder} holds files that are no index: name an empty folder")
    return None


def _require_indexable(curvature: Curvature) -> None:
    if not curvature.definite:
        raise InputError(
            f"{curvature.name} may have negative eigenvalues, and then no inner product that "
            "landmarks span: index under GGN or a rung below it, and score what is found under "
            "the Hessian with index.query(..., by=curvature)"
        )
    if not in_numbers(curvature.blocks):
        raise InputError(
            f"{curvature.name} is inverted by products with the data, which no file holds: index "
            "under EKFAC, say, and score what is found under this one with "
            "index.query(..., by=curvature)"
        )


def _begun(
    problem: Problem,
    curvature: Curvature,
    damping: Damping,
    made_of: dict[str, str],
    dtype: torch.dtype,
) -> IndexRecord:
    measurement = problem.measurement
    return IndexRecord(
        version=__version__,
        key=hash_json(made_of),
        made_of=made_of,
        fitted_on=problem.fingerprint,
        parts=parts_of_fit(problem),
        rung=curvature.name,
        damping=damping_of(damping),
        examples=len(problem.train),
        measurement=measurement.name,
        unit=unit_of(curvature, measurement),
        lower_is_better=measurement.lower_is_better,
        dtype=str(dtype).removeprefix("torch."),
        notes=(*problem.notes, *_of_groups(made_of)),
    )


def _of_groups(made_of: dict[str, str]) -> tuple[str, ...]:
    if GROUPS not in made_of:
        return ()
    return (
        f"solved landmarks were held for {made_of[GROUPS]} groups of blocks after one another, "
        "with as many passes over the training set",
    )


def _sampled(problem: Problem) -> Problem:
    """The problem with the queries that recall is measured on, spread over all of them."""
    count = min(SAMPLED, len(problem.queries))
    numbers = torch.linspace(0, len(problem.queries) - 1, count).long().unique()
    return problem.asking(numbers.tolist())


def _with_landmarks(asked: _Asked, record: IndexRecord, curvature: Curvature) -> IndexRecord:
    """The record once landmarks are chosen and written. All that work together choose, since none
    may be waited for as long as that may take, and have what the first one wrote."""
    problem, layout = asked.problem, discover(asked.problem)
    generator = torch.Generator().manual_seed(asked.seed)
    numbers = candidates(problem, layout, asked.dimension, generator)
    with ranks.alike():
        given = problem, layout, curvature, asked.damping, numbers
        chosen = choose(
            *given,
            most=asked.dimension,
            generator=generator,
            vectors=asked.vectors,
            memory=asked.memory,
        )
    return _written(asked.folder, lambda: _of_landmarks(asked, record, curvature, chosen))


def _of_landmarks(
    asked: _Asked, record: IndexRecord, curvature: Curvature, chosen: Chosen
) -> IndexRecord:
    """The record with as many of the chosen landmarks as are asked for, which are written."""
    folder, error, dimension = asked.folder, asked.error, asked.dimension
    counts = [d for d in DIMENSIONS if d < len(chosen.landmarks)] + [len(chosen.landmarks)]
    g_q = query_gradients(_sampled(asked.problem), discover(asked.problem))
    parts = parts_of(curvature, asked.vectors, room_of(asked.problem, asked.memory))
    exact_qm = inner_products(parts, asked.damping, (g_q,), chosen.sample)
    errors = chosen.errors(exact_qm, exact_qm[:, chosen.places].T, counts)
    count, notes = len(chosen.landmarks), list(record.notes)
    if count < dimension:
        notes.append(f"{count} landmarks span the gradients of the sample: dimension {count}")
    if error is not None:
        count = next((d for d, off in zip(counts, errors, strict=True) if off <= error), count)
        if errors[-1] > error:
            notes.append(
                f"{count} coordinates leave an error of {errors[-1]:.2g} where {error:g} was "
                "asked: allow a larger dimension"
            )
    landmarks, phi = chosen.landmarks.first(count), chosen.coordinates[:, :count]
    size = float(phi.square().mean().sqrt())
    return structs.replace(
        record,
        landmarks=write_array(folder / "landmarks.npy", landmarks.numbers.numpy(), record.key),
        factor=write_array(folder / "factor.npy", landmarks.factor.numpy(), record.key),
        errors=tuple((d, off) for d, off in zip(counts, errors, strict=True) if d <= count),
        scale=size if size > 0 else 1.0,
        notes=tuple(notes),
    )


def _filled(index: Index, progress: Callable[[int], object] | None) -> Index:
    """The index with all shards, and the recall that they show."""
    folder, record, problem = index.folder, index.record, index.problem
    with ranks.alike():
        encoder = index.encoder(query_gradients(_sampled(problem), index.layout))
    for shards in _made(index, encoder):
        whole = structs.replace(record, shards=(*record.shards, *shards))
        record = _written(folder, lambda whole=whole: whole)
        with ranks.alike():
            if ranks.leads():
                LOG.info("%s of %s examples are indexed", record.held, record.examples)
                if progress is not None:
                    progress(record.held)
    with ranks.alike():
        files = Shards.opened(folder, record, verify=False)

    def measured() -> IndexRecord:
        phi_qd = index.landmarks.coordinates(encoder.of_queries())
        return structs.replace(record, recall=_recall(folder, record, files, phi_qd))

    return replace(index, record=_written(folder, measured), shards=files)


def _made(index: Index, encoder: Encoder) -> Iterator[tuple[Shard, ...]]:
    """The shards that the index lacks, in order, written; where processes work together, as many
    at a time as there are. Theirs end where they are told to, and not where a chunk does: other
    chunks, other rounding."""
    folder, record, train = index.folder, index.record, index.problem.train
    ids, number, team = train.contents, len(record.shards), ranks.here()
    if record.held == len(train):
        return
    if team is None:
        for made in encoded(encoder, train, ids, record, first=record.held, k=RECALLED):
            yield (write_shard(folder, number, made, record.key),)
            number += 1
        return
    parts = side_by_side(record.held, len(train))
    for first in range(0, len(parts), team.count):
        own, at = dict[int, Shard](), first + team.rank
        with team.alike():
            if at < len(parts):
                begin, end = parts[at]
                some = train[:end]
                for made in encoded(encoder, some, ids, record, first=begin, k=RECALLED):
                    own[at] = write_shard(folder, number + at, made, record.key)
        yield tuple(team.merged(own).values())


def _recall(folder: Path, record: IndexRecord, shards: Shards, phi_qd: Tensor) -> Recall:
    exact = Extremes(RECALLED)
    for number, shard in enumerate(record.shards):
        exact.merge(*read_ends(folder, number, shard))
    among = min(AMONG, record.examples)
    found = shards.search(phi_qd, among)
    hits = (exact.indices[..., None] == found.indices[:, :, None]).any(3).double().mean(2)  # [2, S]
    high, low = hits.mean(1).tolist()
    helpful, harmful = (high, low) if record.lower_is_better else (low, high)
    return Recall(
        queries=len(phi_qd),
        k=exact.indices.shape[2],
        candidates=among,
        helpful=helpful,
        harmful=harmful,
        worst=float(hits.min()),
        errors=record.errors,
    )
