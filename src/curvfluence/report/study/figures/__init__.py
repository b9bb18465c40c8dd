"""The figures of a study, each a function of its results that gives None without them."""

from curvfluence.report.study.figures.calibration import calibration, calibration_curve
from curvfluence.report.study.figures.cost import operations, pareto
from curvfluence.report.study.figures.decomposition import errors, shares
from curvfluence.report.study.figures.ladder import bregman, hybrids, ladder, steps, sweep
from curvfluence.report.study.figures.spectra import effective_dimension, eigenvalues, overlaps

__all__ = [
    "bregman",
    "calibration",
    "calibration_curve",
    "effective_dimension",
    "eigenvalues",
    "errors",
    "hybrids",
    "ladder",
    "operations",
    "overlaps",
    "pareto",
    "shares",
    "steps",
    "sweep",
]
