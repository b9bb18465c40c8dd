"""The figures of a report, each a function of the study's results that gives None without them."""

from curvfluence.report.figures.calibration import calibration, calibration_curve
from curvfluence.report.figures.cost import operations, pareto
from curvfluence.report.figures.decomposition import errors, shares
from curvfluence.report.figures.ladder import bregman, ladder, steps
from curvfluence.report.figures.spectra import effective_dimension, eigenvalues, overlaps
from curvfluence.report.figures.sweep import sweep

__all__ = [
    "bregman",
    "calibration",
    "calibration_curve",
    "effective_dimension",
    "eigenvalues",
    "errors",
    "ladder",
    "operations",
    "overlaps",
    "pareto",
    "shares",
    "steps",
    "sweep",
]
