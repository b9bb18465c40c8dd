"""The page of an audit, where a person marks examples and takes their numbers along."""

from curvfluence.report.audit.page import write_audit
from curvfluence.report.audit.terminal import show_audit

__all__ = ["show_audit", "write_audit"]
