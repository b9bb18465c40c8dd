"""An index read back from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Absolute, Damping, Relative
from curvfluence.curvature.saved import read_curvature
from curvfluence.errors import InputError
from curvfluence.indexing.index import Index
from curvfluence.indexing.inner_products import Gradients, room_of
from curvfluence.indexing.landmarks import Landmarks
from curvfluence.indexing.records import CURVATURE, INDEX, REMEDY, IndexRecord, SavedDamping
from curvfluence.indexing.shards import Shards
from curvfluence.jacobian.discovery import discover
from curvfluence.problem.parts import another
from curvfluence.problem.problem import Problem, require_problem
from curvfluence.problem.source import Source, data_of
from curvfluence.problem.stream import Data
from curvfluence.runtime import precision
from curvfluence.store.arrays import StoredArray, read_stored
from curvfluence.store.files import inside
from curvfluence.store.records import read


@precision.full()
def load_index(
    path: str | Path,
    problem: Problem,
    *,
    appended: Sequence[Source] = (),
    verify: bool = True,
    memory: int | str | None = None,
) -> Index:
    """The index that `cf.index` made in `path`, for the problem that it was made of, and the
    examples that were appended to it, in that order.

    Every file is read once against its SHA-256; with `verify=False` those of φ are not, and are
    read as they are searched. Cost beside: a backward pass over the landmarks, whose gradients are
    held where they take no more than `memory` ("8GiB", or bytes; at most a quarter of what there
    is), else computed anew with each query.
    Errors: `InputError` for an index that is not finished, of other weights, loss, training set or
    appended examples, and naming a file that is missing or damaged.
    """
    require_problem(problem)
    kinds.flag(verify, "verify")
    room = None if memory is None else kinds.memory(memory, "memory")
    folder = kinds.place(path, "path")
    record = read(folder / INDEX, IndexRecord)
    if record is None:
        raise InputError(f"{folder} holds no index: there is no {INDEX}")
    if record.recall is None:
        raise InputError(
            f"the index in {folder} is not finished: {record.held:,} of {record.examples:,} "
            "examples are in it. The call that makes it goes on from there"
        )
    other = another(record.fitted_on, record.parts, problem)
    if other is not None:
        raise InputError(
            f"the index in {folder} is of {other}: give the problem that it was made of, or make "
            "another index"
        )
    if record.examples != len(problem.train):
        raise InputError(
            f"the index in {folder} is of another number of training examples: {REMEDY}"
        )
    curvature = curvature_in(folder, problem)
    index = opened(folder, problem, record, curvature, verify=verify, memory=room)
    found, new = behind(index, appended)
    if new:
        raise InputError(
            f"{sum(map(len, new)):,} of the appended examples are not in the index in {folder}: "
            "index.append adds them"
        )
    return found


def verify_index(folder: Path) -> IndexRecord:
    """Every byte of an index against its SHA-256, without the problem that it is of. Errors:
    `InputError` where it is not finished, or names the file that is missing or damaged."""
    record = read(folder / INDEX, IndexRecord)
    if record is None or record.recall is None:
        raise InputError(f"{folder} is unfinished: the call that makes it goes on from there")
    read_curvature(inside(folder, CURVATURE), torch.device("cpu"), mapped=True)
    _read(folder, "landmarks", record.landmarks, "int64", 1)
    _read(folder, "factor", record.factor, "float64", 2)
    Shards.opened(folder, record, verify=True)
    return record


def behind(index: Index, sources: Sequence[Source]) -> tuple[Index, list[Data]]:
    """(the index with these examples behind its training set, held to the contents that its folder
    has of them; those that it has not).

    Errors: `InputError` where the folder has others, or some that are not among them.
    """
    problem, place = index.problem, index.record.examples
    given = kinds.listed(sources, "appended")
    kept, ids, new = len(index), index.ids, list[Data]()
    for number, source in enumerate(given):
        data = data_of(source, "appended").to(problem.device, problem.dtype)
        if place >= kept:
            new.append(data)
        elif torch.equal(data.contents.cpu(), ids[place : place + len(data)]):
            index = index.knowing(data)
        else:
            raise InputError(
                f"appended[{number}] holds other examples than the index in {index.folder} has "
                "at that place: give them in the order in which they were appended"
            )
        place += len(data)
    if place < kept:
        raise InputError(
            f"the index in {index.folder} has {kept - index.record.examples:,} appended examples, "
            f"and {place - index.record.examples:,} are given: give all of them, in that order, as "
            "appended=[...]"
        )
    return index, new


def opened(
    folder: Path,
    problem: Problem,
    record: IndexRecord,
    curvature: Curvature,
    *,
    verify: bool,
    memory: int | None,
) -> Index:
    """What the record says, from its files."""
    layout = discover(problem)
    numbers = _read(folder, "landmarks", record.landmarks, "int64", 1)
    factor = _read(folder, "factor", record.factor, "float64", 2)
    shards = Shards.opened(folder, record, verify=verify)
    if verify:
        _require_sound(folder, problem, record, numbers, factor, shards)
    own = problem.train.take(numbers.to(problem.device))
    return Index(
        folder=folder,
        problem=problem,
        curvature=curvature,
        damping=damping_in(record.damping),
        record=record,
        shards=shards,
        landmarks=Landmarks(numbers, factor),
        layout=layout,
        rows=Gradients.of(problem, layout, own, room_of(problem, memory)),
        versions=(problem.train.versions,),
        memory=memory,
    )


def curvature_in(folder: Path, problem: Problem) -> Curvature:
    return Curvature.load(inside(folder, CURVATURE), problem, mapped=True)


def damping_of(damping: Damping) -> SavedDamping:
    assert isinstance(damping, Absolute | Relative)
    return SavedDamping(isinstance(damping, Relative), damping.value)


def damping_in(saved: SavedDamping) -> Damping:
    return Relative(saved.value) if saved.relative else Absolute(saved.value)


def _read(folder: Path, name: str, said: StoredArray | None, dtype: str, axes: int) -> Tensor:
    path = inside(folder, f"{name}.npy")
    if said is None or said.dtype != dtype or len(said.shape) != axes:
        raise InputError(f"{path} is not the {name} of an index: {REMEDY}")
    return torch.from_numpy(read_stored(path, said, finite=True, remedy=REMEDY))


def _require_sound(
    folder: Path,
    problem: Problem,
    record: IndexRecord,
    numbers: Tensor,
    factor: Tensor,
    shards: Shards,
) -> None:
    """What a digest does not show, since whoever writes files can seal them: that they go together.
    Errors: `InputError`."""
    n, d = len(problem.train), len(numbers)
    ids, ends = problem.train.contents.cpu(), [0]
    for shard in record.shards:
        ends.append(ends[-1] + shard.examples)
    recall = record.recall
    for wrong, what in (
        (record.examples != n, "is of another number of training examples"),
        (not bool(((numbers >= 0) & (numbers < n)).all()), "has landmarks that are no examples"),
        (d == 0 or len(numbers.unique()) != d, "has no landmarks, or one twice"),
        (factor.shape != (d, d), "has a factor of another size"),
        (not torch.equal(factor, factor.tril()), "has a factor that is not triangular"),
        (not bool((factor.diagonal() > 0).all()), "has a factor that is not positive"),
        (record.dtype not in ("float32", "float16"), "is of an unknown dtype"),
        (recall is not None and n not in ends, "has shards that do not end with the training set"),
        (recall is not None and not recall.errors, "has no measured errors"),
        (
            recall is not None
            and n in ends
            and not torch.equal(torch.cat(shards.ids)[:n], ids[: ends[-1]]),
            "is of other training examples, or has them in another order",
        ),
    ):
        if wrong:
            raise InputError(f"the index in {folder} {what}: {REMEDY}")
