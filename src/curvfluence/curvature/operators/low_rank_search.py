"""The least rank of 1/(Λ + w + λ) of a Kronecker block at which scores are as near as is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.operators.correction import Correction
from curvfluence.curvature.operators.denominator import Denominator
from curvfluence.curvature.operators.low_rank_inverse import Grades, LowRankInverse
from curvfluence.curvature.places import LayerPart
from curvfluence.jacobian.drawn import Drawn
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Outer
from curvfluence.runtime.eigen_solver import svd

LEAST = 2.0**35  # operations of a product with solved queries that are worth a search for ranks
WORTH = 0.7  # of those operations, that the products of a low rank may take
RANKS = (128, 256)  # tried one after the other
OVERSAMPLED = 16
NOTHING = 1e-18  # of the largest weight
POWERS = 2  # of M Mᵀ, by which its largest singular vectors stand out
FINER = 10**0.5  # times smaller a row is for which the next fewer ranks are enough


@dataclass(frozen=True, eq=False)
class Sample:
    """Queries and training rows that ranks are chosen on (None where there are none): of how many
    `examples` scores are wanted, and the norm [Q] that a block's error may have in the scores of
    each of these queries over all examples, as the drawn ones show it; None where there may be
    none. What a small row has of its own scores may be off by up to `slack` times as much."""

    examples: int
    queries: Callable[[], Rows]
    rows: Callable[[], Drawn | None]
    allowed: Callable[[], Tensor] | None
    slack: float = 1.0

    @property
    def slacks(self) -> tuple[float, ...]:
        """1, √10, 10, ... up to `slack`: of rows that are as many times smaller."""
        found = [1.0]
        while found[-1] * FINER <= self.slack * (1 + 1e-9):
            found.append(found[-1] * FINER)
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Search:
    """For the ranks of 1/(Λ + w₀ + λ), which is `damped` with what the decay of a bias adds, in a
    basis where Λ is `values`: `queries` whose scores are wanted, and some `asked` ones and training
    `rows` that ranks are chosen on, which stand for all as `held` says."""

    part: LayerPart
    out_basis: Tensor  # U_B
    in_basis: Tensor  # U_A
    values: Tensor
    damped: Callable[[], tuple[Denominator, Correction | None]]
    queries: Outer
    asked: Outer
    rows: Outer
    held: Drawn
    allowed_q: Tensor
    slacks: tuple[float, ...]
    solve: Callable[[Rows], Tensor]

    @property
    def cost(self) -> float:
        """Beside other searches."""
        return float(self.values.numel())

    def run(self) -> tuple[Tensor, ...]:
        """What takes time: (u [o, r], v [i, r], how many ranks for each slack), or nothing where
        none are few enough."""
        denominator, _ = self.damped()
        queries = self._rotated(self.queries)
        denominator.require_trusted_rows(queries)
        rows = self.held.weighted(self._rotated(self.rows))
        found = low_rank(
            1 / denominator.values.double(),
            spread_of(self.values, queries, rows),
            self._rotated(self.asked),
            rows,
            self.allowed_q,
            self.slacks,
        )
        if found is None:
            return ()
        u_or, v_ir = (x.to(self.values) for x in found[:2])
        return u_or.contiguous(), v_ir.contiguous(), torch.tensor(found[2])

    def inverse(self, found: tuple[Tensor, ...]) -> LowRankInverse | None:
        """Of what `run` found, here or in another process."""
        if not found:
            return None
        u_or, v_ir, ranks = found
        grades = Grades.of(self.held.typical(self.rows), self.slacks, ranks.tolist())
        return LowRankInverse(
            self.part,
            self.out_basis,
            self.in_basis,
            u_or,
            v_ir,
            grades,
            self.damped()[1],
            exact=False,
            solve=self.solve,
        )

    def _rotated(self, term: Outer) -> Outer:
        return term.rotated(self.out_basis, self.in_basis)


def worth_a_search(part: LayerPart, queries: Rows, sample: Sample) -> bool:
    """Whether a low rank could take less than `WORTH` of the product with solved queries, and that
    is long enough to look for one."""
    o, i = part.shape
    direct = 2.0 * len(queries) * sample.examples * o * i
    return sample.allowed is not None and direct >= LEAST and most_ranks(o, i) >= 8


def most_ranks(o: int, i: int) -> int:
    return int(WORTH * o * i / (o + i))


def low_rank(
    inverse_oi: Tensor,
    spread: tuple[Tensor, Tensor],
    queries: Outer,
    rows: Outer,
    allowed_q: Tensor,
    slacks: Sequence[float],
) -> tuple[Tensor, Tensor, tuple[int, ...]] | None:
    """(u [o, r], v [i, r], how many of them for each slack) of the least ranks at which, for each
    of some queries (all in the eigenbasis), what they change in products with some rows is of a
    norm of at most `slack` times `allowed_q`; r is that of the first slack, the least. None where
    that takes too many.

    Σ_r u_r v_rᵀ is the truncated singular value decomposition of 1/(Λ + w₀ + λ) weighted by the
    `spread` of rows, √E ŝ² and √E â² over queries times the same over training rows: where those
    are uncorrelated its error is the expected squared error of a score. All of it in float64.
    """
    out_weight, in_weight = spread
    weighted = out_weight[:, None] * inverse_oi * in_weight
    s_qo, a_qi = queries.s[:, 0].double(), queries.a.double()
    s_no, a_ni = rows.s[:, 0].double(), rows.a.double()
    exact_qn = torch.stack(
        [
            torch.einsum("no,no->n", (a_ni * a_i) @ inverse_oi.T, s_no * s_o)
            for s_o, a_i in zip(s_qo, a_qi, strict=True)
        ]
    )
    most, told_q = most_ranks(*inverse_oi.shape), allowed_q > 0
    for count in RANKS:
        u_or, v_ir = _truncated(weighted, min(count, most))
        u_or, v_ir = _divided(u_or, out_weight), _divided(v_ir, in_weight)
        s_qrn = (s_qo[:, None] * u_or.T) @ s_no.T
        a_qrn = (a_qi[:, None] * v_ir.T) @ a_ni.T
        gap_qr = (s_qrn * a_qrn).cumsum(1).sub_(exact_qn[:, None]).norm(dim=2)
        of_allowed_r = (gap_qr / allowed_q[:, None])[told_q].amax(0)
        ranks = tuple(_least(of_allowed_r <= slack) for slack in slacks)
        if ranks[0] <= len(of_allowed_r):
            return u_or[:, : ranks[0]], v_ir[:, : ranks[0]], ranks
        if count >= most:
            break
    return None


def _least(good_r: Tensor) -> int:
    """The first rank from which on all are good."""
    bad = (~good_r).nonzero()
    return int(bad.max()) + 2 if len(bad) else 1


def spread_of(values_oi: Tensor, queries: Outer, rows: Outer) -> tuple[Tensor, Tensor]:
    """√E ŝ² and √E â² of queries times those of training rows, [o] and [i], of rows in the
    eigenbasis; of training rows by some of them and by the eigenvalues, whose sums over inputs and
    outputs are E ŝ² ‖a‖² and E â² ‖s‖² over all."""
    values = values_oi.double().clamp_min(0)
    return (
        _spread(queries.s[:, 0], rows.s[:, 0], values.sum(1)),
        _spread(queries.a, rows.a, values.sum(0)),
    )


def _spread(queries: Tensor, rows: Tensor, eigenvalues: Tensor) -> Tensor:
    of_rows = _normed(rows.double().square().mean(0)) + _normed(eigenvalues)
    return (queries.double().square().mean(0) * of_rows).sqrt()


def _normed(x: Tensor) -> Tensor:
    total = float(x.sum())
    return x / total if total > 0 else x


def _truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(U Σ, V) of the largest singular values, from a random range (Halko et al. 2011, algorithm
    4.4)."""
    width = min(rank + OVERSAMPLED, *matrix.shape)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], width, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(matrix @ start.to(matrix.device))[0]
    for _ in range(POWERS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
    u, sigma, vh = svd(basis.T @ matrix)
    return (basis @ u * sigma)[:, :rank], vh[:rank].T.contiguous()


def _divided(x_kr: Tensor, weight_k: Tensor) -> Tensor:
    """x / weight; 0 where the weight is nothing beside the largest: rows have no such part, and
    the quotient might be no float32."""
    reached = weight_k > NOTHING * weight_k.max()
    return torch.where(reached[:, None], x_kr / weight_k[:, None], 0.0)
