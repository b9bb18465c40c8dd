"""The noise ceiling: how well the truth agrees with a repetition of itself."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb, sqrt

import numpy as np

from curvfluence.errors import InputError
from curvfluence.fidelity.arrays import Floats, finite, shaped
from curvfluence.fidelity.lds import spearman, undefined

Split = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Ceiling:
    """Reliability of a truth that is a mean of `repeats`; `reliability` says how.

    half: the mean correlation of two halves, before Spearman-Brown. splits: how many pairs of
    halves were averaged. undefined: how many of their correlations were constant, and count as 0.
    """

    reliability: float
    half: float
    repeats: int
    splits: int
    undefined: int

    @property
    def best_lds(self) -> float:
        """About the LDS of the noiseless truth against this one: √reliability, 0 if negative."""
        return sqrt(max(self.reliability, 0.0))


def reliability(units: Floats, *, splits: int = 50, seed: int = 0) -> Ceiling:
    """Split-half reliability of the mean of r exchangeable repeats, by Spearman-Brown:

        ρ = mean over splits, models, queries of ρ_s(mean of h repeats, mean of h others), h = ⌊r/2⌋
        reliability = k ρ / (1 + (k − 1) ρ),  k = r / h

    Shapes: units [J, r, m, Q], r repeats of the truth of each of J models. For matched
    initialisation the repeats share model j's initial weights; for independent initialisation
    (J = 1) a unit is the mean of one initialisation.
    Splits: all of them where they are no more than `splits`, else that many different ones drawn
    by `seed`; the same for all models. An odd repeat sits out its split.
    Assumes: noise independent between repeats and of equal spread. Spearman-Brown is exact for
    Pearson's correlation. Where signal and noise are normal, from ranks it gives the rank
    reliability to .004 (Pearson's, which is higher, to .016) and a `best_lds` up to .01 too high.
    It steps the mean correlation up, not each query's, so where queries differ `best_lds` stands
    above the mean of their own. A ρ below 0 is left as it is: nothing is reliable there, and the
    formula has a pole.
    Cost: O(splits J Q m log m).
    Raises: InputError for fewer than two repeats; NonFiniteError.
    Source: Spearman (1910), Brown (1910).
    """
    units = shaped("units", finite("units", units), (None, None, None, None), "[J, r, m, Q]")
    repeats = units.shape[1]
    if repeats < 2:
        raise InputError(
            f"units [J, r, m, Q] of shape {units.shape} hold {repeats} repeat of each: a truth "
            "then says nothing about its own noise; give two repeats or more"
        )
    if splits < 1 or 0 in units.shape:
        raise InputError(f"{splits} splits of units of shape {units.shape}; give one or more")
    units_jrqm = np.moveaxis(units, 2, 3)
    used = _splits(repeats, splits, seed)
    total, constant, count = 0.0, 0, units_jrqm.shape[0] * units_jrqm.shape[2]
    for first, second in used:
        halves = units_jrqm[:, list(first)].mean(1), units_jrqm[:, list(second)].mean(1)
        total += float(spearman(*halves).sum())
        constant += int(undefined(*halves).sum())
    half = total / (count * len(used))
    return Ceiling(
        reliability=spearman_brown(half, repeats / (repeats // 2)),
        half=half,
        repeats=repeats,
        splits=len(used),
        undefined=constant,
    )


def spearman_brown(correlation: float, factor: float) -> float:
    """k ρ / (1 + (k − 1) ρ): reliability of k times as many repeats; a negative ρ is returned."""
    if correlation <= 0.0:
        return correlation
    return factor * correlation / (1.0 + (factor - 1.0) * correlation)


def _splits(repeats: int, limit: int, seed: int) -> list[Split]:
    """Different unordered pairs of disjoint halves: all, or `limit` of them at random."""
    half = repeats // 2
    if comb(repeats, half) * comb(repeats - half, half) // 2 <= limit:
        return [
            (first, second)
            for first in combinations(range(repeats), half)
            for second in combinations(sorted(set(range(repeats)) - set(first)), half)
            if first < second
        ]
    rng = np.random.default_rng(seed)
    drawn: dict[Split, None] = {}  # a dict keeps the order of drawing, a set would not
    while len(drawn) < limit:
        order = [int(i) for i in rng.permutation(repeats)]
        one, other = sorted((sorted(order[:half]), sorted(order[half : 2 * half])))
        drawn[tuple(one), tuple(other)] = None
    return list(drawn)
