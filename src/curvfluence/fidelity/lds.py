"""The linear datamodelling score: do predicted changes order the subsets as retraining does?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.fidelity.arrays import Counts, Floats, Mask, finite, shaped

# Two dampings whose scores differ by less are tied: rounding must not decide between them.
_TIE = 1e-12


def centred_ranks(values: Floats) -> Floats:
    """2 rank − (m + 1) along the last axis, ties averaged: [..., m], whole numbers that sum to 0.

    Doubled, even averaged ranks are whole, so sums of their products are exact in float64 and
    "constant" is the exact test Σ x² = 0, with no tolerance.
    """
    ranks: Floats = np.asarray(rankdata(values, axis=-1), dtype=np.float64)
    return 2.0 * ranks - (values.shape[-1] + 1)


def spearman(predicted: Floats, truth: Floats) -> Floats:
    """ρ = Σ x y / √(Σ x² Σ y²), with x and y the centred ranks of predictions and truth.

    Shapes: [..., m] and [..., m], broadcast against each other, give [...]. Ties get average ranks.
    Where either side is constant over the m subsets ρ is undefined and 0 stands there;
    `undefined` says where that is.
    Cost: O(m log m) for each correlation.
    Raises: NonFiniteError naming the indices; InputError for fewer than two subsets.
    Source: Spearman (1904); the use on subsets, Park et al. 2023 (TRAK), definition 2.4.
    """
    x, y = _paired(predicted, truth)
    x, y = centred_ranks(x), centred_ranks(y)
    covariance = np.asarray((x * y).sum(-1))
    scale = np.asarray(np.sqrt((x * x).sum(-1) * (y * y).sum(-1)))
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)


def undefined(predicted: Floats, truth: Floats) -> Mask:
    """Where one side is constant over the last axis, so that `spearman` has put a 0: [...]."""
    x, y = _paired(predicted, truth)
    return (x == x[..., :1]).all(-1) | (y == y[..., :1]).all(-1)


def _paired(predicted: Floats, truth: Floats) -> tuple[Floats, Floats]:
    x, y = finite("predicted", predicted), finite("truth", truth)
    if x.ndim == 0 or y.ndim == 0 or x.shape[-1] != y.shape[-1] or x.shape[-1] < 2:
        raise InputError(
            f"a rank correlation needs the same two or more subsets on the last axis of both "
            f"sides, saw shapes {x.shape} and {y.shape}; transpose so that subsets come last"
        )
    return x, y


@dataclass(frozen=True, eq=False)
class Sweep:
    """One rung's predictions over its grid of dampings.

    dampings: D values, strictly increasing, so that the grid has edges; (None,) where a rung has
    none. predicted: [D, J, m, Q], the predicted change of each measurement (the sum of the
    influences of what was left out, in the units of the measurement) for damping × influence
    model × subset × query.
    """

    dampings: tuple[float | None, ...]
    predicted: Floats

    def __post_init__(self) -> None:
        count = len(self.dampings)
        predicted = finite("Sweep.predicted", self.predicted)
        shaped("Sweep.predicted", predicted, (count, None, None, None), "[D, J, m, Q]")
        if 0 in predicted.shape:
            raise InputError(f"Sweep.predicted is empty, shape {predicted.shape}; give it data")
        grid = [damping for damping in self.dampings if damping is not None]
        if count > 1 and (len(grid) < count or any(np.diff(grid) <= 0)):
            raise InputError(
                f"dampings {self.dampings} must increase strictly (None only stands alone); "
                "sort the grid, and the first axis of the predictions with it"
            )
        object.__setattr__(self, "predicted", predicted)


def query_halves(count: int, seed: int) -> Mask:
    """Two random halves of `count` queries, fixed by the seed: [Q], True in the first (the larger
    by one where Q is odd). The same halves serve every rung."""
    count = kinds.count(count, "count", least=0)
    order = np.random.default_rng(kinds.count(seed, "seed", least=0)).permutation(count)
    return order < (count + 1) // 2


@dataclass(frozen=True, eq=False)
class LDS:
    """The cross-fitted LDS of one rung; `lds` says how.

    value: mean over queries, then over models. per_query [J, Q]: what it averages.
    dampings: the one used on the first half (halves True; chosen by the second) and on the second.
    on_edge: a chosen damping ends a grid of more than one, so the best may lie beyond it.
    sweep: (damping, LDS over all queries) over the grid. Its maximum is optimistic, because the
    same queries choose and judge; it is there to be looked at.
    undefined: how many of `per_query` are 0 because one side is constant over the subsets;
    sweep_undefined: the same for each damping of the sweep.
    """

    value: float
    dampings: tuple[float | None, float | None]
    on_edge: bool
    per_query: Floats
    sweep: tuple[tuple[float | None, float], ...]
    undefined: int
    sweep_undefined: tuple[int, ...]


def lds(sweep: Sweep, truth: Floats, halves: Mask) -> LDS:
    """LDS = mean_j mean_q ρ_s(predicted[d(q), j, s, q], truth[j, s, q]), damping cross-fitted:

        d(q) = argmax_d mean_{j, q' in the half without q} ρ[d, j, q']

    Each half of the queries is judged at the damping that the other half chose; one damping a half,
    shared by all models; among tied dampings the smallest.

    Shapes: truth [J, m, Q], the measurement after retraining on each subset, or its change (ranks
    do not see the difference); halves [Q], from `query_halves`. J = 1 serves the ensemble.
    Units: none; LDS lies in [−1, 1].
    Assumes: queries of the two halves are exchangeable. They share their subsets, so the choice is
    unbiased over queries, not over subsets.
    Cost: O(D J Q m log m).
    Raises: InputError where shapes disagree or, for D > 1, a half is empty; NonFiniteError.
    Source: Park et al. 2023 (TRAK), definition 2.4; the cross-fit is this package's own.
    """
    truth, halves = checked(sweep, truth, halves)
    predicted_djqm = np.moveaxis(sweep.predicted, 2, 3)
    truth_jqm = np.moveaxis(truth, 1, 2)
    rho_djq = spearman(predicted_djqm, truth_jqm)
    undefined_djq = undefined(predicted_djqm, truth_jqm)

    weights_q1 = np.ones((len(halves), 1))
    chosen = cross_chosen(half_means(rho_djq.mean(1)[..., None], halves, weights_q1))[:, 0]
    used_q = np.where(halves, chosen[0], chosen[1])
    last = len(sweep.dampings) - 1
    per_query = rho_djq[used_q, :, np.arange(len(halves))].T
    return LDS(
        value=float(per_query.mean(1).mean()),
        dampings=(sweep.dampings[int(chosen[0])], sweep.dampings[int(chosen[1])]),
        on_edge=last > 0 and any(int(d) in (0, last) for d in chosen),
        per_query=per_query,
        sweep=tuple(zip(sweep.dampings, rho_djq.mean((1, 2)).tolist(), strict=True)),
        undefined=int(undefined_djq[used_q, :, np.arange(len(halves))].sum()),
        sweep_undefined=tuple(int(n) for n in undefined_djq.sum((1, 2))),
    )


def checked(sweep: Sweep, truth: Floats, halves: Mask) -> tuple[Floats, Mask]:
    """Truth and halves as arrays, once they are known to fit the sweep."""
    _, models, subsets, queries = sweep.predicted.shape
    truth = shaped("truth", finite("truth", truth), (models, subsets, queries), "[J, m, Q]")
    halves = np.asarray(halves, dtype=np.bool_)
    if halves.shape != (queries,):
        raise InputError(
            f"halves has shape {halves.shape} for {queries} queries; make it with query_halves"
        )
    if len(sweep.dampings) > 1 and (halves.all() or not halves.any()):
        raise InputError(
            f"{len(sweep.dampings)} dampings cannot be cross-fitted with all {queries} queries "
            "in one half; use two queries or more and query_halves, or a single damping"
        )
    return truth, halves


def half_means(score_dqb: Floats, halves: Mask, weights_qb: Floats) -> Floats:
    """Weighted mean over the queries of each half: [D, Q, B] and [Q, B] give [2, D, B].

    An empty half, allowed with a single damping only, gives 0.
    """
    means = [
        np.einsum("dqb,qb->db", score_dqb[:, half], weights_qb[half])
        / np.maximum(weights_qb[half].sum(0), 1.0)
        for half in (halves, ~halves)
    ]
    return np.stack(means)


def cross_chosen(means_2db: Floats) -> Counts:
    """The damping each half is judged at, the best of the other half's: [2, D, B] to [2, B]."""
    tied = means_2db >= means_2db.max(1, keepdims=True) - _TIE
    return tied.argmax(1)[::-1]
