"""Calibration: are predicted changes of the right size, not only in the right order?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curvfluence.errors import InputError
from curvfluence.fidelity.arrays import Floats, finite, shaped


@dataclass(frozen=True)
class Calibration:
    """The line true = intercept + slope · predicted, its Pearson r, and the n pairs it rests on.

    `slope` has no unit, `intercept` that of the measurement; r is 0 where the truth is constant.
    """

    slope: float
    intercept: float
    r: float
    n: int


def calibrate(predicted: Floats, true: Floats) -> Calibration:
    """Least squares of the true change on the predicted one, all pairs pooled:

        slope = Σ (p − p̄)(t − t̄) / Σ (p − p̄)²,  intercept = t̄ − slope p̄

    Shapes: two arrays of one shape, in the units of the measurement; `true` is a **change**, the
    measurement without minus the measurement with all. Pooled pairs weigh queries by the spread of
    their predictions, and an offset of a query's own enters slope and intercept;
    `calibrate_queries` lets each query have its line.
    Expect a slope near 1 for small removals or down-weights only. Subsets that keep a fraction α
    leave the linear prediction short by about 1/α, and by more with leverage (2.35 for ridge
    regression at α = .5): a slope above 1 is then no fault. For leave-one-out of a random example
    on a net the truth is mostly trajectory noise, which lowers r and not the expected slope.
    Cost: O(n).
    Raises: InputError for different shapes, fewer than two pairs or constant predictions (the slope
    is then undefined); NonFiniteError.
    Source: the definition of influence as a first-order change, Koh & Liang (2017), section 2.
    """
    p, t = finite("predicted", predicted), finite("true", true)
    if p.shape != t.shape or p.size < 2:
        raise InputError(
            f"predicted {p.shape} and true {t.shape} must have one shape and two pairs or more"
        )
    if np.ptp(p) == 0:
        raise InputError(
            f"all {p.size} predicted changes are {p.flat[0]:.6g}, so no slope is defined; look at "
            "the gradients (saturated queries?) or the damping (too large?)"
        )
    p_mean, t_mean = float(p.mean()), float(t.mean())
    p, t = p - p_mean, t - t_mean
    # Scaled by the largest first: squares of changes of 1e-170 would underflow to 0.
    p_size, t_size = float(np.abs(p).max()), float(np.abs(t).max()) or 1.0
    p, t = p / p_size, t / t_size
    pt, pp, tt = float((p * t).sum()), float((p * p).sum()), float((t * t).sum())
    slope = pt / pp * (t_size / p_size)
    return Calibration(
        slope=slope,
        intercept=t_mean - slope * p_mean,
        r=pt / float(np.sqrt(pp * tt)) if tt > 0 else 0.0,
        n=p.size,
    )


def calibrate_queries(predicted: Floats, true: Floats) -> tuple[Calibration | None, ...]:
    """`calibrate` for each query over its subsets: [m, Q] and [m, Q] give Q lines.

    None stands where a query's predictions are constant over the subsets.
    """
    p = shaped("predicted", finite("predicted", predicted), (None, None), "[m, Q]")
    t = shaped("true", finite("true", true), p.shape, "[m, Q]")
    constant = np.ptp(p, axis=0) == 0
    return tuple(None if constant[q] else calibrate(p[:, q], t[:, q]) for q in range(p.shape[1]))
