"""Which rung and which damping, for a budget, and what one step more would cost."""

from curvfluence.advising.advice import Advice, Candidate, Measured
from curvfluence.advising.advise import advise
from curvfluence.advising.budget import seconds_of
from curvfluence.advising.dampings import CHOICES, Choice, Tried

__all__ = [
    "CHOICES",
    "Advice",
    "Candidate",
    "Choice",
    "Measured",
    "Tried",
    "advise",
    "seconds_of",
]
