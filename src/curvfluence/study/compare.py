"""What the rungs are worth: LDS under each question, intervals, steps and noise ceilings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from curvfluence.fidelity import (
    LDS,
    Axes,
    Calibration,
    Ceiling,
    Difference,
    Interval,
    Intervals,
    Replicates,
    Resamples,
    Sweep,
    bootstrap_lds,
    calibrate,
    interval,
    lds,
    paired_difference,
    percentile,
    query_halves,
    reliability,
    resamples,
)
from curvfluence.runtime.journal import in_turn
from curvfluence.study.at_model import RungScores
from curvfluence.study.progress import Watcher
from curvfluence.study.protocols import Protocol
from curvfluence.study.results import RungDifference, Step
from curvfluence.study.results.truth import ByQuestion
from curvfluence.study.retrain import Truth
from curvfluence.study.spec import StudySpec
from curvfluence.truth import independent, independent_repeats, matched, matched_repeats

Floats = NDArray[np.float64]
_SINGLE = (Axes.SUBSETS, Axes.QUERIES)


@dataclass(frozen=True, eq=False)
class RungFidelity:
    """One rung against the truths: matched, independent and as ensemble (None with one model).

    The ensemble is one predictor, the mean of the models' scores, against the mean truth over all
    initialisations. `calibration` regresses the true change on the predicted one at the chosen
    dampings, pooled over models, subsets and queries; None for a rung without units. `replicates`
    are the draws of the crossed bootstrap behind its interval, paired between rungs.
    """

    name: str
    sweep: Sweep
    replicates: Replicates
    matched: LDS
    intervals: Intervals
    independent: LDS | None
    ensemble: LDS | None
    calibration: Calibration | None


@dataclass(frozen=True)
class LadderFidelity:
    """Everything that is said of the rungs. A reliability of None is explained in
    `ceiling_notes`.

    `lost` holds the LDS lost by each step of the ladder and its chains, `lds_shares` the share of a
    chain's step, by the chain's name, in what the chain loses from GGN to K-FAC. It has no interval
    where some replicate loses nothing in all: a share of nothing is no number.
    """

    halves: NDArray[np.bool_]
    rungs: tuple[RungFidelity, ...]
    steps: tuple[Step, ...]
    lost: dict[tuple[str, str], Difference]
    lds_shares: dict[tuple[str, str, str], tuple[float, Interval | None]]
    differences: tuple[RungDifference, ...]
    reliability: ByQuestion
    best_lds: ByQuestion
    ceiling_notes: tuple[str, ...]


def compare(
    spec: StudySpec, truth: Truth, rungs: tuple[RungScores, ...], protocol: Protocol, watch: Watcher
) -> LadderFidelity:
    """LDS with crossed intervals (damping selection repeated inside), paired between rungs."""
    (half_seed,) = spec.seeds("query halves", 1)
    halves = query_halves(truth.values.shape[-1], half_seed)
    measure = Measured(spec, truth, halves)
    sweeps = {rung.name: partial(rung.sweep, measure.left_out) for rung in rungs}
    measured = measure.each(sweeps, watch)
    replicates = {rung.name: rung.replicates for rung in measured}
    gaps = {
        (a, b): paired_difference(replicates[a], replicates[b])
        for a, b in combinations(replicates, 2)
    }
    ladder, lost = _lost(spec, protocol, replicates)
    ceilings, notes = noise_ceilings(spec, truth)
    return LadderFidelity(
        halves=halves,
        rungs=tuple(measured),
        steps=tuple(Step(*p, lost[p].value, lost[p].interval) for p in ladder if p in lost),
        lost=lost,
        lds_shares=_lds_shares(replicates, protocol),
        differences=tuple(
            RungDifference(*pair, gap.value, gap.interval) for pair, gap in gaps.items()
        ),
        reliability=ByQuestion(**{q: c and c.reliability for q, c in ceilings.items()}),
        best_lds=ByQuestion(**{q: c and c.best_lds for q, c in ceilings.items()}),
        ceiling_notes=notes,
    )


def _lost(
    spec: StudySpec, protocol: Protocol, replicates: dict[str, Replicates]
) -> tuple[tuple[tuple[str, str], ...], dict[tuple[str, str], Difference]]:
    """The steps of the ladder, and the LDS that each of them and of its chains' steps loses."""
    # Where rungs were left out, a step goes to the next one that is there.
    ladder = protocol.steps if spec.rungs is None else tuple(pairwise(spec.ladder))
    chained = (step for chain in protocol.chains for step in chain.steps)
    lost = {
        (a, b): paired_difference(replicates[a], replicates[b])
        for a, b in dict.fromkeys((*ladder, *protocol.steps, *chained))
        if {a, b} <= set(replicates)
    }
    return ladder, lost


def _lds_shares(
    replicates: dict[str, Replicates], protocol: Protocol
) -> dict[tuple[str, str, str], tuple[float, Interval | None]]:
    """(LDS above − LDS below) / (LDS of GGN − LDS of K-FAC) for the steps of each whole chain."""
    shares: dict[tuple[str, str, str], tuple[float, Interval | None]] = {}
    for chain in protocol.chains:
        if not set(chain.rungs) <= set(replicates):
            continue
        top, bottom = replicates[chain.rungs[0]], replicates[chain.rungs[-1]]
        if top.value <= bottom.value:
            continue
        for a, b in chain.steps:
            value = (replicates[a].value - replicates[b].value) / (top.value - bottom.value)
            total = top.draws - bottom.draws
            lost = replicates[a].draws - replicates[b].draws
            sure = bool((total > 0).all())
            shares[chain.name, a, b] = (value, percentile(lost / total) if sure else None)
    return shares


class Measured:
    """Measures one sweep of predictions after another against the same truths, on the same draws.

    `models` are the influence models that predictions are made at, by number; all unless given.
    """

    def __init__(
        self,
        spec: StudySpec,
        truth: Truth,
        halves: NDArray[np.bool_],
        models: Sequence[int] | None = None,
    ) -> None:
        at = list(range(len(truth.values)) if models is None else models)
        self.halves, self.left_out = halves, truth.subsets.left_out
        self.target = matched(truth.values).numpy()[at]
        self.others = independent(truth.values).numpy()[at] if len(truth.values) > 1 else None
        self.change = self.target - truth.models.base.numpy()[at][:, None]
        self.drawn = {
            axes: _resamples(spec, (len(at), len(truth.subsets)), halves, axes)
            for axes in (Axes.CROSSED, *_SINGLE)
        }

    def each(self, sweeps: Mapping[str, Callable[[], Sweep]], watch: Watcher) -> list[RungFidelity]:
        """Of each method's sweep, by its name; what takes long is kept one by one."""

        def measure(name: str) -> RungFidelity:
            return self(name, sweeps[name]())

        found: list[RungFidelity] = []
        makes = ((f"compare {name}", partial(measure, name)) for name in sweeps)
        with watch("compare", len(sweeps)) as done:
            for one in in_turn(makes, RungFidelity):
                # all of them hold the same draws, and not each a copy of its own
                own = replace(one.replicates, resamples=self.drawn[Axes.CROSSED])
                found.append(replace(one, replicates=own))
                done(len(found))
        return found

    def __call__(self, name: str, sweep: Sweep) -> RungFidelity:
        target, halves = self.target, self.halves
        replicates = {a: bootstrap_lds(sweep, target, halves, d) for a, d in self.drawn.items()}
        result = lds(sweep, target, halves)
        mean = Sweep(sweep.dampings, sweep.predicted.mean(axis=1, keepdims=True))
        return RungFidelity(
            name=name,
            sweep=sweep,
            replicates=replicates[Axes.CROSSED],
            matched=result,
            intervals=Intervals(*(interval(replicates[a]) for a in (Axes.CROSSED, *_SINGLE))),
            independent=None if self.others is None else lds(sweep, self.others, halves),
            ensemble=(
                lds(mean, target.mean(axis=0, keepdims=True), halves) if len(target) > 1 else None
            ),
            calibration=_calibration(sweep, result, self.change, halves),
        )


def _resamples(
    spec: StudySpec, counts: tuple[int, int], halves: NDArray[np.bool_], axes: Axes
) -> Resamples:
    (seed,) = spec.seeds("bootstrap", 1)
    return resamples(*counts, halves=halves, seed=seed, replicates=spec.replicates, axes=axes)


def _calibration(
    sweep: Sweep, result: LDS, change_jmq: Floats, halves: NDArray[np.bool_]
) -> Calibration | None:
    first, second = result.dampings
    if first is None or second is None:
        return None
    at = [sweep.predicted[sweep.dampings.index(damping)] for damping in (first, second)]
    return calibrate(np.where(halves, at[0], at[1]), change_jmq)


def noise_ceilings(
    spec: StudySpec, truth: Truth
) -> tuple[dict[str, Ceiling | None], tuple[str, ...]]:
    """The reliability of each question's truth, by its name, and why there is none."""
    (seed,) = spec.seeds("splits", 1)
    ceilings: dict[str, Ceiling | None] = {}
    notes: list[str] = []
    models, orders = truth.values.shape[:2]
    asked = (
        ("matched", matched_repeats, orders, 2, "minibatch orders of each subset"),
        ("independent", independent_repeats, models, 3, "initialisations"),
    )
    for question, repeats, have, least, what in asked:
        if have >= least:
            ceilings[question] = reliability(repeats(truth.values).numpy(), seed=seed)
            continue
        ceilings[question] = None
        notes.append(
            f"no noise ceiling for the {question} question, which takes {least} {what} or more; "
            f"the truth has {have}"
        )
    return ceilings, tuple(notes)
