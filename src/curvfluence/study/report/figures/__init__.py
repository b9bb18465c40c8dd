"""The figures of a report, each a function of the study's results that gives None without them."""

from curvfluence.study.report.figures.calibration import calibration, calibration_curve
from curvfluence.study.report.figures.cost import operations, pareto
from curvfluence.study.report.figures.decomposition import errors, shares
from curvfluence.study.report.figures.ladder import bregman, ladder, steps
from curvfluence.study.report.figures.spectra import effective_dimension, eigenvalues, overlaps
from curvfluence.study.report.figures.sweep import sweep

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
