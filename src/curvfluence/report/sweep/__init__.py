"""The page of a sweep: how accuracy and its losses go with each axis of the grid."""

from curvfluence.report.sweep.page import write_sweep_report
from curvfluence.report.sweep.read import is_sweep, read_sweep

__all__ = ["is_sweep", "read_sweep", "write_sweep_report"]
