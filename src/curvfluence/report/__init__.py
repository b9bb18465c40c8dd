"""Pages that open offline: of a study, of a sweep, of studies side by side, and of claims."""

from curvfluence.report.claims import write_claims
from curvfluence.report.compare import Comparison, compare_studies, write_comparison
from curvfluence.report.parts.page import Report
from curvfluence.report.study import with_report, write_report
from curvfluence.report.sweep import write_sweep_report

__all__ = [
    "Comparison",
    "Report",
    "compare_studies",
    "with_report",
    "write_claims",
    "write_comparison",
    "write_report",
    "write_sweep_report",
]
