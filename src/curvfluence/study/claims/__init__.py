"""The claims of "Better Hessians Matter", each with what was measured and a verdict."""

from curvfluence.report.claims import markdown, show_claims
from curvfluence.study.claims.plan import AXES, Settings
from curvfluence.study.claims.run import Claimed, run_claims

__all__ = ["AXES", "Claimed", "Settings", "markdown", "run_claims", "show_claims"]
