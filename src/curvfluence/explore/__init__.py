"""What training examples are behind some answers of a model, and what speaks for believing it."""

from curvfluence.explore.answers import Answer, Answers, answer, companion
from curvfluence.explore.believed import Believed, believed

__all__ = ["Answer", "Answers", "Believed", "answer", "believed", "companion"]
