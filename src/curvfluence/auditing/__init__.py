"""Which training examples look wrong, which harm, which are there twice."""

from curvfluence.auditing.audit import audit
from curvfluence.auditing.record import AuditRecord
from curvfluence.auditing.result import CRITERIA, Audit, Criterion

__all__ = ["CRITERIA", "Audit", "AuditRecord", "Criterion", "audit"]
