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
    Ceiling,
    Difference,
    Intervals,
    Replicates,
    Resamples,
    Sweep,
    bootstrap_lds,
    interval,
    lds,
    paired_difference,
    query_halves,
    reliability,
    resamples,
)
from curvfluence.study.climb import Climbed
from curvfluence.study.progress import Watcher
from curvfluence.study.retrain import Truth
from curvfluence.study.spec import StudySpec
from curvfluence.truth import independent, independent_repeats, matched, matched_repeats

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Judged:
    """One rung against the truths: matched, independent (None with one model), and as ensemble.

    The ensemble is one predictor, the mean of the models' scores, against the mean truth over all
    initialisations.
    """

    name: str
    matched: LDS
    intervals: Intervals
    independent: LDS | None
    ensemble: LDS


@dataclass(frozen=True)
class Compared:
    """Everything that is said of the rungs. A `None` ceiling is explained in `ceiling_notes`."""

    halves: NDArray[np.bool_]
    rungs: tuple[Judged, ...]
    steps: tuple[tuple[str, str, Difference], ...]
    differences: tuple[tuple[str, str, Difference], ...]
    ceilings: dict[str, Ceiling | None]
    ceiling_notes: tuple[str, ...]


def compare(
    spec: StudySpec, truth: Truth, climbed: tuple[Climbed, ...], watch: Watcher
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
            found = {a: bootstrap_lds(rung.sweep, target, halves, d) for a, d in drawn.items()}
            replicates[rung.name] = found[Axes.CROSSED]
            judged.append(_judge(rung, truth, target, halves, found))
            done(len(judged))
    pairs = list(combinations(replicates, 2))
    neighbours = set(pairwise(replicates))
    differences = tuple((a, b, paired_difference(replicates[a], replicates[b])) for a, b in pairs)
    ceilings, notes = _ceilings(spec, truth)
    return Compared(
        halves=halves,
        rungs=tuple(judged),
        steps=tuple(row for row in differences if row[:2] in neighbours),
        differences=differences,
        ceilings=ceilings,
        ceiling_notes=notes,
    )


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
    rung: Climbed,
    truth: Truth,
    target: Floats,
    halves: NDArray[np.bool_],
    found: dict[Axes, Replicates],
) -> Judged:
    mean = Sweep(rung.sweep.dampings, rung.sweep.predicted.mean(axis=1, keepdims=True))
    others = independent(truth.values).numpy() if len(truth.values) > 1 else None
    return Judged(
        name=rung.name,
        matched=lds(rung.sweep, target, halves),
        intervals=Intervals(*(interval(found[a]) for a in (Axes.CROSSED, *_SINGLE))),
        independent=None if others is None else lds(rung.sweep, others, halves),
        ensemble=lds(mean, target.mean(axis=0, keepdims=True), halves),
    )


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
