"""The page of a sweep: how accuracy and its losses go with each axis of the grid."""

from curvfluence.report.sweep.page import write_sweep_report

__all__ = ["write_sweep_report"]
