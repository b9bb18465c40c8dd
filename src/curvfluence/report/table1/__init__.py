"""The page of the paper's own cells."""

from curvfluence.report.table1.figures import lds
from curvfluence.report.table1.page import (
    TERMS,
    headline,
    lds_table,
    measures,
    show_table1,
    summary,
    text,
    write_table1,
)

__all__ = [
    "TERMS",
    "headline",
    "lds",
    "lds_table",
    "measures",
    "show_table1",
    "summary",
    "text",
    "write_table1",
]
