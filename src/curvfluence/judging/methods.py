"""From what was measured of a method to what is said of it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curvfluence.fidelity import Calibration, Replicates, calibrate, paired_difference
from curvfluence.judging.contenders import Contender
from curvfluence.judging.records import Method, Removed
from curvfluence.study.compare import Measured, RungFidelity
from curvfluence.study.questions.removal import Removal, means


def chosen(one: Contender, measured: RungFidelity, halves: Tensor) -> Tensor:
    """[J, Q, N] at the damping that each half of the queries was given."""
    first, second = (list(one.dampings).index(at) for at in measured.matched.dampings)
    return torch.where(halves[:, None], one.scores[:, first], one.scores[:, second])


def removed_of(change_kjq: NDArray[np.float64], removal: Removal, n: int) -> tuple[Removed, ...]:
    values, intervals = means(change_kjq)
    return tuple(
        Removed(share, count, float(value), each)
        for share, count, value, each in zip(
            removal.shares, removal.counts(n), values, intervals, strict=True
        )
    )


def method_of(
    one: Contender,
    found: RungFidelity,
    judged: Replicates,
    measured: Measured,
    removed: tuple[Removed, ...],
) -> Method:
    gap = None if one.kind == "judged" else paired_difference(judged, found.replicates)
    return Method(
        name=one.name,
        kind=one.kind,
        said=one.said,
        lds=found.matched.value,
        interval=found.intervals.crossed,
        interval_subsets=found.intervals.subsets,
        interval_queries=found.intervals.queries,
        lds_independent=None if found.independent is None else found.independent.value,
        lds_ensemble=None if found.ensemble is None else found.ensemble.value,
        less=None if gap is None else gap.value,
        less_interval=None if gap is None else gap.interval,
        calibration=_calibration(one, found, measured),
        dampings=None if one.fixed else found.matched.dampings,
        undefined=found.matched.undefined,
        removed=removed,
    )


def _calibration(one: Contender, found: RungFidelity, measured: Measured) -> Calibration | None:
    """Of what has units: at the chosen dampings as a study has it, or at the one that there is.
    None where all predictions are the same."""
    if not one.units:
        return None
    if not one.fixed:
        return found.calibration
    predicted = found.sweep.predicted[0]
    return None if np.ptp(predicted) == 0 else calibrate(predicted, measured.change)
