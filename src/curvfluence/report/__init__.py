"""The report of a study: one page that opens offline, its figures, and studies side by side."""

from curvfluence.report.compare import Comparison, compare_studies, write_comparison
from curvfluence.report.page import Report, write_report
from curvfluence.study.finished import Finished, read_study

__all__ = [
    "Comparison",
    "Finished",
    "Report",
    "compare_studies",
    "read_study",
    "write_comparison",
    "write_report",
]
