"""Inverses of Kronecker blocks at low rank, found and measured for the scores they will make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from types import MappingProxyType

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Curvature, Solved
from curvfluence.curvature.damping import Damping
from curvfluence.curvature.operators.low_rank_inverse import LowRankInverse, Sample
from curvfluence.curvature.operators.operator import Against
from curvfluence.jacobian.drawn import Drawn
from curvfluence.jacobian.rows import Rows

QUERIES = 16  # that ranks are chosen for
SHARES = (0.5, 0.1)  # of the error that is allowed, that a block may bring; the second where other
# examples, and all blocks together, have more than is allowed


@dataclass(frozen=True, eq=False)
class LowRankInverses:
    """Of some blocks, by the name of the block; of the others a solution is held. `error` is the
    largest ‖ΔI_q‖/‖I_q‖ of `queries` queries over all training examples, as `examples` of them
    show it that no rank was chosen on; None where none was chosen. `of_one` is the largest
    ‖ΔI_n‖/‖I_n‖ of one of these examples over these queries."""

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
        return (
            f"inverses at low rank, {ranks}, and fewer for small gradients: scores of "
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
    relative error of at most `error` for each of some queries over all examples, as the half of
    `sample` shows it that ranks were not chosen on. A rank that does not keep it is chosen anew,
    once, and then the block's product is taken in full; so it is where there is nothing to measure
    on. Examples of small gradients may be off by up to √`error` of their own scores, or about that:
    they bring no more of a query's error than others do."""
    drawn = cache(sample)

    @cache
    def some() -> Rows:
        return _spread(queries)

    @cache
    def solved() -> Solved:
        return curvature.solve_rows(some(), damping, against=Against(2 * len(some())))

    @cache
    def chosen_on() -> Drawn | None:
        found = drawn() if len(some()) else None
        return None if found is None else found.half(0)

    @cache
    def norm_q() -> Tensor:
        """Of scores over all examples; asked for where there is something to choose on."""
        half = chosen_on()
        assert half is not None
        return half.norms(_scores(solved(), half.rows))

    def allowed_q(share: float) -> Tensor:
        return share * error * norm_q()

    exact: dict[str, LowRankInverse] = {}
    for share in SHARES:
        found: dict[str, LowRankInverse] = {}
        allowed = partial(allowed_q, share) if error else None
        asked = Sample(examples, some, chosen_on, allowed, error**-0.5 if error else 1.0)
        for block, value in curvature.damped(damping):
            decay = block.places.take(curvature.decay)
            with curvature.naming(block):
                inverse = block.operator.low_rank_inverse(
                    block.places, queries, decay, value, asked
                )
            if inverse is not None:
                found[block.name] = inverse
        exact = {name: inverse for name, inverse in found.items() if inverse.exact}
        others = None if len(exact) == len(found) else drawn()
        if others is None:
            break
        others = others.half(1)
        true_qn = _scores(solved(), others.rows)
        by_rank = curvature.solve_rows(some(), damping, against=Against(0), inverses=found)
        gap_qn = _scores(by_rank, others.rows) - true_qn
        off_q = _relative(others.norms(gap_qn), others.norms(true_qn))
        if not len(off_q):
            break
        if float(off_q.max()) <= error:
            off_n = _relative(gap_qn.norm(dim=0), true_qn.norm(dim=0))
            worst, of_one = float(off_q.max()), float(off_n.max())
            return LowRankInverses(found, worst, of_one, len(off_q), len(others))
    return LowRankInverses(exact)


def _relative(gap: Tensor, true: Tensor) -> Tensor:
    """gap / true; of nothing but zeros an error is not told."""
    told = (gap > 0) | (true > 0)
    return (gap / true)[told]


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
