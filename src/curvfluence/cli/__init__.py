"""The command line: builds the same objects as the library, and shows what they give."""

from curvfluence.cli import advise as advise
from curvfluence.cli import attribute as attribute
from curvfluence.cli import audit as audit
from curvfluence.cli import bank as bank
from curvfluence.cli import claims as claims
from curvfluence.cli import compare as compare
from curvfluence.cli import index as index
from curvfluence.cli import init as init
from curvfluence.cli import judge as judge
from curvfluence.cli import plan as plan
from curvfluence.cli import questions as questions
from curvfluence.cli import report as report
from curvfluence.cli import runs as runs
from curvfluence.cli import study as study
from curvfluence.cli import sweep as sweep
from curvfluence.cli.process import main
from curvfluence.cli.root import app

__all__ = ["app", "main"]
