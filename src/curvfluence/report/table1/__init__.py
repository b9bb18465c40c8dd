"""The page of the paper's own cells."""

from curvfluence.report.table1.page import markdown, show_table1, write_table1

__all__ = ["markdown", "show_table1", "write_table1"]
