"""Scores of a rung of blocks in a stated memory: some blocks after others, their shares added."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from curvfluence import kinds
from curvfluence.curvature.coverage import CoverageLine, named
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import BestOf, Damping, require_damping
from curvfluence.curvature.rung import Rung, require_rules, require_rung
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import forget_gradients
from curvfluence.problem.problem import Problem, require_problem
from curvfluence.runtime import budget, ranks
from curvfluence.score.compression import COMPRESSED, UNCOMPRESSED
from curvfluence.score.cost import ScoreCost
from curvfluence.score.reach import Reach
from curvfluence.score.scores import Scores


def memorable(
    problem: Problem, rung: Rung | Curvature, damping: Damping, *, strict: bool, plain: bool
) -> Rung:
    """A rung whose blocks can be taken some after others. Errors, before work: `InputError` for
    what cannot; `CoverageError` with `strict`, of the whole problem."""
    require_problem(problem)
    require_damping(damping)
    if isinstance(rung, Curvature):
        raise InputError("memory bounds a fit too, and this curvature is fitted: give its rung")
    require_rung(rung)
    if not rung.separable(problem):
        raise InputError(
            f"{rung.name} is one block, of which no part can be taken alone: memory is for rungs "
            "of a block a layer, such as EKFAC(). GGN(inversion.ConjugateGradients()) has no matrix"
        )
    if isinstance(damping, BestOf):
        raise InputError("BestOf judges whole scores, and memory makes them in parts: give one λ")
    if not plain:
        raise InputError(
            "within a memory come plain scores: without leverage, by_block, tolerance, "
            "bound_tolerance, out"
        )
    if kinds.flag(strict, "strict"):
        require_rules(problem, rung)
    return rung


@dataclass(frozen=True, eq=False)
class _Group:
    """The problem in the parameters of some blocks alone, and the bytes that those take."""

    problem: Problem
    needed: int


def within_memory(
    problem: Problem,
    rung: Rung,
    room: int,
    score: Callable[[Problem, Rung, bool], Scores],
) -> Scores:
    """The sum over groups of blocks of `score(problem in their parameters, rung, alone)`: nothing
    of C stands between two blocks, so that a block's share is that of its own parameters. `alone`
    is whether there is one group. Where processes work together, each group is done by one of them
    from end to end, over all of the data.

    Errors: `InputError` naming a block that is larger than the memory by itself, and for a Fisher
    type that would be another one without the last layer.
    """
    groups = list(_groups(problem, rung, room, _units(rung.coverage(problem))))
    alone = len(groups) == 1

    def scored(group: _Group) -> Scores:
        part = group.problem.remembering(min(problem.remember, room - group.needed))
        found = score(part, rung, alone)
        if alone:
            return found
        forget_gradients(part, discover(part))
        return replace(found, certifier=None)  # which would hold its curvature and gradients

    team = ranks.here()
    if alone:
        team = None  # a single group is shared out as every fit is
    shares = map(scored, groups) if team is None else _shared_out(team, groups, scored)
    total = next(shares)
    for share in shares:
        total = _added(total, share)
    if not alone:
        total = replace(total, rung=named(rung.name, total.coverage))
    return _whole(problem, total, room, groups)


def _shared_out(
    team: ranks.Ranks, groups: Sequence[_Group], scored: Callable[[_Group], Scores]
) -> Iterator[Scores]:
    """The shares of all groups in their order, at every process; a round at a time, in which each
    process does one group, so that the scores of one are held beside the sum."""
    for first in range(0, len(groups), team.count):
        number, mine = first + team.rank, dict[int, Scores]()
        values = torch.empty(0)
        with team.alike(), ranks.apart():
            if number < len(groups):
                found = scored(groups[number])
                values = found.values
                mine[number] = replace(found, values=values.new_empty(0, values.shape[1]))
        for one, said in team.merged(mine).items():
            yield replace(said, values=team.broadcast(values, one - first))


@dataclass(frozen=True)
class _Unit:
    """Blocks of one module, or that have a parameter in common, as the groups of a convolution
    have: a bias whose weight is not there would be another kind of block. Named as the first."""

    name: str
    parameters: frozenset[str]
    count: int


def _units(lines: Sequence[CoverageLine]) -> list[_Unit]:
    """In the order of their first blocks."""
    units: list[_Unit] = []
    for line in lines:
        own = frozenset(line.parameters)
        met = [unit for unit in units if _modules(unit.parameters) & _modules(own)]
        joined = _Unit(
            met[0].name if met else line.block,
            own.union(*(unit.parameters for unit in met)),
            line.count + sum(unit.count for unit in met),
        )
        place = units.index(met[0]) if met else len(units)
        units = [unit for unit in units if unit not in met]
        units.insert(place, joined)
    return units


def _modules(parameters: frozenset[str]) -> set[str]:
    """That hold them."""
    return {name.rpartition(".")[0] for name in parameters}


def _groups(problem: Problem, rung: Rung, room: int, units: Sequence[_Unit]) -> Iterator[_Group]:
    """As many blocks in a group as the memory has room for, by halves; in their order, so that
    layers on the same inputs stay together."""
    names = [name for unit in units for name in unit.parameters]
    every = len(names) == len(problem.parameters.names)
    part = problem if every else problem.restricted(names)
    _require_same_fisher(problem, part, rung)
    needed = _needed(part, rung)
    if needed <= room:
        yield _Group(part, needed)
        return
    if len(units) == 1:
        raise InputError(
            f"block {units[0].name} takes about {said(needed)} by itself, and memory is "
            f"{said(room)}: give it that much, ask fewer queries at a time, or take a rung with "
            "smaller blocks"
        )
    ends = list(accumulate(unit.count for unit in units))
    middle = min(range(1, len(units)), key=lambda k: abs(2 * ends[k - 1] - ends[-1]))
    yield from _groups(problem, rung, room, units[:middle])
    yield from _groups(problem, rung, room, units[middle:])


def _needed(problem: Problem, rung: Rung) -> int:
    """Bytes of matrices, queries' rows and solved queries."""
    count = len(problem.queries)
    rows = count * discover(problem).elements(1)
    solved = min(count * problem.parameters.count, budget.SOLVED)
    return int((rung.elements(problem) + rows + solved) * problem.dtype.itemsize)


def _require_same_fisher(problem: Problem, part: Problem, rung: Rung) -> None:
    """Columns by layer go by the last one, which not every group has."""
    for whole, own in zip(rung.fishers(problem), rung.fishers(part), strict=True):
        if type(whole) is not type(own) or whole.width(problem) != own.width(part):
            raise InputError(
                f"with {problem.n_outputs} outputs {whole.name} goes by the last layer, which not "
                f"every part of the parameters has: give {rung.name} fisher=MonteCarlo(8) or "
                "Empirical(), or no memory"
            )


def _added(total: Scores, share: Scores) -> Scores:
    total.values.add_(share.values)
    one, other = total.cost, share.cost
    notes = dict.fromkeys((*total.notes, *share.notes))
    if any(note.startswith(COMPRESSED) for note in notes):
        notes.pop(UNCOMPRESSED, None)  # of some groups alone
    return replace(
        total,
        lambdas=(*total.lambdas, *share.lambdas),
        coverage=(*total.coverage, *share.coverage),
        cost=ScoreCost(
            one.fit_seconds + other.fit_seconds,
            one.score_seconds + other.score_seconds,
            max(one.nbytes, other.nbytes),
        ),
        notes=tuple(notes),
    )


def _whole(problem: Problem, scores: Scores, room: int, groups: Sequence[_Group]) -> Scores:
    """With what only the whole scores can say."""
    most = max(group.needed for group in groups)
    count = "one group" if len(groups) == 1 else f"{len(groups)} groups"
    note = (
        f"within {said(room)} in {count} of blocks, about {said(most)} at a time (matrices and "
        "queries; a pass's activations come to it)"
    )
    reach = Reach(problem)
    if scores.unit == problem.measurement.unit:  # without units they are no predictions
        reach.look(scores.values, 0, 0)
    return replace(scores, notes=(*scores.notes, *reach.notes(), note))


def said(size: int) -> str:
    """Bytes in KiB, MiB or GiB."""
    power = min(2, max(0, (size.bit_length() - 1) // 10 - 1))
    return f"{size / 1024 ** (power + 1):.3g} {('KiB', 'MiB', 'GiB')[power]}"
