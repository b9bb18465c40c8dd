"""The one sum over the data: every curvature is estimated by it, whatever is added up."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import Tensor

from curvfluence.errors import NonFiniteError
from curvfluence.runtime import journal, ranks
from curvfluence.runtime.finite import all_finite
from curvfluence.runtime.resumable import Recalling, Resumable

Chunk = TypeVar("Chunk")


class Sums:
    """Named sums of tensors that grow chunk by chunk."""

    def __init__(self, totals: dict[Hashable, Tensor] | None = None) -> None:
        self._totals: dict[Hashable, Tensor] = {} if totals is None else totals

    @property
    def totals(self) -> dict[Hashable, Tensor]:
        return self._totals

    def add(self, key: Hashable, value: Tensor) -> None:
        """Add a tensor that others may hold too, and that stays as it is."""
        total = self._totals.get(key)
        self._totals[key] = value if total is None else total + value

    def add_(self, key: Hashable, value: Tensor) -> None:
        """Add a fresh tensor, which may become the sum's own memory."""
        total = self._totals.get(key)
        self._totals[key] = value if total is None else total.add_(value)

    def add_product_(self, key: Hashable, x: Tensor, y: Tensor) -> None:
        """Add x y, with no memory for the product beside that of the sum."""
        total = self._totals.get(key)
        self._totals[key] = x @ y if total is None else total.addmm_(x, y)

    def so_far(self, position: Any, *, whole: bool) -> Partial:
        """What there is of them, to be kept."""
        kept = [(key, str(total.device), total) for key, total in self._totals.items()]
        return Partial(kept, position, whole)

    @staticmethod
    def of(kept: Partial) -> Sums:
        sums = Sums()
        sums._totals = {_key(key): total.to(device) for key, device, total in kept.totals}
        return sums

    def __contains__(self, key: Hashable) -> bool:
        return key in self._totals

    def __getitem__(self, key: Hashable) -> Tensor:
        return self._totals[key]

    def require_finite(self) -> None:
        for key, total in self._totals.items():
            if not all_finite(total):
                name = " ".join(map(str, key)) if isinstance(key, tuple) else str(key)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
                kind = str(total.dtype).removeprefix("torch.")
                raise NonFiniteError(
                    f"a sum over the data overflows {kind} ({name}), though every example's rows "
                    "are finite: scale the inputs or the loss, or use problem.to(torch.float64)"
                )

    def pop(self, key: Hashable) -> Tensor:
        """The sum, which is then held here no longer."""
        return self._totals.pop(key)


@dataclass(frozen=True, eq=False)
class Partial:
    """Sums over the chunks up to a position of their source: key, device and value of each."""

    totals: list[tuple[Any, str, Tensor]]
    position: Any
    whole: bool


def _key(kept: Any) -> Hashable:
    """A key as it was: a tuple is kept as a list."""
    return tuple(map(_key, kept)) if isinstance(kept, list) else kept  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def accumulate(chunks: Iterable[Chunk], update: Callable[[Chunk, Sums], None]) -> Sums:
    """Σ over chunks of the data of what `update(chunk, sums)` adds of each.

    Factors, squares, Gram matrices, the GGN, products with it and with the Hessian, gradients of
    groups: all are such sums, and what all of them need (a reduction over machines, progress,
    another device) has this one place. Where the work of a command is kept (`journal`), a sum over
    chunks that can begin anywhere (`Resumable`) goes on where it stopped, and every other one that
    is whole is read. A chunk is let go of before the next is made. Where processes of
    torch.distributed work together, each takes its own ranges of what can be had by ranges
    (`ranks.Grouped`), and all have the sum.

    Errors: `NonFiniteError` where a sum is beyond its dtype though each row was finite.
    """
    team = ranks.here()
    if team is not None and isinstance(chunks, ranks.Grouped):
        sums = _together(team, chunks, update)
        sums.require_finite()
        return sums
    with journal.work("sum") as ours:
        sums = Sums() if ours is None else _kept(ours, chunks, update)
        if ours is None:
            for chunk in chunks:
                update(chunk, sums)
                del chunk
    sums.require_finite()
    return sums


def _together(
    team: ranks.Ranks, chunks: ranks.Grouped[Chunk], update: Callable[[Chunk, Sums], None]
) -> Sums:
    """The sums of all processes, each over its own ranges of the data; where work is kept, from the
    range on that comes after those that are."""
    tree = ranks.Tree(team)
    with team.alike(), journal.work("sums of ranges") as ours:
        found = None if ours is None else ours.find(Partial)
        first = team.own.start if found is None else _recalled(found, tree, chunks)
        for number in range(first, team.own.stop):
            own = Sums()
            for chunk in chunks.group(number):
                update(chunk, own)
                del chunk
            tree.add(number, own.totals)
            if ours is not None:
                ours.keep_if_due(_ranges_so_far(tree, chunks, number + 1, whole=False))
        if ours is not None and (found is None or not found.whole):
            ours.keep_if_long(_ranges_so_far(tree, chunks, team.own.stop, whole=True))
    return Sums(tree.total())


def _ranges_so_far(tree: ranks.Tree, chunks: object, following: int, *, whole: bool) -> Partial:
    """What is on its way up the tree, the range that comes next, and what the pass has seen."""
    nodes = tree.nodes.items()
    held = Sums({(*node, key): x for node, totals in nodes for key, x in totals.items()})
    seen = chunks.position if isinstance(chunks, Recalling) else None
    return held.so_far([following, seen], whole=whole)


def _recalled(found: Partial, tree: ranks.Tree, chunks: object) -> int:
    """Put back what was kept of ranges; the one that comes next."""
    following, seen = found.position
    for place, total in Sums.of(found).totals.items():
        level, index, key = cast("tuple[int, int, Hashable]", place)
        tree.nodes.setdefault((level, index), {})[key] = total
    if seen is not None and isinstance(chunks, Recalling):
        chunks.recall(seen)
    return following


def _kept(
    ours: journal.Work, chunks: Iterable[Chunk], update: Callable[[Chunk, Sums], None]
) -> Sums:
    """The sums from what was kept of them on."""
    found = ours.find(Partial)
    sums = Sums() if found is None else Sums.of(found)
    source: Resumable[Chunk] | None = chunks if isinstance(chunks, Resumable) else None
    if found is not None and source is not None:
        chunks = source.after(found.position)
    if found is None or not found.whole:
        for chunk in chunks:
            update(chunk, sums)
            del chunk
            if source is not None:
                ours.keep_if_due(sums.so_far(source.position, whole=False))
        position = None if source is None else source.position
        ours.keep_if_long(sums.so_far(position, whole=True))
    return sums
