"""A sweep: a grid of studies of one problem, in parallel processes, as one tidy table."""

from curvfluence.study.sweep.grid import STUDY_AXES, Cell, cell_folder, grid
from curvfluence.study.sweep.index import Sweep, SweptStudy, is_sweep, read_sweep
from curvfluence.study.sweep.run import run_sweep

__all__ = [
    "STUDY_AXES",
    "Cell",
    "Sweep",
    "SweptStudy",
    "cell_folder",
    "grid",
    "is_sweep",
    "read_sweep",
    "run_sweep",
]
