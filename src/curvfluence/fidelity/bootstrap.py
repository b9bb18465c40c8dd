"""How far a LDS can be trusted: a crossed bootstrap over models, subsets and queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Flag, auto
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.fidelity.arrays import Counts, Floats, Mask
from curvfluence.fidelity.lds import (
    Sweep,
    centred_ranks,
    checked,
    cross_chosen,
    half_means,
    lds,
)
from curvfluence.runtime import budget
from curvfluence.runtime.journal import in_pieces


class Axes(Flag):
    """What a bootstrap draws anew; the rest stands as it was."""

    MODELS = auto()
    SUBSETS = auto()
    QUERIES = auto()
    CROSSED = MODELS | SUBSETS | QUERIES


@dataclass(frozen=True, eq=False)
class Resamples:
    """How often each model [B, J], subset [B, m] and query [B, Q] is drawn in each replicate.

    Every rung that is to be compared uses the same Resamples: their differences are then paired.
    """

    models: Counts
    subsets: Counts
    queries: Counts

    def __post_init__(self) -> None:
        shapes = (self.models.shape, self.subsets.shape, self.queries.shape)
        if {len(shape) for shape in shapes} != {2} or len({shape[0] for shape in shapes}) != 1:
            raise InputError(
                f"counts of models, subsets and queries have shapes {shapes}, expected [B, J], "
                "[B, m] and [B, Q]; make them with `resamples`"
            )

    def __len__(self) -> int:
        return len(self.models)

    def same_as(self, other: Resamples) -> bool:
        """Whether both hold the same draws."""
        return (
            np.array_equal(self.models, other.models)
            and np.array_equal(self.subsets, other.subsets)
            and np.array_equal(self.queries, other.queries)
        )


def resamples(
    models: int,
    subsets: int,
    *,
    halves: Mask,
    seed: int,
    replicates: int = 500,
    axes: Axes = Axes.CROSSED,
) -> Resamples:
    """Draws with replacement on each of `axes`; on the others every count is 1.

    Queries are drawn within their half, so that a half keeps its size and is never empty. Each axis
    has a stream of its own: with one seed, the subsets drawn are the same whichever axes go along.
    """
    halves = np.asarray(halves, dtype=np.bool_)
    if min(models, subsets, len(halves), replicates) < 1:
        raise InputError(
            f"{models} models, {subsets} subsets, {len(halves)} queries and {replicates} "
            "replicates: there must be one of each at least"
        )
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]

    def counts(axis: Axes, stream: np.random.Generator, size: int) -> Counts:
        if axis not in axes or size == 0:
            return np.ones((replicates, size), dtype=np.int64)
        return stream.multinomial(size, np.full(size, 1.0 / size), size=replicates)

    queries = np.ones((replicates, len(halves)), dtype=np.int64)
    for half in (halves, ~halves):
        queries[:, half] = counts(Axes.QUERIES, streams[2], int(half.sum()))
    return Resamples(
        models=counts(Axes.MODELS, streams[0], models),
        subsets=counts(Axes.SUBSETS, streams[1], subsets),
        queries=queries,
    )


@dataclass(frozen=True, eq=False)
class Replicates:
    """The LDS of the full sample (`value`) and of the replicates of `resamples` (`draws`, [B])."""

    value: float
    draws: Floats
    resamples: Resamples


def bootstrap_lds(sweep: Sweep, truth: Floats, halves: Mask, resamples: Resamples) -> Replicates:
    """The cross-fitted LDS of `lds` in every replicate, each choosing its dampings anew.

    With c the counts of subsets in a replicate and x, y the ranks on the full sample,

        ρ = (m Σ c x y − Σ c x Σ c y) / √((m Σ c x² − (Σ c x)²) (m Σ c y² − (Σ c y)²))

    which is averaged under the counts of models and queries. Ranks are fixed on the full sample, so
    ρ is one GEMM [J Q, m] @ [m, B] a damping and moment, and drawing a subset twice makes no ties.
    With all counts 1 it is `lds(...).value`. A replicate in which one side is constant gives 0.

    Shapes: truth [J, m, Q], halves [Q]. Cost: O(D J Q m B) time, at 13 dampings, 8 models, 180
    queries, 100 subsets and 500 replicates .5 to .7 s on two cores. Memory there about 110 MB: a
    few times the predictions while they are ranked, a few MB for the replicates.
    Raises: as `lds`; InputError where the resamples do not fit.
    """
    truth, halves = checked(sweep, truth, halves)
    _, models, subsets, queries = sweep.predicted.shape
    drawn = tuple(
        counts.shape[1] for counts in (resamples.models, resamples.subsets, resamples.queries)
    )
    if drawn != (models, subsets, queries):
        raise InputError(
            f"resamples draw from {drawn} models, subsets and queries, but the sweep has "
            f"{(models, subsets, queries)}; make them for this sweep"
        )
    size = max(1, budget.REPLICATES // (models * queries))

    def from_replicate(first: int) -> Iterator[tuple[int, Tensor]]:
        x_djqm = centred_ranks(np.moveaxis(sweep.predicted, 2, 3))
        y_jqm = centred_ranks(np.moveaxis(truth, 1, 2))
        for start in range(first, len(resamples), size):
            drawn = _part(resamples, slice(start, start + size))
            yield start, torch.from_numpy(_cross_fitted(x_djqm, y_jqm, halves, drawn))

    draws = [drawn_b.numpy() for _, drawn_b in in_pieces("bootstrap", from_replicate)]
    value = lds(sweep, truth, halves).value
    return Replicates(value=value, draws=np.concatenate(draws), resamples=resamples)


def _part(resamples: Resamples, rows: slice) -> Resamples:
    return Resamples(resamples.models[rows], resamples.subsets[rows], resamples.queries[rows])


def _cross_fitted(x_djqm: Floats, y_jqm: Floats, halves: Mask, drawn: Resamples) -> Floats:
    """The cross-fitted LDS under some replicates: [b]."""
    models, queries, subsets = y_jqm.shape
    c_mb = drawn.subsets.T.astype(np.float64)
    weights_bj = drawn.models / models
    weights_qb = drawn.queries.T.astype(np.float64)
    y_rm = y_jqm.reshape(-1, subsets)
    sum_y = y_rm @ c_mb
    spread_y = subsets * ((y_rm * y_rm) @ c_mb) - sum_y * sum_y

    score_dqb = np.empty((len(x_djqm), queries, len(drawn)))
    for d, x_jqm in enumerate(x_djqm):
        x_rm = x_jqm.reshape(-1, subsets)
        sum_x = x_rm @ c_mb
        scale = subsets * ((x_rm * x_rm) @ c_mb) - sum_x * sum_x
        scale *= spread_y
        np.sqrt(scale, out=scale)
        rho = subsets * ((x_rm * y_rm) @ c_mb) - sum_x * sum_y
        # Ranks are whole numbers: where a side is constant, scale and rho are both exactly 0.
        np.divide(rho, scale, out=rho, where=scale > 0)
        score_dqb[d] = np.einsum("jqb,bj->qb", rho.reshape(models, queries, -1), weights_bj)

    means_2db = half_means(score_dqb, halves, weights_qb)
    chosen_2b = cross_chosen(means_2db)
    judged_2b = np.take_along_axis(means_2db, chosen_2b[:, None], axis=1)[:, 0]
    share = halves.mean()
    return share * judged_2b[0] + (1.0 - share) * judged_2b[1]


class Interval(NamedTuple):
    """From `low` to `high`, in units of LDS."""

    low: float
    high: float

    @property
    def resolved(self) -> bool:
        """Whether it leaves 0 out: the sign of what it is of is then known."""
        return self.low > 0 or self.high < 0

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)


def interval(replicates: Replicates, level: float = 0.95) -> Interval:
    """The percentile interval: the (1 ± level) / 2 quantiles of the draws.

    Layout of the nominal 95% crossed interval, by simulation against population Spearman known in
    closed form (random models, subsets and queries, retraining noise that queries share, dampings
    chosen inside; 300 simulations of 250 replicates, so ± .013; tests/test_fidelity_coverage.py,
    marked slow, prints the table), and of the basic interval for comparison:

                                                          percentile   basic
        8 models, 60 subsets, 40 queries                      .94       .94
        1 model (nothing is said about other models)          .98       .97
        5 models, retraining noise at twice the signal        .97       .99
        5 models, 9 dampings all but tied                     .98       .97
        5 models, 30 subsets                                  .93       .96
        3 models, spread of their error .5 in its logarithm   .83       .80
        paired differences in these worlds: .99 to 1.00, but .90 with the 3 models

    The draws lie .02 to .12 of their standard deviation below the value and every interval held
    it, so there is nothing for another interval to mend, and this one stays within [−1, 1]. Most
    misses are on the low side: Spearman itself, and so the value, falls short of the population by
    about .01 at 60 subsets and .02 at 30. A crossed bootstrap counts the noise of single cells
    more than once (Owen 2007, the pigeonhole bootstrap), hence the caution on differences. Few
    models that differ are few: below five, read the interval as too short.
    """
    return percentile(replicates.draws, level)


def percentile(draws: Floats, level: float = 0.95) -> Interval:
    """The (1 ± level)/2 quantiles of draws of any statistic."""
    if not 0.0 < level < 1.0:
        raise InputError(f"level is {level}; a confidence lies between 0 and 1, such as 0.95")
    low, high = np.quantile(draws, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(low=float(low), high=float(high))


@dataclass(frozen=True)
class Intervals:
    """Over models, subsets and queries together; over subsets or queries with the rest fixed."""

    crossed: Interval
    subsets: Interval
    queries: Interval


def intervals(
    sweep: Sweep,
    truth: Floats,
    halves: Mask,
    *,
    seed: int,
    replicates: int = 500,
    level: float = 0.95,
) -> Intervals:
    """`interval` of `bootstrap_lds` drawing all three axes, subsets alone and queries alone.

    Cost: three bootstraps. Raises: as `lds`.
    """
    _, models, subsets, _ = sweep.predicted.shape

    def over(axes: Axes) -> Interval:
        drawn = resamples(
            models, subsets, halves=halves, seed=seed, replicates=replicates, axes=axes
        )
        return interval(bootstrap_lds(sweep, truth, halves, drawn), level)

    return Intervals(
        crossed=over(Axes.CROSSED), subsets=over(Axes.SUBSETS), queries=over(Axes.QUERIES)
    )


@dataclass(frozen=True)
class Difference:
    """LDS of one rung minus that of another, and its paired interval."""

    value: float
    interval: Interval


def paired_difference(a: Replicates, b: Replicates, level: float = 0.95) -> Difference:
    """a − b, replicate by replicate: what both rungs share in a draw cancels.

    Raises: InputError unless both come from the same draws.
    """
    if not a.resamples.same_as(b.resamples):
        raise InputError(
            f"replicates of {a.value:.4f} and {b.value:.4f} come from different draws of "
            f"{len(a.resamples)} and {len(b.resamples)} replicates and cannot be paired; "
            "pass one Resamples to both bootstraps"
        )
    return Difference(value=a.value - b.value, interval=percentile(a.draws - b.draws, level))
