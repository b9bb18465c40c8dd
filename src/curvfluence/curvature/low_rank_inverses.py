"""Inverses of Kronecker blocks at low rank, found and measured for the scores they will make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from types import MappingProxyType

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Curvature, Solved
from curvfluence.curvature.damping import Damping
from curvfluence.curvature.operators.low_rank_inverse import LowRankInverse
from curvfluence.curvature.operators.low_rank_search import Sample, Search
from curvfluence.curvature.operators.operator import Against
from curvfluence.jacobian.drawn import Drawn
from curvfluence.jacobian.rows import Rows, concatenate
from curvfluence.runtime import budget, ranks

QUERIES = 16  # that ranks are chosen for
FEWEST = 64  # rows of which a GEMM is quick
SHARED = 4  # parts of the queries, at least, that ranks are checked on


@dataclass(frozen=True)
class Attempt:
    """`share` of the error that is allowed is what a block may bring, and `within` of it all must
    be, as other examples show it; whether small rows take fewer ranks, of which there are more than
    any sample has."""

    share: float
    within: float
    graded: bool


ATTEMPTS = (Attempt(0.2, 0.5, True), Attempt(0.5, 1.0, False), Attempt(0.1, 1.0, False))


@dataclass(frozen=True, eq=False)
class LowRankInverses:
    """Of some blocks, by the name of the block; of the others a solution is held. `error` is the
    largest ‖ΔI_q‖/‖I_q‖ of the `queries` queries over all training examples, as `examples` of them
    show it that were not all chosen on; None where none was chosen. `of_one` is the largest
    ‖ΔI_n‖/‖I_n‖ of one of these examples over all queries."""

    by_block: Mapping[str, LowRankInverse] = field(default_factory=lambda: MappingProxyType({}))
    error: float | None = None
    of_one: float = 0.0
    queries: int = 0
    examples: int = 0

    def numbers(self, curvature: Curvature) -> int:
        """That are held of each solved query."""
        sizes = {block.name: block.size for block in curvature.blocks}
        return sum(
            self.by_block[name].numbers if name in self.by_block else size
            for name, size in sizes.items()
        )

    @property
    def note(self) -> str | None:
        """What a result must say of them."""
        ranks = ", ".join(f"{v.rank} ({k})" for k, v in self.by_block.items() if not v.exact)
        if self.error is None:
            return None
        graded = any(len(v.grades.ranks) > 1 for v in self.by_block.values())
        fewer = ", and fewer for small gradients" if graded else ""
        return (
            f"inverses at low rank, {ranks}{fewer}: scores of "
            f"{self.queries} queries were off by at most {self.error:.1e} of their norm, those of "
            f"one example by {self.of_one:.1e} of theirs, as {self.examples} examples show it, a "
            "measurement and no bound; inverse_error=0 takes the product in full"
        )


def low_rank_inverses(
    curvature: Curvature,
    queries: Rows,
    damping: Damping,
    *,
    examples: int,
    error: float,
    sample: Callable[[], Drawn | None],
) -> LowRankInverses:
    """Those that make scores of these queries and so many training examples cheaper, with a
    relative error of at most `error` for every query over all examples, as the half of `sample`
    shows it that ranks were not chosen on. Where they do not keep it they are chosen anew on the
    queries of the largest errors too, as many for all rows, and then for less; and then the product
    is taken in full. So it is where there is nothing to measure on.

    Cost beside the search: the product in full of all queries with 48 examples or some more."""
    drawn = cache(sample)
    some = _spread(queries)
    exact: dict[str, LowRankInverse] = {}
    for attempt in ATTEMPTS:
        chosen = _Chosen(curvature, damping, some, drawn)
        asked = Sample(
            examples,
            lambda few=some: few,
            chosen.rows,
            partial(chosen.allowed, attempt.share * error) if error else None,
            error**-0.5 if attempt.graded and error else 1.0,
        )
        found = _found(curvature, queries, damping, asked)
        exact = {name: inverse for name, inverse in found.items() if inverse.exact}
        others = None if len(exact) == len(found) else drawn()
        if others is None:
            continue  # a larger share may have a rank
        others = others.half(1)
        gap_qn, true_qn = _compared(curvature, queries, damping, found, others.rows)
        off_q = others.norms(gap_qn) / others.norms(true_qn)  # of nothing but zeros it is not told
        told = ~off_q.isnan()
        if not bool(told.any()):
            break
        if float(off_q[told].max()) <= attempt.within * error:
            off_n = gap_qn.norm(dim=0) / true_qn.norm(dim=0)
            worst, of_one = float(off_q[told].max()), float(off_n[~off_n.isnan()].max())
            found = _as_used(found, len(queries))
            return LowRankInverses(found, worst, of_one, int(told.sum()), len(others))
        worse = torch.where(told, off_q, 0.0).topk(min(QUERIES, len(off_q))).indices
        some = concatenate([_spread(queries), queries[worse.to(queries.dense.device)]])
    return LowRankInverses(exact)


def _as_used(inverses: Mapping[str, LowRankInverse], queries: int) -> dict[str, LowRankInverse]:
    """What was checked, for many rows: queries stay merged where that is little memory, and few
    rows of a size take the ranks of larger ones."""
    held = queries * sum(inverse.merged for inverse in inverses.values()) <= budget.KEPT_MERGED
    return {k: replace(v, held=held, fewest=FEWEST) for k, v in inverses.items()}


@dataclass(frozen=True, eq=False)
class _Chosen:
    """What ranks are chosen on: some queries, and half of what is drawn."""

    curvature: Curvature
    damping: Damping
    queries: Rows
    drawn: Callable[[], Drawn | None]

    def rows(self) -> Drawn | None:
        found = self.drawn() if len(self.queries) else None
        return None if found is None else found.half(0)

    def allowed(self, error: float) -> Tensor:
        """So much of the norm of each query's scores over all examples."""
        return error * self._norms

    @cached_property
    def _norms(self) -> Tensor:
        half = self.rows()
        assert half is not None
        against = Against(len(half))
        solved = self.curvature.solve_rows(self.queries, self.damping, against=against)
        return half.norms(_scores(solved, half.rows))


def _found(
    curvature: Curvature, queries: Rows, damping: Damping, asked: Sample
) -> dict[str, LowRankInverse]:
    """Of each block, what its operator has; searches are shared out."""
    made: dict[str, LowRankInverse | Search] = {}
    jobs: dict[str, ranks.Job] = {}
    for block, value in curvature.damped(damping):
        decay = block.places.take(curvature.decay)
        with curvature.naming(block):
            one = block.operator.low_rank_inverse(block.places, queries, decay, value, asked)
        if one is not None:
            made[block.name] = one
        if isinstance(one, Search):
            jobs[block.name] = ranks.Job(one.cost, curvature.naming(block)(one.run))
    searched = dict(zip(jobs, ranks.shared_out(list(jobs.values())), strict=True))
    found: dict[str, LowRankInverse] = {}
    for name, one in made.items():
        inverse = one.inverse(searched[name]) if isinstance(one, Search) else one
        if inverse is not None:
            found[name] = inverse
    return found


def _compared(
    curvature: Curvature,
    queries: Rows,
    damping: Damping,
    inverses: Mapping[str, LowRankInverse],
    rows: Rows,
) -> tuple[Tensor, Tensor]:
    """(what low ranks change, the products in full) of all queries with some rows, [Q, n]: some
    queries at a time, which processes that work together share out."""
    exact = {name: inverse for name, inverse in inverses.items() if inverse.exact}
    room = max(1, budget.CHECKED // LowRankInverses(inverses).numbers(curvature))
    step = min(room, -(-len(queries) // SHARED))
    starts, team = range(0, len(queries), step), ranks.here()
    own: dict[int, tuple[Tensor, Tensor]] = {}
    with ranks.alike():
        for start in starts if team is None else starts[team.rank :: team.count]:
            few, against = queries[start : start + step], Against(len(rows))
            true, near = (
                _scores(curvature.solve_rows(few, damping, against=against, inverses=one), rows)
                for one in (exact, inverses)
            )
            own[start] = near - true, true
    found = own if team is None else team.merged(own)
    gaps, whole = zip(*(found[start] for start in starts), strict=True)
    return torch.cat(gaps), torch.cat(whole)


def _spread(queries: Rows) -> Rows:
    """A few queries that are not 0, from the smallest to the largest."""
    size_q = queries.exact_norms()[:, 0]
    order = size_q.argsort()[int((size_q == 0).sum()) :]
    count = min(QUERIES, len(order))
    at = torch.linspace(0, max(0, len(order) - 1), count).round().long()
    return queries[order[at.to(order.device)]]


def _scores(solved: Solved, rows: Rows) -> Tensor:
    """N times those of solved queries, [Q, n]."""
    return solved.inner(rows)[..., 0].double()
