"""What the rungs are worth: LDS under each question, intervals, steps and noise ceilings."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from curvfluence.errors import InputError
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
from curvfluence.study.climb import Climbed
from curvfluence.study.progress import Watcher
from curvfluence.study.protocols import Protocol
from curvfluence.study.retrain import Truth
from curvfluence.study.spec import StudySpec
from curvfluence.truth import independent, independent_repeats, matched, matched_repeats

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Judged:
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
class Compared:
    """Everything that is said of the rungs. A `None` ceiling is explained in `ceiling_notes`.

    `lost` holds the LDS lost by each step of the ladder and its chains, `lds_shares` the share of a
    chain's step in what the chain loses from GGN to K-FAC. It has no interval where some
    replicate loses nothing in all: a share of nothing is no number.
    """

    halves: NDArray[np.bool_]
    rungs: tuple[Judged, ...]
    steps: tuple[tuple[str, str, Difference], ...]
    lost: dict[tuple[str, str], Difference]
    lds_shares: dict[tuple[str, str], tuple[float, Interval | None]]
    differences: tuple[tuple[str, str, Difference], ...]
    ceilings: dict[str, Ceiling | None]
    ceiling_notes: tuple[str, ...]


def compare(
    spec: StudySpec,
    truth: Truth,
    climbed: tuple[Climbed, ...],
    protocol: Protocol,
    watch: Watcher,
) -> Compared:
    """LDS with crossed intervals (damping selection repeated inside), paired between rungs."""
    (half_seed,) = spec.seeds("query halves", 1)
    halves = query_halves(truth.values.shape[-1], half_seed)
    target = matched(truth.values).numpy()
    drawn = {axes: _resamples(spec, halves, axes) for axes in (Axes.CROSSED, *_SINGLE)}
    judged: list[Judged] = []
    replicates: dict[str, Replicates] = {}
    with watch("compare", len(climbed)) as done:
        for rung in climbed:
            sweep = rung.sweep(truth.subsets.left_out)
            found = {a: bootstrap_lds(sweep, target, halves, d) for a, d in drawn.items()}
            replicates[rung.name] = found[Axes.CROSSED]
            judged.append(_judge(rung.name, sweep, truth, target, halves, found))
            done(len(judged))
    pairs = list(combinations(replicates, 2))
    differences = tuple((a, b, paired_difference(replicates[a], replicates[b])) for a, b in pairs)
    # Where rungs were left out, a step goes to the next one that is there.
    ladder = protocol.steps if spec.rungs is None else tuple(pairwise(spec.ladder))
    steps = dict.fromkeys(
        (*ladder, *protocol.steps, *(step for c in protocol.chains for step in c.steps))
    )
    lost = {
        (a, b): paired_difference(replicates[a], replicates[b])
        for a, b in steps
        if {a, b} <= set(replicates)
    }
    ceilings, notes = _ceilings(spec, truth)
    return Compared(
        halves=halves,
        rungs=tuple(judged),
        steps=tuple((a, b, lost[a, b]) for a, b in ladder if (a, b) in lost),
        lost=lost,
        lds_shares=_lds_shares(replicates, protocol),
        differences=differences,
        ceilings=ceilings,
        ceiling_notes=notes,
    )


def _lds_shares(
    replicates: dict[str, Replicates], protocol: Protocol
) -> dict[tuple[str, str], tuple[float, Interval | None]]:
    """(LDS above − LDS below) / (LDS of GGN − LDS of K-FAC) for the steps of each whole chain."""
    found: dict[tuple[str, str], tuple[float, Interval | None]] = {}
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
            found.setdefault((a, b), (value, percentile(lost / total) if sure else None))
    return found


_SINGLE = (Axes.SUBSETS, Axes.QUERIES)


def _resamples(spec: StudySpec, halves: NDArray[np.bool_], axes: Axes) -> Resamples:
    (seed,) = spec.seeds("bootstrap", 1)
    return resamples(
        spec.models,
        spec.subsets,
        halves=halves,
        seed=seed,
        replicates=spec.replicates,
        axes=axes,
    )


def _judge(
    name: str,
    sweep: Sweep,
    truth: Truth,
    target: Floats,
    halves: NDArray[np.bool_],
    found: dict[Axes, Replicates],
) -> Judged:
    result = lds(sweep, target, halves)
    mean = Sweep(sweep.dampings, sweep.predicted.mean(axis=1, keepdims=True))
    others = independent(truth.values).numpy() if len(truth.values) > 1 else None
    return Judged(
        name=name,
        sweep=sweep,
        replicates=found[Axes.CROSSED],
        matched=result,
        intervals=Intervals(*(interval(found[a]) for a in (Axes.CROSSED, *_SINGLE))),
        independent=None if others is None else lds(sweep, others, halves),
        ensemble=(
            lds(mean, target.mean(axis=0, keepdims=True), halves) if len(target) > 1 else None
        ),
        calibration=_calibration(
            sweep, result, target - truth.models.base.numpy()[:, None], halves
        ),
    )


def _calibration(
    sweep: Sweep, result: LDS, change_jmq: Floats, halves: NDArray[np.bool_]
) -> Calibration | None:
    first, second = result.dampings
    if first is None or second is None:
        return None
    at = [sweep.predicted[sweep.dampings.index(damping)] for damping in (first, second)]
    return calibrate(np.where(halves, at[0], at[1]), change_jmq)


def _ceilings(spec: StudySpec, truth: Truth) -> tuple[dict[str, Ceiling | None], tuple[str, ...]]:
    (seed,) = spec.seeds("splits", 1)
    found: dict[str, Ceiling | None] = {}
    notes: list[str] = []
    for question, repeats in (("matched", matched_repeats), ("independent", independent_repeats)):
        try:
            found[question] = reliability(repeats(truth.values).numpy(), seed=seed)
        except InputError as error:
            found[question] = None
            notes.append(f"no noise ceiling for the {question} question: {error}")
    return found, tuple(notes)
