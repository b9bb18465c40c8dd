"""The page of a study."""

from curvfluence.report.study.page import with_report, write_report

__all__ = ["with_report", "write_report"]
