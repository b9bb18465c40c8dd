"""Where accuracy is lost: what each step of the ladder costs in matrix, inverse and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.hybrids import same_blocks
from curvfluence.curvature.operators.operator import squared
from curvfluence.errors import InputError

# GGN → BlockGGN → EKFAC → KFAC is orthogonal: each is the best approximation of the one before in
# a set that holds all later ones, so squared distances add up to ‖GGN − KFAC‖². With sampled
# factors that holds of the EK-FAC whose eigenvalues are exact.
CHAIN = ("GGN", "BlockGGN", "EKFAC", "KFAC")


@dataclass(frozen=True)
class StepLoss:
    """One step from `above` to the coarser `below`, at one influence model.

    `distance_squared` is ‖A − B‖² in Frobenius norm. `share` is its fraction of ‖GGN − KFAC‖² and
    `norm_share` that of plain norms in their sum, for the steps of the orthogonal chain; None for
    the others. `inverse_error` is the mean over queries of ‖x_A − x_B‖/‖x_A‖ with x = (C + W +
    λ)⁻¹ g_q, and `score_error` ‖I_A − I_B‖/‖I_A‖ over all scores, each at every λ of the grid; NaN
    where one of the two has NaN for solutions.
    """

    above: str
    below: str
    distance_squared: float
    share: float | None
    norm_share: float | None
    inverse_error: tuple[float, ...]
    score_error: tuple[float, ...]


def distance_squared(a: Curvature, b: Curvature) -> float:
    """‖A − B‖² in Frobenius norm, summed in float64.

    Block by block where both have the same blocks; between a Kronecker eigenbasis and itself
    Σ (Λ_A − Λ_B)², so EK-FAC and K-FAC need no dense matrix; dense otherwise (P² numbers).
    """
    if not same_blocks(a, b):
        return squared(a.to_dense(), b.to_dense())
    pairs = zip(a.blocks, b.blocks, strict=True)
    return sum(x.operator.squared_distance(y.operator) for x, y in pairs)


def frobenius_squared(curvature: Curvature) -> float:
    """‖C‖², from eigenvalues where an operator has them, in float64."""
    return sum(block.operator.squared_norm() for block in curvature.blocks)


def shares(
    distances: Mapping[tuple[str, str], float], chain: Sequence[str] = CHAIN
) -> dict[tuple[str, str], tuple[float, float]]:
    """(share of the squared norms, share of the plain norms) for each step of an orthogonal chain.

    Empty unless all of its steps are there.
    """
    links = list(pairwise(chain))
    if not all(step in distances for step in links):
        return {}
    squares = {step: distances[step] for step in links}
    whole = sum(squares.values())
    norms = {step: value**0.5 for step, value in squares.items()}
    length = sum(norms.values())
    if whole == 0:
        return dict.fromkeys(links, (0.0, 0.0))
    return {step: (squares[step] / whole, norms[step] / length) for step in links}


def decompose(
    curvatures: Mapping[str, Curvature],
    solved: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    *,
    steps: Sequence[tuple[str, str]],
    chain: Sequence[str] = CHAIN,
    distance: Callable[[str, str], float] | None = None,
) -> tuple[StepLoss, ...]:
    """What each of `steps` (above, below) costs at one influence model.

    `solved[name]` [D, Q, P] are (C + W + λ)⁻¹ g_q over the grid and `scores[name]` [D, Q, N] the
    influences; `distance` is that of two curvatures by name, where somebody has it already.
    Errors: `InputError` where grids disagree.
    """
    named = sorted({name for step in steps for name in step})
    sizes = {len(solved[name]) for name in named} | {len(scores[name]) for name in named}
    if len(sizes) > 1:
        raise InputError(f"the rungs were swept over grids of different length: {sorted(sizes)}")
    distances = {
        (a, b): distance(a, b) if distance else distance_squared(curvatures[a], curvatures[b])
        for a, b in steps
    }
    fractions = shares(distances, chain)
    return tuple(
        StepLoss(
            above=a,
            below=b,
            distance_squared=distances[a, b],
            share=fractions[a, b][0] if (a, b) in fractions else None,
            norm_share=fractions[a, b][1] if (a, b) in fractions else None,
            inverse_error=_relative_rows(solved[a], solved[b]),
            score_error=_relative(scores[a], scores[b]),
        )
        for a, b in steps
    )


def _relative_rows(a_dqp: Tensor, b_dqp: Tensor) -> tuple[float, ...]:
    pairs = zip(a_dqp, b_dqp, strict=True)
    return tuple(float(_gaps(a_qp, b_qp).mean()) for a_qp, b_qp in pairs)


def _relative(a_dqn: Tensor, b_dqn: Tensor) -> tuple[float, ...]:
    pairs = zip(a_dqn, b_dqn, strict=True)
    return tuple(float(_gaps(a_qn.reshape(1, -1), b_qn.reshape(1, -1))) for a_qn, b_qn in pairs)


def _gaps(a_rp: Tensor, b_rp: Tensor) -> Tensor:
    """‖a − b‖/‖a‖ of each row; 0 where both are 0, as of a query without a gradient.

    In float64: the square of a query's gradient under 1e-23 is 0 in float32.
    """
    a, b = a_rp.double(), b_rp.double()
    gap, size = (a - b).norm(dim=1), a.norm(dim=1)
    return torch.where(gap == 0, 0.0, gap / size)


def mean_steps(models: Sequence[tuple[StepLoss, ...]]) -> tuple[StepLoss, ...]:
    """The mean over influence models of every number of every step."""

    def mean(values: Sequence[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return sum(numbers) / len(numbers) if numbers else None

    def columns(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))

    return tuple(
        StepLoss(
            above=steps[0].above,
            below=steps[0].below,
            distance_squared=sum(s.distance_squared for s in steps) / len(steps),
            share=mean([s.share for s in steps]),
            norm_share=mean([s.norm_share for s in steps]),
            inverse_error=columns([s.inverse_error for s in steps]),
            score_error=columns([s.score_error for s in steps]),
        )
        for steps in zip(*models, strict=True)
    )
