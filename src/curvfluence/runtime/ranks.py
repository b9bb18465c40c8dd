"""The processes of torch.distributed that work on one problem together, where there are any.

Nothing here starts or joins them: who runs under `torchrun` calls
`torch.distributed.init_process_group`, and inside `together()` sums over the data,
eigendecompositions and scores are shared out. There every process calls the same functions with the
same arguments and has the same result; outside of it each works by itself.

Data are cut into `GROUPS` ranges that do not depend on how many processes there are, and sums of
ranges are added along one binary tree, so that 1, 2 or 16 processes give the same bits on machines
that are alike.
"""

from __future__ import annotations

import gc
import os
import pickle
import re
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from curvfluence.errors import InputError, ProcessEndedError, listed
from curvfluence.runtime import backend
from curvfluence.runtime.said import noted, say

_SENT = [0]  # bytes of tensors that this process handed on

LEAVING = timedelta(seconds=60)  # that a process waits for the others to be done
LEVELS = 4
GROUPS = 2**LEVELS  # ranges of the data; as many processes can be used at most

Totals: TypeAlias = dict[Hashable, Tensor]
Chunk = TypeVar("Chunk", covariant=True)
T = TypeVar("T")


@runtime_checkable
class Grouped(Protocol[Chunk]):
    """Chunks of data of which each of `GROUPS` ranges can be had by itself."""

    def group(self, number: int) -> Iterator[Chunk]:
        """The chunks of one range."""
        ...


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this one is."""

    rank: int
    count: int

    @property
    def own(self) -> range:
        """The ranges of the data that are this process's."""
        return self._groups(self.rank)

    def _groups(self, rank: int) -> range:
        return range(GROUPS * rank // self.count, GROUPS * (rank + 1) // self.count)

    def owner(self, group: int) -> int:
        return next(r for r in range(self.count) if group in self._groups(r))

    def examples(self, n: int, rank: int) -> tuple[int, int]:
        """The examples of all ranges of a process, [first, end)."""
        groups = self._groups(rank)
        return bounds(n, groups[0])[0], bounds(n, groups[-1])[1]

    def agree(self, said: str) -> bool:
        """Whether all of them say the same."""
        return len(set(self._of_all(said))) == 1

    def require_same(
        self,
        said: Mapping[str, str],
        differing: Callable[[Mapping[str, str], Mapping[str, str]], Sequence[str]] | None = None,
    ) -> None:
        """Errors: `InputError` where the processes were not given the same, with what differs: all
        of `said` that does, or what `differing` names of process 0's and another's."""
        every = self._of_all(dict(said))
        other = next((rank for rank, one in enumerate(every) if one != every[0]), None)
        if other is None:
            return
        first, its = every[0], every[other]
        names = differing(first, its) if differing else [n for n in first if its.get(n) != first[n]]
        raise InputError(
            f"the processes disagree: rank {other} differs from rank 0 in {listed(names)}. Give "
            "every rank the same (one checkpoint, one seed, as many threads)"
        )

    def _of_all(self, own: T) -> list[T]:
        """What each of them has: some small object."""
        every: list[Any] = [None] * self.count
        dist.all_gather_object(every, own)
        return every

    def require_enough(self, examples: int) -> None:
        """Errors: `InputError` for more processes than ranges, or than examples."""
        if self.count > GROUPS:
            raise InputError(
                f"{self.count} ranks are more than the {GROUPS} ranges that data are cut into: use "
                f"at most {GROUPS}, which may have several threads each"
            )
        if self.count > examples:
            raise InputError(
                f"{self.count} ranks are more than the {examples} training examples: use at most "
                f"{examples}"
            )

    def merged(self, own: Mapping[Any, Any]) -> dict[Any, Any]:
        """The union of everyone's, in the order of its keys."""
        union = {key: value for one in self._of_all(dict(own)) for key, value in one.items()}
        return {key: union[key] for key in sorted(union)}

    def broadcast(self, value: Tensor, of: int) -> Tensor:
        """What one process gives, at all."""
        return _broadcast({0: value}, of, self)[0]

    def shared_out(self, jobs: Sequence[Job]) -> list[tuple[Tensor, ...]]:
        """The results of all jobs, each done by one process: the dearest first, to whoever has
        least to do."""
        load = [0.0] * self.count
        doing: dict[int, int] = {}
        for k in sorted(range(len(jobs)), key=lambda k: (-jobs[k].cost, k)):
            doing[k] = min(range(self.count), key=lambda r: (load[r], r))
            load[doing[k]] += jobs[k].cost
        mine: dict[int, tuple[Tensor, ...]] = {}
        notes: dict[int, list[str]] = {}
        with self.alike():
            for k in (k for k, r in doing.items() if r == self.rank):
                with noted() as notes[k]:
                    mine[k] = jobs[k].run()
        for said in self.merged(notes).values():
            for note in said:
                say(note)
        return [
            tuple(_broadcast(dict(enumerate(mine.get(k, ()))), doing[k], self).values())
            for k in range(len(jobs))
        ]

    @contextmanager
    def alike(self) -> Generator[None]:
        """Work that each process does by itself, without a word to the others: an error in one of
        them is raised in all, that of the first range of the data where there are several."""
        error: Exception | None = None
        token = _ALONE.set(True)
        try:
            yield
        except Exception as raised:
            error = raised
        finally:
            _ALONE.reset(token)
        every = self._of_all(_told(error))
        first = next((r for r, told in enumerate(every) if told is not None), None)
        if first is not None:
            told = every[first]
            assert told is not None
            raise told if error is None or first != self.rank else error


@dataclass(frozen=True)
class Job:
    """Something that one process does for all."""

    cost: float
    run: Callable[[], tuple[Tensor, ...]]


_TEAM: ContextVar[Ranks | None] = ContextVar("team", default=None)
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def together() -> Generator[Ranks]:
    """Within it, `cf.fit`, `cf.influence` and what rests on them share their work with the other
    processes of the default group, which must all come here and call the same.

    Errors: `InputError` where torch.distributed is not initialised, or by NCCL alone, which hands
    nothing on from the CPU; `ProcessEndedError` where another process is gone while this one waits
    for it.
    """
    backend.require_distributed()
    if not dist.is_initialized():
        raise InputError(
            "no processes work together here: start them by torchrun, and call "
            'torch.distributed.init_process_group("gloo") first, or "cpu:gloo,cuda:nccl" for CUDA '
            "devices"
        )
    backend.require_cpu()
    team = Ranks(dist.get_rank(), dist.get_world_size())
    token = _TEAM.set(team)
    try:
        with ends_told():
            yield team
    finally:
        _TEAM.reset(token)


@contextmanager
def ends_told() -> Generator[None]:
    """Within it, what torch.distributed raises where another process is gone is a sentence."""
    try:
        yield
    except RuntimeError as error:
        if not _of_an_end(error):
            raise
        # without the line of gloo's own source, and what torch advises
        said = re.sub(r"^\[[^\]]*\] *", "", str(error)).partition(". ")[0]
        raise ProcessEndedError(
            "another of the processes that work together ended, or can no longer be reached "
            f"({said}). What it said last, or torchrun, tells which and why"
        ) from error


def _of_an_end(error: RuntimeError) -> bool:
    """Gloo raises plain RuntimeErrors, which name the place in its own source, and the addresses of
    processes and not their ranks."""
    if re.search(r"gloo[/\\]transport", str(error)):
        return True
    lost = "remote process exited" in str(error)  # NCCL's
    return isinstance(error, dist.DistNetworkError) or (
        lost and isinstance(error, dist.DistBackendError)
    )


def here() -> Ranks | None:
    """Those that work together, None outside of `together()`."""
    return _TEAM.get()


@contextmanager
def apart() -> Generator[None]:
    """Within it this process works by itself, on something that is its own."""
    token = _TEAM.set(None)
    try:
        yield
    finally:
        _TEAM.reset(token)


def alone() -> bool:
    """Whether this process works by itself, without a word to others, now: where none work with it,
    and within `alike`. What it then reads from a file, where another process computes, makes
    nobody wait for a message."""
    return here() is None or _ALONE.get()


def on_this_machine() -> int:
    """How many of them share its memory, as far as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if here() is not None else 1


@contextmanager
def alike() -> Generator[None]:
    """`Ranks.alike`, or nothing where no processes work together."""
    team = here()
    if team is None:
        yield
        return
    with team.alike():
        yield


def shared_out(jobs: Sequence[Job]) -> list[tuple[Tensor, ...]]:
    """`Ranks.shared_out`, or all of them here where no processes work together."""
    team = here()
    return [job.run() for job in jobs] if team is None else team.shared_out(jobs)


def of_first(value: T) -> T:
    """What the first of the processes that work together has, at all of them: some small object."""
    if here() is None:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def sent() -> int:
    """Bytes of tensors that this process has handed on, each once however many have them after."""
    return _SENT[0]


def own() -> range:
    """The ranges of the data that are this process's: all where none work together."""
    team = here()
    return range(GROUPS) if team is None else team.own


def chunks_before(n: int, group: int) -> int:
    """How many of this process's ranges before that one have more than one of n examples."""
    sizes = (end - first for first, end in (bounds(n, k) for k in own() if k < group))
    return sum(size > 1 for size in sizes)


def leads() -> bool:
    """Whether this process is the one that writes what is written once."""
    team = here()
    return team is None or team.rank == 0


def wait() -> None:
    """Until all that work together are here."""
    if here() is not None:
        dist.barrier()


def leave() -> None:
    """End the process group that `torchrun` began, once nobody has anything more to receive.

    With older releases of gloo a process that leaves behind a barrier may take the last message of
    that barrier with it, and another waits for it for half an hour. So all of them tell the store,
    which is torchrun's own, before any of them goes.
    """
    with ends_told():
        dist.barrier()
        _tell_all()
    destroy()


def _tell_all() -> None:
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            *place, is_master=False, timeout=LEAVING
        )
        if store.add(f"curvfluence/leaving/{again}", 1) == dist.get_world_size():
            store.set(f"curvfluence/left/{again}", "all")
        store.wait([f"curvfluence/left/{again}"])


def destroy() -> None:
    """End the process group without asking the others."""
    dist.destroy_process_group()
    # What still refers to the group would end it with the interpreter, whose locks its threads
    # want: an abort (pytorch/pytorch#179291).
    gc.collect()


def bounds(n: int, group: int) -> tuple[int, int]:
    """The examples of one range, [first, end)."""
    return n * group // GROUPS, n * (group + 1) // GROUPS


@dataclass(eq=False)
class Tree:
    """Sums of ranges on their way up: a node is added to its sibling as soon as both are at one
    process, so that few are held."""

    ranks: Ranks
    nodes: dict[tuple[int, int], Totals] = field(default_factory=dict[tuple[int, int], Totals])

    def add(self, group: int, totals: Totals) -> None:
        """The sums of one of this process's ranges, in the order of the ranges."""
        level, index = 0, group
        # As they arrive elsewhere: what is made of a sum may hang on how it lies in memory.
        totals = {key: value.contiguous() for key, value in totals.items()}
        while index % 2 and (level, index - 1) in self.nodes:
            totals = _sum(self.nodes.pop((level, index - 1)), totals)
            level, index = level + 1, index // 2
        self.nodes[level, index] = totals

    def total(self) -> Totals:
        """The sums of all ranges, at every process."""
        ranks = self.ranks
        for level in range(LEVELS):
            for index in range(0, GROUPS >> level, 2):
                left, right = (ranks.owner((index + side) << level) for side in (0, 1))
                if left == right:
                    self._merge(level, index)
                elif ranks.rank == right:
                    _send(self.nodes.pop((level, index + 1)), left)
                elif ranks.rank == left:
                    self.nodes[level, index + 1] = _receive(right)
                    self._merge(level, index)
        return _broadcast(self.nodes.pop((LEVELS, 0), {}), 0, ranks)

    def _merge(self, level: int, index: int) -> None:
        if (level, index + 1) in self.nodes:
            a, b = self.nodes.pop((level, index)), self.nodes.pop((level, index + 1))
            self.nodes[level + 1, index // 2] = _sum(a, b)


def _told(error: Exception | None) -> Exception | None:
    """An error as another process can raise it."""
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error that does not travel
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _sum(a: Totals, b: Totals) -> Totals:
    """Of tensors by name; new memory, since a sum may be held by others too."""
    found = dict(a)
    for key, value in b.items():
        found[key] = found[key] + value if key in found else value
    return found


def _described(totals: Totals) -> list[tuple[Hashable, tuple[int, ...], torch.dtype, str]]:
    return [(k, tuple(v.shape), v.dtype, str(v.device.type)) for k, v in totals.items()]


def _empty(said: tuple[Hashable, tuple[int, ...], torch.dtype, str]) -> Tensor:
    _, shape, dtype, device = said
    return torch.empty(shape, dtype=dtype, device=device)


def _send(totals: Totals, to: int) -> None:
    dist.send_object_list([_described(totals)], dst=to)
    for value in totals.values():
        _SENT[0] += value.nbytes
        dist.send(value.contiguous(), dst=to)


def _receive(of: int) -> Totals:
    said: list[Any] = [None]
    dist.recv_object_list(said, src=of)
    found: Totals = {}
    for one in said[0]:
        value = _empty(one)
        dist.recv(value, src=of)
        found[one[0]] = value
    return found


def _broadcast(totals: Totals, of: int, ranks: Ranks) -> Totals:
    """What one process has, at all."""
    if ranks.count == 1:
        return totals
    said: list[Any] = [_described(totals)]
    dist.broadcast_object_list(said, src=of)
    found: Totals = {}
    for one in said[0]:
        value = totals[one[0]].contiguous() if ranks.rank == of else _empty(one)
        _SENT[0] += value.nbytes if ranks.rank == of else 0
        dist.broadcast(value, src=of)
        found[one[0]] = value
    return found


def gathered(ranks: Ranks, whole_qn: Tensor) -> None:
    """Fill [Q, N] of which each process has its own examples' columns."""
    n = whole_qn.shape[1]
    for rank in range(ranks.count):
        first, end = ranks.examples(n, rank)
        part = whole_qn[:, first:end].contiguous()
        _SENT[0] += part.nbytes if rank == ranks.rank else 0
        dist.broadcast(part, src=rank)
        whole_qn[:, first:end] = part
