"""Long works of one command, kept piece by piece: the same command goes on where it was killed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from curvfluence.runtime import ranks
from curvfluence.runtime.said import noted, say
from curvfluence.store.steps import Steps

EVERY = 20.0  # seconds of work after which what is done of it is kept
LONG = 3e11  # operations, some ten seconds: a job of fewer is done again sooner than kept
SPENT = {"seconds": "spent"}  # the step that says how long it has taken so far
SHORT = 1.0  # seconds of a work that is done again sooner than read
SHARE = 10.0  # so many times the seconds that keeping took pass before it is kept again

T = TypeVar("T")


@dataclass(eq=False)
class Journal:
    """Works go by their place: the scopes that they are in, what they are, and how many of that
    name came before. So a command that does the same works in the same order finds its own.

    A work of a work is not kept by itself. Numbers must not hang on whether a work was done or
    read: gradients that one work leaves in memory for others are not read, see `steady`.
    """

    steps: Steps
    every: float = EVERY
    place: tuple[str, ...] = ()  # the scopes that we are in
    found: int = 0  # works that an earlier command had begun or done
    earlier: float = 0.0  # seconds that such commands had spent when they last kept something
    begun: float = field(default_factory=lambda: time.monotonic())
    _seen: Counter[tuple[str, ...]] = field(default_factory=Counter[tuple[str, ...]])
    _last: float = field(default_factory=lambda: time.monotonic())
    _pause: float = 0.0

    def begin(self, what: str) -> Work:
        """The next work of that name in this scope."""
        place = (*self.place, what)
        self._seen[place] += 1
        return Work(self, {"work": list(place), "number": self._seen[place]})

    def enter(self, what: str) -> tuple[str, ...]:
        """Go into the next scope of that name; the place that we were at."""
        before, place = self.place, (*self.place, what)
        self._seen[place] += 1
        self.place = (*place, str(self._seen[place]))
        return before

    def keep(self, name: dict[str, Any], value: object) -> None:
        start = time.monotonic()
        self.steps.keep(name, value)
        self.steps.keep(SPENT, self.seconds)
        self._last = time.monotonic()
        self._pause = SHARE * (self._last - start)

    @property
    def seconds(self) -> float:
        """Of these works so far, those of killed commands among them."""
        return self.earlier + time.monotonic() - self.begun

    @property
    def due(self) -> bool:
        """Whether enough was done since something was kept."""
        return time.monotonic() - self._last >= max(self.every, self._pause)


@dataclass(frozen=True, eq=False)
class Work:
    """One work that takes long: a sum over the data, a decomposition, a strip of scores."""

    journal: Journal
    name: dict[str, Any]
    start: float = field(default_factory=lambda: time.monotonic())

    def find(self, kind: type[T]) -> T | None:
        """What was kept of it."""
        found = self.journal.steps.find(self.name, kind)
        self.journal.found += found is not None
        return found

    def keep(self, value: object) -> None:
        """Keep it, however short it was."""
        self.journal.keep(self.name, value)

    def keep_if_due(self, value: object) -> None:
        """Keep what is done so far, where the last time is long ago."""
        if self.journal.due:
            self.keep(value)

    @property
    def long(self) -> bool:
        """Whether doing it took so long that it is read sooner."""
        return time.monotonic() - self.start >= min(SHORT, self.journal.every)

    def keep_if_long(self, value: object) -> None:
        """Keep the whole, where doing it took long."""
        if self.long:
            self.keep(value)

    @contextmanager
    def alone(self) -> Generator[None]:
        """Within it, works are a part of this one, and not kept by themselves."""
        token = _JOURNAL.set(None)
        try:
            yield
        finally:
            _JOURNAL.reset(token)


_JOURNAL: ContextVar[Journal | None] = ContextVar("journal", default=None)
_STEADY: ContextVar[bool] = ContextVar("steady", default=False)


@contextmanager
def kept_in(steps: Steps, every: float = EVERY) -> Generator[None]:
    """Within it, long works are kept among these steps."""
    with _under(Journal(steps, every, earlier=steps.find(SPENT, float) or 0.0)):
        yield


@contextmanager
def apart() -> Generator[None]:
    """Within it nothing is kept or read: for what is timed."""
    with _under(None):
        yield


@contextmanager
def _under(journal: Journal | None) -> Generator[None]:
    tokens = _JOURNAL.set(journal), _STEADY.set(journal is not None)
    try:
        yield
    finally:
        _JOURNAL.reset(tokens[0])
        _STEADY.reset(tokens[1])


def earlier() -> float:
    """Seconds that killed commands had spent on these works."""
    journal = _JOURNAL.get()
    return 0.0 if journal is None else journal.earlier


def seconds() -> float:
    """Those since works are kept here, with what killed commands had spent on them."""
    journal = _JOURNAL.get()
    if journal is None:
        raise RuntimeError("nothing is kept here")
    return journal.seconds


def found() -> int:
    """How many works so far were read, in whole or in part."""
    journal = _JOURNAL.get()
    return 0 if journal is None else journal.found


def steady() -> bool:
    """Whether every work must give the same bits whatever was done before it."""
    return _STEADY.get()


@contextmanager
def scope(what: Callable[[], str]) -> Generator[None]:
    """Within it, works are told from those of other scopes; it is named where works are kept."""
    journal = _JOURNAL.get()
    before = () if journal is None else journal.enter(what())
    try:
        yield
    finally:
        if journal is not None:
            journal.place = before


@contextmanager
def work(what: str) -> Generator[Work | None]:
    """The next work of that name, within which others are not kept; None where nothing is, and
    where this process works with others and speaks to them on the way."""
    journal = _JOURNAL.get()
    if journal is None or not ranks.alone():
        yield None
        return
    token = _JOURNAL.set(None)
    try:
        yield journal.begin(what)
    finally:
        _JOURNAL.reset(token)


@dataclass(frozen=True, eq=False)
class Whole:
    """The result of a work, and what was said on the way."""

    value: Any
    said: list[str]


def whole(what: str, make: Callable[[], Any], *, always: bool = False) -> Any:
    """`make()`, or what was kept of it: tensors on the CPU, tuples as lists. `always` keeps what
    took no time as well, since it would be another the next time."""
    with work(what) as ours:
        if ours is None:
            return make()
        found = ours.find(Whole)
        if found is None:
            with noted() as said:
                found = Whole(make(), said)
            if always:
                ours.keep(found)
            else:
                ours.keep_if_long(found)
    for text in found.said:
        say(text)
    return found.value


def in_turn(makes: Iterable[tuple[str, Callable[[], T]]], kind: type[T]) -> Iterator[T]:
    """What each of these makes in a scope of its name, or what was kept of it. A whole is kept once
    it took long, and shorter ones together when it is due; works within are kept as well."""
    waiting: list[tuple[Work, T]] = []
    for name, make in makes:
        with scope(lambda name=name: name):
            with work("whole") as ours:
                found = None if ours is None else ours.find(kind)
            if found is None:
                found = make()
                if ours is not None:
                    waiting.append((ours, found))
                    if ours.long or ours.journal.due:
                        for one, value in waiting:
                            one.keep(value)
                        waiting.clear()
        yield found


@dataclass(frozen=True, eq=False)
class Pieces:
    """The first pieces of a work that comes in pieces, each with the number that it begins at;
    `after` is that of the next one."""

    pieces: list[tuple[int, Tensor]]
    after: int
    whole: bool


def in_pieces(
    what: str, pieces_from: Callable[[int], Iterable[tuple[int, Tensor]]]
) -> Iterator[tuple[int, Tensor]]:
    """(start, piece [..., count]) of all pieces: those that were kept, and then those of
    `pieces_from(start)`, where `start` is the first that is missing."""
    with work(what) as ours:
        if ours is None:
            yield from pieces_from(0)
            return
        found = ours.find(Pieces) or Pieces([], 0, whole=False)
    done, after = list(found.pieces), found.after
    yield from found.pieces
    if found.whole:
        return
    pieces = iter(pieces_from(after))
    while True:
        with ours.alone():
            item = next(pieces, None)
        if item is None:
            break
        done.append(item)
        after = item[0] + item[1].shape[-1]
        ours.keep_if_due(Pieces(done, after, whole=False))
        yield item
    ours.keep_if_long(Pieces(done, after, whole=True))
