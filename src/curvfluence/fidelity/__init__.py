"""How far influence agrees with retraining: order (LDS), certainty, ceiling and size."""

from __future__ import annotations

from curvfluence.fidelity.bootstrap import (
    Axes,
    Difference,
    Interval,
    Intervals,
    Replicates,
    Resamples,
    bootstrap_lds,
    interval,
    intervals,
    paired_difference,
    percentile,
    resamples,
)
from curvfluence.fidelity.calibration import Calibration, calibrate, calibrate_queries
from curvfluence.fidelity.ceiling import Ceiling, reliability, spearman_brown
from curvfluence.fidelity.decomposition import (
    StepLoss,
    decompose,
    distance_squared,
    frobenius_squared,
    mean_steps,
    shares,
)
from curvfluence.fidelity.inverse_error import (
    THRESHOLD,
    InverseErrors,
    Spectral,
    Yardstick,
    damped_errors,
    inverse_errors,
)
from curvfluence.fidelity.lds import LDS, Sweep, lds, query_halves, spearman, undefined
from curvfluence.fidelity.spectra import (
    Leading,
    Spectrum,
    diagonalised,
    leading_by_block,
    leading_space,
    overlap,
    spectrum,
)
from curvfluence.fidelity.subset_truth import SubsetTruth

__all__ = [
    "spearman",
    "undefined",
    "Sweep",
    "query_halves",
    "lds",
    "LDS",
    "SubsetTruth",
    "Axes",
    "Resamples",
    "resamples",
    "Replicates",
    "bootstrap_lds",
    "Interval",
    "interval",
    "Intervals",
    "intervals",
    "Difference",
    "paired_difference",
    "percentile",
    "Ceiling",
    "reliability",
    "spearman_brown",
    "StepLoss",
    "decompose",
    "distance_squared",
    "frobenius_squared",
    "mean_steps",
    "Spectral",
    "Yardstick",
    "THRESHOLD",
    "InverseErrors",
    "inverse_errors",
    "damped_errors",
    "shares",
    "Leading",
    "Spectrum",
    "spectrum",
    "diagonalised",
    "leading_by_block",
    "leading_space",
    "overlap",
    "Calibration",
    "calibrate",
    "calibrate_queries",
]
