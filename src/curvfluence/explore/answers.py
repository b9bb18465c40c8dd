"""The answer to "which training examples made it say this", by one rung and one beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Damping, Relative
from curvfluence.curvature.rung import Rung, fit
from curvfluence.errors import InputError
from curvfluence.forecast.make import LADDER, plans
from curvfluence.problem.problem import Problem
from curvfluence.runtime import journal, ranks
from curvfluence.score.agreement import Agreement, agreement
from curvfluence.score.certificate import Certificate
from curvfluence.score.influence import influence
from curvfluence.score.scores import Scores
from curvfluence.score.tokens import token_influence
from curvfluence.score.within_memory import memorable
from curvfluence.study.problems.given import Given

SECONDS = 30.0  # that the rung beside may be forecast to take
TOKENS = 24  # queries whose examples are split by token


@dataclass(frozen=True, eq=False)
class Answer:
    """Scores of one rung, and how far its inverse is from that of the exact GGN; None for a
    gradient dot product, which inverts nothing."""

    scores: Scores
    certificate: Certificate | None


@dataclass(frozen=True, eq=False)
class Answers:
    """Of `queries`, by number, in the order of the scores' rows; the first answer is the one that
    was asked for, and `agreement` is that of the two, in their lists of `top`. `tokens` has, for a
    loss over positions, the influence of each target of the shown examples of a query: (examples,
    [len, T])."""

    given: Given
    queries: tuple[int, ...]
    answers: tuple[Answer, ...]
    agreement: Agreement | None
    tokens: tuple[tuple[tuple[int, ...], Tensor], ...]
    notes: tuple[str, ...]
    top: int
    seconds: float  # of the command that wrote it, no killed one before it

    @property
    def asked(self) -> Scores:
        return self.answers[0].scores


def answer(
    given: Given,
    queries: Sequence[int] | None = None,
    *,
    rung: Rung,
    beside: Rung | None = None,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    top: int = 10,
    bounds: bool = False,
    memory: int | str | None = None,
) -> Answers:
    """Influences on some queries (by default all) under `rung`, and under `beside` to compare with;
    with `bounds` each with a proven bound on the error of every score. Within a `memory`, as
    `influence` takes it, there is no certificate of either, and single positions are not told.

    Cost: both fits, their scores, and a product with the exact GGN each; bounds as `error_bounds`.
    Errors: as `influence`; `InputError` for a query that is not there, or more examples than there
    are.
    """
    start = time.perf_counter()
    every = given.problem
    top = kinds.count(top, "top")
    if top > len(every.train):
        raise InputError(
            f"top must be at most {len(every.train)}, the number of training examples; seen {top}"
        )
    asked = tuple(range(len(every.queries))) if queries is None else tuple(queries)
    problem = every if queries is None else every.asking(asked)
    rungs = [one for one in (rung, beside) if one is not None]
    if memory is None:
        fits = [fit(problem, one) for one in rungs]
        found = tuple(_answer(problem, one, damping, bounds=bounds) for one in fits)
        tokens, notes = _tokens(problem, fits[0], found[0].scores, damping, top)
    else:
        if bounds:
            raise InputError("bounds take the whole curvature: without memory")
        for one in rungs:  # before the first is scored
            memorable(problem, one, damping, strict=False, plain=True)
        found = tuple(
            Answer(influence(problem, one, damping=damping, memory=memory), None) for one in rungs
        )
        tokens = ()
        positions = problem.loss.positions is not None
        notes = ("single positions are not told within a memory",) if positions else ()
    both = [one.scores for one in found]
    return Answers(
        given=given,
        queries=asked,
        answers=found,
        agreement=agreement(both[0], both[1], top) if len(both) == 2 else None,
        tokens=tokens,
        notes=notes,
        top=top,
        seconds=time.perf_counter() - start,
    )


def companion(problem: Problem, rung: Rung, seconds: float = SECONDS) -> tuple[Rung | None, str]:
    """(the highest rung of the ladder beside `rung` that is forecast to fit this machine and
    `seconds`, why that one). The Hessian is left out: it is no positive matrix to compare with."""
    others = [other for other in LADDER[1:-1] if type(other) is not type(rung)]
    for other, forecast in zip(others, plans(problem, others), strict=True):
        if forecast.fits and forecast.seconds <= seconds:
            return other, f"the highest rung within {seconds:g} s here"
    return None, f"no other rung is forecast to take at most {seconds:g} s here"


def companion_named(problem: Problem, rung: Rung) -> tuple[str | None, str]:
    """`companion` by its name, which stays the one that was chosen where a command goes on:
    forecasts are of a machine and differ from time to time."""

    def choose() -> tuple[str | None, str]:
        found, why = companion(problem, rung)
        return None if found is None else found.name, why

    with ranks.alike():
        name, why = journal.whole("beside", choose, always=True)
    return name, why


def _answer(problem: Problem, curvature: Curvature, damping: Damping, *, bounds: bool) -> Answer:
    scores = influence(problem, curvature, damping=damping)
    no_inverse = curvature.fixed_damping is not None
    return Answer(scores, None if no_inverse else scores.certificate(bounds=bounds))


def _of_tokens(
    problem: Problem, curvature: Curvature, damping: Damping, examples: tuple[int, ...]
) -> Tensor:
    """[len, T] of one query."""
    return journal.whole(
        "tokens", lambda: token_influence(problem, curvature, damping=damping, examples=examples)[0]
    )


def _tokens(
    problem: Problem, curvature: Curvature, scores: Scores, damping: Damping, top: int
) -> tuple[tuple[tuple[tuple[int, ...], Tensor], ...], tuple[str, ...]]:
    """The targets of the most helpful and the most harmful examples, for the first queries."""
    if problem.loss.positions is None:
        return (), ()
    count = len(scores.values)
    found: list[tuple[tuple[int, ...], Tensor]] = []
    for q in range(min(count, TOKENS)):
        row = scores[q]
        ends = [*row.top(top).indices[0].tolist(), *row.bottom(top).indices[0].tolist()]
        rows = tuple(dict.fromkeys(ends))
        found.append((rows, _of_tokens(problem.asking([q]), curvature, damping, rows)))
    left = count - len(found)
    more = f"tokens are coloured for the first {TOKENS} of {count} queries"
    return tuple(found), ((more,) if left else ())
