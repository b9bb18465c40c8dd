"""The page of answers: helpful and harmful examples of each query, and how far to believe it."""

from curvfluence.report.explorer.page import write_explorer
from curvfluence.report.explorer.terminal import show_answers

__all__ = ["show_answers", "write_explorer"]
