"""What a study found, as typed records: `results.json` and nothing else."""

from curvfluence.study.results.claim import ClaimRow
from curvfluence.study.results.results import Results
from curvfluence.study.results.rung import RungResult
from curvfluence.study.results.settings import Environment, StudySettings
from curvfluence.study.results.step import DecompositionStep, RungDifference, Step

__all__ = [
    "ClaimRow", "DecompositionStep", "Environment", "Results", "RungDifference", "RungResult",
    "Step", "StudySettings",
]  # fmt: skip
