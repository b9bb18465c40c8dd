"""The claims of "Better Hessians Matter", each with what was measured and a verdict."""

from curvfluence.study.claims.plan import Settings
from curvfluence.study.claims.run import run_claims
from curvfluence.study.claims.table import Claims, is_claims, read_claims
from curvfluence.study.results.claim import AXES

__all__ = ["AXES", "Claims", "Settings", "is_claims", "read_claims", "run_claims"]
